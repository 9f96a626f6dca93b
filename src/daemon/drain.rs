//! `cairn backend drain`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::handler::{event, known_backend};
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::metadata::EventKind;
use crate::types::{BackendId, ByteSize};

/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(100);
/// With nothing moved for so long, and nothing under way, nothing will.
const PATIENCE: Duration = Duration::from_secs(20);

/// Begins or ends to move all copies away from a backend, and waits when asked to.
pub(super) fn drain(
    volume: &Volume,
    id: &str,
    (stop, wait): (bool, bool),
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    let id = known_backend(volume, id)?;
    let record = {
        let mut fleet = volume.registry.fleet().write();
        fleet.set_draining(&id, !stop);
        fleet.get(&id).map(|member| member.record.clone())
    };
    volume.namespace.set_backend_record(&id, record.as_ref()).map_err(failed)?;
    volume.namespace.engine().persist().map_err(failed)?;
    let said = if stop { "it is used again" } else { "" };
    event(volume, EventKind::BackendDraining, id.as_str(), said);
    if wait && !stop {
        until_empty(volume, &id, progress)?;
        event(volume, EventKind::BackendDrained, id.as_str(), "");
    }
    let eta = volume.replicator.pace().filter(|_| !stop).map(|(_, left)| left.as_secs());
    Ok(json!({
        "id": id, "draining": !stop, "copies_left": copies(volume, &id), "eta_s": eta,
    }))
}

fn copies(volume: &Volume, id: &BackendId) -> u64 {
    volume.namespace.stats().backends.get(id).map_or(0, |(copies, _)| *copies)
}

fn until_empty(
    volume: &Volume,
    id: &BackendId,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<(), Failure> {
    let all = copies(volume, id);
    let (mut last, mut moved) = (all, Instant::now());
    loop {
        let left = copies(volume, id);
        if left == 0 {
            return Ok(());
        }
        let eta = volume.replicator.pace().map_or_else(String::new, |(rate, left)| {
            format!(", {}/s, {} left", ByteSize(rate), humantime::format_duration(left))
        });
        let what = format!("copies moved away from {id}{eta}");
        progress(ProgressReport { what, done: all.saturating_sub(left), total: Some(all) });
        if left != last || !volume.replicator.is_idle() {
            (last, moved) = (left, Instant::now());
        }
        if moved.elapsed() >= PATIENCE || volume.shutdown.wait(LOOK) {
            let why = reason(volume, id)?;
            let text = format!("{left} copies are still at {id}{why}; it goes on by itself");
            return Err(Failure::new(ErrorCode::Degraded, text));
        }
    }
}

/// Why the first of the contents that wait, and have a copy there, do.
fn reason(volume: &Volume, id: &BackendId) -> Result<String, Failure> {
    let rows = volume.namespace.queue_page(None, 64).map_err(failed)?;
    let mut said = rows.into_iter().map(|(_, row)| row.last_error);
    let first = said.find(|error| error.contains(id.as_str()));
    Ok(first.map_or_else(String::new, |said| format!(" ({said})")))
}
