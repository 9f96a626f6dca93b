//! What is known in memory of the durable queue. Pure: the time is given.
//!
//! The rows themselves are in the metadata (table `Q`, written in the
//! transaction of the new root). Here is a bounded window: roots that were just
//! submitted, and tasks in the lane of each place, riskiest first ([`Risk`]: the order
//! in which the rows are listed). What does not fit is left to the next scan of the rows.
//! A slow place fills its own lane only.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::budget::Bucket;
use super::gather::{Gather, TOGETHER, WaitedFor};
use super::planner::Job;
use super::time::since;
use crate::backends::PlaceSettings;
use crate::metadata::Risk;
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

/// One content and its work at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// The content.
    pub root: Cid,
    /// Bytes that it takes at most.
    pub bytes: u64,
    /// What is to be done.
    pub job: Job,
}

/// What a worker gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// To be done now.
    Tasks(Vec<Task>),
    /// Nothing before this time: the limits of the place.
    Later(Timestamp),
    /// Nothing.
    Empty,
}

/// Riskiest first; of the same risk in the order of the rows' keys.
type Key = (Risk, Cid);
type Tasks = BTreeMap<Key, Task>;

/// A content in lanes or with workers.
#[derive(Debug, Clone, Copy)]
struct Busy {
    /// Its key in all lanes.
    key: Key,
    /// In how many it is, or with how many workers.
    lanes: usize,
}

#[derive(Debug, Default)]
struct Lane {
    small: Tasks,
    /// One at a time: large contents, repairs, proofs and releases.
    large: Tasks,
    /// A task found no room: scan when there is some.
    overflowed: bool,
    paused: bool,
    gather: Gather,
    /// Bytes a second, by the place's settings.
    bandwidth: Option<u64>,
    bytes: Option<Bucket>,
    /// Bytes that wait.
    waiting: u64,
    /// Bytes a second of one worker, as a moving average.
    rate: f64,
    /// With workers: in how many batches, and which.
    batches: usize,
    in_hand: HashMap<Cid, Task>,
}

/// Where the work for a content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// At which place.
    pub place: BackendId,
    /// What is to be done.
    pub job: Job,
    /// A worker has it; else it waits in the lane.
    pub in_hand: bool,
    /// When it should be done: the bytes before it and its own over what the lane's
    /// workers move. `None` before the first was measured.
    pub eta: Option<Duration>,
}

/// How fast a lane is, and what is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// Bytes that wait or are under way.
    before: u64,
    /// Of all its workers, at most what the user lets them.
    bytes_per_second: f64,
}

impl Pace {
    /// Until so many bytes are done that come after all that is there; `None` before
    /// anything was measured.
    #[must_use]
    pub fn until(&self, bytes: u64) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = self.before.saturating_add(bytes) as f64 / self.bytes_per_second;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// The window of the queue.
#[derive(Debug, Default)]
pub struct Lanes {
    incoming: VecDeque<Cid>,
    known: HashSet<Cid>,
    of_place: HashMap<BackendId, Lane>,
    /// Contents in lanes or with a worker.
    busy: HashMap<Cid, Busy>,
    /// Submitted again while busy: planned again after that.
    again: HashSet<Cid>,
    /// By its last result more is to be done for it: planned when the last worker is
    /// done.
    follow: HashSet<Cid>,
    waited_for: WaitedFor,
    /// The scheduler has roots or rows in hand.
    planning: bool,
    /// The rows are to be scanned; whether pauses are over, too.
    scan: bool,
    hurry: bool,
    /// When the next pause of a row ends.
    next_due: Option<Timestamp>,
    last_scan: Option<(Timestamp, Duration)>,
}

impl Lanes {
    /// Roots whose rows were just written, or who should not wait for theirs.
    pub fn submit(&mut self, roots: &[Cid]) {
        for root in roots {
            if self.busy.contains_key(root) {
                self.again.insert(*root);
            } else if self.incoming.len() >= INCOMING {
                self.scan = true;
                break;
            } else if self.known.insert(*root) {
                self.incoming.push_back(*root);
            }
        }
    }

    /// Asks for a scan of the rows; `hurry` ends all pauses.
    pub fn request_scan(&mut self, hurry: bool) {
        self.scan = true;
        self.hurry |= hurry;
    }

    /// Somebody waits for a content: it is not held back so that others come with it.
    pub fn hurry(&mut self, root: &Cid) {
        self.waited_for.add(*root);
    }

