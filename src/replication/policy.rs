use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

/// How many copies, and what an acknowledgement waits for. Text form:
/// `min=2,target=3,max=5,level=QUORUM,wait_on=close,on_degraded=queue`, any part optional.
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

/// What became of a write (the design's names).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

impl Policy {
    /// This policy with the parts that `text` names replaced.
    ///
    /// # Errors
    /// [`InvalidPolicy`] for unknown words, `min > target`, `target > max`, 0 or over 100.
    pub fn overridden_by(&self, text: &str) -> Result<Self, InvalidPolicy> {
        let _ = text;
        todo!()
    }

    /// Copies (the local one counts) that an acknowledgement at this policy's
    /// level waits for, when `selected` backends are selected.
    #[must_use]
    pub fn copies_to_wait_for(&self, selected: usize) -> usize {
        let _ = selected;
        todo!()
    }
}

impl FromStr for Policy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::default().overridden_by(text)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}
