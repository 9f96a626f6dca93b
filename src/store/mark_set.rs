use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::Cid;

/// A set of CIDs in bounded memory (a Bloom filter). It may hold what was not
/// put in: used as the set of what lives, that only keeps garbage.
#[derive(Debug)]
pub struct MarkSet {
    words: Box<[AtomicU64]>,
}

/// Bits set for each CID. With 10 bits of memory a CID, 7 give 0.8 % false
/// positives, the least there is.
const HASHES: u64 = 7;

impl MarkSet {
    /// For about `blocks` CIDs at 10 bits each, in at most `max_bytes`.
    #[must_use]
    pub fn new(blocks: u64, max_bytes: u64) -> Self {
        let words = (blocks.saturating_mul(10) / 64).min(max_bytes / 8).max(16);
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Puts a CID in.
    pub fn insert(&self, cid: &Cid) {
        for (word, bit) in self.places(cid) {
            self.words[word].fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether it may be in; false is certain.
    #[must_use]
    pub fn contains(&self, cid: &Cid) -> bool {
        self.places(cid).all(|(word, bit)| self.words[word].load(Ordering::Relaxed) & bit != 0)
    }

    /// Whether so much is in that most answers are "maybe".
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        let ones: u64 =
            self.words.iter().map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum();
        ones > self.words.len() as u64 * 64 * 3 / 4
    }

    /// A digest is already random: two of its words give all positions
    /// (Kirsch and Mitzenmacher, "Less hashing, same performance").
    fn places(&self, cid: &Cid) -> impl Iterator<Item = (usize, u64)> + '_ {
        let digest = cid.hash().digest();
        let word = |at: usize| {
            let mut bytes = [0; 8];
            for (to, from) in bytes.iter_mut().zip(digest.iter().skip(at)) {
                *to = *from;
            }
            u64::from_le_bytes(bytes)
        };
        let (first, step) = (word(0), word(8) | 1);
        let bits = self.words.len() as u64 * 64;
        (0..HASHES).map(move |i| {
            let at = first.wrapping_add(step.wrapping_mul(i)) % bits;
            ((at / 64) as usize, 1 << (at % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::cid;

    #[test]
    fn what_was_put_in_is_found_and_little_else() {
        let set = MarkSet::new(10_000, 1 << 20);
        let name = |n: u32| cid::of_raw(&n.to_le_bytes());
        (0..10_000).for_each(|n| set.insert(&name(n)));
        assert!((0..10_000).all(|n| set.contains(&name(n))));
        let wrong = (10_000..20_000).filter(|n| set.contains(&name(*n))).count();
        assert!(wrong < 200, "{wrong} of 10,000");
        assert!(!set.is_saturated());
    }

    #[test]
    fn memory_stays_bounded_and_a_full_set_says_so() {
        let set = MarkSet::new(u64::MAX, 128);
        (0_u32..10_000).for_each(|n| set.insert(&cid::of_raw(&n.to_le_bytes())));
        assert!(set.is_saturated());
    }
}
