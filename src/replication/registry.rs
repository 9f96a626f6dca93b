use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Semaphore;

use super::collect::Tracker;
use super::fence::Fence;
use super::machine::{Facts, Fleet, Holds, Misled, Places, Source, Spent, order};
use super::pace::Pace;
use super::{BackendState, BackendStatus, Policy, Whereabouts};
use crate::backends::wrap::{Meter, ReadOnly, Spending, Wrapped};
use crate::backends::{
    Backend, BackendError, BackendSpec, ErrorKind, Micros, PlaceSettings, Usage,
};
use crate::metadata::BackendRecord;
use crate::runtime::{Cancel, Clock};
use crate::types::BackendId;

struct Entry {
    spec: BackendSpec,
    /// With its switch and its tracker around it.
    backend: Option<Arc<dyn Backend>>,
    /// The same, as fast as contents may be sent there.
    paced: Option<Arc<dyn Backend>>,
    tracker: Arc<Tracker>,
    /// What it may ask money for.
    meter: Arc<Meter>,
    /// Set when it goes down; calls that begin later have another.
    down: Cancel,
    /// The user lets nothing be written there.
    closed: Arc<AtomicBool>,
    /// Reads under way.
    busy: Arc<AtomicU32>,
    /// Turns of reads that nobody waits for: half of the calls that it takes
    /// (`wrap::standard`), so that others have theirs at once.
    ahead: Arc<Semaphore>,
}

/// A backend that is asked for a block.
#[derive(Clone)]
pub(super) struct Place {
    pub id: BackendId,
    pub backend: Arc<dyn Backend>,
    /// After this long without an answer the next one is asked, too, if it may be.
    pub hedge_after: Duration,
    /// After this long it is asked in any case.
    pub patience: Duration,
    /// The content is said to have a good copy there.
    pub should_have: bool,
    /// Turns of reads that nobody waits for.
    pub ahead: Arc<Semaphore>,
    busy: Arc<AtomicU32>,
}

/// A read that is under way.
pub(super) struct Busy(Arc<AtomicU32>);

impl Place {
    /// A read begins there.
    pub fn enter(&self) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(&self.busy))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Entry {
    /// How it is opened now.
    fn spec_now(&self) -> BackendSpec {
        let closed = self.closed.load(Ordering::Acquire);
        if closed { self.spec.read_only() } else { self.spec.clone() }
    }

    fn opened(&mut self, backend: Arc<dyn Backend>, fleet: &Arc<RwLock<Fleet>>) {
        let closed = Arc::clone(&self.closed);
        self.ahead = Arc::new(Semaphore::new(backend.capabilities().parallel_puts.max(1)));
        let metered = Arc::new(Wrapped::new(backend, Spending::new(Arc::clone(&self.meter))));
        let switched = Arc::new(Wrapped::new(metered, ReadOnly::new(closed)));
        let tracked = self.tracker.wrap(switched);
        let pace = Pace::new(&self.spec, Arc::clone(fleet));
        self.paced = Some(Arc::new(Wrapped::new(Arc::clone(&tracked), pace)));
        self.backend = Some(tracked);
    }
}

/// The volume's backends, opened, with the [`Fleet`] that knows their health. The
/// local store is not in it. Cheap to read; changed by `backend add|remove` while
/// mounted. Lock order: `entries`, then `fleet`.
pub struct Registry {
    fleet: Arc<RwLock<Fleet>>,
    entries: RwLock<BTreeMap<BackendId, Entry>>,
    clock: Arc<dyn Clock>,
    /// Says where this life of the volume may delete.
    fence: RwLock<Option<Arc<Fence>>>,
}

fn facts(backend: &dyn Backend) -> Facts {
    let capabilities = backend.capabilities();
    Facts {
        kind: backend.kind().to_owned(),
        domain: capabilities.failure_domain,
        durable: capabilities.durable,
        read_only: capabilities.read_only,
    }
}

impl Registry {
    /// `local_domain`: failure domain of the local store; `grace`: the time after
    /// which copies at a place that is away stop counting.
    #[must_use]
    pub fn new(local_domain: String, grace: Duration, clock: Arc<dyn Clock>) -> Self {
        let fleet = Arc::new(RwLock::new(Fleet::new(local_domain, grace)));
        Self { fleet, entries: RwLock::default(), clock, fence: RwLock::default() }
    }

    /// From now on this says where the volume holds its claim.
    pub(super) fn set_fence(&self, fence: Arc<Fence>) {
        *self.fence.write() = Some(fence);
    }

