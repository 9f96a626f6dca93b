//! What became of work, and how it becomes a content's row. Pure.

use super::super::Policy;
use super::places::Standing;
use super::planner::{Content, Moment};
use crate::backends::Scrub;
use crate::metadata::{ContentRecord, CopyRecord, CopyState, VerifyMethod};
use crate::types::{BackendId, Cid};

/// What became of one content at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The place said yes.
    Stored(CopyState, VerifyMethod),
    /// The round failed, and why.
    Failed(String),
    /// The copy was proven.
    Verified(VerifyMethod),
    /// All of it is there by its place's word, and what was read of it is good.
    Audited,
    /// It was looked at and is bad (`Corrupt`) or gone (`Lost`).
    Bad(CopyState),
    /// It may go: these places were asked just now and have theirs.
    Released(Vec<BackendId>),
}

/// Changes a record by an outcome; false when it changes nothing. A copy is given
/// up only when what was confirmed is enough by the row as it is now.
pub fn apply(
    root: &Cid,
    record: &mut ContentRecord,
    policy: &Policy,
    (id, outcome): (&BackendId, &Outcome),
    moment: &Moment<'_>,
) -> bool {
    let (state, method) = match outcome {
        Outcome::Failed(_) => return false,
        Outcome::Stored(state, method) => (*state, *method),
        Outcome::Verified(method) => (CopyState::Verified, *method),
        Outcome::Audited => match audited(record, id, moment) {
            Some(state) => (state, VerifyMethod::Audit),
            None => return false,
        },
        Outcome::Bad(state) => (*state, VerifyMethod::ReadBack),
        Outcome::Released(confirmed) => {
            let content = Content { root, record, policy };
            if !content.may_release(id, confirmed, moment) {
                return false;
            }
            (CopyState::Released, VerifyMethod::None)
        }
    };
    let before = record.copies.iter().find(|copy| copy.backend == *id).map(|copy| copy.state);
    // A verdict about a copy that was dropped meanwhile makes no copy.
    let verdict = matches!(outcome, Outcome::Verified(_) | Outcome::Bad(_));
    if verdict && matches!(before, None | Some(CopyState::Released)) {
        return false;
    }
    // Proofs are in order of time, also after the clock went back.
    let trusted = moment.places.get(id).map_or(moment.now, |place| place.trusted_since);
    let at = moment.now.max(trusted);
    record.copies.retain(|copy| copy.backend != *id);
    record.copies.push(CopyRecord { backend: id.clone(), state, at, method });
    true
}

/// What a copy is after an audit: what it was, as long as that counts. One of a place
/// that was away for too long counts again only where audits are all that is asked for.
fn audited(record: &ContentRecord, id: &BackendId, moment: &Moment<'_>) -> Option<CopyState> {
    let copy = record.copies.iter().find(|copy| copy.backend == *id)?;
    let (number, standing) = moment.places.standing(copy)?;
    let suffices = moment.places.all[number].settings.scrub == Scrub::Audit;
    match standing {
        Standing::Good => Some(copy.state),
        Standing::Stale if suffices => Some(CopyState::Claimed),
        Standing::Stale | Standing::Uncounted | Standing::Bad | Standing::Released => None,
    }
}
