//! What is to be done for a content: desired copies against actual ones. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::BackendState;
use super::placement::{Candidate, choose, domains};
use crate::metadata::{ContentRecord, CopyState};
use crate::types::{BackendId, Cid};

/// The places there are, as of one moment.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub candidates: Vec<Candidate>,
    pub local_domain: String,
}

/// One piece of work at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// Bring what is missing there; a node that is there holds what is below it.
    Send,
    /// A copy there is known to be bad or gone: look at every block.
    Repair,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing: the target is reached, or every place that is configured has it.
    Satisfied,
    /// This, now. The local store is named `local`.
    Act(Vec<(BackendId, Job)>),
    /// Nothing now, for this reason: more places must come first.
    Stuck(String),
}

impl Places {
    /// Where copies there count; `None` when they do not.
    pub fn domain_of(&self, id: &BackendId) -> Option<String> {
        if id.is_local() {
            return Some(self.local_domain.clone());
        }
        self.candidates.iter().find(|c| c.id == *id && c.durable).map(|c| c.domain.clone())
    }

    /// Failure domains with a good copy.
    pub fn held(&self, record: &ContentRecord) -> BTreeSet<String> {
        domains(&record.copies, &|id| self.domain_of(id))
    }

    /// How many domains hold it or take `size` more bytes now, the local one
    /// included.
    pub fn reachable(&self, held: &BTreeSet<String>, size: u64) -> usize {
        self.with(held, |candidate| candidate.takes(size))
    }

    /// How many domains hold it or could ever: those that are away count,
    /// read-only ones do not.
    pub fn configured(&self, held: &BTreeSet<String>) -> usize {
        self.with(held, |candidate| candidate.state != BackendState::ReadOnly)
    }

    fn with(&self, held: &BTreeSet<String>, counts: impl Fn(&Candidate) -> bool) -> usize {
        let mut all: BTreeSet<&str> = held.iter().map(String::as_str).collect();
        all.insert(&self.local_domain);
        let counted = self.candidates.iter().filter(|c| c.durable && counts(c));
        all.extend(counted.map(|c| c.domain.as_str()));
        all.len()
    }
}

/// Plans for one content. More copies than `max` are left as they are.
pub(super) fn plan(root: &Cid, record: &ContentRecord, places: &Places) -> Plan {
    let target = usize::from(record.target);
    let held = places.held(record);
    if held.len() >= target || held.len() >= places.configured(&held) {
        return Plan::Satisfied;
    }
    let damaged: BTreeSet<BackendId> = record
        .copies
        .iter()
        .filter(|copy| matches!(copy.state, CopyState::Corrupt | CopyState::Lost))
        .map(|copy| copy.backend.clone())
        .collect();
    let mut covered = held.clone();
    let mut jobs = Vec::new();
    // Without a good copy anywhere there is nothing to bring here.
    let here = record.good_copies().any(|copy| copy.backend.is_local());
    if !here && !held.is_empty() {
        covered.insert(places.local_domain.clone());
        jobs.push((BackendId::local(), Job::Send));
    }
    let choice =
        choose(root, target, record.stored_bytes(), &covered, &damaged, &places.candidates);
    for id in choice.selected {
        let job = if damaged.contains(&id) { Job::Repair } else { Job::Send };
        jobs.push((id, job));
    }
    if !jobs.is_empty() {
        return Plan::Act(jobs);
    }
    let mut reason = format!("{} of {target} copies", held.len());
    for (id, why) in choice.passed_over {
        // Writing to a String cannot fail.
        write!(reason, "; {id}: {why}").unwrap_or_default();
    }
    Plan::Stuck(reason)
}
