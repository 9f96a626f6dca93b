//! The one way from staged bytes to content.
//!
//! A batch of files is hashed, its blocks are made durable with one flush, and
//! the inodes get their new roots in one transaction (decision 0001). Each
//! file's state is locked while its batch runs: a write that comes meanwhile
//! waits, and none is lost. A failure stays with the file, which keeps its
//! staged bytes and is tried again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLockWriteGuard};
use tokio::sync::oneshot;

use super::behind::Hashes;
use super::near::Brought;
use super::node::{Node, NodeState};
use super::{GraftContent, Vfs, VfsError};
use crate::content::{Changed, ContentError, Link, holes, rebuild};
use crate::metadata::{
    ContentCommit, ContentRecord, CopyRecord, CopyState, InodeRecord, MetadataError, VerifyMethod,
};
use crate::runtime::{Step, failpoint};
use crate::store::{PackTicket, SealedLeaf, StagedLeaves, Staging};
use crate::telemetry;
use crate::types::{BackendId, Block, Cid, FileKind, Ino, Timestamp};

/// Files of one batch.
const BATCH_FILES: usize = 256;
/// A file above this many bytes is a batch of its own.
const LARGE_BYTES: u64 = 16 << 20;
/// How long a file that nobody waits for waits for others: a flush for many.
const LINGER: Duration = Duration::from_millis(50);
/// Threads that commit.
const THREADS: usize = 2;
/// Files that wait before who adds one more waits, too, and how long.
const WAITING: usize = 8192;
const FULL_WAIT: Duration = Duration::from_secs(2);

/// How a commit ended, for who waits for it.
pub(super) type Outcome = Result<(), (super::Errno, String)>;
pub(super) type Done = oneshot::Sender<Outcome>;

pub(super) struct Request {
    pub node: Arc<Node>,
    pub dones: Vec<Done>,
    /// Blocks of what is below it that were not here at an earlier try.
    brought: Brought,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Since when the first of them waits.
    since: Option<Instant>,
    /// Somebody waits for one, or memory is short: no lingering.
    hurried: bool,
    started: bool,
    stopped: bool,
}

impl Queue {
    /// How long to linger; `None` when it is time.
    fn linger(&self) -> Option<Duration> {
        let full = self.waiting.len() >= BATCH_FILES;
        let since = self.since.filter(|_| !self.hurried && !self.stopped && !full)?;
        LINGER.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }
}

/// The queue of files to commit.
#[derive(Default)]
pub(super) struct Committer {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// The queue became shorter.
    room: Condvar,
}

/// What hashing a file gave.
struct Hashed {
    commit: ContentCommit,
    /// Blocks for the pack.
    blocks: Vec<Block>,
    /// Leaves that stay in the staging file.
    sealed: Vec<SealedLeaf>,
    /// Until where blocks are in the pack already.
    appended: PackTicket,
}

impl Committer {
    /// Starts the threads; they end when the vfs is gone or closed.
    pub fn start(vfs: &Arc<Vfs>) -> Result<(), VfsError> {
        for _ in 0..THREADS {
            let weak = Arc::downgrade(vfs);
            let started =
                std::thread::Builder::new().name("cairn-commit".into()).spawn(move || work(&weak));
            started.map_err(|e| VfsError::Replication(e.into()))?;
        }
        vfs.committer.queue.lock().started = true;
        Ok(())
    }

    pub fn stop(&self) {
        self.queue.lock().stopped = true;
        self.wake.notify_all();
        self.room.notify_all();
    }

    /// Forgets what waits, as a crash does.
    #[cfg(test)]
    pub fn abandon(&self) {
        let mut queue = self.queue.lock();
        queue.stopped = true;
        queue.waiting.clear();
        self.wake.notify_all();
    }

