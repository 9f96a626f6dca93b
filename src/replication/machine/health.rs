//! Whether a backend answers. Pure: the time is given.
//!
//! `up` -> `degraded` at the first error, -> `down` after some in a row; back when
//! a probe is answered. One that goes down again soon has to answer more probes, so
//! that a place that comes and goes is not trusted each time. Away for
//! longer than the grace period it is *given up*: copies there stop counting, and
//! count again one by one when each was proven after its return.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::BackendState;
use super::speed::{Doubt, Misled, Speed, Trust};
use super::time::{plus, since};
use crate::backends::{BackendError, ErrorKind};
use crate::metadata::BackendRecord;
use crate::types::Timestamp;

/// Temporary failures in a row after which a backend counts as down.
const FAILURES_TO_DOWN: u32 = 5;
/// A call that got no answer was waited for long enough: two in a row do, of
/// which one may be a probe.
const FAILURES_OF_A_TIMEOUT: u32 = 3;
/// Going down again within this time asks for more answers before it is back.
const FLAP_WINDOW: Duration = Duration::from_mins(15);
/// Proofs that failed this far apart are not one failure.
const UNPROVEN_GAP: Duration = Duration::from_hours(1);
/// Answers at most: one that refuses a call now and then must stay of use.
pub const MOST_ANSWERS: u32 = 4;
/// Buckets of the histogram of latencies: up to 1, 2, 4, ... milliseconds, and
/// the last one for all above.
pub const BUCKETS: usize = 18;

/// Health of one backend.
#[derive(Debug, Clone)]
pub struct Health {
    /// As it counts now.
    pub state: BackendState,
    /// Since when it is out of reach.
    pub away_since: Option<Timestamp>,
    /// Away for longer than the grace period.
    pub given_up: bool,
    /// Proofs from before do not count.
    pub trusted_since: Timestamp,
    /// The newest proof of a copy there that is known.
    pub newest_proof: Timestamp,
    /// Last error, for people; empty when none.
    pub last_error: String,
    /// Of reads, as a moving average; zero before the first.
    pub latency: Duration,
    /// Of reads, by the size of what they bring.
    pub speed: Speed,
    /// How long a mebibyte that is sent there takes, as a moving average; zero before
    /// the first.
    pub send_mib: Duration,
    /// Reads that were misled.
    pub doubt: Doubt,
    /// Bytes of good blocks that were read there since the start.
    pub read_bytes: u64,
    /// Calls that were answered, by [`BUCKETS`].
    pub latencies: [u64; BUCKETS],
    /// Errors by kind, since the start.
    pub errors: BTreeMap<ErrorKind, u64>,
    failures: u32,
    /// Answers since it went down, less the failures.
    answers: u32,
    /// Times it went down, each forgotten after a window without.
    flaps: u32,
    last_down: Timestamp,
    /// Of the proofs there that failed since one did not: the first, and the last.
    unproven: Option<(Timestamp, Timestamp)>,
}

/// What changed for what is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthChange {
    /// It takes no part any more.
    Lost,
    /// It takes part (again).
    Back,
    /// Copies there stop counting.
    GivenUp,
}

fn takes_writes(state: BackendState) -> bool {
    matches!(state, BackendState::Up | BackendState::Degraded)
}

impl Health {
    /// Of a backend that was never reached: away since `now`, unless the record
    /// of an earlier life says since when.
    #[must_use]
    pub fn unknown(record: &BackendRecord, now: Timestamp) -> Self {
        Self {
            state: BackendState::Down,
            away_since: Some(record.away_since.map_or(now, |since| since.min(now))),
            given_up: record.given_up,
            trusted_since: record.trusted_since,
            newest_proof: record.trusted_since,
            last_error: String::new(),
            latency: Duration::ZERO,
            speed: Speed::default(),
            doubt: Doubt::default(),
            read_bytes: 0,
            latencies: [0; BUCKETS],
            send_mib: Duration::ZERO,
            errors: BTreeMap::new(),
            failures: 0,
            answers: 0,
            flaps: 0,
            last_down: Timestamp::default(),
            unproven: None,
        }
    }

    /// What a place that is planned for has of it: see [`super::Places`].
    pub(super) fn in_places(&self) -> (BackendState, bool, Timestamp, (Duration, Duration)) {
        (self.state, self.given_up, self.trusted_since, self.pace())
    }

    /// The time of an answer, and that of a mebibyte beyond it; zero: not known.
    #[must_use]
    pub fn pace(&self) -> (Duration, Duration) {
        let read = self.speed.expected(1 << 20).map(|all| all.saturating_sub(self.latency));
        (self.latency, self.send_mib.max(read.unwrap_or_default()))
    }

    /// How far readers believe it.
    #[must_use]
    pub fn trust(&self, now: Timestamp) -> Trust {
        let failing =
            if self.state == BackendState::Degraded { Trust::Doubtful } else { Trust::Good };
        self.doubt.trust(now).max(failing)
    }

