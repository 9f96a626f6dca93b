//! The replication core: a deterministic state machine without I/O.
//!
//! Told what answered, failed and was done, with a clock and the rows of contents
//! and of the queue, it says what is to be done next: which place is to be sent,
//! repaired, proven or relieved of which content, riskiest first. Threads, sockets
//! and disks are the executor's; the simulator drives the same code through years
//! of failures. It starts no thread, sleeps never, and draws its random numbers
//! from a seed.
//!
//! Locks, each taken alone but for the first four, under which the others may be:
//! `stepping`, `moving`, `recording`, `saving`, `ended`, `fleet`, `lanes`, `sweep`, `proofs`,
//! `random`, `asked`, `samples`, `watched`.

mod budget;
mod fleet;
mod forecast;
mod gather;
mod health;
mod lanes;
mod mover;
mod moves;
mod outcome;
mod placement;
mod places;
mod planner;
mod proofs;
mod queue;
mod rows;
mod sources;
mod speed;
mod spent;
mod survey;
mod time;

pub use self::budget::Bucket;
pub use self::fleet::{Facts, Fleet, Member};
pub use self::forecast::{Forecast, Step, forecast};
pub use self::health::{BUCKETS, Health, HealthChange, MOST_ANSWERS};
pub use self::lanes::{Lanes, Pace, Taken, Task, Work};
pub use self::mover::MoveReport;
pub use self::moves::{Moves, Stage, WINDOW};
pub use self::outcome::{Outcome, apply};
pub use self::placement::{Choice, Rank, Ranking, Wanted, choose, judge};
pub use self::places::{Candidate, CopyCounts, DomainSet, Places, Standing};
pub use self::planner::{Content, Dirty, Job, Moment, Plan, Verdict, is_aged, passed_over, plan};
pub(super) use self::queue::CANCELLED;
pub use self::sources::{Holds, Source, order};
pub use self::speed::{Doubt, Misled, Speed, Trust};
pub use self::spent::{Spent, month_of};
pub use self::survey::{Ailing, Proven, Stuck};
pub use self::time::{apart, plus, since};

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use self::mover::{Ended, Moving};
use self::proofs::{Proofs, Samples};
use self::rows::Sweep;
use super::{Policy, PolicyBook};
use crate::backends::Micros;
use crate::metadata::{ContentRecord, MetadataError, Namespace};
use crate::runtime::Clock;
use crate::types::{BackendId, Cid};

#[cfg(test)]
mod tests;

/// Contents that are remembered as asked for; who waits for one asks again.
const ASKED: usize = 16_384;

/// Times of the core.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    /// First and longest pause between rounds of one content.
    pub backoff: (Duration, Duration),
    /// A copy's proof lets another copy go for so long.
    pub proof_age: Duration,
    /// A content that is asked for anew relies on a copy that was looked at since then;
    /// an older one is audited first.
    pub dedup_proof: Duration,
    /// Contents of each place, chosen at random, that are proven again each day.
    pub sample_contents: usize,
    /// Every content is looked at this often.
    pub check_interval: Duration,
    /// Every copy is read back this often.
    pub scrub_period: Duration,
    /// What copies may cost a month.
    pub cost_ceiling: Option<Micros>,
    /// Of the jitter.
    pub seed: u64,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self {
            backoff: (Duration::from_secs(1), Duration::from_mins(5)),
            proof_age: Duration::from_hours(24),
            dedup_proof: Duration::from_hours(24 * 7),
            sample_contents: 64,
            check_interval: Duration::from_mins(15),
            scrub_period: Duration::from_hours(24 * 30),
            cost_ceiling: None,
            seed: 0,
        }
    }
}

/// What a turn of the scheduler found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    /// A place came back: what waits for one is due.
    pub back: bool,
    /// Copies at these places stopped counting.
    pub given_up: Vec<BackendId>,
    /// There is more to do at once.
    pub more: bool,
}

/// The core.
pub struct Machine {
    namespace: Arc<Namespace>,
    fleet: Arc<RwLock<Fleet>>,
    clock: Arc<dyn Clock>,
    options: MachineOptions,
    policies: Arc<PolicyBook>,
    lanes: Mutex<Lanes>,
    sweep: Mutex<Sweep>,
    proofs: Mutex<Proofs>,
    moving: Mutex<Moving>,
    ended: Mutex<Ended>,
    /// A wish neither begins nor ends while a step is made.
    stepping: Mutex<()>,
    random: Mutex<fastrand::Rng>,
    /// Contents that files were written with since they were last planned.
    asked: Mutex<HashSet<Cid>>,
    samples: Mutex<Samples>,
    /// The fleet's epoch and losses that were acted on.
    seen: Mutex<(u64, u64)>,
    /// Contents whose next results at a place somebody waits for.
    watched: Mutex<HashMap<Cid, Vec<(BackendId, Outcome)>>>,
    /// Results are recorded one transaction at a time: two for the same contents
    /// would only conflict.
    recording: Mutex<()>,
    /// What is known of backends is written in the order in which it came about.
    saving: Mutex<()>,
    stopped: AtomicBool,
}

