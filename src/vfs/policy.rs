//! Which policy holds where, and how contents follow it.
//!
//! A change of a rule, or a move between rules, asks for a walk by a row in its own
//! transaction; a thread walks, and the row goes when the walk is over, so a crash
//! repeats it. A commit that computed its policy before such a change looks again
//! after it: what a walk passes by, the commit finds.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::io::Errno;

use super::{Vfs, VfsError};
use crate::metadata::{EventKind, InodeRecord, MetadataError, merge_policies};
use crate::replication::{Assignment, Policy, ReplicationError, expression, split_rule};
use crate::types::{Cid, FileKind, Ino, printable_path};

/// Contents of one transaction.
const BATCH: usize = 512;
/// Shared contents that a walk remembers (8 bytes each); beyond, they are never lowered.
const REMEMBERED: usize = 1 << 20;
/// Names that are looked at for the path of one that is set by an attribute: in a large
/// directory it would take longer than the change itself.
const NAMED_WITHIN: u64 = 4096;
/// After a walk failed.
const AGAIN: Duration = Duration::from_mins(1);

#[derive(Default)]
struct Wake {
    asked: bool,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    wake: Mutex<Wake>,
    changed: Condvar,
}

/// Walks that follow changes of policies.
#[derive(Default)]
pub(super) struct Policies {
    shared: Arc<Shared>,
    /// Some inode may have a policy of its own.
    ruled: AtomicBool,
    /// Rises when the policy of an inode may have become another.
    changes: AtomicU64,
    /// Names that inodes use and nobody defines.
    undefined: RwLock<BTreeSet<String>>,
}

impl Drop for Policies {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Policies {
    pub fn stop(&self) {
        self.shared.wake.lock().stopped = true;
        self.shared.changed.notify_all();
    }

    fn wake(&self) {
        self.shared.wake.lock().asked = true;
        self.shared.changed.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.shared.wake.lock().stopped
    }

    /// Starts the thread; it takes up what was due before.
    pub fn start(vfs: &Arc<Vfs>) -> Result<(), VfsError> {
        let due = !vfs.namespace.walks_due()?.is_empty();
        vfs.policies.ruled.store(due, Ordering::Release);
        vfs.policies.shared.wake.lock().asked = true;
        let (shared, weak) = (Arc::clone(&vfs.policies.shared), Arc::downgrade(vfs));
        let work = move || {
            let mut pause = None;
            loop {
                {
                    let mut wake = shared.wake.lock();
                    while !wake.asked && !wake.stopped {
                        match pause {
                            Some(pause)
                                if shared.changed.wait_for(&mut wake, pause).timed_out() =>
                            {
                                break;
                            }
                            Some(_) => {}
                            None => shared.changed.wait(&mut wake),
                        }
                    }
                    if wake.stopped {
                        return;
                    }
                    wake.asked = false;
                }
                let Some(vfs) = weak.upgrade() else { return };
                let walked = vfs.walk_due();
                if shared.wake.lock().stopped {
                    return;
                }
                pause = walked.err().map(|error| {
                    tracing::warn!(%error, "contents do not follow their policies yet; it is tried again");
                    AGAIN
                });
            }
        };
        let started = std::thread::Builder::new().name("cairn-policy".into()).spawn(work);
        started.map_err(|e| VfsError::Replication(e.into()))?;
        Ok(())
    }
}

/// Digests are uniform: their first bytes tell contents apart. A clash would
/// keep a policy too many, never one too few.
fn short(root: &Cid) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(root.hash().digest()) {
        *to = *from;
    }
    u64::from_be_bytes(bytes)
}

/// A walk under way.
struct Walk<'v> {
    vfs: &'v Vfs,
    whole: bool,
    /// Shared contents that were met.
    seen: HashSet<u64>,
    batch: HashMap<Cid, Assignment>,
    contents: u64,
}

impl Walk<'_> {
    fn content(&mut self, root: Cid, numbers: Vec<u32>) -> Result<(), VfsError> {
        if let Some(known) = self.batch.get_mut(&root) {
            merge_policies(&mut known.numbers, &numbers);
            return Ok(());
        }
        let first = !self.seen.contains(&short(&root));
        let whole = self.whole && first && self.seen.len() < REMEMBERED;
        self.batch.insert(root, Assignment { numbers, whole });
        self.contents += u64::from(first);
        if self.batch.len() == BATCH { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), VfsError> {
        if self.vfs.policies.is_stopped() {
            return Err(Errno::SHUTDOWN.into());
        }
        let shared = self.vfs.replicator.assign(&std::mem::take(&mut self.batch))?;
        if self.whole && self.seen.len() < REMEMBERED {
            self.seen.extend(shared.iter().map(short));
        }
        Ok(())
    }
}