    /// `None` while nothing of the volume's metadata is written anywhere.
    pub(super) fn fence(&self) -> Option<Arc<Fence>> {
        self.fence.read().clone()
    }

    /// The places with their health.
    pub fn fleet(&self) -> &Arc<RwLock<Fleet>> {
        &self.fleet
    }

    /// Whether the local store is a cache: what lies there is no copy.
    #[must_use]
    pub fn is_local_cache(&self) -> bool {
        self.fleet.read().is_local_cache()
    }

    /// Adds a backend that answered, or (with the reason) one that is unavailable
    /// now and is opened again by probes. `record`: of an earlier life.
    pub fn add(
        &self,
        spec: BackendSpec,
        record: BackendRecord,
        backend: Result<Arc<dyn Backend>, BackendError>,
    ) {
        let (id, now) = (spec.id.clone(), self.clock.now());
        let closed = Arc::new(AtomicBool::new(record.read_only));
        let mut entries = self.entries.write();
        let mut fleet = self.fleet.write();
        fleet.add(id.clone(), spec.url.clone(), spec.settings(), record, now);
        let tracker = Arc::new(Tracker::default());
        let mut entry = Entry {
            spec,
            backend: None,
            paced: None,
            tracker,
            meter: Arc::default(),
            down: Cancel::default(),
            closed,
            busy: Arc::default(),
            ahead: Arc::new(Semaphore::new(1)),
        };
        match backend {
            Ok(backend) => {
                fleet.opened(&id, facts(backend.as_ref()), now);
                entry.opened(backend, &self.fleet);
            }
            Err(error) => {
                fleet.failed(&id, &error, now);
            }
        }
        entries.insert(id, entry);
    }

    /// Whether the volume has such a backend.
    pub(super) fn contains(&self, id: &BackendId) -> bool {
        self.entries.read().contains_key(id)
    }

    /// All places, as of now.
    pub(super) fn places(&self) -> Arc<Places> {
        self.fleet.read().places()
    }

    /// Backends that are open and not down, in the order in which they are asked for
    /// a block of so many bytes: see `machine::sources`.
    pub(super) fn sources(
        &self,
        bytes: u64,
        whereabouts: &Whereabouts,
        by_cost: bool,
    ) -> Vec<Place> {
        let now = self.clock.now();
        let (entries, fleet) = (self.entries.read(), self.fleet.read());
        let source = |(id, entry): (&'_ BackendId, &Entry)| {
            let (member, holds) = (fleet.get(id)?, whereabouts.at(id));
            let health = &member.health;
            let place = Place {
                id: id.clone(),
                backend: entry.backend.clone()?,
                hedge_after: health.speed.hedge_after(bytes),
                patience: health.speed.patience(bytes),
                should_have: holds.is_some_and(|holds| holds != Holds::No),
                ahead: Arc::clone(&entry.ahead),
                busy: Arc::clone(&entry.busy),
            };
            let facts = (
                health.trust(now),
                holds.unwrap_or(Holds::Claimed),
                health.speed.expected(bytes),
                health.speed.expected_now(bytes, now),
                member.settings.price,
            );
            (health.state != BackendState::Down).then_some((place, facts))
        };
        let mut open: Vec<_> = entries.iter().filter_map(source).collect();
        drop((entries, fleet));
        let mut sources: Vec<Source<'_>> = open
            .iter()
            .map(|(place, (trust, holds, expected, expected_now, price))| Source {
                id: &place.id,
                trust: *trust,
                holds: *holds,
                expected: *expected,
                expected_now: *expected_now,
                busy: place.busy.load(Ordering::Relaxed),
                price: *price,
            })
            .collect();
        order(&mut sources, bytes, by_cost);
        let places: BTreeMap<BackendId, usize> =
            sources.iter().enumerate().map(|(n, source)| (source.id.clone(), n)).collect();
        open.sort_by_key(|(place, _)| places.get(&place.id).copied());
        open.into_iter().map(|(place, _)| place).collect()
    }

    /// A read was answered with so many bytes, which were good, after so long.
    pub(super) fn answered(&self, id: &BackendId, bytes: u64, took: Duration) {
        let now = self.clock.now();
        if let Some(health) = self.fleet.write().health_mut(id) {
            health.answered(bytes, took, now);
            health.read_bytes = health.read_bytes.saturating_add(bytes);
        }
    }

