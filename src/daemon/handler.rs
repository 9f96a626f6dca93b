use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::check::fsck;
use super::gateway::GatewayRequest;
use super::moves::Manner;
use super::run::Ending;
use super::stats::stats;
use super::unmount::umount;
use super::volume::{Volume, failed};
use super::{
    backends, drain, events, evict, gc, heal, hooks, loss, moves, pins, policy, queue, quota,
    transfer,
};
use crate::api::{Command, ErrorCode, Failure, Handler, ProgressReport};
use crate::metadata::{EventKind, MetadataError};
use crate::replication::{BackendState, WriteResult};
use crate::types::{AccessTimes, BackendId, Cid, FileKind, Ino, Name, printable_path};
use crate::vfs::VfsError;

/// Carries out commands on an open volume, mounted or not.
pub(crate) struct Commands {
    /// Gone once the volume is being closed.
    pub volume: Mutex<Option<Arc<Volume>>>,
    /// Where it is mounted.
    pub mountpoint: Option<PathBuf>,
    /// Begins with an unmount.
    pub ending: Ending,
    /// Who follows events.
    pub followers: AtomicUsize,
    /// Who serves over HTTP.
    pub gateways: AtomicUsize,
}

type Progress<'p> = &'p mut dyn FnMut(ProgressReport);

pub(super) fn of_vfs(error: VfsError, what: &str) -> Failure {
    let code = match &error {
        VfsError::Metadata(MetadataError::NotFound) => ErrorCode::NotFound,
        VfsError::Replication(crate::replication::ReplicationError::BelowLevel { .. }) => {
            ErrorCode::Degraded
        }
        _ => ErrorCode::Failed,
    };
    Failure::new(code, format!("{what}: {error}"))
}

/// A path's names; `what` shows it.
pub(super) fn names(path: &[u8]) -> Result<(Vec<Name>, String), Failure> {
    let what = printable_path(path);
    let parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
    let names: Result<Vec<Name>, _> = parts.map(Name::new).collect();
    let names = names.map_err(|e| Failure::new(ErrorCode::Usage, format!("{what}: {e}")))?;
    Ok((names, if what.is_empty() { "/".into() } else { what }))
}

pub(super) fn resolve(volume: &Volume, path: &[u8]) -> Result<(Ino, String), Failure> {
    let (names, what) = names(path)?;
    let ino = volume.vfs.resolve(&names).map_err(|e| of_vfs(e, &what))?;
    Ok((ino, what))
}

