//! `cairn backend replace`, `cairn backend rebalance` and `cairn migrate`: the wish is a
//! row, the replication core carries it out, and here it is begun, watched and ended.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::backends::{self, Parts};
use super::handler::{event, known_backend, resolve};
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::metadata::{EventKind, MoveKind, MoveRecord};
use crate::replication::machine::MoveReport;
use crate::replication::{Checkpointer, Replicator};
use crate::runtime::{Shutdown, failpoint};
use crate::types::{BackendId, ByteSize};

/// Between two steps.
const STEP: Duration = Duration::from_millis(250);
/// With nothing moved for so long, nothing will.
const PATIENCE: Duration = Duration::from_secs(30);

type Progress<'p> = &'p mut dyn FnMut(ProgressReport);

/// Carries wishes out while the volume is open.
pub(super) struct Mover {
    parts: Parts,
    replicator: Arc<Replicator>,
    checkpointer: Arc<Checkpointer>,
    shutdown: Shutdown,
}

/// What is asked of a wish.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub wait: bool,
    pub dry_run: bool,
    pub stop: bool,
}

impl Mover {
    pub fn new(volume: &Volume) -> Self {
        Self {
            parts: Parts::of(volume),
            replicator: Arc::clone(&volume.replicator),
            checkpointer: Arc::clone(&volume.checkpointer),
            shutdown: volume.shutdown.clone(),
        }
    }

    /// Starts the thread of a mount.
    pub fn start(self) -> std::io::Result<()> {
        std::thread::Builder::new().name("cairn-move".into()).spawn(move || {
            while !self.shutdown.wait(STEP) {
                if self.replicator.machine().moves().is_empty() {
                    continue;
                }
                if let Err(failure) = self.step() {
                    tracing::warn!(error = %failure, "copies cannot be moved now; it is tried again");
                    if self.shutdown.wait(STEP * 20) {
                        return;
                    }
                }
            }
        })?;
        Ok(())
    }

    /// A step of all wishes; those that are done end.
    fn step(&self) -> Result<(), Failure> {
        for (number, record, report) in self.replicator.move_some().map_err(failed)? {
            if !report.finished {
                continue;
            }
            let stays: u64 = report.stays.values().sum();
            let mut said = match record.kind {
                MoveKind::Replace => "nothing is left there".to_owned(),
                _ => format!("{} contents, {}", record.contents, ByteSize(record.bytes)),
            };
            if stays > 0 {
                said = format!("{said}; {stays} stay where they are");
            }
            if let (MoveKind::Replace, Some(from), Some(to)) =
                (record.kind, &record.from, &record.to)
            {
                // The names of what NEW holds are there before OLD goes.
                if !self.checkpointer.is_complete_at(to) {
                    continue;
                }
                failpoint::reach("daemon.replace.emptied");
                self.parts.forget(from)?;
                failpoint::reach("daemon.replace.forgotten");
                self.replicator.machine().end_move(number).map_err(failed)?;
            } else {
                self.replicator.end_move(number, &record).map_err(failed)?;
            }
            self.parts.namespace.engine().persist().map_err(failed)?;
            self.parts.events.emit(EventKind::MoveFinished, &name(&record), &said);
            self.parts.events.flush();
            self.replicator.replan().map_err(failed)?;
        }
        Ok(())
    }
}

/// In words, as the subject of events.
fn name(record: &MoveRecord) -> String {
    let id = |id: &Option<BackendId>| id.as_ref().map_or_else(String::new, BackendId::to_string);
    match record.kind {
        MoveKind::Rebalance => "rebalance".into(),
        MoveKind::Replace => format!("replace {} {}", id(&record.from), id(&record.to)),
        MoveKind::Migrate => format!("migrate {} {}", id(&record.from), id(&record.to)),
    }
}

/// The wishes of `cairn status`.
pub(super) fn moves_json(volume: &Volume) -> Value {
    let moves = volume.replicator.machine().moves();
    moves.iter().map(|(_, record, report)| move_json(record, report)).collect()
}

