use super::exit::Code;

/// Why a verb failed, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct CliError {
    /// Kind.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// What to do; empty when the message says it.
    pub hint: String,
}

impl CliError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: String::new() }
    }

    pub fn failed(message: impl std::fmt::Display) -> Self {
        Self::new(Code::Failed, message.to_string())
    }

    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self::new(Code::Usage, message.to_string())
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}
