use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::placement::Candidate;
use super::planner::Places;
use super::{BackendState, BackendStatus};
use crate::backends::{Backend, BackendError, BackendSpec, ErrorKind, Usage};
use crate::runtime::Cancel;
use crate::types::BackendId;

/// Temporary failures in a row after which a backend counts as down.
const FAILURES_TO_DOWN: u32 = 5;
/// A call that got no answer was waited for long enough: two in a row do, of
/// which one may be a probe.
const FAILURES_OF_A_TIMEOUT: u32 = 3;
/// A place that was full takes part again with this much space (or a twentieth
/// of a small one), so that it does not come and go with each block.
const SPACE_AFTER_FULL: u64 = 64 << 20;
/// Less than this more free space is no reason to look at the queue again.
const SPACE_STEP: u64 = 1 << 20;

struct Entry {
    spec: BackendSpec,
    backend: Option<Arc<dyn Backend>>,
    kind: String,
    domain: String,
    durable: bool,
    state: BackendState,
    /// Set when it goes down; calls that begin later have another.
    down: Cancel,
    failures: u32,
    usage: Usage,
    /// The least space that was free since contents without room were last
    /// looked at again.
    least_free: Option<u64>,
    last_error: String,
    /// Of reads, as a moving average.
    latency: Duration,
}

/// The volume's backends, with their health. The local store is not in it.
/// Cheap to read; changed by `backend add|remove` while mounted.
pub struct Registry {
    local_domain: String,
    entries: RwLock<BTreeMap<BackendId, Entry>>,
    /// Rises when there may be more places for copies than before.
    epoch: AtomicU64,
}

impl Registry {
    /// `local_domain`: failure domain of the local store.
    #[must_use]
    pub fn new(local_domain: String) -> Self {
        Self { local_domain, entries: RwLock::default(), epoch: AtomicU64::new(0) }
    }

    /// Adds a backend that answered, or (`None`, with the reason) one that is
    /// unavailable now and is opened again by probes.
    pub fn add(&self, spec: BackendSpec, backend: Result<Arc<dyn Backend>, String>) {
        let (backend, last_error) = match backend {
            Ok(backend) => (Some(backend), String::new()),
            Err(reason) => (None, reason),
        };
        let id = spec.id.clone();
        let mut entry = Entry {
            spec,
            backend: None,
            kind: "dir".into(),
            domain: format!("unknown:{id}"),
            // Counted among the places to come.
            durable: true,
            state: BackendState::Down,
            down: Cancel::default(),
            failures: 0,
            usage: Usage::default(),
            least_free: None,
            last_error,
            latency: Duration::ZERO,
        };
        if let Some(backend) = backend {
            entry.revive(backend);
        }
        self.entries.write().insert(id, entry);
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Rises when there may be more places for copies than before.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether the volume has such a backend.
    pub(super) fn contains(&self, id: &BackendId) -> bool {
        self.entries.read().contains_key(id)
    }

    /// All places, as of now.
    pub(super) fn places(&self) -> Places {
        Places { candidates: self.candidates(), local_domain: self.local_domain.clone() }
    }

    /// Backends that are open and not down: those without errors first, then
    /// the quickest.
    pub(super) fn by_speed(&self) -> Vec<(BackendId, Arc<dyn Backend>)> {
        let entries = self.entries.read();
        let mut open: Vec<_> = entries
            .iter()
            .filter(|(_, entry)| entry.state != BackendState::Down)
            .filter_map(|(id, entry)| {
                let rank = (entry.state == BackendState::Degraded, entry.latency);
                Some((rank, (id.clone(), entry.backend.clone()?)))
            })
            .collect();
        open.sort_by_key(|(rank, _)| *rank);
        open.into_iter().map(|(_, place)| place).collect()
    }

    /// A read was answered after so long.
    pub(super) fn answered(&self, id: &BackendId, took: Duration) {
        let mut entries = self.entries.write();
        if let Some(entry) = entries.get_mut(id) {
            entry.latency =
                if entry.latency.is_zero() { took } else { (entry.latency * 7 + took) / 8 };
            if entry.state == BackendState::Degraded {
                entry.state = BackendState::Up;
            }
            entry.failures = 0;
        }
    }

    /// Forgets a backend.
    pub fn remove(&self, id: &BackendId) -> bool {
        let removed = self.entries.write().remove(id);
        removed.is_some_and(|entry| {
            entry.down.cancel();
            true
        })
    }

    /// The backend, when it is open and not down.
    pub fn get(&self, id: &BackendId) -> Option<Arc<dyn Backend>> {
        let entries = self.entries.read();
        let entry = entries.get(id)?;
        if entry.state == BackendState::Down { None } else { entry.backend.clone() }
    }

    /// As [`Registry::get`], with what is set when it goes down.
    pub(super) fn until_down(&self, id: &BackendId) -> Option<(Arc<dyn Backend>, Cancel)> {
        let entries = self.entries.read();
        let entry = entries.get(id).filter(|entry| entry.state != BackendState::Down)?;
        Some((entry.backend.clone()?, entry.down.clone()))
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
        let status = |(id, entry): (&BackendId, &Entry)| BackendStatus {
            id: id.clone(),
            kind: entry.kind.clone(),
            url: entry.spec.url.clone(),
            state: entry.state,
            domain: entry.domain.clone(),
            usage: entry.usage,
            last_error: entry.last_error.clone(),
        };
        self.entries.read().iter().map(status).collect()
    }

    /// The failure domain of a place.
    pub fn domain_of(&self, id: &BackendId) -> Option<String> {
        if id.is_local() {
            return Some(self.local_domain.clone());
        }
        self.entries.read().get(id).map(|entry| entry.domain.clone())
    }

    /// The tier of a place, as its settings name it: none does yet.
    #[expect(clippy::unused_self, reason = "the settings of backends will say it")]
    pub(super) fn tier_of(&self, _: &BackendId) -> Option<String> {
        None
    }

    /// Where copies there count; `None` when they do not.
    pub(super) fn counted_domain_of(&self, id: &BackendId) -> Option<String> {
        self.places().domain_of(id)
    }

    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(id, entry): (&BackendId, &Entry)| Candidate {
            id: id.clone(),
            domain: entry.domain.clone(),
            durable: entry.durable,
            state: entry.state,
            space: entry.usage.capacity_bytes.zip(entry.usage.available_bytes),
            available: entry.backend.is_some()
                && matches!(entry.state, BackendState::Up | BackendState::Degraded),
        };
        self.entries.read().iter().map(candidate).collect()
    }