/// The fields of `cairn status`. Costs the same whatever the number of files.
#[must_use]
pub fn status_json(volume: &Volume) -> Value {
    let stats = volume.namespace.stats();
    let progress = volume.replicator.progress();
    let [below_min, below_target, at_target, over_max] = stats.pins_by_state;
    let usage = volume.store.usage().unwrap_or_default();
    let counts = |id: &BackendId| stats.backends.get(id).copied().unwrap_or((0, 0));
    let mut backends = vec![json!({
        "id": "local", "kind": "local", "url": volume.dir.join("store").display().to_string(),
        "state": "up", "copies": counts(&BackendId::local()).0,
        "alarm_bytes": volume.config.capacity.local_alarm_bytes.0,
        "used_bytes": usage.used_bytes, "capacity_bytes": usage.capacity_bytes,
        "domain": volume.registry.domain_of(&BackendId::local()), "last_error": "",
        "role": volume.config.store.role.as_str(), "cache": evict::cache_json(volume),
    })];
    let statuses = volume.registry.statuses();
    for status in &statuses {
        let (copies, _) = counts(&status.id);
        backends.push(json!({
            "id": status.id, "kind": status.kind, "url": status.url, "state": status.state, "copies": copies,
            "used_bytes": status.used,
            "capacity_bytes": status.usage.capacity_bytes,
            "domain": status.domain, "last_error": status.last_error,
            "draining": status.draining, "read_only": status.read_only, "paused": status.paused,
            "copies_count": !status.given_up,
            "alarm_bytes": status.settings.alarm_bytes, "stop_bytes": status.settings.stop_bytes,
            "stopped": status.stopped, "cost_per_month": status.cost.to_string(),
            "spent_this_month": status.used_up.to_string(),
            "month": {
                "read_bytes": status.spent.bytes_out, "requests": status.spent.requests,
            },
            "tier": status.settings.tier, "latency_ms": status.latency.as_millis() as u64,
            "read_bytes": status.read_bytes,
            "read_mib_ms": status.mebibyte.map(|time| time.as_millis() as u64),
            "send_mib_ms": status.send_mebibyte.map(|time| time.as_millis() as u64),
            "answers_by_ms": histogram(&status.latencies), "errors": status.errors,
        }));
    }
    let backend_trouble =
        statuses.iter().any(|s| !matches!(s.state, BackendState::Up | BackendState::ReadOnly));
    let state = match () {
        () if below_min > 0 => "at_risk",
        () if below_target > 0 || progress.failed > 0 || backend_trouble => "degraded",
        () if backends[0]["cache"]["above_budget"].is_string() => "degraded",
        () => "ok",
    };
    let checkpoint = volume.checkpointer.status();
    let mut domains: Vec<_> = statuses.iter().map(|status| Some(status.domain.clone())).collect();
    if !volume.registry.is_local_cache() {
        domains.push(volume.registry.domain_of(&BackendId::local()));
    }
    domains.sort();
    domains.dedup();
    volume.registry.settle_spending();
    let ((costs, ceiling), used_up) = {
        let fleet = volume.registry.fleet().read();
        (fleet.costs(), fleet.used_up())
    };
    json!({
        "volume": volume.identity.id, "state": state, "files": stats.files,
        "directories": stats.directories, "bytes": stats.bytes,
        "policy": volume.policy.read().to_string(),
        "undefined_policies": volume.vfs.undefined_policies(),
        "places": domains.len(), "wanted_places": volume.policy.read().target,
        "pins": {
            "total": stats.pins, "at_target": at_target, "below_target": below_target,
            "below_min": below_min, "over_max": over_max, "unverified": stats.unverified,
        },
        "queue": {
            "pending": progress.pending, "failed": progress.failed,
            "paused": volume.registry.fleet().read().is_paused(),
        },
        "backends": backends,
        "checkpoint": {
            "sequence": checkpoint.sequence, "cid": checkpoint.cid,
            "age_s": checkpoint.age_s, "copies": checkpoint.copies,
            "refused": checkpoint.refused,
        },
        "alarms": volume.events.alarms().iter().map(events::alarm_json).collect::<Vec<_>>(),
        "moves": moves::moves_json(volume),
        "capacity": {
            "used_bytes": stats.bytes, "alarm_bytes": volume.config.capacity.alarm_bytes.0,
            "cost_per_month": costs.to_string(), "spent_this_month": used_up.to_string(),
            "cost_forecast": volume.registry.cost_forecast().to_string(),
            "cost_ceiling": ceiling.map(|ceiling| ceiling.to_string()),
        },
        "memory": super::memory::memory_json(volume),
    })
}

