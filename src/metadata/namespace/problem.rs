use crate::types::{Cid, Ino};

/// Something that does not add up in the metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A name leads to no inode.
    #[error("name {name} in directory {parent} leads to inode {ino}, which does not exist")]
    DanglingName {
        /// The directory.
        parent: Ino,
        /// The name, escaped.
        name: String,
        /// The inode.
        ino: Ino,
    },
    /// An inode has another number of names than its row says.
    #[error("inode {ino} has {found} links, its row says {said}")]
    LinkCount {
        /// The inode.
        ino: Ino,
        /// Names found (directories: 2 + subdirectories).
        found: u32,
        /// The row's.
        said: u32,
    },
    /// A directory has another number of entries than its row says.
    #[error("directory {ino} has {found} entries, its row says {said}")]
    EntryCount {
        /// The directory.
        ino: Ino,
        /// Entries found.
        found: u64,
        /// The row's.
        said: u64,
    },
    /// An inode has no name and is no orphan.
    #[error("inode {ino} has no name; its row says {said} links")]
    Nameless {
        /// The inode.
        ino: Ino,
        /// The row's.
        said: u32,
    },
    /// A name says another kind than its inode.
    #[error("name {name} in directory {parent} has the wrong kind for inode {ino}")]
    Kind {
        /// The directory.
        parent: Ino,
        /// The name, escaped.
        name: String,
        /// The inode.
        ino: Ino,
    },
    /// A row points to another parent than its name's.
    #[error("inode {ino} has a name in directory {found}, its row says {said}")]
    Parent {
        /// The inode.
        ino: Ino,
        /// Where its name is.
        found: Ino,
        /// The row's.
        said: Ino,
    },
    /// A directory has several names, or is its own ancestor.
    #[error("directory {ino} does not hang in the tree once: {reason}")]
    Directory {
        /// The directory.
        ino: Ino,
        /// What is wrong.
        reason: &'static str,
    },
    /// A derived row is missing, left over or wrong.
    #[error("index row {key} is {what}")]
    Index {
        /// Its key, escaped.
        key: String,
        /// Missing, left over or wrong.
        what: &'static str,
    },
    /// Inode numbers could be given out twice.
    #[error("the next inode number is {said}, but inode {highest} exists")]
    NextNumber {
        /// The highest in use.
        highest: Ino,
        /// The next to be reserved.
        said: u64,
    },
    /// A content has another number of files than its row says.
    #[error("content {root} is used by {found} files, its row says {said}")]
    ReferenceCount {
        /// The content.
        root: Cid,
        /// Files found.
        found: u64,
        /// The row's.
        said: u64,
    },
    /// A file refers to a content without a row.
    #[error("inode {ino} refers to content {root}, which has no row")]
    UnknownContent {
        /// The file.
        ino: Ino,
        /// The content.
        root: Cid,
    },
    /// What is used of a quota is not what its row says.
    #[error("the quota of directory {ino} has {found}, its row says {said}")]
    Quota {
        /// The directory.
        ino: Ino,
        /// Counted.
        found: String,
        /// The row's.
        said: String,
    },
    /// The counters are wrong.
    #[error("the volume's counters differ from its rows")]
    Counters,
    /// A row does not decode. It is left as it is.
    #[error("a row is damaged: {0}")]
    Damaged(String),
}

impl Problem {
    /// Whether [`super::Namespace::check`] can set it right from other rows.
    pub fn is_repairable(&self) -> bool {
        !matches!(self, Self::Directory { .. } | Self::UnknownContent { .. } | Self::Damaged(_))
    }
}