    /// A row is not to be tried before `time`.
    pub fn due_at(&mut self, time: Timestamp) {
        self.next_due = Some(self.next_due.map_or(time, |due| due.min(time)));
    }

    /// When the next pause of a row ends.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.next_due
    }

    /// The scheduler takes submitted roots in hand.
    pub fn take_incoming(&mut self, limit: usize) -> Vec<Cid> {
        self.planning = true;
        let count = self.incoming.len().min(limit);
        let roots: Vec<Cid> = self.incoming.drain(..count).collect();
        for root in &roots {
            self.known.remove(root);
        }
        roots
    }

    /// The scheduler has nothing in hand any more.
    pub fn planned(&mut self) {
        self.planning = false;
    }

    /// Whether submitted roots wait.
    #[must_use]
    pub fn has_incoming(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Whether a scan should begin (`Some(hurry)`). Scans take a tenth of the
    /// time at most, whatever the number of rows.
    pub fn begin_scan(&mut self, now: Timestamp) -> Option<bool> {
        let due = self.scan || self.next_due.is_some_and(|due| due <= now);
        let rested = self.last_scan.is_none_or(|(ended, took)| {
            // A clock that went back must not hold scans off.
            ended > now || since(ended, now) >= (took * 10).max(SCAN_REST)
        });
        if !due || !rested {
            return None;
        }
        self.scan = false;
        self.next_due = None;
        Some(std::mem::take(&mut self.hurry))
    }

    /// `incomplete`: rows were left out, to be found when a lane has room.
    pub fn end_scan(&mut self, now: Timestamp, took: Duration, incomplete: bool) {
        self.last_scan = Some((now, took));
        if incomplete {
            self.of_place.values_mut().for_each(|lane| lane.overflowed = true);
        }
    }

    /// Whether the content is in hand somewhere.
    #[must_use]
    pub fn is_busy(&self, root: &Cid) -> bool {
        self.busy.contains_key(root) || self.known.contains(root)
    }

    /// All contents that are in hand somewhere.
    #[must_use]
    pub fn all_in_hand(&self) -> Vec<Cid> {
        self.busy.keys().chain(&self.known).copied().collect()
    }

    /// In how many lanes, or with how many workers, the content is.
    #[must_use]
    pub fn in_hand(&self, root: &Cid) -> usize {
        self.busy.get(root).map_or(0, |busy| busy.lanes)
    }

    /// Room in the emptiest lane, or for the riskiest in the place of what is less so:
    /// what a scan should bring.
    #[must_use]
    pub fn room(&self) -> usize {
        let fullest = self.of_place.values().map(Lane::len).min().unwrap_or(0);
        LANE - fullest.min(LANE - LANE / 8)
    }

    /// Tasks in all lanes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.of_place.values().map(Lane::len).sum()
    }

    /// No task in any lane.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts the tasks of one content into their lanes.
    pub fn assign(&mut self, risk: Risk, tasks: &[(BackendId, Task)]) {
        if let Some((_, task)) = tasks.first()
            && self.busy.contains_key(&task.root)
        {
            self.again.insert(task.root);
            return;
        }
        let mut left = Vec::new();
        for (id, task) in tasks {
            let key = (risk, task.root);
            let lane = self.of_place.entry(id.clone()).or_default();
            if lane.paused {
                // Held since it was planned: the end of the pause brings it back.
                continue;
            }
            if lane.waits(&key) {
                continue;
            }
            if lane.len() >= LANE {
                // The least urgent has no room: it is left to a scan.
                lane.overflowed = true;
                match lane.last().filter(|last| key < *last).and_then(|last| lane.remove(&last)) {
                    Some(least) => left.push(least.root),
                    None => continue,
                }
            }
            let large = task.bytes > BATCH_BYTES || task.job != Job::Send;
            if large { &mut lane.large } else { &mut lane.small }.insert(key, *task);
            lane.waiting = lane.waiting.saturating_add(task.bytes);
            self.busy.entry(task.root).or_insert(Busy { key, lanes: 0 }).lanes += 1;
        }
        self.finished(&left);
    }

    /// What waits for a content is as urgent as its row says now.
    pub fn reorder(&mut self, root: &Cid, risk: Risk) {
        let Some(busy) = self.busy.get_mut(root) else { return };
        let (old, new) = (busy.key, (risk, *root));
        if old == new {
            return;
        }
        busy.key = new;
        for lane in self.of_place.values_mut() {
            for tasks in [&mut lane.small, &mut lane.large] {
                if let Some(task) = tasks.remove(&old) {
                    tasks.insert(new, task);
                }
            }
        }
    }

