//! Backends come and go.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::handler::{event, known_backend};
use super::volume::{self, Volume, failed, parse_backends};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::archive::Shelf;
use crate::backends::wrap;
use crate::config::Config;
use crate::metadata::{BackendRecord, CopyRecord, EventKind, Namespace};
use crate::replication::loss::Harm;
use crate::replication::machine::Standing;
use crate::replication::{BlockSource, Events, Registry, block_of_folder};
use crate::runtime::failpoint;
use crate::types::{BackendId, Cid};

/// Contents that are named when they lose their last copy.
const NAMED: usize = 4096;

/// What is needed to let a backend go; holds the volume open no longer than itself.
pub(super) struct Parts {
    dir: PathBuf,
    pub namespace: Arc<Namespace>,
    pub registry: Arc<Registry>,
    pub events: Events,
}

impl Parts {
    pub fn of(volume: &Volume) -> Self {
        Self {
            dir: volume.dir.clone(),
            namespace: Arc::clone(&volume.namespace),
            registry: Arc::clone(&volume.registry),
            events: volume.events.clone(),
        }
    }

    /// The volume has no such backend any more. A crash may leave rows that name it:
    /// they count for nothing, and are gone before one of this name comes (`add`).
    pub fn forget(&self, id: &BackendId) -> Result<(), Failure> {
        let mut specs = self.registry.specs();
        specs.retain(|spec| spec.id != *id);
        Config::set_backends(&self.dir, &specs).map_err(failed)?;
        self.registry.remove(id);
        failpoint::reach("daemon.remove.configured");
        clear(&self.namespace, id)?;
        self.events.emit(EventKind::BackendRemoved, id.as_str(), "");
        self.events.flush();
        Ok(())
    }
}

/// Nothing is known of a backend of this name: no copies there, no state.
fn clear(namespace: &Namespace, id: &BackendId) -> Result<(), Failure> {
    namespace.forget_backend(id).map_err(failed)?;
    namespace.set_backend_record(id, None).map_err(failed)?;
    namespace.engine().persist().map_err(failed)
}

pub(super) fn add(volume: &Volume, url: &str, mountpoint: Option<&Path>) -> Result<Value, Failure> {
    let known = volume.registry.specs();
    let specs = parse_backends(&[url.to_owned()], &known)?;
    let Some(spec) = specs.get(known.len()).cloned() else {
        return Err(Failure::new(
            ErrorCode::Usage,
            format!("{url} is a backend of this volume already"),
        ));
    };
    let opened = volume::reach(&spec, &volume.dir, mountpoint, true)?.map_err(failed)?;
    let deadline = Duration::from_secs(volume.config.replication.call_deadline_s);
    // Of another that had this name: a removal that a crash cut off, or work that ended late.
    clear(&volume.namespace, &spec.id)?;
    Config::set_backends(&volume.dir, &specs).map_err(failed)?;
    let opened = wrap::standard(opened, deadline, &spec.settings());
    volume.registry.add(spec.clone(), BackendRecord::default(), Ok(opened));
    volume.replicator.look_at_space();
    volume.checkpointer.serve_backends();
    event(volume, EventKind::BackendAdded, spec.id.as_str(), &spec.url);
    let contents = volume.replicator.replan().map_err(failed)?;
    let twin = shares_domain(volume, &spec.id);
    Ok(
        json!({ "id": spec.id, "url": spec.url, "contents_considered": contents, "same_place_as": twin }),
    )
}

/// The backend of this URL; added when the volume does not have it.
pub(super) fn add_or_known(
    volume: &Volume,
    url: &str,
    mountpoint: Option<&Path>,
) -> Result<BackendId, Failure> {
    let wanted = parse_backends(&[url.to_owned()], &[])?;
    let known = volume.registry.specs();
    let same = known.iter().find(|spec| wanted.iter().any(|one| one.url == spec.url));
    if let Some(spec) = same {
        return Ok(spec.id.clone());
    }
    let added = add(volume, url, mountpoint)?;
    serde_json::from_value(added["id"].clone()).map_err(failed)
}

/// Another place in the same failure domain: copies on both count as one.
fn shares_domain(volume: &Volume, id: &BackendId) -> Option<BackendId> {
    let domain = volume.registry.domain_of(id)?;
    let mut others: Vec<BackendId> =
        volume.registry.specs().into_iter().map(|spec| spec.id).collect();
    if !volume.registry.is_local_cache() {
        others.push(BackendId::local());
    }
    others
        .into_iter()
        .find(|other| other != id && volume.registry.domain_of(other).as_ref() == Some(&domain))
}

