//! Asks backends that are away whether they are back, and all for their space.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ReplicationError;
use super::core::Core;
use crate::backends::{Backend, BackendError, BackendSpec, ErrorKind, open_in, wrap};
use crate::runtime::Shutdown;
use crate::types::BackendId;

/// Starts the thread that paces the probes. It also hears of the shutdown, and
/// tells the others.
pub(super) fn start(core: &Arc<Core>, shutdown: Shutdown) -> Result<(), ReplicationError> {
    let core = Arc::clone(core);
    let run = move || {
        // A backend that hangs has one probe under way, not one a round.
        let under_way: Arc<Mutex<BTreeSet<BackendId>>> = Arc::default();
        let mut asked: Option<Instant> = None;
        loop {
            let all = asked.is_none_or(|at| at.elapsed() >= core.options.probe_interval);
            if all {
                asked = Some(Instant::now());
            }
            for (spec, backend) in core.registry.to_probe(all) {
                if under_way.lock().insert(spec.id.clone()) {
                    let (core, under_way) = (Arc::clone(&core), Arc::clone(&under_way));
                    core.calls.bridge.clone().spawn(async move {
                        tokio::select! {
                            () = core.calls.stop.cancelled() => {}
                            () = probe(&core, &spec, backend) => {}
                        }
                        under_way.lock().remove(&spec.id);
                    });
                }
            }
            if end_comes(&core, &shutdown) {
                core.stop();
                return;
            }
        }
    };
    std::thread::Builder::new().name("cairn-probe".into()).spawn(run)?;
    Ok(())
}

/// Waits for the next round; true means the end.
fn end_comes(core: &Core, shutdown: &Shutdown) -> bool {
    // The replicator may be dropped while the daemon goes on: looked at often.
    let round = core.options.retry_interval.min(core.options.probe_interval);
    let slice = Duration::from_millis(250).min(round);
    let mut waited = Duration::ZERO;
    loop {
        if shutdown.wait(slice) || core.is_stopped() {
            return true;
        }
        waited += slice;
        if waited >= round {
            return false;
        }
    }
}

async fn probe(core: &Core, spec: &BackendSpec, backend: Option<Arc<dyn Backend>>) {
    let Some(backend) = backend else { return reopen(core, spec).await };
    let start = Instant::now();
    match backend.probe().await {
        Ok(()) => {
            core.registry.probed(&spec.id, start.elapsed());
            match backend.usage().await {
                Ok(usage) => core.registry.set_usage(&spec.id, usage),
                Err(error) => tracing::debug!(%error, backend = %spec.id, "no answer about space"),
            }
            core.registry.succeeded(&spec.id, None);
        }
        Err(error) => {
            core.registry.failed(&spec.id, &error);
            if error.kind == ErrorKind::Unavailable {
                // A disk that was mounted again is another directory: open it anew.
                reopen(core, spec).await;
            }
        }
    }
}

async fn reopen(core: &Core, spec: &BackendSpec) {
    let (wanted, dir) = (spec.clone(), core.options.places_dir.clone());
    let open = move || open_in(&wanted, false, dir.as_deref());
    match core.calls.bridge.spawn_blocking(open).await {
        Ok(Ok(backend)) => {
            let wrapped = wrap::standard(backend, core.calls.deadline, &spec.settings());
            core.registry.succeeded(&spec.id, Some(wrapped));
        }
        Ok(Err(error)) => core.registry.failed(&spec.id, &error),
        Err(error) => {
            let error = BackendError::new(ErrorKind::Other, error.to_string());
            core.registry.failed(&spec.id, &error);
        }
    }
}
