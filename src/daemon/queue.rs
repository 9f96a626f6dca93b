//! `cairn queue`.

use serde_json::{Value, json};

use super::handler::{event, known_backend};
use super::pins::{cursor_of_key, each_content, humane, key_of_cursor};
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport, QueueCommand, What};
use crate::metadata::{EventKind, PinOrder};
use crate::types::Cid;

/// Rows that are read at a time.
const PAGE: usize = 512;

/// Carries out a command about the queue.
pub(super) fn carry_out(
    volume: &Volume,
    command: &QueueCommand,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    match command {
        QueueCommand::List { limit, after } => list(volume, *limit, after.as_deref()),
        QueueCommand::Pause { backend } => pause(volume, backend.as_deref(), true),
        QueueCommand::Resume { backend } => pause(volume, backend.as_deref(), false),
        QueueCommand::Retry { of } => retry(volume, of, progress),
        QueueCommand::Cancel { of } => cancel(volume, of, progress),
    }
}

/// What is held.
fn paused(volume: &Volume) -> Value {
    let ids: Vec<String> = {
        let fleet = volume.registry.fleet().read();
        let held = fleet.members().filter(|(_, member)| member.record.paused);
        held.map(|(id, _)| id.to_string()).collect()
    };
    json!({ "all": volume.registry.fleet().read().is_paused(), "backends": ids })
}

fn list(volume: &Volume, limit: u16, after: Option<&str>) -> Result<Value, Failure> {
    let after = after.map(key_of_cursor).transpose()?;
    if after.as_ref().is_some_and(|key| !PinOrder::Waiting.has(key)) {
        let text = "--after is no cursor of the queue: leave it out to begin anew";
        return Err(Failure::new(ErrorCode::Usage, text));
    }
    let found = volume.replicator.list_queue(limit.into(), after.as_deref()).map_err(failed)?;
    let mut items = Vec::with_capacity(found.items.len());
    for item in &found.items {
        let mut value = serde_json::to_value(item).map_err(failed)?;
        for copy in value["copies"].as_array_mut().into_iter().flatten() {
            humane(copy, &["at"]);
        }
        humane(&mut value["queue"], &["since", "next_try"]);
        items.push(value);
    }
    Ok(json!({
        "pending": volume.namespace.stats().queued, "paused": paused(volume), "items": items,
        "next": found.next.map(|key| cursor_of_key(&key)),
    }))
}

fn pause(volume: &Volume, backend: Option<&str>, pause: bool) -> Result<Value, Failure> {
    let id = backend.map(|id| known_backend(volume, id)).transpose()?;
    let record = {
        let mut fleet = volume.registry.fleet().write();
        fleet.set_paused(id.as_ref(), pause);
        id.as_ref().and_then(|id| fleet.get(id)).map(|member| member.record.clone())
    };
    match &id {
        Some(id) => volume.namespace.set_backend_record(id, record.as_ref()).map_err(failed)?,
        None => volume.namespace.set_queue_paused(pause).map_err(failed)?,
    }
    volume.namespace.engine().persist().map_err(failed)?;
    volume.replicator.pauses_changed();
    let subject = id.as_ref().map_or("volume", |id| id.as_str());
    let kind = if pause { EventKind::QueuePaused } else { EventKind::QueueResumed };
    event(volume, kind, subject, "");
    Ok(json!({ "backend": id, "paused": paused(volume) }))
}

fn retry(
    volume: &Volume,
    of: &[What],
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    let mut contents = 0u64;
    if of.is_empty() {
        let total = Some(volume.namespace.stats().queued);
        let (machine, mut after) = (volume.replicator.machine(), None);
        loop {
            let (count, last) = machine.retry_page(after.as_ref(), PAGE).map_err(failed)?;
            contents += count;
            progress(ProgressReport { what: "rows".into(), done: contents, total });
            if last.is_none() {
                break;
            }
            after = last;
        }
        volume.replicator.hurry();
    } else {
        let mut page: Vec<Cid> = Vec::new();
        each_content(volume, of, &mut |_, root, _| {
            contents += 1;
            page.push(root);
            if page.len() >= PAGE {
                volume.replicator.retry(&std::mem::take(&mut page)).map_err(failed)?;
            }
            Ok(())
        })?;
        volume.replicator.retry(&page).map_err(failed)?;
    }
    volume.namespace.engine().persist().map_err(failed)?;
    Ok(json!({ "contents": contents }))
}

fn cancel(
    volume: &Volume,
    of: &[What],
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    let (mut contents, mut cancelled) = (0u64, 0u64);
    each_content(volume, of, &mut |_, root, _| {
        contents += 1;
        if volume.replicator.machine().cancel(&root).map_err(failed)? {
            cancelled += 1;
            volume.events.emit(EventKind::QueueCancelled, &root.to_string(), "");
        }
        progress(ProgressReport { what: "contents".into(), done: contents, total: None });
        Ok(())
    })?;
    volume.events.flush();
    volume.namespace.engine().persist().map_err(failed)?;
    volume.replicator.wake();
    Ok(json!({ "contents": contents, "cancelled": cancelled }))
}
