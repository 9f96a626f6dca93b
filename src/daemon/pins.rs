//! `cairn pin`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::handler::{known_backend, of_vfs, resolve};
use super::tree_walk::TreeWalk;
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, PinCommand, ProgressReport, What};
use crate::metadata::{ContentRecord, CopyState};
use crate::replication::machine::{Job, Outcome, since};
use crate::replication::{CopyStatus, PinFilter, PinQuery, Replicator, ShownPin};
use crate::types::{BackendId, Cid, FileKind, Ino, cid, printable, printable_path};

type Progress<'p> = &'p mut dyn FnMut(ProgressReport);

/// Entries of the tree that one page looks at.
const EXAMINED: usize = 4096;
/// Pins of files that are planned at a time.
const PLANNED: usize = 64;
/// Contents that are in hand at a time.
const WINDOW: usize = 256;
/// Contents that are only asked for, at most: lanes hold some thousand.
const ASKED: u64 = 4096;
/// Between two looks at what is in hand.
const LOOK: Duration = Duration::from_millis(20);
/// Failures that a message names.
const NAMED: usize = 4;
/// Of CIDs in text (multibase `b`).
const BASE_32: &[u8] = b"abcdefghijklmnopqrstuvwxyz234567";

pub(super) fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Usage, error.to_string())
}

/// Carries out a command about pins.
pub(super) fn carry_out(
    volume: &Volume,
    command: &PinCommand,
    mounted: bool,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    // Nobody would go on with it on a volume that is closed again.
    let waits = |wait: &bool| *wait || !mounted;
    match command {
        PinCommand::List { .. } => list(volume, command),
        PinCommand::Status { of } if of.is_empty() => Ok(totals(volume)),
        PinCommand::Status { of } => status(volume, of),
        PinCommand::Verify { of, backend, audit, older_s, wait } => {
            let which = (backend.as_deref(), older_s.map(Duration::from_secs));
            verify(volume, of, which, (*audit, waits(wait)), progress)
        }
        PinCommand::Replicate { of, wait } => replicate(volume, of, waits(wait), progress),
        PinCommand::Unpin { of, files, dry_run } => {
            super::unpin::unpin(volume, of, (*files, *dry_run), progress)
        }
    }
}

pub(super) fn text_of(path: &[u8]) -> String {
    let text = printable_path(path);
    if text.starts_with('/') { text } else { format!("/{text}") }
}

fn shown(path: Option<&[u8]>, pin: &ShownPin) -> Result<Value, Failure> {
    let mut value = serde_json::to_value(pin).map_err(failed)?;
    value["path"] = path.map_or(Value::Null, |path| text_of(path).into());
    for copy in value["copies"].as_array_mut().into_iter().flatten() {
        humane(copy, &["at"]);
    }
    humane(&mut value["queue"], &["since", "next_try"]);
    Ok(value)
}

/// Times as RFC 3339.
pub(super) fn humane(value: &mut Value, fields: &[&str]) {
    for field in fields {
        let Some(seconds) = value[*field]["seconds"].as_i64() else { continue };
        let at = crate::types::Timestamp { seconds, nanoseconds: 0 };
        value[*field] = humantime::format_rfc3339_seconds(at.to_system()).to_string().into();
    }
}

/// The bytes of CIDs that begin with a text: from, and up to.
fn range_of(volume: &Volume, text: &str) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    if let Ok(cid) = Cid::try_from(text) {
        let bytes = known_form(volume, cid)?.to_bytes();
        let end = [bytes.as_slice(), &[0]].concat();
        return Ok((bytes, end));
    }
    let digit = |byte: u8| BASE_32.iter().position(|letter| *letter == byte);
    let digits: Option<Vec<usize>> = match text.strip_prefix('b') {
        Some(rest) if text.len() <= 64 => rest.bytes().map(digit).collect(),
        _ => None,
    };
    let digits = digits.ok_or_else(|| {
        let text = printable(text);
        usage(format!("`{text}` is neither a path in the mount nor the beginning of a CID (b...)"))
    })?;
    // Five bits a letter; what is left of the last byte is anything.
    let bytes = |rest: usize| {
        let mut bits: Vec<bool> =
            digits.iter().flat_map(|d| (0..5).rev().map(move |n| d >> n & 1 == 1)).collect();
        bits.resize(bits.len().div_ceil(8) * 8, rest == 1);
        let byte = |bits: &[bool]| bits.iter().fold(0u8, |byte, bit| byte << 1 | u8::from(*bit));
        bits.chunks(8).map(byte).collect::<Vec<u8>>()
    };
    let end = [bytes(1), vec![0xff; 64]].concat();
    Ok((bytes(0), end))
}

