//! How quickly a place answers reads, and how far it is to be believed. Pure: the time
//! is given.
//!
//! An answer takes a time of its own and a time for its bytes: small blocks measure the
//! first, large ones the second, both as moving averages. How far answers lie from what
//! was expected is averaged, too; an answer that is late by four of these is an
//! exception (the retransmission timeout of TCP, RFC 6298).

use std::time::Duration;

use super::time::since;
use crate::types::Timestamp;

/// Blocks up to this many bytes measure the time of an answer itself.
const SMALL: u64 = 64 << 10;
const MIB: u64 = 1 << 20;
/// With nothing measured, the next place is asked after this long.
const HEDGE_UNKNOWN: Duration = Duration::from_millis(300);
/// The next place is asked no sooner, and no later where that may cost a call more.
const HEDGE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// After this long it is asked whatever that costs: the first one hangs. A place that
/// was always that slow has up to the second.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// What was measured counts half after this long: a place that was slow once is tried
/// again.
const FORGET: Duration = Duration::from_mins(5);
/// And what it did wrong.
const FORGIVE: Duration = Duration::from_mins(10);

/// What reads have measured of a place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Speed {
    /// Of an answer without bytes, in microseconds; `None` before a small block came.
    answer_us: Option<u64>,
    /// Of a mebibyte, in microseconds.
    mib_us: u64,
    /// How far answers lie from what was expected, in microseconds.
    off_us: u64,
    answers: u64,
    /// Of the last answer.
    at: Timestamp,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 8).min(u64::MAX / 8)
}

/// A quarter of the way from one to the other.
fn towards(from: u64, to: u64) -> u64 {
    (from / 4).saturating_mul(3).saturating_add(from % 4).saturating_add(to / 4)
}

impl Speed {
    /// A block of so many bytes came after so long.
    pub fn answered(&mut self, bytes: u64, took: Duration, now: Timestamp) {
        let took = micros(took).max(1);
        let expected = self.expected_us(bytes);
        self.off_us = match expected {
            None => took / 2,
            Some(expected) => towards(self.off_us, took.abs_diff(expected)),
        };
        if bytes <= SMALL {
            self.answer_us = Some(self.answer_us.map_or(took, |before| towards(before, took)));
        } else {
            let moving = took.saturating_sub(self.answer_us.unwrap_or(0));
            let mib = u128::from(moving) * u128::from(MIB) / u128::from(bytes);
            let mib = u64::try_from(mib).unwrap_or(u64::MAX / 8);
            self.mib_us = if self.mib_us == 0 { mib } else { towards(self.mib_us, mib) }.max(1);
        }
        self.answers = self.answers.saturating_add(1);
        self.at = now;
    }

    /// After so long another place answered first: it would have taken longer still.
    pub fn late(&mut self, bytes: u64, waited: Duration, now: Timestamp) {
        if self.expected(bytes).is_none_or(|expected| waited > expected) {
            self.answered(bytes, waited.saturating_mul(2), now);
        }
    }

    /// Whether nothing was read there yet.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.answers == 0
    }

    fn expected_us(&self, bytes: u64) -> Option<u64> {
        if self.answers == 0 {
            return None;
        }
        let moving = u128::from(self.mib_us) * u128::from(bytes) / u128::from(MIB);
        let moving = u64::try_from(moving).unwrap_or(u64::MAX / 8);
        Some(self.answer_us.unwrap_or(0).saturating_add(moving))
    }

    /// How long a block of so many bytes is expected to take; `None`: never measured.
    #[must_use]
    pub fn expected(&self, bytes: u64) -> Option<Duration> {
        self.expected_us(bytes).map(Duration::from_micros)
    }

    /// As [`Speed::expected`], less for what was measured long ago.
    #[must_use]
    pub fn expected_now(&self, bytes: u64, now: Timestamp) -> Option<Duration> {
        let halves = since(self.at, now).as_secs() / FORGET.as_secs();
        self.expected(bytes).map(|expected| expected / (1 << halves.min(16)))
    }

    /// When the answer is so late that it is an exception, not bounded.
    fn exceptional(&self, bytes: u64) -> Option<Duration> {
        let expected = self.expected_us(bytes)?;
        Some(Duration::from_micros(expected.saturating_add(self.off_us.saturating_mul(4))))
    }

    /// After how long without an answer the next place is asked, too.
    #[must_use]
    pub fn hedge_after(&self, bytes: u64) -> Duration {
        self.exceptional(bytes).map_or(HEDGE_UNKNOWN, |late| late.clamp(HEDGE.0, HEDGE.1))
    }

    /// After how long it is taken to hang: the next one is asked whatever that costs.
    #[must_use]
    pub fn patience(&self, bytes: u64) -> Duration {
        let late = self.exceptional(bytes).unwrap_or_default();
        late.saturating_mul(2).clamp(PATIENCE.0, PATIENCE.1)
    }

    /// Answers so far.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers
    }
}

/// How a place has misled readers; forgotten by and by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Doubt {
    points: u32,
    at: Timestamp,
}

