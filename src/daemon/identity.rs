use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::api::{ErrorCode, Failure};
use crate::runtime::Shutdown;
use crate::types::{Timestamp, VolumeId, WriterId};

/// Tries of a lock that is held, and the pause between them.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How long one who wants the lock waits for a holder that is ending.
const ENDING_PATIENCE: Duration = Duration::from_mins(1);
/// What a holder that is ending writes after its pid.
const ENDING: &str = "ending";
/// The newest format of a volume's folder.
const FORMAT: u32 = 1;

/// `volume.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// 1.
    pub format: u32,
    /// The volume, for ever.
    pub id: VolumeId,
    /// This folder's life of it.
    pub writer: WriterId,
    /// Profile of new contents.
    pub profile: String,
    /// When the folder was made.
    pub created: Timestamp,
}

impl Identity {
    /// A new identity.
    #[must_use]
    pub fn new(id: VolumeId, profile: String, created: Timestamp) -> Self {
        Self { format: FORMAT, id, writer: WriterId::random(), profile, created }
    }

    fn path(volume: &Path) -> PathBuf {
        volume.join("volume.json")
    }

    /// Whether a folder is a volume.
    #[must_use]
    pub fn exists(volume: &Path) -> bool {
        Self::path(volume).exists()
    }

    /// Reads it.
    ///
    /// # Errors
    /// `NotFound` when the folder is no volume; `Failed` for a newer or damaged one.
    pub fn load(volume: &Path) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let path = Self::path(volume);
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Failure::new(
                ErrorCode::NotFound,
                format!(
                    "{} is not a cairn volume; `cairn init --volume DIR` makes one",
                    volume.display()
                ),
            ),
            _ => Failure::new(ErrorCode::Failed, format!("{}: {error}", path.display())),
        })?;
        let damaged = |e: serde_json::Error| {
            let text = format!(
                "{} is damaged: {e}; `cairn recover` makes the volume anew from a backend",
                path.display()
            );
            Failure::new(ErrorCode::Damaged, text)
        };
        let head: Head = serde_json::from_slice(&bytes).map_err(damaged)?;
        if head.format > FORMAT {
            let text = format!(
                "{} has format {}, newer than {FORMAT}, which this cairn knows: use a newer cairn",
                volume.display(),
                head.format
            );
            return Err(Failure::new(ErrorCode::Failed, text));
        }
        serde_json::from_slice(&bytes).map_err(damaged)
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// `Failed`.
    pub fn store(&self, volume: &Path) -> Result<(), Failure> {
        let path = Self::path(volume);
        let failed =
            |e: std::io::Error| Failure::new(ErrorCode::Failed, format!("{}: {e}", path.display()));
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Failure::new(ErrorCode::Failed, e.to_string()))?;
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)?;
        File::open(volume).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

/// The volume of verbs that name none: `$CAIRN_VOLUME`, else
/// `$XDG_DATA_HOME/cairn/default`.
#[must_use]
pub fn default_volume() -> PathBuf {
    if let Some(dir) = std::env::var_os("CAIRN_VOLUME").filter(|dir| !dir.is_empty()) {
        return dir.into();
    }
    let data = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".local/share")
    };
    data.unwrap_or_else(home).join("cairn/default")
}

/// Holds a volume for one process; ends with it. The file says which process, and
/// whether it is ending.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, or says who holds it.
    ///
    /// # Errors
    /// `Busy` with the holder's pid.
    pub fn take(volume: &Path) -> Result<Self, Failure> {
        let path = volume.join("lock");
        let failed =
            |e: std::io::Error| Failure::new(ErrorCode::Failed, format!("{}: {e}", path.display()));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        // Somebody who only looks holds it for an instant (see `is_held`).
        let pause = Shutdown::default();
        let (start, mut number, mut said) = (Instant::now(), 0, false);
        loop {
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                break;
            }
            let mut holder = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut holder)).map_err(failed)?;
            let mut words = holder.split_whitespace();
            let pid = words.next().unwrap_or("?");
            let ending = words.next() == Some(ENDING);
            if ending && !said {
                tracing::info!(volume = %volume.display(), pid, "the last mount is ending; it is waited for");
                said = true;
            }
            let patient = number < LOCK_TRIES || (ending && start.elapsed() < ENDING_PATIENCE);
            if !patient || pause.wait(LOCK_PAUSE) {
                return Err(Self::refusal(volume, pid, ending));
            }
            number += 1;
        }
        let lock = Self { file };
        lock.write(&format!("{}\n", std::process::id())).map_err(failed)?;
        Ok(lock)
    }

    fn refusal(volume: &Path, pid: &str, ending: bool) -> Failure {
        let at = volume.display();
        let text = if ending {
            format!("{at} is still being closed by process {pid}; try again when it has ended")
        } else {
            format!(
                "{at} is in use by process {pid}; unmount it first (`cairn umount --volume {at}`)"
            )
        };
        Failure::new(ErrorCode::Busy, text)
    }

    /// Who looks meanwhile finds a pid, the old or the new.
    fn write(&self, text: &str) -> std::io::Result<()> {
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
    }

    /// Says that the holder takes no more work: who wants the volume waits.
    ///
    /// # Errors
    /// Of writing the file.
    pub fn say_ending(&self) -> std::io::Result<()> {
        self.write(&format!("{} {ENDING}\n", std::process::id()))
    }

    /// Whether somebody holds the volume.
    #[must_use]
    pub fn is_held(volume: &Path) -> bool {
        File::open(volume.join("lock")).is_ok_and(|file| {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err()
        })
    }
}
