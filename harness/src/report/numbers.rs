//! Figures as people read them.

use llorch_trace::Point;

use crate::result::{Excerpt, Row, RowKind};

/// An error: two digits, `0` for exactly zero, `not finite` where it could not be formed.
pub fn error(value: Option<f64>) -> String {
    match value {
        None => "not finite".into(),
        Some(0.0) => "0".into(),
        Some(v) => format!("{v:.1e}"),
    }
}

/// Three digits, for what is compared by eye with a figure beside it.
pub fn figure(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:.2e}") }
}

pub fn tolerance(value: f64) -> String {
    match value {
        0.0 => "exact".into(),
        v if v.log10().fract().abs() < 1e-9 => format!("{v:.0e}"),
        v => format!("{v:.1e}"),
    }
}

/// `1e-5, 1e-3` where deeper blocks have another than block 0.
pub fn tolerances(values: &[f64]) -> String {
    values.iter().map(|v| tolerance(*v)).collect::<Vec<_>>().join(", ")
}

pub fn index(index: &[usize]) -> String {
    let parts: Vec<_> = index.iter().map(usize::to_string).collect();
    format!("[{}]", parts.join(","))
}

/// Seven significant digits: as many as f32 holds, near enough.
pub fn value(value: Option<f64>) -> String {
    match value {
        None => "not finite".into(),
        Some(v) if v == 0.0 || (1e-3..1e7).contains(&v.abs()) => {
            let digits = 6 - v.abs().max(1e-3).log10().floor() as i32;
            format!("{v:.*}", digits.clamp(0, 9) as usize)
        }
        Some(v) => format!("{v:.6e}"),
    }
}

/// One of the point's values: tokens are whole numbers.
pub fn value_at(point: Point, of: Option<f64>) -> String {
    match of {
        Some(id) if point.is_integer() => format!("{id:.0}"),
        v => value(v),
    }
}

/// The two sides of a row.
pub fn row_values(row: &Row, excerpt: &Excerpt) -> [String; 2] {
    let b = if row.kind == RowKind::Own { "expected" } else { &row.b };
    values(row.point, excerpt, &row.a, b)
}

/// Two lines, one a tensor.
pub fn values(point: Point, excerpt: &Excerpt, a: &str, b: &str) -> [String; 2] {
    let width = a.chars().count().max(b.chars().count());
    let line = |name: &str, values: &[Option<f64>]| {
        let values: Vec<_> = values.iter().map(|v| value_at(point, *v)).collect();
        match excerpt.from[..] {
            [] => format!("{:<2$} {}", format!("{name}:"), values.join(" "), width + 1),
            _ => format!("{name:<width$} from {}: {}", index(&excerpt.from), values.join(" ")),
        }
    };
    [line(a, &excerpt.a), line(b, &excerpt.b)]
}

pub fn seconds(s: f64) -> String {
    match s {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{} min {:02} s", (s / 60.0).floor(), (s % 60.0).floor()),
    }
}

/// `hf`, `hf and candle`, `hf, tinygrad and candle`.
pub fn list<S: AsRef<str>>(names: &[S]) -> String {
    match names {
        [] => "nothing".into(),
        [one] => one.as_ref().into(),
        [most @ .., last] => {
            let most: Vec<_> = most.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", most.join(", "), last.as_ref())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_truthful() {
        assert_eq!(
            [error(Some(0.0)), error(Some(2.44e-6)), error(None)],
            ["0", "2.4e-6", "not finite"]
        );
        assert_eq!(
            [tolerance(0.0), tolerance(1e-4), tolerance(2.5e-6)],
            ["exact", "1e-4", "2.5e-6"]
        );
        assert_eq!(
            [value(Some(-1234.5678)), value(Some(0.0)), value(Some(1e-9))],
            ["-1234.568", "0.000000000", "1.000000e-9"]
        );
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
        assert_eq!([seconds(1.26), seconds(61.4), seconds(125.0)], ["1.3 s", "61 s", "2 min 05 s"]);
    }
}
