//! Collection on backends: its schedule, `cairn gc` and `cairn trash`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::collect::Collector;
use super::handler::{known_backend, names, of_vfs};
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::content::Link;
use crate::metadata::{ContentRecord, CopyState, EventKind, NewNode, SetAttributes};
use crate::replication::{
    BackendCollector, CollectMode, Collected, Events, Registry, ReplicationError,
};
use crate::runtime::{Clock, Shutdown};
use crate::store::CollectReport;
use crate::types::{BackendId, ByteSize, Cid, FileKind, printable};
use crate::vfs::GraftContent;

/// How often it is asked whether a pass is due.
const LOOK: Duration = Duration::from_secs(1);
/// After the start, and after a pass that has to come again: others are proven then.
const SOON: Duration = Duration::from_mins(10);
/// After a pass that failed.
const LATER: Duration = Duration::from_hours(1);
/// Rows of the metadata that one page of the trash looks at.
const LOOKED_AT: usize = 10_000;

struct Schedule {
    collector: Arc<BackendCollector>,
    registry: Arc<Registry>,
    events: Events,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
    interval: Duration,
    grace: Duration,
}

/// Starts the thread that collects on backends by itself.
pub(super) fn start(volume: &Volume) -> std::io::Result<()> {
    let config = &volume.config.replication;
    if config.collect_interval_s == 0 {
        return Ok(());
    }
    let schedule = Schedule {
        collector: Arc::clone(&volume.collector),
        registry: Arc::clone(&volume.registry),
        events: volume.events.clone(),
        clock: Arc::clone(&volume.clock),
        shutdown: volume.shutdown.clone(),
        interval: Duration::from_secs(config.collect_interval_s),
        grace: Duration::from_secs(config.collect_grace_s),
    };
    std::thread::Builder::new().name("cairn-gc".into()).spawn(move || schedule.work()).map(drop)
}

impl Schedule {
    fn work(self) {
        let mut due: HashMap<BackendId, Instant> = HashMap::new();
        let mut said: HashMap<BackendId, String> = HashMap::new();
        while !self.shutdown.wait(LOOK) {
            let specs = self.registry.specs().into_iter();
            let ids: Vec<BackendId> =
                specs.filter(|spec| spec.settings().collect).map(|spec| spec.id).collect();
            due.retain(|id, _| ids.contains(id));
            for id in ids {
                let first = || Instant::now() + self.first(&id);
                if *due.entry(id.clone()).or_insert_with(first) > Instant::now()
                    || self.registry.get(&id).is_none()
                {
                    continue;
                }
                let rest = match self.collector.collect(&id, CollectMode::Delete(self.grace)) {
                    Ok(report) => {
                        said.remove(&id);
                        tell(&self.events, &id, &report);
                        let again = report.more || report.waiting_copies > 0;
                        if again { SOON.min(self.interval) } else { self.interval }
                    }
                    Err(ReplicationError::ShuttingDown) => return,
                    Err(error) => {
                        let why = error.to_string();
                        tracing::warn!(backend = %id, error = %why, "nothing more is collected");
                        if said.insert(id.clone(), why.clone()).as_ref() != Some(&why) {
                            self.events.emit_at(
                                EventKind::CollectionAborted,
                                &id,
                                id.as_str(),
                                &why,
                            );
                        }
                        LATER.min(self.interval)
                    }
                };
                due.insert(id, Instant::now() + rest);
            }
        }
    }

    /// Until the first pass of this mount: when the last one's interval is over.
    fn first(&self, id: &BackendId) -> Duration {
        let Some(last_s) = self.collector.last_pass_s(id) else { return SOON.min(self.interval) };
        let since = self.clock.now().seconds.saturating_sub(last_s);
        let since = Duration::from_secs(u64::try_from(since).unwrap_or(0));
        self.interval.saturating_sub(since).max(SOON.min(self.interval))
    }
}