fn move_json(record: &MoveRecord, report: &MoveReport) -> Value {
    json!({
        "what": name(record), "kind": record.kind, "from": record.from, "to": record.to,
        "below": record.below, "since": humantime::format_rfc3339_seconds(record.since.to_system()).to_string(),
        "moved": record.contents, "moved_bytes": record.bytes,
        "left": report.contents, "left_bytes": report.bytes,
        "stays": report.stays, "waits": report.waits,
    })
}

/// `cairn migrate FROM TO`.
pub(super) fn migrate(
    volume: &Volume,
    (from, to): (&str, &str),
    path: Option<&[u8]>,
    manner: Manner,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let from = known_backend(volume, from)?;
    let to = known_backend(volume, to)?;
    if from == to {
        return Err(Failure::new(ErrorCode::Usage, "FROM and TO are one backend"));
    }
    let below = path.map(|path| resolve(volume, path)).transpose()?.map(|(ino, _)| ino);
    let wish = MoveRecord {
        kind: MoveKind::Migrate,
        from: Some(from),
        to: Some(to),
        below,
        since: volume.clock.now(),
        contents: 0,
        bytes: 0,
    };
    carry_out(volume, wish, manner, progress)
}

/// `cairn backend rebalance`.
pub(super) fn rebalance(
    volume: &Volume,
    manner: Manner,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let wish = MoveRecord {
        kind: MoveKind::Rebalance,
        from: None,
        to: None,
        below: None,
        since: volume.clock.now(),
        contents: 0,
        bytes: 0,
    };
    volume.replicator.look_at_space();
    let places = volume.replicator.machine().places();
    let blind = places.all.iter().filter(|place| place.available && place.room.is_none());
    let blind: Vec<&BackendId> = blind.map(|place| &place.id).filter(|id| !id.is_local()).collect();
    let mut answer = carry_out(volume, wish, manner, progress)?;
    answer["room_not_known"] = json!(blind);
    Ok(answer)
}

/// `cairn backend replace OLD NEW_URL`.
pub(super) fn replace(
    volume: &Volume,
    (old, url): (&str, Option<&str>),
    mountpoint: Option<&Path>,
    manner: Manner,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let old = known_backend(volume, old)?;
    let known = volume.replicator.machine().moves();
    let under_way = known.into_iter().find(|(_, record, _)| {
        record.kind == MoveKind::Replace && record.from.as_ref() == Some(&old)
    });
    let wish = match (under_way, url) {
        (Some((_, record, _)), _) => record,
        (None, _) if manner.stop => {
            let text = format!("`{old}` is not being replaced");
            return Err(Failure::new(ErrorCode::NotFound, text));
        }
        (None, None) => {
            let text = "name the URL of the backend that takes its place";
            return Err(Failure::new(ErrorCode::Usage, text));
        }
        (None, Some(url)) => {
            refuse_second(volume, &[&old])?;
            let new = backends::add_or_known(volume, url, mountpoint)?;
            if new == old {
                return Err(Failure::new(ErrorCode::Usage, "OLD and NEW are one place"));
            }
            failpoint::reach("daemon.replace.added");
            MoveRecord {
                kind: MoveKind::Replace,
                from: Some(old),
                to: Some(new),
                below: None,
                since: volume.clock.now(),
                contents: 0,
                bytes: 0,
            }
        }
    };
    carry_out(volume, wish, manner, progress)
}

/// Two wishes for the same places could go in circles.
fn refuse_second(volume: &Volume, ids: &[&BackendId]) -> Result<(), Failure> {
    let moves = volume.replicator.machine().moves();
    let other = moves.iter().find(|(_, record, _)| {
        let involved =
            |id: &&BackendId| record.from.as_ref() == Some(*id) || record.to.as_ref() == Some(*id);
        ids.is_empty() || record.kind == MoveKind::Rebalance || ids.iter().any(involved)
    });
    other.map_or(Ok(()), |(_, record, _)| {
        let text = format!(
            "`{}` is under way: wait for its end (`cairn status`), or end it with --stop",
            name(record)
        );
        Err(Failure::new(ErrorCode::Busy, text))
    })
}

fn same(a: &MoveRecord, b: &MoveRecord) -> bool {
    (a.kind, &a.from, &a.to, a.below) == (b.kind, &b.from, &b.to, b.below)
}