    fn push(&self, node: &Arc<Node>, done: Option<Done>) {
        if done.is_none() && node.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        if done.is_none() {
            self.wait_for_room();
        }
        let dones = done.into_iter().collect();
        self.push_request(Request { node: Arc::clone(node), dones, brought: Brought::default() });
    }

    /// Who adds to a queue that is full waits, for so long that the disk gets on
    /// with it, and no longer: it may be stuck.
    fn wait_for_room(&self) {
        let mut queue = self.queue.lock();
        let until = Instant::now() + FULL_WAIT;
        // Nobody takes from it before the threads have begun.
        while queue.waiting.len() >= WAITING && queue.started && !queue.stopped {
            if self.room.wait_until(&mut queue, until).timed_out() {
                return;
            }
        }
    }

    pub fn push_request(&self, request: Request) {
        let mut queue = self.queue.lock();
        queue.hurried |= !request.dones.is_empty();
        queue.since.get_or_insert_with(Instant::now);
        queue.waiting.push_back(request);
        // Who lingers looks again by itself.
        if queue.waiting.len() == 1 || queue.linger().is_none() {
            self.wake.notify_one();
        }
    }

    /// Memory is short.
    fn hurry(&self) {
        self.queue.lock().hurried = true;
        self.wake.notify_one();
    }

    /// The next batch, of so many bytes in memory; `None` to look whether the vfs
    /// still lives.
    fn take(&self, most_bytes: u64) -> Option<Vec<Request>> {
        let mut queue = self.queue.lock();
        if queue.waiting.is_empty() && !queue.stopped {
            self.wake.wait_for(&mut queue, Duration::from_millis(500));
        }
        while !queue.waiting.is_empty()
            && let Some(left) = queue.linger()
        {
            self.wake.wait_for(&mut queue, left);
        }
        let (mut batch, mut bytes): (Vec<Request>, u64) = (Vec::new(), 0);
        while let Some(request) = queue.waiting.pop_front() {
            let known = request.node.state.try_read().map(|s| (s.record.size, s.charged));
            let large = known.is_none_or(|(size, _)| size > LARGE_BYTES);
            bytes += known.map_or(0, |(_, held)| held);
            if (large || bytes > most_bytes) && !batch.is_empty() {
                queue.waiting.push_front(request);
                break;
            }
            batch.push(request);
            if large || batch.len() == BATCH_FILES {
                break;
            }
        }
        // What is left was there when this batch was due: it is due as well.
        if queue.waiting.is_empty() {
            (queue.since, queue.hurried) = (None, false);
        } else {
            self.wake.notify_one();
        }
        self.room.notify_all();
        (!batch.is_empty()).then_some(batch)
    }
}

/// Tells who waits. A failure that all of them have stopped waiting for stays
/// with the file.
pub(super) fn tell(dones: Vec<Done>, outcome: &Outcome) {
    for done in dones {
        // Who does not wait any more finds it with the file's failures.
        drop(done.send(outcome.clone()));
    }
}

fn work(weak: &Weak<Vfs>) {
    loop {
        let Some(vfs) = weak.upgrade() else { return };
        vfs.write_due_access_times();
        vfs.write_due_reads();
        vfs.retry_due();
        vfs.sweep_due();
        // Half of it: blocks are held once here, and once on their way to the pack.
        match vfs.committer.take(vfs.options.commit_bytes / 2 / THREADS as u64) {
            Some(batch) => vfs.commit_batch(batch),
            None if vfs.committer.queue.lock().stopped => return,
            None => {}
        }
    }
}

impl Vfs {
    /// Hands a file to the committer and goes on.
    pub(super) fn commit_later(&self, node: &Arc<Node>) {
        self.committer.push(node, None);
        if self.memory_bytes.load(Ordering::Relaxed) > self.options.dirty_bytes / 2 {
            self.committer.hurry();
        }
    }

