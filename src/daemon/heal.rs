//! `cairn heal`, `cairn backend recover` and `cairn backend read-only`.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::handler::{event, known_backend, resolve};
use super::tree::each_file;
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::metadata::EventKind;
use crate::replication::BackendState;
use crate::replication::machine::Ailing;
use crate::types::{BackendId, Cid, Ino};

/// Contents that are looked at together.
const PAGE: usize = 512;
/// Contents below a path that are not counted twice; beyond, some may be.
const REMEMBERED: usize = 1 << 18;
/// Between two looks at least, and ten times as long as a look took.
const LOOK: Duration = Duration::from_millis(200);
/// With nothing moved for so long, and nothing under way, nothing will.
const PATIENCE: Duration = Duration::from_secs(20);
/// A backend that answers and proves nothing for so long does not.
const PROOF_PATIENCE: Duration = Duration::from_mins(10);

type Progress<'p> = &'p mut dyn FnMut(ProgressReport);

/// Which contents.
enum Scope {
    All,
    At(BackendId),
    Below(Ino, String),
}

impl Scope {
    fn name(&self) -> String {
        match self {
            Self::All => "volume".into(),
            Self::At(id) => id.to_string(),
            Self::Below(_, path) => path.clone(),
        }
    }

    /// Its contents, page by page.
    fn each(
        &self,
        volume: &Volume,
        visit: &mut dyn FnMut(&[Cid]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self {
            Self::All | Self::At(_) => {
                let mut after = None;
                loop {
                    let page =
                        volume.namespace.contents_page(after.as_ref(), PAGE).map_err(failed)?;
                    let Some((last, _)) = page.last() else { return Ok(()) };
                    after = Some(*last);
                    let within = |copies: &[crate::metadata::CopyRecord]| match self {
                        Self::At(id) => copies.iter().any(|copy| copy.backend == *id),
                        Self::All | Self::Below(..) => true,
                    };
                    let roots: Vec<Cid> = page
                        .iter()
                        .filter(|(_, record)| record.refs > 0 && within(&record.copies))
                        .map(|(root, _)| *root)
                        .collect();
                    visit(&roots)?;
                    if volume.shutdown.is_triggered() {
                        return Err(Failure::new(ErrorCode::Busy, "the volume is being unmounted"));
                    }
                }
            }
            Self::Below(top, _) => {
                let (mut seen, mut page) = (HashSet::new(), Vec::with_capacity(PAGE));
                each_file(volume, *top, &mut |_, root| {
                    if seen.len() < REMEMBERED && !seen.insert(root) {
                        return Ok(ControlFlow::Continue(()));
                    }
                    page.push(root);
                    if page.len() == PAGE {
                        visit(&std::mem::take(&mut page))?;
                    }
                    Ok(ControlFlow::Continue(()))
                })?;
                visit(&page)
            }
        }
    }
}

/// Plans at once what lacks copies, and waits for it when asked to.
pub(super) fn heal(
    volume: &Volume,
    backend: Option<&str>,
    path: Option<&[u8]>,
    wait: bool,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let scope = match (backend, path) {
        (Some(id), _) => Scope::At(known_backend(volume, id)?),
        (None, Some(path)) => {
            let (ino, what) = resolve(volume, path)?;
            Scope::Below(ino, what)
        }
        (None, None) => Scope::All,
    };
    volume.replicator.look_at_space();
    volume.replicator.ask_those_away();
    volume.replicator.look_at_all();
    let mut found = Ailing::default();
    scope.each(volume, &mut |roots| volume.replicator.heal(roots, &mut found).map_err(failed))?;
    let first = found.clone();
    if first.due > 0 {
        let detail = format!("{} contents, {} bytes", first.due, first.due_bytes);
        event(volume, EventKind::HealStarted, &scope.name(), &detail);
    }
    if wait && first.due > 0 {
        found = until_healed(volume, &scope, &first, progress)?;
        let detail = format!("{} contents; {} are left", first.due, found.due);
        event(volume, EventKind::HealFinished, &scope.name(), &detail);
    }
    answer(volume, &scope, &first, &found, wait)
}

fn answer(
    volume: &Volume,
    scope: &Scope,
    first: &Ailing,
    now: &Ailing,
    waited: bool,
) -> Result<Value, Failure> {
    let stays = if waited { now.below_min } else { now.stays_below_min() };
    let reasons: Vec<String> = now
        .stuck
        .iter()
        .map(|(why, stuck)| {
            let first: Vec<String> = stuck.first.iter().take(3).map(Cid::to_string).collect();
            format!("{} contents: {why} ({})", stuck.contents, first.join(", "))
        })
        .collect();
    if stays > 0 {
        let why = if reasons.is_empty() { "see `cairn status`".into() } else { reasons.join("; ") };
        let text = format!("{stays} contents stay below their min; {why}");
        return Err(Failure::new(ErrorCode::Degraded, text));
    }
    let pace = volume.replicator.pace();
    Ok(json!({
        "scope": scope.name(), "contents": now.looked, "due": first.due,
        "due_bytes": first.due_bytes, "healed": first.due.saturating_sub(now.due),
        "left": now.due, "below_min": now.below_min, "below_target": now.below_target,
        "bytes_per_second": pace.map(|(rate, _)| rate),
        "eta_s": pace.map(|(_, left)| left.as_secs()),
        "cannot": now.stuck.iter().map(|(why, stuck)| json!({
            "reason": why, "contents": stuck.contents, "below_min": stuck.below_min,
            "first": stuck.first.iter().map(Cid::to_string).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    }))
}

fn until_healed(
    volume: &Volume,
    scope: &Scope,
    first: &Ailing,
    progress: Progress<'_>,
) -> Result<Ailing, Failure> {
    let (mut last, mut moved) = ((Ailing::default(), 0), Instant::now());
    loop {
        let (start, mut now) = (Instant::now(), Ailing::default());
        scope
            .each(volume, &mut |roots| volume.replicator.survey(roots, &mut now).map_err(failed))?;
        let eta = volume.replicator.pace().map_or_else(String::new, |(rate, left)| {
            let left = humantime::format_duration(left);
            format!(", {}/s, {left} left", crate::types::ByteSize(rate))
        });
        progress(ProgressReport {
            what: format!("contents healed{eta}"),
            done: first.due.saturating_sub(now.due),
            total: Some(first.due),
        });
        if now.due == 0 {
            return Ok(now);
        }
        let state = (now.clone(), volume.replicator.progress().bytes_sent);
        if state != last {
            (last, moved) = (state, Instant::now());
        }
        if moved.elapsed() >= PATIENCE || volume.shutdown.wait(LOOK.max(start.elapsed() * 10)) {
            return Ok(now);
        }
    }
}

/// Opens a backend anew, forgets its past, and has its copies proven again.
pub(super) fn recover(
    volume: &Volume,
    id: &str,
    wait: bool,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let id = known_backend(volume, id)?;
    volume.replicator.recover_backend(&id).map_err(|error| {
        let text = format!(
            "backend `{id}` does not answer: {error}; attach it and try again, or have its copies made elsewhere (`cairn heal --backend {id}`)"
        );
        Failure::new(ErrorCode::Degraded, text)
    })?;
    volume.checkpointer.doubt(&id);
    event(volume, EventKind::BackendBack, id.as_str(), "recovered by hand; its copies are proven");
    let mut proven = volume.replicator.proven_at(&id).map_err(failed)?;
    let (all, mut moved) = (proven.waiting, Instant::now());
    while wait && proven.waiting > 0 {
        progress(ProgressReport {
            what: format!("copies at {id} proven"),
            done: all.saturating_sub(proven.waiting),
            total: Some(all),
        });
        let down = volume
            .registry
            .statuses()
            .iter()
            .any(|one| one.id == id && one.state == BackendState::Down);
        let (start, before) = (Instant::now(), proven);
        if down || moved.elapsed() >= PROOF_PATIENCE || volume.shutdown.wait(LOOK) {
            let why = if down { "it went away again" } else { "nothing moves" };
            let text = format!(
                "{} copies at {id} are not proven, {why}; it goes on by itself when it answers",
                proven.waiting
            );
            return Err(Failure::new(ErrorCode::Degraded, text));
        }
        proven = volume.replicator.proven_at(&id).map_err(failed)?;
        if proven != before {
            moved = Instant::now();
        }
        let rest = start.elapsed().saturating_mul(5).saturating_sub(LOOK);
        if !rest.is_zero() && volume.shutdown.wait(rest) {
            break;
        }
    }
    let state = volume.registry.statuses().into_iter().find(|one| one.id == id);
    Ok(json!({
        "id": id, "state": state.map(|one| one.state), "proven": proven.good,
        "waiting": proven.waiting, "bad": proven.bad,
    }))
}

/// Lets nothing be written or deleted at a backend, or ends that.
pub(super) fn read_only(volume: &Volume, id: &str, off: bool) -> Result<Value, Failure> {
    let id = known_backend(volume, id)?;
    volume.replicator.set_read_only(&id, !off).map_err(failed)?;
    let said = if off { "it takes writes again" } else { "set by hand" };
    let kind = if off { EventKind::BackendBack } else { EventKind::BackendReadOnly };
    event(volume, kind, id.as_str(), said);
    let state = volume.registry.statuses().into_iter().find(|one| one.id == id);
    Ok(json!({ "id": id, "read_only": !off, "state": state.map(|one| one.state) }))
}