impl Vfs {
    /// The volume's policy for what is written from now on, with this mount's
    /// options over it.
    pub fn set_policy(&self, policy: Policy) {
        *self.policy.write() = policy;
        self.policy_changed();
    }

    /// Commits that are under way look at their policy again.
    fn policy_changed(&self) {
        self.policies.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// What [`Vfs::policy_changed`] counts.
    pub(super) fn policy_changes(&self) -> u64 {
        self.policies.changes.load(Ordering::Acquire)
    }

    /// Definitions changed: names are looked for again.
    pub fn definitions_changed(&self) {
        self.policy_changed();
        self.policies.wake();
    }

    /// Names of policies that files and directories use and nobody defines.
    pub fn undefined_policies(&self) -> Vec<String> {
        let candidates = self.replicator.policies().undefined();
        self.policies.undefined.read().intersection(&candidates).cloned().collect()
    }

    /// The policy that holds for an inode: the volume's, and over it what is set at
    /// each directory on the way, and at itself.
    pub fn policy_of(&self, ino: Ino) -> Result<Policy, VfsError> {
        let inode = self.record(ino)?;
        self.policy_below((ino != Ino::ROOT).then_some(inode.parent), &inode.policy)
    }

    /// The policy of what has `text` as its own, in `directory`.
    fn policy_below(&self, directory: Option<Ino>, text: &str) -> Result<Policy, VfsError> {
        let rules = self.rules(directory, text)?;
        let base = self.policy.read().clone();
        if rules.is_empty() {
            return Ok(base);
        }
        Ok(self.replicator.policies().resolve(&base, &rules).policy)
    }

    /// Of a file whose own state is locked here; its directories' are not.
    pub(super) fn policy_of_locked(&self, record: &InodeRecord) -> Result<Policy, VfsError> {
        self.policy_below(Some(record.parent), &record.policy)
    }

    /// What is set on the way to an inode, the root's first, each with where.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn rules_at(&self, ino: Ino) -> Result<Vec<(Ino, String)>, VfsError> {
        let (mut rules, mut next) = (Vec::new(), Some(ino));
        while let Some(at) = next {
            let inode = match self.record(at) {
                // A directory that is gone (its file is still open) has nothing
                // more to say.
                Err(VfsError::Metadata(MetadataError::NotFound)) if at != ino => break,
                other => other?,
            };
            next = (at != Ino::ROOT).then_some(inode.parent);
            if !inode.policy.is_empty() {
                rules.push((at, inode.policy));
            }
        }
        rules.reverse();
        Ok(rules)
    }

    fn rules(&self, directory: Option<Ino>, text: &str) -> Result<Vec<String>, VfsError> {
        let above = match directory {
            Some(at) => match self.rules_at(at) {
                Err(VfsError::Metadata(MetadataError::NotFound)) => Vec::new(),
                other => other?,
            },
            None => Vec::new(),
        };
        let mut rules: Vec<String> = above.into_iter().map(|(_, rule)| rule).collect();
        if !text.is_empty() {
            rules.push(text.to_owned());
        }
        Ok(rules)
    }

    fn has_rules(&self) -> bool {
        self.policies.ruled.load(Ordering::Acquire) || !self.replicator.policies().is_plain()
    }

    /// The number of rules; 0 when there is none left for them.
    fn number_of(&self, mount: &str, rules: &[String]) -> Result<u32, VfsError> {
        match self.replicator.policy_number(&expression(mount, rules)) {
            Err(error @ ReplicationError::TooManyPolicies(_)) => {
                tracing::warn!(%error, "a content gets the volume's own policy");
                Ok(0)
            }
            other => Ok(other?),
        }
    }

