//! Finds the volume of a path and sends it commands.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::output::Output;
use crate::api::{Command, ErrorCode, Failure, Handler, connect, connect_stream};
use crate::daemon::{Lock, Volume, VolumeMode, default_volume, offline};

/// A cairn mount of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountEntry {
    pub mountpoint: PathBuf,
    pub volume: PathBuf,
}

/// Undoes the octal escapes of /proc/self/mountinfo (proc(5)).
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 4).and_then(|c| std::str::from_utf8(c).ok());
        match (bytes[at], code.and_then(|c| u8::from_str_radix(c, 8).ok())) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// All cairn mounts. Reads a list of the kernel's; asks no mount.
pub(super) fn mounts() -> Vec<MountEntry> {
    let Ok(text) = std::fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    let entry = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        // root mounts have the type `fuse`, those by fusermount3 `fuse.cairn`.
        matches!(right.next()?, "fuse" | "fuse.cairn").then_some(())?;
        let volume = unescape(right.next()?);
        let ours = volume.is_absolute() && crate::daemon::Identity::exists(&volume);
        ours.then(|| Some(MountEntry { mountpoint: unescape(left.split(' ').nth(4)?), volume }))?
    };
    text.lines().filter_map(entry).collect()
}

/// Where a command goes.
pub(super) struct Target {
    volume: PathBuf,
}

impl Target {
    /// The volume that a path lies in, and the path from its root.
    pub fn of_path(path: &Path) -> Result<(Self, Vec<u8>), Failure> {
        Self::try_of_path(path)?.ok_or_else(|| {
            let text =
                format!("{} is not in a cairn mount; `cairn mount` makes one", path.display());
            Failure::new(ErrorCode::NotFound, text)
        })
    }

    /// The same; `None` outside of every mount.
    pub fn try_of_path(path: &Path) -> Result<Option<(Self, Vec<u8>)>, Failure> {
        let mut absolute = std::path::absolute(path).map_err(super::failed)?;
        // Symlinks above the last name are followed, the last one is not: verbs
        // are about the link itself.
        if let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name())
            && let Ok(parent) = parent.canonicalize()
        {
            absolute = parent.join(name);
        }
        let mut mounts = mounts();
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.mountpoint.as_os_str().len()));
        for mount in mounts {
            if let Ok(inner) = absolute.strip_prefix(&mount.mountpoint) {
                let inner = inner.as_os_str().as_bytes().to_vec();
                return Ok(Some((Self { volume: mount.volume }, inner)));
            }
        }
        Ok(None)
    }

    /// A volume by its folder, or the default one.
    pub fn of_volume(volume: Option<PathBuf>) -> Result<Self, Failure> {
        let volume =
            std::path::absolute(volume.unwrap_or_else(default_volume)).map_err(super::failed)?;
        crate::daemon::Identity::load(&volume)?;
        Ok(Self { volume })
    }

    /// A mountpoint first, then a volume's folder.
    pub fn of_volume_or_path(
        path: Option<PathBuf>,
        volume: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        match path {
            Some(path) if volume.is_none() => Ok(Self::of_path(&path)?.0),
            _ => Self::of_volume(volume),
        }
    }

    /// The volume's folder.
    pub fn volume(&self) -> &Path {
        &self.volume
    }

    /// Sends a command to the daemon that is answered by a stream.
    pub fn follow(
        &self,
        command: &Command,
        item: &mut dyn FnMut(Value) -> bool,
    ) -> Result<Value, Failure> {
        connect_stream(&self.volume, command, item).unwrap_or_else(|| {
            let text = format!(
                "{} is not mounted: `cairn mount` it, or leave --follow out",
                self.volume.display()
            );
            Err(Failure::new(ErrorCode::Usage, text))
        })
    }

    /// A stream of the daemon's, or, when none runs, of this process, until it is told to
    /// end.
    pub fn stream(
        &self,
        command: &Command,
        item: &mut dyn FnMut(Value) -> bool,
    ) -> Result<Value, Failure> {
        if let Some(answer) = connect_stream(&self.volume, command, item) {
            return answer;
        }
        let told = told_to_end()?;
        let commands = offline(self.open()?);
        let answer = commands.stream(command, &mut |said| {
            said.is_none_or(&mut *item) && !told.load(Ordering::Acquire)
        });
        commands.close()?;
        answer.unwrap_or(Ok(Value::Null))
    }

    /// The volume, opened by this process.
    fn open(&self) -> Result<Volume, Failure> {
        if Lock::is_held(&self.volume) {
            // Its holder has no socket yet: the lock says who. Or has none any more:
            // it is free in a moment.
            drop(Lock::take(&self.volume)?);
        }
        Volume::open(&self.volume, &VolumeMode::default())
    }

    /// Sends a command to the daemon; carries it out here when none runs.
    pub fn send(&self, command: &Command, output: &Output) -> Result<Value, Failure> {
        let mut bar = output.progress();
        if let Some(answer) = connect(&self.volume, command, &mut |report| bar.show(&report)) {
            bar.clear();
            return answer;
        }
        let commands = offline(self.open()?);
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let answer = commands.handle(command.clone(), pid, &mut |report| bar.show(&report));
        bar.clear();
        commands.close()?;
        answer
    }
}

/// Becomes true with SIGINT or SIGTERM, which end nothing by themselves any more.
fn told_to_end() -> Result<Arc<AtomicBool>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: std::io::Error| Failure::new(ErrorCode::Failed, error.to_string());
    let told = Arc::<AtomicBool>::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        (interrupt, signal(SignalKind::terminate()).map_err(failed)?)
    };
    let tell = Arc::clone(&told);
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        tell.store(true, Ordering::Release);
    };
    std::thread::Builder::new().name("cairn-signals".into()).spawn(wait).map_err(failed)?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
    }
}
