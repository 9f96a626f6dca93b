//! The one way from staged bytes to content.
//!
//! A batch of files is hashed, its blocks are made durable with one flush, and
//! the inodes get their new roots in one transaction (decision 0001). Each
//! file's state is locked while its batch runs: a write that comes meanwhile
//! waits, and none is lost. A failure stays with the file, which keeps its
//! staged bytes and is tried again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLockWriteGuard};

use super::node::{Node, NodeState};
use super::{GraftContent, Vfs, VfsError};
use crate::content::{Changed, ContentError, Link, Profile, holes, leaf, rebuild};
use crate::metadata::{
    ContentCommit, ContentRecord, CopyRecord, CopyState, InodeRecord, MetadataError, VerifyMethod,
};
use crate::replication::Policy;
use crate::store::{SealedLeaf, StagedLeaves, Staging};
use crate::telemetry;
use crate::types::{BackendId, Block, Cid, Ino, Timestamp};

/// Files of one batch.
const BATCH_FILES: usize = 256;
/// A file above this many bytes is a batch of its own.
const LARGE_BYTES: u64 = 16 << 20;
/// How long a file that nobody waits for waits for others: a flush for many.
const LINGER: Duration = Duration::from_millis(50);
/// Threads that commit.
const THREADS: usize = 2;

/// Tells one waiter how its commit ended.
#[derive(Default)]
struct Done {
    result: Mutex<Option<Result<(), (super::Errno, String)>>>,
    ended: Condvar,
}

struct Request {
    node: Arc<Node>,
    done: Option<Arc<Done>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Since when the first of them waits.
    since: Option<Instant>,
    /// Somebody waits for one, or memory is short: no lingering.
    hurried: bool,
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
}

