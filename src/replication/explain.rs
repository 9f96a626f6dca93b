//! Why copies are where they are, and where they are not.

use std::collections::BTreeSet;

use serde::Serialize;

use super::level::Standing;
use super::machine::{Content, Forecast, Job, Places, forecast};
use super::{BackendState, Policy, ReplicationError, ReplicationStatus, Replicator};
use crate::backends::Micros;
use crate::metadata::{ContentRecord, CopyRecord, CopyState, PinState, QueueRecord, VerifyMethod};
use crate::types::{BackendId, Cid, Timestamp};

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
    /// It has a good copy when all that is planned is done, as the places are now.
    pub chosen: bool,
    /// Why it has none then; empty when it is chosen.
    pub why_not: String,
    /// What is done there for that, in order.
    pub steps: Vec<ExplainedStep>,
    /// Its copy, good or bad.
    pub copy: Option<CopyRecord>,
}

/// Work that is to come at a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedStep {
    /// Rounds of other work that come before it.
    pub round: usize,
    /// What: `send`, `repair`, `verify`, `audit`, `release`.
    pub job: &'static str,
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

/// Money, as the user set the prices.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedCost {
    /// The chosen copies of the content, a month.
    pub per_month: String,
    /// To make those that are missing: requests.
    pub once: String,
    /// All that the volume costs in the running month, if it goes on so.
    pub volume_forecast: String,
    /// What that may be; `None`: no ceiling.
    pub ceiling: Option<String>,
    /// It is above it: cheaper places come first.
    pub above: bool,
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
    /// What its copies cost, and all.
    pub cost: ExplainedCost,
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
        let distinct = record.map(|_| places.held(copies, policy.distinct).len());
        let root = content.map(|(root, _)| *root).unwrap_or_default();
        let target = usize::from(policy.target);
        let moment = core.machine.moment(&places);
        // What other files ask for of the same content is done, too.
        let holds = record.map(|record| core.machine.policy_of(record));
        let holds = holds.as_deref().unwrap_or(policy);
        let begun = record.cloned().unwrap_or_else(|| written(policy, &places, moment.now));
        let begun = Content { root: &root, record: &begun, policy: holds };
        let coming = forecast(&begun, &moment);
        let explained = places.all.iter().enumerate().map(|(number, place)| {
            let copy = copy_at(&place.id);
            let there = coming.record.good_copies().any(|copy| copy.backend == place.id);
            let steps = coming.steps.iter().filter(|step| step.place == place.id);
            let steps: Vec<ExplainedStep> = steps
                .map(|step| ExplainedStep { round: step.round, job: step.job.as_str() })
                .collect();
            let released = steps.last().is_some_and(|step| step.job == Job::Release.as_str());
            let passed = coming.passed_over.iter().find(|(passed, _)| *passed == number);
            let why_not = match passed {
                _ if place.cache => "a cache: what lies there is no copy".to_owned(),
                _ if there => String::new(),
                Some((_, why)) if released => format!("its copy is to be given up: {why}"),
                None if released => "its copy is to be given up".to_owned(),
                Some((_, why)) => (*why).to_owned(),
                None if place.id.is_local() => "no good copy can be read now".to_owned(),
                None => String::new(),
            };
            ExplainedPlace {
                id: place.id.clone(),
                state: (!place.id.is_local()).then_some(place.state),
                domain: place.domains[policy.distinct as usize].clone(),
                tier: place.settings.tier.clone(),
                preferred: holds.prefer.contains(&place.id),
                excluded: holds.exclude.contains(&place.id),
                chosen: there && !place.cache,
                why_not,
                steps,
                copy,
            }
        });
        let explained = explained.collect();
        let cost = self.cost_of(&coming, &places);
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
            cost,
            missing: distinct.map_or_else(String::new, |have| missing(have, target, row.as_ref())),
        })
    }
}

impl Replicator {
    fn cost_of(&self, coming: &Forecast, places: &Places) -> ExplainedCost {
        let (mut per_month, mut once) = (0u64, 0u64);
        let stays = |id: &BackendId| coming.record.good_copies().any(|copy| copy.backend == *id);
        for place in places.all.iter().filter(|place| stays(&place.id)) {
            let price = &place.settings.price;
            let month = price.of_month(coming.record.stored_bytes()).0;
            per_month = per_month.saturating_add(month);
            let sent = coming.steps.iter().any(|s| s.place == place.id && s.job == Job::Send);
            let blocks = if sent { coming.record.blocks } else { 0 };
            once = once.saturating_add(price.of_use(0, blocks).0);
        }
        let registry = &self.core.registry;
        let ceiling = registry.fleet().read().costs().1;
        ExplainedCost {
            per_month: Micros(per_month).to_string(),
            once: Micros(once).to_string(),
            volume_forecast: registry.cost_forecast().to_string(),
            ceiling: ceiling.map(|ceiling| ceiling.to_string()),
            above: places.thrifty,
        }
    }
}

/// What a small file would have that is written now: it is here first.
fn written(policy: &Policy, places: &Places, now: Timestamp) -> ContentRecord {
    let here = places.local_replica().map(|_| CopyRecord {
        backend: BackendId::local(),
        state: CopyState::Verified,
        at: now,
        method: VerifyMethod::Written,
    });
    ContentRecord {
        size: 0,
        tsize: 0,
        blocks: 1,
        refs: 1,
        profile: String::new(),
        min: policy.min,
        target: policy.target,
        max: policy.max,
        pin: PinState::BelowMin,
        copies: here.into_iter().collect(),
        holes: 0,
        policies: Vec::new(),
        created_s: now.seconds,
        accessed_s: now.seconds,
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

    #[test]
    fn what_is_missing_is_said_once() {
        let row = |last_error: &str| QueueRecord {
            attempts: 1,
            last_error: last_error.to_owned(),
            ..QueueRecord::new(Timestamp::default())
        };
        assert_eq!(missing(2, 3, Some(&row("2 of 3 copies; c: full"))), "2 of 3 copies; c: full");
        assert_eq!(missing(2, 3, Some(&row("c: timeout"))), "2 of 3 copies: c: timeout");
        assert_eq!(missing(2, 3, Some(&row(""))), "2 of 3 copies; the next is queued");
        assert_eq!(missing(3, 3, None), "");
    }
}
