//! Small things that several modules say alike.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use llorch_trace::Point;

/// Writes to stdout at once, with a newline at the end. A reader that has gone (`| head`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    let written =
        stdout.write_all(format!("{text}{newline}").as_bytes()).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// At most `most` characters, the rest as `…`.
pub fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// A word as a POSIX shell must be given it.
pub fn shell_word(word: &str) -> String {
    match shlex::try_quote(word) {
        Ok(quoted) => quoted.into_owned(),
        // Only a NUL can't be quoted, and no argument holds one.
        Err(_) => format!("{word:?}"),
    }
}

/// `hf, tinygrad and candle`.
pub fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// RFC 3339 in UTC, to the second: `2026-01-31T12:00:00Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are taken
/// from March on, so that the leap day is the last of its year (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + 400 * era + u64::from(month <= 2), month, day)
}

/// Whether a text has a form in which each `0` stands for any digit, and all else for itself.
pub fn has_form(text: &str, form: &str) -> bool {
    let fits = |(found, expected): (u8, u8)| match expected {
        b'0' => found.is_ascii_digit(),
        other => found == other,
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

/// `1 case`, `3 cases`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// `layer 3`, `layers 0 to 3`, `layers 0 and 2`.
pub fn layers(layers: &[usize]) -> String {
    match layers {
        [layer] => format!("layer {layer}"),
        [first, .., last] if layers.len() > 2 && last - first + 1 == layers.len() => {
            format!("layers {first} to {last}")
        }
        _ => {
            let names: Vec<String> = layers.iter().map(usize::to_string).collect();
            format!("layers {}", listed(&names))
        }
    }
}

/// `h.*.attn.q` for `h.3.attn.q`.
pub fn pattern(point: Point) -> String {
    match point.layer {
        Some(layer) => point.to_string().replacen(&layer.to_string(), "*", 1),
        None => point.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // Values of `date -u -d @N`.
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn long_texts_are_cut_at_characters() {
        assert_eq!(shorten("größer", 4), "grö…");
        assert_eq!(shorten("größe", 5), "größe");
    }
}
