//! `cairn gateway`: what a volume has, over HTTP, while somebody waits for it.

use std::any::Any;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use quick_cache::sync::Cache;
use rustix::io::Errno;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::handler::Commands;
use super::volume::Volume;
use crate::api::{ErrorCode, Failure};
use crate::backends::{BackendError, ErrorKind};
use crate::metadata::InodeRecord;
use crate::node::{Found, Gateway, Listed, Opened, Serve, Source, Tree, serve_gateway};
use crate::replication::{BackendState, ReplicationError};
use crate::types::{Cid, FileKind, Ino, Name};
use crate::vfs::{HIDDEN, HandleId, OpenOptions, VfsError};

/// Gateways of a volume at a time.
const GATEWAYS: usize = 4;
/// Blocks that are brought from backends at a time.
const BRINGING: usize = 16;
/// What no place has is not asked for again for so long.
const UNKNOWN_FOR: Duration = Duration::from_mins(1);
/// So many of them.
const UNKNOWN: usize = 10_000;
/// Links of one path.
const LINKS: usize = 40;
/// Of a mode: others may read; they may enter.
const READ: u32 = 0o4;
const ENTER: u32 = 0o1;

fn ending() -> BackendError {
    BackendError::new(ErrorKind::Unavailable, "the volume is being unmounted")
}

fn upgrade(volume: &Weak<Volume>) -> Result<Arc<Volume>, BackendError> {
    volume.upgrade().ok_or_else(ending)
}

/// Blocks of a volume, from wherever they are good.
struct Blocks {
    volume: Weak<Volume>,
    bringing: Arc<Semaphore>,
    /// What was nowhere, and when: whoever makes CIDs up costs no more than that.
    unknown: Arc<Cache<Cid, Instant>>,
}

fn nowhere(id: &Cid) -> BackendError {
    BackendError::new(ErrorKind::NotFound, format!("the volume has no block {id}"))
}

fn bring(volume: &Volume, id: &Cid) -> Result<Bytes, BackendError> {
    volume.replicator.fetch(id).map_err(|error| match error {
        ReplicationError::NoGoodCopy { .. } => {
            let is_up = |state| matches!(state, BackendState::Up | BackendState::ReadOnly);
            if volume.registry.statuses().iter().all(|status| is_up(status.state)) {
                return nowhere(id);
            }
            let message = format!("block {id} is not here, and not every backend answers");
            BackendError::new(ErrorKind::Unavailable, message)
        }
        other => BackendError::new(ErrorKind::Other, other.to_string()),
    })
}

#[async_trait]
impl Source for Blocks {
    async fn whole(&self, id: &Cid) -> Result<Bytes, BackendError> {
        if self.unknown.get(id).is_some_and(|since| since.elapsed() < UNKNOWN_FOR) {
            return Err(nowhere(id));
        }
        let (weak, id, unknown) = (Weak::clone(&self.volume), *id, Arc::clone(&self.unknown));
        let turns = Arc::clone(&self.bringing);
        let turn = turns.acquire_owned().await.map_err(|_| ending())?;
        let read = move || {
            let _turn = turn;
            let answer = bring(&*upgrade(&weak)?, &id);
            if answer.as_ref().is_err_and(|error| error.kind == ErrorKind::NotFound) {
                unknown.insert(id, Instant::now());
            }
            answer
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|cut| Err(BackendError::new(ErrorKind::Other, cut.to_string())))
    }

    fn hold(&self) -> Option<Box<dyn Any + Send>> {
        let volume = self.volume.upgrade()?;
        Some(Box::new(volume.store.hold()))
    }
}

/// The tree as it is now.
struct Files {
    volume: Weak<Volume>,
    /// Also what others may not read.
    all: bool,
}

fn of_vfs(error: VfsError) -> BackendError {
    let kind = match Errno::from_raw_os_error(error.errno().0) {
        Errno::NOENT | Errno::NOTDIR | Errno::STALE => ErrorKind::NotFound,
        Errno::ACCESS | Errno::PERM => ErrorKind::Denied,
        _ => ErrorKind::Other,
    };
    let message = match kind {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    };
    BackendError::new(kind, message)
}