/// Says what a pass did.
fn tell(events: &Events, id: &BackendId, report: &Collected) {
    if report.deleted_blocks == 0 {
        return;
    }
    let (blocks, bytes) = (report.deleted_blocks, ByteSize(report.deleted_bytes));
    let detail = format!("{blocks} blocks, {bytes}, that nothing needed any more");
    events.emit_at(EventKind::BlockCollected, id, id.as_str(), &detail);
    tracing::info!(backend = %id, blocks, %bytes, "collected");
}

/// `cairn gc`.
pub(super) fn gc(
    volume: &Volume,
    id: Option<String>,
    (run, no_grace): (bool, bool),
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    if no_grace && !run {
        let text = "--no-grace says how blocks go: it needs --run, too";
        return Err(Failure::new(ErrorCode::Usage, text));
    }
    if run && volume.vfs.is_read_only() {
        let text = "the volume is mounted read-only: nothing is deleted; without --run it is \
                    looked at";
        return Err(Failure::new(ErrorCode::Usage, text));
    }
    let ids = match &id {
        Some(id) if id == "local" => vec![BackendId::local()],
        Some(id) => vec![known_backend(volume, id)?],
        None => {
            let all = volume.registry.specs().into_iter().map(|spec| spec.id);
            std::iter::once(BackendId::local()).chain(all).collect()
        }
    };
    let mut places = Vec::new();
    for (done, id) in ids.iter().enumerate() {
        let what = format!("looked at {id}");
        progress(ProgressReport { what, done: done as u64, total: Some(ids.len() as u64) });
        let found =
            if id.is_local() { here(volume, run) } else { there(volume, id, (run, no_grace)) };
        match found {
            Ok(value) => places.push(value),
            Err(failure) if ids.len() == 1 => return Err(failure),
            Err(failure) => places.push(json!({ "backend": id, "error": failure.message })),
        }
    }
    let grace_s = if no_grace { 0 } else { volume.config.replication.collect_grace_s };
    Ok(json!({ "dry_run": !run, "grace_s": grace_s, "places": places }))
}

fn here(volume: &Volume, run: bool) -> Result<Value, Failure> {
    let collector = Collector::new(volume, volume.shutdown.clone());
    let (blocks, bytes) = collector.survey()?;
    let report = if run {
        collector.collect()?.ok_or_else(|| {
            let text = "an import or export holds everything here; try again after it";
            Failure::new(ErrorCode::Busy, text)
        })?
    } else {
        CollectReport::default()
    };
    let evicted = if run { super::evict::make_room(volume)? } else { 0 };
    Ok(json!({
        "backend": "local", "evicted_bytes": evicted, "dead_blocks": blocks, "dead_bytes": bytes,
        "due_blocks": blocks, "due_bytes": bytes,
        "deleted_blocks": report.blocks_removed, "deleted_bytes": report.bytes_removed,
        "more": report.more,
        "stays": "what lies in the pack that is being written stays until it is full",
    }))
}

fn there(volume: &Volume, id: &BackendId, (run, no_grace): (bool, bool)) -> Result<Value, Failure> {
    let grace_s = if no_grace { 0 } else { volume.config.replication.collect_grace_s };
    let grace = Duration::from_secs(grace_s);
    let mode = if run { CollectMode::Delete(grace) } else { CollectMode::Look(grace) };
    let mut report = volume.collector.collect(id, mode).map_err(failed)?;
    if no_grace && report.dead_blocks > report.due_blocks {
        // What this mark found dead for the first time goes by a second one.
        let first = report;
        report = volume.collector.collect(id, mode).map_err(failed)?;
        report.deleted_blocks += first.deleted_blocks;
        report.deleted_bytes += first.deleted_bytes;
        report.released_copies += first.released_copies;
    }
    if run {
        tell(&volume.events, id, &report);
    }
    let mut value = serde_json::to_value(&report).map_err(failed)?;
    value["backend"] = json!(id);
    Ok(value)
}

