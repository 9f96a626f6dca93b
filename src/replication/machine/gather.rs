//! Small contents that nobody waits for are held back for a moment where they share an
//! object: each request is paid for, and carries one file when they go as they come.

use std::collections::HashSet;
use std::time::Duration;

use super::lanes::Task;
use super::time::{plus, since};
use crate::types::{Cid, Timestamp};

/// Contents that somebody waits for. More hold nothing back for anybody: who waits then
/// waits no longer than others.
const WAITED_FOR: usize = 4096;
/// Contents of one request.
pub(super) const TOGETHER: usize = 1024;

/// Of a place: for how long it gathers.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// At most; zero: not at all.
    pub most: Duration,
    /// When what is gathered began to be.
    since: Option<Timestamp>,
}

impl Gather {
    /// Until when these are held back; `None`: they go now.
    pub fn until<'t>(
        &mut self,
        mut small: impl ExactSizeIterator<Item = &'t Task>,
        full: u64,
        waited_for: &WaitedFor,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if self.most.is_zero() || small.len() == 0 {
            self.since = None;
            return None;
        }
        let begun = *self.since.get_or_insert(now);
        let mut bytes = 0u64;
        let ready = small.len() >= TOGETHER
            || since(begun, now) >= self.most
            // A clock that went back must not hold them for longer.
            || begun > now
            || small.any(|task| {
                bytes = bytes.saturating_add(task.bytes);
                bytes >= full || waited_for.has(&task.root)
            });
        if ready {
            self.since = None;
            return None;
        }
        Some(plus(begun, self.most))
    }
}

/// See [`WAITED_FOR`].
#[derive(Debug, Default)]
pub(super) struct WaitedFor(HashSet<Cid>);

impl WaitedFor {
    pub fn add(&mut self, root: Cid) {
        if self.0.len() < WAITED_FOR {
            self.0.insert(root);
        }
    }

    pub fn remove(&mut self, root: &Cid) {
        self.0.remove(root);
    }

    fn has(&self, root: &Cid) -> bool {
        !self.0.is_empty() && self.0.contains(root)
    }
}

#[cfg(test)]
mod tests {
    use super::super::planner::Job;
    use super::*;
    use crate::types::cid;

    const NOW: Timestamp = Timestamp { seconds: 1_000_000, nanoseconds: 0 };

    fn tasks(count: u64, bytes: u64) -> Vec<Task> {
        let task = |n: u64| Task { root: cid::of_raw(&n.to_le_bytes()), bytes, job: Job::Send };
        (0..count).map(task).collect()
    }

    #[test]
    fn few_small_ones_wait_for_others_and_for_nobody_who_waits() {
        let second = Duration::from_secs(1);
        let mut gather = Gather { most: second, since: None };
        let mut waited_for = WaitedFor::default();
        let few = tasks(3, 10);
        let end = plus(NOW, second);
        assert_eq!(gather.until(few.iter(), 1000, &waited_for, NOW), Some(end));
        let later = plus(NOW, second / 2);
        assert_eq!(gather.until(few.iter(), 1000, &waited_for, later), Some(end));
        assert_eq!(gather.until(few.iter(), 1000, &waited_for, end), None);
        // What comes then begins anew.
        assert_eq!(gather.until(few.iter(), 1000, &waited_for, end), Some(plus(end, second)));
        assert_eq!(gather.until(few.iter(), 30, &waited_for, end), None, "they are enough");
        assert_eq!(gather.until(tasks(1024, 0).iter(), 1000, &waited_for, end), None);
        waited_for.add(few[1].root);
        assert_eq!(gather.until(few.iter(), 1000, &waited_for, end), None);
        waited_for.remove(&few[1].root);
        assert!(gather.until(few.iter(), 1000, &waited_for, end).is_some());
        // The clock goes back.
        assert_eq!(gather.until(few.iter(), 1000, &waited_for, NOW), None);
        // None, and a place that does not gather.
        assert_eq!(gather.until([].iter(), 1000, &waited_for, end), None);
        gather.most = Duration::ZERO;
        assert_eq!(gather.until(few.iter(), 1000, &waited_for, end), None);
    }
}