impl Handler for Commands {
    fn handle(
        &self,
        command: Command,
        client: i32,
        progress: Progress<'_>,
    ) -> Result<Value, Failure> {
        let volume = self
            .volume
            .lock()
            .clone()
            .ok_or_else(|| Failure::new(ErrorCode::Busy, "the volume is being unmounted"))?;
        match command {
            Command::Status => Ok(status_json(&volume)),
            Command::Info { path } => info(&volume, &path),
            Command::Cid { path } => {
                let (ino, what) = resolve(&volume, &path)?;
                let link = volume.vfs.link_of(ino).map_err(|e| of_vfs(e, &what))?;
                Ok(json!({ "cid": link.cid.to_string() }))
            }
            Command::Sync { path } => sync(&volume, &path, progress),
            Command::BackendAdd { url } => backends::add(&volume, &url, self.mountpoint.as_deref()),
            Command::BackendList => Ok(status_json(&volume)["backends"].take()),
            Command::BackendRemove { id, force } => backends::remove(&volume, &id, force),
            Command::BackendDrain { id, stop, wait } => {
                drain::drain(&volume, &id, (stop, wait), progress)
            }
            Command::BackendReadOnly { id, off } => heal::read_only(&volume, &id, off),
            Command::BackendRecover { id, wait } => heal::recover(&volume, &id, wait, progress),
            Command::BackendImport { id, folder, dry_run } => {
                backends::import(&volume, &id, folder.as_deref(), dry_run, progress)
            }
            Command::BackendReplace { old, url, wait, stop } => {
                let manner = Manner { wait, dry_run: false, stop };
                let (pair, at) = ((old.as_str(), url.as_deref()), self.mountpoint.as_deref());
                moves::replace(&volume, pair, at, manner, progress)
            }
            Command::BackendRebalance { wait, dry_run, stop } => {
                moves::rebalance(&volume, Manner { wait, dry_run, stop }, progress)
            }
            Command::Migrate { from, to, path, wait, dry_run, stop } => {
                let manner = Manner { wait, dry_run, stop };
                moves::migrate(&volume, (&from, &to), path.as_deref(), manner, progress)
            }
            Command::SimulateLoss { ids } => loss::simulate(&volume, &ids, progress),
            Command::Heal { backend, path, wait } => {
                heal::heal(&volume, backend.as_deref(), path.as_deref(), wait, progress)
            }
            Command::PolicyShow { name: Some(name), .. } => policy::show(&volume, &name),
            Command::PolicyDefine { name, text } => policy::define(&volume, &name, &text),
            Command::PolicyList => Ok(policy::list(&volume)),
            Command::PolicyRemove { name } => policy::remove(&volume, &name),
            Command::PolicyExplain { path } => policy::explain(&volume, &path),
            Command::PolicyShow { path, .. } => {
                let (ino, what) = resolve(&volume, path.as_deref().unwrap_or_default())?;
                let policy = volume.vfs.policy_of(ino).map_err(|e| of_vfs(e, &what))?;
                Ok(json!({ "policy": policy.to_string(), "values": policy }))
            }
            Command::PolicySet { path: Some(path), text } => {
                policy::set_path(&volume, &path, &text, progress)
            }
            Command::PolicySet { path: None, text } => policy::set_volume(&volume, &text, progress),
            Command::Pin { pin } => {
                pins::carry_out(&volume, &pin, self.mountpoint.is_some(), progress)
            }
            Command::Queue { queue } => queue::carry_out(&volume, &queue, progress),
            Command::QuotaSet { path, bytes, inodes } => quota::set(&volume, &path, bytes, inodes),
            Command::QuotaShow { path } => quota::show(&volume, &path),
            Command::QuotaList { path } => quota::list(&volume, &path),
            Command::QuotaRemove { path } => quota::remove(&volume, &path),
            Command::Export { path, fd, version, metadata } => {
                let out = transfer::client_file(client, fd, true)?;
                transfer::export(&volume, &path, out, version, metadata, progress)
            }
            Command::Import { path, fd } => {
                let input = transfer::client_file(client, fd, false)?;
                transfer::import(&volume, &path, input, progress)
            }
            Command::Checkpoint { base, now } => {
                // Nobody keeps an interval on a volume that is not mounted.
                let at_once = now || base || self.mountpoint.is_none();
                checkpoint(&volume, base, at_once, progress)
            }
            Command::Fsck { repair, deep } => {
                fsck(&volume, repair, deep, self.mountpoint.is_some(), progress)
            }
            Command::Events { query, .. } => events::page(&volume.events, &volume.log, &query),
            // A stream.
            Command::Gateway { .. } => Err(failed("a gateway is answered by a stream")),
            Command::Gc { id, run, no_grace } => gc::gc(&volume, id, (run, no_grace), progress),
            Command::TrashList { after, limit } => gc::trash_list(&volume, after, limit),
            Command::TrashRestore { cid, path } => gc::trash_restore(&volume, &cid, &path),
            Command::HooksTest => Ok(hooks::test(&volume)),
            Command::Stats => Ok(json!({ "text": stats(&volume) })),
            Command::Fetch => fetch_all(&volume, progress),
            Command::Remount { read_only, access_times } => {
                remount(&volume, self.mountpoint.is_some(), read_only, access_times)
            }
            Command::Umount { force, timeout_s } => {
                let Some(mountpoint) = &self.mountpoint else {
                    return Err(Failure::new(ErrorCode::Usage, "the volume is not mounted"));
                };
                let answer = umount(&volume, mountpoint, force, timeout_s, progress)?;
                self.ending.begin();
                Ok(answer)
            }
        }
    }

