//! `cairn fsck`.

use std::fs::File;

use serde_json::{Value, json};

use super::collect::Collector;
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::content::{Profile, import_file};
use crate::metadata::checkpoint::{Manifest, load_checkpoint};
use crate::metadata::{ContentRecord, MetadataError, check_event_file};
use crate::replication::repair_event_file;
use crate::store::IndexChange;

/// Problems that are listed; the others are counted.
const LISTED: usize = 1000;

#[derive(Default)]
struct Report {
    found: u64,
    repaired: u64,
    listed: Vec<String>,
}

impl Report {
    fn add(&mut self, problem: String) {
        self.found += 1;
        if self.listed.len() < LISTED {
            self.listed.push(problem);
        }
    }

    /// Of a problem that is counted already.
    fn note(&mut self, text: String) {
        if self.listed.len() < LISTED {
            self.listed.push(text);
        }
    }
}

/// Checks metadata, blocks, contents, checkpoints and event files.
pub(super) fn fsck(
    volume: &Volume,
    repair: bool,
    deep: bool,
    mounted: bool,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    if repair && mounted {
        let text = "unmount the volume first: `cairn fsck --repair` changes what a mount holds";
        return Err(Failure::new(ErrorCode::Busy, text));
    }
    let mut report = Report::default();
    let _hold = volume.store.hold();
    volume.vfs.commit_all().map_err(failed)?;
    let problems =
        volume.namespace.check(repair, &mut |problem| report.add(format!("metadata: {problem}")));
    let problems = problems.map_err(failed)?;
    report.repaired += if repair { problems } else { 0 };
    blocks(volume, repair, deep, &mut report, progress)?;
    contents(volume, deep, &mut report, progress)?;
    checkpoints(volume, repair, &mut report)?;
    events(volume, repair, &mut report);
    let remaining = report.found - report.repaired.min(report.found);
    let answer = json!({
        "problems": report.found, "repaired": report.repaired, "remaining": remaining,
        "deep": deep, "details": report.listed,
        // Damage may hide what is referred to: then it is not known.
        "reclaimable_bytes": reclaimable(volume),
    });
    if remaining > 0 {
        let hint = if repair {
            "what is left needs another copy of the data"
        } else {
            "`cairn fsck --repair` repairs from other copies"
        };
        let text = format!("{remaining} problems: {}; {hint}", report.listed.join("; "));
        return Err(Failure::new(ErrorCode::Damaged, text));
    }
    Ok(answer)
}

/// Bytes of local blocks that nothing refers to; the mount gives them back.
fn reclaimable(volume: &Volume) -> Option<u64> {
    match Collector::new(volume, volume.shutdown.clone()).survey() {
        Ok((_, bytes)) => Some(bytes),
        Err(error) => {
            tracing::warn!(%error, "what can be reclaimed is not known");
            None
        }
    }
}

fn blocks(
    volume: &Volume,
    repair: bool,
    deep: bool,
    report: &mut Report,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<(), Failure> {
    let mut bad = Vec::new();
    volume
        .store
        .verify(
            deep,
            &mut |problem| {
                report.add(format!("store: {}", problem.error));
                bad.push(problem.cid);
            },
            &mut |done, _| progress(ProgressReport { what: "blocks".into(), done, total: None }),
        )
        .map_err(failed)?;
    if repair {
        for id in bad {
            // Without an entry it is read from another copy, and kept.
            volume.store.apply(&[IndexChange::Remove(id)]).map_err(failed)?;
            match volume.replicator.fetch(&id) {
                Ok(_) => report.repaired += 1,
                Err(error) => report.add(format!("store: {error}")),
            }
        }
    }
    Ok(())
}

/// It may lie in a cache in part: its blocks that are here were looked at.
fn is_cached(volume: &Volume, record: &ContentRecord) -> bool {
    volume.store.budget().is_some() && record.good_copies().next().is_some()
}

/// Every content must be readable from somewhere.
fn contents(
    volume: &Volume,
    deep: bool,
    report: &mut Report,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<(), Failure> {
    let (mut after, mut done) = (None, 0);
    loop {
        let page = volume.namespace.contents_page(after.as_ref(), 1024).map_err(failed)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = Some(*last);
        for (root, record) in page.iter().filter(|(_, record)| record.refs > 0) {
            let here = volume.store.contains(root).map_err(failed)?;
            if !here && record.good_copies().all(|copy| copy.backend.is_local()) {
                report.add(format!("content {root} is not in the store and has no other copy"));
            } else if deep && here && !is_cached(volume, record) {
                let loaded = crate::content::walk_post_order(
                    root,
                    &mut |_| Ok(true),
                    &mut |id| {
                        volume
                            .replicator
                            .fetch(id)
                            .map_err(|_| crate::content::ContentError::Missing(*id))
                    },
                    &mut |_, _| Ok(()),
                );
                if let Err(error) = loaded {
                    report.add(format!("content {root}: {error}"));
                }
            }
            done += 1;
        }
        progress(ProgressReport {
            what: "contents".into(),
            done,
            total: Some(volume.namespace.stats().pins),
        });
    }
}

/// Every event file must be whole.
fn events(volume: &Volume, repair: bool, report: &mut Report) {
    let dir = volume.log.dir();
    for file in volume.log.files() {
        let error = match check_event_file(&dir.join(file.name())) {
            Ok(_) => continue,
            // Its time was over just now.
            Err(MetadataError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => error,
        };
        report.add(format!("events: {error}"));
        if !repair {
            continue;
        }
        let (registry, id) = (&volume.registry, &volume.identity.id);
        match repair_event_file(registry, &volume.bridge, id, (dir, &file)) {
            Ok(from) => {
                tracing::info!(file = file.name(), backend = %from, "an event file was brought back");
                report.repaired += 1;
            }
            Err(error) => report.note(format!("events: {} stays damaged: {error}", file.name())),
        }
    }
}

/// The newest local checkpoint must match its CIDs, and load.
fn checkpoints(volume: &Volume, repair: bool, report: &mut Report) -> Result<(), Failure> {
    let dir = volume.dir.join("checkpoints");
    let mut manifests: Vec<_> = std::fs::read_dir(&dir)
        .map_err(failed)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    manifests.sort();
    let Some(newest) = manifests.last() else { return Ok(()) };
    let checked = std::fs::read(newest)
        .map_err(|e| e.to_string())
        .and_then(|bytes| Manifest::decode(&bytes).map_err(|e| e.to_string()))
        .and_then(|manifest| {
            for file in manifest.files() {
                let path = dir.join(Manifest::local_name(file));
                let mut bytes =
                    File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                let found = import_file(&Profile::UNIXFS_V1_2025, &mut bytes, &mut |_, _| Ok(()))
                    .map_err(|e| e.to_string())?;
                if found.cid.to_string() != file.cid {
                    return Err(format!("{} does not match its CID", path.display()));
                }
            }
            let base = dir.join(format!("base-{:012}", manifest.base.sequence));
            let deltas: Vec<_> =
                manifest.deltas.iter().map(|file| dir.join(Manifest::local_name(file))).collect();
            let rows = load_checkpoint(&base, &deltas).map_err(|e| e.to_string())?;
            for row in rows {
                row.map_err(|e| e.to_string())?;
            }
            Ok(())
        });
    if let Err(reason) = checked {
        report.add(format!("checkpoint {}: {reason}", newest.display()));
        if repair {
            volume.checkpointer.checkpoint(true).map_err(failed)?;
            report.repaired += 1;
        }
    }
    Ok(())
}
