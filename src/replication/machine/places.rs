//! The places of a volume as of one moment, for planning. Pure and cheap to ask:
//! a place is an index, a failure domain a number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use super::super::{BackendState, Domain, Policy};
use super::moves::Moves;
use crate::backends::PlaceSettings;
use crate::metadata::{ContentRecord, CopyRecord, CopyState, Stats};
use crate::types::{BackendId, Timestamp};

/// A place as planning sees it.
#[expect(clippy::struct_excessive_bools, reason = "each is a separate fact")]
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: BackendId,
    /// Its failure domains' names, by [`Domain`].
    pub domains: [String; 4],
    /// What it took survives a crash there: else a copy counts for nothing.
    pub durable: bool,
    /// The local store that only keeps for a while what others have: what lies there is
    /// no copy.
    pub cache: bool,
    /// Health.
    pub state: BackendState,
    /// Open, and not down.
    pub readable: bool,
    /// Takes writes now.
    pub available: bool,
    /// Bytes in all and bytes free, when known.
    pub space: Option<(u64, u64)>,
    /// Bytes that we could have there in all: what we use and what is free, as of one
    /// moment, when known.
    pub room: Option<u64>,
    /// There are as many bytes as the user lets it have.
    pub stopped: bool,
    /// It leaves.
    pub draining: bool,
    /// The user holds the work there.
    pub paused: bool,
    /// Away for longer than the grace period.
    pub given_up: bool,
    /// Proofs from before do not count.
    pub trusted_since: Timestamp,
    /// Of reads.
    pub latency: Duration,
    /// Of a mebibyte beyond it; zero: not known.
    pub mebibyte: Duration,
    /// Tier, prices, order.
    pub settings: PlaceSettings,
}

/// A set of failure domains of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainSet {
    bits: Vec<u64>,
    len: usize,
}

/// All places, the local store among them.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// In no order that matters.
    pub all: Vec<Candidate>,
    /// Asked for each copy that is planned: a fast hash, of ids that users choose.
    index: HashMap<BackendId, usize, Xxh3DefaultBuilder>,
    /// Of each place, the numbers of its domains.
    numbers: Vec<[usize; 4]>,
    /// Copies that are to move.
    pub moves: Arc<Moves>,
    /// Costs are above their ceiling: the cheaper place comes first.
    pub thrifty: bool,
}

/// What is known of one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It counts.
    Good,
    /// It would count, were it proven again: the place was away for too long.
    Stale,
    /// The place is away for too long, does not survive a crash, or is a cache.
    Uncounted,
    /// Known to be bad or gone.
    Bad,
    /// Given up on purpose.
    Released,
}

/// Copies of pins by their states, from counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct CopyCounts {
    /// Read back and hashed, or so by their places.
    pub verified: u64,
    /// By their places' word.
    pub claimed: u64,
    /// At places that are away or were, and not read back since.
    pub stale: u64,
    /// Good ones at places that are to leave.
    pub draining: u64,
}

impl Candidate {
    /// A copy there can count.
    #[must_use]
    pub fn holds_copies(&self) -> bool {
        self.durable && !self.cache
    }

    /// Takes a write of so many bytes now.
    #[must_use]
    pub fn takes(&self, size: u64) -> bool {
        let lets = self.available && !self.paused && !self.stopped;
        lets && self.space.is_none_or(|(_, free)| free >= size)
    }
}

