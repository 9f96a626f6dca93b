use std::fmt;

use serde::{Deserialize, Serialize};

/// One component of a path: 1 to 255 bytes without `/` or NUL, not `.` or `..`.
/// Any other byte is allowed; a name need not be UTF-8.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Name(Vec<u8>);

/// Why bytes are not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Over 255 bytes (ENAMETOOLONG).
    #[error("a name has at most 255 bytes")]
    TooLong,
    /// Empty, `.`, `..`, or with `/` or NUL in it (EINVAL).
    #[error("a name is not empty, `.` or `..`, and has no `/` and no NUL")]
    Malformed,
}

impl Name {
    /// The longest name, in bytes (Linux `NAME_MAX`).
    pub const MAX_LEN: usize = 255;

    /// Checks and takes `bytes`.
    ///
    /// # Errors
    /// [`InvalidName`] says which rule is broken.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, InvalidName> {
        let bytes = bytes.into();
        if bytes.len() > Self::MAX_LEN {
            return Err(InvalidName::TooLong);
        }
        let special = bytes.is_empty() || bytes == b"." || bytes == b"..";
        if special || bytes.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(InvalidName::Malformed);
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, taken out.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = InvalidName;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
