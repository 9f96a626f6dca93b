use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use uuid::Uuid;

use super::failure::{Failure, explain};
use super::link::{Link, Links, Temporary};
use crate::backends::counted::Counter;
use crate::backends::marker::{MARKER, MARKER_MAX, Marker};
use crate::backends::{BackendError, ErrorKind};
use crate::types::{Timestamp, printable};

/// What stands in a place; all that an unfinished creation may have left.
const OURS: [&str; 4] = ["blocks", "names", "tmp", "lost+found"];
/// Where a directory's packs are; they are not read from here.
const PACKS: &str = "packs";
/// Seconds: what is older in `tmp` was left by a crash.
const STALE: i64 = 24 * 3600;
/// A disk with less room than this and what is to be written says `Failure` for that.
const ROOM: u64 = 1 << 20;

/// The folder that was opened.
pub(super) struct Place {
    pub links: Links,
    /// For people.
    pub at: String,
    /// Where it is, as the server is told.
    pub root: String,
    pub id: Uuid,
    pub counter: Counter,
    shards: Mutex<HashMap<String, Shard>>,
}

/// Whether a folder's entries are on the medium, as in a directory: what is only visible
/// may be gone after a power cut.
#[derive(Default)]
struct Shard {
    renames: u64,
    renaming: u64,
    synced: Option<u64>,
    /// A flush failed: what was there then may never come to the medium, and a second
    /// flush does not tell.
    is_suspect: bool,
}

/// The id of the place; made where there is nothing, if `create`.
pub(super) async fn settle(
    link: &Arc<Link>,
    (at, root): (&str, &str),
    create: bool,
    writable: bool,
) -> Result<Uuid, BackendError> {
    if writable && !(link.can.fsync && link.can.posix_rename) {
        let message = format!(
            "{at}: its server cannot flush a file, or not replace one (fsync@openssh.com, \
             posix-rename@openssh.com), so a power cut may take what it acknowledged; OpenSSH's \
             server can. With read_only=1 what is there is read"
        );
        return Err(BackendError::new(ErrorKind::Unsupported, message));
    }
    let fail = |action: &'static str| move |failure| explain(at, action, failure);
    let found = match marker(link, at, root).await? {
        Some(id) => id,
        None if create && writable => initialise(link, at, root).await?,
        None => {
            let message = format!(
                "{at} has no {MARKER}: if its disk is not mounted there, mount it; \
                 `cairn backend add` makes a new backend there"
            );
            return Err(BackendError::new(ErrorKind::Unavailable, message));
        }
    };
    if link.look(&format!("{root}/{PACKS}")).await.map_err(fail("look into"))?.is_some() {
        let message = format!(
            "{at} has archives of many blocks (`{PACKS}`), which are not read over SFTP: name the \
             directory itself there, or the store that it was copied from"
        );
        return Err(BackendError::new(ErrorKind::Unsupported, message));
    }
    if writable {
        // A tool that copied the place may have left out empty folders.
        for folder in &OURS[..3] {
            let path = format!("{root}/{folder}");
            link.make_dir(&path).await.map_err(fail("make the folders of"))?;
        }
        link.sync_dir(root).await.map_err(fail("sync"))?;
        remove_stale(link, root).await.map_err(fail("clear `tmp` of"))?;
    }
    Ok(found)
}

/// The id in the marker; `None` when there is none.
async fn marker(link: &Arc<Link>, at: &str, root: &str) -> Result<Option<Uuid>, BackendError> {
    match link.read(&format!("{root}/{MARKER}"), None, MARKER_MAX as u64).await {
        Ok(Some((bytes, _))) => Marker::decode(&bytes, at).map(|marker| Some(marker.id)),
        Ok(None) => Ok(None),
        Err(failure) => Err(explain(at, "read the marker of", failure)),
    }
}