    /// A read was answered with so many bytes after so long.
    pub fn answered(&mut self, bytes: u64, took: Duration, now: Timestamp) {
        self.speed.answered(bytes, took, now);
        self.latency = if self.latency.is_zero() { took } else { (self.latency * 7 + took) / 8 };
        self.count(took);
        if self.state == BackendState::Degraded {
            self.state = BackendState::Up;
        }
        self.failures = 0;
        self.unproven = None;
    }

    /// A probe was answered after so long: all that is known of a place where nothing was
    /// read.
    pub fn probed(&mut self, took: Duration) {
        if self.speed.is_unknown() {
            self.latency =
                if self.latency.is_zero() { took } else { (self.latency * 7 + took) / 8 };
        }
        self.count(took);
    }

    /// So many bytes were sent there, and are durable, after so long.
    pub fn sent(&mut self, bytes: u64, took: Duration) {
        const MIB: u64 = 1 << 20;
        // What is less measures the latency.
        if bytes >= MIB {
            let micros = took.as_micros().saturating_mul(MIB.into()) / u128::from(bytes);
            let mib = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
            self.send_mib =
                if self.send_mib.is_zero() { mib } else { (self.send_mib * 7 + mib) / 8 };
        }
    }

    fn count(&mut self, took: Duration) {
        let bucket = took.as_millis().max(1).next_power_of_two().trailing_zeros() as usize;
        if let Some(count) = self.latencies.get_mut(bucket.min(BUCKETS - 1)) {
            *count += 1;
        }
    }

    /// A call failed. What says nothing about the place (a block that is not
    /// there, a wrong request) counts for nothing.
    pub fn failed(&mut self, error: &BackendError, now: Timestamp) -> Option<HealthChange> {
        *self.errors.entry(error.kind).or_default() += 1;
        let before = self.state;
        if before == BackendState::Down {
            self.last_error.clone_from(&error.message);
            let answers = match error.kind {
                // It says so itself: what lies there can be read.
                ErrorKind::ReadOnly | ErrorKind::Denied => BackendState::ReadOnly,
                ErrorKind::Full => BackendState::Full,
                _ => {
                    self.answers = self.answers.saturating_sub(1);
                    return None;
                }
            };
            let change = self.reached(answers, now);
            self.last_error.clone_from(&error.message);
            return change;
        }
        let after = match error.kind {
            ErrorKind::NotFound
            | ErrorKind::Corrupt
            | ErrorKind::Invalid
            | ErrorKind::Unsupported => return None,
            ErrorKind::Unavailable => BackendState::Down,
            ErrorKind::ReadOnly | ErrorKind::Denied => BackendState::ReadOnly,
            ErrorKind::Full => BackendState::Full,
            ErrorKind::Timeout | ErrorKind::Throttled | ErrorKind::Other => {
                self.failures +=
                    if error.kind == ErrorKind::Timeout { FAILURES_OF_A_TIMEOUT } else { 1 };
                match before {
                    _ if self.failures >= FAILURES_TO_DOWN => BackendState::Down,
                    BackendState::ReadOnly | BackendState::Full => before,
                    _ => BackendState::Degraded,
                }
            }
        };
        self.answers = 0;
        self.last_error.clone_from(&error.message);
        self.state = after;
        if after == BackendState::Down {
            let soon = since(self.last_down, now) < FLAP_WINDOW;
            self.flaps = if soon { self.flaps.saturating_add(1) } else { 0 };
            if self.flaps > 0 {
                self.doubt.add(Misled::Flapped, now);
            }
            self.last_down = now;
            self.away_since = Some(now);
        }
        (takes_writes(before) && !takes_writes(after)).then_some(HealthChange::Lost)
    }

    /// A copy there could not be read, for a reason of the place's own. One that answers
    /// probes and gives nothing back would return again and again, each time in time: when
    /// proofs have failed for the grace period, and none has not, it is away since then.
    pub fn unread(&mut self, grace: Duration, now: Timestamp) {
        let known = self.unproven.filter(|(first, last)| {
            *first <= now && *last <= now && since(*last, now) < UNPROVEN_GAP
        });
        let (first, _) = known.unwrap_or((now, now));
        self.unproven = Some((first, now));
        if since(first, now) >= grace {
            self.state = BackendState::Down;
            self.answers = 0;
            self.last_down = now;
            self.away_since = Some(first);
        }
    }

    /// A copy there was read, good or bad.
    pub fn read(&mut self) {
        self.unproven = None;
    }