impl Files {
    fn may(&self, record: &InodeRecord, what: u32) -> Result<(), BackendError> {
        if self.all || record.mode & what == what {
            return Ok(());
        }
        let message = "others may not read it: chmod o+rX, or `cairn gateway --all`";
        Err(BackendError::new(ErrorKind::Denied, message))
    }

    /// Follows a path and the links in it.
    fn walk(&self, volume: &Volume, path: &[u8]) -> Result<(Ino, InodeRecord), BackendError> {
        let none = || BackendError::new(ErrorKind::NotFound, "there is no such file");
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect()
        };
        let (mut at, mut record) = (Ino::ROOT, volume.vfs.attributes(Ino::ROOT).map_err(of_vfs)?);
        let (mut todo, mut above, mut links) = (parts(path), Vec::new(), 0);
        while let Some(part) = todo.pop() {
            if part.is_empty() || part == b"." {
                continue;
            }
            if record.kind != FileKind::Directory {
                return Err(none());
            }
            if part == b".." {
                // Nothing of this machine is above.
                at = above.pop().ok_or_else(none)?;
                record = volume.vfs.attributes(at).map_err(of_vfs)?;
                continue;
            }
            self.may(&record, ENTER)?;
            if part.starts_with(HIDDEN.as_bytes()) {
                return Err(none());
            }
            let name = Name::new(part).map_err(|_| none())?;
            let found = volume.vfs.namespace().lookup(at, &name);
            let found = found.map_err(|error| of_vfs(error.into()))?.ino;
            let next = volume.vfs.attributes(found).map_err(of_vfs)?;
            if next.kind == FileKind::Symlink {
                links += 1;
                if links > LINKS || next.target.starts_with(b"/") {
                    let message = "the link leads out of the volume, or in a circle";
                    return Err(BackendError::new(ErrorKind::NotFound, message));
                }
                todo.extend(parts(&next.target));
                continue;
            }
            above.push(at);
            (at, record) = (found, next);
        }
        Ok((at, record))
    }
}

fn found(ino: Ino, record: &InodeRecord) -> Option<Found> {
    let is_directory = match record.kind {
        FileKind::Directory => true,
        FileKind::File => false,
        _ => return None,
    };
    let modified = record.mtime.to_system();
    Some(Found { inode: ino.0, is_directory, size: record.size, modified })
}

impl Tree for Files {
    fn find(&self, path: &[u8]) -> Result<Found, BackendError> {
        let volume = upgrade(&self.volume)?;
        let (ino, record) = self.walk(&volume, path)?;
        self.may(&record, READ)?;
        found(ino, &record).ok_or_else(|| {
            BackendError::new(ErrorKind::NotFound, "it is neither a file nor a directory")
        })
    }

    fn list(&self, path: &[u8], cookie: u64, limit: usize) -> Result<Vec<Listed>, BackendError> {
        let volume = upgrade(&self.volume)?;
        let (ino, record) = self.walk(&volume, path)?;
        self.may(&record, READ)?;
        let entries = volume.vfs.read_directory(ino, cookie, limit).map_err(of_vfs)?;
        let listed = entries.into_iter().map(|entry| {
            let is_link = entry.name == b"." || entry.name == b"..";
            let found = if is_link || entry.name.starts_with(HIDDEN.as_bytes()) {
                None
            } else if entry.kind == FileKind::Symlink {
                let at = [path, b"/", &entry.name[..]].concat();
                self.walk(&volume, &at).ok().and_then(|(ino, record)| found(ino, &record))
            } else {
                // One that is gone meanwhile is no entry.
                volume.vfs.attributes(entry.ino).ok().and_then(|record| found(entry.ino, &record))
            };
            Listed { name: entry.name, found, cookie: entry.cookie }
        });
        Ok(listed.collect())
    }

