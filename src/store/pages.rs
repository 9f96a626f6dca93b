//! Which pages of an overlay are its own and which are still the base's, and
//! which leaves changed since somebody hashed them.

use std::collections::BTreeMap;

/// Bytes of a page. Fixed, because bitmaps of it are persisted.
pub(crate) const PAGE: u64 = 4096;

/// A bitmap a leaf: bit `p % 8` of byte `p / 8` is page `p` of the leaf.
#[derive(Debug, Clone, Default)]
pub(crate) struct PageMap {
    per_leaf: u64,
    leaves: BTreeMap<u64, Vec<u8>>,
}

impl PageMap {
    pub fn new(leaf_size: u64) -> Self {
        Self { per_leaf: leaf_size.div_ceil(PAGE).max(1), leaves: BTreeMap::new() }
    }

    /// Marks pages `start..end`.
    pub fn set(&mut self, start: u64, end: u64) {
        let bytes = self.per_leaf.div_ceil(8) as usize;
        for page in start..end {
            let bits = self.leaves.entry(page / self.per_leaf).or_insert_with(|| vec![0; bytes]);
            let at = page % self.per_leaf;
            bits[(at / 8) as usize] |= 1 << (at % 8);
        }
    }

    /// Forgets all pages from `start` on.
    pub fn clear_from(&mut self, start: u64) {
        let leaf = start / self.per_leaf;
        let mut rest = self.leaves.split_off(&leaf);
        if let Some(mut bits) = rest.remove(&leaf) {
            for at in start % self.per_leaf..self.per_leaf {
                bits[(at / 8) as usize] &= !(1 << (at % 8));
            }
            if bits.iter().any(|byte| *byte != 0) {
                self.leaves.insert(leaf, bits);
            }
        }
    }

    pub fn is_set(&self, page: u64) -> bool {
        self.run(page, page + 1).0
    }

    /// Whether `page` is set, and where (at most `end`) that ends.
    pub fn run(&self, page: u64, end: u64) -> (bool, u64) {
        let first = self.bit(page);
        let mut at = page + 1;
        while at < end {
            let leaf = at / self.per_leaf;
            if !first && at.is_multiple_of(self.per_leaf) && !self.leaves.contains_key(&leaf) {
                // A leaf without bitmap has nothing set; skip to the next that has one.
                let next = self.leaves.range(leaf..).next().map_or(end, |(n, _)| n * self.per_leaf);
                at = next.min(end);
            } else if self.bit(at) == first {
                at += 1;
            } else {
                break;
            }
        }
        (first, at.min(end))
    }

    fn bit(&self, page: u64) -> bool {
        let at = page % self.per_leaf;
        self.leaves
            .get(&(page / self.per_leaf))
            .is_some_and(|bits| bits[(at / 8) as usize] & (1 << (at % 8)) != 0)
    }

    /// Leaves below `end` that have a page set, in order.
    pub fn leaves(&self, end: u64) -> impl Iterator<Item = u64> + '_ {
        self.leaves.range(..end).map(|(leaf, _)| *leaf)
    }

    /// For persisting.
    pub fn export(&self) -> Vec<(u64, Vec<u8>)> {
        self.leaves.iter().map(|(leaf, bits)| (*leaf, bits.clone())).collect()
    }

    /// Takes a persisted bitmap; false when it does not fit the leaf size.
    #[must_use]
    pub fn import(&mut self, leaf: u64, bits: &[u8]) -> bool {
        let fits = bits.len() as u64 == self.per_leaf.div_ceil(8);
        if fits && bits.iter().any(|byte| *byte != 0) {
            self.leaves.insert(leaf, bits.to_vec());
        }
        fits
    }

    pub fn memory_bytes(&self) -> u64 {
        // 64: a tree entry and a vector, roughly.
        self.leaves.len() as u64 * (self.per_leaf.div_ceil(8) + 64)
    }
}

/// Counts changes per leaf, so that a hash made beside the writer can be told
/// to be stale. Large ranges share one counter: that can only cost a hash.
#[derive(Debug, Clone, Default)]
pub(crate) struct Generations {
    clock: u64,
    leaves: BTreeMap<u64, u64>,
    /// All leaves from the first on have at least this generation.
    tail: Option<(u64, u64)>,
}

impl Generations {
    /// Leaves `first..=last` changed.
    pub fn touch(&mut self, first: u64, last: u64) {
        self.clock += 1;
        if last - first > 64 {
            return self.touch_from(first);
        }
        for leaf in first..=last {
            self.leaves.insert(leaf, self.clock);
        }
    }

    /// All leaves from `first` on changed.
    pub fn touch_from(&mut self, first: u64) {
        self.clock += 1;
        let first = self.tail.map_or(first, |(older, _)| older.min(first));
        drop(self.leaves.split_off(&first));
        self.tail = Some((first, self.clock));
    }

    pub fn of(&self, leaf: u64) -> u64 {
        let own = self.leaves.get(&leaf).copied().unwrap_or(0);
        let tail = self.tail.filter(|(first, _)| leaf >= *first).map_or(0, |(_, at)| at);
        own.max(tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cross_leaves_and_skip_those_without_bitmap() {
        let mut map = PageMap::new(4 * PAGE);
        map.set(2, 6);
        map.set(1000, 1001);
        assert_eq!(map.run(0, 5000), (false, 2));
        assert_eq!(map.run(3, 5000), (true, 6));
        assert_eq!(map.run(6, 5000), (false, 1000));
        assert_eq!(map.run(1001, 5000), (false, 5000));
        map.clear_from(3);
        assert_eq!(map.run(2, 5000), (true, 3));
        assert_eq!(map.leaves(u64::MAX).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_generation_moves_when_its_leaf_is_touched_and_never_goes_back() {
        let mut g = Generations::default();
        g.touch(3, 3);
        let three = g.of(3);
        g.touch(4, 4);
        assert_eq!(g.of(3), three);
        g.touch_from(2);
        assert!(g.of(3) > three && g.of(2) > 0 && g.of(1) == 0);
        let three = g.of(3);
        g.touch(3, 3);
        assert!(g.of(3) > three);
    }
}
