//! What a storage node and who asks it say to each other: `src/docs/node.md`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backends::{Capabilities, ErrorKind, Presence};

/// Version of the protocol.
pub const FORMAT: u32 = 1;
/// The id of the store, in the head of every answer: what is absent is absent there.
pub const STORE: &str = "cairn-store";
/// The longest body of a request: blocks are sent in CARs of about half of that.
pub const BODY_MAX: usize = 16 << 20;
/// CIDs in one question.
pub const ASKED_MAX: usize = 10_000;
/// A CAR's media type.
pub const CAR: &str = "application/vnd.ipld.car";
/// That of a block.
pub const RAW: &str = "application/vnd.ipld.raw";

/// What a token allows; each also what comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Blocks, listings, names.
    Read,
    /// Put blocks and names: what is there cannot be taken away.
    Write,
    /// Delete.
    Admin,
}

impl Role {
    /// As users write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// `GET /v1/node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// [`FORMAT`].
    pub format: u32,
    /// The store's id.
    pub store: Uuid,
    /// Of the token that asks.
    pub role: Role,
    /// Of the store.
    pub capabilities: Capabilities,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// A word of [`ErrorKind`].
    pub kind: String,
    /// For people.
    pub message: String,
}

/// `POST /v1/blocks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The node that did it.
    pub store: Uuid,
    /// Blocks that are durable there now.
    pub blocks: usize,
}

/// `GET /v1/blocks`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// CIDs and lengths.
    pub blocks: Vec<(String, u64)>,
    /// For the next page.
    pub next: Option<String>,
}

/// Whether a block is there, as a word: its length, `absent` or `unknown`.
#[must_use]
pub fn presence_text(presence: Presence) -> String {
    match presence {
        Presence::Present(len) => len.to_string(),
        Presence::Absent => "absent".to_owned(),
        Presence::Unknown => "unknown".to_owned(),
    }
}

/// Reads [`presence_text`].
#[must_use]
pub fn presence_of(text: &str) -> Option<Presence> {
    match text {
        "absent" => Some(Presence::Absent),
        "unknown" => Some(Presence::Unknown),
        len => len.parse().ok().map(Presence::Present),
    }
}

/// The kind that a word says; another one's words are of no known kind.
#[must_use]
pub fn kind_of(word: &str) -> ErrorKind {
    ErrorKind::ALL.into_iter().find(|kind| kind.as_str() == word).unwrap_or(ErrorKind::Other)
}

/// The status of an answer that says no.
#[must_use]
pub fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::NotFound => 404,
        ErrorKind::Denied | ErrorKind::ReadOnly => 403,
        ErrorKind::Full => 507,
        ErrorKind::Unavailable => 503,
        ErrorKind::Timeout => 504,
        ErrorKind::Throttled => 429,
        ErrorKind::Invalid => 400,
        ErrorKind::Unsupported => 501,
        ErrorKind::Corrupt | ErrorKind::Other => 500,
    }
}
