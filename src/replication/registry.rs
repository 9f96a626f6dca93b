use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::placement::Candidate;
use super::{BackendState, BackendStatus};
use crate::backends::{Backend, BackendError, BackendSpec, ErrorKind, Usage};
use crate::types::BackendId;

/// Temporary failures in a row after which a backend counts as down.
const FAILURES_TO_DOWN: u32 = 5;

struct Entry {
    spec: BackendSpec,
    backend: Option<Arc<dyn Backend>>,
    kind: String,
    domain: String,
    state: BackendState,
    failures: u32,
    usage: Usage,
    last_error: String,
}

/// The volume's backends, with their health. The local store is not in it.
/// Cheap to read; changed by `backend add|remove` while mounted.
pub struct Registry {
    local_domain: String,
    entries: RwLock<BTreeMap<BackendId, Entry>>,
}

impl Registry {
    /// `local_domain`: failure domain of the local store.
    #[must_use]
    pub fn new(local_domain: String) -> Self {
        Self { local_domain, entries: RwLock::default() }
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
            state: BackendState::Down,
            failures: 0,
            usage: Usage::default(),
            last_error,
        };
        if let Some(backend) = backend {
            entry.revive(backend);
        }
        self.entries.write().insert(id, entry);
    }

    /// Forgets a backend.
    pub fn remove(&self, id: &BackendId) -> bool {
        self.entries.write().remove(id).is_some()
    }

    /// The backend, when it is open and not down.
    pub fn get(&self, id: &BackendId) -> Option<Arc<dyn Backend>> {
        let entries = self.entries.read();
        let entry = entries.get(id)?;
        if entry.state == BackendState::Down { None } else { entry.backend.clone() }
    }

    /// All backends that are open and not down.
    pub fn open_backends(&self) -> Vec<(BackendId, Arc<dyn Backend>)> {
        let entries = self.entries.read();
        let up = entries.iter().filter(|(_, entry)| entry.state != BackendState::Down);
        up.filter_map(|(id, entry)| Some((id.clone(), entry.backend.clone()?))).collect()
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

    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(id, entry): (&BackendId, &Entry)| Candidate {
            id: id.clone(),
            domain: entry.domain.clone(),
            available: entry.backend.is_some()
                && matches!(entry.state, BackendState::Up | BackendState::Degraded),
        };
        self.entries.read().iter().map(candidate).collect()
    }

    /// Distinct places that take writes now, the local one included.
    pub fn places_now(&self) -> usize {
        let mut domains: std::collections::BTreeSet<String> =
            self.candidates().into_iter().filter(|c| c.available).map(|c| c.domain).collect();
        domains.insert(self.local_domain.clone());
        domains.len()
    }

    /// Distinct places that could ever hold a copy as configured, the local one
    /// included: those that are away count, read-only ones do not.
    pub fn places_configured(&self) -> usize {
        let entries = self.entries.read();
        let writable = entries.values().filter(|entry| entry.state != BackendState::ReadOnly);
        let mut domains: std::collections::BTreeSet<&str> =
            writable.map(|entry| entry.domain.as_str()).collect();
        domains.insert(&self.local_domain);
        domains.len()
    }

    /// Backends to open or to probe: those that are down, read-only or full
    /// (`all` false), or every one.
    pub(super) fn to_probe(&self, all: bool) -> Vec<(BackendSpec, Option<Arc<dyn Backend>>)> {
        let entries = self.entries.read();
        let due = entries.values().filter(|entry| all || entry.state != BackendState::Up);
        due.map(|entry| (entry.spec.clone(), entry.backend.clone())).collect()
    }

    /// A backend answered. True when it was not in use before.
    pub(super) fn succeeded(&self, id: &BackendId, opened: Option<Arc<dyn Backend>>) -> bool {
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return false };
        let back = matches!(entry.state, BackendState::Down | BackendState::Full);
        match opened {
            Some(backend) => entry.revive(backend),
            None => {
                entry.failures = 0;
                if entry.state != BackendState::ReadOnly {
                    entry.state = BackendState::Up;
                }
            }
        }
        if back {
            tracing::info!(backend = %id, "backend is back");
        }
        back
    }

    /// A call failed: the breaker counts.
    pub(super) fn failed(&self, id: &BackendId, error: &BackendError) {
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(id) else { return };
        entry.failures += 1;
        entry.last_error.clone_from(&error.message);
        let before = entry.state;
        entry.state = match error.kind {
            ErrorKind::Unavailable => BackendState::Down,
            ErrorKind::ReadOnly | ErrorKind::Denied => BackendState::ReadOnly,
            ErrorKind::Full => BackendState::Full,
            ErrorKind::NotFound
            | ErrorKind::Corrupt
            | ErrorKind::Invalid
            | ErrorKind::Unsupported => before,
            ErrorKind::Timeout | ErrorKind::Throttled | ErrorKind::Other => {
                if entry.failures >= FAILURES_TO_DOWN {
                    BackendState::Down
                } else {
                    BackendState::Degraded
                }
            }
        };
        if entry.state != before {
            tracing::warn!(backend = %id, state = ?entry.state, error = %error, "backend changed state");
        }
    }

    pub(super) fn set_usage(&self, id: &BackendId, usage: Usage) {
        if let Some(entry) = self.entries.write().get_mut(id) {
            entry.usage = usage;
        }
    }
}

impl Entry {
    fn revive(&mut self, backend: Arc<dyn Backend>) {
        let capabilities = backend.capabilities();
        self.kind = backend.kind().to_owned();
        self.domain.clone_from(&capabilities.failure_domain);
        self.state = if capabilities.read_only { BackendState::ReadOnly } else { BackendState::Up };
        self.failures = 0;
        self.last_error.clear();
        self.backend = Some(backend);
    }
}