    /// The limits of a place, as its settings have them now.
    pub fn limit(&mut self, id: &BackendId, settings: &PlaceSettings, now: Timestamp) {
        let lane = self.of_place.entry(id.clone()).or_default();
        lane.gather.most = settings.gather.unwrap_or_default();
        // What was used of the same limit stays used.
        if lane.bandwidth != settings.bandwidth {
            lane.bandwidth = settings.bandwidth;
            lane.bytes = settings.bandwidth.map(|rate| Bucket::new(rate, now));
        }
    }

    /// Holds a lane, or lets it go on.
    pub fn pause(&mut self, id: &BackendId, paused: bool) {
        self.of_place.entry(id.clone()).or_default().paused = paused;
    }

    /// A result was recorded: whether more is to be done by the row as it is now. The
    /// last worker that has the content brings it back, whoever that will be.
    pub fn follows(&mut self, root: &Cid, due: bool) {
        match (self.busy.contains_key(root), due) {
            (false, true) => self.submit(&[*root]),
            (true, true) => {
                self.follow.insert(*root);
            }
            (_, false) => {
                self.follow.remove(root);
            }
        }
    }

    /// Work that waits in a lane is planned again: somewhere else, perhaps.
    pub fn empty(&mut self, id: &BackendId) {
        let Some(lane) = self.of_place.get_mut(id) else { return };
        let (small, large) = (std::mem::take(&mut lane.small), std::mem::take(&mut lane.large));
        lane.waiting = 0;
        let tasks = small.into_values().chain(large.into_values());
        let roots: Vec<Cid> = tasks.map(|task| task.root).collect();
        self.finished(&roots);
        self.submit(&roots);
    }

    /// Work for a content that waits goes; what a worker has is done.
    pub fn withdraw(&mut self, root: &Cid) {
        let mut gone = Vec::new();
        if let Some(Busy { key, .. }) = self.busy.get(root) {
            for lane in self.of_place.values_mut() {
                gone.extend(lane.remove(key).map(|task| task.root));
            }
        }
        self.again.remove(root);
        self.follow.remove(root);
        self.finished(&gone);
    }

    /// Where the work for these contents is.
    #[must_use]
    pub fn work(&self, roots: &[Cid]) -> HashMap<Cid, Vec<Work>> {
        let mut asked: HashMap<Cid, Vec<Work>> = HashMap::new();
        for root in roots.iter().filter(|root| self.busy.contains_key(*root)) {
            asked.insert(*root, Vec::new());
        }
        if asked.is_empty() {
            return asked;
        }
        for (id, lane) in &self.of_place {
            let mut found = |task: &Task, in_hand, before: u64| {
                if let Some(work) = asked.get_mut(&task.root) {
                    let eta = lane.eta(before.saturating_add(task.bytes));
                    work.push(Work { place: id.clone(), job: task.job, in_hand, eta });
                }
            };
            lane.in_hand.values().for_each(|task| found(task, true, 0));
            let mut before = lane.in_hand.values().map(|task| task.bytes).sum::<u64>();
            let (mut small, mut large) =
                (lane.small.iter().peekable(), lane.large.iter().peekable());
            loop {
                let next = match (small.peek(), large.peek()) {
                    (Some((a, _)), Some((b, _))) if a < b => small.next(),
                    (_, Some(_)) => large.next(),
                    (_, None) => small.next(),
                };
                let Some((_, task)) = next else { break };
                found(task, false, before);
                before = before.saturating_add(task.bytes);
            }
        }
        asked
    }

