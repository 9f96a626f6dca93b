//! Export and import of CAR archives.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};

use serde_json::{Value, json};

use super::handler::{names, of_vfs, resolve};
use super::spool::Spool;
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::archive::{self, ArchiveError, ImportNode, ImportPlan};
use crate::metadata::{Change, NewNode, SetAttributes};
use crate::replication::Wanted;
use crate::runtime::failpoint;
use crate::store::PackTicket;
use crate::types::{Block, Cid, FileKind, Ino, Name};
use crate::vfs::{GraftContent, HIDDEN, Making};

/// Blocks appended to the store at a time while importing, in bytes.
const IMPORT_BATCH: usize = 8 << 20;

/// A file that the asking process has open. The daemon belongs to the same
/// user (the socket is for its owner only), so /proc lets it in.
pub(super) fn client_file(pid: i32, fd: i32, write: bool) -> Result<File, Failure> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let opened = if write { File::options().write(true).open(&path) } else { File::open(&path) };
    opened.map_err(|e| failed(format!("the file of the asking process cannot be opened: {e}")))
}

fn of_archive(error: ArchiveError) -> Failure {
    let code = if error.is_damage() { ErrorCode::Damaged } else { ErrorCode::Failed };
    Failure::new(code, error.to_string())
}

/// Writes a tree into a CAR.
pub(super) fn export(
    volume: &Volume,
    path: &[u8],
    out: File,
    version: u8,
    metadata: bool,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    // The tree as it is now stays readable, whatever is removed meanwhile.
    let _hold = volume.store.hold();
    volume.vfs.forget_directory_cids();
    let link = volume.vfs.link_of(ino).map_err(|e| of_vfs(e, &what))?;
    let mut roots = vec![link.cid];
    if metadata {
        let rows = subtree_rows(volume, ino)?;
        let spool = Spool::new(&volume.dir).map_err(failed)?;
        let (root, blocks) = archive::encode_metadata(&rows, spool.path()).map_err(of_archive)?;
        volume.store.append(&blocks).map_err(failed)?;
        roots.push(root);
    }
    let mut out = BufWriter::with_capacity(1 << 20, out);
    let replicator = &volume.replicator;
    let mut soon = |id: &Cid, len: Option<u64>| {
        // What fails here fails where it is needed.
        if !replicator.is_here(id).unwrap_or(true) {
            let wanted = Wanted::new(*id);
            let bytes = len.unwrap_or(wanted.bytes);
            replicator.ahead(&Wanted { bytes, ..wanted }, true);
        }
    };
    let report = archive::export_telling(
        &mut out,
        version,
        &roots,
        (&mut |id| replicator.fetch(id).map_err(|e| archive::io_error(&e)), &mut soon),
        &mut |done, total| {
            progress(ProgressReport { what: "blocks".into(), done, total: Some(total) });
        },
    )
    .map_err(of_archive)?;
    out.flush().map_err(failed)?;
    // A pipe cannot be synced; a file is.
    if let Ok(file) = out.into_inner() {
        match file.sync_all() {
            Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                return Err(failed(e));
            }
            _ => {}
        }
    }
    Ok(json!({
        "path": what, "cid": link.cid.to_string(), "roots": roots.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "blocks": report.blocks, "bytes": report.bytes, "car_version": version,
    }))
}

/// The metadata rows of a subtree; its top is the inode that is exported.
fn subtree_rows(volume: &Volume, top: Ino) -> Result<Vec<Change>, Failure> {
    let mut rows = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut stack = vec![top];
    while let Some(ino) = stack.pop() {
        if !seen.insert(ino) {
            continue;
        }
        let inode = volume.namespace.inode(ino).map_err(failed)?;
        if inode.has_xattrs {
            for name in volume.namespace.list_xattrs(ino).map_err(failed)? {
                let value = volume.namespace.get_xattr(ino, &name).map_err(failed)?;
                rows.push(Change::Xattr(ino, name, Some(value)));
            }
        }
        if inode.kind == FileKind::Directory {
            let mut after = 0;
            loop {
                let page = volume.namespace.read_directory(ino, after, 1024).map_err(failed)?;
                after = page.entries.last().map_or(after, |(_, dentry)| dentry.cookie);
                for (name, dentry) in page.entries {
                    stack.push(dentry.ino);
                    rows.push(Change::Dentry(ino, name, Some(dentry)));
                }
                if page.last {
                    break;
                }
            }
        }
        let mut inode = inode;
        if ino == top {
            // Marks the top of the exported tree.
            inode.parent = ino;
        }
        rows.push(Change::Inode(ino, Some(inode)));
    }
    Ok(rows)
}

