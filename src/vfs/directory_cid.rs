//! The CID of what is written now, of files and of whole directories.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{Vfs, VfsError};
use crate::content::{DirectoryEntry, Link, build_directory, escape_name, leaf, symlink};
use crate::metadata::{DentryRecord, MetadataError};
use crate::runtime::Step;
use crate::types::{Block, FileKind, Ino, Name};

/// Entries read at a time.
const PAGE: usize = 1024;
/// Entries of one step.
const STEP_ENTRIES: usize = 1024;
/// Trees that are walked at a time, each with the names of the directories that it
/// is in. Who else asks waits without a thread, and often for the same answer.
pub(super) const WALKS: usize = 2;

/// What was removed since its name was read is passed over.
fn is_gone(error: VfsError) -> Result<(), VfsError> {
    match error {
        VfsError::Metadata(MetadataError::NotFound) => Ok(()),
        other => Err(other),
    }
}

/// A directory of which a part is read.
struct Frame {
    ino: Ino,
    name: String,
    children: std::vec::IntoIter<(Name, DentryRecord)>,
    built: Vec<DirectoryEntry>,
}

/// A tree of which a part is built, bottom-up, with a stack of its own: trees may
/// be deeper than a thread's.
struct Walk {
    version: u64,
    stack: Vec<Frame>,
}

impl Vfs {
    /// CID of what is written now; a dirty file is committed first; the nodes
    /// of directories go to the store. Devices, pipes and sockets are not part
    /// of the `UnixFS` view.
    ///
    /// # Errors
    /// Of committing; EINVAL for a special node itself.
    pub fn link_of(self: &Arc<Self>, ino: Ino) -> Result<Link, VfsError> {
        self.finish(self.link_steps(ino))
    }

    /// The steps of [`Vfs::link_of`]. What is written after the first one may be in
    /// it or not, and is not waited for.
    pub fn link_steps(
        self: &Arc<Self>,
        ino: Ino,
    ) -> impl FnMut() -> Result<Step<Link, VfsError>, VfsError> + Send + use<> {
        let vfs = Arc::clone(self);
        let turn = Arc::new(Mutex::new(None));
        let (mut committed, mut walk) = (self.options.read_only, None);
        move || {
            if let Some(walk) = &mut walk {
                return vfs.walk_on(walk);
            }
            let is_directory = vfs.record(ino)?.kind == FileKind::Directory;
            if !committed {
                committed = true;
                if is_directory
                    && let Some(link) = vfs.directories.get(&ino)
                    && vfs.nodes.dirty_count() == 0
                {
                    return Ok(Step::Done(link));
                }
                let waits = vfs.commits_begun(ino)?;
                return Ok(Step::wait(async move {
                    for wait in waits {
                        wait.await?;
                    }
                    Ok(())
                }));
            }
            if !is_directory {
                let link = vfs.leaf_link(ino)?;
                return link.map(Step::Done).ok_or_else(|| Errno::INVAL.into());
            }
            if let Some(link) = vfs.directories.get(&ino) {
                return Ok(Step::Done(link));
            }
            if turn.lock().is_none() {
                let (turns, turn) = (Arc::clone(&vfs.walks), Arc::clone(&turn));
                return Ok(Step::wait(async move {
                    let permit = turns.acquire_owned().await.map_err(|_| Errno::SHUTDOWN)?;
                    *turn.lock() = Some(permit);
                    Ok(())
                }));
            }
            if !vfs.options.read_only {
                vfs.persist()?;
            }
            let version = vfs.tree_version.load(Ordering::Acquire);
            let stack = vec![vfs.frame(ino, String::new())?];
            vfs.walk_on(walk.insert(Walk { version, stack }))
        }
    }

    /// The link of what anything but a directory has committed; `None` for special
    /// nodes.
    fn leaf_link(&self, ino: Ino) -> Result<Option<Link>, VfsError> {
        let record = self.record(ino)?;
        let profile = &self.options.profile;
        Ok(match record.kind {
            FileKind::File => Some(if let Some(root) = &record.content {
                // The row's size is that of what is written by now.
                let content = self.namespace.content(root)?;
                let (size, tsize) =
                    content.map_or((record.size, record.size), |c| (c.size, c.tsize));
                Link { cid: *root, size, tsize }
            } else {
                let (link, block) = leaf(profile, &[]);
                self.store.append(&[Block { cid: link.cid, data: block.unwrap_or_default() }])?;
                link
            }),
            FileKind::Symlink => {
                let (link, data) = symlink(profile, &record.target);
                self.store.append(&[Block { cid: link.cid, data }])?;
                Some(link)
            }
            _ => None,
        })
    }

    fn frame(&self, ino: Ino, name: String) -> Result<Frame, VfsError> {
        let (mut after, mut children) = (0, Vec::new());
        loop {
            let page = self.namespace.read_directory(ino, after, PAGE)?;
            after = page.entries.last().map_or(after, |(_, dentry)| dentry.cookie);
            children.extend(page.entries);
            if page.last {
                return Ok(Frame { ino, name, children: children.into_iter(), built: Vec::new() });
            }
        }
    }

    /// Takes one step of a walk.
    fn walk_on(&self, walk: &mut Walk) -> Result<Step<Link, VfsError>, VfsError> {
        for _ in 0..STEP_ENTRIES {
            if let Some(link) = self.walk_one(walk)? {
                return Ok(Step::Done(link));
            }
        }
        // Others have this thread meanwhile, and a signal is looked for.
        Ok(Step::wait(async {
            tokio::task::yield_now().await;
            Ok(())
        }))
    }

    /// Takes the next entry, or ends a directory; the link of the last one.
    fn walk_one(&self, Walk { version, stack }: &mut Walk) -> Result<Option<Link>, VfsError> {
        let Some(frame) = stack.last_mut() else { return Err(Errno::IO.into()) };
        if let Some((name, dentry)) = frame.children.next() {
            let name = escape_name(name.as_bytes());
            if dentry.kind == FileKind::Directory {
                match self.directories.get(&dentry.ino) {
                    Some(link) => frame.built.push(DirectoryEntry { name, link }),
                    None => match self.frame(dentry.ino, name) {
                        Ok(frame) => stack.push(frame),
                        Err(error) => is_gone(error)?,
                    },
                }
            } else {
                match self.leaf_link(dentry.ino) {
                    Ok(link) => frame.built.extend(link.map(|link| DirectoryEntry { name, link })),
                    Err(error) => is_gone(error)?,
                }
            }
            return Ok(None);
        }
        let Some(done) = stack.pop() else { return Err(Errno::IO.into()) };
        let mut nodes = Vec::new();
        let link = build_directory(&self.options.profile, done.built, &mut |cid, data| {
            nodes.push(Block { cid, data });
            Ok(())
        })?;
        self.store.append(&nodes)?;
        // A change raises the version before it removes what is kept.
        self.directories.insert(done.ino, link);
        if self.tree_version.load(Ordering::Acquire) != *version {
            self.directories.remove(&done.ino);
        }
        Ok(match stack.last_mut() {
            Some(parent) => {
                parent.built.push(DirectoryEntry { name: done.name, link });
                None
            }
            None => Some(link),
        })
    }
}
