//! `cairn pin unpin`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::handler::{event, of_vfs, resolve};
use super::pins::{content_of, each_content, pinned, text_of, usage};
use super::policy;
use super::tree::each_file;
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport, What};
use crate::metadata::{ContentRecord, EventKind};
use crate::types::{Cid, Ino};

/// What holds at a path that is unpinned: one proven copy.
const UNPINNED: &str = "min=1,target=1,max=1,tiers=";
/// Files that CIDs stand for at most: each gets a policy of its own.
const FILES: usize = 1000;
/// Paths that a refusal names.
const SHOWN: usize = 4;

type Progress<'p> = &'p mut dyn FnMut(ProgressReport);

/// Ends the wish for copies elsewhere, of paths, and with `files` of all files that have
/// these CIDs. Nothing is done before all were looked at.
pub(super) fn unpin(
    volume: &Volume,
    of: &[What],
    (files, dry_run): (bool, bool),
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let mut roots: Vec<Cid> = Vec::new();
    for what in of {
        match what {
            What::Cid(text) => roots.push(pinned(volume, text)?.0),
            What::Path(path) => {
                let (ino, text) = resolve(volume, path)?;
                volume.vfs.check_rule(ino, UNPINNED).map_err(|e| of_vfs(e, &text))?;
            }
        }
    }
    roots.sort_unstable();
    roots.dedup();
    let having = files_of(volume, &roots, if files { FILES + 1 } else { SHOWN }, progress)?;
    if let (false, Some(root)) = (files, roots.first()) {
        return Err(refusal(volume, root, &having)?);
    }
    if having.values().map(Vec::len).sum::<usize>() > FILES {
        let text = format!(
            "more than {FILES} files have these contents, and each would get a policy of its own: unpin the directories that they are in (`cairn pin unpin PATH`)"
        );
        return Err(usage(text));
    }
    let mut found = Vec::new();
    for root in &roots {
        let before = found.len();
        for ino in having.get(root).into_iter().flatten() {
            // What is open without a name goes when it is closed.
            let path = volume.namespace.path_of(*ino).map_err(failed)?;
            found.extend(path.map(|path| (root, path)));
        }
        if found.len() == before {
            return Err(refusal(volume, root, &having)?);
        }
    }
    let mut done = Vec::new();
    for what in of {
        let What::Path(path) = what else { continue };
        done.push(unpin_path(volume, path, None, dry_run, progress)?);
    }
    let shared = !found.is_empty() && !dry_run;
    for (root, path) in found {
        let path = path.strip_prefix(b"/").unwrap_or(&path);
        done.push(unpin_path(volume, path, Some(root), dry_run, progress)?);
    }
    if shared {
        // Below one path alone, a content keeps what others asked for: who knows all files
        // of it is a look from the root.
        volume
            .vfs
            .converge(Ino::ROOT, &mut |done| {
                let what = "contents follow their policies".into();
                progress(ProgressReport { what, done, total: None });
            })
            .map_err(failed)?;
    }
    Ok(json!({ "dry_run": dry_run, "unpinned": done }))
}

/// Files that have these contents, by content: at most so many in all.
fn files_of(
    volume: &Volume,
    roots: &[Cid],
    most: usize,
    progress: Progress<'_>,
) -> Result<BTreeMap<Cid, Vec<Ino>>, Failure> {
    let mut found: BTreeMap<Cid, Vec<Ino>> = BTreeMap::new();
    if roots.is_empty() {
        return Ok(found);
    }
    // A file that is being written may have had one of them.
    volume.vfs.commit_all().map_err(failed)?;
    let (mut count, mut searched) = (0, 0u64);
    each_file(volume, Ino::ROOT, &mut |ino, root| {
        searched += 1;
        if searched.is_multiple_of(4096) {
            let what = "files looked at".into();
            progress(ProgressReport { what, done: searched, total: None });
        }
        if roots.binary_search(&root).is_ok() {
            let inos = found.entry(root).or_default();
            // Once, whatever its hard links.
            if !inos.contains(&ino) {
                inos.push(ino);
                count += 1;
            }
        }
        Ok(if count >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(found)
}

/// Of a CID that files have.
fn refusal(
    volume: &Volume,
    root: &Cid,
    having: &BTreeMap<Cid, Vec<Ino>>,
) -> Result<Failure, Failure> {
    let refs = volume.namespace.content(root).map_err(failed)?.map_or(0, |record| record.refs);
    let mut named = Vec::new();
    for ino in having.get(root).into_iter().flatten().take(SHOWN) {
        if let Ok(Some(path)) = volume.namespace.path_of(*ino) {
            named.push(text_of(&path));
        }
    }
    if named.is_empty() {
        let text = format!(
            "what has {root} has no name any more and is open, or changes just now: close it, and it is no pin; else ask again"
        );
        return Ok(Failure::new(ErrorCode::Busy, text));
    }
    let more = refs.saturating_sub(named.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let have = if refs == 1 { "file has" } else { "files have" };
    Ok(usage(format!(
        "{refs} {have} {root}: {}{more}. Unpin these paths, or with --files all that have it, or remove them",
        named.join(", ")
    )))
}

/// Unpins one path; of a file that was found by its content, while it still has that.
fn unpin_path(
    volume: &Volume,
    path: &[u8],
    found_by: Option<&Cid>,
    dry_run: bool,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let (mut contents, mut shared, mut copies) = (0u64, 0u64, 0u64);
    let mut count = |record: &ContentRecord| {
        contents += 1;
        shared += u64::from(record.refs > 1);
        let elsewhere = record.good_copies().filter(|copy| !copy.backend.is_local());
        copies += elsewhere.count() as u64;
        contents
    };
    let text = text_of(path);
    let (ino, _) = resolve(volume, path)?;
    if let Some(root) = found_by {
        let has = content_of(volume, ino)?.filter(|(now, _)| now == root);
        let Some((_, record)) = has else {
            let text =
                format!("{text} was changed meanwhile: what was unpinned before it is; again");
            return Err(Failure::new(ErrorCode::Busy, text));
        };
        count(&record);
    } else {
        let what = What::Path(path.to_vec());
        each_content(volume, &[what], &mut |_, _, record| {
            let done = count(&record);
            progress(ProgressReport { what: "contents".into(), done, total: None });
            Ok(())
        })?;
    }
    let before = volume.namespace.inode(ino).map_err(failed)?.policy;
    if !dry_run {
        policy::set_path(volume, path, UNPINNED, progress)?;
        event(volume, EventKind::PinRemoved, &text, "");
    }
    let before = if before.is_empty() { "''".to_owned() } else { before };
    Ok(json!({
        "path": text, "cid": found_by.map(ToString::to_string),
        "contents": contents, "copies_elsewhere": copies, "shared": shared,
        "policy": UNPINNED, "undo": format!("cairn policy set {before} PATH"),
    }))
}