    fn open(&self, found: &Found) -> Result<Arc<dyn Opened>, BackendError> {
        let volume = upgrade(&self.volume)?;
        let options = OpenOptions::default();
        let id = volume.vfs.open_file(Ino(found.inode), options).map_err(of_vfs)?;
        Ok(Arc::new(OpenFile { volume: Weak::clone(&self.volume), id }))
    }

    fn cid(&self, found: &Found) -> Result<Cid, BackendError> {
        let volume = upgrade(&self.volume)?;
        Ok(volume.vfs.link_of(Ino(found.inode)).map_err(of_vfs)?.cid)
    }
}

struct OpenFile {
    volume: Weak<Volume>,
    id: HandleId,
}

impl Opened for OpenFile {
    fn read(&self, offset: u64, most: usize) -> Result<Bytes, BackendError> {
        let volume = upgrade(&self.volume)?;
        let mut data = vec![0; most];
        let len = volume.vfs.read(self.id, offset, &mut data).map_err(of_vfs)?;
        data.truncate(len);
        Ok(data.into())
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(volume) = self.volume.upgrade()
            && let Err(error) = volume.vfs.release(self.id)
        {
            tracing::warn!(%error, "a file that was read over HTTP does not close");
        }
    }
}

/// How a gateway is asked for.
pub(super) struct GatewayRequest<'r> {
    pub listen: &'r str,
    pub tokens: Option<&'r PathBuf>,
    pub tls: Option<(&'r PathBuf, &'r PathBuf)>,
    pub insecure: bool,
    pub all: bool,
}

impl Commands {
    /// Serves until nobody listens to `item` or the volume is unmounted. Holds the volume
    /// only while something of it is read.
    pub(super) fn gateway(
        &self,
        wanted: &GatewayRequest<'_>,
        item: &mut dyn FnMut(Option<Value>) -> bool,
    ) -> Result<Value, Failure> {
        let listen: SocketAddr = wanted.listen.parse().map_err(|error| {
            let text = format!("--listen {}: {error}: write ADDRESS:PORT", wanted.listen);
            Failure::new(ErrorCode::Usage, text)
        })?;
        let before = self.gateways.fetch_add(1, Ordering::AcqRel);
        let _one = super::events::Follower(&self.gateways);
        if before >= GATEWAYS {
            let text = format!("{GATEWAYS} gateways serve already; end one of them");
            return Err(Failure::new(ErrorCode::Busy, text));
        }
        let volume = self.volume.lock().as_ref().map(Arc::downgrade);
        let Some(volume) = volume else {
            return Err(Failure::new(ErrorCode::Busy, "the volume is being unmounted"));
        };
        let source = Arc::new(Blocks {
            volume: Weak::clone(&volume),
            bringing: Arc::new(Semaphore::new(BRINGING)),
            unknown: Arc::new(Cache::new(UNKNOWN)),
        });
        let gateway = Gateway { source, tree: Some(Arc::new(Files { volume, all: wanted.all })) };
        let options = Serve {
            listen,
            tls: wanted.tls.map(|(cert, key)| (cert.clone(), key.clone())),
            tokens: wanted.tokens.cloned(),
            insecure: wanted.insecure,
        };
        let scheme = if wanted.tls.is_some() { "https" } else { "http" };
        let item = RefCell::new(item);
        let served = serve_gateway(
            gateway,
            &options,
            |address| {
                let url = format!("{scheme}://{address}");
                let said = json!({ "url": url, "files": format!("{url}/files/"), "blocks": format!("{url}/ipfs/") });
                item.borrow_mut()(Some(said));
            },
            || self.volume.lock().is_some() && item.borrow_mut()(None),
        );
        served.map_err(|error| {
            let code = match error.kind {
                ErrorKind::Invalid | ErrorKind::Unsupported => ErrorCode::Usage,
                _ => ErrorCode::Failed,
            };
            Failure::new(code, error.message)
        })?;
        let ended = self.volume.lock().is_none().then_some("the volume was unmounted");
        Ok(json!({ "ended": ended }))
    }
}