/// What hashing a file gave.
struct Hashed {
    commit: ContentCommit,
    /// Blocks for the pack.
    blocks: Vec<Block>,
    /// Leaves that stay in the staging file.
    sealed: Vec<SealedLeaf>,
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
        Ok(())
    }

    pub fn stop(&self) {
        self.queue.lock().stopped = true;
        self.wake.notify_all();
    }

    /// Forgets what waits, as a crash does.
    #[cfg(test)]
    pub fn abandon(&self) {
        let mut queue = self.queue.lock();
        queue.stopped = true;
        queue.waiting.clear();
        self.wake.notify_all();
    }

    fn push(&self, node: &Arc<Node>, done: Option<Arc<Done>>) {
        if done.is_none() && node.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut queue = self.queue.lock();
        queue.hurried |= done.is_some();
        queue.since.get_or_insert_with(Instant::now);
        queue.waiting.push_back(Request { node: Arc::clone(node), done });
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

    /// The next batch; `None` to look whether the vfs still lives.
    fn take(&self) -> Option<Vec<Request>> {
        let mut queue = self.queue.lock();
        if queue.waiting.is_empty() && !queue.stopped {
            self.wake.wait_for(&mut queue, Duration::from_millis(500));
        }
        while !queue.waiting.is_empty()
            && let Some(left) = queue.linger()
        {
            self.wake.wait_for(&mut queue, left);
        }
        let mut batch: Vec<Request> = Vec::new();
        while let Some(request) = queue.waiting.pop_front() {
            let large =
                request.node.state.try_read().is_none_or(|state| state.record.size > LARGE_BYTES);
            if large && !batch.is_empty() {
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
        (!batch.is_empty()).then_some(batch)
    }
}

fn work(weak: &Weak<Vfs>) {
    loop {
        let Some(vfs) = weak.upgrade() else { return };
        vfs.write_due_access_times();
        match vfs.committer.take() {
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

    /// Commits a file and waits until it is durable locally.
    pub(super) fn commit_now(&self, node: &Arc<Node>) -> Result<(), VfsError> {
        if !node.state.read().dirty {
            return Ok(());
        }
        let done = Arc::new(Done::default());
        self.committer.push(node, Some(Arc::clone(&done)));
        let mut result = done.result.lock();
        loop {
            match result.take() {
                Some(Ok(())) => return Ok(()),
                Some(Err((errno, text))) => return Err(VfsError::Latched(errno, text)),
                None => done.ended.wait(&mut result),
            }
        }
    }

    /// Commits everything dirty, durable locally, rows included.
    ///
    /// # Errors
    /// The first failure.
    pub fn commit_all(&self) -> Result<(), VfsError> {
        let mut waiting = Vec::new();
        for node in self.nodes.all() {
            let dirty = node.state.read();
            if dirty.dirty && dirty.record.nlink > 0 {
                drop(dirty);
                let done = Arc::new(Done::default());
                self.committer.push(&node, Some(Arc::clone(&done)));
                waiting.push(done);
            }
        }
        let mut first = Ok(());
        for done in waiting {
            let mut result = done.result.lock();
            while result.is_none() {
                done.ended.wait(&mut result);
            }
            if let Some(Err((errno, text))) = result.take()
                && first.is_ok()
            {
                first = Err(VfsError::Latched(errno, text));
            }
        }
        first?;
        Ok(self.namespace.engine().persist()?)
    }

    fn commit_batch(&self, requests: Vec<Request>) {
        let mut nodes: BTreeMap<Ino, (Arc<Node>, Vec<Arc<Done>>)> = BTreeMap::new();
        for request in requests {
            request.node.queued.store(false, Ordering::Release);
            let entry = nodes
                .entry(request.node.ino)
                .or_insert_with(|| (Arc::clone(&request.node), Vec::new()));
            entry.1.extend(request.done);
        }
        // In the order of their numbers: two batches cannot wait for each other.
        let mut locked: Vec<(&Arc<Node>, RwLockWriteGuard<'_, NodeState>)> =
            nodes.values().map(|(node, _)| (node, node.state.write())).collect();
        let mut failures: BTreeMap<Ino, VfsError> = BTreeMap::new();
        let mut hashed: BTreeMap<Ino, Hashed> = BTreeMap::new();
        for (node, state) in &mut locked {
            // What has no name is committed only for who asks.
            let wanted = nodes.get(&node.ino).is_some_and(|(_, dones)| !dones.is_empty());
            if !state.dirty || (state.record.nlink == 0 && !wanted) {
                continue;
            }
            match self.hash(node, state) {
                Ok(result) => drop(hashed.insert(node.ino, result)),
                Err(error) => drop(failures.insert(node.ino, error)),
            }
        }
        let committed = self.make_durable(&mut locked, &hashed);
        let mut roots = Vec::new();
        match committed {
            Ok(flags) => {
                for ((ino, result), kept) in hashed.iter().zip(flags) {
                    let Some((_, state)) = locked.iter_mut().find(|(node, _)| node.ino == *ino)
                    else {
                        continue;
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
        for (node, state) in &mut locked {
            let waited_for = nodes.get(&node.ino).is_some_and(|(_, dones)| !dones.is_empty());
            if let Some(error) = failures.get(&node.ino) {
                tracing::error!(ino = %node.ino, %error, "a file could not be committed; its bytes are kept");
                if !waited_for {
                    state.error = Some((error.errno(), error.to_string()));
                }
            }
        }
        drop(locked);
        self.replicator.submit(&roots);
        for ino in hashed.keys() {
            if let Err(error) = self.content_changed(*ino) {
                tracing::warn!(%error, %ino, "directory CIDs above a file are not forgotten");
                self.directories.clear();
            }
        }
        for (node, _) in nodes.values() {
            self.correct_holes(node);
        }
        for (ino, (node, dones)) in nodes {
            for done in dones {
                let outcome =
                    failures.get(&ino).map_or(Ok(()), |e| Err((e.errno(), e.to_string())));
                *done.result.lock() = Some(outcome);
                done.ended.notify_all();
            }
            self.nodes.retire(&node);
        }
    }

    /// The kernel may have been told of other holes while the file was dirty.
    fn correct_holes(&self, node: &Node) {
        let told = node.told_holes.swap(u64::MAX, Ordering::AcqRel);
        let wrong = told != u64::MAX
            && node.state.try_read().is_none_or(|state| state.record.holes != told);
        if wrong && let Some(kernel) = self.kernel.read().as_ref() {
            kernel.invalidate_attributes(node.ino);
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
    ) -> Result<Vec<bool>, VfsError> {
        let blocks: Vec<Block> =
            hashed.values().flat_map(|result| result.blocks.iter().cloned()).collect();
        // A collection spares the blocks until their rows are there.
        let _commit = self.store.begin_commit();
        let ticket = self.store.append(&blocks)?;
        let mut sealed: Vec<(&mut Staging, Vec<SealedLeaf>)> = Vec::new();
        for (node, state) in locked.iter_mut() {
            if let (Some(result), Some(staging)) = (hashed.get(&node.ino), state.staging.as_mut())
                && !result.sealed.is_empty()
            {
                sealed.push((staging, result.sealed.clone()));
            }
        }
        self.store.seal(&mut sealed)?;
        self.store.sync(ticket)?;
        let commits: Vec<ContentCommit> =
            hashed.values().map(|result| result.commit.clone()).collect();
        Ok(self.namespace.commit_contents(&commits)?)
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
        telemetry::metrics().vfs_commits.inc();
        state.leaves = None;
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

    /// Hashes what changed in a file.
    fn hash(&self, node: &Arc<Node>, state: &mut NodeState) -> Result<Hashed, VfsError> {
        let record = state.record.clone();
        let policy = self.policy_of_locked(&record)?;
        let hashes = std::mem::take(&mut state.hashes);
        let Some(staging) = state.staging.as_mut() else {
            // Only times changed.
            let content = match &record.content {
                Some(root) => self.namespace.content(root)?,
                None => None,
            };
            let link =
                Link { cid: record.content.unwrap_or_default(), size: record.size, tsize: 0 };
            let fallback = self.new_record(&policy, &link, 1, &record.profile);
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
            return Ok(Hashed { commit, blocks: Vec::new(), sealed: Vec::new() });
        };
        let profile = self.options.profile;
        let mut blocks = Vec::new();
        let mut sealed = Vec::new();
        let base = self.base_of(&record, staging.original_size());
        let foreign = !record.profile.is_empty();
        let leaf_size = u64::from(profile.chunk_size);
        let StagedLeaves { data: dirty, zeros } = staging.leaves_to_commit(foreign)?;
        if staging.len() > leaf_size && staging.is_in_memory() && !dirty.is_empty() {
            staging.spill()?;
        }
        for index in &dirty {
            staging.complete_leaf(*index, &base)?;
        }
        let known = hashes.of(staging.id());
        let changed = self.hash_leaves(&profile, staging, &dirty, &known)?;
        let in_file = !staging.is_in_memory() && profile.raw_leaves;
        let mut changes = Changed { leaves: BTreeMap::new(), zeros };
        if !changes.zeros.is_empty()
            && let Some(link) = self.zeros.full(0)
        {
            blocks.push(Block { cid: link.cid, data: self.zeros.leaf_block() });
        }
        let mut seen = std::collections::HashSet::new();
        for (index, link, block) in changed {
            if seen.insert(link.cid) {
                match block {
                    Some(data) => blocks.push(Block { cid: link.cid, data }),
                    None if in_file => {
                        let len = link.size as u32;
                        sealed.push(SealedLeaf { cid: link.cid, offset: index * leaf_size, len });
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
        let old = match &record.content {
            Some(root) if !foreign => self.namespace.content(root)?.map(|content| Link {
                cid: *root,
                size: staging.original_size(),
                tsize: content.tsize,
            }),
            _ => None,
        };
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
            record: ContentRecord { holes, ..self.new_record(&policy, &link, count, "") },
            enqueue: self.replicator.wants_copies(&policy),
            size,
            mtime: record.mtime,
        };
        Ok(Hashed { commit, blocks, sealed })
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

    /// Hashes leaves, in parallel when there are many.
    fn hash_leaves(
        &self,
        profile: &Profile,
        staging: &Staging,
        dirty: &[u64],
        known: &BTreeMap<u64, (u64, Link)>,
    ) -> Result<Vec<(u64, Link, Option<Bytes>)>, VfsError> {
        let one = |index: u64, buffer: &mut Vec<u8>| {
            if let Some((generation, link)) = known.get(&index)
                && *generation == staging.generation(index)
            {
                return Ok((index, *link, None));
            }
            staging.read_leaf(index, buffer)?;
            self.count_hashed(buffer.len() as u64);
            let (link, block) = leaf(profile, buffer);
            Ok::<_, VfsError>((index, link, block))
        };
        let threads = self.options.hash_threads.clamp(1, dirty.len().div_ceil(4).max(1));
        if threads == 1 {
            let mut buffer = Vec::new();
            return dirty.iter().map(|index| one(*index, &mut buffer)).collect();
        }
        let part = dirty.len().div_ceil(threads);
        std::thread::scope(|scope| {
            let workers: Vec<_> = dirty
                .chunks(part)
                .map(|indexes| {
                    let one = &one;
                    scope.spawn(move || {
                        let mut buffer = Vec::new();
                        indexes
                            .iter()
                            .map(|index| one(*index, &mut buffer))
                            .collect::<Result<Vec<_>, _>>()
                    })
                })
                .collect();
            let mut all = Vec::with_capacity(dirty.len());
            for worker in workers {
                match worker.join() {
                    Ok(hashed) => all.extend(hashed?),
                    Err(_) => return Err(VfsError::Posix(rustix::io::Errno::IO)),
                }
            }
            Ok(all)
        })
    }

    /// Of a file whose own state is locked here; its directories' are not.
    pub(super) fn policy_of_locked(&self, record: &InodeRecord) -> Result<Policy, VfsError> {
        self.policy_below(Some(record.parent), &record.policy)
    }

    fn new_record(
        &self,
        policy: &Policy,
        link: &Link,
        blocks: u64,
        profile: &str,
    ) -> ContentRecord {
        let now: Timestamp = self.now();
        let copies = vec![CopyRecord {
            backend: BackendId::local(),
            state: CopyState::Verified,
            at: now,
            method: VerifyMethod::Written,
        }];
        ContentRecord {
            size: link.size,
            tsize: link.tsize,
            blocks,
            refs: 0,
            profile: profile.to_owned(),
            min: policy.min,
            target: policy.target,
            max: policy.max,
            pin: self.replicator.judge(policy.min, policy.target, policy.max, &copies),
            copies,
            holes: 0,
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
        let policy = self.policy_of_locked(record)?;
        // What cannot be counted is no hole: the figure may be too low.
        let all = 0..content.link.size;
        let counted = holes(&content.link, &[all], &self.zeros, &mut |id| self.load(id));
        let holes = counted.unwrap_or_default();
        let counted = self.new_record(&policy, &content.link, content.blocks, &content.profile);
        Ok(ContentCommit {
            shared: false,
            ino,
            version: record.version,
            root: Some(content.link.cid),
            record: ContentRecord { holes, ..counted },
            enqueue: self.replicator.wants_copies(&policy),
            size: content.link.size,
            mtime,
        })
    }
}