    fn stream(
        &self,
        command: &Command,
        item: &mut dyn FnMut(Option<Value>) -> bool,
    ) -> Option<Result<Value, Failure>> {
        match command {
            Command::Events { query, follow: true } => Some(self.follow(query, item)),
            Command::Gateway { listen, tokens, tls, insecure, all } => {
                let tls = tls.as_ref().map(|(cert, key)| (cert, key));
                let (tokens, insecure, all) = (tokens.as_ref(), *insecure, *all);
                let wanted = GatewayRequest { listen, tokens, tls, insecure, all };
                Some(self.gateway(&wanted, item))
            }
            _ => None,
        }
    }
}

/// What the kernel does not keep for us at a remount.
fn remount(
    volume: &Volume,
    mounted: bool,
    read_only: bool,
    access_times: AccessTimes,
) -> Result<Value, Failure> {
    if !mounted {
        return Err(Failure::new(ErrorCode::Usage, "the volume is not mounted"));
    }
    if !read_only && volume.vfs.is_read_only() {
        let text = "it was mounted read-only: unmount it and mount it again to write";
        return Err(Failure::new(ErrorCode::Usage, text));
    }
    let access_times = if read_only { AccessTimes::None } else { access_times };
    volume.vfs.set_access_times(access_times);
    Ok(Value::Null)
}

fn info(volume: &Volume, path: &[u8]) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    let info = volume.vfs.info(ino).map_err(|e| of_vfs(e, &what))?;
    let directory = info.inode.kind == FileKind::Directory;
    let copies: Vec<Value> = info
        .content
        .iter()
        .flat_map(|content| &content.copies)
        .map(|copy| {
            let at = humantime::format_rfc3339_seconds(copy.at.to_system()).to_string();
            json!({ "backend": copy.backend, "state": copy.state, "time": at, "method": copy.method })
        })
        .collect();
    Ok(json!({
        "path": what, "inode": ino, "kind": info.inode.kind, "cid": info.link.cid.to_string(),
        "size": info.inode.size,
        "blocks": info.content.as_ref().map_or(u64::from(!directory), |content| content.blocks),
        "dag_bytes": info.link.tsize,
        "pin": info.content.as_ref().map(|content| content.pin),
        "policy": info.policy.to_string(),
        "copies": copies,
    }))
}

fn sync(volume: &Volume, path: &[u8], progress: Progress<'_>) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    let reached = volume
        .vfs
        .sync(ino, &mut |done, total| {
            progress(ProgressReport { what: "files".into(), done, total: Some(total) });
        })
        .map_err(|e| of_vfs(e, &what))?;
    if matches!(reached, WriteResult::BelowQuorum | WriteResult::NoReplication) {
        let policy = volume.vfs.policy_of(ino).map_err(|e| of_vfs(e, &what))?;
        let local_counts = !volume.registry.is_local_cache();
        let wanted = policy.copies_to_wait_for(usize::from(policy.target), local_counts);
        if wanted > usize::from(local_counts) {
            // The one who asks makes an error of it.
            let text = format!(
                "{what}: the level {} is not reached yet; everything is durable locally and queued (`cairn status` shows which backend is missing)",
                policy.level.as_str()
            );
            return Ok(json!({ "path": what, "result": reached, "waits": text }));
        }
    }
    Ok(json!({ "path": what, "result": reached, "waits": null }))
}

/// Answers by how long they took: how many within so many milliseconds (and longer than
/// all before); none that is empty.
fn histogram(counts: &[u64]) -> Value {
    let last = counts.len().saturating_sub(1);
    let name = |n: usize| if n == last { "longer".to_owned() } else { (1u64 << n).to_string() };
    counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(n, count)| (name(n), *count)).collect()
}

/// What somebody did; it is in the tree when this returns.
pub(super) fn event(volume: &Volume, kind: EventKind, subject: &str, detail: &str) {
    volume.events.emit(kind, subject, detail);
    volume.events.flush();
}

