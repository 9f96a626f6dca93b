//! A volume whose places, clock, disk and clients are simulated. The replication
//! core, the rows and their engine are the real ones.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use cairnfs::backends::{BackendError, ErrorKind};
use cairnfs::metadata::{
    BackendRecord, ContentCommit, ContentRecord, CopyRecord, CopyState, Engine, MemoryEngine,
    MemoryState, Namespace, NewNode, PinState, VerifyMethod,
};
use cairnfs::replication::PolicyBook;
use cairnfs::replication::machine::{
    Content, Facts, Fleet, Job, Machine, MachineOptions, Outcome, Taken, Task,
};
use cairnfs::runtime::{Clock, ManualClock};
use cairnfs::types::{BackendId, Cid, FileKind, Ino, Name, Timestamp, cid};
use parking_lot::RwLock;

use crate::hands::join;
use crate::place::{Bytes, Place};

pub const GRACE: Duration = Duration::from_mins(15);
pub const WORKERS: usize = 2;
const MILLIS: u64 = 1;
pub const SECOND: u64 = 1000 * MILLIS;
pub const MINUTE: u64 = 60 * SECOND;
pub const HOUR: u64 = 60 * MINUTE;
/// Contents at a time: enough that they meet in every lane.
const CONTENTS: usize = 20;
/// Of the scrub: each copy is read in this time.
pub const SCRUB: Duration = Duration::from_hours(60);

/// What the clients and the checks know of a content.
#[derive(Debug, Clone)]
pub struct Known {
    pub file: (Name, Ino),
    pub policy: (u8, u8, u8),
    /// Copies that were acknowledged, once they were.
    pub acked: Option<usize>,
    /// Copies that faults took since all was well.
    pub losses: usize,
    /// In a saved state of the metadata: a crash keeps it.
    pub durable: bool,
}

/// Work that is under way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Running {
    ends: u64,
    number: u64,
    place: usize,
    worker: usize,
}