    /// Numbers of the policies that hold for a file: one a directory that has a name
    /// for it.
    pub(super) fn policy_numbers(
        &self,
        ino: Ino,
        record: &InodeRecord,
    ) -> Result<Vec<u32>, VfsError> {
        let mount = &self.options.mount_rule;
        if mount.is_empty() && !self.has_rules() {
            return Ok(Vec::new());
        }
        let parents = match record.nlink {
            0 | 1 => vec![record.parent],
            _ => self.namespace.parents(ino)?,
        };
        let mut numbers: Option<Vec<u32>> = None;
        for parent in parents {
            let number = self.number_of(mount, &self.rules(Some(parent), &record.policy)?)?;
            let one = if number == 0 { Vec::new() } else { vec![number] };
            match &mut numbers {
                Some(all) => merge_policies(all, &one),
                None => numbers = Some(one),
            }
        }
        Ok(numbers.unwrap_or_default())
    }

    /// Whether what moves between these directories comes under another policy.
    pub(super) fn is_ruled_apart(&self, from: Ino, to: Ino) -> Result<bool, VfsError> {
        Ok(from != to
            && self.has_rules()
            && self.rules(Some(from), "")? != self.rules(Some(to), "")?)
    }

    /// After a rename or a new name: what is there now follows its policy. `due`: a
    /// walk was asked for already.
    pub(super) fn moved(&self, inos: &[Ino], dirs: (Ino, Ino), due: bool) -> Result<(), VfsError> {
        // A rule that was set meanwhile may have missed it.
        if !due {
            if !self.is_ruled_apart(dirs.0, dirs.1)? {
                return Ok(());
            }
            for ino in inos {
                self.namespace.request_walk(*ino)?;
            }
        }
        self.policy_changed();
        self.policies.wake();
        Ok(())
    }

    /// Whether a rule can be set at an inode, and its policy then.
    ///
    /// # Errors
    /// `InvalidPolicy`.
    pub fn check_rule(&self, ino: Ino, rule: &str) -> Result<Policy, VfsError> {
        let inode = self.record(ino)?;
        let inherited = self.policy_below((ino != Ino::ROOT).then_some(inode.parent), "")?;
        let base = self.policy.read().clone();
        let checked = self.replicator.policies().check_rule(&base, &inherited, rule);
        checked.map_err(|error| VfsError::InvalidPolicy(error.to_string()))
    }

    /// Sets what holds at an inode, over what it inherits; empty inherits. The
    /// contents follow in the background.
    ///
    /// # Errors
    /// `InvalidPolicy`; ENOSPC for one too many; of the metadata.
    pub fn set_policy_at(&self, ino: Ino, rule: &str) -> Result<(), VfsError> {
        self.set_rule(ino, rule)?;
        self.policies.wake();
        let path = self.namespace.path_within(ino, NAMED_WITHIN).unwrap_or_default();
        let subject = match path {
            Some(path) => printable_path(&path),
            None => format!("inode {ino}"),
        };
        self.replicator.events().emit(EventKind::PolicySet, &subject, rule);
        Ok(())
    }