fn cursor_error() -> Failure {
    usage("--after is no cursor of this list: leave it out to begin anew")
}

/// The text of a cursor in an index.
pub(super) fn cursor_of_key(key: &[u8]) -> String {
    use std::fmt::Write as _;
    key.iter().fold(String::from("k"), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

/// The key that a cursor stands for.
pub(super) fn key_of_cursor(text: &str) -> Result<Vec<u8>, Failure> {
    let digits = text.strip_prefix('k').filter(|hex| hex.is_ascii() && hex.len().is_multiple_of(2));
    let digits = digits.ok_or_else(cursor_error)?;
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    bytes.ok_or_else(cursor_error)
}

fn list(volume: &Volume, command: &PinCommand) -> Result<Value, Failure> {
    let PinCommand::List { state, backend, prefix, min_size, max_size, limit, after } = command
    else {
        return Err(usage("this is no list"));
    };
    let state: Option<PinFilter> =
        state.as_ref().map(|text| text.parse()).transpose().map_err(usage)?;
    let backend = match backend.as_deref() {
        Some("local") => Some(BackendId::local()),
        Some(id) => Some(known_backend(volume, id)?),
        None => None,
    };
    let mut query = PinQuery {
        state,
        backend,
        min_size: *min_size,
        max_size: *max_size,
        limit: usize::from(*limit),
        ..PinQuery::default()
    };
    match prefix {
        Some(What::Path(path)) => return list_below(volume, path, &query, after.as_deref()),
        Some(What::Cid(text)) => query.cids = Some(range_of(volume, text)?),
        None => {}
    }
    query.after = after.as_deref().map(key_of_cursor).transpose()?;
    if query.after.as_ref().is_some_and(|key| !query.has(key)) {
        return Err(cursor_error());
    }
    let found = volume.replicator.list_pins(&query).map_err(failed)?;
    let pins: Result<Vec<Value>, Failure> = found.pins.iter().map(|pin| shown(None, pin)).collect();
    Ok(json!({
        "pins": pins?, "examined": found.examined,
        "next": found.next.map(|key| cursor_of_key(&key)),
    }))
}

/// Files below a path, in the tree's order.
fn list_below(
    volume: &Volume,
    path: &[u8],
    query: &PinQuery,
    after: Option<&str>,
) -> Result<Value, Failure> {
    let (ino, _) = resolve(volume, path)?;
    let (namespace, replicator) = (&volume.namespace, &volume.replicator);
    let mut pins = Vec::new();
    let is_directory = namespace.inode(ino).map_err(failed)?.kind == FileKind::Directory;
    if !is_directory {
        if let Some((root, record)) = content_of(volume, ino)? {
            let found = replicator.show_pins(&[(root, record)]).map_err(failed)?;
            for pin in found.iter().filter(|pin| query.matches(pin)) {
                pins.push(shown(Some(path), pin)?);
            }
        }
        return Ok(json!({ "pins": pins, "examined": 1, "next": null }));
    }
    let mut walk = match after {
        None => TreeWalk::below(ino, path.to_vec()),
        Some(text) => {
            let numbers = text.strip_prefix('t').ok_or_else(cursor_error)?;
            let position: Result<Vec<u64>, _> = numbers.split('.').map(str::parse).collect();
            let position = position.map_err(|_| cursor_error())?;
            TreeWalk::resume(namespace, ino, path.to_vec(), &position).map_err(failed)?
        }
    };
    let places = volume.registry.fleet().read().places();
    let moment = replicator.machine().moment(&places);
    let (mut examined, limit) = (0, query.limit.max(1));
    let next = loop {
        // Those that may be wanted are planned together.
        let (mut paths, mut found, mut ended) = (Vec::new(), Vec::new(), false);
        while found.len() < PLANNED.min(limit - pins.len()) && examined < EXAMINED {
            let Some((path, dentry)) = walk.next(namespace).map_err(failed)? else {
                ended = true;
                break;
            };
            examined += 1;
            if dentry.kind != FileKind::File {
                continue;
            }
            let content = content_of(volume, dentry.ino)?;
            if let Some(content) = content.filter(|(_, record)| query.may_match(record, &moment)) {
                paths.push(path);
                found.push(content);
            }
        }
        for (pin, path) in replicator.show_pins(&found).map_err(failed)?.iter().zip(&paths) {
            if query.matches(pin) {
                pins.push(shown(Some(path), pin)?);
            }
        }
        if ended {
            break None;
        }
        if pins.len() >= limit || examined >= EXAMINED {
            let position: Vec<String> = walk.position().iter().map(ToString::to_string).collect();
            break Some(format!("t{}", position.join(".")));
        }
    };
    Ok(json!({ "pins": pins, "examined": examined, "next": next }))
}

/// What a file has now, as it was last committed.
pub(super) fn content_of(
    volume: &Volume,
    ino: Ino,
) -> Result<Option<(Cid, ContentRecord)>, Failure> {
    // Gone meanwhile: it has nothing.
    let Ok(inode) = volume.namespace.inode(ino) else { return Ok(None) };
    let Some(root) = inode.content else { return Ok(None) };
    let record = volume.namespace.content(&root).map_err(failed)?;
    Ok(record.map(|record| (root, record)))
}

/// Counters; no pin is looked at.
fn totals(volume: &Volume) -> Value {
    let stats = volume.namespace.stats();
    let [below_min, below_target, at_target, over_max] = stats.pins_by_state;
    let backends: Vec<Value> = stats
        .backends
        .iter()
        .map(|(id, (copies, bytes))| json!({ "id": id, "copies": copies, "bytes": bytes }))
        .collect();
    json!({
        "pins": {
            "total": stats.pins, "below_min": below_min, "below_target": below_target,
            "at_target": at_target, "over_max": over_max, "claimed": stats.unverified,
            "corrupt": stats.corrupt, "lost": stats.lost,
        },
        "copies": volume.registry.fleet().read().places().count(&stats),
        "backends": backends,
        "queue": {
            "pending": stats.queued, "failed": stats.failed,
            "paused": volume.registry.fleet().read().is_paused(),
        },
    })
}

/// A content that is named by its CID and has a file.
pub(super) fn pinned(volume: &Volume, text: &str) -> Result<(Cid, ContentRecord), Failure> {
    let root = Cid::try_from(text).map_err(|_| usage(format!("`{text}` is no CID")))?;
    let root = known_form(volume, root)?;
    let not_found = |text: String| Failure::new(ErrorCode::NotFound, text);
    match volume.namespace.content(&root).map_err(failed)? {
        Some(record) if record.refs > 0 => Ok((root, record)),
        Some(_) => Err(not_found(format!(
            "no file has {root} any more: it is no pin, and `cairn gc` collects it"
        ))),
        None => Err(not_found(format!(
            "{root} is no file's content in this volume; `cairn pin ls` lists them"
        ))),
    }
}

/// A CID of version 0 names what one of version 1 does.
fn known_form(volume: &Volume, root: Cid) -> Result<Cid, Failure> {
    if volume.namespace.content(&root).map_err(failed)?.is_some() {
        return Ok(root);
    }
    let other = match root.version() {
        ::cid::Version::V0 => root.into_v1().ok(),
        ::cid::Version::V1 if root.codec() == cid::DAG_PB => Cid::new_v0(*root.hash()).ok(),
        ::cid::Version::V1 => None,
    };
    match other {
        Some(other) if volume.namespace.content(&other).map_err(failed)?.is_some() => Ok(other),
        _ => Ok(root),
    }
}

fn status(volume: &Volume, of: &[What]) -> Result<Value, Failure> {
    let mut pins = Vec::new();
    for what in of {
        let (path, content) = match what {
            What::Cid(text) => (None, Some(pinned(volume, text)?)),
            What::Path(path) => {
                let (ino, text) = resolve(volume, path)?;
                // Seals what is written.
                let info = volume.vfs.info(ino).map_err(|e| of_vfs(e, &text))?;
                if info.inode.kind == FileKind::Directory {
                    return Err(usage(format!(
                        "{text} is a directory; `cairn pin ls --prefix` lists what is below it"
                    )));
                }
                (Some(path), info.content.map(|record| (info.link.cid, record)))
            }
        };
        let Some(content) = content else {
            // Empty files and what is no file have no blocks to copy.
            let path = path.map(|path| text_of(path));
            pins.push(json!({ "path": path, "cid": null, "copies": [], "missing": "" }));
            continue;
        };
        for pin in volume.replicator.show_pins(&[content]).map_err(failed)? {
            pins.push(shown(path.map(Vec::as_slice), &pin)?);
        }
    }
    Ok(json!({ "pins": pins }))
}

/// Calls `each` for every content that is named, once for each of its files.
pub(super) fn each_content(
    volume: &Volume,
    of: &[What],
    each: &mut dyn FnMut(&str, Cid, ContentRecord) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if of.iter().any(|what| matches!(what, What::Path(_))) {
        volume.vfs.commit_all().map_err(failed)?;
    }
    for what in of {
        let path = match what {
            What::Cid(text) => {
                let (root, record) = pinned(volume, text)?;
                each(text, root, record)?;
                continue;
            }
            What::Path(path) => path,
        };
        let (ino, _) = resolve(volume, path)?;
        if let Some((root, record)) = content_of(volume, ino)? {
            each(&text_of(path), root, record)?;
        }
        let kind = volume.namespace.inode(ino).map_err(failed)?.kind;
        if kind != FileKind::Directory {
            continue;
        }
        let mut walk = TreeWalk::below(ino, path.clone());
        while let Some((path, dentry)) = walk.next(&volume.namespace).map_err(failed)? {
            if dentry.kind != FileKind::File {
                continue;
            }
            if let Some((root, record)) = content_of(volume, dentry.ino)? {
                each(&text_of(&path), root, record)?;
            }
        }
    }
    Ok(())
}

/// What could not be done, with the first few by name.
#[derive(Default)]
struct Failures {
    count: u64,
    named: Vec<String>,
}

impl Failures {
    fn add(&mut self, what: &str, why: &str) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(if why.is_empty() { what.into() } else { format!("{what} ({why})") });
        }
    }

    fn text(&self) -> String {
        let more = self.count.saturating_sub(self.named.len() as u64);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        self.named.join("; ") + &more
    }
}