pub struct World {
    pub seed: u64,
    pub random: fastrand::Rng,
    /// Milliseconds that really passed.
    pub now: u64,
    pub clock: Arc<ManualClock>,
    engine: Arc<MemoryEngine>,
    saved: MemoryState,
    pub namespace: Arc<Namespace>,
    pub fleet: Arc<RwLock<Fleet>>,
    pub machine: Machine,
    pub places: Vec<Place>,
    pub contents: BTreeMap<Cid, Known>,
    running: BinaryHeap<Reverse<Running>>,
    tasks: BTreeMap<u64, (Vec<Task>, bool)>,
    busy: BTreeMap<(usize, usize), u64>,
    numbers: u64,
    pub trace: Vec<String>,
    hash: u64,
    pub calm: bool,
    /// What an administrator does comes from here, in worlds that have one.
    pub hands: Option<fastrand::Rng>,
    /// The local store is a cache: what it has counts for nothing, and may go.
    pub cache: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self::of(seed, false)
    }

    /// Where the local store is a cache.
    pub fn with_cache(seed: u64) -> Self {
        Self::of(seed, true)
    }

    fn of(seed: u64, cache: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let backends = random.usize(1..=11);
        let domains = random.usize(1..=backends);
        let mut places = vec![Place::new(BackendId::local(), "here".into())];
        for n in 0..backends {
            let domain = format!("d{}", if n < domains { n } else { random.usize(0..domains) });
            let mut place = Place::new(format!("b{n}").parse().unwrap(), domain);
            place.audits = random.u8(0..4) == 0;
            places.push(place);
        }
        let clock = Arc::new(ManualClock::at(Timestamp { seconds: 1_700_000_000, nanoseconds: 0 }));
        let engine = Arc::new(MemoryEngine::default());
        let (namespace, fleet, machine) = open(&engine, &clock, (&places, cache), seed);
        let saved = engine.state();
        Self {
            seed,
            random,
            now: 0,
            clock,
            engine,
            saved,
            namespace,
            fleet,
            machine,
            places,
            contents: BTreeMap::new(),
            running: BinaryHeap::new(),
            tasks: BTreeMap::new(),
            busy: BTreeMap::new(),
            numbers: 0,
            trace: Vec::new(),
            hash: 0,
            calm: false,
            hands: None,
            cache,
        }
    }

    /// With somebody who sets places read-only, recovers them and moves copies.
    pub fn with_hands(seed: u64) -> Self {
        Self { hands: Some(fastrand::Rng::with_seed(!seed)), ..Self::new(seed) }
    }

    pub fn elapsed(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    pub fn trace_hash(&self) -> u64 {
        self.hash
    }

    pub fn note(&mut self, text: String) {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.trace.len() > 40_000 {
            self.trace.drain(..20_000);
        }
        self.trace.push(format!("{:>7}.{:03} s  {text}", self.now / 1000, self.now % 1000));
    }

    /// Faults and clients for a while; then calm, until all is as it should be.
    pub fn run(&mut self) {
        let steps = self.random.usize(20..200);
        for _ in 0..steps {
            self.step();
        }
        self.calm_down();
        // Silent damage is found by the scrub.
        let end = self.now + 3 * u64::try_from(SCRUB.as_millis()).unwrap() + 2 * HOUR;
        while self.now < end {
            let next = (self.now + HOUR).min(end);
            self.pass(next);
        }
        self.check_converged();
    }

    fn step(&mut self) {
        let pause = match self.random.u8(0..10) {
            0..4 => self.random.u64(1..10 * SECOND),
            4..8 => self.random.u64(SECOND..20 * MINUTE),
            _ => self.random.u64(MINUTE..12 * HOUR),
        };
        let until = self.now + pause;
        self.pass(until);
        self.event();
        self.hand();
        self.evict();
        self.pump();
        self.check();
        self.remove_lost();
    }

    /// Time passes until then: work ends, probes are made, the scheduler turns.
    pub fn pass(&mut self, until: u64) {
        loop {
            let work = self.running.peek().map(|Reverse(running)| running.ends);
            let next = work.into_iter().chain([self.next_turn(), until]).min().unwrap();
            let next = next.max(self.now).min(until);
            let step = next - self.now;
            self.clock.advance(Duration::from_millis(step));
            self.now = next;
            self.collect();
            if work.is_some_and(|ends| ends <= self.now) {
                self.finish_one();
            } else if self.now >= until {
                break;
            } else {
                self.probe();
            }
            self.pump();
        }
        self.probe();
        self.pump();
    }

    /// When the scheduler should look again: at most a check interval from now.
    fn next_turn(&self) -> u64 {
        let idle = self.places.iter().all(|place| place.up) && self.machine.proofs_waiting() == 0;
        let rows = self.namespace.stats().queued > 0;
        let pause = match (idle && !self.calm, rows) {
            _ if self.calm && self.machine.proofs_waiting() > 0 => 2 * MINUTE,
            _ if self.calm => 30 * MINUTE,
            (true, false) => 15 * MINUTE,
            (true, true) => 5 * MINUTE,
            (false, _) => 2 * MINUTE,
        };
        (self.now / pause + 1) * pause
    }

    /// Who is away is asked whether it is back, and everybody for its space.
    fn probe(&mut self) {
        let now = self.clock.now();
        let mut fleet = self.fleet.write();
        for (number, place) in self.places.iter().enumerate().skip(1) {
            if place.up {
                // As a daemon does: one that was closed is opened again.
                fleet.opened(&place.id, facts(place), now);
                if self.hands.is_some() {
                    fleet.set_usage(&place.id, self.usage(number));
                }
                if place.full {
                    fleet.failed(&place.id, &error(ErrorKind::Full), now);
                }
            } else {
                fleet.failed(&place.id, &error(ErrorKind::Unavailable), now);
            }
        }
    }

    /// The scheduler turns and workers take up what there is.
    pub fn pump(&mut self) {
        for round in 0.. {
            if round > 10_000 {
                self.fail("the scheduler turns for ever");
            }
            if round == 0 {
                self.move_some();
            }
            let turn = self.machine.turn().unwrap();
            // One turn of four: it looks at all contents.
            if round == 0 && self.now.is_multiple_of(4) {
                self.check_copy_counts();
            }
            for id in &turn.given_up {
                self.note(format!("given up {id}"));
            }
            let started = self.start_work();
            if !started && !turn.more {
                break;
            }
        }
        self.prove();
    }

    fn start_work(&mut self) -> bool {
        let mut started = false;
        for place in 0..self.places.len() {
            for worker in 0..WORKERS {
                if self.busy.contains_key(&(place, worker)) {
                    continue;
                }
                let Taken::Tasks(tasks) = self.machine.take(&self.places[place].id, worker) else {
                    continue;
                };
                started = true;
                self.numbers += 1;
                let slow = self.places[place].slow;
                let takes = self.random.u64(10..30 * SECOND) * slow;
                let number = self.numbers;
                let ends = self.now + takes;
                self.busy.insert((place, worker), number);
                self.running.push(Reverse(Running { ends, number, place, worker }));
                // Half of the work has its effect at the beginning, half at the end.
                let early = self.random.bool();
                self.tasks.insert(number, (tasks, early));
            }
        }
        started
    }

    fn finish_one(&mut self) {
        let Some(Reverse(running)) = self.running.pop() else { return };
        self.busy.remove(&(running.place, running.worker));
        let Some((tasks, _)) = self.tasks.remove(&running.number) else { return };
        let outcomes = self.work(running.place, &tasks);
        self.record(running.place, outcomes);
        let roots: Vec<Cid> = tasks.iter().map(|task| task.root).collect();
        self.machine.finished(&self.places[running.place].id, &roots);
        if !self.places[running.place].up {
            self.machine.submit(&roots);
        }
    }

    fn record(&mut self, place: usize, outcomes: Vec<(Cid, Outcome)>) {
        let id = self.places[place].id.clone();
        let before: Vec<Option<CopyState>> =
            outcomes.iter().map(|(root, _)| self.state_at(root, &id)).collect();
        self.machine.record(&id, &outcomes, &mut |_, _, _| {}).unwrap();
        for ((root, outcome), before) in outcomes.iter().zip(before) {
            let after = self.state_at(root, &id);
            self.note(format!("{id} {} {outcome:?}: {before:?} -> {after:?}", short(root)));
            if after == Some(CopyState::Released) && before != after {
                self.check_release(place, root);
                let when = self.now + self.random.u64(0..2 * HOUR);
                self.places[place].garbage.insert(*root, when);
            }
        }
        self.acknowledge();
    }

    pub fn state_at(&self, root: &Cid, id: &BackendId) -> Option<CopyState> {
        let record = self.namespace.content(root).unwrap()?;
        record.copies.iter().find(|copy| copy.backend == *id).map(|copy| copy.state)
    }

    /// What a worker at a place does and says.
    fn work(&mut self, place: usize, tasks: &[Task]) -> Vec<(Cid, Outcome)> {
        let mut outcomes = Vec::new();
        for task in tasks {
            let outcome = match task.job {
                _ if !self.places[place].member => self.late(place, task),
                Job::Release => Outcome::Released(self.confirmed(place, &task.root)),
                Job::Verify => match self.read_back(place, &task.root) {
                    // Bad still: mended, if what it takes is anywhere.
                    Some(Outcome::Bad(bad))
                        if place > 0
                            && matches!(
                                self.state_at(&task.root, &self.places[place].id),
                                Some(CopyState::Corrupt | CopyState::Lost)
                            ) =>
                    {
                        match self.send(place, &Task { job: Job::Repair, ..*task }) {
                            stored @ Outcome::Stored(..) => stored,
                            _ => Outcome::Bad(bad),
                        }
                    }
                    Some(outcome) => outcome,
                    None => Outcome::Failed("not read".into()),
                },
                Job::Audit => match self.audit(place, &task.root) {
                    Some(outcome) => outcome,
                    None => Outcome::Failed("not read".into()),
                },
                Job::Send | Job::Repair if place == 0 => self.bring_here(&task.root),
                Job::Send | Job::Repair => self.send(place, task),
            };
            outcomes.push((task.root, outcome));
        }
        outcomes
    }

    fn tell(&mut self, place: usize, kind: ErrorKind) -> Outcome {
        let (id, now) = (self.places[place].id.clone(), self.clock.now());
        self.fleet.write().failed(&id, &error(kind), now);
        Outcome::Failed(format!("{kind:?}"))
    }

    fn send(&mut self, place: usize, task: &Task) -> Outcome {
        let root = task.root;
        if !self.places[place].up {
            return self.tell(place, ErrorKind::Unavailable);
        }
        if self.random.u8(0..100) < self.places[place].refuses {
            return self.tell(place, ErrorKind::Other);
        }
        if self.places[place].full {
            return self.tell(place, ErrorKind::Full);
        }
        if self.is_read_only(place) {
            return self.tell(place, ErrorKind::ReadOnly);
        }
        // What is there is not read to be sent.
        let there = task.job == Job::Send && self.places[place].truth.contains_key(&root);
        if !there && !self.has_source(&root, place) {
            return Outcome::Failed("no good copy in reach".into());
        }
        let lies = self.places[place].lies;
        if !lies {
            let there = self.places[place].truth.get(&root).copied();
            // What is there with the right length is success, also when it is wrong:
            // only a repair looks at the bytes.
            if there.is_none() || task.job == Job::Repair {
                self.places[place].truth.insert(root, Bytes::Good);
            }
            self.places[place].garbage.remove(&root);
        }
        if self.random.u8(0..100) < self.places[place].applied_then_failed {
            return self.tell(place, ErrorKind::Other);
        }
        if !self.places[place].is_good(&root) {
            // A claim that is none: as good as a copy that was lost.
            self.lost(&root);
        }
        let now = self.now;
        self.places[place].stored.insert(root, now);
        let (id, now) = (self.places[place].id.clone(), self.clock.now());
        self.fleet.write().reached(&id, now);
        Outcome::Stored(CopyState::Claimed, VerifyMethod::Written)
    }

    /// A good copy that can be read; the local one is repaired from it.
    fn has_source(&mut self, root: &Cid, but: usize) -> bool {
        if self.places[0].is_good(root) {
            return true;
        }
        let other = self
            .places
            .iter()
            .enumerate()
            .any(|(n, place)| n != but && place.up && place.is_good(root));
        if other {
            self.places[0].truth.insert(*root, Bytes::Good);
        }
        other
    }

    fn bring_here(&mut self, root: &Cid) -> Outcome {
        if self.has_source(root, 0) {
            return Outcome::Stored(CopyState::Verified, VerifyMethod::ReadBack);
        }
        Outcome::Failed("no good copy in reach".into())
    }

    /// Reads a copy; `None` when nothing is known.
    fn read_back(&mut self, place: usize, root: &Cid) -> Option<Outcome> {
        let refused = self.places[place].up && self.random.u8(0..100) < self.places[place].refuses;
        if refused || !self.places[place].up {
            self.tell(place, if refused { ErrorKind::Timeout } else { ErrorKind::Unavailable });
            let (id, now) = (self.places[place].id.clone(), self.clock.now());
            self.fleet.write().unread(&id, now);
            return None;
        }
        if place == 0 && !self.places[0].is_good(root) && !self.has_source(root, 0) {
            return Some(Outcome::Bad(CopyState::Corrupt));
        }
        Some(match self.places[place].truth.get(root) {
            Some(Bytes::Good) => {
                let now = self.now;
                self.places[place].proven.insert(*root, now);
                self.places[place].read.insert(*root, now);
                Outcome::Verified(VerifyMethod::ReadBack)
            }
            Some(Bytes::Rotten) => Outcome::Bad(CopyState::Corrupt),
            None => Outcome::Bad(CopyState::Lost),
        })
    }

    /// Reads some of a copy: rot may lie where nobody looked. Small ones are read whole.
    fn audit(&mut self, place: usize, root: &Cid) -> Option<Outcome> {
        let looked = self.read_back(place, root)?;
        Some(match looked {
            Outcome::Verified(_) if self.random.u8(0..4) > 0 => Outcome::Audited,
            Outcome::Bad(CopyState::Corrupt) if self.random.u8(0..4) == 0 => Outcome::Audited,
            looked => looked,
        })
    }

    /// Places whose copy stays and is there.
    pub fn confirmed(&mut self, place: usize, root: &Cid) -> Vec<BackendId> {
        let Some(record) = self.namespace.content(root).unwrap() else { return Vec::new() };
        let places = self.machine.places();
        let policy = self.machine.policy_of(&record);
        let content = Content { root, record: &record, policy: &policy };
        let own = self.places[place].id.clone();
        let witnesses = content.witnesses(&self.machine.moment(&places));
        witnesses
            .into_iter()
            .filter(|id| *id != own)
            .filter(|id| {
                let witness = self.places.iter().find(|place| place.id == *id);
                witness.is_some_and(|place| place.up && place.truth.contains_key(root))
            })
            .collect()
    }

    /// The verifier reads some of what is due.
    fn prove(&mut self) {
        let most = self.random.usize(0..20);
        for (id, root) in self.machine.take_proofs(most) {
            let Some(place) = self.places.iter().position(|place| place.id == id) else { continue };
            let looked = if self.places[place].audits {
                self.audit(place, &root)
            } else {
                self.read_back(place, &root)
            };
            match looked {
                Some(outcome) => self.record(place, vec![(root, outcome)]),
                None => self.machine.request_sweep(),
            }
        }
    }

    /// What was given up is deleted, if it still is.
    fn collect(&mut self) {
        for place in 0..self.places.len() {
            let now = self.now;
            let due: Vec<Cid> = self.places[place]
                .garbage
                .iter()
                .filter(|(_, when)| **when <= now)
                .map(|(root, _)| *root)
                .collect();
            for root in due {
                let id = self.places[place].id.clone();
                let released = self.state_at(&root, &id) == Some(CopyState::Released);
                let may = self.places[place].up
                    && !self.is_read_only(place)
                    && self.may_collect(place, &root);
                if released && may && !self.in_flight(place, &root) {
                    self.check_release(place, &root);
                    self.note(format!("{id} {} deleted", short(&root)));
                    self.places[place].truth.remove(&root);
                    self.places[place].garbage.remove(&root);
                    self.check_above_min(&root);
                    self.check();
                } else if !released {
                    self.places[place].garbage.remove(&root);
                }
            }
        }
    }

    /// What a collection asks before it deletes.
    fn may_collect(&mut self, place: usize, root: &Cid) -> bool {
        let record = self.namespace.content(root).unwrap().unwrap();
        let policy = self.machine.policy_of(&record);
        let confirmed = self.confirmed(place, root);
        let places = self.machine.places();
        let content = Content { root, record: &record, policy: &policy };
        content.may_collect(&self.places[place].id, &confirmed, &self.machine.moment(&places))
    }

    fn in_flight(&self, place: usize, root: &Cid) -> bool {
        self.running.iter().any(|Reverse(running)| {
            running.place == place
                && self
                    .tasks
                    .get(&running.number)
                    .is_some_and(|(tasks, _)| tasks.iter().any(|task| task.root == *root))
        })
    }

    /// A client writes a file.
    pub fn write(&mut self) {
        // Now and then a file has what another one has.
        let known = self.random.usize(0..8 * CONTENTS);
        if let Some(root) = self.contents.keys().nth(known).copied() {
            self.machine.ask_for(&[root]);
        }
        if self.contents.len() >= CONTENTS {
            return;
        }
        let number = self.numbers + 1;
        self.numbers = number;
        let root = cid::of_raw(
            &(self.seed, number)
                .0
                .to_le_bytes()
                .iter()
                .chain(&number.to_le_bytes())
                .copied()
                .collect::<Vec<u8>>(),
        );
        let max = self.random.u8(1..=5);
        let target = self.random.u8(1..=max);
        let min = self.random.u8(1..=target);
        let now = self.clock.now();
        let node = NewNode {
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            umask: None,
            rdev: 0,
            target: Vec::new(),
            now,
        };
        let name = Name::new(format!("file-{number}")).unwrap();
        let created = self.namespace.create(Ino::ROOT, &name, &node).unwrap();
        let local = CopyRecord {
            backend: BackendId::local(),
            state: CopyState::Verified,
            at: now,
            method: VerifyMethod::Written,
        };
        let size = self.random.u64(1..64 << 20);
        let record = ContentRecord {
            size,
            tsize: size,
            blocks: 1,
            refs: 0,
            profile: "p".into(),
            min,
            target,
            max,
            pin: if min > 1 || self.cache { PinState::BelowMin } else { PinState::BelowTarget },
            copies: if self.cache { Vec::new() } else { vec![local] },
            holes: 0,
            policies: vec![policy_number(min.into(), target.into(), max.into())],
            created_s: now.seconds,
            accessed_s: now.seconds,
        };
        let commit = ContentCommit {
            ino: created.ino,
            version: created.inode.version,
            root: Some(root),
            record,
            shared: false,
            enqueue: true,
            size,
            mtime: now,
        };
        assert_eq!(self.namespace.commit_contents(&[commit]).unwrap(), [true]);
        self.places[0].truth.insert(root, Bytes::Good);
        let now = self.now;
        self.places[0].proven.insert(root, now);
        let known = Known {
            file: (name, created.ino),
            policy: (min, target, max),
            acked: None,
            losses: 0,
            durable: false,
        };
        self.contents.insert(root, known);
        self.machine.ask_for(&[root]);
        self.note(format!("write {} min={min} target={target} max={max}", short(&root)));
        self.acknowledge();
    }

    /// Clients that have what their level asks for are told so.
    pub fn acknowledge(&mut self) {
        let places = self.machine.places();
        let mut acked = Vec::new();
        for (root, known) in self.contents.iter().filter(|(_, known)| known.acked.is_none()) {
            let Some(record) = self.namespace.content(root).unwrap() else { continue };
            let policy = self.machine.policy_of(&record);
            let held = places.held(&record.copies, policy.distinct);
            let (have, target) = (held.len(), usize::from(known.policy.1));
            let configured = places.configured(&held, &policy).min(target.max(have));
            let want = policy.copies_to_wait_for(configured, !self.cache);
            let quorum = policy.min.max(policy.target / 2 + 1);
            if want != usize::from(quorum) {
                self.fail(&format!("a quorum of {} is {quorum}, not {want}", policy.target));
            }
            let want = want.min(configured);
            if have >= want {
                // More than the target is nobody's promise: it may be trimmed.
                acked.push((*root, have.min(target)));
            }
        }
        if acked.is_empty() {
            return;
        }
        for (root, have) in acked {
            let well = self.good_domains(&root);
            self.note(format!("acknowledged {} with {have}, {well} good", short(&root)));
            if let Some(known) = self.contents.get_mut(&root) {
                known.acked = Some(have);
            }
        }
        // An acknowledgement makes the metadata durable.
        self.save();
    }

    pub fn save(&mut self) {
        self.saved = self.engine.state();
        for known in self.contents.values_mut() {
            known.durable = true;
        }
    }

    /// `kill -9`, or the power: what was not saved is gone, and so is what is under
    /// way, done or not.
    pub fn crash(&mut self) {
        let running: Vec<(usize, Vec<Task>)> = std::mem::take(&mut self.running)
            .into_sorted_vec()
            .into_iter()
            .filter_map(|Reverse(running)| {
                let (tasks, early) = self.tasks.remove(&running.number)?;
                early.then_some((running.place, tasks))
            })
            .collect();
        for (place, tasks) in running {
            // Its effect, without the record of it.
            let sends: Vec<Task> = tasks.into_iter().filter(|t| t.job != Job::Release).collect();
            self.work(place, &sends);
        }
        self.tasks.clear();
        self.busy.clear();
        self.engine = Arc::new(MemoryEngine::with_state(&self.saved));
        self.contents.retain(|_, known| known.durable);
        let (namespace, fleet, machine) =
            open(&self.engine, &self.clock, (&self.places, self.cache), self.random.u64(..));
        (self.namespace, self.fleet, self.machine) = (namespace, fleet, machine);
        self.forget_absences();
    }

    /// Faults took a copy.
    pub fn lost(&mut self, root: &Cid) {
        if let Some(known) = self.contents.get_mut(root) {
            known.losses += 1;
        }
    }

    /// Distinct domains with good bytes that count, in reach or not.
    pub fn good_domains(&self, root: &Cid) -> usize {
        let good = self.places.iter().skip(usize::from(self.cache));
        let good = good.filter(|place| place.is_good(root));
        good.map(|place| &place.domain).collect::<BTreeSet<_>>().len()
    }

    pub fn fail(&self, what: &str) -> ! {
        let all = std::env::var_os("CAIRN_TRACE").is_some();
        let from = if all { 0 } else { self.trace.len().saturating_sub(60) };
        panic!(
            "seed {}: {what}, after {:?}\n{}",
            self.seed,
            self.elapsed(),
            self.trace[from..].join("\n")
        );
    }
}