    /// Distinct places that take writes now, the local one included.
    pub fn places_now(&self) -> usize {
        self.places().reachable(&std::collections::BTreeSet::new(), 0)
    }

    /// Backends to open or to probe: those that are down, read-only or full
    /// (`all` false), or every one.
    pub(super) fn to_probe(&self, all: bool) -> Vec<(BackendSpec, Option<Arc<dyn Backend>>)> {
        let entries = self.entries.read();
        let due = entries.values().filter(|entry| all || entry.state != BackendState::Up);
        due.map(|entry| (entry.spec.clone(), entry.backend.clone())).collect()
    }

    /// A backend answered a probe or took a write. True when it was not in use
    /// before.
    pub(super) fn succeeded(&self, id: &BackendId, opened: Option<Arc<dyn Backend>>) -> bool {
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return false };
        let before = entry.state;
        if let Some(backend) = opened {
            entry.revive(backend);
        }
        let enough = entry
            .usage
            .capacity_bytes
            .map_or(SPACE_AFTER_FULL, |all| SPACE_AFTER_FULL.min(all / 20));
        let cramped = before == BackendState::Full
            && entry.usage.available_bytes.is_some_and(|free| free < enough);
        let read_only =
            entry.backend.as_ref().is_none_or(|backend| backend.capabilities().read_only);
        entry.state = match (read_only, cramped) {
            (true, _) => BackendState::ReadOnly,
            (false, true) => BackendState::Full,
            (false, false) => BackendState::Up,
        };
        entry.failures = 0;
        if entry.down.is_cancelled() {
            entry.down = Cancel::default();
        }
        let takes_writes = |state| matches!(state, BackendState::Up | BackendState::Degraded);
        let back = takes_writes(entry.state) && !takes_writes(before);
        if entry.state != BackendState::Full {
            entry.last_error.clear();
        }
        if back {
            tracing::info!(backend = %id, "backend is back");
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        back
    }

