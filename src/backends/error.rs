/// What kind of failure; retry and health go by this word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// No such block or name. Permanent.
    NotFound,
    /// Not allowed: credentials or permissions. Permanent.
    Denied,
    /// The place is read-only. Permanent.
    ReadOnly,
    /// The place is full. Temporary (space may come back), but not retried at once.
    Full,
    /// The place itself is not there: unmounted, unplugged, refused. Temporary.
    Unavailable,
    /// No answer within the deadline. Temporary; the operation may have happened.
    Timeout,
    /// It asks us to slow down. Temporary.
    Throttled,
    /// The bytes that came are not what was asked for (short, wrong). Temporary
    /// for a transfer, and a reason to verify the copy.
    Corrupt,
    /// The request itself is wrong: a bug or a setting. Permanent.
    Invalid,
    /// The place cannot do this. Permanent.
    Unsupported,
    /// Anything else of the place's own. Temporary.
    Other,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::NotFound,
        Self::Denied,
        Self::ReadOnly,
        Self::Full,
        Self::Unavailable,
        Self::Timeout,
        Self::Throttled,
        Self::Corrupt,
        Self::Invalid,
        Self::Unsupported,
        Self::Other,
    ];

    /// The word for it in metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::ReadOnly => "read_only",
            Self::Full => "full",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Throttled => "throttled",
            Self::Corrupt => "corrupt",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Other => "other",
        }
    }
}

/// A failure of a backend.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// What kind.
    pub kind: ErrorKind,
    /// For people: what happened, where, and what to do. No secrets.
    pub message: String,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// When the place says how long to wait, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl BackendError {
    /// A failure without a cause of its own.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None, retry_after_ms: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Whether the same call may succeed later without anybody's help.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self.kind {
            ErrorKind::Full
            | ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::Throttled
            | ErrorKind::Corrupt
            | ErrorKind::Other => true,
            ErrorKind::NotFound
            | ErrorKind::Denied
            | ErrorKind::ReadOnly
            | ErrorKind::Invalid
            | ErrorKind::Unsupported => false,
        }
    }
}