    /// A probe was answered after so long.
    pub(super) fn probed(&self, id: &BackendId, took: Duration) {
        if let Some(health) = self.fleet.write().health_mut(id) {
            health.probed(took);
        }
    }

    /// A read of so many bytes was not answered when another place had answered it.
    pub(super) fn late(&self, id: &BackendId, bytes: u64, waited: Duration) {
        let now = self.clock.now();
        if let Some(health) = self.fleet.write().health_mut(id) {
            health.speed.late(bytes, waited, now);
        }
    }

    /// A reader was misled there.
    pub(super) fn misled(&self, id: &BackendId, how: Misled) {
        let now = self.clock.now();
        if let Some(health) = self.fleet.write().health_mut(id) {
            health.doubt.add(how, now);
        }
    }

    /// Forgets a backend.
    pub fn remove(&self, id: &BackendId) -> bool {
        let removed = self.entries.write().remove(id);
        self.fleet.write().remove(id);
        removed.is_some_and(|entry| {
            entry.down.cancel();
            true
        })
    }

    fn state(&self, id: &BackendId) -> Option<BackendState> {
        self.fleet.read().get(id).map(|member| member.health.state)
    }

    /// The backend, when it is open and not down.
    pub fn get(&self, id: &BackendId) -> Option<Arc<dyn Backend>> {
        self.until_down(id).map(|(backend, _)| backend)
    }

    /// As [`Registry::get`], with what is set when it goes down.
    pub(super) fn until_down(&self, id: &BackendId) -> Option<(Arc<dyn Backend>, Cancel)> {
        let entries = self.entries.read();
        let entry = entries.get(id)?;
        self.state(id).filter(|state| *state != BackendState::Down)?;
        Some((entry.backend.clone()?, entry.down.clone()))
    }

    /// As [`Registry::get`], for contents: as fast as they may be sent there.
    pub(super) fn paced(&self, id: &BackendId) -> Option<Arc<dyn Backend>> {
        self.get(id)?;
        self.entries.read().get(id)?.paced.clone()
    }

    /// What is done there, for who deletes.
    pub(super) fn tracker(&self, id: &BackendId) -> Option<Arc<Tracker>> {
        Some(Arc::clone(&self.entries.read().get(id)?.tracker))
    }

    /// Adds what was read and asked since the last time to the running month.
    pub fn settle_spending(&self) {
        let now = self.clock.now();
        let entries = self.entries.read();
        let used: Vec<_> =
            entries.iter().map(|(id, entry)| (id.clone(), entry.meter.take())).collect();
        self.fleet.write().spend(&used, now);
    }

    /// What the running month will have cost at its end, if it goes on so.
    #[must_use]
    pub fn cost_forecast(&self) -> Micros {
        self.fleet.read().forecast(self.clock.now())
    }

    /// Goes on with what an earlier life used, as it stored it.
    pub fn resume_spending(&self, spent: &BTreeMap<BackendId, Spent>) {
        self.fleet.write().resume_spent(spent, self.clock.now());
    }

    /// How the volume names its backends.
    pub fn specs(&self) -> Vec<BackendSpec> {
        self.entries.read().values().map(|entry| entry.spec.clone()).collect()
    }

    /// Whether there is no backend besides the local store.
    pub fn is_empty(&self) -> bool {
        self.entries.read().is_empty()
    }

    /// What `status` shows; nothing is asked for live.
    pub fn statuses(&self) -> Vec<BackendStatus> {
        self.fleet.read().statuses()
    }

    /// The settings of all backends.
    pub(super) fn settings(&self) -> Vec<(BackendId, PlaceSettings)> {
        let fleet = self.fleet.read();
        fleet.members().map(|(id, member)| (id.clone(), member.settings.clone())).collect()
    }

    /// The failure domain of a place.
    pub fn domain_of(&self, id: &BackendId) -> Option<String> {
        self.fleet.read().domain_of(id).map(str::to_owned)
    }

    /// Where copies there count; `None` when they do not.
    pub(super) fn counted_domain_of(&self, id: &BackendId) -> Option<String> {
        self.places().domain_of(id).map(str::to_owned)
    }

    /// Distinct places that take writes now, the local one included where it counts.
    pub fn places_now(&self) -> usize {
        self.places().reachable(&super::machine::DomainSet::default(), 0, &Policy::default())
    }

