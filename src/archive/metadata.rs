//! The second root of `cairn export --metadata`: a `UnixFS` directory with
//! Parquet tables of the exported subtree, in the schema of checkpoints. The
//! top inode is the one whose parent is itself.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Archive, ArchiveError, ImportNode};
use crate::content::{
    ContentError, DirectoryEntry, Node, Profile, build_directory, import_file, leaves,
    measure_file, parse_node, read_directory,
};
use crate::metadata::checkpoint::{BaseWriter, Table, read_table};
use crate::metadata::{Change, InodeRecord};
use crate::types::{Block, Cid, FileKind, Ino, Name};

/// The tables that an archive carries.
const TABLES: [Table; 3] = [Table::Inodes, Table::Dentries, Table::Xattrs];
/// Virtual attributes: computed, never stored.
const VIRTUAL: &[u8] = b"user.cairn.";

fn file_name(table: Table) -> String {
    format!("{}.parquet", table.name())
}

/// Writes rows into Parquet files and these into `UnixFS`; gives the directory's
/// CID and all blocks. The row of the exported inode has itself as its parent.
///
/// # Errors
/// `Io`, `Metadata`.
pub fn encode_metadata(rows: &[Change], spool: &Path) -> Result<(Cid, Vec<Block>), ArchiveError> {
    let dir = TableFiles::create(spool, "tables-out")?;
    let mut writer = BaseWriter::create(&dir.0, 0)?;
    for row in rows {
        writer.push(row)?;
    }
    writer.finish()?;
    let mut blocks = Vec::new();
    let mut entries = Vec::new();
    let profile = Profile::UNIXFS_V1_2025;
    for table in TABLES {
        let name = file_name(table);
        let mut file = File::open(dir.0.join(&name))?;
        let link = import_file(&profile, &mut file, &mut |cid, data| {
            blocks.push(Block { cid, data });
            Ok(())
        })?;
        entries.push(DirectoryEntry { name, link });
    }
    let root = build_directory(&profile, entries, &mut |cid, data: Bytes| {
        blocks.push(Block { cid, data });
        Ok(())
    })?;
    Ok((root.cid, blocks))
}

/// A directory of table files, removed in the end.
struct TableFiles(PathBuf);

impl TableFiles {
    fn create(parent: &Path, name: &str) -> std::io::Result<Self> {
        let dir = parent.join(name);
        std::fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for TableFiles {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "temporary tables stay behind");
        }
    }
}

type Names = HashMap<Ino, Vec<(Name, Ino)>>;
type Attributes = HashMap<Ino, Vec<(Vec<u8>, Vec<u8>)>>;

/// The metadata rows of an archive.
pub(super) struct Tables {
    top: Ino,
    inodes: HashMap<Ino, InodeRecord>,
    entries: Names,
    xattrs: Attributes,
}

/// Reads the tables below a root; `None` when it is no such directory.
pub(super) fn find(archive: &Archive, root: &Cid) -> Result<Option<Tables>, ArchiveError> {
    if !matches!(parse_node(root, &archive.load(root)?)?, Node::Directory { .. }) {
        return Ok(None);
    }
    let mut files = Vec::new();
    read_directory(root, &mut |id| archive.load_node(id), &mut |entry| {
        files.push(entry);
        Ok(())
    })?;
    let mut names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    names.sort_unstable();
    let mut wanted = TABLES.map(file_name);
    wanted.sort_unstable();
    if names != wanted {
        return Ok(None);
    }
    let dir = TableFiles::create(archive.spool_dir(), "tables-in")?;
    for file in &files {
        copy_out(archive, &file.link.cid, &dir.0.join(&file.name))?;
    }
    read_tables(&dir.0).map(Some)
}

fn copy_out(archive: &Archive, root: &Cid, path: &Path) -> Result<(), ArchiveError> {
    let load = &mut |id: &Cid| archive.load_node(id);
    let link = measure_file(root, load, &mut |id| archive.block_len(id))?.link;
    let mut out = File::create_new(path)?;
    leaves(&link, 0..link.size, load, &mut |leaf| match parse_node(
        &leaf.cid,
        &archive.load_node(&leaf.cid)?,
    )? {
        Node::Raw(data) | Node::File { data, .. } => out.write_all(&data).map_err(ContentError::Io),
        _ => Err(ContentError::Missing(leaf.cid)),
    })?;
    Ok(())
}

fn unusable(text: &str) -> ArchiveError {
    ArchiveError::Unusable(format!("its metadata: {text}"))
}

fn read_tables(dir: &Path) -> Result<Tables, ArchiveError> {
    let (mut top, mut inodes) = (None, HashMap::new());
    let (mut entries, mut xattrs) = (Names::new(), Attributes::new());
    for table in TABLES {
        for change in read_table(dir, table)? {
            match change? {
                Change::Inode(ino, Some(row)) => {
                    let times = [row.atime, row.mtime, row.ctime, row.btime];
                    if times.iter().any(|time| time.nanoseconds >= 1_000_000_000) {
                        return Err(unusable("a time has more nanoseconds than a second"));
                    }
                    if row.parent == ino && top.replace(ino).is_some() {
                        return Err(unusable("two inodes are the top"));
                    }
                    if inodes.insert(ino, row).is_some() {
                        return Err(unusable("an inode occurs twice"));
                    }
                }
                Change::Dentry(parent, name, Some(dentry)) => {
                    entries.entry(parent).or_default().push((name, dentry.ino));
                }
                Change::Xattr(ino, name, Some(value)) if !name.starts_with(VIRTUAL) => {
                    xattrs.entry(ino).or_default().push((name, value));
                }
                _ => {}
            }
        }
    }
    let top = top.ok_or_else(|| unusable("no inode is the top"))?;
    Ok(Tables { top, inodes, entries, xattrs })
}

impl Tables {
    /// The exported inode.
    pub fn top(&self) -> Ino {
        self.top
    }

    /// The names in a directory.
    pub fn entries(&self, directory: Ino) -> HashMap<Name, Ino> {
        self.entries.get(&directory).into_iter().flatten().cloned().collect()
    }

    /// Gives a node the attributes of a row; false when the row is about a node
    /// of another kind.
    pub fn describe(&self, ino: Ino, node: &mut ImportNode) -> bool {
        let Some(row) = self.inodes.get(&ino).filter(|row| row.kind == node.kind) else {
            return false;
        };
        node.mode = Some(row.mode & 0o7777);
        node.uid = Some(row.uid);
        node.gid = Some(row.gid);
        node.atime = Some(row.atime);
        node.mtime = Some(row.mtime);
        node.ctime = Some(row.ctime);
        node.btime = Some(row.btime);
        node.xattrs = self.xattrs.get(&ino).cloned().unwrap_or_default();
        true
    }

    /// A node that `UnixFS` cannot express: a FIFO, socket or device.
    pub fn special(&self, ino: Ino) -> Option<ImportNode> {
        let row = self.inodes.get(&ino)?;
        let known = matches!(
            row.kind,
            FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice
        );
        let mut node = ImportNode { rdev: row.rdev, ..ImportNode::of(row.kind) };
        (known && self.describe(ino, &mut node)).then_some(node)
    }
}