    /// A call failed: the breaker counts. What says nothing about the place
    /// (a block that is not there, a wrong request) counts for nothing.
    pub(super) fn failed(&self, id: &BackendId, error: &BackendError) {
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return };
        let before = entry.state;
        entry.state = match error.kind {
            ErrorKind::NotFound
            | ErrorKind::Corrupt
            | ErrorKind::Invalid
            | ErrorKind::Unsupported => return,
            ErrorKind::Unavailable => BackendState::Down,
            ErrorKind::ReadOnly | ErrorKind::Denied => BackendState::ReadOnly,
            ErrorKind::Full => BackendState::Full,
            ErrorKind::Timeout | ErrorKind::Throttled | ErrorKind::Other => {
                entry.failures +=
                    if error.kind == ErrorKind::Timeout { FAILURES_OF_A_TIMEOUT } else { 1 };
                match before {
                    BackendState::ReadOnly | BackendState::Full
                        if entry.failures < FAILURES_TO_DOWN =>
                    {
                        before
                    }
                    _ if entry.failures < FAILURES_TO_DOWN && before != BackendState::Down => {
                        BackendState::Degraded
                    }
                    _ => BackendState::Down,
                }
            }
        };
        entry.last_error.clone_from(&error.message);
        if entry.state == BackendState::Down {
            entry.down.cancel();
        }
        if entry.state != before {
            tracing::warn!(backend = %id, state = ?entry.state, error = %error, "backend changed state");
        }
    }

    /// The place said how much room it has. With clearly more than before, what
    /// found too little is due again.
    pub(super) fn set_usage(&self, id: &BackendId, usage: Usage) {
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return };
        let more = match (entry.least_free, usage.available_bytes) {
            (Some(least), Some(free)) => free > least + (least / 20).max(SPACE_STEP),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let least = if more { None } else { entry.least_free };
        entry.least_free = match (least, usage.available_bytes) {
            (Some(least), Some(free)) => Some(least.min(free)),
            (_, free) => free,
        };
        entry.usage = usage;
        if more {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Entry {
    fn revive(&mut self, backend: Arc<dyn Backend>) {
        let capabilities = backend.capabilities();
        backend.kind().clone_into(&mut self.kind);
        self.domain.clone_from(&capabilities.failure_domain);
        self.durable = capabilities.durable;
        self.state = if capabilities.read_only { BackendState::ReadOnly } else { BackendState::Up };
        self.failures = 0;
        self.last_error.clear();
        self.backend = Some(backend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::MemoryBackend;

    fn with_one() -> (Registry, BackendId, Arc<MemoryBackend>) {
        let registry = Registry::new("here".into());
        let (id, place): (BackendId, _) = ("a".parse().unwrap(), Arc::new(MemoryBackend::new("a")));
        place.set_durable(true);
        let spec = BackendSpec { id: id.clone(), url: "memory:a".into() };
        registry.add(spec, Ok(Arc::clone(&place) as Arc<dyn Backend>));
        (registry, id, place)
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
        registry.answered(&id, Duration::from_millis(1));
        assert_eq!(registry.statuses()[0].state, BackendState::Up);
        for _ in 0..4 {
            fail(&registry, &id, ErrorKind::Throttled);
        }
        assert!(registry.get(&id).is_some());
        assert_eq!(fail(&registry, &id, ErrorKind::Other), BackendState::Down);
        assert!(registry.get(&id).is_none());
        assert_eq!(registry.places_now(), 1);
        let epoch = registry.epoch();
        assert!(registry.succeeded(&id, None));
        assert!(registry.epoch() > epoch && registry.places_now() == 2);
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
        let epoch = registry.epoch();
        registry.set_usage(&id, space((2 << 20) + (512 << 10)));
        assert_eq!(registry.epoch(), epoch);
        registry.set_usage(&id, space((3 << 20) + 1));
        assert_eq!(registry.epoch(), epoch + 1);
        registry.set_usage(&id, Usage::default());
        assert_eq!(registry.epoch(), epoch + 2);
    }

    #[test]
    fn a_backend_that_never_opened_counts_as_a_place_to_come() {
        let registry = Registry::new("here".into());
        let spec = BackendSpec { id: "x".parse().unwrap(), url: "file:///x".into() };
        registry.add(spec, Err("not mounted".into()));
        let places = registry.places();
        let none = std::collections::BTreeSet::new();
        assert_eq!((places.reachable(&none, 0), places.configured(&none)), (1, 2));
        assert_eq!(registry.statuses()[0].last_error, "not mounted");
    }
}
