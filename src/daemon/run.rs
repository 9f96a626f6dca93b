use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::collect::Collector;
use super::handler::Commands;
use super::hooks::Hooks;
use super::moves::Mover;
use super::volume::{Volume, VolumeMode, failed};
use super::watch::Watch;
use super::{evict, gc};
use crate::api::{self, Failure};
use crate::fuse::{self, MountOptions};
use crate::metadata::EventKind;
use crate::runtime::{failpoint, raise_descriptor_limit};

/// How long a daemon that was told to stop waits for its queue; the rest goes
/// on at the next mount.
const STOP_DRAIN: Duration = Duration::from_secs(5);
/// How long a mount that was told to end waits for programs that have files
/// open there; then their files end with ENOTCONN. Well below the 90 s that
/// systemd gives a service.
const STOP_BUSY: Duration = Duration::from_secs(30);

/// Since when a mount has been told to end.
#[derive(Clone, Default)]
pub(super) struct Ending {
    since: Arc<Mutex<Option<Instant>>>,
}

impl Ending {
    pub fn begin(&self) {
        self.since.lock().get_or_insert_with(Instant::now);
    }

    fn is_over(&self) -> bool {
        self.since.lock().is_some_and(|since| since.elapsed() >= STOP_BUSY)
    }
}

/// What a mount needs.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The volume's folder.
    pub volume: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// How the volume is opened.
    pub mode: VolumeMode,
    /// How the kernel mounts.
    pub options: MountOptions,
    /// Told when the mount answers: a path that is written to.
    pub ready: Option<PathBuf>,
}

/// Mounts a volume and serves it until it is unmounted.
///
/// # Errors
/// Of opening, mounting and closing.
pub fn run_mount(request: &MountRequest) -> Result<(), Failure> {
    raise_descriptor_limit();
    let volume = Arc::new(Volume::open(&request.volume, &request.mode)?);
    let mut options = request.options.clone();
    options.source = request.volume.display().to_string();
    options.read_only = request.mode.read_only;
    if options.threads == 0 {
        options.threads = volume.config.mount.threads as usize;
    }
    let session = fuse::mount(&volume.vfs, &request.mountpoint, &options).map_err(failed)?;
    tracing::info!(volume = %volume.identity.id, mountpoint = %request.mountpoint.display(), "mounted");
    let ending = Ending::default();
    let commands = Arc::new(Commands {
        volume: Mutex::new(Some(Arc::clone(&volume))),
        mountpoint: Some(request.mountpoint.clone()),
        ending: ending.clone(),
        followers: AtomicUsize::new(0),
        gateways: AtomicUsize::new(0),
    });
    api::serve(&request.volume, Arc::clone(&commands) as Arc<dyn api::Handler>).map_err(failed)?;
    stop_on_signals(&volume, &request.mountpoint, ending.clone());
    let at = request.mountpoint.display().to_string();
    volume.events.emit(EventKind::Mount, &at, &volume.policy.read().to_string());
    Watch::start(&volume).map_err(failed)?;
    Hooks::start(&volume).map_err(failed)?;
    // Also where nothing is written: what is read is kept.
    evict::Keeper::new(&volume).start().map_err(failed)?;
    if !request.mode.read_only {
        Collector::new(&volume, volume.shutdown.clone()).start().map_err(failed)?;
        Mover::new(&volume).start().map_err(failed)?;
        gc::start(&volume).map_err(failed)?;
    }
    if let Some(ready) = &request.ready {
        // The parent has closed its end when it was killed: the mount stays.
        if let Err(error) = tell(ready, "ok\n") {
            tracing::warn!(%error, "nobody waits for this mount");
        }
    }
    if wait_for_end(session, &ending)? {
        tracing::info!("unmounted; committing what is left");
    } else {
        tracing::warn!(
            waited_s = STOP_BUSY.as_secs(),
            "programs still have files open; what they wrote so far is committed, and they are cut off"
        );
    }
    failpoint::reach("daemon.end.unmounted");
    volume.say_ending();
    // Who comes now finds no daemon to ask, and waits for the lock.
    std::fs::remove_file(request.volume.join("control.sock")).map_err(failed)?;
    // No command begins after this; one that runs is waited for.
    drop(commands.volume.lock().take());
    let volume = wait_for_last(volume);
    let drained = volume.drain(Some(STOP_DRAIN), &mut |_| {});
    failpoint::reach("daemon.end.drained");
    if let Ok(false) = drained {
        let pending = volume.replicator.progress().pending;
        tracing::warn!(pending, "contents wait for copies; the next mount goes on with them");
    }
    volume.events.emit(EventKind::Unmount, &at, "");
    let closed = volume.close();
    failpoint::reach("daemon.end.closed");
    drained?;
    closed
}

/// Waits until the mount is gone: true; or false when it was told to end and
/// programs keep it busy for too long.
fn wait_for_end(session: fuse::Session, ending: &Ending) -> Result<bool, Failure> {
    let (sender, gone) = std::sync::mpsc::channel::<()>();
    // Its end is told by the sender's.
    let wait = move || {
        session.wait();
        drop(sender);
    };
    std::thread::Builder::new().name("cairn-session".into()).spawn(wait).map_err(failed)?;
    loop {
        if gone.recv_timeout(Duration::from_millis(500)) == Err(RecvTimeoutError::Disconnected) {
            return Ok(true);
        }
        if ending.is_over() {
            return Ok(false);
        }
    }
}

/// Commands hold the volume while they run. One that waits for backends (`sync`)
/// is cut off after a while.
fn wait_for_last(mut volume: Arc<Volume>) -> Volume {
    let pause = crate::runtime::Shutdown::default();
    let start = Instant::now();
    loop {
        match Arc::try_unwrap(volume) {
            Ok(volume) => return volume,
            Err(shared) => volume = shared,
        }
        if start.elapsed() >= STOP_DRAIN {
            volume.replicator.stop();
        }
        if pause.wait(Duration::from_millis(50)) {
            tracing::trace!("still waiting");
        }
    }
}

/// Writes to the pipe of the process that waits for us.
pub(crate) fn tell(ready: &Path, text: &str) -> std::io::Result<()> {
    std::fs::File::options().write(true).open(ready)?.write_all(text.as_bytes())
}

fn stop_on_signals(volume: &Volume, mountpoint: &Path, ending: Ending) {
    let mountpoint = mountpoint.to_owned();
    volume.bridge.spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut terminate), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            tracing::error!("signals cannot be watched; use `cairn umount`");
            return;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop; unmounting");
        ending.begin();
        let done = tokio::task::spawn_blocking(move || {
            // Busy mounts are detached: open files end with their programs.
            fuse::unmount(&mountpoint, false).or_else(|_| fuse::unmount(&mountpoint, true))
        });
        if let Ok(Err(error)) = done.await {
            tracing::error!(%error, "cannot unmount");
        }
    });
}
