//! Tables as lists of typed columns, and rows to and from records.
//!
//! Times are two columns, `_s` (seconds since 1970, may be negative) and `_ns`
//! (0 to 999,999,999): Parquet's nanosecond timestamp ends in the year 2262.

use super::super::{
    Change, ContentRecord, CopyRecord, CopyState, DentryRecord, EventRecord, InodeRecord,
    MetadataError, PinState, Severity, VerifyMethod,
};
use crate::types::{Cid, FileKind, Ino, Name, Timestamp};

/// A table of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Files, directories and the rest.
    Inodes,
    /// Names.
    Dentries,
    /// Extended attributes.
    Xattrs,
    /// Contents.
    Contents,
    /// Where contents lie.
    Copies,
    /// What happened.
    Events,
}

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U64,
    U32,
    I64,
    Text,
    Bytes,
    Bool,
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    U64(u64),
    U32(u32),
    I64(i64),
    Text(String),
    Bytes(Vec<u8>),
    Bool(bool),
    Null,
}

pub(super) type Row = Vec<Cell>;

use Kind::{Bool, Bytes, I64, Text, U32, U64};

const INODES: &[(&str, Kind)] = &[
    ("ino", U64),
    ("kind", Text),
    ("mode", U32),
    ("uid", U32),
    ("gid", U32),
    ("rdev", U32),
    ("nlink", U32),
    ("size", U64),
    ("atime_s", I64),
    ("atime_ns", U32),
    ("mtime_s", I64),
    ("mtime_ns", U32),
    ("ctime_s", I64),
    ("ctime_ns", U32),
    ("btime_s", I64),
    ("btime_ns", U32),
    ("content", Text),
    ("profile", Text),
    ("target", Bytes),
    ("parent", U64),
    ("has_xattrs", Bool),
    ("policy", Text),
    ("entries", U64),
    ("next_cookie", U64),
    ("version", U64),
    ("holes", U64),
];
const DENTRIES: &[(&str, Kind)] = &[
    ("parent", U64),
    ("name", Bytes),
    ("name_text", Text),
    ("ino", U64),
    ("kind", Text),
    ("cookie", U64),
];
const XATTRS: &[(&str, Kind)] =
    &[("ino", U64), ("name", Bytes), ("name_text", Text), ("value", Bytes)];
const CONTENTS: &[(&str, Kind)] = &[
    ("cid", Text),
    ("size", U64),
    ("tsize", U64),
    ("blocks", U64),
    ("refs", U64),
    ("profile", Text),
    ("min", U32),
    ("target", U32),
    ("max", U32),
    ("pin", Text),
    ("holes", U64),
    ("created_s", I64),
    ("accessed_s", I64),
];
const COPIES: &[(&str, Kind)] = &[
    ("cid", Text),
    ("backend", Text),
    ("state", Text),
    ("at_s", I64),
    ("at_ns", U32),
    ("method", Text),
];
const EVENTS: &[(&str, Kind)] = &[
    ("number", U64),
    ("at_s", I64),
    ("at_ns", U32),
    ("kind", Text),
    ("subject", Text),
    ("detail", Text),
    ("severity", Text),
    ("backend", Text),
    ("count", U64),
];

impl Table {
    /// All tables, in the order in which they are written.
    pub const ALL: [Self; 6] =
        [Self::Inodes, Self::Dentries, Self::Xattrs, Self::Contents, Self::Copies, Self::Events];

