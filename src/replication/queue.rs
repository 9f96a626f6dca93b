//! What is known in memory of the durable queue.
//!
//! The rows themselves are in the metadata (table `Q`, written in the
//! transaction of the new root). Here is a bounded window: roots that were just
//! submitted, and tasks in the lane of each backend, riskiest first (fewest
//! copies), then oldest. What does not fit is left to the next scan of the rows.
//! A slow backend fills its own lane only. One lock, `state`; nothing else is
//! taken under it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::planner::Job;
use crate::runtime::Cancel;
use crate::types::{BackendId, Cid, Timestamp};

/// Submitted roots that are not planned yet; more are found by a scan.
const INCOMING: usize = 16_384;
/// Tasks of one lane; more are found by a scan.
const LANE: usize = 8_192;
/// Contents that a worker takes at once.
const BATCH: usize = 64;
/// Bytes of these; a content above goes by itself.
const BATCH_BYTES: u64 = 4 << 20;
/// Between two scans at least; and ten times as long as a scan took.
const SCAN_REST: Duration = Duration::from_millis(20);

/// One content to be brought to one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    pub root: Cid,
    pub bytes: u64,
    pub job: Job,
}

/// Keyed by copies that exist, then by order of arrival.
type Tasks = BTreeMap<(usize, u64), Task>;

#[derive(Debug, Default)]
struct Lane {
    small: Tasks,
    large: Tasks,
    /// A task found no room: scan when there is some.
    overflowed: bool,
}

impl Lane {
    fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }
}

#[derive(Debug, Default)]
struct State {
    incoming: VecDeque<Cid>,
    known: HashSet<Cid>,
    lanes: HashMap<BackendId, Lane>,
    /// Contents in lanes or with a worker, and in how many.
    busy: HashMap<Cid, usize>,
    /// Submitted again while busy: planned again after that.
    again: HashSet<Cid>,
    arrivals: u64,
    /// The scheduler has roots or rows in hand.
    planning: bool,
    /// The rows are to be scanned; whether pauses are over, too.
    scan: bool,
    hurry: bool,
    /// When the next pause of a row ends.
    next_due: Option<Timestamp>,
    last_scan: Option<(Instant, Duration)>,
}

/// The window.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    scheduler: Condvar,
    workers: Condvar,
}

impl Queue {
    /// Roots whose rows were just written, or who should not wait for theirs.
    pub fn submit(&self, roots: &[Cid]) {
        let mut state = self.state.lock();
        for root in roots {
            if state.busy.contains_key(root) {
                state.again.insert(*root);
            } else if state.incoming.len() >= INCOMING {
                state.scan = true;
                break;
            } else if state.known.insert(*root) {
                state.incoming.push_back(*root);
            }
        }
        drop(state);
        self.scheduler.notify_all();
    }

    /// Asks for a scan of the rows; `hurry` ends all pauses.
    pub fn request_scan(&self, hurry: bool) {
        let mut state = self.state.lock();
        state.scan = true;
        state.hurry |= hurry;
        drop(state);
        self.scheduler.notify_all();
    }

    /// A row is not to be tried before `time`.
    pub fn due_at(&self, time: Timestamp) {
        let mut state = self.state.lock();
        state.next_due = Some(state.next_due.map_or(time, |due| due.min(time)));
    }

    /// The scheduler takes submitted roots in hand.
    pub fn take_incoming(&self, limit: usize) -> Vec<Cid> {
        let mut state = self.state.lock();
        state.planning = true;
        let count = state.incoming.len().min(limit);
        let roots: Vec<Cid> = state.incoming.drain(..count).collect();
        for root in &roots {
            state.known.remove(root);
        }
        roots
    }

    /// The scheduler has nothing in hand any more.
    pub fn planned(&self) {
        self.state.lock().planning = false;
    }

