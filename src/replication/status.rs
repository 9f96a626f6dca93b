use serde::{Deserialize, Serialize};

use crate::metadata::{ContentRecord, CopyState, PinState, QueueRecord};

/// Where the replication of a content is (the design's names).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReplicationStatus {
    /// Copies are wanted, and none was tried yet.
    Pending,
    /// One is being made now.
    InProgress,
    /// The target is reached.
    Complete,
    /// At least `min` copies, below the target: the last round failed, or there
    /// are no more places.
    Partial,
    /// Below `min`, and the last round failed or there are no more places.
    Failed,
    /// Bytes at some place are not those of the CID; a repair is due.
    Conflict,
}

impl ReplicationStatus {
    /// The status of a content with this row of the queue, which a lane has taken
    /// up or not.
    #[must_use]
    pub fn of(record: &ContentRecord, row: Option<&QueueRecord>, in_lane: bool) -> Self {
        if record.copies.iter().any(|copy| copy.state == CopyState::Corrupt) {
            return Self::Conflict;
        }
        let tried = row.is_none_or(|row| row.attempts > 0 || !row.last_error.is_empty());
        match record.pin {
            PinState::AtTarget | PinState::OverMax if row.is_none() => Self::Complete,
            _ if in_lane => Self::InProgress,
            _ if !tried => Self::Pending,
            PinState::BelowMin => Self::Failed,
            // Of the last two the number is reached, and not where the policy wants it.
            PinState::BelowTarget | PinState::AtTarget | PinState::OverMax => Self::Partial,
        }
    }

    /// The name in text and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::InProgress => "IN_PROGRESS",
            Self::Complete => "COMPLETE",
            Self::Partial => "PARTIAL",
            Self::Failed => "FAILED",
            Self::Conflict => "CONFLICT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{CopyRecord, VerifyMethod};
    use crate::types::Timestamp;

    fn record(pin: PinState, states: &[CopyState]) -> ContentRecord {
        let copy = |(n, state): (usize, &CopyState)| CopyRecord {
            backend: format!("b{n}").parse().unwrap(),
            state: *state,
            at: Timestamp::default(),
            method: VerifyMethod::None,
        };
        ContentRecord {
            size: 1,
            tsize: 1,
            blocks: 1,
            refs: 1,
            profile: String::new(),
            min: 2,
            target: 3,
            max: 5,
            pin,
            copies: states.iter().enumerate().map(copy).collect(),
            holes: 0,
            policies: Vec::new(),
            created_s: 0,
            accessed_s: 0,
        }
    }

    fn row(attempts: u32, error: &str) -> QueueRecord {
        let last_error = error.into();
        QueueRecord { attempts, last_error, ..QueueRecord::new(Timestamp::default()) }
    }

    #[test]
    fn each_status_follows_from_copies_queue_and_lane() {
        use ReplicationStatus as S;
        let (fresh, failed, stuck) = (row(0, ""), row(2, "b: no route"), row(0, "b: down"));
        let good = [CopyState::Verified];
        for (pin, row, in_lane, wanted) in [
            (PinState::BelowMin, Some(&fresh), false, S::Pending),
            (PinState::BelowMin, Some(&fresh), true, S::InProgress),
            (PinState::BelowMin, Some(&failed), true, S::InProgress),
            (PinState::BelowMin, Some(&failed), false, S::Failed),
            (PinState::BelowMin, Some(&stuck), false, S::Failed),
            (PinState::BelowMin, None, false, S::Failed),
            (PinState::BelowTarget, Some(&failed), false, S::Partial),
            (PinState::BelowTarget, None, false, S::Partial),
            (PinState::AtTarget, None, false, S::Complete),
            (PinState::OverMax, None, false, S::Complete),
            (PinState::AtTarget, Some(&fresh), false, S::Pending),
            (PinState::AtTarget, Some(&failed), false, S::Partial),
        ] {
            let status = S::of(&record(pin, &good), row, in_lane);
            assert_eq!(status, wanted, "{pin:?} {row:?} {in_lane}");
            let json = serde_json::to_string(&status).unwrap();
            assert_eq!(json, format!("\"{}\"", status.as_str()));
        }
        let corrupt = [CopyState::Verified, CopyState::Corrupt];
        assert_eq!(S::of(&record(PinState::AtTarget, &corrupt), None, true), S::Conflict);
        let lost = [CopyState::Verified, CopyState::Lost];
        assert_eq!(S::of(&record(PinState::AtTarget, &lost), None, false), S::Complete);
    }
}
