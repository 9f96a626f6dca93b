//! Which commits a transaction must be compared with when it ends.
//!
//! fjall's own optimistic transactions keep what every commit wrote for as long as
//! any snapshot is open, and look through all of it at each commit: while a
//! checkpoint reads a large volume, commits become slower and slower and memory
//! grows by a kilobyte each (measured: 1 GiB for a million files made beside two
//! checkpoints). Here only running transactions count, and they are short.
//!
//! Three things make it serializable, in the order of the commits:
//! - commits come one at a time, each with its check, under one lock;
//! - snapshots are taken under that lock, too: fjall publishes a sequence number
//!   also after each flush and compaction, and a snapshot of that moment would see
//!   half of a commit that is being applied;
//! - what a commit wrote is kept while a transaction runs that did not see it, and
//!   a transaction that is older than what is kept is a conflict.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

/// Bytes of keys that are kept for running transactions; one that is so slow that
/// they do not suffice begins again.
const KEPT_BYTES: usize = 8 << 20;
/// What a key takes beside its bytes.
const KEY_BYTES: usize = 48;

/// What a transaction has read.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Also those that were not there.
    pub keys: Vec<Vec<u8>>,
    /// First key, and the first key after it; whole, even if the scan ended early.
    pub ranges: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Reads {
    /// Before the commit's lock is taken: a large transaction reads thousands.
    pub fn sort(&mut self) {
        self.keys.sort_unstable();
    }

    fn meet(&self, key: &[u8]) -> bool {
        self.keys.binary_search_by(|read| read.as_slice().cmp(key)).is_ok()
            || self
                .ranges
                .iter()
                .any(|(start, end)| start.as_slice() <= key && key < end.as_slice())
    }
}

/// What one commit wrote.
#[derive(Debug)]
struct Written {
    number: u64,
    keys: Vec<Vec<u8>>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Commits so far, also those whose write failed: it may have left something.
    commits: u64,
    /// What was written by commits that running transactions did not see, oldest
    /// first.
    written: VecDeque<Written>,
    /// Bytes of it.
    bytes: usize,
    /// The newest commit that was dropped though a transaction may not have seen it.
    forgotten: u64,
    /// Running transactions, by the number of commits that they saw.
    running: BTreeMap<u64, usize>,
}

/// The transactions that run, and what was committed beside them.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    state: Mutex<State>,
}

/// A running transaction; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Running<'c> {
    conflicts: &'c Conflicts,
    saw: u64,
}

impl Conflicts {
    /// Begins a transaction on the snapshot that `take` takes.
    pub fn begin<S>(&self, take: impl FnOnce() -> S) -> (Running<'_>, S) {
        let mut state = self.state.lock();
        let snapshot = take();
        let saw = state.commits;
        *state.running.entry(saw).or_default() += 1;
        drop(state);
        (Running { conflicts: self, saw }, snapshot)
    }

    /// Takes a snapshot while nothing is being committed.
    pub fn between_commits<S>(&self, take: impl FnOnce() -> S) -> S {
        let _state = self.state.lock();
        take()
    }
}

impl State {
    fn is_changed(&self, saw: u64, reads: &Reads) -> bool {
        let unseen = self.written.partition_point(|written| written.number <= saw);
        saw < self.forgotten
            || self.written.range(unseen..).flat_map(|w| &w.keys).any(|key| reads.meet(key))
    }

    fn note(&mut self, keys: Vec<Vec<u8>>) {
        self.commits += 1;
        // Nobody else runs: nobody will ask.
        if self.running.values().sum::<usize>() <= 1 {
            return;
        }
        let bytes = keys.iter().map(|key| key.len() + KEY_BYTES).sum();
        self.bytes += bytes;
        self.written.push_back(Written { number: self.commits, keys, bytes });
        while self.bytes > KEPT_BYTES
            && let Some(oldest) = self.written.pop_front()
        {
            self.bytes -= oldest.bytes;
            self.forgotten = oldest.number;
        }
    }

    fn end(&mut self, saw: u64) {
        if let Some(count) = self.running.get_mut(&saw) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(&saw);
            }
        }
        let oldest = self.running.first_key_value().map_or(u64::MAX, |(saw, _)| *saw);
        while let Some(seen) = self.written.pop_front_if(|written| written.number <= oldest) {
            self.bytes -= seen.bytes;
        }
    }
}

