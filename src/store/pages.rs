//! Which pages of an overlay are its own and which are still the base's, and
//! which leaves changed since somebody hashed them.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a page. Fixed, because bitmaps of it are persisted.
pub(crate) const PAGE: u64 = 4096;

/// A bitmap a leaf, and runs of leaves that are set as a whole: a hole of a
/// tebibyte is one run. Bit `p % 8` of byte `p / 8` is page `p` of the leaf.
#[derive(Debug, Clone, Default)]
pub(crate) struct PageMap {
    per_leaf: u64,
    /// Leaves that are set in part, or once were; none is in a run.
    leaves: BTreeMap<u64, Vec<u8>>,
    /// First leaf to the one after the last. Apart: runs that touch are one.
    whole: BTreeMap<u64, u64>,
    /// Pages that are set in `leaves`.
    pages: u64,
}

/// First byte of a persisted run of leaves, before the leaf after its last (8
/// bytes, little endian). A run is told from a bitmap by its length.
const RUN: u8 = 1;
const RUN_BYTES: usize = 9;

impl PageMap {
    pub fn new(leaf_size: u64) -> Self {
        let per_leaf = leaf_size.div_ceil(PAGE).max(1);
        Self { per_leaf, leaves: BTreeMap::new(), whole: BTreeMap::new(), pages: 0 }
    }

    /// Marks pages `start..end`.
    pub fn set(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (first, last) = (start.div_ceil(self.per_leaf), end / self.per_leaf);
        if first >= last {
            return self.set_bits(start, end);
        }
        self.set_bits(start, first * self.per_leaf);
        self.set_whole(first, last);
        self.set_bits(last * self.per_leaf, end);
    }

    fn set_bits(&mut self, start: u64, end: u64) {
        let bytes = self.per_leaf.div_ceil(8) as usize;
        for page in start..end {
            let leaf = page / self.per_leaf;
            if self.run_of(leaf).is_some() {
                continue;
            }
            let bits = self.leaves.entry(leaf).or_insert_with(|| vec![0; bytes]);
            let at = page % self.per_leaf;
            let (byte, bit) = (&mut bits[(at / 8) as usize], 1 << (at % 8));
            self.pages += u64::from(*byte & bit == 0);
            *byte |= bit;
        }
    }

    fn set_whole(&mut self, mut first: u64, mut last: u64) {
        let inside: Vec<u64> = self.leaves.range(first..last).map(|(leaf, _)| *leaf).collect();
        for leaf in inside {
            let bits = self.leaves.remove(&leaf).unwrap_or_default();
            self.pages -= ones(&bits);
        }
        // Runs that touch it become part of it.
        while let Some((&start, &end)) = self.whole.range(..=last).next_back() {
            if end < first {
                break;
            }
            self.whole.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.whole.insert(first, last);
    }

    /// The run that has this leaf.
    fn run_of(&self, leaf: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.whole.range(..=leaf).next_back()?;
        (leaf < end).then_some((start, end))
    }

    /// Forgets all pages from `start` on.
    pub fn clear_from(&mut self, start: u64) {
        let leaf = start / self.per_leaf;
        if let Some((first, _)) = self.run_of(leaf) {
            self.whole.remove(&first);
            if first < leaf {
                self.whole.insert(first, leaf);
            }
            self.set_bits(leaf * self.per_leaf, start);
        }
        drop(self.whole.split_off(&leaf));
        let mut rest = self.leaves.split_off(&leaf);
        if let Some(mut bits) = rest.remove(&leaf) {
            for at in start % self.per_leaf..self.per_leaf {
                bits[(at / 8) as usize] &= !(1 << (at % 8));
            }
            if bits.iter().any(|byte| *byte != 0) {
                self.leaves.insert(leaf, bits);
            }
        }
        self.pages = self.leaves.values().map(|bits| ones(bits)).sum();
    }

    /// Bytes that are not set in leaves that have some: they are brought from
    /// the base when their leaf is committed.
    pub fn missing_bytes(&self) -> u64 {
        (self.leaves.len() as u64 * self.per_leaf).saturating_sub(self.pages) * PAGE
    }

    /// Whether any page of a leaf is set.
    pub fn has(&self, leaf: u64) -> bool {
        self.leaves.contains_key(&leaf) || self.run_of(leaf).is_some()
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
            if first && let Some((_, last)) = self.run_of(leaf) {
                at = (last * self.per_leaf).min(end);
            } else if !first && at.is_multiple_of(self.per_leaf) && !self.leaves.contains_key(&leaf)
            {
                if self.run_of(leaf).is_some() {
                    break;
                }
                // A leaf without bitmap has nothing set; skip to the next that has one.
                let bits = self.leaves.range(leaf..).next().map(|(n, _)| *n);
                let whole = self.whole.range(leaf..).next().map(|(n, _)| *n);
                let next = bits.into_iter().chain(whole).min();
                at = next.map_or(end, |next| next * self.per_leaf).min(end);
            } else if self.bit(at) == first {
                at += 1;
            } else {
                break;
            }
        }
        (first, at.min(end))
    }