/// Reads a CAR into a new place in the tree; nothing is seen of it before it
/// is whole.
pub(super) fn import(
    volume: &Volume,
    path: &[u8],
    input: File,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    let (mut names, what) = names(path)?;
    let name = names.pop().ok_or_else(|| {
        Failure::new(ErrorCode::Usage, "an import needs a new name, not the root")
    })?;
    let parent = volume.vfs.resolve(&names).map_err(|e| of_vfs(e, &what))?;
    if volume.vfs.lookup(parent, &name).is_ok() {
        let text = format!("{what} exists already: an import makes a new file or directory");
        return Err(Failure::new(ErrorCode::Usage, text));
    }
    let spool = Spool::new(&volume.dir).map_err(failed)?;
    let mut reader = BufReader::with_capacity(1 << 20, input);
    let mut read = archive::Archive::read(&mut reader, spool.path(), &mut |done| {
        progress(ProgressReport { what: "blocks checked".into(), done, total: None });
    })
    .map_err(of_archive)?;
    let plan = read.plan().map_err(of_archive)?;
    // No row refers to its blocks until all of it is grafted.
    let _hold = volume.store.hold();
    store_blocks(volume, &mut read, progress)?;
    let hidden = format!("{HIDDEN}{}", uuid::Uuid::new_v4());
    spool.record(parent, &hidden).map_err(failed)?;
    failpoint::reach("daemon.import.recorded");
    let hidden = Name::new(hidden).map_err(failed)?;
    let making = volume.vfs.begin_making(parent);
    let made = graft(volume, (parent, &hidden), &making, &plan, progress);
    let finished = made.and_then(|files| {
        failpoint::reach("daemon.import.grafted");
        let rename = volume.vfs.rename(
            (parent, &hidden),
            (parent, &name),
            crate::metadata::RenameMode::NoReplace,
        );
        rename.map_err(|e| of_vfs(e, &what))?;
        drop(making);
        failpoint::reach("daemon.import.named");
        // Who is told that it is there finds it after a loss of power.
        volume.namespace.engine().persist().map_err(failed)?;
        Ok(files)
    });
    let files = match finished {
        Ok(files) => files,
        Err(error) => {
            if let Err(left) = volume.remove_import(parent, &hidden) {
                tracing::error!(%left, "a part of an import cannot be removed now");
                spool.leave();
            }
            return Err(error);
        }
    };
    let root = read.roots().first().map(ToString::to_string);
    Ok(json!({ "path": what, "cid": root, "nodes": files, "blocks": read.blocks() }))
}

fn store_blocks(
    volume: &Volume,
    read: &mut archive::Archive,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<(), Failure> {
    let (mut batch, mut bytes, mut done) = (Vec::new(), 0, 0);
    let mut last = PackTicket::default();
    let total = read.blocks();
    for id in read.cids() {
        let data = read.load(&id).map_err(of_archive)?;
        bytes += data.len();
        batch.push(Block { cid: id, data });
        if bytes >= IMPORT_BATCH {
            last = volume.store.append(&batch).map_err(failed)?;
            done += batch.len() as u64;
            progress(ProgressReport { what: "blocks stored".into(), done, total: Some(total) });
            batch.clear();
            bytes = 0;
        }
    }
    last = last.max(volume.store.append(&batch).map_err(failed)?);
    volume.store.sync(last).map_err(failed)
}

fn graft(
    volume: &Volume,
    (parent, hidden): (Ino, &Name),
    making: &Making,
    plan: &ImportPlan,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<u64, Failure> {
    let fs_error = |e| of_vfs(e, "import");
    let mut made: Vec<Option<Ino>> = vec![None; plan.nodes.len()];
    let unmade = || Failure::new(ErrorCode::Failed, "a plan names a parent before it is made");
    let now = volume.clock.now();
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let place = |made: &mut Vec<Option<Ino>>, at: Ino, name: &Name, index: usize| {
        if let Some(ino) = made[index] {
            volume.vfs.link(ino, at, name).map_err(fs_error)?;
            return Ok::<(), Failure>(());
        }
        let node: &ImportNode = &plan.nodes[index];
        let directory = node.kind == FileKind::Directory;
        let new = NewNode {
            kind: node.kind,
            mode: node.mode.unwrap_or(if directory { 0o755 } else { 0o644 }),
            umask: None,
            uid: node.uid.unwrap_or(owner.0),
            gid: node.gid.unwrap_or(owner.1),
            rdev: node.rdev,
            target: node.target.clone(),
            now,
        };
        let times = SetAttributes {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            atime: node.atime,
            mtime: node.mtime,
            btime: node.btime,
            ..SetAttributes::default()
        };
        let content = node.content.as_ref().map(|content| GraftContent {
            link: content.link,
            blocks: content.blocks,
            profile: content.profile.clone(),
        });
        made[index] =
            Some(making.graft(at, name, &new, &times, &node.xattrs, content).map_err(fs_error)?);
        Ok(())
    };
    place(&mut made, parent, hidden, plan.root)?;
    volume.vfs.names_changed_behind(parent);
    for (done, entry) in plan.entries.iter().enumerate() {
        let at = made[entry.parent].ok_or_else(unmade)?;
        place(&mut made, at, &entry.name, entry.node)?;
        if done.is_multiple_of(256) {
            let total = Some(plan.entries.len() as u64);
            progress(ProgressReport { what: "files".into(), done: done as u64, total });
        }
    }
    // Adding entries has touched the directories' times.
    for (node, ino) in plan.nodes.iter().zip(&made) {
        if let (FileKind::Directory, Some(ino)) = (node.kind, ino) {
            let times =
                SetAttributes { atime: node.atime, mtime: node.mtime, ..SetAttributes::default() };
            volume.vfs.set_times(*ino, &times).map_err(fs_error)?;
        }
    }
    Ok(plan.nodes.len() as u64)
}
