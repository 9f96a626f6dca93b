//! Limits of a place: bytes and contents a second. Pure.

use std::time::Duration;

use super::time::{plus, since};
use crate::types::Timestamp;

/// A token bucket that holds one second's worth. What is taken may overdraw it,
/// so that a content larger than a second's worth gets through at the rate.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    rate: u64,
    /// Millionths of a token; below zero: overdrawn.
    level: i128,
    filled: Timestamp,
}

impl Bucket {
    /// So many tokens a second; full.
    #[must_use]
    pub fn new(rate: u64, now: Timestamp) -> Self {
        let rate = rate.max(1);
        Self { rate, level: i128::from(rate) * 1_000_000, filled: now }
    }

    fn fill(&mut self, now: Timestamp) {
        let passed = since(self.filled, now).min(Duration::from_secs(1 << 20));
        let full = i128::from(self.rate) * 1_000_000;
        let micros = i128::try_from(passed.as_micros()).unwrap_or(0);
        self.level = (self.level + micros * i128::from(self.rate)).min(full);
        self.filled = now;
    }

    /// When something may be taken; `None` is now.
    pub fn wait(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.fill(now);
        if self.level > 0 {
            return None;
        }
        let micros = (-self.level / i128::from(self.rate)).saturating_add(1);
        Some(plus(now, Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))))
    }

    /// Takes so many.
    pub fn take(&mut self, tokens: u64) {
        self.level -= i128::from(tokens) * 1_000_000;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_time_no_more_than_the_rate_gets_through_whatever_the_sizes() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let rate = random.u64(1..1_000_000);
            let start = Timestamp { seconds: 1000, nanoseconds: 0 };
            let (mut now, mut taken, mut last) = (start, 0, 0);
            let mut bucket = Bucket::new(rate, start);
            while since(start, now) < Duration::from_secs(100) {
                if let Some(until) = bucket.wait(now) {
                    assert!(until > now, "seed {seed}: it waits for nothing");
                    now = until;
                    continue;
                }
                last = random.u64(0..rate * 3);
                taken += last;
                bucket.take(last);
                now = plus(now, Duration::from_millis(random.u64(0..20)));
            }
            let most = rate * (since(start, now).as_secs() + 2) + last;
            assert!(taken <= most, "seed {seed}: {taken} of {most}");
            assert!(taken >= rate * 90, "seed {seed}: {taken} is less than the rate gives");
        }
    }
}