    /// The next tasks of a lane: many small ones, or a large one. The first
    /// worker (0) takes small ones only, so that large ones never hold them up.
    pub fn take(&mut self, id: &BackendId, worker: usize, now: Timestamp) -> Taken {
        let lane = self.of_place.entry(id.clone()).or_default();
        if lane.paused {
            return Taken::Empty;
        }
        if lane.len() > 0
            && let Some(until) = lane.bytes.as_mut().and_then(|bucket| bucket.wait(now))
        {
            return Taken::Later(until);
        }
        let small = lane.small.values();
        let held = lane.gather.until(small, BATCH_BYTES, &self.waited_for, now);
        let taken = lane.next(worker, held.is_some());
        lane.batches += usize::from(!taken.is_empty());
        lane.in_hand.extend(taken.iter().map(|task| (task.root, *task)));
        let bytes: u64 = taken.iter().map(|task| task.bytes).sum();
        lane.waiting = lane.waiting.saturating_sub(bytes);
        let sent: u64 =
            taken.iter().filter(|task| task.job != Job::Release).map(|task| task.bytes).sum();
        if let Some(bucket) = &mut lane.bytes {
            bucket.take(sent);
        }
        if lane.overflowed && lane.len() < LANE / 4 {
            lane.overflowed = false;
            self.scan = true;
        }
        match held {
            Some(until) if taken.is_empty() => Taken::Later(until),
            _ if taken.is_empty() => Taken::Empty,
            _ => Taken::Tasks(taken),
        }
    }

    /// Whether a scan was asked for.
    #[must_use]
    pub fn wants_scan(&self) -> bool {
        self.scan
    }

    /// A worker of a lane is done with these, well or not; true when some are to be
    /// planned again.
    pub fn done(&mut self, id: &BackendId, roots: &[Cid]) -> bool {
        if let Some(lane) = self.of_place.get_mut(id) {
            lane.batches = lane.batches.saturating_sub(1);
            for root in roots {
                lane.in_hand.remove(root);
            }
        }
        self.finished(roots)
    }

    fn finished(&mut self, roots: &[Cid]) -> bool {
        let mut again = false;
        for root in roots {
            let Some(busy) = self.busy.get_mut(root) else { continue };
            busy.lanes -= 1;
            if busy.lanes == 0 {
                self.busy.remove(root);
                self.waited_for.remove(root);
                let follows = self.follow.remove(root);
                if (self.again.remove(root) || follows) && self.known.insert(*root) {
                    self.incoming.push_back(*root);
                    again = true;
                }
            }
        }
        again
    }

    /// So many bytes went to a place in that time.
    pub fn moved(&mut self, id: &BackendId, bytes: u64, took: Duration) {
        let lane = self.of_place.entry(id.clone()).or_default();
        #[expect(clippy::cast_precision_loss, reason = "a rate is rounded for people")]
        let rate = bytes as f64 / took.as_secs_f64().max(0.001);
        lane.rate = if lane.rate == 0.0 { rate } else { lane.rate * 0.9 + rate * 0.1 };
    }

    /// Tasks and bytes that wait in a lane, and bytes a second (0: not known).
    #[must_use]
    pub fn lane(&self, id: &BackendId) -> (usize, u64, f64) {
        self.of_place.get(id).map_or((0, 0, 0.0), |lane| (lane.len(), lane.waiting, lane.rate))
    }

    /// Of each lane.
    #[must_use]
    pub fn paces(&self) -> HashMap<BackendId, Pace> {
        let pace = |lane: &Lane| {
            let in_hand: u64 = lane.in_hand.values().map(|task| task.bytes).sum();
            let before = lane.waiting.saturating_add(in_hand);
            Pace { before, bytes_per_second: lane.bytes_per_second() }
        };
        self.of_place.iter().map(|(id, lane)| (id.clone(), pace(lane))).collect()
    }

    /// Whether nothing is planned, sent or looked for.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.incoming.is_empty() && self.busy.is_empty() && !self.scan && !self.planning
    }

    /// Places that are not the volume's any more: what waits for them is planned again.
    pub fn forget_all_but(&mut self, known: impl Fn(&BackendId) -> bool) {
        let gone: Vec<BackendId> = self.of_place.keys().filter(|id| !known(id)).cloned().collect();
        for id in gone {
            let Some(lane) = self.of_place.remove(&id) else { continue };
            let tasks = lane.small.into_values().chain(lane.large.into_values());
            let roots: Vec<Cid> = tasks.map(|task| task.root).collect();
            self.finished(&roots);
            self.submit(&roots);
            self.scan |= lane.overflowed;
        }
    }
}

impl Lane {
    /// For so many bytes.
    fn eta(&self, bytes: u64) -> Option<Duration> {
        Pace { before: 0, bytes_per_second: self.bytes_per_second() }.until(bytes)
    }