pub fn short(root: &Cid) -> String {
    let text = root.to_string();
    text[text.len() - 6..].to_owned()
}

/// The number of a policy in the book.
pub fn policy_number(min: u32, target: u32, max: u32) -> u32 {
    min * 100 + target * 10 + max
}

fn error(kind: ErrorKind) -> BackendError {
    BackendError::new(kind, "a simulated fault")
}

pub fn facts(place: &Place) -> Facts {
    Facts { kind: "sim".into(), domain: place.domain.clone(), durable: true, read_only: false }
}

fn open(
    engine: &Arc<MemoryEngine>,
    clock: &Arc<ManualClock>,
    (places, cache): (&[Place], bool),
    seed: u64,
) -> (Arc<Namespace>, Arc<RwLock<Fleet>>, Machine) {
    let engine = Arc::clone(engine) as Arc<dyn Engine>;
    let now = clock.now();
    let namespace = Arc::new(Namespace::open(engine, now).unwrap());
    let mut known: BTreeMap<BackendId, BackendRecord> =
        namespace.backend_records().unwrap().into_iter().collect();
    let mut fleet = Fleet::new("here".into(), GRACE);
    fleet.set_local_cache(cache);
    fleet.set_newest_proofs(namespace.stats().newest);
    for place in places.iter().skip(1).filter(|place| place.member) {
        join(&mut fleet, place, known.remove(&place.id).unwrap_or_default(), now);
    }
    let fleet = Arc::new(RwLock::new(fleet));
    let options = MachineOptions {
        proof_age: Duration::from_hours(24),
        scrub_period: SCRUB,
        // Of some 20: a sample, not all.
        sample_contents: 2,
        seed,
        ..MachineOptions::default()
    };
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    let mut limits = Vec::new();
    for (min, target, max) in (0..125u32).map(|n| (n / 25 + 1, n / 5 % 5 + 1, n % 5 + 1)) {
        if min <= target && target <= max {
            limits.push((
                policy_number(min, target, max),
                format!("min={min},target={target},max={max}"),
            ));
        }
    }
    let book = Arc::new(PolicyBook::new(limits));
    let machine = Machine::new(Arc::clone(&namespace), Arc::clone(&fleet), clock, options, book);
    machine.load_moves().unwrap();
    (namespace, fleet, machine)
}