/// What a place did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misled {
    /// It gave bytes that are not the block's.
    WrongBytes,
    /// It does not have a block that it is said to hold.
    Missing,
    /// It went away again soon after it came back.
    Flapped,
}

/// How far a place is believed, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trust {
    /// Nothing is held against it.
    Good,
    /// It lacked a block lately, flaps, or fails now and then.
    Doubtful,
    /// It gave wrong bytes lately.
    Bad,
}

impl Doubt {
    const WRONG: u32 = 8;
    const MOST: u32 = 64;

    fn points(&self, now: Timestamp) -> u32 {
        let halves = since(self.at, now).as_secs() / FORGIVE.as_secs();
        self.points >> halves.min(31)
    }

    /// It did that now.
    pub fn add(&mut self, what: Misled, now: Timestamp) {
        let more = match what {
            Misled::WrongBytes => Self::WRONG,
            Misled::Missing | Misled::Flapped => 1,
        };
        // Small things never add up to wrong bytes.
        let most = if more == Self::WRONG { Self::MOST } else { Self::WRONG - 1 };
        let points = self.points(now);
        self.points = points.max((points + more).min(most));
        self.at = now;
    }

    /// How far it is believed now.
    #[must_use]
    pub fn trust(&self, now: Timestamp) -> Trust {
        match self.points(now) {
            0 => Trust::Good,
            points if points < Self::WRONG => Trust::Doubtful,
            _ => Trust::Bad,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::time::plus;
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn at(minutes: u64) -> Timestamp {
        plus(Timestamp::default(), Duration::from_mins(1_000 + minutes))
    }

    #[test]
    fn a_place_is_measured_by_small_and_by_large_blocks() {
        let mut speed = Speed::default();
        assert_eq!((speed.expected(MIB), speed.hedge_after(MIB)), (None, HEDGE_UNKNOWN));
        for _ in 0..40 {
            speed.answered(4096, MS(20), at(0));
            speed.answered(MIB, MS(120), at(0));
        }
        let near = |bytes, ms: u64| {
            let expected = speed.expected(bytes).unwrap();
            assert!(expected.abs_diff(MS(ms)) < MS(3), "{bytes}: {expected:?}, not {ms} ms");
        };
        near(0, 20);
        near(MIB / 2, 70);
        near(MIB, 120);
        near(2 * MIB, 220);
    }

    #[test]
    fn the_next_is_asked_sooner_where_answers_are_quick_and_even() {
        let (mut even, mut uneven, mut slow) =
            (Speed::default(), Speed::default(), Speed::default());
        for n in 0..100 {
            even.answered(MIB, Duration::from_micros(900), at(0));
            uneven.answered(MIB, MS(if n % 2 == 0 { 10 } else { 110 }), at(0));
            slow.answered(MIB, Duration::from_secs(3), at(0));
        }
        assert_eq!(even.hedge_after(MIB), HEDGE.0);
        let later = uneven.hedge_after(MIB);
        assert!(later > MS(110) && later < MS(600), "{later:?}");
        assert_eq!(slow.hedge_after(MIB), HEDGE.1);
        assert_eq!(even.patience(MIB), PATIENCE.0);
        assert!(slow.patience(MIB) > Duration::from_secs(5), "that is its pace: it does not hang");
        assert!(slow.patience(MIB) <= PATIENCE.1);
    }

    #[test]
    fn one_that_is_overtaken_counts_as_slow_until_that_is_long_ago() {
        let mut speed = Speed::default();
        speed.answered(MIB, MS(2), at(0));
        speed.late(MIB, Duration::from_secs(1), at(0));
        let slow = speed.expected_now(MIB, at(1)).unwrap();
        assert!(slow > MS(400), "{slow:?}");
        assert!(speed.expected_now(MIB, at(61)).unwrap() < MS(1), "it is worth a try again");
        speed.late(MIB, MS(1), at(61));
        assert_eq!(speed.answers(), 2, "it was not late for what was expected");
    }

    #[test]
    fn what_a_place_did_is_forgiven_after_a_while_and_small_things_are_never_the_worst() {
        let mut doubt = Doubt::default();
        assert_eq!(doubt.trust(at(0)), Trust::Good);
        for _ in 0..1000 {
            doubt.add(Misled::Missing, at(0));
        }
        assert_eq!(doubt.trust(at(0)), Trust::Doubtful);
        assert_eq!(doubt.trust(at(60)), Trust::Good);
        doubt.add(Misled::WrongBytes, at(60));
        assert_eq!(doubt.trust(at(60)), Trust::Bad);
        assert_eq!(doubt.trust(at(71)), Trust::Doubtful);
        assert_eq!(doubt.trust(at(120)), Trust::Good);
        for _ in 0..1000 {
            doubt.add(Misled::WrongBytes, at(120));
        }
        doubt.add(Misled::Flapped, at(120));
        assert_eq!(doubt.trust(at(120)), Trust::Bad);
        assert_eq!(doubt.trust(at(220)), Trust::Good, "there is a most that is held against it");
    }
}