pub(super) fn remove(volume: &Volume, id: &str, force: bool) -> Result<Value, Failure> {
    let id = known_backend(volume, id)?;
    if volume.replicator.machine().is_moving(&id) {
        let text = format!(
            "copies are being moved from or to `{id}` (`cairn status`): wait for the end, or end it with --stop"
        );
        return Err(Failure::new(ErrorCode::Busy, text));
    }
    if volume.registry.is_local_cache() && volume.registry.specs().len() == 1 && !force {
        let text = format!(
            "the local store is a cache, and `{id}` is the only backend: nothing would keep what is written. Add another one first, or make the local store a replica (`cairn mount --local-role replica`)"
        );
        return Err(Failure::new(ErrorCode::Busy, text));
    }
    // Contents of which no proven copy can be read elsewhere.
    let places = volume.replicator.machine().places();
    let proven = |copy: &CopyRecord| match places.standing(copy) {
        Some((number, Standing::Good)) => copy.is_proven() && places.all[number].readable,
        _ => false,
    };
    let (mut after, mut last_copies, mut dying) = (None, 0u64, HashMap::new());
    loop {
        let page = volume.namespace.contents_page(after.as_ref(), 1024).map_err(failed)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (root, record) in page.iter().filter(|(_, record)| record.refs > 0) {
            let holds = record.good_copies().any(|copy| copy.backend == id);
            if holds && !record.copies.iter().any(|copy| copy.backend != id && proven(copy)) {
                last_copies += 1;
                if dying.len() < NAMED {
                    dying.insert(*root, Harm::Lost);
                }
            }
        }
    }
    let (paths, _) = super::loss::paths(volume, &dying)?;
    let paths: Vec<String> = paths.into_iter().map(|(_, path)| path).collect();
    if last_copies > 0 && !force {
        let more = if last_copies > paths.len() as u64 { ", ..." } else { "" };
        let named = match paths.as_slice() {
            [] => String::new(),
            paths => format!(" ({}{more})", paths.join(", ")),
        };
        let text = format!(
            "backend `{id}` holds the last verified copy of {last_copies} contents that can be read now{named}; wait until others have them (`cairn sync`, `cairn backend drain`), or use --force, which gives them up",
        );
        return Err(Failure::new(ErrorCode::Busy, text));
    }
    Parts::of(volume).forget(&id)?;
    volume.replicator.replan().map_err(failed)?;
    let cids: Vec<String> = dying.keys().map(ToString::to_string).collect();
    Ok(json!({
        "id": id, "last_copies_given_up": last_copies, "given_up_paths": paths,
        "given_up_cids": cids,
    }))
}

/// Adopts what lies at a backend already.
pub(super) fn import(
    volume: &Volume,
    id: &str,
    folder: Option<&[u8]>,
    dry_run: bool,
    progress: &mut dyn FnMut(ProgressReport),
) -> Result<Value, Failure> {
    let id = known_backend(volume, id)?;
    let folder = folder.map(|bytes| PathBuf::from(OsStr::from_bytes(bytes)));
    let shelf = folder.as_deref().map(|folder| {
        let mut read = |blocks| {
            let what = format!("blocks found in the archives of {}", folder.display());
            progress(ProgressReport { what, done: blocks, total: None });
        };
        Shelf::open(folder, &mut read).map_err(|error| {
            let text = format!("{}: {error}", folder.display());
            Failure::new(ErrorCode::NotFound, text)
        })
    });
    let shelf = shelf.transpose()?.unwrap_or_default();
    let source = folder.map(|folder| {
        let shelf = &shelf;
        move |cid: &Cid| match block_of_folder(&folder, cid)? {
            Some(data) => Ok(Some(data)),
            None => shelf.block(cid),
        }
    });
    let source = source.as_ref().map(|source| source as &BlockSource<'_>);
    let total = volume.namespace.stats().pins;
    let found = volume.replicator.adopt(&id, source, dry_run, &mut |so_far| {
        let what = format!("contents looked for at {id}");
        progress(ProgressReport { what, done: so_far.looked, total: Some(total) });
    });
    let found = found.map_err(|error| {
        Failure::new(
            ErrorCode::Failed,
            format!("{error}; what was adopted before that stays, run it again"),
        )
    })?;
    if found.adopted > 0 && !dry_run {
        let detail = format!("{} contents, {} bytes adopted", found.adopted, found.bytes);
        event(volume, EventKind::CopyPlaced, id.as_str(), &detail);
    }
    Ok(json!({
        "id": id, "dry_run": dry_run, "looked": found.looked, "known": found.known,
        "adopted": found.adopted, "adopted_bytes": found.bytes,
        "incomplete": found.incomplete, "archives": shelf.archives(),
        "archives_damaged": shelf.damaged(),
    }))
}
