//! Which places get a content, and which copy is given up first. Pure.

use std::cmp::Ordering;

use super::super::{BackendState, Policy, Strategy};
use super::places::{Candidate, DomainSet, Places};
use crate::metadata::PinState;
use crate::types::{BackendId, Cid, cid};

/// Above this, `strategy=size` looks for room, below for speed.
const LARGE: u64 = 8 << 20;

/// What placement decided, and why it passed the others over.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Indices of places.
    pub selected: Vec<usize>,
    /// Which got none, and why.
    pub passed_over: Vec<(usize, &'static str)>,
}

/// What is asked of a choice.
pub struct Wanted<'w> {
    /// The content.
    pub root: &'w Cid,
    /// Bytes that it takes.
    pub bytes: u64,
    /// By these rules.
    pub policy: &'w Policy,
    /// Distinct domains in all, those that are covered among them.
    pub copies: usize,
    /// Only places of this tier.
    pub tier: Option<&'w str>,
    /// It takes the place of one that has, or had, a copy.
    pub successor: Option<usize>,
    /// Places whose tier takes nothing of this age.
    pub untimely: &'w [usize],
}

/// Where a number of distinct copies stands.
#[must_use]
pub fn judge(min: u8, target: u8, max: u8, copies: usize) -> PinState {
    match copies {
        n if n < usize::from(min) => PinState::BelowMin,
        n if n < usize::from(target) => PinState::BelowTarget,
        n if n <= usize::from(max) => PinState::AtTarget,
        _ => PinState::OverMax,
    }
}

/// Hashes to 64 well-mixed bits: FNV-1a, then the finisher of splitmix64. The
/// same for ever, unlike the standard library's hasher, so that a choice holds
/// over releases.
#[derive(Debug, Clone, Copy)]
struct Hash(u64);

impl Hash {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    fn and(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }))
    }

    fn finish(self) -> u64 {
        let hash = self.0;
        let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}

/// Ranks places for one content: what comes from its CID is worked out once.
pub struct Ranking<'r> {
    hash: Hash,
    bytes: u64,
    policy: &'r Policy,
}

/// Weighted rendezvous hashing: contents spread in proportion to the weights, and
/// a place that comes or goes moves only its own share.
#[expect(clippy::cast_precision_loss, reason = "weights need no more than 52 bits")]
fn rendezvous(root: Hash, id: &BackendId, weight: u64) -> f64 {
    let hash = root.and(id.as_str().as_bytes()).finish();
    let uniform = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
    weight as f64 / -uniform.ln()
}

/// Free space in tenths, so that a choice does not move with every block that is
/// written.
fn tenths(place: &Candidate) -> u64 {
    place.space.map_or(10, |(capacity, free)| {
        free.saturating_mul(10).checked_div(capacity).unwrap_or(0).clamp(1, 10)
    })
}

/// How long these bytes take, in powers of two of a quarter of a millisecond: small
/// differences tell nothing.
fn slowness(place: &Candidate, bytes: u64) -> u64 {
    let moving = place.mebibyte.as_micros().saturating_mul(bytes.into()) >> 20;
    let took = place.latency.as_micros().saturating_add(moving);
    let quarters = u64::try_from(took / 250).unwrap_or(u64::MAX);
    u64::from(u64::BITS - quarters.leading_zeros())
}

/// What a gigabyte costs a month, when a tenth of it is read back; requests are
/// counted for contents of this size.
fn cost(place: &Candidate, bytes: u64) -> u64 {
    let price = &place.settings.price;
    let requests = price.request.0.saturating_mul(1_000_000_000 / bytes.max(1 << 10));
    price.gb_month.0.saturating_add(price.gb_out.0 / 10).saturating_add(requests / 12)
}

/// How well a place suits: the lowest first number, then the highest second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rank(u64, f64);

impl Rank {
    /// The better comes first.
    #[must_use]
    pub fn order(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0).then(other.1.total_cmp(&self.1))
    }
}

impl<'r> Ranking<'r> {
    /// For a content of so many bytes.
    #[must_use]
    pub fn new(root: &Cid, bytes: u64, policy: &'r Policy) -> Self {
        let mut id = Vec::with_capacity(40);
        cid::append(root, &mut id);
        Self { hash: Hash::EMPTY.and(&id), bytes, policy }
    }

