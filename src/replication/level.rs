//! Waits for the copies of a policy's level.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::Core;
use super::planner::Places;
use super::{OnDegraded, Policy, ReplicationError, WriteResult};
use crate::types::Cid;

/// How often places are looked at: one that goes down wakes nobody.
const LOOK: Duration = Duration::from_millis(250);

/// See [`super::Replicator::level`].
pub(super) async fn wait(
    core: Arc<Core>,
    root: Cid,
    policy: Policy,
) -> Result<WriteResult, ReplicationError> {
    let start = Instant::now();
    // Taken before the look, so that a change in between is seen.
    let mut changes = core.waiters.of(&root).watch();
    let mut hurried = false;
    loop {
        let record = core.namespace.content(&root)?;
        let Some(record) = record.filter(|record| record.refs > 0) else {
            // Unlinked or replaced meanwhile: nobody is left to wait for it.
            return Ok(WriteResult::TargetAchieved);
        };
        {
            let places = core.registry.places();
            let held = places.held(&record);
            let (have, target) = (held.len(), usize::from(policy.target));
            let want = policy.copies_to_wait_for(places.configured(&held).min(target.max(have)));
            if have >= target {
                return Ok(WriteResult::TargetAchieved);
            }
            if have >= want {
                return Ok(WriteResult::QuorumAchieved);
            }
            let reachable = places.reachable(&held, record.stored_bytes());
            let no_place =
                reachable < want && (have >= reachable || policy.on_degraded == OnDegraded::Fail);
            let late = start.elapsed() >= core.options.level_deadline;
            if no_place || late || core.is_stopped() {
                return degraded(&core, &policy, (have, want), no_place.then_some(&places));
            }
        }
        if !hurried {
            // Who waits does not wait for the end of a pause, too.
            hurried = true;
            core.queue.submit(&[root]);
        }
        changes.changed(LOOK).await;
    }
}

fn degraded(
    core: &Core,
    policy: &Policy,
    (have, want): (usize, usize),
    no_place: Option<&Places>,
) -> Result<WriteResult, ReplicationError> {
    match policy.on_degraded {
        OnDegraded::Queue if have > 1 => Ok(WriteResult::BelowQuorum),
        OnDegraded::Queue => Ok(WriteResult::NoReplication),
        OnDegraded::Fail if core.is_stopped() => Err(ReplicationError::ShuttingDown),
        OnDegraded::Fail => {
            let reason = match no_place {
                None => "the backends are too slow".to_owned(),
                Some(places) => format!(
                    "too few backends in distinct failure domains are in reach ({})",
                    why(core, places)
                ),
            };
            Err(ReplicationError::BelowLevel { have, want, reason })
        }
    }
}

/// Why each backend takes no copy.
fn why(core: &Core, places: &Places) -> String {
    let mut reasons = vec![format!("local: {}", places.local_domain)];
    for status in core.registry.statuses() {
        reasons.push(match status.last_error.as_str() {
            "" => format!("{}: {}", status.id, status.domain),
            error => format!("{}: {error}", status.id),
        });
    }
    reasons.join("; ")
}