    fn bit(&self, page: u64) -> bool {
        let (leaf, at) = (page / self.per_leaf, page % self.per_leaf);
        match self.leaves.get(&leaf) {
            Some(bits) => bits[(at / 8) as usize] & (1 << (at % 8)) != 0,
            None => self.run_of(leaf).is_some(),
        }
    }

    /// Runs of leaves below `end` that have a page set, in order and apart.
    pub fn leaf_runs(&self, end: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let bits = self.leaves.range(..end).map(|(leaf, _)| *leaf..*leaf + 1);
        let mut bits = bits.peekable();
        let whole = self.whole.range(..end).map(|(first, last)| *first..(*last).min(end));
        let mut whole = whole.peekable();
        loop {
            let bits_first = match (bits.peek(), whole.peek()) {
                (Some(a), Some(b)) => a.start < b.start,
                (Some(_), None) => true,
                (None, _) => false,
            };
            let Some(next) = (if bits_first { bits.next() } else { whole.next() }) else {
                return runs;
            };
            match runs.last_mut() {
                Some(last) if last.end == next.start => last.end = next.end,
                _ => runs.push(next),
            }
        }
    }

    /// For persisting: bitmaps by leaf, and runs by their first leaf.
    pub fn export(&self) -> Vec<(u64, Vec<u8>)> {
        let bits = self.leaves.iter().map(|(leaf, bits)| (*leaf, bits.clone()));
        let runs = self.whole.iter().map(|(first, last)| {
            let mut run = vec![RUN];
            run.extend(last.to_le_bytes());
            (*first, run)
        });
        bits.chain(runs).collect()
    }

    /// Takes what [`PageMap::export`] gave; false when it does not fit the leaf
    /// size.
    #[must_use]
    pub fn import(&mut self, leaf: u64, bits: &[u8]) -> bool {
        if bits.len() as u64 == self.per_leaf.div_ceil(8) {
            if bits.iter().any(|byte| *byte != 0) {
                let before = self.leaves.insert(leaf, bits.to_vec());
                self.pages += ones(bits);
                self.pages -= before.map_or(0, |bits| ones(&bits));
            }
            return true;
        }
        let Some((&RUN, end)) = bits.split_first() else { return false };
        let end = end.try_into().map_or(0, u64::from_le_bytes);
        let fits = bits.len() == RUN_BYTES && end > leaf;
        if fits {
            self.set_whole(leaf, end);
        }
        fits
    }

    pub fn memory_bytes(&self) -> u64 {
        // 64: a tree entry and a vector, roughly.
        self.leaves.len() as u64 * (self.per_leaf.div_ceil(8) + 64) + self.whole.len() as u64 * 64
    }
}

fn ones(bits: &[u8]) -> u64 {
    bits.iter().map(|byte| u64::from(byte.count_ones())).sum()
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
        assert_eq!((map.pages, map.missing_bytes()), (5, 7 * PAGE));
        map.set(2, 4);
        assert_eq!(map.pages, 5);
        map.clear_from(3);
        assert_eq!((map.pages, map.missing_bytes()), (1, 3 * PAGE));
        assert_eq!(map.run(2, 5000), (true, 3));
        assert_eq!(map.leaf_runs(u64::MAX).as_slice(), std::slice::from_ref(&(0..1)));
    }

    #[test]
    fn a_map_with_runs_is_the_same_set_of_pages() {
        let seed = u64::from(std::process::id());
        println!("seed {seed}");
        let mut random = seed | 1;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..400 {
            let (mut map, mut pages) = (PageMap::new(4 * PAGE), vec![false; 80]);
            for _ in 0..12 {
                let start = next(70);
                let end = start + next(80 - start) + 1;
                if next(4) == 0 {
                    map.clear_from(start);
                    pages[start as usize..].fill(false);
                } else {
                    map.set(start, end);
                    pages[start as usize..end as usize].fill(true);
                }
                let mut copy = PageMap::new(4 * PAGE);
                assert!(map.export().iter().all(|(leaf, bits)| copy.import(*leaf, bits)));
                for map in [&map, &copy] {
                    for page in 0..80 {
                        let set = pages[page];
                        let stop = (page..80).find(|at| pages[*at] != set).unwrap_or(80);
                        assert_eq!(map.run(page as u64, 80), (set, stop as u64), "{page} {map:?}");
                    }
                }
                let runs = map.leaf_runs(u64::MAX);
                for leaf in 0..20u64 {
                    let any = pages[leaf as usize * 4..][..4].contains(&true);
                    let listed = runs.iter().any(|run| run.contains(&leaf));
                    assert_eq!(listed, any, "leaf {leaf} of {map:?}");
                }
                assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "{runs:?}");
            }
        }
    }

    #[test]
    fn a_run_of_16_tib_is_one_entry() {
        let mut map = PageMap::new(1 << 20);
        map.set(1, 1 << 32);
        assert_eq!(map.export().len(), 2);
        assert_eq!(map.run(1, 1 << 32), (true, 1 << 32));
        map.clear_from((1 << 31) + 3);
        assert_eq!(map.run(1, 1 << 32), (true, (1 << 31) + 3));
        assert!(map.memory_bytes() < 1024);
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