    /// The rank of a place by the policy's strategy.
    #[must_use]
    pub fn of(&self, place: &Candidate) -> Rank {
        let (bytes, policy) = (self.bytes, self.policy);
        let spread = |weight| rendezvous(self.hash, &place.id, weight);
        match policy.strategy {
            Strategy::Balanced => Rank(0, spread(tenths(place))),
            Strategy::Cost => Rank(cost(place, bytes), spread(10)),
            Strategy::Priority => Rank(place.settings.priority.into(), spread(10)),
            Strategy::Size if bytes >= LARGE => {
                let free = place.space.map_or(0, |(_, free)| free);
                // By the power of two of the room: the rest is spread.
                Rank(u64::from(free.leading_zeros()), spread(10))
            }
            Strategy::Performance | Strategy::Size => Rank(slowness(place, bytes), spread(10)),
            Strategy::Custom => {
                let weight = policy.weights.get(&place.id).copied().unwrap_or(1);
                Rank(0, spread(weight.into()))
            }
        }
    }
}

/// What counts before the rank, the lowest first.
type First = ([bool; 2], u64, [bool; 4]);

/// Places that should get a copy now, when `covered` domains have one already or
/// will. One in `damaged` (its copy is bad) comes first, then what stands in for a place
/// that is replaced, then the cheaper one while costs are above their ceiling, last what
/// copies are moved away from; then preferred ones, then
/// those of the policy's tiers, then those that answer without errors, then by
/// rank.
#[must_use]
pub fn choose(
    wanted: &Wanted<'_>,
    covered: &DomainSet,
    damaged: &[usize],
    places: &Places,
) -> Choice {
    let policy = wanted.policy;
    let in_tier =
        |place: &Candidate, tier: &str| place.settings.tier.as_deref().is_some_and(|t| t == tier);
    let ranking = Ranking::new(wanted.root, wanted.bytes, policy);
    let mut ordered: Vec<(usize, &Candidate, First, Rank)> = places
        .all
        .iter()
        .enumerate()
        .filter(|(_, place)| !place.id.is_local())
        .map(|(number, place)| {
            let listed = policy.tiers.iter().any(|rule| in_tier(place, &rule.tier));
            let own = [!damaged.contains(&number), wanted.successor != Some(number)];
            // Above the ceiling of costs, nothing that is only wished pays for more.
            let price = if places.thrifty { cost(place, wanted.bytes) } else { 0 };
            let wished = [
                places.moves.is_retiring(&place.id),
                !policy.prefer.contains(&place.id),
                !policy.tiers.is_empty() && !listed,
                place.state != BackendState::Up,
            ];
            let first = (own, price, wished);
            (number, place, first, ranking.of(place))
        })
        .collect();
    ordered.sort_by(|(_, a, a_first, a_rank), (_, b, b_first, b_rank)| {
        a_first.cmp(b_first).then(a_rank.order(b_rank)).then(a.id.cmp(&b.id))
    });
    let mut covered = covered.clone();
    let mut choice = Choice::default();
    for (number, place, ..) in ordered {
        let weightless = policy.strategy == Strategy::Custom
            && policy.weights.get(&place.id).is_some_and(|weight| *weight == 0);
        let why_not = match place.state {
            _ if policy.exclude.contains(&place.id) => Some("excluded by the policy"),
            _ if weightless => Some("its weight is 0"),
            _ if place.draining => Some("it is being drained"),
            _ if place.paused => Some("paused"),
            BackendState::Down => Some("down"),
            BackendState::ReadOnly => Some("read-only"),
            BackendState::Full => Some("full"),
            _ if !place.durable => Some("not durable"),
            _ if !place.available => Some("not open"),
            _ if place.stopped => Some("above its stop threshold (stop=)"),
            _ if place.space.is_some_and(|(_, free)| free < wanted.bytes) => {
                Some("too little space")
            }
            _ if wanted.tier.is_some_and(|tier| !in_tier(place, tier)) => Some("of another tier"),
            _ if wanted.untimely.contains(&number) => Some("its tier wants none of this age"),
            _ if covered.contains(places.domain(number, policy.distinct)) => {
                Some("its failure domain has a copy")
            }
            _ if covered.len() >= wanted.copies => Some("not needed"),
            _ => None,
        };
        if let Some(reason) = why_not {
            choice.passed_over.push((number, reason));
        } else {
            covered.insert(places.domain(number, policy.distinct));
            choice.selected.push(number);
        }
    }
    choice
}
