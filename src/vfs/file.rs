use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;

use super::ahead::{Ahead, Reading};
use super::last_read::Said;
use super::node::{Node, NodeState};
use super::{Vfs, VfsError};
use crate::content::Link;
use crate::metadata::{ContentCommit, ContentRecord, InodeRecord, MetadataError, StagedRecord};
use crate::replication::WaitOn;
use crate::runtime::failpoint;
use crate::store::{Staging, StagingOptions};
use crate::types::{FileKind, Ino};

/// Bytes that a copy between files holds.
const COPY_BYTES: usize = 1 << 20;
/// Bytes of one request to copy: its caller cannot be interrupted meanwhile, and
/// asks again for what is left.
const COPY_MOST: u64 = 32 << 20;

/// Names an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

/// How a file is opened.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of open(2)")]
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// For writing.
    pub write: bool,
    /// Cut to nothing first.
    pub truncate: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Reading moves no time (`O_NOATIME`).
    pub no_access_time: bool,
}

pub(super) struct Handle {
    pub node: Arc<Node>,
    options: OpenOptions,
    pub wrote: AtomicBool,
    /// A wait on it was cut off by a signal.
    pub cut: AtomicBool,
    /// Failures of the file that this handle was told of.
    seen: AtomicU64,
    ahead: Ahead,
    said: Said,
}

impl Handle {
    /// What it changed is for its close.
    pub fn wrote(&self) {
        self.wrote.store(true, Ordering::Release);
        self.cut.store(false, Ordering::Release);
    }

    /// A failure of an earlier commit that this handle was not told of.
    pub fn deliver(&self) -> Result<(), VfsError> {
        self.node.failures.lock().deliver(Some(&self.seen))
    }

    /// It was told of all failures until now.
    pub fn was_told(&self) {
        self.node.failures.lock().was_told(&self.seen);
    }
}