    /// What its workers move together, at most what the user lets them.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn bytes_per_second(&self) -> f64 {
        let rate = self.rate * self.batches.max(1) as f64;
        self.bandwidth.map_or(rate, |most| rate.min(most as f64))
    }

    fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }

    fn waits(&self, key: &Key) -> bool {
        self.small.contains_key(key) || self.large.contains_key(key)
    }

    /// The least urgent.
    fn last(&self) -> Option<Key> {
        let last = |tasks: &Tasks| tasks.last_key_value().map(|(key, _)| *key);
        last(&self.small).max(last(&self.large))
    }

    fn remove(&mut self, key: &Key) -> Option<Task> {
        let task = self.small.remove(key).or_else(|| self.large.remove(key))?;
        self.waiting = self.waiting.saturating_sub(task.bytes);
        Some(task)
    }

    fn next(&mut self, worker: usize, holds_small: bool) -> Vec<Task> {
        let small = self.small.first_key_value().map(|(key, _)| *key).filter(|_| !holds_small);
        let large = self.large.first_key_value().map(|(key, _)| *key);
        match (small, large) {
            (small, Some(large)) if worker > 0 && small.is_none_or(|small| large < small) => {
                self.large.pop_first().map(|(_, task)| task).into_iter().collect()
            }
            (Some(_), _) => {
                let most = if self.gather.most.is_zero() { BATCH } else { TOGETHER };
                take_small(&mut self.small, most)
            }
            _ => Vec::new(),
        }
    }
}

