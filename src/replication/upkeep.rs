//! What an administrator asks of a backend or of contents: look now.

use std::sync::Arc;
use std::time::Duration;

use super::machine::{Ailing, MOST_ANSWERS, Proven};
use super::{BackendState, ReplicationError, Replicator};
use crate::backends::{Backend, BackendError, BackendSpec, ErrorKind, open_in, wrap};
use crate::metadata::BackendRecord;
use crate::types::{BackendId, Cid};

/// A place that does not open in this time hangs.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

impl Replicator {
    /// Opens a backend anew and asks it, now.
    fn reopen(&self, spec: &BackendSpec) -> Result<Arc<dyn Backend>, ReplicationError> {
        let calls = &self.core.calls;
        let (wanted, dir) = (spec.clone(), self.core.options.places_dir.clone());
        let opening = async {
            let open = move || open_in(&wanted, false, dir.as_deref());
            let opened = calls.bridge.spawn_blocking(open).await;
            opened.map_err(|error| BackendError::new(ErrorKind::Other, error.to_string()))?
        };
        let opened = calls.bridge.wait(OPEN_DEADLINE, opening).unwrap_or_else(|late| {
            Err(BackendError::new(ErrorKind::Timeout, format!("{late}: does its disk hang?")))
        })?;
        let backend = wrap::standard(opened, calls.deadline, &spec.settings());
        calls.wait(backend.probe())?;
        if let Ok(usage) = calls.wait(backend.usage()) {
            self.core.registry.set_usage(&spec.id, usage);
        }
        Ok(backend)
    }

    fn spec(&self, id: &BackendId) -> Result<BackendSpec, ReplicationError> {
        let gone = || BackendError::new(ErrorKind::NotFound, "the volume has no such backend");
        Ok(self.core.registry.spec_of(id).ok_or_else(gone)?)
    }

    /// The user says that a backend is well: it is opened anew and asked now, its past
    /// is forgotten, and its copies count again when each was read back.
    ///
    /// # Errors
    /// `Backend` when it does not answer; of the metadata.
    pub fn recover_backend(&self, id: &BackendId) -> Result<(), ReplicationError> {
        let core = &self.core;
        let backend = self.reopen(&self.spec(id)?).inspect_err(|error| {
            if let ReplicationError::Backend(error) = error {
                core.registry.failed(id, error);
            }
        })?;
        core.registry.recovered(id, backend);
        self.keep(id)?;
        self.look_at_all();
        Ok(())
    }

    /// Lets nothing be written or deleted at a backend, or ends that.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn set_read_only(&self, id: &BackendId, on: bool) -> Result<(), ReplicationError> {
        let core = &self.core;
        core.registry.set_read_only(id, on);
        self.keep(id)?;
        if !on {
            // It may have been opened without leave to write.
            match self.reopen(&self.spec(id)?) {
                Ok(backend) => {
                    core.registry.succeeded(id, Some(backend));
                }
                Err(error) => tracing::warn!(%error, backend = %id, "it is opened later"),
            }
        }
        self.look_at_all();
        Ok(())
    }

    /// Makes what is known of a backend durable.
    pub(super) fn keep(&self, id: &BackendId) -> Result<(), ReplicationError> {
        let core = &self.core;
        let record: Option<BackendRecord> =
            core.registry.fleet().read().get(id).map(|member| member.record.clone());
        if record.is_some() {
            core.namespace.set_backend_record(id, record.as_ref())?;
        }
        core.namespace.engine().persist()?;
        Ok(())
    }

    /// Asks the backends that are away, at the same time; returns when each answered or
    /// its deadline passed.
    pub fn ask_those_away(&self) {
        let statuses = self.core.registry.statuses();
        let away = statuses.into_iter().filter(|one| one.state == BackendState::Down);
        let ids: Vec<BackendId> = away.map(|one| one.id).collect();
        std::thread::scope(|scope| {
            for id in &ids {
                scope.spawn(move || self.ask(id));
            }
        });
    }

    fn ask(&self, id: &BackendId) {
        let Ok(spec) = self.spec(id) else { return };
        let registry = &self.core.registry;
        // One that flaps has to answer several times.
        for _ in 0..MOST_ANSWERS {
            match self.reopen(&spec) {
                Ok(backend) => registry.succeeded(id, Some(backend)),
                Err(ReplicationError::Backend(error)) => return registry.failed(id, &error),
                Err(_) => return,
            };
            if registry.get(id).is_some() {
                return;
            }
        }
    }

    /// Asks every backend in reach how much room it has; one that is not there any more
    /// is found.
    pub fn look_at_space(&self) {
        let core = &self.core;
        std::thread::scope(|scope| {
            for id in core.registry.specs().into_iter().map(|spec| spec.id) {
                scope.spawn(move || {
                    let Some((backend, down)) = core.registry.until_down(&id) else { return };
                    match core.calls.until(down).wait(backend.usage()) {
                        Ok(usage) => core.registry.set_usage(&id, usage),
                        Err(ReplicationError::Backend(error)) => core.registry.failed(&id, &error),
                        Err(error) => {
                            tracing::debug!(%error, backend = %id, "no answer about space");
                        }
                    }
                });
            }
        });
    }

    /// All contents and rows are looked at again, now.
    pub fn look_at_all(&self) {
        self.core.machine.request_sweep();
        self.core.request_scan(true);
    }

    /// How many of a place's copies are proven.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn proven_at(&self, id: &BackendId) -> Result<Proven, ReplicationError> {
        Ok(self.core.machine.proven_at(id)?)
    }

    /// Looks at these contents: rows of those that lack something are due now.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn heal(&self, roots: &[Cid], found: &mut Ailing) -> Result<(), ReplicationError> {
        Ok(self.core.machine.heal(roots, found)?)
    }

    /// As [`Replicator::heal`], and changes nothing.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn survey(&self, roots: &[Cid], found: &mut Ailing) -> Result<(), ReplicationError> {
        Ok(self.core.machine.survey(roots, found)?)
    }

    /// Bytes a second that go to all places now, and when what waits will be there;
    /// `None` when nothing was measured yet.
    #[must_use]
    pub fn pace(&self) -> Option<(u64, Duration)> {
        let lanes = self.core.machine.lanes().lock();
        let (mut all, mut last) = (0.0, 0.0f64);
        for id in self.core.registry.specs().into_iter().map(|spec| spec.id) {
            let (tasks, bytes, rate) = lanes.lane(&id);
            if tasks > 0 && rate <= 0.0 {
                return None;
            }
            if rate > 0.0 {
                all += rate;
                #[expect(clippy::cast_precision_loss, reason = "rounded for people")]
                let left = bytes as f64 / rate;
                last = last.max(left);
            }
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "above zero")]
        (all > 0.0).then(|| (all as u64, Duration::from_secs(last.ceil() as u64)))
    }
}
