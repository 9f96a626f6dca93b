//! Looks at a mounted volume once a second: backends that change state are events,
//! and what must not stay as it is becomes an alarm. Asks no backend.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::evict;
use super::spending::{self, Spending};
use super::volume::Volume;
use crate::backends::Usage;
use crate::config::{CapacityConfig, EventsConfig};
use crate::metadata::{EventKind, Namespace};
use crate::replication::{AlarmKind, BackendState, BackendStatus, Events, Evictor, Registry};
use crate::runtime::Shutdown;
use crate::store::LocalStore;
use crate::telemetry::metrics;
use crate::types::{BackendId, ByteSize, Cid};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at what costs more: the disk's space, contents with an alarm.
const SLOW: Duration = Duration::from_secs(5);
/// Between two writes of what the month cost; a killed daemon forgets no more.
const KEEP: Duration = Duration::from_secs(30);
/// A place that was too full is not any more when this many percent less are used.
const FULL_MARGIN: u64 = 5;

pub(super) struct Watch {
    events: Events,
    registry: Arc<Registry>,
    namespace: Arc<Namespace>,
    store: Arc<LocalStore>,
    evictor: Arc<Evictor>,
    config: EventsConfig,
    capacity: CapacityConfig,
    states: HashMap<BackendId, BackendState>,
    slow: Option<Instant>,
    spent: Spending,
    kept: Instant,
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

/// Whether there is reason for an alarm.
#[derive(Debug, PartialEq, Eq)]
enum Cause {
    There(String),
    /// Not any more, by so little that it may soon be again.
    Near,
    Gone,
}

/// At or above a limit.
fn above(value: u64, limit: u64, said: impl Fn() -> String) -> Cause {
    match value {
        n if n >= limit => Cause::There(said()),
        n if n >= limit - limit / 20 => Cause::Near,
        _ => Cause::Gone,
    }
}

/// A place that has too much: by its disk, or by what the user set.
fn crowded(usage: &Usage, used: u64, limits: (u64, Option<u64>), most: u64) -> Cause {
    let (alarm, stop) = limits;
    let bytes = ByteSize(used);
    let stopped = stop.map_or(Cause::Gone, |stop| {
        above(used, stop, || {
            format!("{bytes} are there, stop= is {}: it takes no new copies", ByteSize(stop))
        })
    });
    let alarmed =
        above(used, alarm, || format!("{bytes} are there, its alarm is at {}", ByteSize(alarm)));
    let full = match percent_used(usage) {
        Some(percent) if percent >= most => {
            Cause::There(format!("{percent} % of its space are used"))
        }
        Some(percent) if percent + FULL_MARGIN >= most => Cause::Near,
        _ => Cause::Gone,
    };
    let all = [stopped, alarmed, full];
    let near = all.contains(&Cause::Near);
    let there = all.into_iter().find(|cause| matches!(cause, Cause::There(_)));
    there.unwrap_or(if near { Cause::Near } else { Cause::Gone })
}

impl Watch {
    /// Starts the thread.
    pub fn start(volume: &Volume) -> std::io::Result<()> {
        let mut watch = Self {
            events: volume.events.clone(),
            registry: Arc::clone(&volume.registry),
            namespace: Arc::clone(&volume.namespace),
            store: Arc::clone(&volume.store),
            evictor: Arc::clone(&volume.evictor),
            config: volume.config.events.clone(),
            capacity: volume.config.capacity.clone(),
            states: HashMap::new(),
            slow: None,
            spent: Spending::new(),
            kept: Instant::now(),
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
        self.registry.settle_spending();
        if self.kept.elapsed() >= KEEP {
            self.kept = Instant::now();
            spending::keep(&self.namespace, &self.registry, &mut self.spent);
        }
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

    /// An alarm while a cause is there, which ends when it is not any more, and with
    /// some distance.
    fn tell(&self, kind: AlarmKind, subject: &str, cause: &Cause) {
        match cause {
            Cause::There(detail) => self.events.raise(kind, subject, detail),
            Cause::Near => {}
            Cause::Gone => self.events.clear(kind, subject),
        }
    }

    fn space(&self, statuses: &[BackendStatus]) {
        let most = self.config.full_percent;
        if let Ok(usage) = self.store.usage() {
            let used = usage.used_bytes;
            let space = Usage {
                used_bytes: Some(used),
                capacity_bytes: Some(usage.capacity_bytes),
                available_bytes: Some(usage.available_bytes),
            };
            let limits = (self.capacity.local_alarm_bytes.0, None);
            let cause = crowded(&space, used, limits, most);
            self.tell(AlarmKind::Capacity, BackendId::local().as_str(), &cause);
            if let Some(budget) = self.store.budget() {
                let why = evict::waits(used, budget, &self.evictor.state());
                let why = why.map(|why| format!("{why}; writes go on"));
                let after = Duration::from_secs(self.config.alarm_after_s);
                self.events.observe(AlarmKind::Capacity, "cache", why.as_deref(), after);
            } else {
                self.events.clear(AlarmKind::Capacity, "cache");
            }
        }
        for status in statuses {
            let limits = (status.settings.alarm_bytes, status.settings.stop_bytes);
            let cause = crowded(&status.usage, status.used, limits, most);
            self.tell(AlarmKind::Capacity, status.id.as_str(), &cause);
        }
        let bytes = self.namespace.stats().bytes;
        let limit = self.capacity.alarm_bytes.0;
        let said = || {
            let (bytes, limit) = (ByteSize(bytes), ByteSize(limit));
            format!("{bytes} of files, capacity.alarm_bytes is {limit}; nothing stops")
        };
        self.tell(AlarmKind::Capacity, "volume", &above(bytes, limit, said));
        let ((costs, ceiling), used_up) = {
            let fleet = self.registry.fleet().read();
            (fleet.costs(), fleet.used_up())
        };
        let forecast = self.registry.cost_forecast();
        let cause = ceiling.map_or(Cause::Gone, |ceiling| {
            let said = || {
                format!("copies cost {costs} a month ({used_up} of it for reads and requests so far, {forecast} in all if it goes on so), capacity.cost_ceiling is {ceiling}; the policies' copies are made all the same, at cheaper places where there are some")
            };
            above(costs.0, ceiling.0.saturating_add(1), said)
        });
        self.tell(AlarmKind::Cost, "volume", &cause);
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

    #[test]
    fn a_place_is_crowded_by_its_disk_its_alarm_or_its_stop_and_not_any_more_with_distance() {
        let disk = |available| Usage {
            used_bytes: None,
            capacity_bytes: Some(1000),
            available_bytes: Some(available),
        };
        let cause = |available, used, stop| crowded(&disk(available), used, (100, stop), 90);
        assert_eq!(cause(500, 94, None), Cause::Gone);
        assert_eq!(cause(500, 95, None), Cause::Near);
        let said = |cause| match cause {
            Cause::There(said) => said,
            other => panic!("{other:?}"),
        };
        assert!(said(cause(500, 100, None)).contains("its alarm is at"));
        assert!(said(cause(500, 100, Some(50))).contains("it takes no new copies"));
        assert!(said(cause(100, 0, None)).contains("90 % of its space"));
        assert_eq!(cause(120, 0, None), Cause::Near);
    }
}