    /// Hands a dirty file to the committer; returns when it is durable locally.
    pub(super) fn commit_begun(
        &self,
        node: &Arc<Node>,
    ) -> impl Future<Output = Result<(), VfsError>> + Send + use<> {
        let begun = node.state.read().dirty.then(|| {
            let (done, ended) = oneshot::channel();
            self.committer.push(node, Some(done));
            ended
        });
        async move {
            let Some(ended) = begun else { return Ok(()) };
            match ended.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err((errno, text))) => Err(VfsError::Latched(errno, text)),
                // The committer is gone.
                Err(_) => Err(rustix::io::Errno::SHUTDOWN.into()),
            }
        }
    }

    /// Begins to commit what the CID of an inode depends on.
    pub(super) fn commits_begun(
        &self,
        ino: Ino,
    ) -> Result<Vec<impl Future<Output = Result<(), VfsError>> + Send + use<>>, VfsError> {
        let nodes = if self.record(ino)?.kind == FileKind::Directory {
            self.nodes.all()
        } else {
            self.nodes.get(ino).into_iter().collect()
        };
        let named = |node: &&Arc<Node>| node.ino == ino || node.state.read().record.nlink > 0;
        Ok(nodes.iter().filter(named).map(|node| self.commit_begun(node)).collect())
    }

    /// Commits everything dirty, durable locally, rows included.
    ///
    /// # Errors
    /// The first failure.
    pub fn commit_all(&self) -> Result<(), VfsError> {
        let mut first = Ok(());
        for wait in self.commits_begun(Ino::ROOT)? {
            let ended = self.replicator.block_on(wait);
            first = first.and(ended);
        }
        first?;
        self.persist()
    }

    fn commit_batch(self: &Arc<Self>, requests: Vec<Request>) {
        let mut nodes: BTreeMap<Ino, Request> = BTreeMap::new();
        for request in requests {
            request.node.queued.store(false, Ordering::Release);
            match nodes.entry(request.node.ino) {
                Entry::Occupied(mut entry) => entry.get_mut().dones.extend(request.dones),
                Entry::Vacant(entry) => drop(entry.insert(request)),
            }
        }
        let policies = self.policy_changes();
        // A collection spares the blocks until their rows are there.
        let commit = self.store.begin_commit();
        // In the order of their numbers: two batches cannot wait for each other.
        let batch: Vec<Arc<Node>> = nodes.values().map(|r| Arc::clone(&r.node)).collect();
        let mut locked: Vec<(&Arc<Node>, RwLockWriteGuard<'_, NodeState>)> =
            batch.iter().map(|node| (node, node.state.write())).collect();
        for (node, state) in &locked {
            self.show(node, state);
        }
        let mut failures: BTreeMap<Ino, VfsError> = BTreeMap::new();
        let mut hashed: BTreeMap<Ino, Hashed> = BTreeMap::new();
        let mut waits = Vec::new();
        for (node, state) in &mut locked {
            let Some(request) = nodes.get(&node.ino) else { continue };
            // What has no name is committed only for who asks.
            let wanted = !request.dones.is_empty();
            if !state.dirty || (state.record.nlink == 0 && !wanted) {
                continue;
            }
            match self.near(&request.brought, || self.hash(node, state)) {
                Ok(Step::Done(result)) => match Self::arrived(state, &result) {
                    Ok(()) => drop(hashed.insert(node.ino, result)),
                    Err(error) => drop(failures.insert(node.ino, error)),
                },
                Ok(Step::Wait(wait)) => waits.push((node.ino, wait)),
                Err(error) => drop(failures.insert(node.ino, error)),
            }
        }
        for (ino, wait) in waits {
            if let Some(request) = nodes.remove(&ino) {
                self.commit_after(wait, request);
            }
        }
        failpoint::reach("vfs.commit.hashed");
        let committed = self.make_durable(&mut locked, &hashed);
        let mut roots = Vec::new();
        match committed {
            Ok(flags) => {
                for ((ino, result), kept) in hashed.iter().zip(flags) {
                    let Some((_, state)) = locked.iter_mut().find(|(node, _)| node.ino == *ino)
                    else {
                        continue;
                    };
                    let kept = match kept {
                        Ok(kept) => kept,
                        Err(error) => {
                            failures.insert(*ino, error);
                            continue;
                        }
                    };
                    if !kept && !self.is_gone(*ino) {
                        // Nobody else gives an inode its content. Should it be,
                        // what was written here is not thrown away for it.
                        failures.insert(*ino, rustix::io::Errno::IO.into());
                        continue;
                    }
                    if let Err(error) = self.settle(state, &result.commit, kept) {
                        failures.insert(*ino, error);
                    }
                    if kept && result.commit.enqueue {
                        roots.extend(result.commit.root);
                    }
                }
            }
            Err(error) => {
                let (errno, text) = (error.errno(), error.to_string());
                for ino in hashed.keys() {
                    failures.insert(*ino, VfsError::Latched(errno, text.clone()));
                }
            }
        }
        for (node, state) in &locked {
            if let Some(error) = failures.get(&node.ino) {
                self.commit_failed(node, error);
            } else if !state.dirty || state.record.nlink == 0 {
                self.retries.ended(node.ino);
            }
        }
        // Before anybody sees the files clean.
        for ino in hashed.keys() {
            if let Err(error) = self.content_changed(*ino) {
                tracing::warn!(%error, %ino, "directory CIDs above a file are not forgotten");
                self.directories.clear();
            }
        }
        for (node, _) in &locked {
            self.conceal(node);
        }
        drop(locked);
        self.commits_ended.send_modify(|count| *count += 1);
        drop(batch);
        drop(commit);
        if self.policy_changes() != policies {
            self.follow_policies(hashed.keys().copied());
        }
        self.replicator.submit(&roots);
        for request in nodes.values() {
            self.correct_holes(&request.node);
        }
        for (ino, Request { node, dones, .. }) in nodes {
            let outcome = failures.get(&ino).map_or(Ok(()), |e| Err((e.errno(), e.to_string())));
            tell(dones, &outcome);
            self.nodes.retire(&node);
        }
    }

    /// The kernel may have been told of other holes while the file was dirty.
    fn correct_holes(&self, node: &Node) {
        let told = node.told_holes.swap(u64::MAX, Ordering::AcqRel);
        let wrong = told != u64::MAX
            && node.state.try_read().is_none_or(|state| state.record.holes != told);
        if wrong {
            self.changed_behind(node.ino);
        }
    }

    fn is_gone(&self, ino: Ino) -> bool {
        match self.namespace.inode(ino) {
            Ok(row) => row.nlink == 0,
            Err(error) => matches!(error, MetadataError::NotFound),
        }
    }

    /// Blocks first, then rows: one flush, one transaction.
    fn make_durable(
        &self,
        locked: &mut [(&Arc<Node>, RwLockWriteGuard<'_, NodeState>)],
        hashed: &BTreeMap<Ino, Hashed>,
    ) -> Result<Vec<Result<bool, VfsError>>, VfsError> {
        let blocks: Vec<Block> =
            hashed.values().flat_map(|result| result.blocks.iter().cloned()).collect();
        let early = hashed.values().map(|result| result.appended).max().unwrap_or_default();
        let ticket = self.store.append(&blocks)?.max(early);
        failpoint::reach("vfs.commit.appended");
        let mut sealed: Vec<(&mut Staging, Vec<SealedLeaf>)> = Vec::new();
        for (node, state) in locked.iter_mut() {
            if let (Some(result), Some(staging)) = (hashed.get(&node.ino), state.staging.as_mut())
                && !result.sealed.is_empty()
            {
                sealed.push((staging, result.sealed.clone()));
            }
        }
        self.store.seal(&mut sealed)?;
        failpoint::reach("vfs.commit.sealed");
        self.store.sync(ticket)?;
        failpoint::reach("vfs.commit.durable");
        let commits: Vec<ContentCommit> =
            hashed.values().map(|result| result.commit.clone()).collect();
        let flags = match self.namespace.commit_contents(&commits) {
            Ok(flags) => flags.into_iter().map(Ok).collect(),
            // One row that is damaged or has no room in a quota fails no other.
            Err(_) if commits.len() > 1 => commits.iter().map(|one| self.commit_one(one)).collect(),
            Err(error) => return Err(error.into()),
        };
        failpoint::reach("vfs.commit.committed");
        Ok(flags)
    }

    /// What leaves no segment was read back: whether the disk has taken it.
    fn arrived(state: &mut NodeState, result: &Hashed) -> Result<(), VfsError> {
        match &mut state.staging {
            Some(staging) if result.sealed.is_empty() => Ok(staging.sync_bytes()?),
            _ => Ok(()),
        }
    }

    fn commit_one(&self, commit: &ContentCommit) -> Result<bool, VfsError> {
        let flags = self.namespace.commit_contents(std::slice::from_ref(commit))?;
        Ok(flags == [true])
    }

    /// The inode has its new root: what was staged is not needed any more.
    fn settle(
        &self,
        state: &mut NodeState,
        commit: &ContentCommit,
        kept: bool,
    ) -> Result<(), VfsError> {
        if let Some(staging) = state.staging.take() {
            self.charge(state);
            staging.discard_unless_sealed()?;
        }
        failpoint::reach("vfs.commit.settled");
        telemetry::metrics().vfs_commits.inc();
        state.leaves = None;
        *state.unlisted.get_mut() = 0;
        state.dirty = false;
        state.recorded = false;
        self.forget_record(commit.ino);
        if kept {
            state.record.content = commit.root;
            state.record.profile.clone_from(&commit.record.profile);
            state.record.size = commit.size;
            state.record.holes = commit.record.holes;
            state.stored_size = commit.size;
            state.record.version += 1;
        } else {
            self.namespace.stage_growth(commit.ino, 0, true)?;
        }
        Ok(())
    }

    /// Hashes what changed in a file. What is hashed when a block is found to be
    /// missing need not be the next time.
    fn hash(&self, node: &Arc<Node>, state: &mut NodeState) -> Result<Hashed, VfsError> {
        let mut hashes = std::mem::take(&mut state.hashes);
        let hashed = self.hash_with(node, state, &mut hashes);
        if hashed.is_err() {
            state.hashes = hashes;
        }
        hashed
    }

    fn hash_with(
        &self,
        node: &Arc<Node>,
        state: &mut NodeState,
        hashes: &mut Hashes,
    ) -> Result<Hashed, VfsError> {
        let record = state.record.clone();
        let numbers = self.policy_numbers(node.ino, &record)?;
        let Some(staging) = state.staging.as_mut() else {
            // Only times changed.
            let content = match &record.content {
                Some(root) => self.namespace.content(root)?,
                None => None,
            };
            let link =
                Link { cid: record.content.unwrap_or_default(), size: record.size, tsize: 0 };
            let fallback = self.new_record(numbers, &link, (1, true), &record.profile);
            let commit = ContentCommit {
                shared: false,
                ino: node.ino,
                version: record.version,
                root: record.content,
                record: content.unwrap_or(fallback),
                enqueue: false,
                size: record.size,
                mtime: record.mtime,
            };
            let (blocks, sealed) = (Vec::new(), Vec::new());
            return Ok(Hashed { commit, blocks, sealed, appended: PackTicket::default() });
        };
        let profile = self.options.profile;
        let mut blocks = Vec::new();
        let mut sealed = Vec::new();
        let base = self.base_of(&record, staging.original_size());
        let foreign = !record.profile.is_empty();
        let leaf_size = u64::from(profile.chunk_size);
        // A sync of it failed: what is read now may not be what was written.
        staging.check_poison()?;
        let StagedLeaves { data: dirty, zeros } = staging.leaves_to_commit(foreign)?;
        if staging.len() > leaf_size && staging.is_in_memory() && !dirty.is_empty() {
            staging.spill()?;
        }
        for index in &dirty {
            staging.complete_leaf(*index, &base)?;
        }
        let known = hashes.of(staging.id());
        let in_file = !staging.is_in_memory() && profile.raw_leaves;
        let mut changes = Changed { leaves: BTreeMap::new(), zeros };
        if !changes.zeros.is_empty()
            && let Some(link) = self.zeros.full(0)
        {
            blocks.push(Block { cid: link.cid, data: self.zeros.leaf_block() });
        }
        let mut seen = std::collections::HashSet::new();
        let mut appended = PackTicket::default();
        // Leaves that do not stay in the file go to the pack by and by: a file of
        // any size passes through this much memory.
        let together = (self.options.commit_bytes / 2 / THREADS as u64 / leaf_size).max(1);
        let together = if in_file { dirty.len() } else { together as usize };
        for part in dirty.chunks(together.max(1)) {
            if !blocks.is_empty() {
                appended = self.store.append(&std::mem::take(&mut blocks))?.max(appended);
            }
            for (index, link, block) in self.hash_leaves(&profile, staging, part, known)? {
                if seen.insert(link.cid) {
                    match block {
                        Some(data) => blocks.push(Block { cid: link.cid, data }),
                        None if in_file => {
                            known.insert(index, (staging.generation(index), link));
                            let (offset, len) = (index * leaf_size, link.size as u32);
                            sealed.push(SealedLeaf { cid: link.cid, offset, len });
                        }
                        None => {
                            let mut data = Vec::new();
                            staging.read_leaf(index, &mut data)?;
                            blocks.push(Block { cid: link.cid, data: Bytes::from(data) });
                        }
                    }
                }
                changes.leaves.insert(index, link);
            }
        }
        let base = match &record.content {
            Some(root) if !foreign => self.namespace.content(root)?.map(|base| (*root, base)),
            _ => None,
        };
        // What did not change is here only where what is below it was.
        let whole = base.as_ref().is_none_or(|(_, base)| base.is_here());
        let old = base.map(|(root, base)| Link {
            cid: root,
            size: staging.original_size(),
            tsize: base.tsize,
        });
        self.give_back(staging, &changes)?;
        let metrics = telemetry::metrics();
        metrics.vfs_leaves_hashed.inc_by(changes.leaves.len() as u64);
        let size = staging.len();
        let (root, count, holes) = if size == 0 {
            (None, 0, 0)
        } else {
            let mut nodes = Vec::new();
            let rebuilt = rebuild(
                &profile,
                old.as_ref(),
                size,
                (&changes, &self.zeros),
                &mut |id| self.load(id),
                &mut |cid, data| {
                    self.count_hashed(data.len() as u64);
                    nodes.push(Block { cid, data });
                    Ok::<(), ContentError>(())
                },
            )?;
            metrics.vfs_nodes_hashed.inc_by(rebuilt.nodes_hashed);
            blocks.extend(nodes);
            let holes = self.holes_after(record.holes, old.as_ref(), &changes, size)?;
            (Some(rebuilt.root), rebuilt.blocks, holes)
        };
        let link = root.unwrap_or(Link { cid: Cid::default(), size: 0, tsize: 0 });
        let commit = ContentCommit {
            shared: false,
            ino: node.ino,
            version: record.version,
            root: root.map(|root| root.cid),
            // What is not all here has no copy yet.
            enqueue: self.wants_copies(&numbers) || !whole,
            record: ContentRecord { holes, ..self.new_record(numbers, &link, (count, whole), "") },
            size,
            mtime: record.mtime,
        };
        Ok(Hashed { commit, blocks, sealed, appended })
    }

    /// What becomes a segment keeps no space for zeros, reserved or written.
    fn give_back(&self, staging: &Staging, changes: &Changed) -> Result<(), VfsError> {
        let chunk = u64::from(self.options.profile.chunk_size);
        let data = changes.leaves.iter().filter(|(_, link)| !self.zeros.covers(link));
        Ok(staging.give_back(data.map(|(at, link)| at * chunk..at * chunk + link.size))?)
    }

    /// The holes of a changed file: what it had, without those that were in
    /// changed leaves, and with the new ones. Costs what changed.
    fn holes_after(
        &self,
        before: u64,
        old: Option<&Link>,
        changes: &Changed,
        size: u64,
    ) -> Result<u64, VfsError> {
        let chunk = u64::from(self.options.profile.chunk_size);
        let of_leaves = changes.leaves.values().filter(|link| self.zeros.covers(link));
        let of_runs = changes.zeros.iter().map(|run| (run.end - run.start) * chunk);
        let new: u64 = of_leaves.map(|link| link.size).sum::<u64>() + of_runs.sum::<u64>();
        let Some(old) = old.filter(|_| before > 0) else { return Ok(new) };
        let mut leaves: Vec<Range<u64>> = changes.leaves.keys().map(|at| *at..at + 1).collect();
        leaves.extend(changes.zeros.iter().cloned());
        leaves.sort_by_key(|run| run.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let cut = size.min(old.size)..old.size;
        for range in leaves.iter().map(|run| run.start * chunk..run.end * chunk).chain([cut]) {
            match ranges.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        let gone = holes(old, &ranges, &self.zeros, &mut |id| self.load(id))?;
        Ok(before.saturating_sub(gone) + new)
    }

    fn wants_copies(&self, numbers: &[u32]) -> bool {
        self.replicator.wants_copies(&self.replicator.policies().of(numbers))
    }

    fn new_record(
        &self,
        numbers: Vec<u32>,
        link: &Link,
        (blocks, whole): (u64, bool),
        profile: &str,
    ) -> ContentRecord {
        let policy = self.replicator.policies().of(&numbers);
        let now: Timestamp = self.now();
        let local = CopyRecord {
            backend: BackendId::local(),
            state: CopyState::Verified,
            at: now,
            method: VerifyMethod::Written,
        };
        // What lies in a cache is no copy.
        let counts = whole && !self.replicator.registry().is_local_cache();
        let copies = if counts { vec![local] } else { Vec::new() };
        ContentRecord {
            size: link.size,
            tsize: link.tsize,
            blocks,
            refs: 0,
            profile: profile.to_owned(),
            min: policy.min,
            target: policy.target,
            max: policy.max,
            pin: self.replicator.judge(&policy, &copies),
            copies,
            holes: 0,
            policies: numbers,
            created_s: now.seconds,
            accessed_s: now.seconds,
        }
    }

    /// The commit that gives a new inode a content which is in the store.
    pub(super) fn content_commit(
        &self,
        ino: Ino,
        record: &InodeRecord,
        content: &GraftContent,
        mtime: Timestamp,
    ) -> Result<ContentCommit, VfsError> {
        let numbers = self.policy_numbers(ino, record)?;
        // What cannot be counted is no hole: the figure may be too low.
        let all = 0..content.link.size;
        let counted = holes(&content.link, &[all], &self.zeros, &mut |id| self.load(id));
        let holes = counted.unwrap_or_default();
        let enqueue = self.wants_copies(&numbers);
        let blocks = (content.blocks, true);
        let counted = self.new_record(numbers, &content.link, blocks, &content.profile);
        Ok(ContentCommit {
            shared: false,
            ino,
            version: record.version,
            root: Some(content.link.cid),
            record: ContentRecord { holes, ..counted },
            enqueue,
            size: content.link.size,
            mtime,
        })
    }
}