fn carry_out(
    volume: &Volume,
    wish: MoveRecord,
    manner: Manner,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let machine = volume.replicator.machine();
    if manner.dry_run {
        let report = machine.survey_move(&wish).map_err(failed)?;
        let mut answer = move_json(&wish, &report);
        answer["dry_run"] = true.into();
        return Ok(answer);
    }
    let known = machine.moves().into_iter().find(|(_, record, _)| same(record, &wish));
    if manner.stop {
        let Some((number, record, report)) = known else {
            let text = format!("there is no `{}` under way", name(&wish));
            return Err(Failure::new(ErrorCode::NotFound, text));
        };
        volume.replicator.end_move(number, &record).map_err(failed)?;
        event(volume, EventKind::MoveFinished, &name(&record), "ended by hand");
        let mut answer = move_json(&record, &report);
        answer["stopped"] = true.into();
        return Ok(answer);
    }
    let number = if let Some((number, ..)) = known {
        number
    } else {
        if wish.kind != MoveKind::Replace {
            let ids: Vec<&BackendId> = wish.from.iter().chain(&wish.to).collect();
            refuse_second(volume, &ids)?;
        }
        let number = volume.replicator.begin_move(&wish).map_err(failed)?;
        event(volume, EventKind::MoveStarted, &name(&wish), "");
        failpoint::reach("daemon.move.begun");
        number
    };
    if manner.wait {
        return until_moved(volume, number, &wish, progress);
    }
    let report = match (wish.kind, &wish.from) {
        (MoveKind::Replace, Some(from)) => {
            let held = volume.namespace.stats().backends;
            let (contents, bytes) = held.get(from).copied().unwrap_or_default();
            MoveReport { contents, bytes, ..MoveReport::default() }
        }
        _ => machine.survey_move(&wish).map_err(failed)?,
    };
    Ok(move_json(&wish, &report))
}

fn until_moved(
    volume: &Volume,
    number: u32,
    wish: &MoveRecord,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    // A mount has a thread for it; else this is the only one.
    let own = (!volume.is_mounted()).then(|| Mover::new(volume));
    let (mut last, mut moved, mut most) = (None, Instant::now(), 0);
    let mut known = (wish.clone(), MoveReport::default());
    loop {
        if let Some(mover) = &own {
            mover.step()?;
        }
        let moves = volume.replicator.machine().moves();
        let Some((_, record, report)) = moves.into_iter().find(|(n, ..)| *n == number) else {
            let (record, report) = volume.replicator.machine().ended_move(number).unwrap_or(known);
            let mut answer = move_json(&record, &report);
            (answer["done"], answer["left"], answer["left_bytes"]) =
                (true.into(), 0.into(), 0.into());
            return Ok(answer);
        };
        let bytes = volume.replicator.progress().bytes_sent;
        most = most.max(report.contents);
        let eta = volume.replicator.pace().map_or_else(String::new, |(rate, left)| {
            format!(", {}/s, {} left", ByteSize(rate), humantime::format_duration(left))
        });
        let done = if record.kind == MoveKind::Replace {
            most.saturating_sub(report.contents)
        } else {
            record.contents
        };
        let what = format!("contents moved ({}){eta}", name(&record));
        progress(ProgressReport { what, done, total: Some(most.max(done)) });
        let state = Some((record.clone(), report.clone(), bytes));
        if state != last {
            (last, moved) = (state, Instant::now());
        }
        known = (record, report);
        if moved.elapsed() >= PATIENCE || volume.shutdown.wait(STEP) {
            let why: Vec<String> =
                known.1.waits.iter().map(|(why, n)| format!("{n} wait: {why}")).collect();
            let rows = volume.namespace.queue_page(None, 64).map_err(failed)?;
            let row = rows.into_iter().map(|(_, row)| row.last_error).find(|e| !e.is_empty());
            let text = format!(
                "`{}` does not get on ({}); it goes on by itself, --stop ends it",
                name(&known.0),
                why.into_iter().chain(row).collect::<Vec<_>>().join("; ")
            );
            return Err(Failure::new(ErrorCode::Degraded, text));
        }
    }
}
