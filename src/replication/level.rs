//! Waits for the copies of a policy's level.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::Core;
use super::machine::Standing as Copy;
use super::machine::{DomainSet, Places, is_aged};
use super::{Level, OnDegraded, Policy, ReplicationError, WriteResult};
use crate::metadata::ContentRecord;
use crate::types::{BackendId, Cid};

/// How often places are looked at: one that goes down wakes nobody.
const LOOK: Duration = Duration::from_millis(250);

/// How far a content is on the way to its level.
pub(super) struct Standing {
    /// Distinct copies that count for the level.
    pub have: usize,
    /// How many it asks for.
    pub want: usize,
    /// Distinct copies in all.
    pub held: usize,
    /// Distinct places that have one, or take one now, of those that count.
    pub reachable: usize,
    /// The only tier that counts.
    pub tier: Option<String>,
}

impl Standing {
    /// Without a content: of one that is here only.
    pub fn of(record: Option<&ContentRecord>, policy: &Policy, places: &Places) -> Self {
        let local = places.local_replica();
        let domain = |number: usize| places.domain(number, policy.distinct);
        let mut held =
            record.map(|record| places.held(&record.copies, policy.distinct)).unwrap_or_default();
        if let (None, Some(local)) = (record, local) {
            held.insert(domain(local));
        }
        let size = record.map_or(0, ContentRecord::stored_bytes);
        let target = usize::from(policy.target);
        let selected = places.configured(&held, policy).min(target.max(held.len()));
        let want = policy.copies_to_wait_for(selected, local.is_some());
        let tier = policy.tiers.first().filter(|_| policy.level == Level::Tiered);
        let Some(tier) = tier.map(|rule| rule.tier.clone()) else {
            let reachable = places.reachable(&held, size, policy);
            return Self { have: held.len(), want, held: held.len(), reachable, tier: None };
        };
        // The local store whose tier is not set is the first one.
        let counts = |number: usize| {
            let place = &places.all[number];
            let tier = place.settings.tier.as_ref().map_or(place.id.is_local(), |of| *of == tier);
            tier && place.holds_copies()
        };
        let mut domains = DomainSet::default();
        for copy in record.into_iter().flat_map(|record| &record.copies) {
            if let Some((number, Copy::Good)) = places.standing(copy)
                && counts(number)
            {
                domains.insert(domain(number));
            }
        }
        if let Some(local) = local.filter(|local| record.is_none() && counts(*local)) {
            domains.insert(domain(local));
        }
        let have = domains.len();
        for (number, place) in places.all.iter().enumerate() {
            if counts(number) && (place.id.is_local() || place.takes(size)) {
                domains.insert(domain(number));
            }
        }
        Self { have, want, held: held.len(), reachable: domains.len(), tier: Some(tier) }
    }
}

/// See [`super::Replicator::level`].
pub(super) async fn wait(
    core: Arc<Core>,
    root: Cid,
    policy: Policy,
) -> Result<WriteResult, ReplicationError> {
    let start = Instant::now();
    // Taken before the look, so that a change in between is seen.
    let mut changes = core.waiters.of(&root).watch();
    let mut looks = 1u32;
    loop {
        let record = core.namespace.content(&root)?;
        let Some(mut record) = record.filter(|record| record.refs > 0) else {
            // Unlinked or replaced meanwhile: nobody is left to wait for it.
            return Ok(WriteResult::TargetAchieved);
        };
        // What nobody looked at for long stands for nothing before it was audited.
        let (age, now) = (core.machine.options().dedup_proof, core.clock.now());
        let all = record.copies.len();
        record.copies.retain(|copy| !is_aged(copy, age, now));
        let aged = record.copies.len() < all;
        {
            let places = core.registry.places();
            let Standing { have, want, held, reachable, .. } =
                Standing::of(Some(&record), &policy, &places);
            if have >= want {
                return Ok(if held >= usize::from(policy.target) {
                    WriteResult::TargetAchieved
                } else {
                    WriteResult::QuorumAchieved
                });
            }
            let no_place =
                reachable < want && (have >= reachable || policy.on_degraded == OnDegraded::Fail);
            let row = core.namespace.queue_row(&root)?;
            let cancelled = row.is_some_and(|row| core.machine.is_cancelled(&row));
            let late = cancelled || start.elapsed() >= core.options.level_deadline;
            if no_place || late || core.is_stopped() {
                return degraded(&core, &policy, (have, want), (no_place, &places));
            }
        }
        if looks.is_power_of_two() && (aged || looks == 1) {
            // Who waits does not wait for the end of a pause, too. An audit that failed
            // is tried again.
            core.machine.lanes().lock().hurry(&root);
            core.ask_for(&[root]);
            core.workers.ring();
        }
        looks += 1;
        changes.changed(LOOK).await;
    }
}

fn degraded(
    core: &Core,
    policy: &Policy,
    (have, want): (usize, usize),
    (no_place, places): (bool, &Places),
) -> Result<WriteResult, ReplicationError> {
    match policy.on_degraded {
        OnDegraded::Queue if have > usize::from(!places.is_local_cache()) => {
            Ok(WriteResult::BelowQuorum)
        }
        OnDegraded::Queue => Ok(WriteResult::NoReplication),
        OnDegraded::Fail if core.is_stopped() => Err(ReplicationError::ShuttingDown),
        OnDegraded::Fail => {
            let reason = if no_place {
                let why = why(core, places);
                format!("too few backends in distinct failure domains are in reach ({why})")
            } else {
                "the backends are too slow".to_owned()
            };
            Err(ReplicationError::BelowLevel { have, want, reason })
        }
    }
}

/// Why each backend takes no copy.
fn why(core: &Core, places: &Places) -> String {
    let domain = places.domain_of(&BackendId::local());
    let mut reasons = vec![format!("local: {}", domain.unwrap_or("a cache, which is no copy"))];
    for status in core.registry.statuses() {
        reasons.push(match status.last_error.as_str() {
            _ if places.get(&status.id).is_some_and(|place| place.paused) => {
                format!("{}: paused (`cairn queue resume`)", status.id)
            }
            "" => format!("{}: {}", status.id, status.domain),
            error => format!("{}: {error}", status.id),
        });
    }
    reasons.join("; ")
}
