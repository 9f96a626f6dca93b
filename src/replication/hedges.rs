//! How often a second place may be asked although the first has not failed.

use std::sync::atomic::{AtomicU32, Ordering};

/// A hedge is paid by this many requests: a network that is slow as a whole must not be
/// asked for everything twice.
const REQUESTS: u32 = 10;
/// Hedges that can be saved up.
const SAVED: u32 = 8;

/// What may be spent on hedges, in tenths of one.
#[derive(Debug)]
pub(super) struct Hedges(AtomicU32);

impl Default for Hedges {
    /// Half of what can be saved: the first reads may meet a place that hangs.
    fn default() -> Self {
        Self(AtomicU32::new(REQUESTS * SAVED / 2))
    }
}

impl Hedges {
    /// A request was made.
    pub fn earn(&self) {
        let more = |saved: u32| (saved < REQUESTS * SAVED).then_some(saved + 1);
        // At the most that can be saved it stays there.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).unwrap_or_default();
    }

    /// Whether one more may be asked now; then it is paid.
    pub fn spend(&self) -> bool {
        let less = |saved: u32| saved.checked_sub(REQUESTS);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_are_a_tenth_of_the_requests_and_a_few_more_at_first() {
        let hedges = Hedges::default();
        let spent = (0..1000)
            .filter(|_| {
                hedges.earn();
                hedges.spend()
            })
            .count();
        assert_eq!(spent, 104);
        (0..1000).for_each(|_| hedges.earn());
        assert_eq!((0..100).filter(|_| hedges.spend()).count(), 8, "no more is saved up");
    }
}