impl Vfs {
    pub(super) fn handle(&self, id: HandleId) -> Result<Arc<Handle>, VfsError> {
        self.handles.read().get(&id.0).cloned().ok_or_else(|| Errno::BADF.into())
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// `NotFound`; EISDIR, EROFS.
    pub fn open_file(&self, ino: Ino, options: OpenOptions) -> Result<HandleId, VfsError> {
        if options.write || options.truncate {
            self.refuse_read_only()?;
        }
        let node = self.node(ino)?;
        node.opens.fetch_add(1, Ordering::AcqRel);
        let id = HandleId(self.next_handle.fetch_add(1, Ordering::Relaxed));
        let (wrote, cut) = (AtomicBool::new(false), AtomicBool::new(false));
        let seen = AtomicU64::new(node.failures.lock().seen_at_open());
        let (ahead, said) = (Ahead::default(), Said::default());
        let handle = Arc::new(Handle { node, options, wrote, cut, seen, ahead, said });
        self.handles.write().insert(id.0, Arc::clone(&handle));
        if options.truncate {
            let cut = self.truncate_node(&handle.node, 0, Some(&handle.seen));
            if cut.is_err() {
                self.release(id)?;
            }
            cut?;
            handle.wrote.store(true, Ordering::Release);
        }
        // Reads of what the kernel has in its pages do not reach us, so this is
        // one; and the kernel does not know that its atime is old.
        if !options.write && !options.no_access_time {
            let moved = self.accessed(ino, &handle.node.row());
            if moved {
                self.changed_behind(ino);
            }
        }
        if !options.write
            && let Ok(state) = handle.node.look()
        {
            self.content_read(&handle.said, &state);
        }
        Ok(id)
    }

    /// Reads up to `buf.len()` bytes; fewer at the end of the file.
    ///
    /// # Errors
    /// EIO when no copy is good.
    pub fn read(&self, id: HandleId, offset: u64, buf: &mut [u8]) -> Result<usize, VfsError> {
        let handle = self.handle(id)?;
        let state = self.read_node(&handle.node)?;
        if !handle.options.no_access_time {
            self.accessed(handle.node.ino, &state.record);
        }
        self.content_read(&handle.said, &state);
        if state.may_list() {
            let record = state.record.clone();
            drop(state);
            let leaves = self.leaves_of(&record)?;
            let mut writable = handle.node.state.write();
            if writable.record.content == record.content {
                writable.leaves = leaves;
            }
            drop(writable);
            return self.read_through(&handle, &handle.node.state.read(), offset, buf);
        }
        self.read_through(&handle, &state, offset, buf)
    }

    /// Reads, and sends for what comes next.
    fn read_through(
        &self,
        handle: &Handle,
        state: &NodeState,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize, VfsError> {
        let at = offset..offset.saturating_add(buf.len() as u64).min(state.record.size);
        let result = self.read_state(state, offset, buf);
        if let (None, Some(root)) = (&state.staging, state.record.content) {
            let leaves = state.leaves.as_ref().map(|leaves| leaves.as_slice());
            let reading = Reading { root, size: state.record.size, leaves };
            let lacked = result.is_err() && Self::lacks_blocks();
            self.read_ahead(&handle.ahead, &reading, &at, lacked);
        }
        result
    }

    /// Writes; appends when the file was opened so. Returns the new size.
    ///
    /// # Errors
    /// ENOSPC, EFBIG, EIO; a failure of an earlier commit, once.
    pub fn write(&self, id: HandleId, offset: u64, data: &[u8]) -> Result<u64, VfsError> {
        let handle = self.handle(id)?;
        handle.deliver()?;
        self.write_to(&handle, handle.options.append, offset, data)
    }

    /// Writes pages that programs changed through a mapping. The kernel does that
    /// by itself, with any handle that was mapped: they belong where they are
    /// although it may append, and an older failure is told to a call of a program.
    ///
    /// # Errors
    /// ENOSPC, EFBIG, EIO.
    pub fn write_mapped(&self, id: HandleId, offset: u64, data: &[u8]) -> Result<u64, VfsError> {
        let handle = self.handle(id)?;
        self.write_to(&handle, false, offset, data)
    }

    fn write_to(
        &self,
        handle: &Handle,
        appends: bool,
        offset: u64,
        data: &[u8],
    ) -> Result<u64, VfsError> {
        let mut state = self.write_node(&handle.node)?;
        let at = if appends { state.record.size } else { offset };
        self.admit(&state, at, data.len() as u64)?;
        let end = at.saturating_add(data.len() as u64);
        let len = end.max(state.record.size);
        self.change(&handle.node, &mut state, len, |staging, base| {
            staging.write_at(at, data, base)
        })?;
        self.note_written(&handle.node, &mut state, (at, data.len() as u64));
        handle.wrote();
        Ok(state.record.size)
    }

    /// Counts what the staging holds in memory now.
    pub(super) fn charge(&self, state: &mut NodeState) {
        let held = state.staging.as_ref().map_or(0, Staging::memory_bytes);
        self.memory_bytes.fetch_add(held.wrapping_sub(state.charged), Ordering::Relaxed);
        state.charged = held;
        let owed = state.staging.as_ref().map_or(0, Staging::owed_bytes);
        self.owed_bytes.fetch_add(owed.wrapping_sub(state.owed), Ordering::Relaxed);
        state.owed = owed;
    }

    /// Whether the disk has room for a write, and for what its commit adds.
    fn admit(&self, state: &NodeState, offset: u64, len: u64) -> Result<(), VfsError> {
        let cost = match &state.staging {
            Some(staging) => staging.cost_of(offset, len),
            None => Staging::first_cost(state.record.size, &self.staging_options(), offset, len),
        };
        Ok(self.store.admit(cost, self.owed_bytes.load(Ordering::Relaxed))?)
    }

    fn staging_options(&self) -> StagingOptions {
        StagingOptions {
            memory_limit: self
                .options
                .memory_file_bytes
                .min(u64::from(self.options.profile.chunk_size)),
            leaf_size: u64::from(self.options.profile.chunk_size),
        }
    }

    /// A file is so long now, or will be: quotas count it.
    pub(super) fn count_growth(
        &self,
        ino: Ino,
        state: &NodeState,
        len: u64,
        forced: bool,
    ) -> Result<(), VfsError> {
        // A length that no staging takes is refused there.
        let growth = len.min(Staging::MAX_LEN).cast_signed() - state.stored_size.cast_signed();
        Ok(self.namespace.stage_growth(ino, growth, forced)?)
    }

    /// Applies a change to the staged bytes that makes the file `len` bytes long;
    /// makes the staging when there is none; keeps size, times, quotas and the
    /// memory budget.
    fn change(
        &self,
        node: &Arc<Node>,
        state: &mut NodeState,
        len: u64,
        apply: impl FnOnce(&mut Staging, &super::read::Base<'_>) -> Result<(), crate::store::StoreError>,
    ) -> Result<(), VfsError> {
        if state.record.kind != FileKind::File {
            return Err(Errno::INVAL.into());
        }
        let record = state.record.clone();
        let resized = len != record.size;
        if resized {
            self.count_growth(node.ino, state, len, false)?;
        }
        let fresh = state.staging.is_none();
        let staging = state
            .staging
            .get_or_insert_with(|| self.store.stage(node.ino, record.size, self.staging_options()));
        let base = self.base_of(&record, staging.original_size());
        // Before the change: afterwards a failure would leave a part of it.
        let over = self.memory_bytes.load(Ordering::Relaxed) > self.options.dirty_bytes;
        let spilled = if over { staging.spill() } else { Ok(()) };
        let result = spilled.and_then(|()| apply(staging, &base));
        let size = staging.len();
        if let Err(error) = result {
            if fresh && let Some(staging) = state.staging.take() {
                // Nothing changed: what is committed is still all there is.
                staging.discard()?;
            } else {
                self.cut_back(state);
            }
            if resized {
                self.count_growth(node.ino, state, state.record.size, true)?;
            }
            self.charge(state);
            return Err(error.into());
        }
        self.charge(state);
        let now = self.now();
        state.record.size = size;
        state.record.mtime = now;
        state.record.ctime = now;
        state.dirty = true;
        Ok(())
    }

    /// After a change that failed: what is staged is as long as is said again, or
    /// the other way round when even that fails.
    fn cut_back(&self, state: &mut NodeState) {
        let Some(staging) = &mut state.staging else { return };
        if staging.len() > state.record.size {
            let base = self.base_of(&state.record, staging.original_size());
            if let Err(error) = staging.set_len(state.record.size, &base) {
                tracing::warn!(%error, "a file stays as long as a change that failed made it");
                (state.record.size, state.dirty) = (staging.len(), true);
            }
        }
    }

    /// Cuts or extends a file that may not be open.
    pub(super) fn truncate_node(
        &self,
        node: &Arc<Node>,
        size: u64,
        seen: Option<&AtomicU64>,
    ) -> Result<(), VfsError> {
        node.failures.lock().deliver(seen)?;
        let mut state = self.write_node(node)?;
        if state.record.size == size && state.staging.is_none() && state.record.content.is_none() {
            return Ok(());
        }
        self.change(node, &mut state, size, |staging, base| staging.set_len(size, base))
    }

    /// fallocate: reserve, punch (`punch`, keeps the size) or zero.
    ///
    /// # Errors
    /// EOPNOTSUPP for other modes, ENOSPC, EFBIG.
    pub fn fallocate(&self, id: HandleId, range: Range<u64>, mode: i32) -> Result<(), VfsError> {
        use rustix::fs::FallocateFlags as F;
        let flags = F::from_bits_retain(mode.cast_unsigned());
        let handle = self.handle(id)?;
        if !handle.options.write {
            return Err(Errno::BADF.into());
        }
        let keep = flags.contains(F::KEEP_SIZE);
        handle.deliver()?;
        let mut state = self.write_node(&handle.node)?;
        if (flags - F::KEEP_SIZE).is_empty() {
            let len = range.end.saturating_sub(range.start);
            self.admit(&state, range.start, len)?;
        }
        let size = state.record.size;
        let len = if keep || range.is_empty() { size } else { size.max(range.end) };
        let node = &handle.node;
        let changed = match flags - F::KEEP_SIZE {
            f if f.is_empty() => {
                self.change(node, &mut state, len, |s, base| s.allocate(range, keep, base))
            }
            F::PUNCH_HOLE if keep => {
                self.change(node, &mut state, len, |s, base| s.zero_range(range, true, base))
            }
            F::ZERO_RANGE => {
                self.change(node, &mut state, len, |s, base| s.zero_range(range, keep, base))
            }
            _ => Err(Errno::OPNOTSUPP.into()),
        };
        handle.wrote.store(true, Ordering::Release);
        changed
    }

    /// lseek's `SEEK_DATA` and `SEEK_HOLE`.
    ///
    /// # Errors
    /// ENXIO past the end, or when no data follows.
    pub fn seek(&self, id: HandleId, offset: u64, hole: bool) -> Result<u64, VfsError> {
        let handle = self.handle(id)?;
        let state = self.read_node(&handle.node)?;
        let size = state.record.size;
        let found = match &state.staging {
            Some(staging) => {
                let base = self.base_of(&state.record, staging.original_size());
                staging.seek(offset, hole, &base)?
            }
            None => match &state.record.content {
                _ if offset >= size => None,
                Some(root) => {
                    let link = Link { cid: *root, size, tsize: 0 };
                    self.seek_content(&link, offset, hole)?
                }
                None => hole.then_some(offset),
            },
        };
        found.ok_or_else(|| Errno::NXIO.into())
    }

    /// `copy_file_range`. A whole clean file copied into an empty one shares its
    /// content and costs no bytes.
    ///
    /// # Errors
    /// EBADF when the target is not open for writing or is for appending; of
    /// reading and writing.
    pub fn copy_range(
        self: &Arc<Self>,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: u64,
    ) -> Result<u64, VfsError> {
        self.finish(self.copy_steps(from, to, len))
    }

    /// Copies up to [`COPY_MOST`], and less when an error or a block that is not
    /// here comes after the first part: who asks again meets it then.
    pub(super) fn copy_part(
        &self,
        (from, from_offset): (HandleId, u64),
        (to, to_offset): (HandleId, u64),
        len: u64,
    ) -> Result<u64, VfsError> {
        let (source, target) = (self.handle(from)?, self.handle(to)?);
        if !target.options.write || target.options.append {
            return Err(Errno::BADF.into());
        }
        // What the copy itself adds to the same file is not copied again.
        let size = source.node.state.read().record.size;
        let len = len.min(size.saturating_sub(from_offset));
        if source.node.ino != target.node.ino
            && from_offset == 0
            && to_offset == 0
            && let Some(copied) = self.share_content(&source.node, &target.node, len)?
        {
            target.wrote.store(true, Ordering::Release);
            return Ok(copied);
        }
        let len = len.min(COPY_MOST);
        let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(len).unwrap_or(COPY_BYTES))];
        let mut done = 0;
        while done < len {
            let part = buffer.len().min((len - done) as usize);
            let copied = self.read(from, from_offset + done, &mut buffer[..part]).and_then(|n| {
                if n > 0 {
                    self.write(to, to_offset + done, &buffer[..n])?;
                }
                Ok(n as u64)
            });
            match copied {
                Ok(0) => break,
                Ok(n) => done += n,
                // A failure of an earlier commit is told once.
                Err(error @ VfsError::Latched(..)) => return Err(error),
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn share_content(
        &self,
        source: &Arc<Node>,
        target: &Arc<Node>,
        len: u64,
    ) -> Result<Option<u64>, VfsError> {
        let record = {
            let state = self.read_node(source)?;
            if state.dirty || state.record.size > len {
                return Ok(None);
            }
            state.record.clone()
        };
        let Some(root) = record.content else { return Ok(None) };
        let Some(content) = self.namespace.content(&root)? else { return Ok(None) };
        let mut state = self.write_node(target)?;
        if state.dirty || state.staging.is_some() || state.record.size > 0 {
            return Ok(None);
        }
        // The limits are those of the place that it is copied to.
        let policy = self.policy_of_locked(&state.record)?;
        let pin = self.replicator.judge(&policy, &content.copies);
        let (min, target_copies, max) = (policy.min, policy.target, policy.max);
        let commit = ContentCommit {
            shared: true,
            ino: target.ino,
            version: state.record.version,
            root: Some(root),
            record: ContentRecord { min, target: target_copies, max, pin, ..content },
            enqueue: self.replicator.wants_copies(&policy),
            size: record.size,
            mtime: self.now(),
        };
        let enqueued = commit.enqueue;
        if self.namespace.commit_contents(&[commit])? != [true] {
            return Ok(None);
        }
        state.take_row(self.namespace.inode(target.ino)?);
        drop(state);
        self.forget_record(target.ino);
        if enqueued {
            self.replicator.submit(&[root]);
        }
        self.content_changed(target.ino)?;
        Ok(Some(record.size))
    }

    /// Whether [`Vfs::flush`] may have to wait for a disk or a backend.
    pub fn flush_waits(&self, id: HandleId) -> bool {
        self.handle(id).is_ok_and(|handle| {
            handle.wrote.load(Ordering::Acquire)
                && self.policy_of(handle.node.ino).is_ok_and(|p| p.wait_on == WaitOn::Close)
        })
    }

    /// close(2) of one descriptor: what it wrote is committed, and has the
    /// policy's copies when the policy waits on close.
    ///
    /// # Errors
    /// ENOSPC, EIO of the commit; EIO below the level when the policy says fail.
    pub fn flush(self: &Arc<Self>, id: HandleId) -> Result<(), VfsError> {
        self.finish(self.flush_steps(id))
    }

    /// The last use of a descriptor.
    ///
    /// # Errors
    /// Of reaping an unlinked file.
    pub fn release(&self, id: HandleId) -> Result<(), VfsError> {
        let Some(handle) = self.handles.write().remove(&id.0) else { return Ok(()) };
        let node = Arc::clone(&handle.node);
        drop(handle);
        let last = node.opens.fetch_sub(1, Ordering::AcqRel) == 1;
        if !last {
            return Ok(());
        }
        let (gone, dirty) = match node.look() {
            Ok(state) => (state.record.nlink == 0, state.dirty),
            // The committer retires it when there is nothing more to be done.
            Err(shown) => (shown.nlink == 0, true),
        };
        if gone {
            return self.end_orphan(&node);
        }
        if dirty {
            self.commit_later(&node);
        } else {
            self.nodes.retire(&node);
        }
        Ok(())
    }

    /// An unlinked file that nobody has open any more.
    pub(super) fn end_orphan(&self, node: &Arc<Node>) -> Result<(), VfsError> {
        let mut state = node.state.write();
        if let Some(staging) = state.staging.take() {
            self.charge(&mut state);
            staging.discard()?;
        }
        state.dirty = false;
        drop(state);
        self.namespace.reap(node.ino)?;
        failpoint::reach("vfs.orphan.reaped");
        self.forget_record(node.ino);
        self.nodes.remove(node.ino);
        Ok(())
    }

    /// fsync: the bytes and the name are durable as the policy's level asks.
    ///
    /// # Errors
    /// ENOSPC, EIO; a failure of an earlier commit, once.
    pub fn fsync(self: &Arc<Self>, id: HandleId) -> Result<(), VfsError> {
        self.finish(self.fsync_steps(id))
    }

    /// Makes staged bytes durable without hashing them. False when they are in
    /// memory and were not synced before: most such files are written once, and
    /// a commit beside others is cheaper than a file of their own.
    pub(super) fn sync_staged(&self, handle: &Handle) -> Result<bool, VfsError> {
        let node = &handle.node;
        let mut state = node.state.write();
        let again = std::mem::replace(&mut state.synced, true);
        if state.staging.as_ref().is_none_or(|s| !again && s.is_in_memory()) {
            return Ok(false);
        }
        self.show(node, &state);
        let synced = state.staging.as_mut().map_or(Ok(()), Staging::sync);
        self.conceal(node);
        self.commits_ended.send_modify(|count| *count += 1);
        if let Err(error) = synced {
            let error = VfsError::from(error);
            let mut failures = node.failures.lock();
            failures.add(error.errno(), error.to_string());
            failures.was_told(&handle.seen);
            return Err(error);
        }
        failpoint::reach("vfs.fsync.staged");
        self.record_staged(node.ino, &mut state)?;
        failpoint::reach("vfs.fsync.recorded");
        self.charge(&mut state);
        Ok(true)
    }

    /// Makes all rows durable.
    ///
    /// # Errors
    /// Of the metadata.
    pub(super) fn persist(&self) -> Result<(), VfsError> {
        self.persisting(|| Ok(self.namespace.engine().persist()?))
    }

    /// Runs `persist`, which makes all rows durable, and removes the staging files
    /// that they name no more.
    pub(super) fn persisting<T>(
        &self,
        persist: impl FnOnce() -> Result<T, VfsError>,
    ) -> Result<T, VfsError> {
        let mut unnamed = Vec::new();
        for aside in self.store.take_aside() {
            let header = self.namespace.staged_page(aside.ino, Staging::HEADER_LEAF);
            match header {
                Ok(header) if header.as_ref().is_none_or(|page| !aside.is_named_by(page)) => {
                    unnamed.push(aside);
                }
                _ => self.store.keep_aside(aside),
            }
        }
        let result = persist();
        for aside in unnamed {
            if result.is_err() {
                self.store.keep_aside(aside);
            } else if let Err(error) = self.store.remove_aside(aside) {
                tracing::warn!(%error, "a file that is not needed is left to the collection");
            } else {
                failpoint::reach("store.staging.aside_removed");
            }
        }
        result
    }

    /// Puts what is staged on record.
    pub(super) fn record_staged(&self, ino: Ino, state: &mut NodeState) -> Result<(), VfsError> {
        let Some(staging) = &state.staging else { return Ok(()) };
        let staged = StagedRecord {
            size: staging.len(),
            base: state.record.content,
            base_size: staging.base_size(),
            mtime: state.record.mtime,
            pages: staging.pages(),
        };
        self.namespace.put_staged(ino, &staged)?;
        state.recorded = true;
        Ok(())
    }

    /// fsyncdir, and sync of the whole filesystem's names.
    ///
    /// # Errors
    /// Of the metadata; EIO below the level when the policy says fail.
    pub fn sync_directory(self: &Arc<Self>, ino: Ino) -> Result<(), VfsError> {
        self.finish(self.sync_directory_steps(ino))
    }

    /// Takes up staged bytes that a crash left.
    pub(super) fn adopt_staged(&self) -> Result<(), VfsError> {
        let mut kept = Vec::new();
        for (ino, staged) in self.namespace.staged()? {
            let record: InodeRecord = match self.namespace.inode(ino) {
                Ok(record) if record.content == staged.base && record.nlink > 0 => record,
                Ok(_) | Err(MetadataError::NotFound) => {
                    self.namespace.delete_staged(ino)?;
                    continue;
                }
                Err(error @ MetadataError::Damaged { .. }) => {
                    // Not the bytes' fault: they wait for the row's repair.
                    let Some(id) = Staging::id_in(&staged.pages) else { return Err(error.into()) };
                    tracing::error!(%ino, %error, "bytes that were synced wait in the store's staging");
                    kept.push(id);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let sizes = (staged.size, staged.base_size, record.size);
            let mut staging =
                self.store.adopt(ino, sizes, &staged.pages, self.staging_options())?;
            // It may be a copy of what a segment has become.
            staging.sync()?;
            kept.push(staging.id());
            let node = self.node(ino)?;
            let mut state = node.state.write();
            // What was cut after the record stays cut.
            state.record.size = staging.len();
            state.record.mtime = staged.mtime;
            state.record.ctime = state.record.ctime.max(staged.mtime);
            state.staging = Some(staging);
            state.dirty = true;
            self.count_growth(ino, &state, state.record.size, true)?;
            // What is found now is found again after the next crash.
            self.record_staged(ino, &mut state)?;
            failpoint::reach("vfs.adopt.adopted");
            drop(state);
            self.commit_later(&node);
        }
        if !kept.is_empty() {
            self.namespace.engine().persist()?;
            failpoint::reach("vfs.adopt.persisted");
        }
        self.store.discard_staging_except(&kept)?;
        Ok(())
    }
}
