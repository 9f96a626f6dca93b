//! `cairn umount`: drains, says what is left, and where it waits.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::fuse;
use crate::replication::BackendState;
use crate::types::{Cid, FileKind, Ino, printable};

/// Without movement for so long, the caller is told what it waits for.
const STUCK: Duration = Duration::from_secs(3);
/// How long `--force` waits for the last checkpoint to reach the backends.
const FORCED_CHECKPOINT: Duration = Duration::from_secs(5);
/// Files named; the others are counted by their contents.
const NAMED: usize = 20;
/// Pending contents that names are looked for.
const ROOTS: usize = 4096;
/// The search for names ends after so many entries or so long.
const ENTRIES: usize = 200_000;
const SEARCH: Duration = Duration::from_secs(2);

/// What waits for copies.
struct Pending {
    contents: u64,
    /// Places that do not take them, and why.
    places: Vec<String>,
    /// Why the first of them wait.
    why: Vec<String>,
    /// Some files that have them.
    files: Vec<String>,
}

impl Pending {
    fn of(volume: &Volume) -> Result<Self, Failure> {
        let contents = volume.replicator.progress().pending;
        let files = if contents == 0 { Vec::new() } else { files(volume)? };
        Ok(Self { contents, places: places(volume), why: why(volume)?, files })
    }

    fn among_them(&self) -> String {
        if self.files.is_empty() {
            return String::new();
        }
        let more = if self.contents > self.files.len() as u64 { ", .." } else { "" };
        format!(" Files: {}{more}.", self.files.join(", "))
    }
}

/// What the rows of the queue say, each reason once.
fn why(volume: &Volume) -> Result<Vec<String>, Failure> {
    let rows = volume.namespace.queue_page(None, NAMED).map_err(failed)?;
    let mut why: Vec<String> = rows.into_iter().map(|(_, row)| row.last_error).collect();
    why.retain(|reason| !reason.is_empty());
    why.sort();
    why.dedup();
    why.truncate(3);
    Ok(why)
}

fn reasons(places: &[String], why: &[String]) -> String {
    if places.is_empty() && !why.is_empty() {
        why.join("; ")
    } else if places.is_empty() {
        "more places that fail apart (`cairn backend add`)".to_owned()
    } else {
        places.join("; ")
    }
}

/// Backends that take no writes, or failed lately.
fn places(volume: &Volume) -> Vec<String> {
    let statuses = volume.registry.statuses().into_iter();
    let away = statuses.filter(|s| s.state != BackendState::Up || !s.last_error.is_empty());
    away.map(|s| {
        let state = serde_json::to_value(s.state).unwrap_or_default();
        let state = state.as_str().unwrap_or("away").to_owned();
        let reason =
            if s.last_error.is_empty() { String::new() } else { format!(": {}", s.last_error) };
        format!("{} ({state}{reason})", s.id)
    })
    .collect()
}

/// Paths of some files whose contents are in the queue. Contents do not know
/// their files, so the tree is searched, for a bounded time.
fn files(volume: &Volume) -> Result<Vec<String>, Failure> {
    let rows = volume.namespace.queue_page(None, ROOTS).map_err(failed)?;
    let roots: HashSet<Cid> = rows.into_iter().map(|(root, _)| root).collect();
    let (start, mut seen, mut found) = (Instant::now(), 0, Vec::new());
    let mut stack = vec![(Ino::ROOT, String::new())];
    while let Some((directory, path)) = stack.pop() {
        let mut after = 0;
        loop {
            let page = volume.namespace.read_directory(directory, after, 1024).map_err(failed)?;
            after = page.entries.last().map_or(after, |(_, dentry)| dentry.cookie);
            for (name, dentry) in page.entries {
                seen += 1;
                if found.len() == NAMED || seen > ENTRIES || start.elapsed() > SEARCH {
                    return Ok(found);
                }
                let text = String::from_utf8_lossy(name.as_bytes());
                let path = format!("{path}/{}", printable(&text));
                match dentry.kind {
                    FileKind::Directory => stack.push((dentry.ino, path)),
                    FileKind::File => {
                        // Removed meanwhile: it waits for nothing.
                        let content =
                            volume.namespace.inode(dentry.ino).ok().and_then(|i| i.content);
                        if content.is_some_and(|root| roots.contains(&root)) {
                            found.push(path);
                        }
                    }
                    _ => {}
                }
            }
            if page.last {
                break;
            }
        }
    }
    Ok(found)
}

/// Drains and unmounts. Without `force` what cannot be copied stops it.
pub(super) fn umount(
    volume: &Volume,
    mountpoint: &Path,
    force: bool,
    timeout_s: Option<u64>,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    let start = volume.replicator.progress().pending;
    let deadline = if force { Some(Duration::ZERO) } else { timeout_s.map(Duration::from_secs) };
    // Begins with the first report: files that were open are committed before.
    let mut last = None;
    let mut waiting = None;
    let drained = volume.drain(deadline, &mut |now| {
        let since = match last {
            Some((pending, since)) if pending == now.pending => since,
            _ => {
                waiting = None;
                Instant::now()
            }
        };
        last = Some((now.pending, since));
        if waiting.is_none() && now.pending > 0 && since.elapsed() >= STUCK {
            waiting = Some(format!(
                "waiting: {} contents have too few copies, because of {}; with --force they stay queued for the next mount",
                now.pending,
                reasons(&places(volume), &why(volume).unwrap_or_default()),
            ));
        }
        let what = waiting.clone().unwrap_or_else(|| "contents copied".to_owned());
        let done = start.saturating_sub(now.pending);
        progress(ProgressReport { what, done, total: Some(start.max(now.pending)) });
    });
    let pending = Pending::of(volume)?;
    let mut given_up = None;
    match drained {
        Ok(true) => {}
        Ok(false) if force => {}
        Ok(false) => {
            let text = format!(
                "{} contents still wait for copies: {}.{} Everything is durable locally. Unmount with --force: they stay queued, and the next mount goes on with them",
                pending.contents,
                reasons(&pending.places, &pending.why),
                pending.among_them(),
            );
            return Err(Failure::new(ErrorCode::Degraded, text));
        }
        Err(failure) => {
            let files = volume.vfs.dirty_files();
            if !force {
                let text = format!(
                    "{files} files that were written cannot be committed: {}; free space or remove them, or unmount with --force, which gives up what was not synced",
                    failure.message
                );
                return Err(Failure::new(failure.code, text));
            }
            given_up = Some(format!("{files} files could not be committed: {}. ", failure.message));
        }
    }
    // Without it the next mount writes one: the metadata itself is durable.
    let written = if force {
        volume.checkpointer.checkpoint_within(false, FORCED_CHECKPOINT)
    } else {
        volume.checkpointer.checkpoint(false)
    };
    if let Err(error) = &written {
        tracing::warn!(%error, "no last checkpoint; the next mount writes one");
    }
    fuse::unmount(mountpoint, force).map_err(|e| Failure::new(ErrorCode::Busy, e.to_string()))?;
    let note = (pending.contents > 0).then(|| {
        format!(
            "{} contents stay queued and wait for copies: {}.{} The next mount goes on with them",
            pending.contents,
            reasons(&pending.places, &pending.why),
            pending.among_them(),
        )
    });
    let note = match (given_up, note) {
        (None, note) => note,
        (Some(text), note) => Some(text + &note.unwrap_or_default()),
    };
    Ok(json!({
        "mountpoint": mountpoint.display().to_string(), "pending": pending.contents,
        "waiting_for": pending.places, "files": pending.files, "note": note,
        "checkpoint": written.ok().map(|status| status.sequence),
    }))
}
