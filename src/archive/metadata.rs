//! The second root of `cairn export --metadata`: a UnixFS directory with
//! Parquet tables of the exported subtree, in the schema of checkpoints. The
//! top inode is the one whose parent is itself.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;

use super::{Archive, ArchiveError, ImportEntry, ImportNode, ImportPlan, io_error};
use crate::content::{
    DirectoryEntry, Profile, build_directory, import_file, leaves, read_directory,
};
use crate::metadata::checkpoint::{BaseWriter, Table, read_table};
use crate::metadata::{Change, InodeRecord};
use crate::types::{Block, Cid, FileKind, Ino, Name};

/// The tables that an archive carries.
const TABLES: [Table; 3] = [Table::Inodes, Table::Dentries, Table::Xattrs];

/// Writes rows into Parquet files and these into UnixFS; gives the directory's
/// CID and all blocks.
///
/// # Errors
/// `Io`, `Metadata`.
pub fn encode_metadata(rows: &[Change], spool: &Path) -> Result<(Cid, Vec<Block>), ArchiveError> {
    let dir = spool.join("tables");
    std::fs::create_dir_all(&dir)?;
    let mut writer = BaseWriter::create(&dir, 0)?;
    // Parents before children is the reader's business; tables keep this order.
    for row in rows {
        writer.push(row)?;
    }
    writer.finish()?;
    let mut blocks = Vec::new();
    let mut entries = Vec::new();
    let profile = Profile::UNIXFS_V1_2025;
    for table in TABLES {
        let name = format!("{}.parquet", table.name());
        let mut file = File::open(dir.join(&name))?;
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

/// The metadata rows of an archive.
pub(super) struct Tables {
    inodes: Vec<(Ino, InodeRecord)>,
    entries: HashMap<Ino, Vec<(Name, Ino)>>,
    xattrs: HashMap<Ino, Vec<(Vec<u8>, Vec<u8>)>>,
}

/// Reads the tables below a root; `None` when it is no such directory.
pub(super) fn find(archive: &Archive, root: &Cid) -> Result<Option<Tables>, ArchiveError> {
    let mut files = Vec::new();
    let listed = read_directory(root, &mut |id| archive.load_for_walk(id), &mut |entry| {
        files.push(entry);
        Ok(())
    });
    let wanted = |file: &&DirectoryEntry| {
        TABLES.iter().any(|t| file.name == format!("{}.parquet", t.name()))
    };
    if listed.is_err() || files.iter().filter(wanted).count() != TABLES.len() {
        return Ok(None);
    }
    let dir = tempfile::tempdir()?;
    for file in &files {
        let (node, _) = archive.node(&file.link.cid)?;
        let Some(content) = node.content else { continue };
        let mut out = File::create(dir.path().join(&file.name))?;
        leaves(
            &content.link,
            0..content.link.size,
            &mut |id| archive.load_for_walk(id),
            &mut |leaf| {
                let data = archive.load(&leaf.cid).map_err(|e| io_error(&e))?;
                out.write_all(&data).map_err(crate::content::ContentError::Io)
            },
        )?;
    }
    let mut tables = Tables { inodes: Vec::new(), entries: HashMap::new(), xattrs: HashMap::new() };
    for table in TABLES {
        for change in read_table(dir.path(), table)? {
            match change? {
                Change::Inode(ino, Some(row)) => tables.inodes.push((ino, row)),
                Change::Dentry(parent, name, Some(dentry)) => {
                    tables.entries.entry(parent).or_default().push((name, dentry.ino));
                }
                Change::Xattr(ino, name, Some(value)) => {
                    tables.xattrs.entry(ino).or_default().push((name, value))
                }
                _ => {}
            }
        }
    }
    Ok(Some(tables))
}

/// A plan from the tables; contents are checked against the archive's blocks.
pub(super) fn plan(
    archive: &Archive,
    root: &Cid,
    tables: &Tables,
) -> Result<ImportPlan, ArchiveError> {
    let unusable = |text: &str| ArchiveError::Unusable(format!("its metadata: {text}"));
    let rows: HashMap<Ino, &InodeRecord> =
        tables.inodes.iter().map(|(ino, row)| (*ino, row)).collect();
    let top = tables
        .inodes
        .iter()
        .find(|(ino, row)| row.parent == *ino)
        .ok_or_else(|| unusable("no inode is the top"))?;
    if top.1.kind == FileKind::File && top.1.content.is_some_and(|content| content != *root) {
        return Err(unusable("it describes another root"));
    }
    let mut plan = ImportPlan::default();
    let mut made: HashMap<Ino, usize> = HashMap::new();
    plan.nodes.push(node(archive, top.0, &top.1, tables)?);
    made.insert(top.0, 0);
    let mut stack = vec![top.0];
    while let Some(ino) = stack.pop() {
        let Some(entries) = tables.entries.get(&ino) else { continue };
        let parent = made[&ino];
        for (name, child) in entries {
            let index = match made.get(child) {
                Some(index) => *index,
                None => {
                    let row =
                        rows.get(child).ok_or_else(|| unusable("a name leads to no inode"))?;
                    plan.nodes.push(node(archive, *child, row, tables)?);
                    let index = plan.nodes.len() - 1;
                    made.insert(*child, index);
                    if row.kind == FileKind::Directory {
                        stack.push(*child);
                    }
                    index
                }
            };
            plan.entries.push(ImportEntry { parent, name: name.clone(), node: index });
        }
    }
    Ok(plan)
}

fn node(
    archive: &Archive,
    ino: Ino,
    row: &InodeRecord,
    tables: &Tables,
) -> Result<ImportNode, ArchiveError> {
    let content = match &row.content {
        Some(root) => {
            let (node, _) = archive.node(root)?;
            let content =
                node.content.filter(|content: &super::ImportContent| content.link.size == row.size);
            Some(content.ok_or_else(|| {
                ArchiveError::Unusable(format!(
                    "its metadata and content {root} disagree about a size"
                ))
            })?)
        }
        None => None,
    };
    Ok(ImportNode {
        kind: row.kind,
        mode: Some(row.mode),
        uid: Some(row.uid),
        gid: Some(row.gid),
        rdev: row.rdev,
        atime: Some(row.atime),
        mtime: Some(row.mtime),
        btime: Some(row.btime),
        target: row.target.clone(),
        xattrs: tables.xattrs.get(&ino).cloned().unwrap_or_default(),
        content,
    })
}