fn entry(cid: &Cid, record: &ContentRecord) -> Value {
    let at: Vec<&BackendId> = record.good_copies().map(|copy| &copy.backend).collect();
    json!({
        "cid": cid.to_string(), "size": record.size, "copies": at,
        "last_used_s": record.accessed_s,
    })
}

/// `cairn trash ls`: a page, in the order of CIDs.
pub(super) fn trash_list(
    volume: &Volume,
    after: Option<String>,
    limit: usize,
) -> Result<Value, Failure> {
    let mut after = after.as_deref().map(parse).transpose()?;
    let (mut found, mut looked_at) = (Vec::new(), 0);
    let more = loop {
        let page = volume.namespace.contents_page(after.as_ref(), 1000).map_err(failed)?;
        if page.is_empty() {
            break false;
        }
        looked_at += page.len();
        for (cid, record) in page {
            after = Some(cid);
            if record.refs == 0 && record.good_copies().next().is_some() {
                found.push(entry(&cid, &record));
            }
            if found.len() >= limit {
                break;
            }
        }
        if found.len() >= limit || looked_at >= LOOKED_AT {
            break true;
        }
    };
    let next = after.filter(|_| more).map(|cid| cid.to_string());
    Ok(json!({ "contents": found, "next": next }))
}

fn parse(text: &str) -> Result<Cid, Failure> {
    text.parse().map_err(|error| {
        Failure::new(ErrorCode::Usage, format!("`{}` is no CID: {error}", printable(text)))
    })
}

/// `cairn trash restore`: a file with a content that nobody has any more.
pub(super) fn trash_restore(volume: &Volume, cid: &str, path: &[u8]) -> Result<Value, Failure> {
    let root = parse(cid)?;
    let record = volume.namespace.content(&root).map_err(failed)?;
    let record = record.filter(|record| record.good_copies().next().is_some());
    let record = record.ok_or_else(|| {
        let text = format!("{root} is not known here (any more); `cairn trash ls` shows what is");
        Failure::new(ErrorCode::NotFound, text)
    })?;
    let (mut parents, what) = names(path)?;
    let name = parents
        .pop()
        .ok_or_else(|| Failure::new(ErrorCode::Usage, "a file needs a new name, not the root"))?;
    let parent = volume.vfs.resolve(&parents).map_err(|e| of_vfs(e, &what))?;
    if volume.vfs.lookup(parent, &name).is_ok() {
        let text = format!("{what} exists already: name a path that does not");
        return Err(Failure::new(ErrorCode::Usage, text));
    }
    // Nothing of it goes while it has no name yet, and all of it is here then.
    let _hold = volume.store.hold();
    volume.replicator.fetch_all(&[root]).map_err(|error| {
        Failure::new(ErrorCode::Damaged, format!("{root} is not whole any more: {error}"))
    })?;
    let now = volume.clock.now();
    let node = NewNode {
        kind: FileKind::File,
        mode: 0o644,
        umask: None,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        target: Vec::new(),
        now,
    };
    let content = GraftContent {
        link: Link { cid: root, size: record.size, tsize: record.tsize },
        blocks: record.blocks,
        profile: if record.profile == volume.identity.profile {
            String::new()
        } else {
            record.profile.clone()
        },
    };
    let times = SetAttributes::default();
    let making = volume.vfs.begin_making(parent);
    making.graft(parent, &name, &node, &times, &[], Some(content)).map_err(|e| of_vfs(e, &what))?;
    drop(making);
    volume.namespace.engine().persist().map_err(failed)?;
    let there = |state: CopyState| record.copies.iter().filter(move |c| c.state == state).count();
    Ok(json!({
        "path": what, "cid": root.to_string(), "size": record.size,
        "copies_elsewhere": there(CopyState::Verified) + there(CopyState::Claimed),
    }))
}