fn take_small(small: &mut Tasks, most: usize) -> Vec<Task> {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    while let Some(entry) = small.first_entry() {
        bytes += entry.get().bytes;
        if taken.len() >= most || (bytes > BATCH_BYTES && !taken.is_empty()) {
            break;
        }
        taken.push(entry.remove());
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::super::time::plus;
    use super::*;
    use crate::types::cid;

    const NOW: Timestamp = Timestamp { seconds: 1_000_000, nanoseconds: 0 };

    /// With so many verified copies of more.
    fn risk(verified: u8) -> Risk {
        Risk::new(verified, false, 0)
    }

    fn task(n: usize, bytes: u64) -> Task {
        Task { root: cid::of_raw(&n.to_le_bytes()), bytes, job: Job::Send }
    }

    fn take(lanes: &mut Lanes, id: &BackendId, worker: usize) -> Vec<Task> {
        match lanes.take(id, worker, NOW) {
            Taken::Tasks(tasks) => tasks,
            Taken::Later(_) | Taken::Empty => Vec::new(),
        }
    }

    #[test]
    fn the_content_with_fewest_verified_copies_goes_first_then_the_oldest() {
        let (mut lanes, id) = (Lanes::default(), BackendId::local());
        // What lacks nothing comes last; what came late and is older first.
        let risks = [(1, 2, false, 5), (2, 1, true, 1), (3, 1, false, 7), (4, 1, false, 6)];
        for (n, verified, complete, since) in risks {
            lanes.assign(Risk::new(verified, complete, since), &[(id.clone(), task(n, 10))]);
        }
        lanes.assign(Risk::new(3, false, 0), &[(id.clone(), task(5, 10))]);
        // One of them lost copies since.
        lanes.reorder(&task(5, 0).root, Risk::new(0, false, 9));
        lanes.reorder(&task(6, 0).root, Risk::new(0, false, 9));
        let order: Vec<Cid> = take(&mut lanes, &id, 0).iter().map(|t| t.root).collect();
        assert_eq!(order, [5, 4, 3, 1, 2].map(|n| task(n, 0).root));
        assert!(!lanes.done(&id, &order) && lanes.busy.is_empty());
    }

    #[test]
    fn a_full_lane_leaves_the_least_urgent_to_a_scan() {
        let (mut lanes, id) = (Lanes::default(), BackendId::local());
        for n in 0..LANE {
            let since = i64::try_from(n).unwrap();
            lanes.assign(Risk::new(2, false, since), &[(id.clone(), task(n, 3))]);
        }
        lanes.assign(Risk::new(3, false, 0), &[(id.clone(), task(LANE, 3))]);
        assert!(!lanes.is_busy(&task(LANE, 0).root), "there is riskier work");
        lanes.assign(Risk::new(1, false, 0), &[(id.clone(), task(LANE + 1, 3))]);
        assert!(!lanes.is_busy(&task(LANE - 1, 0).root), "it was the least urgent");
        assert_eq!(lanes.lane(&id).0, LANE);
        assert_eq!(lanes.lane(&id).1, 3 * LANE as u64);
        assert_eq!(take(&mut lanes, &id, 0)[0].root, task(LANE + 1, 0).root);
        assert!(lanes.room() > 0, "a scan brings what is riskier than what waits");
    }

    #[test]
    fn a_full_lane_holds_no_other_up_and_asks_for_a_scan_when_it_has_room() {
        let mut lanes = Lanes::default();
        let [slow, fast] = ["slow", "fast"].map(|id| id.parse::<BackendId>().unwrap());
        for n in 0..LANE + 10 {
            lanes.assign(risk(1), &[(slow.clone(), task(n, 1)), (fast.clone(), task(n, 1))]);
            let done: Vec<Cid> = take(&mut lanes, &fast, 0).iter().map(|t| t.root).collect();
            assert_eq!(done.len(), 1);
            lanes.finished(&done);
        }
        assert_eq!(lanes.begin_scan(NOW), None);
        let mut taken = 0;
        loop {
            let done: Vec<Cid> = take(&mut lanes, &slow, 1).iter().map(|t| t.root).collect();
            if done.is_empty() {
                break;
            }
            taken += done.len();
            lanes.finished(&done);
        }
        assert_eq!(taken, LANE);
        assert_eq!(lanes.begin_scan(NOW), Some(false));
    }

    #[test]
    fn submitted_roots_are_bounded_and_the_rest_is_left_to_a_scan() {
        let mut lanes = Lanes::default();
        let roots: Vec<Cid> = (0..=INCOMING).map(|n| task(n, 0).root).collect();
        lanes.submit(&roots);
        lanes.submit(&roots[..5]);
        assert_eq!(lanes.take_incoming(usize::MAX).len(), INCOMING);
        assert_eq!(lanes.begin_scan(NOW), Some(false));
    }

    #[test]
    fn a_content_submitted_while_busy_is_planned_again_after_that() {
        let (mut lanes, id) = (Lanes::default(), BackendId::local());
        lanes.assign(risk(1), &[(id.clone(), task(1, 1))]);
        let root = take(&mut lanes, &id, 0)[0].root;
        lanes.submit(&[root]);
        assert!(lanes.take_incoming(9).is_empty());
        assert!(lanes.finished(&[root]));
        assert_eq!(lanes.take_incoming(9), [root]);
        lanes.planned();
        assert!(lanes.is_idle());
    }

    #[test]
    fn nothing_comes_into_a_lane_that_is_held() {
        let (mut lanes, id) = (Lanes::default(), BackendId::local());
        lanes.assign(risk(1), &[(id.clone(), task(1, 1))]);
        lanes.pause(&id, true);
        lanes.empty(&id);
        // Planned before, and late.
        lanes.assign(risk(1), &[(id.clone(), task(2, 1))]);
        assert!(lanes.is_empty() && lanes.busy.is_empty());
        lanes.pause(&id, false);
        lanes.assign(risk(1), &[(id.clone(), task(2, 1))]);
        assert_eq!(take(&mut lanes, &id, 0).len(), 1);
    }

    #[test]
    fn what_waits_for_a_place_that_was_removed_is_planned_again() {
        let (mut lanes, here, gone) =
            (Lanes::default(), BackendId::local(), "gone".parse::<BackendId>().unwrap());
        let settings = PlaceSettings { bandwidth: Some(1), ..PlaceSettings::default() };
        lanes.limit(&gone, &settings, NOW);
        lanes.assign(risk(1), &[(gone.clone(), task(1, 1)), (here.clone(), task(1, 1))]);
        lanes.assign(risk(1), &[(gone.clone(), task(2, 1))]);
        let in_hand = take(&mut lanes, &gone, 0);
        lanes.assign(risk(1), &[(gone.clone(), task(3, 1))]);
        lanes.forget_all_but(|id| *id == here);
        // What a worker has comes back by the worker, what another lane has by that one.
        assert_eq!(lanes.take_incoming(9), [task(3, 1).root]);
        let roots: Vec<Cid> = in_hand.iter().map(|task| task.root).collect();
        lanes.done(&gone, &roots);
        let others = take(&mut lanes, &here, 0);
        assert_eq!(others, [task(1, 1)]);
        lanes.done(&here, &[others[0].root]);
        lanes.planned();
        assert!(lanes.busy.is_empty());
        // Under the same name again it has its limits again.
        lanes.limit(&gone, &settings, NOW);
        lanes.assign(risk(1), &[(gone.clone(), task(4, 5))]);
        assert_eq!(take(&mut lanes, &gone, 0).len(), 1);
        lanes.assign(risk(1), &[(gone.clone(), task(5, 1))]);
        assert!(matches!(lanes.take(&gone, 0, NOW), Taken::Later(_)));
        lanes.limit(&gone, &settings, NOW);
        assert!(matches!(lanes.take(&gone, 0, NOW), Taken::Later(_)), "what was used stays used");
    }

    #[test]
    fn an_eta_is_what_comes_before_over_what_the_lane_moves() {
        let (mut lanes, id) = (Lanes::default(), BackendId::local());
        let large = |n: i64| task(usize::try_from(n).unwrap(), BATCH_BYTES + 1);
        let roots: Vec<Cid> = (1..=3).map(|n| large(n).root).collect();
        for n in 1..=3 {
            lanes.assign(Risk::new(2, false, n), &[(id.clone(), large(n))]);
        }
        let etas = |lanes: &Lanes| {
            let work = lanes.work(&roots);
            let of = |root: &Cid| work.get(root).and_then(|work| work.first()).cloned();
            roots.iter().map(of).collect::<Vec<Option<Work>>>()
        };
        assert!(etas(&lanes).iter().flatten().all(|work| work.eta.is_none()), "nothing is known");
        lanes.moved(&id, BATCH_BYTES + 1, Duration::from_secs(2));
        assert_eq!(take(&mut lanes, &id, 1)[0].root, roots[0]);
        let seconds = |work: &Option<Work>| work.as_ref()?.eta.map(|eta| eta.as_secs());
        let found = etas(&lanes);
        assert_eq!(found.iter().map(seconds).collect::<Vec<_>>(), [2, 4, 6].map(Some));
        let in_hand = |work: &Option<Work>| work.as_ref().is_some_and(|work| work.in_hand);
        assert_eq!(found.iter().map(in_hand).collect::<Vec<_>>(), [true, false, false]);
        // Two workers move twice as much.
        take(&mut lanes, &id, 2);
        assert_eq!(seconds(&etas(&lanes)[2]), Some(3));
        lanes.done(&id, &roots[..1]);
        assert_eq!(etas(&lanes)[0], None);
        lanes.withdraw(&roots[2]);
        assert_eq!(etas(&lanes)[2], None);
        assert_eq!(lanes.lane(&id).1, 0, "no bytes wait");
        lanes.done(&id, &roots[1..2]);
        assert!(lanes.busy.is_empty());
    }

    #[test]
    fn large_contents_leave_a_worker_to_small_ones() {
        let (mut lanes, id) = (Lanes::default(), BackendId::local());
        lanes.assign(risk(1), &[(id.clone(), task(1, BATCH_BYTES + 1))]);
        lanes.assign(risk(1), &[(id.clone(), task(2, 1))]);
        assert_eq!(take(&mut lanes, &id, 0), [task(2, 1)]);
        assert_eq!(take(&mut lanes, &id, 0), []);
        assert_eq!(take(&mut lanes, &id, 1), [task(1, BATCH_BYTES + 1)]);
    }

    #[test]
    fn a_limited_lane_says_when_it_goes_on_and_a_paused_one_gives_nothing() {
        let (mut lanes, id) = (Lanes::default(), BackendId::local());
        let settings = PlaceSettings { bandwidth: Some(1000), ..PlaceSettings::default() };
        lanes.limit(&id, &settings, NOW);
        lanes.assign(risk(1), &[(id.clone(), task(1, 3000))]);
        lanes.assign(risk(1), &[(id.clone(), task(2, 3 << 20))]);
        lanes.pause(&id, true);
        assert_eq!(lanes.take(&id, 0, NOW), Taken::Empty);
        lanes.pause(&id, false);
        assert_eq!(take(&mut lanes, &id, 0).len(), 2, "one batch may overdraw");
        lanes.assign(risk(1), &[(id.clone(), task(3, 1))]);
        let Taken::Later(until) = lanes.take(&id, 0, NOW) else { panic!("not limited") };
        let wanted = plus(NOW, Duration::from_secs(3000 / 1000 + (3 << 20) / 1000));
        assert!(since(wanted, until) < Duration::from_secs(2), "{until:?}");
        assert_eq!(lanes.take(&id, 0, until), Taken::Tasks(vec![task(3, 1)]));
    }
}
