//! Looks at a mounted volume once a second: backends that change state are events,
//! and what must not stay as it is becomes an alarm. Asks no backend.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::volume::Volume;
use crate::backends::Usage;
use crate::config::EventsConfig;
use crate::metadata::{EventKind, Namespace};
use crate::replication::{AlarmKind, BackendState, BackendStatus, Events, Registry};
use crate::runtime::Shutdown;
use crate::store::LocalStore;
use crate::telemetry::metrics;
use crate::types::{BackendId, Cid};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at what costs more: the disk's space, contents with an alarm.
const SLOW: Duration = Duration::from_secs(5);
/// A place that was too full is not any more when this many percent less are used.
const FULL_MARGIN: u64 = 5;

pub(super) struct Watch {
    events: Events,
    registry: Arc<Registry>,
    namespace: Arc<Namespace>,
    store: Arc<LocalStore>,
    config: EventsConfig,
    states: HashMap<BackendId, BackendState>,
    slow: Option<Instant>,
}

/// The event that a new state of a backend is. At the first look, what is as it
/// should be is none.
fn event_of(before: Option<BackendState>, now: BackendState) -> Option<EventKind> {
    use BackendState::{Degraded, Down, Full, ReadOnly, Up};
    if before == Some(now) {
        return None;
    }
    match (before, now) {
        (None, Up | ReadOnly) => None,
        (_, Down) => Some(EventKind::BackendDown),
        (_, Degraded) => Some(EventKind::BackendDegraded),
        (_, Full) => Some(EventKind::BackendFull),
        (_, ReadOnly) => Some(EventKind::BackendReadOnly),
        (_, Up) => Some(EventKind::BackendBack),
    }
}

/// Percent of a place that is used, rounded down; `None` when it is not known.
fn percent_used(usage: &Usage) -> Option<u64> {
    let capacity = usage.capacity_bytes.filter(|capacity| *capacity > 0)?;
    let used = match (usage.available_bytes, usage.used_bytes) {
        (Some(available), _) => capacity.saturating_sub(available),
        (None, Some(used)) => used,
        (None, None) => return None,
    };
    u64::try_from(u128::from(used) * 100 / u128::from(capacity)).ok()
}

impl Watch {
    /// Starts the thread.
    pub fn start(volume: &Volume) -> std::io::Result<()> {
        let mut watch = Self {
            events: volume.events.clone(),
            registry: Arc::clone(&volume.registry),
            namespace: Arc::clone(&volume.namespace),
            store: Arc::clone(&volume.store),
            config: volume.config.events.clone(),
            states: HashMap::new(),
            slow: None,
        };
        let shutdown: Shutdown = volume.shutdown.clone();
        std::thread::Builder::new().name("cairn-watch".into()).spawn(move || {
            while !shutdown.wait(LOOK) {
                watch.look();
            }
        })?;
        Ok(())
    }

    fn look(&mut self) {
        let statuses = self.registry.statuses();
        self.backends(&statuses);
        self.below_min();
        if self.slow.is_none_or(|at| at.elapsed() >= SLOW) {
            self.slow = Some(Instant::now());
            self.space(&statuses);
            self.at_risk();
        }
        let active = self.events.alarms().len();
        metrics().replication_alarms_active.set(i64::try_from(active).unwrap_or(i64::MAX));
    }

    fn backends(&mut self, statuses: &[BackendStatus]) {
        let after = Duration::from_secs(self.config.alarm_after_s);
        for status in statuses {
            let before = self.states.insert(status.id.clone(), status.state);
            if let Some(kind) = event_of(before, status.state) {
                self.events.emit_at(kind, &status.id, status.id.as_str(), &status.last_error);
            }
            let cause = (status.state == BackendState::Down).then_some(status.last_error.as_str());
            self.events.observe(AlarmKind::BackendDown, status.id.as_str(), cause, after);
        }
        // Of one that was removed nothing is expected.
        let gone: Vec<BackendId> = self
            .states
            .keys()
            .filter(|id| !statuses.iter().any(|status| status.id == **id))
            .cloned()
            .collect();
        for id in gone {
            self.states.remove(&id);
            self.events.clear(AlarmKind::BackendDown, id.as_str());
            self.events.clear(AlarmKind::Capacity, id.as_str());
        }
    }

    fn below_min(&self) {
        let count = self.namespace.stats().pins_by_state[0];
        let cause =
            (count > 0).then(|| format!("{count} contents have fewer copies than their min"));
        let after = Duration::from_secs(self.config.alarm_after_s);
        self.events.observe(AlarmKind::BelowMin, "volume", cause.as_deref(), after);
    }

    fn space(&self, statuses: &[BackendStatus]) {
        let local = self.store.usage().ok().map(|usage| Usage {
            used_bytes: Some(usage.used_bytes),
            capacity_bytes: Some(usage.capacity_bytes),
            available_bytes: Some(usage.available_bytes),
        });
        let local = local.map(|usage| (BackendId::local(), usage));
        let all = statuses.iter().map(|status| (status.id.clone(), status.usage)).chain(local);
        for (id, usage) in all {
            let Some(percent) = percent_used(&usage) else { continue };
            let most = self.config.full_percent;
            if percent >= most {
                let detail = format!("{percent} % of its space are used");
                self.events.raise(AlarmKind::Capacity, id.as_str(), &detail);
            } else if percent + FULL_MARGIN < most {
                self.events.clear(AlarmKind::Capacity, id.as_str());
            }
        }
    }

    /// Contents that were without a good copy and have one now, or are gone.
    fn at_risk(&self) {
        let alarms = self.events.alarms();
        for alarm in alarms.iter().filter(|alarm| alarm.kind == AlarmKind::Corrupt) {
            let Ok(root) = alarm.subject.parse::<Cid>() else { continue };
            match self.namespace.content(&root) {
                Ok(Some(record)) if record.refs > 0 && record.good_copies().next().is_none() => {}
                Ok(_) => self.events.clear(AlarmKind::Corrupt, &alarm.subject),
                Err(error) => tracing::warn!(%error, "a content with an alarm cannot be read"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_an_event_when_it_changes_and_at_the_start_when_it_is_bad() {
        use BackendState::{Degraded, Down, Full, ReadOnly, Up};
        for (before, now, wanted) in [
            (None, Up, None),
            (None, ReadOnly, None),
            (None, Down, Some(EventKind::BackendDown)),
            (Some(Up), Up, None),
            (Some(Up), Degraded, Some(EventKind::BackendDegraded)),
            (Some(Degraded), Down, Some(EventKind::BackendDown)),
            (Some(Down), Down, None),
            (Some(Down), Up, Some(EventKind::BackendBack)),
            (Some(Down), Full, Some(EventKind::BackendFull)),
            (Some(Up), ReadOnly, Some(EventKind::BackendReadOnly)),
        ] {
            assert_eq!(event_of(before, now), wanted, "{before:?} {now:?}");
        }
    }

    #[test]
    fn the_use_of_a_place_is_known_from_what_is_free_or_else_used() {
        let usage = |used_bytes, capacity_bytes, available_bytes| Usage {
            used_bytes,
            capacity_bytes,
            available_bytes,
        };
        assert_eq!(percent_used(&usage(Some(1), Some(200), Some(21))), Some(89));
        assert_eq!(percent_used(&usage(Some(50), Some(200), None)), Some(25));
        assert_eq!(percent_used(&usage(None, Some(200), None)), None);
        assert_eq!(percent_used(&usage(Some(9), Some(0), Some(0))), None);
        assert_eq!(percent_used(&usage(None, Some(u64::MAX), Some(0))), Some(100));
    }
}
