//! Stop strings: the text ends before the first of them, wherever tokens happen to break.

/// Holds text back as long as it may be the beginning of a stop string.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    pub fn new(stops: Vec<String>) -> StopMatcher {
        StopMatcher {
            stops: stops.into_iter().filter(|s| !s.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// The text that may be given out, and whether a stop string was found after it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = found {
            let before = self.held[..at].to_string();
            self.held.clear();
            return (before, true);
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back and turned out to be text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length in bytes of the longest end of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = text.char_indices().map(|(i, _)| i);
    starts.map(|i| &text[i..]).find(|end| stop.starts_with(end)).map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect());
        let mut out = String::new();
        for piece in pieces {
            let (text, found) = matcher.push(piece);
            out.push_str(&text);
            if found {
                return (out, true);
            }
        }
        out.push_str(&matcher.finish());
        (out, false)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces() {
        assert_eq!(run(&["\n\n"], &["one\n", "\ntwo"]), ("one".into(), true));
        assert_eq!(run(&["END", "x"], &["a E", "N", "D b"]), ("a ".into(), true));
        assert_eq!(run(&["abc", "b"], &["za", "b"]), ("za".into(), true));
    }

    #[test]
    fn what_only_looked_like_one_is_text() {
        assert_eq!(run(&["END"], &["a E", "N", "d"]), ("a ENd".into(), false));
        assert_eq!(run(&["END"], &["EN"]), ("EN".into(), false));
        assert_eq!(run(&[""], &["abc"]), ("abc".into(), false));
        assert_eq!(run(&["é"], &["caf", "é!"]), ("caf".into(), true));
    }

    #[test]
    fn nothing_is_given_out_that_a_stop_string_may_take_back() {
        let mut matcher = StopMatcher::new(vec!["aab".into()]);
        assert_eq!(matcher.push("aa"), (String::new(), false));
        assert_eq!(matcher.push("a"), ("a".into(), false));
        assert_eq!(matcher.push("b"), (String::new(), true));
    }
}