    /// Whether a scan should begin (`Some(hurry)`). Scans take a tenth of the
    /// time at most, whatever the number of rows.
    pub fn begin_scan(&self, now: Timestamp) -> Option<bool> {
        let mut state = self.state.lock();
        let due = state.scan || state.next_due.is_some_and(|due| due <= now);
        let rested = state
            .last_scan
            .is_none_or(|(ended, took)| ended.elapsed() >= (took * 10).max(SCAN_REST));
        if !due || !rested {
            return None;
        }
        state.scan = false;
        state.next_due = None;
        Some(std::mem::take(&mut state.hurry))
    }

    /// `incomplete`: rows were left out, to be found when a lane has room.
    pub fn end_scan(&self, took: Duration, incomplete: bool) {
        let mut state = self.state.lock();
        state.last_scan = Some((Instant::now(), took));
        if incomplete {
            state.lanes.values_mut().for_each(|lane| lane.overflowed = true);
        }
    }

    pub fn is_busy(&self, root: &Cid) -> bool {
        let state = self.state.lock();
        state.busy.contains_key(root) || state.known.contains(root)
    }

    /// Room in the emptiest lane: what a scan should bring.
    pub fn room(&self) -> usize {
        let state = self.state.lock();
        LANE - state.lanes.values().map(Lane::len).min().unwrap_or(0).min(LANE)
    }

    /// Puts the tasks of one content into their lanes. `copies` it has already.
    pub fn assign(&self, copies: usize, tasks: &[(BackendId, Task)]) {
        let mut state = self.state.lock();
        if let Some((_, task)) = tasks.first()
            && state.busy.contains_key(&task.root)
        {
            state.again.insert(task.root);
            return;
        }
        for (id, task) in tasks {
            state.arrivals += 1;
            let key = (copies, state.arrivals);
            let lane = state.lanes.entry(id.clone()).or_default();
            if lane.len() >= LANE {
                lane.overflowed = true;
                continue;
            }
            let large = task.bytes > BATCH_BYTES || task.job == Job::Repair;
            if large { &mut lane.large } else { &mut lane.small }.insert(key, *task);
            *state.busy.entry(task.root).or_default() += 1;
        }
        drop(state);
        self.workers.notify_all();
    }

    /// The next tasks of a lane: many small ones, or a large one; none when
    /// `most` is over or the end has begun. The first worker (0) takes small
    /// ones only, so that large ones never hold them up.
    pub fn take(&self, id: &BackendId, worker: usize, stop: &Cancel, most: Duration) -> Vec<Task> {
        let until = Instant::now() + most;
        let mut state = self.state.lock();
        loop {
            if stop.is_cancelled() {
                return Vec::new();
            }
            let lane = state.lanes.entry(id.clone()).or_default();
            let taken = lane.next(worker);
            if lane.overflowed && lane.len() < LANE / 4 {
                lane.overflowed = false;
                state.scan = true;
                self.scheduler.notify_all();
            }
            if !taken.is_empty() {
                return taken;
            }
            if self.workers.wait_until(&mut state, until).timed_out() {
                return Vec::new();
            }
        }
    }

    /// A worker is done with these, well or not.
    pub fn finished(&self, roots: &[Cid]) {
        let mut state = self.state.lock();
        for root in roots {
            let Some(lanes) = state.busy.get_mut(root) else { continue };
            *lanes -= 1;
            if *lanes == 0 {
                state.busy.remove(root);
                if state.again.remove(root) && state.known.insert(*root) {
                    state.incoming.push_back(*root);
                    self.scheduler.notify_all();
                }
            }
        }
    }

    /// Waits until there is something to plan, or late.
    pub fn wait(&self, most: Duration) {
        let mut state = self.state.lock();
        if state.incoming.is_empty() {
            self.scheduler.wait_for(&mut state, most);
        }
    }

    pub fn wake_all(&self) {
        self.scheduler.notify_all();
        self.workers.notify_all();
    }

    /// Whether nothing is planned, sent or looked for.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.incoming.is_empty() && state.busy.is_empty() && !state.scan && !state.planning
    }
}