    /// The table's name; its file in a base is `<name>.parquet`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inodes => "inodes",
            Self::Dentries => "dentries",
            Self::Xattrs => "xattrs",
            Self::Contents => "contents",
            Self::Copies => "copies",
            Self::Events => "events",
        }
    }

    /// The reverse of [`Table::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    /// Columns that not every version wrote; empty where they are missing.
    pub(super) fn was_added(self, column: &str) -> bool {
        matches!(
            (self, column),
            (Self::Inodes | Self::Contents, "holes")
                | (Self::Contents, "created_s" | "accessed_s")
                | (Self::Events, "severity" | "backend" | "count")
        )
    }

    pub(super) fn columns(self) -> &'static [(&'static str, Kind)] {
        match self {
            Self::Inodes => INODES,
            Self::Dentries => DENTRIES,
            Self::Xattrs => XATTRS,
            Self::Contents => CONTENTS,
            Self::Copies => COPIES,
            Self::Events => EVENTS,
        }
    }
}

fn time(row: &mut Row, at: Timestamp) {
    row.push(Cell::I64(at.seconds));
    row.push(Cell::U32(at.nanoseconds));
}

fn text(value: impl Into<String>) -> Cell {
    Cell::Text(value.into())
}

fn escaped(bytes: &[u8]) -> Cell {
    Cell::Text(
        String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| bytes.escape_ascii().to_string()),
    )
}

/// Serialises a word of a unit-only enum as its `snake_case` name.
fn word<T: serde::Serialize>(value: &T) -> Cell {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => Cell::Text(name),
        _ => Cell::Null,
    }
}

/// The rows of a change: its own, and a content's copies. True means put.
pub(super) fn rows_of(change: &Change) -> (Table, bool, Row, Vec<Row>) {
    match change {
        Change::Inode(ino, None) => (Table::Inodes, false, vec![Cell::U64(ino.0)], vec![]),
        Change::Inode(ino, Some(inode)) => (Table::Inodes, true, inode_row(*ino, inode), vec![]),
        Change::Dentry(parent, name, dentry) => {
            let bytes = name.as_bytes();
            let mut row = vec![Cell::U64(parent.0), Cell::Bytes(bytes.to_vec()), escaped(bytes)];
            if let Some(dentry) = dentry {
                row.extend([
                    Cell::U64(dentry.ino.0),
                    text(dentry.kind.as_str()),
                    Cell::U64(dentry.cookie),
                ]);
            }
            (Table::Dentries, dentry.is_some(), row, vec![])
        }
        Change::Xattr(ino, name, value) => {
            let mut row = vec![Cell::U64(ino.0), Cell::Bytes(name.clone()), escaped(name)];
            row.extend(value.clone().map(Cell::Bytes));
            (Table::Xattrs, value.is_some(), row, vec![])
        }
        Change::Content(root, None) => {
            (Table::Contents, false, vec![text(root.to_string())], vec![])
        }
        Change::Content(root, Some(record)) => {
            let copies = record.copies.iter().map(|copy| {
                let mut row =
                    vec![text(root.to_string()), text(copy.backend.as_str()), word(&copy.state)];
                time(&mut row, copy.at);
                row.push(word(&copy.method));
                row
            });
            (Table::Contents, true, content_row(root, record), copies.collect())
        }
        Change::Event(number, event) => {
            let mut row = vec![Cell::U64(*number)];
            time(&mut row, event.at);
            row.extend([text(&event.kind), text(&event.subject), text(&event.detail)]);
            row.extend([word(&event.severity), text(&event.backend), Cell::U64(event.count)]);
            (Table::Events, true, row, vec![])
        }
    }
}

fn inode_row(ino: Ino, inode: &InodeRecord) -> Row {
    let mut row = vec![Cell::U64(ino.0), text(inode.kind.as_str())];
    row.extend([inode.mode, inode.uid, inode.gid, inode.rdev, inode.nlink].map(Cell::U32));
    row.push(Cell::U64(inode.size));
    for at in [inode.atime, inode.mtime, inode.ctime, inode.btime] {
        time(&mut row, at);
    }
    row.push(inode.content.map_or(Cell::Null, |root| text(root.to_string())));
    row.extend([
        text(&inode.profile),
        Cell::Bytes(inode.target.clone()),
        Cell::U64(inode.parent.0),
    ]);
    row.extend([Cell::Bool(inode.has_xattrs), text(&inode.policy)]);
    row.extend([inode.entries, inode.next_cookie, inode.version, inode.holes].map(Cell::U64));
    row
}

