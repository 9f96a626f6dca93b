//! Memory for what is on its way to backends, shared out among the workers.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Loans at a time: half of all the bytes, in two.
const LOANS: usize = 2;

/// Half of the bytes are every worker's in equal parts, for small contents; the rest is
/// lent in two parts to who sends a large one, which fills a disk or a line only with
/// several puts under way.
#[derive(Debug)]
pub(super) struct Room {
    bytes: usize,
    free: AtomicUsize,
}

/// A worker's part, until it is dropped.
#[derive(Debug)]
pub(super) struct Share<'r> {
    /// Bytes that it may hold.
    pub bytes: usize,
    lent: Option<&'r AtomicUsize>,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if let Some(free) = self.lent {
            free.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Room {
    pub fn new(bytes: usize) -> Self {
        Self { bytes, free: AtomicUsize::new(LOANS) }
    }

    /// The part of one of so many workers, with a loan for a large content if one is free.
    pub fn share(&self, workers: usize, large: bool) -> Share<'_> {
        let own = self.bytes / 2 / workers.max(1);
        let take = |free: usize| free.checked_sub(1);
        let lent =
            large && self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok();
        let loan = if lent { self.bytes / 2 / LOANS } else { 0 };
        Share { bytes: own + loan, lent: lent.then_some(&self.free) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_are_no_more_than_there_is_and_loans_come_back() {
        let room = Room::new(48 << 20);
        let mut shares: Vec<Share<'_>> = (0..12).map(|_| room.share(12, true)).collect();
        let all: usize = shares.iter().map(|share| share.bytes).sum();
        assert_eq!(all, 48 << 20);
        let large: Vec<usize> = shares.iter().map(|share| share.bytes >> 20).collect();
        assert_eq!(large, [14, 14, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
        shares.remove(0);
        assert_eq!(room.share(12, false).bytes, 2 << 20, "small ones leave it");
        let again = room.share(12, true);
        assert_eq!(again.bytes, 14 << 20);
        drop((again, shares));
        assert_eq!(room.free.load(Ordering::Acquire), LOANS);
    }
}