impl Running<'_> {
    /// Commits by `write`, unless something of `reads` (sorted) has changed since
    /// the beginning: then `None`. One at a time.
    pub fn commit<E>(
        self,
        reads: &Reads,
        keys: Vec<Vec<u8>>,
        write: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<()>, E> {
        let mut state = self.conflicts.state.lock();
        if state.is_changed(self.saw, reads) {
            drop(state);
            return Ok(None);
        }
        // Before the write: one that fails or panics may have written a part.
        state.note(keys);
        write()?;
        drop(state);
        Ok(Some(()))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.conflicts.state.lock().end(self.saw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Vec<u8> {
        text.as_bytes().to_vec()
    }

    fn commit(running: Running<'_>, reads: &[&str], writes: &[&str]) -> bool {
        let reads = Reads { keys: reads.iter().map(|k| key(k)).collect(), ranges: Vec::new() };
        let keys = writes.iter().map(|k| key(k)).collect();
        running.commit(&reads, keys, || Ok::<(), ()>(())).unwrap().is_some()
    }

    #[test]
    fn only_what_was_read_and_changed_since_is_a_conflict() {
        let conflicts = Conflicts::default();
        let (one, two, three) =
            (conflicts.begin(|| ()).0, conflicts.begin(|| ()).0, conflicts.begin(|| ()).0);
        assert!(commit(one, &["a"], &["a", "b"]));
        assert!(!commit(two, &["b"], &["c"]));
        assert!(commit(three, &["c"], &["a"]), "blind writes do not conflict");
        let after = conflicts.begin(|| ()).0;
        assert!(commit(after, &["a", "b"], &["a"]), "it saw them");
    }

    #[test]
    fn a_range_conflicts_with_a_key_inside_only() {
        let conflicts = Conflicts::default();
        let reads = Reads { keys: Vec::new(), ranges: vec![(key("b"), key("d"))] };
        for (written, met) in [("a", false), ("b", true), ("cc", true), ("d", false)] {
            let (reader, writer) = (conflicts.begin(|| ()).0, conflicts.begin(|| ()).0);
            assert!(commit(writer, &[], &[written]));
            let done = reader.commit(&reads, vec![key("x")], || Ok::<(), ()>(())).unwrap();
            assert_eq!(done.is_none(), met, "{written}");
        }
    }

    #[test]
    fn nothing_is_kept_once_no_transaction_is_older() {
        let conflicts = Conflicts::default();
        for _ in 0..100 {
            let (one, two) = (conflicts.begin(|| ()).0, conflicts.begin(|| ()).0);
            assert!(commit(one, &[], &["a"]));
            drop(two);
        }
        let state = conflicts.state.lock();
        assert!(state.written.is_empty() && state.running.is_empty());
    }

    #[test]
    fn a_write_that_fails_or_panics_may_have_written_a_part() {
        let conflicts = Conflicts::default();
        let [one, two, three] = std::array::from_fn(|_| conflicts.begin(|| ()).0);
        assert!(one.commit(&Reads::default(), vec![key("a")], || Err(())).is_err());
        assert!(!commit(two, &["a"], &["b"]));
        let panics = || three.commit::<()>(&Reads::default(), vec![key("a")], || panic!("torn"));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
        assert!(commit(conflicts.begin(|| ()).0, &["a"], &["a"]), "and nothing is locked");
        assert!(conflicts.state.lock().written.is_empty());
    }

    #[test]
    fn a_transaction_older_than_what_is_kept_is_a_conflict() {
        let conflicts = Conflicts::default();
        let (old, idle) = (conflicts.begin(|| ()).0, conflicts.begin(|| ()).0);
        let long = "n".repeat(1 << 20);
        for _ in 0..100 {
            assert!(commit(conflicts.begin(|| ()).0, &["b"], &[&long]));
            assert!(conflicts.state.lock().bytes <= KEPT_BYTES);
        }
        let young = conflicts.begin(|| ()).0;
        assert!(!commit(old, &["a"], &["a"]), "nobody knows whether it was changed");
        assert!(commit(young, &["a"], &["a"]));
        drop(idle);
        let state = conflicts.state.lock();
        assert!(state.written.is_empty() && state.bytes == 0);
    }
}
