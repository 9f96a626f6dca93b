//! Which copies are to be read back: those that only their place vouches for,
//! those of a place that was away for too long, and those whose proof is older than
//! the scrub's period. Found by the look at all contents, and told by what is sent; each
//! day some of every place, chosen at random, so that damage of many is found early.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::places::{Places, Standing};
use super::time::{apart, plus, since};
use super::{Machine, Moment};
use crate::backends::Scrub;
use crate::metadata::{ContentRecord, CopyState, MetadataError, VerifyMethod};
use crate::types::{BackendId, Cid, Timestamp, cid};

/// Copies that are remembered; the next look finds more.
const REMEMBERED: usize = 16_384;

/// Every so long a sample of each place is proven.
const SAMPLE_EVERY: Duration = Duration::from_hours(24);
/// The first one, after the start.
const FIRST_SAMPLE: Duration = Duration::from_hours(1);
/// Contents of one page of a search for a sample, and pages of one search.
const SAMPLE_PAGE: usize = 256;
const SAMPLE_PAGES: usize = 16;

/// So often it is looked whether one is due.
const SAMPLE_LOOK: Duration = Duration::from_mins(10);

/// When the next sample of each place is due.
#[derive(Debug, Default)]
pub(super) struct Samples {
    next: HashMap<BackendId, Timestamp>,
    looked: Option<Timestamp>,
}

impl Samples {
    fn is_time(&mut self, now: Timestamp) -> bool {
        let late = self.looked.is_none_or(|at| apart(at, now) >= SAMPLE_LOOK);
        if late {
            self.looked = Some(now);
        }
        late
    }
}

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
        let place = &moment.places.all[number];
        let due = match standing {
            Standing::Stale => true,
            Standing::Good => {
                let only_said = match place.settings.scrub {
                    Scrub::Full => {
                        copy.state == CopyState::Claimed || copy.method == VerifyMethod::Audit
                    }
                    Scrub::Audit => {
                        copy.state == CopyState::Claimed && copy.method != VerifyMethod::Audit
                    }
                };
                only_said || apart(copy.at, moment.now) >= period
            }
            Standing::Uncounted | Standing::Bad | Standing::Released => false,
        };
        (place.readable && due).then_some(&copy.backend)
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

    /// Takes the day's samples that are due: of each place half from the contents of one
    /// block and half from the others, from a random CID on (hashes are in no order).
    pub(super) fn sample(&self, now: Timestamp) -> Result<(), MetadataError> {
        if self.options.sample_contents == 0 || !self.samples.lock().is_time(now) {
            return Ok(());
        }
        let places = self.places();
        let due: Vec<BackendId> = {
            let samples = &mut self.samples.lock().next;
            samples.retain(|id, _| places.get(id).is_some());
            let readable = places.all.iter().filter(|place| place.readable);
            readable
                .filter(|place| {
                    let next =
                        *samples.entry(place.id.clone()).or_insert_with(|| plus(now, FIRST_SAMPLE));
                    // A clock that was set back must not put them off.
                    let over = next <= now || since(now, next) > SAMPLE_EVERY;
                    if over {
                        samples.insert(place.id.clone(), plus(now, SAMPLE_EVERY));
                    }
                    over
                })
                .map(|place| place.id.clone())
                .collect()
        };
        for id in due {
            let most = self.options.sample_contents.div_ceil(2);
            for codec in [cid::RAW, cid::DAG_PB] {
                let mut from = [0; 32];
                self.random.lock().fill(&mut from);
                self.sample_from(&id, &cid::v1(codec, &from), most, &places)?;
            }
        }
        Ok(())
    }

    fn sample_from(
        &self,
        id: &BackendId,
        from: &Cid,
        most: usize,
        places: &Places,
    ) -> Result<(), MetadataError> {
        let (mut after, mut found) = (Some(*from), 0);
        for _ in 0..SAMPLE_PAGES {
            let page = self.namespace.contents_page(after.as_ref(), SAMPLE_PAGE)?;
            let mut proofs = self.proofs.lock();
            for (root, record) in page.iter().filter(|(_, record)| record.refs > 0) {
                let mut copies = record.copies.iter().filter(|copy| copy.backend == *id);
                let good =
                    copies.any(|copy| matches!(places.standing(copy), Some((_, Standing::Good))));
                if good && found < most && root.codec() == from.codec() {
                    proofs.add(id, root);
                    found += 1;
                }
            }
            drop(proofs);
            after = page.last().map(|(root, _)| *root);
            if found >= most || after.is_none_or(|last| last.codec() != from.codec()) {
                break;
            }
        }
        Ok(())
    }
}