    /// A probe or a write was answered; `state` is what the place can do now.
    pub fn reached(&mut self, state: BackendState, now: Timestamp) -> Option<HealthChange> {
        let before = self.state;
        if before == BackendState::Down {
            self.answers = self.answers.saturating_add(1);
            if self.answers < self.answers_to_return() {
                return None;
            }
            self.away_since = None;
            if std::mem::take(&mut self.given_up) {
                // After every proof from before, whatever the clock did since.
                self.trusted_since = now.max(plus(self.newest_proof, Duration::from_nanos(1)));
            }
        }
        self.answers = 0;
        self.failures = 0;
        self.state = state;
        if state != BackendState::Full {
            self.last_error.clear();
        }
        (takes_writes(state) && !takes_writes(before)).then_some(HealthChange::Back)
    }

    /// The user vouches for it: no errors and no flapping are held against it any
    /// more. Its copies have to be proven again: nobody knows what happened there.
    pub fn recovered(&mut self, state: BackendState, now: Timestamp) {
        self.away_since = None;
        self.given_up = false;
        self.trusted_since = now.max(plus(self.newest_proof, Duration::from_nanos(1)));
        (self.answers, self.failures, self.flaps) = (0, 0, 0);
        self.doubt = Doubt::default();
        self.last_down = Timestamp::default();
        self.unproven = None;
        self.state = state;
        self.last_error.clear();
    }

    /// Probes that it has to answer when it is down.
    #[must_use]
    pub fn answers_to_return(&self) -> u32 {
        (1 << self.flaps.min(8)).min(MOST_ANSWERS)
    }

    /// Time passed.
    pub fn tick(&mut self, grace: Duration, now: Timestamp) -> Option<HealthChange> {
        let away_since = self.away_since?;
        if away_since > now {
            // The clock went back: the grace period begins anew.
            self.away_since = Some(now);
            return None;
        }
        if self.given_up || since(away_since, now) < grace {
            return None;
        }
        self.given_up = true;
        Some(HealthChange::GivenUp)
    }

    /// When [`Health::tick`] will have something to say.
    #[must_use]
    pub fn due(&self, grace: Duration) -> Option<Timestamp> {
        self.away_since.filter(|_| !self.given_up).map(|since| plus(since, grace))
    }