    /// As [`Vfs::set_policy_at`], and the contents follow at once; how many.
    ///
    /// # Errors
    /// As there; the background goes on then.
    pub fn set_policy_now(
        &self,
        ino: Ino,
        rule: &str,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, VfsError> {
        self.set_rule(ino, rule)?;
        self.converge(ino, progress)
    }

    fn set_rule(&self, ino: Ino, rule: &str) -> Result<(), VfsError> {
        self.refuse_read_only()?;
        self.check_rule(ino, rule)?;
        self.refuse_busy(ino)?;
        let inode = self.record(ino)?;
        let rules = self.rules((ino != Ino::ROOT).then_some(inode.parent), rule)?;
        // From here on, all look at what is set on the way.
        self.replicator.policy_number(&expression("", &rules))?;
        self.namespace.set_policy(ino, rule)?;
        self.reload(&[ino])?;
        self.policy_changed();
        Ok(())
    }

    /// Contents that are not committed are, and those below an inode follow their
    /// policies; how many.
    ///
    /// # Errors
    /// Of the metadata; the background goes on then, if it was due.
    pub fn converge(&self, ino: Ino, progress: &mut dyn FnMut(u64)) -> Result<u64, VfsError> {
        let done = self.commit_all().and_then(|()| self.walk(ino, progress));
        done.inspect_err(|_| self.policies.wake())
    }

    fn walk_due(&self) -> Result<(), VfsError> {
        loop {
            let due = self.namespace.walks_due()?;
            if due.is_empty() {
                break;
            }
            for (ino, _) in due {
                self.walk(ino, &mut |_| {})?;
            }
        }
        self.look_for_undefined()
    }

    fn look_for_undefined(&self) -> Result<(), VfsError> {
        let candidates = self.replicator.policies().undefined();
        let mut used = BTreeSet::new();
        if !candidates.is_empty() {
            self.namespace.each_policy(&mut |_, text| {
                let name = split_rule(text).0.filter(|name| candidates.contains(*name));
                used.extend(name.map(str::to_owned));
                if used.len() == candidates.len() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        }
        for name in &used {
            tracing::warn!(name, "files use a policy that is not defined: what they inherit holds");
        }
        *self.policies.undefined.write() = used;
        Ok(())
    }

    /// Gives every content below `top` the policies of the files that have it, and
    /// queues what is missing. A content that is used outside of `top` as well keeps
    /// what it has; from the root, all is worked out anew.
    fn walk(&self, top: Ino, progress: &mut dyn FnMut(u64)) -> Result<u64, VfsError> {
        let due = self.namespace.walks_due()?;
        let token = due.into_iter().find(|(ino, _)| *ino == top).map(|(_, token)| token);
        let (whole, seen, batch) = (top == Ino::ROOT, HashSet::new(), HashMap::new());
        let mut walk = Walk { vfs: self, whole, seen, batch, contents: 0 };
        match self.namespace.inode(top) {
            Ok(inode) if inode.kind == FileKind::Directory => {
                self.walk_directory(&mut walk, top, progress)?;
            }
            Ok(inode) => self.walk_file(&mut walk, top, &inode, None)?,
            Err(MetadataError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
        walk.write()?;
        if let Some(token) = token {
            self.namespace.walk_done(top, token)?;
        }
        Ok(walk.contents)
    }

    fn walk_directory(
        &self,
        walk: &mut Walk<'_>,
        top: Ino,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), VfsError> {
        let rules: Vec<String> = self.rules_at(top)?.into_iter().map(|(_, rule)| rule).collect();
        let mut stack = vec![(top, Arc::new(rules))];
        while let Some((directory, rules)) = stack.pop() {
            let mut after = 0;
            loop {
                let page = match self.namespace.read_directory(directory, after, 1024) {
                    Err(MetadataError::NotFound) => break,
                    other => other?,
                };
                after = page.entries.last().map_or(after, |(_, dentry)| dentry.cookie);
                for (_, dentry) in &page.entries {
                    let inode = match self.namespace.inode(dentry.ino) {
                        Err(MetadataError::NotFound) => continue,
                        other => other?,
                    };
                    let mut below = Arc::clone(&rules);
                    if !inode.policy.is_empty() {
                        Arc::make_mut(&mut below).push(inode.policy.clone());
                    }
                    if inode.kind == FileKind::Directory {
                        stack.push((dentry.ino, below));
                    } else {
                        self.walk_file(walk, dentry.ino, &inode, Some(&below))?;
                    }
                }
                progress(walk.contents);
                if self.policies.is_stopped() {
                    return Err(Errno::SHUTDOWN.into());
                }
                if page.last {
                    break;
                }
            }
        }
        Ok(())
    }

    /// `rules`: those on the way and its own, when it was met on the only one.
    fn walk_file(
        &self,
        walk: &mut Walk<'_>,
        ino: Ino,
        inode: &InodeRecord,
        rules: Option<&Arc<Vec<String>>>,
    ) -> Result<(), VfsError> {
        let Some(root) = inode.content else { return Ok(()) };
        let numbers = match rules.filter(|_| inode.nlink <= 1) {
            Some(rules) => match self.number_of("", rules)? {
                0 => Vec::new(),
                number => vec![number],
            },
            None => self.policy_numbers(ino, inode)?,
        };
        walk.content(root, numbers)
    }

    /// Files that were committed while policies changed follow them.
    pub(super) fn follow_policies(&self, inos: impl Iterator<Item = Ino>) {
        for ino in inos {
            let followed = self.namespace.request_walk(ino);
            if let Err(error) = followed {
                tracing::warn!(%error, %ino, "a content may have the policy that held before");
            }
        }
        self.policies.wake();
    }
}
