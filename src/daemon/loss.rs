//! `cairn simulate-loss`.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Duration;

use serde_json::{Value, json};

use super::handler::known_backend;
use super::tree::each_file;
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::backends::Micros;
use crate::replication::loss::{Harm, Healed, Loss, Pace, Tally};
use crate::types::{BackendId, Cid, Ino};

/// Contents of a page.
const PAGE: usize = 1024;
/// Paths that are named.
const PATHS: usize = 20;
/// Files that are looked at for them.
const SEARCHED: u64 = 2_000_000;

type Progress<'p> = &'p mut dyn FnMut(ProgressReport);

/// What the loss of all these places at once would mean. Changes nothing.
pub(super) fn simulate(
    volume: &Volume,
    ids: &[String],
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let mut gone: Vec<BackendId> = Vec::new();
    for id in ids {
        let local = BackendId::local();
        gone.push(if id == local.as_str() { local } else { known_backend(volume, id)? });
    }
    gone.sort();
    gone.dedup();
    let machine = volume.replicator.machine();
    let places = machine.places();
    let mut loss = Loss::new(&gone, &machine.moment(&places));
    let (mut after, total) = (None, volume.namespace.stats().pins);
    loop {
        let page = volume.namespace.contents_page(after.as_ref(), PAGE).map_err(failed)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (root, record) in page.iter().filter(|(_, record)| record.refs > 0) {
            loss.add(root, record, &machine.policy_of(record));
        }
        progress(ProgressReport {
            what: "contents looked at".into(),
            done: loss.contents,
            total: Some(total),
        });
        if volume.shutdown.is_triggered() {
            return Err(Failure::new(ErrorCode::Busy, "the volume is being unmounted"));
        }
    }
    let affected = loss.affected().map(|(harm, root)| (*root, harm)).collect();
    let (paths, searched_all) = paths(volume, &affected)?;
    Ok(answer(volume, &gone, &loss, &paths, searched_all))
}

fn harm_name(harm: Harm) -> &'static str {
    match harm {
        Harm::Lost => "lost",
        Harm::Uncertain => "uncertain",
        Harm::BelowMin => "below_min",
        Harm::BelowTarget => "below_target",
    }
}

/// Paths of what is affected, the worst first; and whether all files were looked at.
pub(super) fn paths(
    volume: &Volume,
    wanted: &HashMap<Cid, Harm>,
) -> Result<(Vec<(Harm, String)>, bool), Failure> {
    let Some(worst) = wanted.values().min().copied() else { return Ok((Vec::new(), true)) };
    let enough = wanted.values().filter(|harm| **harm == worst).count().min(PATHS);
    let (mut found, mut searched): (Vec<(Harm, Ino)>, u64) = (Vec::new(), 0);
    each_file(volume, Ino::ROOT, &mut |ino, root| {
        searched += 1;
        if let Some(harm) = wanted.get(&root)
            && (found.len() < PATHS || *harm == worst)
        {
            found.push((*harm, ino));
            found.sort_unstable();
            found.truncate(PATHS);
        }
        let have = found.iter().filter(|(harm, _)| *harm == worst).count();
        let done = have >= PATHS || (have >= enough && found.len() >= PATHS);
        let over = searched >= SEARCHED;
        Ok(if done || over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let mut paths = Vec::new();
    for (harm, ino) in found {
        // It may have gone meanwhile.
        if let Ok(Some(path)) = volume.namespace.path_of(ino) {
            paths.push((harm, String::from_utf8_lossy(&path).into_owned()));
        }
    }
    Ok((paths, searched < SEARCHED))
}

fn tally(tally: &Tally) -> Value {
    json!({ "contents": tally.contents, "bytes": tally.bytes })
}

fn money(micros: u64) -> String {
    Micros(micros).to_string()
}

fn answer(
    volume: &Volume,
    gone: &[BackendId],
    loss: &Loss,
    paths: &[(Harm, String)],
    searched_all: bool,
) -> Value {
    let pace = |id: &BackendId| {
        let (.., rate) = volume.replicator.machine().lanes().lock().lane(id);
        Pace {
            measured: (rate > 0.0).then_some(rate),
            limit: loss.place(id).and_then(|place| place.settings.bandwidth),
        }
    };
    let takes = |(id, healed): (&BackendId, &Healed)| Loss::takes(healed, pace(id));
    let times: Vec<Option<Duration>> = loss.healed.iter().map(takes).collect();
    let seconds = times
        .iter()
        .copied()
        .try_fold(Duration::ZERO, |longest, time| time.map(|time| longest.max(time)));
    let not_measured: Vec<&BackendId> = loss
        .healed
        .keys()
        .zip(&times)
        .filter(|(_, time)| time.is_none())
        .map(|(id, _)| id)
        .collect();
    let backends: Vec<Value> = loss
        .healed
        .iter()
        .zip(&times)
        .map(|((id, healed), time)| {
            json!({
                "id": id, "copies": healed.copies, "bytes": healed.bytes,
                "seconds": time.map(|time| time.as_secs()),
                "bytes_per_second": pace(id).measured.map(f64::round),
                "limit": pace(id).limit,
            })
        })
        .collect();
    let (once, month) = loss.cost();
    let copies: u64 = loss.healed.values().map(|healed| healed.copies).sum();
    let bytes: u64 = loss.healed.values().map(|healed| healed.bytes).sum();
    let why: Vec<Value> = loss
        .passed_over
        .iter()
        .take(16)
        .map(|((id, why), times)| json!({ "id": id, "reason": why, "times": times }))
        .collect();
    json!({
        "gone": gone, "places_left": loss.left(), "contents": loss.contents,
        "lost": tally(&loss.lost), "uncertain": tally(&loss.uncertain),
        "lost_before": tally(&loss.lost_before),
        "below_min": tally(&loss.below_min), "below_target": tally(&loss.below_target),
        "heal": {
            "copies": copies, "bytes": bytes, "backends": backends,
            "seconds": seconds.map(|time| time.as_secs()), "not_measured": not_measured,
            "unplaced_copies": loss.unplaced.copies, "unplaced_bytes": loss.unplaced.bytes,
            "unplaced_because": why,
        },
        "cost": { "once": money(once), "per_month": money(month) },
        "paths": paths.iter()
            .map(|(harm, path)| json!({ "harm": harm_name(*harm), "path": path }))
            .collect::<Vec<_>>(),
        "paths_of_all_files": searched_all,
    })
}
