use serde::{Deserialize, Serialize};

/// A file or directory, or a content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The bytes of its path from the volume's root.
    Path(Vec<u8>),
    /// Its CID, or (of a list's prefix) the beginning of one.
    Cid(String),
}

/// What is asked about pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum PinCommand {
    /// A page of them.
    List {
        /// Of a pin or of a copy.
        state: Option<String>,
        /// With a copy there.
        backend: Option<String>,
        /// Files below a path, or the beginning of CIDs.
        prefix: Option<What>,
        /// Bytes at least.
        min_size: Option<u64>,
        /// And at most.
        max_size: Option<u64>,
        /// At most so many.
        limit: u16,
        /// The cursor of the page before.
        after: Option<String>,
    },
    /// Totals; or all about these.
    Status {
        /// Which.
        of: Vec<What>,
    },
    /// Reads copies back.
    Verify {
        /// Of which.
        of: Vec<What>,
        /// Only there.
        backend: Option<String>,
        /// By a ranged audit: presence of all, some of the bytes.
        #[serde(default)]
        audit: bool,
        /// Not those that were found good in the last so many seconds.
        #[serde(default)]
        older_s: Option<u64>,
        /// Answers when all were read.
        wait: bool,
    },
    /// Makes what is missing, at once.
    Replicate {
        /// Of which.
        of: Vec<What>,
        /// Answers when the target holds, or nothing more can be done.
        wait: bool,
    },
    /// Ends the wish for copies elsewhere.
    Unpin {
        /// Of which.
        of: Vec<What>,
        /// A CID stands for all files that have it; without this it is refused.
        #[serde(default)]
        files: bool,
        /// Only says what would become of them.
        dry_run: bool,
    },
}

/// What is asked of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum QueueCommand {
    /// A page of it, riskiest first.
    List {
        /// At most so many.
        limit: u16,
        /// The cursor of the page before.
        after: Option<String>,
    },
    /// Holds it, or the work of one backend.
    Pause {
        /// Its id.
        backend: Option<String>,
    },
    /// Lets it go on.
    Resume {
        /// Its id.
        backend: Option<String>,
    },
    /// Ends pauses of these, or of all.
    Retry {
        /// Which.
        of: Vec<What>,
    },
    /// Leaves these alone for a day.
    Cancel {
        /// Which.
        of: Vec<What>,
    },
}
