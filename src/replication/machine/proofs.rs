//! Which copies are to be read back: those that only their place vouches for,
//! those of a place that was away for too long, and those whose proof is older than
//! the scrub's period. Found by the look at all contents, and told by what is sent.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::places::{Places, Standing};
use super::time::apart;
use super::{Machine, Moment};
use crate::metadata::{ContentRecord, CopyState};
use crate::types::{BackendId, Cid};

/// Copies that are remembered; the next look finds more.
const REMEMBERED: usize = 16_384;

/// Copies to be proven, bounded.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    due: VecDeque<(BackendId, Cid)>,
    known: HashSet<(BackendId, Cid)>,
    /// Some found no room.
    overflowed: bool,
}

impl Proofs {
    pub fn add(&mut self, id: &BackendId, root: &Cid) {
        let copy = (id.clone(), *root);
        if self.known.contains(&copy) {
            return;
        }
        if self.due.len() >= REMEMBERED {
            self.overflowed = true;
            return;
        }
        self.known.insert(copy.clone());
        self.due.push_back(copy);
    }

    fn take(&mut self, most: usize) -> Vec<(BackendId, Cid)> {
        let count = self.due.len().min(most);
        let taken: Vec<_> = self.due.drain(..count).collect();
        for copy in &taken {
            self.known.remove(copy);
        }
        taken
    }
}

/// The places whose copy of a content is to be read back.
pub(super) fn due<'r>(
    record: &'r ContentRecord,
    moment: &'r Moment<'_>,
    period: Duration,
) -> impl Iterator<Item = &'r BackendId> {
    record.copies.iter().filter_map(move |copy| {
        let (number, standing) = moment.places.standing(copy)?;
        let readable = moment.places.all[number].readable;
        let due = match standing {
            Standing::Stale => true,
            Standing::Good => {
                copy.state == CopyState::Claimed || apart(copy.at, moment.now) >= period
            }
            Standing::Uncounted | Standing::Bad | Standing::Released => false,
        };
        (readable && due).then_some(&copy.backend)
    })
}

impl Machine {
    /// Copies to be read back, at most so many.
    #[must_use]
    pub fn take_proofs(&self, most: usize) -> Vec<(BackendId, Cid)> {
        let (taken, again) = {
            let mut proofs = self.proofs.lock();
            let taken = proofs.take(most);
            let again = proofs.due.is_empty() && std::mem::take(&mut proofs.overflowed);
            (taken, again)
        };
        if again {
            self.request_sweep();
        }
        taken
    }

    /// Copies that wait to be read back; more may be found.
    #[must_use]
    pub fn proofs_waiting(&self) -> usize {
        self.proofs.lock().due.len()
    }

    pub(super) fn note_proofs(&self, root: &Cid, record: &ContentRecord, places: &Places) {
        let moment = self.moment(places);
        let mut proofs = self.proofs.lock();
        for id in due(record, &moment, self.options.scrub_period) {
            proofs.add(id, root);
        }
    }
}