impl Lane {
    fn next(&mut self, worker: usize) -> Vec<Task> {
        let small = self.small.first_key_value().map(|(key, _)| *key);
        let large = self.large.first_key_value().map(|(key, _)| *key);
        match (small, large) {
            (small, Some(large)) if worker > 0 && small.is_none_or(|small| large < small) => {
                self.large.pop_first().map(|(_, task)| task).into_iter().collect()
            }
            (Some(_), _) => take_small(&mut self.small),
            _ => Vec::new(),
        }
    }
}

fn take_small(small: &mut Tasks) -> Vec<Task> {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    while let Some(entry) = small.first_entry() {
        bytes += entry.get().bytes;
        if taken.len() >= BATCH || (bytes > BATCH_BYTES && !taken.is_empty()) {
            break;
        }
        taken.push(entry.remove());
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::cid;

    fn task(n: usize, bytes: u64) -> Task {
        Task { root: cid::of_raw(&n.to_le_bytes()), bytes, job: Job::Send }
    }

    fn take(queue: &Queue, id: &BackendId, worker: usize) -> Vec<Task> {
        queue.take(id, worker, &Cancel::default(), Duration::ZERO)
    }

    #[test]
    fn the_content_with_fewest_copies_goes_first_then_the_oldest() {
        let (queue, id) = (Queue::default(), BackendId::local());
        for (n, copies) in [(1, 2), (2, 1), (3, 1), (4, 3)] {
            queue.assign(copies, &[(id.clone(), task(n, 10))]);
        }
        let order: Vec<Cid> = take(&queue, &id, 0).iter().map(|t| t.root).collect();
        assert_eq!(order, [2, 3, 1, 4].map(|n| task(n, 0).root));
    }

    #[test]
    fn a_full_lane_holds_no_other_up_and_asks_for_a_scan_when_it_has_room() {
        let queue = Queue::default();
        let [slow, fast] = ["slow", "fast"].map(|id| id.parse::<BackendId>().unwrap());
        for n in 0..LANE + 10 {
            queue.assign(1, &[(slow.clone(), task(n, 1)), (fast.clone(), task(n, 1))]);
            let done: Vec<Cid> = take(&queue, &fast, 0).iter().map(|t| t.root).collect();
            assert_eq!(done.len(), 1);
            queue.finished(&done);
        }
        assert_eq!(queue.begin_scan(Timestamp::default()), None);
        let mut taken = 0;
        loop {
            let done: Vec<Cid> = take(&queue, &slow, 1).iter().map(|t| t.root).collect();
            if done.is_empty() {
                break;
            }
            taken += done.len();
            queue.finished(&done);
        }
        assert_eq!(taken, LANE);
        assert_eq!(queue.begin_scan(Timestamp::default()), Some(false));
    }

    #[test]
    fn submitted_roots_are_bounded_and_the_rest_is_left_to_a_scan() {
        let queue = Queue::default();
        let roots: Vec<Cid> = (0..=INCOMING).map(|n| task(n, 0).root).collect();
        queue.submit(&roots);
        queue.submit(&roots[..5]);
        assert_eq!(queue.take_incoming(usize::MAX).len(), INCOMING);
        assert_eq!(queue.begin_scan(Timestamp::default()), Some(false));
    }

    #[test]
    fn a_content_submitted_while_busy_is_planned_again_after_that() {
        let (queue, id) = (Queue::default(), BackendId::local());
        queue.assign(1, &[(id.clone(), task(1, 1))]);
        let root = take(&queue, &id, 0)[0].root;
        queue.submit(&[root]);
        assert!(queue.take_incoming(9).is_empty());
        queue.finished(&[root]);
        assert_eq!(queue.take_incoming(9), [root]);
        queue.planned();
        assert!(queue.is_idle());
    }

    #[test]
    fn large_contents_leave_a_worker_to_small_ones() {
        let (queue, id) = (Queue::default(), BackendId::local());
        queue.assign(1, &[(id.clone(), task(1, BATCH_BYTES + 1))]);
        queue.assign(1, &[(id.clone(), task(2, 1))]);
        assert_eq!(take(&queue, &id, 0), [task(2, 1)]);
        assert_eq!(take(&queue, &id, 0), []);
        assert_eq!(take(&queue, &id, 1), [task(1, BATCH_BYTES + 1)]);
    }
}
