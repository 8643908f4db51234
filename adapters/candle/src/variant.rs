//! Which of the three forms of this reference a process is; fixed by its command line.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The candle-nn graph in the dtype that `load` asks for.
    Graph,
    /// The candle-nn graph in float64, whatever `load` asks for.
    GraphF64,
    /// candle-transformers' Whisper decoder on GPT-2's weights.
    Upstream,
}

impl Variant {
    /// The error is a line of usage.
    pub fn from_args(mut args: impl Iterator<Item = String>) -> Result<Variant, String> {
        let usage = "usage: llorch-adapter-candle [--variant f64|upstream]";
        match (args.next().as_deref(), args.next().as_deref(), args.next()) {
            (None, None, None) => Ok(Variant::Graph),
            (Some("--variant"), Some("f64"), None) => Ok(Variant::GraphF64),
            (Some("--variant"), Some("upstream"), None) => Ok(Variant::Upstream),
            (Some("--variant"), Some(other), None) => {
                Err(format!("unknown variant {other:?}\n{usage}"))
            }
            _ => Err(usage.to_string()),
        }
    }

    /// The name under which llorch-diff knows it.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Graph => "candle",
            Variant::GraphF64 => "candle:f64",
            Variant::Upstream => "candle:upstream",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Variant;

    fn parse(words: &[&str]) -> Result<Variant, String> {
        Variant::from_args(words.iter().map(|w| w.to_string()))
    }

    #[test]
    fn reads_the_command_line() {
        assert_eq!(parse(&[]), Ok(Variant::Graph));
        assert_eq!(parse(&["--variant", "f64"]), Ok(Variant::GraphF64));
        assert_eq!(parse(&["--variant", "upstream"]), Ok(Variant::Upstream));
        for wrong in
            [&["--variant"][..], &["upstream"], &["--variant", "f64", "x"], &["--variant", "f16"]]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