impl DomainSet {
    /// Adds one; false when it was there.
    pub fn insert(&mut self, number: usize) -> bool {
        let (word, bit) = (number / 64, 1u64 << (number % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        match self.bits.get_mut(word) {
            Some(bits) if *bits & bit == 0 => {
                *bits |= bit;
                self.len += 1;
                true
            }
            _ => false,
        }
    }

    /// Whether it is there.
    #[must_use]
    pub fn contains(&self, number: usize) -> bool {
        self.bits.get(number / 64).is_some_and(|bits| bits & (1 << (number % 64)) != 0)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Places {
    /// Of these places.
    #[must_use]
    pub fn new(all: Vec<Candidate>) -> Self {
        let mut names: [HashMap<&str, usize>; 4] = Default::default();
        let mut numbers = Vec::with_capacity(all.len());
        for place in &all {
            let mut of_place = [0; 4];
            for ((number, names), name) in of_place.iter_mut().zip(&mut names).zip(&place.domains) {
                let next = names.len();
                *number = *names.entry(name).or_insert(next);
            }
            numbers.push(of_place);
        }
        let index = all.iter().enumerate().map(|(n, place)| (place.id.clone(), n)).collect();
        Self { all, index, numbers, moves: Arc::default(), thrifty: false }
    }

    /// Whether the local store is a cache.
    #[must_use]
    pub fn is_local_cache(&self) -> bool {
        self.get(&BackendId::local()).is_some_and(|place| place.cache)
    }

    /// The local store where it is a replica.
    #[must_use]
    pub fn local_replica(&self) -> Option<usize> {
        self.number(&BackendId::local()).filter(|number| !self.all[*number].cache)
    }

    /// A place by its id.
    #[must_use]
    pub fn get(&self, id: &BackendId) -> Option<&Candidate> {
        self.number(id).and_then(|n| self.all.get(n))
    }

    /// Its index.
    #[must_use]
    pub fn number(&self, id: &BackendId) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// The number of a place's domain of a kind.
    #[must_use]
    pub fn domain(&self, place: usize, kind: Domain) -> usize {
        self.numbers.get(place).map_or(0, |numbers| numbers[kind as usize])
    }

    /// Where copies there count; `None` when they do not.
    #[must_use]
    pub fn domain_of(&self, id: &BackendId) -> Option<&str> {
        let place = self.get(id).filter(|place| place.holds_copies())?;
        Some(&place.domains[Domain::Device as usize])
    }

    /// What a copy is worth now; `None` where its place is not the volume's.
    #[must_use]
    pub fn standing(&self, copy: &CopyRecord) -> Option<(usize, Standing)> {
        let number = self.number(&copy.backend)?;
        let place = self.all.get(number)?;
        let standing = match copy.state {
            CopyState::Corrupt | CopyState::Lost => Standing::Bad,
            CopyState::Released => Standing::Released,
            CopyState::Claimed | CopyState::Verified if !place.holds_copies() || place.given_up => {
                Standing::Uncounted
            }
            CopyState::Claimed | CopyState::Verified if copy.at < place.trusted_since => {
                Standing::Stale
            }
            CopyState::Claimed | CopyState::Verified => Standing::Good,
        };
        Some((number, standing))
    }

    /// Failure domains with a good copy.
    #[must_use]
    pub fn held(&self, copies: &[CopyRecord], kind: Domain) -> DomainSet {
        let mut held = DomainSet::default();
        for copy in copies {
            if let Some((place, Standing::Good)) = self.standing(copy) {
                held.insert(self.domain(place, kind));
            }
        }
        held
    }

    /// How many domains hold it or take `size` more bytes now.
    #[must_use]
    pub fn reachable(&self, held: &DomainSet, size: u64, policy: &Policy) -> usize {
        self.with(held, policy, |place| place.id.is_local() || place.takes(size))
    }

    /// How many domains hold it or could ever: those that are away count,
    /// read-only ones and those that leave do not.
    #[must_use]
    pub fn configured(&self, held: &DomainSet, policy: &Policy) -> usize {
        self.with(held, policy, |place| {
            place.id.is_local() || (place.state != BackendState::ReadOnly && !place.draining)
        })
    }

    fn with(
        &self,
        held: &DomainSet,
        policy: &Policy,
        counts: impl Fn(&Candidate) -> bool,
    ) -> usize {
        let mut all = held.clone();
        for (number, place) in self.all.iter().enumerate() {
            if place.holds_copies() && !policy.exclude.contains(&place.id) && counts(place) {
                all.insert(self.domain(number, policy.distinct));
            }
        }
        all.len()
    }

    /// Copies by their states; looks at no content.
    #[must_use]
    pub fn count(&self, stats: &Stats) -> CopyCounts {
        let mut counts = CopyCounts::default();
        for place in &self.all {
            let (copies, _) = stats.backends.get(&place.id).copied().unwrap_or_default();
            let (verified, claimed) = stats.trusted.get(&place.id).copied().unwrap_or_default();
            if !place.holds_copies() || place.given_up {
                counts.stale += copies;
                continue;
            }
            counts.stale += copies.saturating_sub(verified + claimed);
            if place.draining {
                counts.draining += verified + claimed;
            } else {
                counts.verified += verified;
                counts.claimed += claimed;
            }
        }
        counts
    }

    /// Distinct verified copies of a content that count.
    #[must_use]
    pub fn verified(&self, record: &ContentRecord, policy: &Policy) -> usize {
        let mut domains = DomainSet::default();
        for copy in record.copies.iter().filter(|copy| copy.state == CopyState::Verified) {
            if let Some((place, Standing::Good)) = self.standing(copy) {
                domains.insert(self.domain(place, policy.distinct));
            }
        }
        domains.len()
    }

    /// Distinct good copies of a content under a policy.
    #[must_use]
    pub fn copies(&self, record: &ContentRecord, policy: &Policy) -> usize {
        self.held(&record.copies, policy.distinct).len()
    }
}