fn content_row(root: &Cid, record: &ContentRecord) -> Row {
    let mut row = vec![text(root.to_string())];
    row.extend([record.size, record.tsize, record.blocks, record.refs].map(Cell::U64));
    row.push(text(&record.profile));
    row.extend([record.min, record.target, record.max].map(|n| Cell::U32(n.into())));
    row.push(word(&record.pin));
    row.push(Cell::U64(record.holes));
    row.extend([record.created_s, record.accessed_s].map(Cell::I64));
    row
}

/// Takes the cells of a row one after the other.
struct Cells {
    table: Table,
    row: std::vec::IntoIter<Cell>,
}

impl Cells {
    fn bad(&self) -> MetadataError {
        MetadataError::Checkpoint(format!(
            "table {} has a row that does not decode",
            self.table.name()
        ))
    }
    fn u64(&mut self) -> Result<u64, MetadataError> {
        match self.row.next() {
            Some(Cell::U64(value)) => Ok(value),
            _ => Err(self.bad()),
        }
    }
    /// A column that was added later: empty in what is older.
    fn u64_or_0(&mut self) -> Result<u64, MetadataError> {
        match self.row.next() {
            Some(Cell::U64(value)) => Ok(value),
            Some(Cell::Null) => Ok(0),
            _ => Err(self.bad()),
        }
    }
    fn i64_or_0(&mut self) -> Result<i64, MetadataError> {
        match self.row.next() {
            Some(Cell::I64(value)) => Ok(value),
            Some(Cell::Null) => Ok(0),
            _ => Err(self.bad()),
        }
    }
    fn u32(&mut self) -> Result<u32, MetadataError> {
        match self.row.next() {
            Some(Cell::U32(value)) => Ok(value),
            _ => Err(self.bad()),
        }
    }
    fn u8(&mut self) -> Result<u8, MetadataError> {
        self.u32()?.try_into().map_err(|_| self.bad())
    }
    fn text(&mut self) -> Result<String, MetadataError> {
        match self.row.next() {
            Some(Cell::Text(value)) => Ok(value),
            _ => Err(self.bad()),
        }
    }
    fn bytes(&mut self) -> Result<Vec<u8>, MetadataError> {
        match self.row.next() {
            Some(Cell::Bytes(value)) => Ok(value),
            _ => Err(self.bad()),
        }
    }
    fn time(&mut self) -> Result<Timestamp, MetadataError> {
        match (self.row.next(), self.row.next()) {
            (Some(Cell::I64(seconds)), Some(Cell::U32(nanoseconds))) => {
                Ok(Timestamp { seconds, nanoseconds })
            }
            _ => Err(self.bad()),
        }
    }
    fn cid(&mut self) -> Result<Cid, MetadataError> {
        self.text()?.parse().map_err(|_| self.bad())
    }
    fn kind(&mut self) -> Result<FileKind, MetadataError> {
        let name = self.text()?;
        FileKind::from_name(&name).ok_or_else(|| self.bad())
    }
    fn word<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, MetadataError> {
        let name = self.text()?;
        serde_json::from_value(serde_json::Value::String(name)).map_err(|_| self.bad())
    }
}

/// A row of table `copies`: the content and one copy.
pub(super) fn copy_of(row: Row) -> Result<(Cid, CopyRecord), MetadataError> {
    let mut cells = Cells { table: Table::Copies, row: row.into_iter() };
    let root = cells.cid()?;
    let backend = cells.text()?.parse().map_err(|_| cells.bad())?;
    let state: CopyState = cells.word()?;
    let at = cells.time()?;
    let method: VerifyMethod = cells.word()?;
    Ok((root, CopyRecord { backend, state, at, method }))
}

