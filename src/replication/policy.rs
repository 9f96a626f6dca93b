use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::BackendId;

/// What an acknowledged `fsync` (or `close`) waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Level {
    /// The local disk.
    LocalDurability,
    /// One backend besides nothing: any single durable copy.
    Single,
    /// `max(min, target/2 + 1)` copies.
    #[default]
    Quorum,
    /// Every selected backend.
    All,
    /// The copies of the first tier; the next tiers follow in order.
    Tiered,
    /// The first copy; then tier by tier to the target.
    Progressive,
}

/// What has to differ between two copies that count as two. What is the same at
/// a wider one is the same at all narrower ones.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    /// Disk, bucket or account.
    #[default]
    Device = 0,
    /// Machine.
    Host = 1,
    /// Building or region.
    Site = 2,
    /// Company.
    Provider = 3,
}

/// Which of the places that could take a copy comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// In proportion to free space.
    #[default]
    Balanced,
    /// The quickest, as measured.
    Performance,
    /// The cheapest to keep it and to read it back.
    Cost,
    /// By the number that the backend's settings give it, the lowest first.
    Priority,
    /// Large contents where there is most room, small ones where it is quickest.
    Size,
    /// In proportion to the weights of the policy.
    Custom,
}

/// From what the time of a tier counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum TierClock {
    /// When the content came.
    #[default]
    Age,
    /// When it was last read.
    Access,
}

/// Copies in one tier of places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierRule {
    /// As in the backends' settings: `ssd`, `disk`, `cloud`, `archive`, ...
    pub tier: String,
    /// Distinct copies there.
    pub copies: u8,
    /// Wanted once it is that old.
    #[serde(with = "super::policy_text::age")]
    pub after: Duration,
    /// Wanted until it is that old (`None`: for ever).
    #[serde(with = "super::policy_text::age_or_none")]
    pub until: Option<Duration>,
    /// By which clock.
    pub by: TierClock,
}

/// Which call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum WaitOn {
    /// `close` (and `fsync`).
    #[default]
    Close,
    /// `fsync` only.
    Fsync,
}

/// What happens when too few backends are in reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum OnDegraded {
    /// Acknowledge with the local durable copy; the rest is queued.
    #[default]
    Queue,
    /// EIO.
    Fail,
}

/// How many copies, where, and what an acknowledgement waits for. Its text form is
/// in `src/docs/format.md`, "Policies in text form".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Fewer is an alarm.
    pub min: u8,
    /// The aim.
    pub target: u8,
    /// More are trimmed.
    pub max: u8,
    /// What an acknowledgement waits for.
    pub level: Level,
    /// Which call waits.
    pub wait_on: WaitOn,
    /// With too few backends in reach.
    pub on_degraded: OnDegraded,
    /// What two copies must not share.
    pub distinct: Domain,
    /// Which places come first.
    pub strategy: Strategy,
    /// Of [`Strategy::Custom`]; a place that is not named has 1, and 0 is none.
    pub weights: BTreeMap<BackendId, u32>,
    /// These come before all others.
    pub prefer: BTreeSet<BackendId>,
    /// These get no copy; what lies there is moved away.
    pub exclude: BTreeSet<BackendId>,
    /// Copies by tier, the first tier first; empty: any place does.
    pub tiers: Vec<TierRule>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min: 2,
            target: 3,
            max: 5,
            level: Level::Quorum,
            wait_on: WaitOn::Close,
            on_degraded: OnDegraded::Queue,
            distinct: Domain::Device,
            strategy: Strategy::Balanced,
            weights: BTreeMap::new(),
            prefer: BTreeSet::new(),
            exclude: BTreeSet::new(),
            tiers: Vec::new(),
        }
    }
}

/// Text that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy `{text}`: {reason}")]
pub struct InvalidPolicy {
    /// As given.
    pub text: String,
    /// What is wrong, and what to write.
    pub reason: String,
}

/// What became of a write (the design's names), best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WriteResult {
    /// Target copies.
    TargetAchieved,
    /// The level's copies.
    QuorumAchieved,
    /// Fewer than the level asks.
    BelowQuorum,
    /// None but the local one.
    NoReplication,
}

impl Level {
    /// The name in text and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LocalDurability => "LOCAL_DURABILITY",
            Self::Single => "SINGLE",
            Self::Quorum => "QUORUM",
            Self::All => "ALL",
            Self::Tiered => "TIERED",
            Self::Progressive => "PROGRESSIVE",
        }
    }
}

impl Policy {
    /// Copies that an acknowledgement at this policy's level waits for, when
    /// `selected` places are selected. The local store is among both unless it is a
    /// cache (`local_counts`). `SINGLE` is one place besides the local disk, where
    /// there is one.
    #[must_use]
    pub fn copies_to_wait_for(&self, selected: usize, local_counts: bool) -> usize {
        match self.level {
            Level::LocalDurability => usize::from(local_counts),
            Level::Progressive => 1,
            Level::Single => (1 + usize::from(local_counts)).min(selected.max(1)),
            Level::Quorum => usize::from(self.min.max(self.target / 2 + 1)),
            Level::All => selected.max(1),
            // The copies of the first tier, whichever places hold them.
            Level::Tiered => self.tiers.first().map_or(1, |tier| usize::from(tier.copies).max(1)),
        }
    }
}
