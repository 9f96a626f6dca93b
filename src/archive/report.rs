//! What reading an archive to its end has found.

use std::fmt;

use super::ArchiveError;
use crate::types::Cid;

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The block.
    pub cid: Cid,
    /// Of its section; of a missing block: of the section that links to it
    /// (`None`: a root).
    pub offset: Option<u64>,
    /// What is wrong, or who links to it; empty where the list says all.
    pub note: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.cid)?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        if !self.note.is_empty() {
            write!(f, " {}", self.note)?;
        }
        Ok(())
    }
}

/// Things found, of which the first 1,000 are listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// All of them.
    pub count: u64,
    /// The first.
    pub listed: Vec<Finding>,
}

impl Findings {
    /// A damaged archive of any size has a report of this size.
    const LISTED: usize = 1000;

    pub(super) fn push(&mut self, cid: Cid, offset: Option<u64>, note: impl Into<String>) {
        self.count += 1;
        if self.listed.len() < Self::LISTED {
            self.listed.push(Finding { cid, offset, note: note.into() });
        }
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The index of a `CARv2`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum IndexState {
    /// There is none, or it was not looked at because the data is damaged.
    #[default]
    Absent,
    /// It leads to every block.
    Good,
    /// What is wrong with it.
    Bad(String),
}

/// What an archive consists of, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Report {
    /// Sections, all of them.
    pub sections: u64,
    /// Different blocks that are intact.
    pub blocks: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Blocks that do not match their hash, or do not decode.
    pub damaged: Findings,
    /// Blocks that a root leads to and that are not there, nor damaged.
    pub missing: Findings,
    /// Blocks that no root leads to. Harmless.
    pub extra: Findings,
    /// Sections with a block that came before. Harmless.
    pub duplicates: Findings,
    /// The index.
    pub index: IndexState,
    /// Bytes after the data of a `CARv2` without an index. Harmless.
    pub trailing_bytes: u64,
    /// Why reading ended before the end.
    pub fault: Option<Box<ArchiveError>>,
}

impl Report {
    /// Whether every block that the roots lead to is there and intact, and the
    /// archive is well formed to its end.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty()
            && self.missing.is_empty()
            && self.fault.is_none()
            && !matches!(self.index, IndexState::Bad(_))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Findings of a kind that one message spells out.
        const SHOWN: usize = 8;
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.fault.iter().map(ToString::to_string));
        for (what, found) in [("damaged", &self.damaged), ("missing", &self.missing)] {
            let shown = found.listed.iter().take(SHOWN);
            parts.extend(shown.map(|one| match what {
                "missing" => format!("missing: {one}"),
                _ => one.to_string(),
            }));
            if found.count > SHOWN as u64 {
                parts.push(format!("{} blocks are {what} in all", found.count));
            }
        }
        if let IndexState::Bad(reason) = &self.index {
            parts.push(format!("the index is wrong: {reason}"));
        }
        if parts.is_empty() {
            return write!(f, "{} blocks, all intact", self.blocks);
        }
        f.write_str(&parts.join("; "))
    }
}