    /// Backends to open or to probe: those that are not up (`all` false), or every
    /// one.
    pub(super) fn to_probe(&self, all: bool) -> Vec<(BackendSpec, Option<Arc<dyn Backend>>)> {
        let (entries, fleet) = (self.entries.read(), self.fleet.read());
        let due = entries.iter().filter(|(id, _)| {
            all || fleet.get(id).is_some_and(|member| member.health.state != BackendState::Up)
        });
        due.map(|(_, entry)| (entry.spec_now(), entry.backend.clone())).collect()
    }

    /// A backend answered a probe or took a write. True when it was not in use
    /// before.
    pub(super) fn succeeded(&self, id: &BackendId, opened: Option<Arc<dyn Backend>>) -> bool {
        let now = self.clock.now();
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return false };
        let mut fleet = self.fleet.write();
        let back = if let Some(backend) = opened {
            let facts = facts(backend.as_ref());
            entry.opened(backend, &self.fleet);
            fleet.opened(id, facts, now)
        } else {
            // Whether it takes writes may have changed.
            if let Some(backend) = &entry.backend {
                fleet.set_facts(id, facts(backend.as_ref()));
            }
            fleet.reached(id, now)
        };
        let down = fleet.get(id).is_some_and(|member| member.health.state == BackendState::Down);
        if !down && entry.down.is_cancelled() {
            entry.down = Cancel::default();
        }
        if back {
            tracing::info!(backend = %id, "backend is back");
        }
        back
    }

    /// The user had it opened anew: what it did before is forgotten, and its copies
    /// count again when they were proven again.
    pub(super) fn recovered(&self, id: &BackendId, opened: Arc<dyn Backend>) -> bool {
        let now = self.clock.now();
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return false };
        let facts = facts(opened.as_ref());
        entry.opened(opened, &self.fleet);
        entry.down = Cancel::default();
        self.fleet.write().recovered(id, facts, now)
    }

    /// The user lets nothing be written there, or ends that. False: no such backend.
    pub(super) fn set_read_only(&self, id: &BackendId, on: bool) -> bool {
        let entries = self.entries.write();
        let Some(entry) = entries.get(id) else { return false };
        entry.closed.store(on, Ordering::Release);
        let mut fleet = self.fleet.write();
        if let Some(backend) = &entry.backend {
            fleet.set_facts(id, facts(backend.as_ref()));
        }
        fleet.set_read_only(id, on, self.clock.now())
    }

    /// How a backend is opened now: without a write while it is set read-only.
    pub(super) fn spec_of(&self, id: &BackendId) -> Option<BackendSpec> {
        let entries = self.entries.read();
        entries.get(id).map(Entry::spec_now)
    }

    /// A call failed: the breaker counts. What says nothing about the place
    /// (a block that is not there, a wrong request) counts for nothing.
    pub(super) fn failed(&self, id: &BackendId, error: &BackendError) {
        self.told(id, error, false);
    }

    /// As [`Registry::failed`], of a call that was to prove a copy.
    pub(super) fn unread(&self, id: &BackendId, error: &BackendError) {
        self.told(id, error, error.kind != ErrorKind::Throttled);
    }

    fn told(&self, id: &BackendId, error: &BackendError, unread: bool) {
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return };
        let (before, now) = (self.state(id), self.clock.now());
        {
            let mut fleet = self.fleet.write();
            fleet.failed(id, error, now);
            if unread {
                fleet.unread(id, now);
            }
        }
        let after = self.state(id);
        if after == Some(BackendState::Down) {
            entry.down.cancel();
        } else if entry.down.is_cancelled() {
            entry.down = Cancel::default();
        }
        if after != before {
            tracing::warn!(backend = %id, state = ?after, error = %error, "backend changed state");
        }
    }

    /// The place said how much room it has. With clearly more than before, what
    /// found too little is due again.
    pub(super) fn set_usage(&self, id: &BackendId, usage: Usage) {
        self.fleet.write().set_usage(id, usage);
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::DomainSet;
    use super::*;
    use crate::backends::MemoryBackend;
    use crate::runtime::SystemClock;

    fn registry() -> Registry {
        Registry::new("here".into(), Duration::from_mins(15), Arc::new(SystemClock))
    }

    fn with_one() -> (Registry, BackendId, Arc<MemoryBackend>) {
        let registry = registry();
        let (id, place): (BackendId, _) = ("a".parse().unwrap(), Arc::new(MemoryBackend::new("a")));
        place.set_durable(true);
        let spec = BackendSpec { id: id.clone(), url: "memory:a".into() };
        let backend = Arc::clone(&place) as Arc<dyn Backend>;
        registry.add(spec, BackendRecord::default(), Ok(backend));
        (registry, id, place)
    }

    fn epoch_of(registry: &Registry) -> u64 {
        registry.fleet().read().epoch()
    }

    fn fail(registry: &Registry, id: &BackendId, kind: ErrorKind) -> BackendState {
        registry.failed(id, &BackendError::new(kind, "no"));
        registry.statuses()[0].state
    }

    #[test]
    fn the_breaker_opens_after_failures_in_a_row_and_closes_at_an_answer() {
        let (registry, id, _) = with_one();
        for _ in 0..4 {
            assert_eq!(fail(&registry, &id, ErrorKind::Other), BackendState::Degraded);
        }
        registry.answered(&id, 1, Duration::from_millis(1));
        assert_eq!(registry.statuses()[0].state, BackendState::Up);
        for _ in 0..4 {
            fail(&registry, &id, ErrorKind::Throttled);
        }
        assert!(registry.get(&id).is_some());
        assert_eq!(fail(&registry, &id, ErrorKind::Other), BackendState::Down);
        assert!(registry.get(&id).is_none());
        assert_eq!(registry.places_now(), 1);
        let epoch = epoch_of(&registry);
        assert!(registry.succeeded(&id, None));
        assert!(epoch_of(&registry) > epoch && registry.places_now() == 2);
    }

    #[test]
    fn hanging_opens_the_breaker_sooner_and_a_missing_block_never() {
        let (registry, id, _) = with_one();
        assert_eq!(fail(&registry, &id, ErrorKind::Timeout), BackendState::Degraded);
        assert_eq!(fail(&registry, &id, ErrorKind::Timeout), BackendState::Down);
        let (registry, id, _) = with_one();
        for _ in 0..100 {
            assert_eq!(fail(&registry, &id, ErrorKind::NotFound), BackendState::Up);
        }
    }

    #[test]
    fn a_place_that_takes_no_writes_is_still_read() {
        let (registry, id, place) = with_one();
        place.set_read_only(true);
        assert_eq!(fail(&registry, &id, ErrorKind::ReadOnly), BackendState::ReadOnly);
        assert!(registry.get(&id).is_some() && registry.places_now() == 1);
        assert!(!registry.succeeded(&id, None), "a probe of a read-only place brings no place");
        place.set_read_only(false);
        assert!(registry.succeeded(&id, None));
    }

    #[test]
    fn a_full_place_returns_when_it_has_room() {
        let (registry, id, _) = with_one();
        assert_eq!(fail(&registry, &id, ErrorKind::Full), BackendState::Full);
        let space = |free| Usage {
            used_bytes: None,
            capacity_bytes: Some(1 << 30),
            available_bytes: Some(free),
        };
        registry.set_usage(&id, space(1 << 20));
        assert!(!registry.succeeded(&id, None));
        registry.set_usage(&id, space(1 << 29));
        assert!(registry.succeeded(&id, None));
    }

    #[test]
    fn space_that_grows_by_and_by_makes_what_had_no_room_due() {
        let (registry, id, _) = with_one();
        let space = |free| Usage {
            used_bytes: None,
            capacity_bytes: Some(1 << 30),
            available_bytes: Some(free),
        };
        registry.set_usage(&id, space(8 << 20));
        registry.set_usage(&id, space(2 << 20));
        let epoch = epoch_of(&registry);
        registry.set_usage(&id, space((2 << 20) + (512 << 10)));
        assert_eq!(epoch_of(&registry), epoch);
        registry.set_usage(&id, space((3 << 20) + 1));
        assert_eq!(epoch_of(&registry), epoch + 1);
        registry.set_usage(&id, Usage::default());
        assert_eq!(epoch_of(&registry), epoch + 2);
    }

    #[test]
    fn a_backend_that_never_opened_counts_as_a_place_to_come() {
        let registry = registry();
        let spec = BackendSpec { id: "x".parse().unwrap(), url: "file:///x".into() };
        let error = BackendError::new(ErrorKind::Unavailable, "not mounted");
        registry.add(spec, BackendRecord::default(), Err(error));
        let places = registry.places();
        let (none, policy) = (DomainSet::default(), Policy::default());
        assert_eq!(
            (places.reachable(&none, 0, &policy), places.configured(&none, &policy)),
            (1, 2)
        );
        assert_eq!(registry.statuses()[0].last_error, "not mounted");
    }
}