    /// A proof of a copy there was made then.
    pub fn proven(&mut self, at: Timestamp) {
        self.newest_proof = self.newest_proof.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_mins(15);

    fn at(seconds: u64) -> Timestamp {
        plus(Timestamp::default(), Duration::from_secs(1_000_000 + seconds))
    }

    fn up() -> Health {
        let mut health = Health::unknown(&BackendRecord::default(), at(0));
        assert_eq!(health.reached(BackendState::Up, at(0)), Some(HealthChange::Back));
        health
    }

    fn fail(health: &mut Health, kind: ErrorKind, seconds: u64) -> Option<HealthChange> {
        health.failed(&BackendError::new(kind, "no"), at(seconds))
    }

    #[test]
    fn copies_stop_counting_after_the_grace_period_and_not_before() {
        let mut health = up();
        assert_eq!(fail(&mut health, ErrorKind::Unavailable, 10), Some(HealthChange::Lost));
        assert_eq!(health.due(GRACE), Some(at(910)));
        assert_eq!(health.tick(GRACE, at(909)), None);
        assert_eq!(health.tick(GRACE, at(910)), Some(HealthChange::GivenUp));
        assert_eq!(health.tick(GRACE, at(2000)), None, "it is said once");
        health.proven(at(5000));
        assert_eq!(health.reached(BackendState::Up, at(2001)), Some(HealthChange::Back));
        assert!(health.trusted_since > at(5000), "a proof under a wrong clock does not count");
        assert!(!health.given_up && health.away_since.is_none());
    }

    #[test]
    fn one_that_returns_in_time_keeps_its_copies() {
        let mut health = up();
        let trusted = health.trusted_since;
        fail(&mut health, ErrorKind::Unavailable, 10);
        health.reached(BackendState::Up, at(600));
        assert_eq!((health.tick(GRACE, at(5000)), health.trusted_since), (None, trusted));
    }

    #[test]
    fn probes_and_sends_measure_a_place_that_nobody_reads_from() {
        let mut health = up();
        health.probed(Duration::from_millis(8));
        health.sent(1000, Duration::from_secs(1));
        assert_eq!(health.pace(), (Duration::from_millis(8), Duration::ZERO));
        health.sent(4 << 20, Duration::from_millis(400));
        assert_eq!(health.pace(), (Duration::from_millis(8), Duration::from_millis(100)));
        assert_eq!(health.latencies[3], 1, "in the histogram");
        // What reads measure counts for more than probes.
        health.answered(100, Duration::from_millis(2), at(1));
        let read = health.latency;
        health.probed(Duration::from_secs(9));
        assert_eq!(health.latency, read);
    }

    #[test]
    fn one_that_answers_probes_and_gives_nothing_back_is_given_up() {
        let mut health = up();
        let back = |health: &mut Health, seconds| {
            for answer in 1..=u64::from(MOST_ANSWERS) {
                health.reached(BackendState::Up, at(seconds + answer));
            }
            assert_eq!(health.state, BackendState::Up);
        };
        for seconds in [0, 300, 600, 899] {
            fail(&mut health, ErrorKind::Unavailable, seconds);
            health.unread(GRACE, at(seconds));
            assert_eq!(health.tick(GRACE, at(seconds + 1)), None);
            back(&mut health, seconds);
        }
        health.unread(GRACE, at(950));
        assert_eq!((health.state, health.away_since), (BackendState::Down, Some(at(0))));
        assert_eq!(health.tick(GRACE, at(950)), Some(HealthChange::GivenUp));
        // When it comes back nothing is believed, and the next proof that fails says so again.
        back(&mut health, 960);
        assert!(health.trusted_since >= at(960));
        health.unread(GRACE, at(990));
        assert_eq!(health.tick(GRACE, at(990)), Some(HealthChange::GivenUp));
        back(&mut health, 1000);
        health.read();
        health.unread(GRACE, at(1010));
        assert_eq!((health.state, health.tick(GRACE, at(1010))), (BackendState::Up, None));
    }

    #[test]
    fn one_that_comes_and_goes_is_not_given_up_for_what_nobody_read() {
        let mut health = up();
        for seconds in (0..9000).step_by(300) {
            fail(&mut health, ErrorKind::Unavailable, seconds);
            assert_eq!(health.tick(GRACE, at(seconds + 1)), None);
            for answer in 1..=u64::from(MOST_ANSWERS) {
                health.reached(BackendState::Up, at(seconds + answer));
            }
        }
        // Failures that lie far apart are not one.
        health.unread(GRACE, at(10_000));
        health.unread(GRACE, at(14_000));
        assert_eq!(health.state, BackendState::Up);
    }

    #[test]
    fn the_grace_period_goes_on_over_a_restart_and_begins_anew_when_the_clock_goes_back() {
        let mut record = BackendRecord { away_since: Some(at(0)), ..BackendRecord::default() };
        let mut health = Health::unknown(&record, at(800));
        assert_eq!(health.tick(GRACE, at(900)), Some(HealthChange::GivenUp));
        record.away_since = Some(at(9000));
        let mut health = Health::unknown(&record, at(100));
        assert_eq!(health.tick(GRACE, at(999)), None);
        assert_eq!(health.tick(GRACE, at(1000)), Some(HealthChange::GivenUp));
    }

    #[test]
    fn one_that_flaps_has_to_answer_more_often() {
        let mut health = up();
        for (round, wanted) in [1, 2, 4, 4, 4].into_iter().enumerate() {
            let now = 100 * round as u64;
            fail(&mut health, ErrorKind::Unavailable, now);
            assert_eq!(health.answers_to_return(), wanted);
            for _ in 1..wanted {
                assert_eq!(health.reached(BackendState::Up, at(now + 1)), None);
            }
            assert_eq!(health.reached(BackendState::Up, at(now + 2)), Some(HealthChange::Back));
        }
        fail(&mut health, ErrorKind::Unavailable, 10_000);
        assert_eq!(health.answers_to_return(), 1, "it was good for a while");
    }

    #[test]
    fn one_that_the_user_recovers_has_no_past_and_has_to_prove_its_copies() {
        let mut health = up();
        for now in [10, 20, 30] {
            fail(&mut health, ErrorKind::Unavailable, now);
            for _ in 0..4 {
                health.reached(BackendState::Up, at(now + 1));
            }
        }
        fail(&mut health, ErrorKind::Unavailable, 40);
        health.tick(GRACE, at(5000));
        health.proven(at(9000));
        health.recovered(BackendState::Up, at(6000));
        assert!(health.trusted_since > at(9000), "a proof under a wrong clock does not count");
        assert!(!health.given_up && health.away_since.is_none());
        fail(&mut health, ErrorKind::Unavailable, 6001);
        assert_eq!(health.answers_to_return(), 1, "it starts anew");
    }

    #[test]
    fn an_answer_forgives_errors_and_errors_in_a_row_do_not() {
        let mut health = up();
        for _ in 0..4 {
            assert_eq!(fail(&mut health, ErrorKind::Other, 1), None);
            assert_eq!(health.state, BackendState::Degraded);
        }
        health.answered(10, Duration::from_millis(3), at(2));
        assert_eq!(health.state, BackendState::Up);
        assert_eq!(health.latencies[2], 1);
        for _ in 0..4 {
            fail(&mut health, ErrorKind::Throttled, 2);
        }
        assert_eq!(fail(&mut health, ErrorKind::Other, 3), Some(HealthChange::Lost));
        assert_eq!(health.errors[&ErrorKind::Throttled], 4);
    }
}