fn ended(volume: &Volume) -> Result<(), Failure> {
    if volume.shutdown.wait(LOOK) {
        return Err(Failure::new(ErrorCode::Busy, "the volume is being unmounted"));
    }
    Ok(())
}

/// Copies that are read back.
struct Proving {
    what: String,
    root: Cid,
    places: Vec<BackendId>,
    replicator: Arc<Replicator>,
}

impl Drop for Proving {
    fn drop(&mut self) {
        self.replicator.machine().unwatch(&self.root);
    }
}

#[derive(Default)]
struct Proofs {
    verified: u64,
    /// Sound as far as they were read.
    audited: u64,
    repaired: u64,
    /// Left out: found good not long ago.
    recent: u64,
    bad: Failures,
    unread: Failures,
    contents: u64,
}

fn verify(
    volume: &Volume,
    of: &[What],
    (backend, older): (Option<&str>, Option<Duration>),
    (audit, wait): (bool, bool),
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let job = if audit { Job::Audit } else { Job::Verify };
    let only = match backend {
        Some("local") => Some(BackendId::local()),
        Some(id) => Some(known_backend(volume, id)?),
        None => None,
    };
    let (mut window, mut proofs) = (VecDeque::<Proving>::new(), Proofs::default());
    let machine = volume.replicator.machine();
    let now = volume.clock.now();
    each_content(volume, of, &mut |what, root, record| {
        proofs.contents += 1;
        if !wait && proofs.contents > ASKED {
            return Err(usage(format!("these are more than {ASKED} contents: use --wait")));
        }
        let places = volume.registry.fleet().read().places();
        let mut asked = Vec::new();
        for copy in &record.copies {
            let wanted = only.as_ref().is_none_or(|id| *id == copy.backend);
            let Some(place) = places.get(&copy.backend).filter(|_| wanted) else { continue };
            if copy.state == CopyState::Released {
                continue;
            }
            let recent = older.is_some_and(|time| since(copy.at, now) < time);
            if recent && copy.state == CopyState::Verified {
                proofs.recent += 1;
                continue;
            }
            let at = format!("{what} at {}", copy.backend);
            if place.paused {
                proofs.unread.add(&at, "paused: `cairn queue resume`");
            } else if place.readable {
                asked.push(copy.backend.clone());
            } else {
                proofs.unread.add(&at, "its place does not answer");
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        while !machine.ask_for_proofs(&asked, job, (&root, &record), wait) {
            // In hand already, or no room: what is asked for before comes first.
            settle_some(volume, &mut window, &mut proofs)?;
            ended(volume)?;
            let done = proofs.contents;
            progress(ProgressReport { what: "contents read back".into(), done, total: None });
            let places = volume.registry.fleet().read().places();
            let there = |id| places.get(id).is_some_and(|place| place.readable && !place.paused);
            if !asked.iter().all(there) {
                proofs.unread.add(what, "a place went away meanwhile");
                return Ok(());
            }
        }
        if wait {
            let replicator = Arc::clone(&volume.replicator);
            let what = what.to_owned();
            window.push_back(Proving { what, root, places: asked, replicator });
        }
        while window.len() >= WINDOW {
            settle_some(volume, &mut window, &mut proofs)?;
            ended(volume)?;
        }
        let done = proofs.contents;
        progress(ProgressReport { what: "contents read back".into(), done, total: None });
        Ok(())
    })?;
    while wait && !window.is_empty() {
        settle_some(volume, &mut window, &mut proofs)?;
        let done = proofs.contents - window.len() as u64;
        let total = Some(proofs.contents);
        progress(ProgressReport { what: "contents read back".into(), done, total });
        ended(volume)?;
    }
    let Proofs { verified, audited, repaired, recent, bad, unread, contents } = proofs;
    if bad.count > 0 {
        let text = format!(
            "{} copies are bad and cannot be repaired now: {}. What can be read elsewhere is kept; `cairn pin status` says what is missing, `cairn backend add` gives it a place",
            bad.count,
            bad.text()
        );
        return Err(Failure::new(ErrorCode::Damaged, text));
    }
    if unread.count > 0 {
        let text = format!(
            "{} copies could not be read back: {}. Nothing is known against them; `cairn backend list` shows which backend does not answer",
            unread.count,
            unread.text()
        );
        return Err(Failure::new(ErrorCode::Degraded, text));
    }
    Ok(json!({
        "contents": contents, "verified": verified, "audited": audited, "repaired": repaired,
        "left_out": recent, "waited": wait,
    }))
}

/// Looks at what is in hand, and takes out what is over.
fn settle_some(
    volume: &Volume,
    window: &mut VecDeque<Proving>,
    proofs: &mut Proofs,
) -> Result<(), Failure> {
    let machine = volume.replicator.machine();
    for _ in 0..window.len() {
        let Some(proving) = window.pop_front() else { break };
        if machine.is_busy(&proving.root) || !judged(volume, &proving, proofs)? {
            window.push_back(proving);
        }
    }
    Ok(())
}

/// Counts what became of the copies; false when some are to be repaired yet.
fn judged(volume: &Volume, proving: &Proving, proofs: &mut Proofs) -> Result<bool, Failure> {
    let Some(record) = volume.namespace.content(&proving.root).map_err(failed)? else {
        return Ok(true);
    };
    let row = volume.namespace.queue_row(&proving.root).map_err(failed)?;
    let seen = volume.replicator.machine().seen_of(&proving.root);
    // It is tried again later, or not at all: the verb does not wait for that.
    let over = row.as_ref().is_none_or(|row| row.not_before > volume.clock.now())
        || volume.replicator.machine().is_stuck(&proving.root, &record);
    let good = |id: &BackendId| record.good_copies().any(|copy| copy.backend == *id);
    let was_bad = |id: &BackendId| {
        seen.iter().any(|(place, outcome)| place == id && matches!(outcome, Outcome::Bad(_)))
    };
    if !over && proving.places.iter().any(|id| was_bad(id) && !good(id)) {
        return Ok(false);
    }
    let why = row.map(|row| row.last_error).unwrap_or_default();
    for id in &proving.places {
        let at = format!("{} at {id}", proving.what);
        match seen.iter().find(|(place, _)| place == id).map(|(_, outcome)| outcome) {
            // One that was known to be bad is stored again.
            Some(Outcome::Bad(_) | Outcome::Stored(..)) if good(id) => proofs.repaired += 1,
            Some(Outcome::Bad(_) | Outcome::Stored(..)) => proofs.bad.add(&at, &why),
            Some(Outcome::Failed(reason)) => proofs.unread.add(&at, reason),
            Some(Outcome::Verified(_) | Outcome::Released(_)) => proofs.verified += 1,
            Some(Outcome::Audited) => proofs.audited += 1,
            None => proofs.unread.add(&at, "its place went away meanwhile"),
        }
    }
    Ok(true)
}

fn replicate(
    volume: &Volume,
    of: &[What],
    wait: bool,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let (mut contents, mut complete, mut short) = (0u64, 0u64, Failures::default());
    let mut window: VecDeque<(String, Cid, Instant)> = VecDeque::new();
    let mut look = |window: &mut VecDeque<(String, Cid, Instant)>| -> Result<(), Failure> {
        for _ in 0..window.len() {
            let Some((what, root, asked)) = window.pop_front() else { break };
            match target_holds(volume, &root)? {
                None => window.push_back((what, root, asked)),
                Some(why) if why.is_empty() => complete += 1,
                Some(why) => short.add(&what, &why),
            }
        }
        Ok(())
    };
    let mut page: Vec<(String, Cid)> = Vec::new();
    let submit = |page: &mut Vec<(String, Cid)>| -> Result<Vec<(String, Cid)>, Failure> {
        let roots: Vec<Cid> = page.iter().map(|(_, root)| *root).collect();
        volume.replicator.retry(&roots).map_err(failed)?;
        Ok(std::mem::take(page))
    };
    each_content(volume, of, &mut |what, root, _| {
        contents += 1;
        page.push((what.to_owned(), root));
        if page.len() < WINDOW {
            return Ok(());
        }
        let asked = submit(&mut page)?;
        if wait {
            window.extend(asked.into_iter().map(|(what, root)| (what, root, Instant::now())));
            while window.len() >= WINDOW {
                look(&mut window)?;
                ended(volume)?;
            }
        }
        progress(ProgressReport { what: "contents".into(), done: contents, total: None });
        Ok(())
    })?;
    let asked = submit(&mut page)?;
    if wait {
        window.extend(asked.into_iter().map(|(what, root)| (what, root, Instant::now())));
        while !window.is_empty() {
            look(&mut window)?;
            let done = contents - window.len() as u64;
            progress(ProgressReport { what: "contents".into(), done, total: Some(contents) });
            if !window.is_empty() {
                ended(volume)?;
            }
        }
    }
    if short.count > 0 {
        let text = format!(
            "{} contents have fewer copies than their targets: {}. They stay queued; a backend more or back, or a lower target, ends that",
            short.count,
            short.text()
        );
        return Err(Failure::new(ErrorCode::Degraded, text));
    }
    Ok(json!({ "contents": contents, "complete": if wait { Some(complete) } else { None } }))
}

/// Empty when a content has its target's copies; the reason when it gets no more now;
/// `None` while work is under way.
fn target_holds(volume: &Volume, root: &Cid) -> Result<Option<String>, Failure> {
    let Some(record) = volume.namespace.content(root).map_err(failed)? else {
        return Ok(Some(String::new()));
    };
    if record.refs == 0 {
        return Ok(Some(String::new()));
    }
    let shown = volume.replicator.show_pins(&[(*root, record)]).map_err(failed)?;
    let Some(pin) = shown.into_iter().next() else { return Ok(Some(String::new())) };
    if pin.have >= pin.target {
        return Ok(Some(String::new()));
    }
    let under_way = volume.replicator.machine().is_busy(root)
        || pin.copies.iter().any(|copy| {
            matches!(copy.state, CopyStatus::Wanted | CopyStatus::Queued | CopyStatus::Sending)
        });
    if under_way {
        return Ok(None);
    }
    let blocked = pin.copies.iter().find(|copy| copy.state == CopyStatus::Blocked);
    let why = blocked.map(|copy| copy.reason.clone()).filter(|why| !why.is_empty());
    Ok(Some(why.unwrap_or(pin.missing)))
}
