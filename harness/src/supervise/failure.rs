//! What can go wrong with a child, by kind: each becomes a verdict of its own.

use std::fmt;

use super::child::ExitState;

/// A failed conversation with an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub kind: FailureKind,
    /// One sentence: what was expected, what came.
    pub message: String,
    /// The last lines of the adapter's stderr, empty where there were none.
    pub stderr_tail: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum FailureKind {
    /// The program couldn't be started (not found, not executable).
    Spawn,
    /// No answer to `hello` in time.
    HelloTimeout,
    /// No answer to `load` in time.
    LoadTimeout,
    /// No end of a `run` or `tokenize` in time.
    CaseTimeout,
    /// The process ended by a signal or an exit code before it answered.
    Crash { exit: ExitState },
    /// What came on stdout isn't protocol: not JSON, or a line without end.
    Garbage,
    /// Well-formed messages that break the protocol: wrong version, wrong id, wrong order.
    Protocol,
    /// The adapter says that it can't do this, by nature.
    Unsupported,
    /// The adapter refuses the input.
    Input,
    /// The adapter lacks memory, disk or the like.
    Resource,
    /// The adapter reports a fault of its own.
    Internal,
    /// The user pressed Ctrl-C.
    Interrupted,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), stderr_tail: String::new() }
    }

    /// The failure as it reads after `NAME: `, without the name that its message begins with.
    pub fn without_name(&self, name: &str) -> Failure {
        let rest =
            self.message.strip_prefix(name).map(|rest| rest.strip_prefix(':').unwrap_or(rest));
        let rest = rest.and_then(|rest| rest.strip_prefix(' '));
        let message = rest.unwrap_or(&self.message).to_string();
        Failure { message, ..self.clone() }
    }

    /// Whether the process can still answer after this: true for the adapter's own error classes,
    /// false for everything that ended the conversation.
    pub fn is_recoverable(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::Unsupported
                | FailureKind::Input
                | FailureKind::Resource
                | FailureKind::Internal
        )
    }
}

impl FailureKind {
    /// A short word for tables.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Spawn => "not started",
            Self::HelloTimeout | Self::LoadTimeout | Self::CaseTimeout => "timed out",
            Self::Crash { .. } => "crashed",
            Self::Garbage => "garbage on stdout",
            Self::Protocol => "protocol broken",
            Self::Unsupported => "unsupported",
            Self::Input => "input refused",
            Self::Resource => "out of resources",
            Self::Internal => "internal error",
            Self::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.stderr_tail.is_empty() {
            write!(f, "\nstderr ends with:\n{}", indent(&self.stderr_tail))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

pub(crate) fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_not_said_twice() {
        let says = |message: &str| {
            Failure::new(FailureKind::Internal, message).without_name("mine").message
        };
        assert_eq!(says("mine ended (exit code 1)"), "ended (exit code 1)");
        assert_eq!(says("mine: out of memory"), "out of memory");
        assert_eq!(says("minesweeper ended"), "minesweeper ended");
        assert_eq!(says("failed to start mine"), "failed to start mine");
    }
}