/// Makes the folder and what leads to it, durably.
async fn make_path(link: &Arc<Link>, path: &str) -> Result<(), Failure> {
    let mut missing = Vec::new();
    let mut at = path;
    while !at.is_empty() && link.look(at).await?.is_none() {
        missing.push(at);
        at = at.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    for path in missing.into_iter().rev() {
        link.make_dir(path).await?;
        let parent = match path.rsplit_once('/') {
            Some(("", _)) => "/",
            Some((parent, _)) => parent,
            None => ".",
        };
        link.sync_dir(parent).await?;
    }
    Ok(())
}

/// Makes a place in an empty folder, or in one whose creation was cut short; the marker is
/// the last step.
async fn initialise(link: &Arc<Link>, at: &str, root: &str) -> Result<Uuid, BackendError> {
    let fail = |failure| explain(at, "make a backend in", failure);
    make_path(link, root).await.map_err(fail)?;
    let there = link.entries(root).await.map_err(fail)?.unwrap_or_default();
    if let Some((name, _)) = there.iter().find(|(name, _)| !OURS.contains(&name.as_str())) {
        let message = format!(
            "{at} is not a backend and not empty (it has `{}`): name an empty or a new folder",
            printable(name)
        );
        return Err(BackendError::new(ErrorKind::Invalid, message));
    }
    let tmp = format!("{root}/tmp");
    link.make_dir(&tmp).await.map_err(fail)?;
    let file = link.write(&tmp, &Marker::new().encode()?).await.map_err(fail)?;
    let target = format!("{root}/{MARKER}");
    // Two that create at once must agree on one id: the second link fails, and its maker
    // reads the first one's marker. Without links the last one wins.
    if link.can.hard_link {
        link.link(file.path(), &target).await.map_err(fail)?;
    } else {
        file.move_to(&target).await.map_err(|(_, failure)| fail(failure))?;
    }
    link.sync_dir(root).await.map_err(fail)?;
    marker(link, at, root).await?.ok_or_else(|| {
        let message = format!("{at} does not show the {MARKER} that was written there");
        BackendError::new(ErrorKind::Unavailable, message)
    })
}

/// Removes files that a crash left in `tmp`. Nobody sees who uses one: it has a day.
async fn remove_stale(link: &Arc<Link>, root: &str) -> Result<(), Failure> {
    let tmp = format!("{root}/tmp");
    let now = Timestamp::from_system(SystemTime::now()).seconds;
    for (name, found) in link.entries(&tmp).await?.unwrap_or_default() {
        let is_old = found.mtime.is_some_and(|time| i64::from(time) + STALE < now);
        if is_old && found.file_type().is_file() {
            tracing::info!(name = printable(&name), "removed a file that a crash left");
            link.remove(&format!("{tmp}/{name}")).await?;
        }
    }
    Ok(())
}

impl Place {
    pub fn new(links: Links, (at, root): (String, String), id: Uuid, counter: Counter) -> Self {
        Self { links, at, root, id, counter, shards: Mutex::default() }
    }

    pub fn path(&self, inner: &str) -> String {
        format!("{}/{inner}", self.root)
    }

    pub fn fail(&self, action: &str, failure: Failure) -> BackendError {
        explain(&self.at, action, failure)
    }

    /// Fails unless the place that was opened is still there: an empty mountpoint says
    /// nothing about what is absent.
    pub async fn check(&self) -> Result<(), BackendError> {
        let path = self.path(MARKER);
        let read = |link: Arc<Link>| {
            let path = &path;
            async move { link.read(path, None, MARKER_MAX as u64).await }
        };
        let found = self.links.on(read).await;
        let found = found.map_err(|failure| self.fail("read the marker of", failure))?;
        let id = found.map(|(bytes, _)| Marker::decode(&bytes, &self.at)).transpose()?;
        let message = match id {
            Some(marker) if marker.id == self.id => return Ok(()),
            Some(_) => format!("{} is not the place that was opened: was it made anew?", self.at),
            None => format!("{} has lost its {MARKER}: is its disk mounted there?", self.at),
        };
        Err(BackendError::new(ErrorKind::Unavailable, message))
    }

    /// What a write failed of, where the server only says that it did.
    pub async fn explain_write(&self, action: &str, failure: Failure, len: u64) -> BackendError {
        let error = |kind, what: &str| {
            BackendError::new(kind, format!("cannot {action} {}: {what}", self.at))
        };
        if failure.is_mute() {
            let ask = |link: Arc<Link>| async move {
                if link.can.statvfs { link.disk(&self.root).await.map(Some) } else { Ok(None) }
            };
            match self.links.on(ask).await {
                Ok(Some(disk)) if disk.is_read_only => {
                    return error(ErrorKind::ReadOnly, "its filesystem is mounted read-only there");
                }
                Ok(Some(disk)) if disk.available < len.saturating_add(ROOM) => {
                    let what = "its disk is full: free space there, or add a backend";
                    return error(ErrorKind::Full, what);
                }
                Ok(_) => {}
                Err(failure) => tracing::debug!(%failure, "the room there cannot be asked for"),
            }
        }
        if failure.is_missing()
            && let Err(error) = self.check().await
        {
            return error;
        }
        self.fail(action, failure)
    }

    /// Gives a file its name in a folder below the place, which is made when it is not
    /// there; durable when the folder was synced.
    pub async fn show(
        &self,
        link: &Arc<Link>,
        file: Temporary,
        folder: &str,
        leaf: &str,
    ) -> Result<(), Failure> {
        let path = self.path(&format!("{folder}/{leaf}"));
        self.shards.lock().entry(folder.to_owned()).or_default().renaming += 1;
        let moved = match file.move_to(&path).await {
            Err((file, failure)) if failure.is_missing() => {
                match make_path(link, &self.path(folder)).await {
                    Ok(()) => file.move_to(&path).await.map_err(|(_, failure)| failure),
                    Err(failure) => Err(failure),
                }
            }
            other => other.map_err(|(_, failure)| failure),
        };
        let mut shards = self.shards.lock();
        let shard = shards.entry(folder.to_owned()).or_default();
        shard.renaming -= 1;
        shard.renames += 1;
        moved
    }

    /// Brings a folder's entries to the medium, unless they are there.
    pub async fn sync(&self, link: &Arc<Link>, folder: &str) -> Result<(), Failure> {
        let renames = {
            let mut shards = self.shards.lock();
            let shard = shards.entry(folder.to_owned()).or_default();
            if shard.synced == Some(shard.renames) && shard.renaming == 0 {
                return Ok(());
            }
            shard.renames
        };
        let synced = link.sync_dir(&self.path(folder)).await;
        let mut shards = self.shards.lock();
        let shard = shards.entry(folder.to_owned()).or_default();
        match &synced {
            Ok(()) => shard.synced = shard.synced.max(Some(renames)),
            Err(Failure::Status(..)) => shard.is_suspect = true,
            // Nobody knows whether it was done; it is done again.
            Err(_) => {}
        }
        synced
    }

    /// Whether what is in a folder may be lost though it is seen.
    pub fn is_suspect(&self, folder: &str) -> bool {
        self.shards.lock().get(folder).is_some_and(|shard| shard.is_suspect)
    }
}
