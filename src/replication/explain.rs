//! Why copies are where they are, and where they are not.

use std::collections::BTreeSet;

use serde::Serialize;

use super::level::Standing;
use super::machine::{Wanted, choose};
use super::{BackendState, Policy, ReplicationError, ReplicationStatus, Replicator};
use crate::metadata::{ContentRecord, CopyRecord, CopyState, QueueRecord};
use crate::types::{BackendId, Cid};

/// A place, as a policy sees it.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedPlace {
    /// Which.
    pub id: BackendId,
    /// Its health; `None` for the local store.
    pub state: Option<BackendState>,
    /// What it fails with.
    pub domain: String,
    /// Its tier, when its settings name one.
    pub tier: Option<String>,
    /// The policy prefers it.
    pub preferred: bool,
    /// The policy excludes it.
    pub excluded: bool,
    /// It has a good copy, or gets one now.
    pub chosen: bool,
    /// Why it gets none; empty when it is chosen.
    pub why_not: String,
    /// Its copy, good or bad.
    pub copy: Option<CopyRecord>,
}

/// What an fsync waits for.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedWait {
    /// Copies that it waits for, the local one included where that is a copy.
    pub copies: usize,
    /// Of these, how many there are; `None` without a content.
    pub have: Option<usize>,
    /// In words.
    pub text: String,
}

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// All places, the local store first.
    pub places: Vec<ExplainedPlace>,
    /// Backends that the policy names and the volume does not have.
    pub unknown: Vec<BackendId>,
    /// What an fsync waits for.
    pub wait: ExplainedWait,
    /// Of a content.
    pub status: Option<ReplicationStatus>,
    /// Distinct good copies, and how many are wanted.
    pub copies: Option<(usize, usize)>,
    /// What is missing and why, in words; empty when nothing is.
    pub missing: String,
}

impl Replicator {
    /// Explains where a content has its copies under a policy; without a content,
    /// where a small one could have them now.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn explain(
        &self,
        content: Option<(&Cid, &ContentRecord)>,
        policy: &Policy,
    ) -> Result<Explanation, ReplicationError> {
        let core = &self.core;
        let places = core.registry.places();
        let record = content.map(|(_, record)| record);
        let row = match content {
            Some((root, _)) => core.namespace.queue_row(root)?,
            None => None,
        };
        let copies = record.map_or(&[][..], |record| &record.copies);
        let copy_at = |id: &BackendId| copies.iter().find(|copy| copy.backend == *id).cloned();
        let good = |copy: &Option<CopyRecord>| {
            copy.as_ref()
                .is_some_and(|c| matches!(c.state, CopyState::Claimed | CopyState::Verified))
        };
        let mut held = places.held(copies, policy.distinct);
        let distinct = record.map(|_| held.len());
        // What is not written yet will be here first.
        if let Some(local) = places.local_replica() {
            held.insert(places.domain(local, policy.distinct));
        }
        let bad = |copy: &&CopyRecord| matches!(copy.state, CopyState::Corrupt | CopyState::Lost);
        let damaged: Vec<usize> =
            copies.iter().filter(bad).filter_map(|copy| places.number(&copy.backend)).collect();
        let root = content.map(|(root, _)| *root).unwrap_or_default();
        let target = usize::from(policy.target);
        let wanted = Wanted {
            root: &root,
            bytes: record.map_or(0, ContentRecord::stored_bytes),
            policy,
            copies: target,
            tier: None,
            successor: None,
        };
        let choice = choose(&wanted, &held, &damaged, &places);
        let explained = places.all.iter().enumerate().map(|(number, place)| {
            let copy = copy_at(&place.id);
            let passed = choice.passed_over.iter().find(|(passed, _)| *passed == number);
            let why_not = match passed {
                _ if place.cache => "a cache: what lies there is no copy".to_owned(),
                Some((_, why)) if !good(&copy) => (*why).to_owned(),
                _ => String::new(),
            };
            ExplainedPlace {
                id: place.id.clone(),
                state: (!place.id.is_local()).then_some(place.state),
                domain: place.domains[policy.distinct as usize].clone(),
                tier: place.settings.tier.clone(),
                preferred: policy.prefer.contains(&place.id),
                excluded: policy.exclude.contains(&place.id),
                chosen: why_not.is_empty(),
                why_not,
                copy,
            }
        });
        let explained = explained.collect();
        let named = policy.prefer.iter().chain(&policy.exclude).chain(policy.weights.keys());
        let unknown: BTreeSet<BackendId> =
            named.filter(|id| !id.is_local() && !core.registry.contains(id)).cloned().collect();
        let in_lane = core.machine.lanes().lock().is_busy(&root);
        Ok(Explanation {
            places: explained,
            unknown: unknown.into_iter().collect(),
            wait: wait(
                &Standing::of(record, policy, &places),
                policy,
                (record.is_some(), places.is_local_cache()),
            ),
            status: record.map(|record| ReplicationStatus::of(record, row.as_ref(), in_lane)),
            copies: distinct.map(|have| (have, target)),
            missing: distinct.map_or_else(String::new, |have| missing(have, target, row.as_ref())),
        })
    }
}

pub(super) fn missing(have: usize, target: usize, row: Option<&QueueRecord>) -> String {
    let lacks = format!("{} of {target} copies", have.min(target));
    match row {
        None if have >= target => String::new(),
        None => format!("{lacks}; every place that counts has one: add a backend"),
        // What is stuck says itself how many there are.
        Some(row) if row.last_error.starts_with(&lacks) => row.last_error.clone(),
        Some(row) if !row.last_error.is_empty() => format!("{lacks}: {}", row.last_error),
        Some(_) => format!("{lacks}; the next is queued"),
    }
}

fn wait(standing: &Standing, policy: &Policy, (content, cache): (bool, bool)) -> ExplainedWait {
    let Standing { have, want, tier, .. } = standing;
    let level = policy.level.as_str();
    let of = tier.as_ref().map(|tier| format!(" in tier {tier}")).unwrap_or_default();
    let copies = if *want == 1 { "copy" } else { "copies" };
    let wait = match policy.level {
        super::Level::LocalDurability => "the local disk".to_owned(),
        _ if cache => format!("{want} distinct {copies}{of} at backends"),
        _ => format!("{want} distinct {copies}{of}, the local one counted"),
    };
    let short = if standing.reachable < *want {
        format!("; only {} can be reached now", standing.reachable)
    } else {
        String::new()
    };
    let text = format!("{level}: {wait}{short}");
    ExplainedWait { copies: *want, have: content.then_some(*have), text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    #[test]
    fn what_is_missing_is_said_once() {
        let row = |last_error: &str| QueueRecord {
            since: Timestamp::default(),
            attempts: 1,
            not_before: Timestamp::default(),
            last_error: last_error.to_owned(),
            cancelled: false,
        };
        assert_eq!(missing(2, 3, Some(&row("2 of 3 copies; c: full"))), "2 of 3 copies; c: full");
        assert_eq!(missing(2, 3, Some(&row("c: timeout"))), "2 of 3 copies: c: timeout");
        assert_eq!(missing(2, 3, Some(&row(""))), "2 of 3 copies; the next is queued");
        assert_eq!(missing(3, 3, None), "");
    }
}