/// A row of any other table. A content comes without its copies.
pub(super) fn change_of(table: Table, put: bool, row: Row) -> Result<Change, MetadataError> {
    let mut cells = Cells { table, row: row.into_iter() };
    Ok(match table {
        Table::Inodes => {
            let ino = Ino(cells.u64()?);
            Change::Inode(ino, if put { Some(inode_of(&mut cells)?) } else { None })
        }
        Table::Dentries => {
            let parent = Ino(cells.u64()?);
            let name = Name::new(cells.bytes()?).map_err(|_| cells.bad())?;
            cells.row.next();
            let dentry = if put {
                Some(DentryRecord {
                    ino: Ino(cells.u64()?),
                    kind: cells.kind()?,
                    cookie: cells.u64()?,
                })
            } else {
                None
            };
            Change::Dentry(parent, name, dentry)
        }
        Table::Xattrs => {
            let ino = Ino(cells.u64()?);
            let name = cells.bytes()?;
            cells.row.next();
            Change::Xattr(ino, name, if put { Some(cells.bytes()?) } else { None })
        }
        Table::Contents => {
            let root = cells.cid()?;
            Change::Content(root, if put { Some(content_of(&mut cells)?) } else { None })
        }
        Table::Events => {
            let number = cells.u64()?;
            let event = EventRecord {
                at: cells.time()?,
                kind: cells.text()?,
                subject: cells.text()?,
                detail: cells.text()?,
                // Columns that were added later; a word of a newer version is worth a look.
                severity: match cells.row.next() {
                    Some(Cell::Text(name)) => {
                        Severity::from_name(&name).unwrap_or(Severity::Notice)
                    }
                    _ => Severity::Info,
                },
                backend: match cells.row.next() {
                    Some(Cell::Text(backend)) => backend,
                    _ => String::new(),
                },
                count: match cells.row.next() {
                    Some(Cell::U64(count)) => count,
                    _ => 1,
                },
            };
            Change::Event(number, event)
        }
        Table::Copies => return Err(cells.bad()),
    })
}

fn inode_of(cells: &mut Cells) -> Result<InodeRecord, MetadataError> {
    Ok(InodeRecord {
        kind: cells.kind()?,
        mode: cells.u32()?,
        uid: cells.u32()?,
        gid: cells.u32()?,
        rdev: cells.u32()?,
        nlink: cells.u32()?,
        size: cells.u64()?,
        atime: cells.time()?,
        mtime: cells.time()?,
        ctime: cells.time()?,
        btime: cells.time()?,
        content: match cells.row.next() {
            Some(Cell::Null) => None,
            Some(Cell::Text(root)) => Some(root.parse().map_err(|_| cells.bad())?),
            _ => return Err(cells.bad()),
        },
        profile: cells.text()?,
        target: cells.bytes()?,
        parent: Ino(cells.u64()?),
        has_xattrs: match cells.row.next() {
            Some(Cell::Bool(value)) => value,
            _ => return Err(cells.bad()),
        },
        policy: cells.text()?,
        entries: cells.u64()?,
        next_cookie: cells.u64()?,
        version: cells.u64()?,
        holes: cells.u64_or_0()?,
    })
}

fn content_of(cells: &mut Cells) -> Result<ContentRecord, MetadataError> {
    Ok(ContentRecord {
        size: cells.u64()?,
        tsize: cells.u64()?,
        blocks: cells.u64()?,
        refs: cells.u64()?,
        profile: cells.text()?,
        min: cells.u8()?,
        target: cells.u8()?,
        max: cells.u8()?,
        pin: cells.word::<PinState>()?,
        copies: Vec::new(),
        holes: cells.u64_or_0()?,
        // Numbers have a meaning in one engine only: found again from the tree.
        policies: Vec::new(),
        created_s: cells.i64_or_0()?,
        accessed_s: cells.i64_or_0()?,
    })
}