impl Machine {
    /// Over these rows and places. All rows are due at once: a place may have
    /// come while nobody looked.
    #[must_use]
    pub fn new(
        namespace: Arc<Namespace>,
        fleet: Arc<RwLock<Fleet>>,
        clock: Arc<dyn Clock>,
        options: MachineOptions,
        policies: Arc<PolicyBook>,
    ) -> Self {
        let seed = options.seed;
        let (epoch, losses) = {
            let mut fleet = fleet.write();
            fleet.set_ceiling(options.cost_ceiling);
            fleet.set_held(&namespace.stats().backends);
            (fleet.epoch(), fleet.losses())
        };
        let mut lanes = Lanes::default();
        lanes.request_scan(true);
        Self {
            namespace,
            fleet,
            clock,
            options,
            policies,
            lanes: Mutex::new(lanes),
            sweep: Mutex::default(),
            proofs: Mutex::default(),
            moving: Mutex::default(),
            ended: Mutex::default(),
            stepping: Mutex::default(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            asked: Mutex::default(),
            samples: Mutex::default(),
            seen: Mutex::new((epoch, losses)),
            watched: Mutex::default(),
            recording: Mutex::default(),
            saving: Mutex::default(),
            stopped: AtomicBool::new(false),
        }
    }

    /// The places.
    #[must_use]
    pub fn fleet(&self) -> &RwLock<Fleet> {
        &self.fleet
    }

    /// The window of the queue.
    #[must_use]
    pub fn lanes(&self) -> &Mutex<Lanes> {
        &self.lanes
    }

    /// Its times.
    #[must_use]
    pub fn options(&self) -> &MachineOptions {
        &self.options
    }

    /// Long scans end.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The places as they are now.
    #[must_use]
    pub fn places(&self) -> Arc<Places> {
        self.fleet.read().places()
    }

    /// These rows and places, now.
    #[must_use]
    pub fn moment<'m>(&self, places: &'m Places) -> Moment<'m> {
        Moment { places, now: self.clock.now(), proof_age: self.options.proof_age }
    }

    /// The policy that holds for a content.
    #[must_use]
    pub fn policy_of(&self, record: &ContentRecord) -> Arc<Policy> {
        self.policies.of(&record.policies)
    }

    /// Files were written that have these contents, or somebody waits for their copies:
    /// those that were not looked at for long are audited.
    pub fn ask_for(&self, roots: &[Cid]) {
        {
            let mut asked = self.asked.lock();
            let room = ASKED.saturating_sub(asked.len());
            asked.extend(roots.iter().take(room));
        }
        self.submit(roots);
    }

    /// These contents have rows that are new, or should not wait for theirs.
    pub fn submit(&self, roots: &[Cid]) {
        self.lanes.lock().submit(roots);
    }

    /// One turn of the scheduler: who stopped or began to count, what was
    /// submitted, what is due, and a part of the look at all contents.
    ///
    /// # Errors
    /// Of the metadata; the work is due again then.
    pub fn turn(&self) -> Result<Turn, MetadataError> {
        let now = self.clock.now();
        let held = self.namespace.stats().backends;
        let (given_up, epoch, losses) = {
            let mut fleet = self.fleet.write();
            fleet.set_held(&held);
            let given_up = fleet.tick(now);
            (given_up, fleet.epoch(), fleet.losses())
        };
        self.save_backends()?;
        let places = self.places();
        let known = |id: &BackendId| id.is_local() || places.number(id).is_some();
        self.lanes.lock().forget_all_but(known);
        let mut turn = Turn { given_up, ..Turn::default() };
        let (seen_epoch, seen_losses) = std::mem::replace(&mut *self.seen.lock(), (epoch, losses));
        if seen_epoch != epoch {
            turn.back = true;
            self.lanes.lock().request_scan(true);
        }
        if seen_losses != losses || seen_epoch != epoch {
            self.request_sweep();
        }
        let done = self.plan_due();
        self.lanes.lock().planned();
        done?;
        self.sample(now)?;
        turn.more = self.sweep_some()? || self.lanes.lock().has_incoming();
        Ok(turn)
    }

    /// Writes what is known of backends where it changed.
    fn save_backends(&self) -> Result<(), MetadataError> {
        let _one = self.saving.lock();
        let unsaved = self.fleet.write().take_unsaved();
        for (id, record) in unsaved {
            self.namespace.set_backend_record(&id, Some(&record))?;
        }
        Ok(())
    }

    /// The next work of a place, for one of its workers.
    #[must_use]
    pub fn take(&self, id: &BackendId, worker: usize) -> Taken {
        let now = self.clock.now();
        self.lanes.lock().take(id, worker, now)
    }

    /// A worker of a place is done with these, well or not; true when some are to be
    /// planned again.
    pub fn finished(&self, id: &BackendId, roots: &[Cid]) -> bool {
        self.lanes.lock().done(id, roots)
    }

    /// Doubles with each attempt, to a limit, with jitter.
    fn pause(&self, attempts: u32) -> Duration {
        let (first, longest) = self.options.backoff;
        let bound = first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(longest);
        bound.mul_f64(0.5 + self.random.lock().f64() / 2.0)
    }
}
