//! Looks at contents that an administrator asks about.

use std::collections::BTreeMap;

use super::Machine;
use super::places::Standing;
use super::planner::{Moment, Plan, Verdict};
use crate::metadata::{ContentRecord, CopyState, MetadataError, PinState};
use crate::types::{BackendId, Cid};

/// Contents of a page.
const PAGE: usize = 1024;
/// Reasons that are told apart; the rest is one more.
const REASONS: usize = 16;
/// CIDs that are named for each.
const NAMED: usize = 8;
/// Stands for reasons beyond those that are told apart.
const OTHER: &str = "other reasons";

/// Contents that nothing can be done for now, for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stuck {
    /// How many.
    pub contents: u64,
    /// Of these, below their min.
    pub below_min: u64,
    /// The first ones.
    pub first: Vec<Cid>,
}

/// What a look at contents found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ailing {
    /// Contents that were looked at.
    pub looked: u64,
    /// Below their min.
    pub below_min: u64,
    /// At least their min, below the target.
    pub below_target: u64,
    /// Something is to be done for them now: copies, repairs, proofs, releases.
    pub due: u64,
    /// Their bytes.
    pub due_bytes: u64,
    /// What cannot be done, by reason.
    pub stuck: BTreeMap<String, Stuck>,
}

/// Copies at one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proven {
    /// They were read back, and count.
    pub good: u64,
    /// Nobody has read them back since the place is trusted.
    pub waiting: u64,
    /// They are known to be bad or gone.
    pub bad: u64,
}

impl Ailing {
    /// Contents that stay below their min, as far as is known.
    #[must_use]
    pub fn stays_below_min(&self) -> u64 {
        self.stuck.values().map(|stuck| stuck.below_min).sum()
    }

    fn add(&mut self, root: &Cid, record: &ContentRecord, verdict: &Verdict) {
        self.looked += 1;
        self.below_min += u64::from(verdict.pin == PinState::BelowMin);
        self.below_target += u64::from(verdict.pin == PinState::BelowTarget);
        let short = matches!(verdict.pin, PinState::BelowMin | PinState::BelowTarget);
        let reason = match &verdict.plan {
            Plan::Act(_) => {
                self.due += 1;
                self.due_bytes = self.due_bytes.saturating_add(record.stored_bytes());
                // Tried all the same; a copy may be better than it seemed.
                if verdict.copies > 0 {
                    return;
                }
                "no good copy is known: attach a place that has had it, or write the file anew"
            }
            Plan::Stuck(reason) => reason,
            Plan::Satisfied if short => {
                "every place that counts has a copy: add a backend (`cairn backend add`), or set a lower target"
            }
            Plan::Satisfied => return,
        };
        let known = self.stuck.contains_key(reason) || self.stuck.len() < REASONS;
        let stuck = self.stuck.entry(if known { reason } else { OTHER }.to_owned()).or_default();
        stuck.contents += 1;
        stuck.below_min += u64::from(verdict.pin == PinState::BelowMin);
        if stuck.first.len() < NAMED {
            stuck.first.push(*root);
        }
    }
}

impl Machine {
    /// What these contents lack, as the places are now.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn survey(&self, roots: &[Cid], found: &mut Ailing) -> Result<(), MetadataError> {
        self.survey_at(roots, &self.moment(&self.places()), found).map(drop)
    }

    fn survey_at(
        &self,
        roots: &[Cid],
        moment: &Moment<'_>,
        found: &mut Ailing,
    ) -> Result<Vec<Cid>, MetadataError> {
        let mut unwell = Vec::new();
        for root in roots {
            let Some(record) = self.namespace.content(root)? else { continue };
            if record.refs == 0 {
                continue;
            }
            let verdict = self.plan(root, &record, moment);
            found.add(root, &record, &verdict);
            if verdict.pin != record.pin || verdict.plan != Plan::Satisfied {
                unwell.push(*root);
            }
        }
        Ok(unwell)
    }

    /// As [`Machine::survey`]; the rows of those that lack something are due now, with
    /// no pause and no attempts behind them.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn heal(&self, roots: &[Cid], found: &mut Ailing) -> Result<(), MetadataError> {
        let places = self.places();
        let moment = self.moment(&places);
        let unwell = self.survey_at(roots, &moment, found)?;
        if unwell.is_empty() {
            return Ok(());
        }
        let _one = self.recording.lock();
        self.namespace.update_contents(&unwell, &mut |root, record, row| {
            if let Some(row) = row {
                row.forget_failures();
            }
            self.settle(root, record, row, &moment, None);
        })?;
        self.lanes.lock().request_scan(false);
        Ok(())
    }

    /// How many of a place's copies of contents that are wanted are proven.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn proven_at(&self, id: &BackendId) -> Result<Proven, MetadataError> {
        let places = self.places();
        let (mut proven, mut after) = (Proven::default(), None);
        loop {
            let page = self.namespace.contents_page(after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(proven) };
            after = Some(*last);
            for (_, record) in page.iter().filter(|(_, record)| record.refs > 0) {
                let Some(copy) = record.copies.iter().find(|copy| copy.backend == *id) else {
                    continue;
                };
                match places.standing(copy) {
                    Some((_, Standing::Good)) if copy.state == CopyState::Verified => {
                        proven.good += 1;
                    }
                    Some((_, Standing::Good | Standing::Stale | Standing::Uncounted)) => {
                        proven.waiting += 1;
                    }
                    Some((_, Standing::Bad)) => proven.bad += 1,
                    Some((_, Standing::Released)) | None => {}
                }
            }
        }
    }
}
