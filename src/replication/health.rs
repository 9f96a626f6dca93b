use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::machine::Spent;
use crate::backends::{Micros, PlaceSettings, Usage};
use crate::types::{BackendId, Timestamp};

/// A backend's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// Answers.
    Up,
    /// Answers, but with errors now and then.
    Degraded,
    /// Does not answer; probed until it does.
    Down,
    /// Answers reads only.
    ReadOnly,
    /// Full.
    Full,
}

/// What `status` shows of a backend; kept in memory, never asked for live.
#[expect(clippy::struct_excessive_bools, reason = "each is a separate fact")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Id.
    pub id: BackendId,
    /// Kind.
    pub kind: String,
    /// Location without secrets.
    pub url: String,
    /// Health.
    pub state: BackendState,
    /// Failure domain.
    pub domain: String,
    /// Space, as last seen.
    pub usage: Usage,
    /// Last error, for people; empty when none.
    pub last_error: String,
    /// It is to leave: copies there do not count towards the target.
    pub draining: bool,
    /// The user lets nothing be written there.
    pub read_only: bool,
    /// The user holds the work there.
    pub paused: bool,
    /// Bytes that we use there, by what it last said and our own count.
    pub used: u64,
    /// It takes no new copies: `stop=` is reached.
    pub stopped: bool,
    /// What the copies there cost a month.
    pub cost: Micros,
    /// Requests and bytes read in the running month.
    pub spent: Spent,
    /// What these cost so far.
    pub used_up: Micros,
    /// Away for longer than the grace period: copies there do not count.
    pub given_up: bool,
    /// Out of reach since then.
    pub away_since: Option<Timestamp>,
    /// Of reads, as a moving average.
    pub latency: Duration,
    /// Bytes of good blocks that were read there since the start.
    pub read_bytes: u64,
    /// How long a mebibyte is expected to take; `None`: nothing was read there yet.
    pub mebibyte: Option<Duration>,
    /// How long a mebibyte that is sent takes; `None`: none was.
    pub send_mebibyte: Option<Duration>,
    /// Reads and probes that were answered, by time: up to 1, 2, 4, ... milliseconds.
    pub latencies: Vec<u64>,
    /// Failed calls by kind, since the start.
    pub errors: BTreeMap<String, u64>,
    /// Tier, prices, limits.
    pub settings: PlaceSettings,
}