/// A backend of this volume.
pub(super) fn known_backend(volume: &Volume, id: &str) -> Result<BackendId, Failure> {
    let id: BackendId = id.parse().map_err(|e: crate::types::InvalidBackendId| {
        Failure::new(ErrorCode::Usage, e.to_string())
    })?;
    let specs = volume.registry.specs();
    if !specs.iter().any(|spec| spec.id == id) {
        let ids: Vec<String> = specs.iter().map(|spec| spec.id.to_string()).collect();
        let text = format!("there is no backend `{id}`; this volume has: {}", ids.join(", "));
        return Err(Failure::new(ErrorCode::NotFound, text));
    }
    Ok(id)
}

fn fetch_all(volume: &Volume, progress: Progress<'_>) -> Result<Value, Failure> {
    if volume.registry.is_local_cache() {
        let text = "the local store is a cache, which does not keep all contents: make it a \
                    replica (`cairn mount --local-role replica`), and they are brought";
        return Err(Failure::new(ErrorCode::Usage, text));
    }
    let _hold = volume.store.hold();
    let total = volume.namespace.stats().pins;
    let (mut after, mut contents, mut blocks) = (None, 0u64, 0u64);
    loop {
        let page = volume.namespace.contents_page(after.as_ref(), 256).map_err(failed)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        let used = page.iter().filter(|(_, record)| record.refs > 0);
        let roots: Vec<Cid> = used.map(|(root, _)| *root).collect();
        // Progress is told after each part.
        for roots in roots.chunks(32) {
            blocks += volume.replicator.fetch_all(roots).map_err(failed)?;
            contents += roots.len() as u64;
            let report =
                ProgressReport { what: "contents".into(), done: contents, total: Some(total) };
            progress(report);
        }
    }
    Ok(json!({ "contents": contents, "blocks": blocks }))
}

/// Writes a checkpoint now, or waits for the interval's.
fn checkpoint(
    volume: &Volume,
    base: bool,
    at_once: bool,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    volume.vfs.commit_all().map_err(failed)?;
    let status = if at_once {
        volume.checkpointer.checkpoint(base).map_err(failed)?
    } else {
        let interval = volume.config.checkpoint.delta_interval_s.max(1);
        progress(ProgressReport {
            what: "waiting: the checkpoint of the interval; --now writes one at once".into(),
            done: 0,
            total: None,
        });
        let deadline = Duration::from_secs(interval) * 2 + Duration::from_mins(1);
        let waited = volume.checkpointer.wait_for_regular(deadline).map_err(failed)?;
        waited.ok_or_else(|| {
            let text = "the checkpoint of the interval did not come; see the log, or use --now";
            Failure::new(ErrorCode::Failed, text)
        })?
    };
    serde_json::to_value(status).map_err(failed)
}

/// Commands on a volume that this process has opened itself.
pub struct Offline {
    commands: Commands,
}

/// Carries out commands on a volume that nobody has mounted.
#[must_use]
pub fn offline(volume: Volume) -> Offline {
    Offline {
        commands: Commands {
            volume: Mutex::new(Some(Arc::new(volume))),
            mountpoint: None,
            ending: Ending::default(),
            followers: AtomicUsize::new(0),
            gateways: AtomicUsize::new(0),
        },
    }
}

impl Offline {
    /// Closes the volume.
    ///
    /// # Errors
    /// Of the last commit or checkpoint.
    pub fn close(self) -> Result<(), Failure> {
        let volume = self.commands.volume.into_inner();
        match volume.and_then(Arc::into_inner) {
            Some(volume) => volume.close(),
            None => Ok(()),
        }
    }
}

impl Handler for Offline {
    fn handle(
        &self,
        command: Command,
        client: i32,
        progress: Progress<'_>,
    ) -> Result<Value, Failure> {
        self.commands.handle(command, client, progress)
    }

    fn stream(
        &self,
        command: &Command,
        item: &mut dyn FnMut(Option<Value>) -> bool,
    ) -> Option<Result<Value, Failure>> {
        self.commands.stream(command, item)
    }
}
