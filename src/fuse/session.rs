use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fuser::{BackgroundSession, Config, INodeNo, MountOption, Notifier, SessionACL};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::filesystem::CairnFs;
use super::requests::Requests;
use crate::types::Ino;
use crate::vfs::{KernelCache, Vfs};

/// How far the kernel reads ahead: eight of the largest requests.
const READ_AHEAD_KIB: u32 = 8 << 10;

/// Options of one mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// Shown in /proc/mounts: the volume's folder.
    pub source: String,
    /// Refuse changes in the kernel too.
    pub read_only: bool,
    /// Other users may enter.
    pub allow_other: bool,
    /// `-o` words that the kernel understands (noatime, nosuid, nodev, ...).
    pub kernel_options: Vec<String>,
    /// Threads that read requests.
    pub threads: usize,
}

/// Why a mount or unmount failed, with what to do.
#[derive(Debug, thiserror::Error)]
#[error("{mountpoint}: {reason}")]
pub struct MountError {
    /// Where.
    pub mountpoint: PathBuf,
    /// Why, and what to do.
    pub reason: String,
}

/// A running mount.
pub struct Session {
    background: BackgroundSession,
    mountpoint: PathBuf,
}

impl Session {
    /// Returns when the mount is gone (unmounted by anybody).
    pub fn wait(self) {
        if let Err(error) = self.background.join() {
            tracing::warn!(%error, "the FUSE session ended with an error");
        }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }
}

struct Kernel(Notifier);

impl KernelCache for Kernel {
    fn invalidate_attributes(&self, ino: Ino) {
        // A negative offset leaves the pages (`fuse_reverse_inval_inode`): those of a
        // file may be locked by a read that waits for us.
        self.invalidate(ino, -1);
    }

    fn invalidate_listing(&self, directory: Ino) {
        // The kernel caches listings where it needs no `opendir`; those pages are
        // locked over no request (fs/fuse/readdir.c).
        self.invalidate(directory, 0);
    }
}

impl Kernel {
    fn invalidate(&self, ino: Ino, from: i64) {
        // ENOENT: the kernel did not know it.
        if let Err(error) = self.0.inval_inode(INodeNo(ino.0), from, 0) {
            tracing::trace!(%error, "nothing to invalidate");
        }
    }
}

fn failed(mountpoint: &Path, reason: impl Into<String>) -> MountError {
    MountError { mountpoint: mountpoint.to_owned(), reason: reason.into() }
}

/// Detaches a mount whose daemon died, saying so. Anything else that looks at the
/// mountpoint's path would fail with ENOTCONN.
///
/// # Errors
/// [`MountError`]: it cannot be detached.
pub fn clear_dead(mountpoint: &Path) -> Result<(), MountError> {
    // Attributes of a dead mount may still be cached; its space is not.
    if matches!(rustix::fs::statfs(mountpoint), Err(Errno::NOTCONN)) {
        tracing::warn!(mountpoint = %mountpoint.display(), "a dead mount is in the way; it is unmounted");
        unmount(mountpoint, true)?;
    }
    Ok(())
}

/// What can be said before the kernel is asked.
fn check(mountpoint: &Path) -> Result<(), MountError> {
    clear_dead(mountpoint)?;
    match std::fs::metadata(mountpoint) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(failed(mountpoint, "there is no such directory; make it with mkdir -p"));
        }
        Err(error) => return Err(failed(mountpoint, error.to_string())),
        Ok(meta) if !meta.is_dir() => return Err(failed(mountpoint, "not a directory")),
        Ok(_) => {}
    }
    if !Path::new("/dev/fuse").exists() {
        return Err(failed(
            mountpoint,
            "there is no /dev/fuse; load the fuse module (modprobe fuse) or pass the device to the container",
        ));
    }
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if let Err(error) = device {
        return Err(failed(
            mountpoint,
            format!(
                "/dev/fuse cannot be opened ({error}); as root: chmod 666 /dev/fuse, as distributions have it"
            ),
        ));
    }
    let user = !rustix::process::geteuid().is_root();
    let helper = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|dir| dir.join("fusermount3").exists())
    });
    if user && !helper {
        return Err(failed(
            mountpoint,
            "an ordinary user mounts through fusermount3, which is missing; install the package fuse3",
        ));
    }
    Ok(())
}

fn kernel_option(word: &str) -> MountOption {
    match word {
        "noatime" => MountOption::NoAtime,
        "nosuid" => MountOption::NoSuid,
        "nodev" => MountOption::NoDev,
        "noexec" => MountOption::NoExec,
        "sync" => MountOption::Sync,
        "dirsync" => MountOption::DirSync,
        other => MountOption::CUSTOM(other.to_owned()),
    }
}

/// Mounts; returns when the kernel has it and it answers.
///
/// # Errors
/// [`MountError`]: no /dev/fuse, no fusermount3 for an ordinary user, a bad
/// mountpoint.
pub fn mount(
    vfs: &Arc<Vfs>,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Session, MountError> {
    check(mountpoint)?;
    let mut config = Config::default();
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    let requests = Requests::start(vfs.bridge().clone());
    let requests = requests.map_err(|e| failed(mountpoint, e.to_string()))?;
    let filesystem = CairnFs { vfs: Arc::clone(vfs), requests };
    let refused = |e| failed(mountpoint, format!("the kernel refuses the mount: {e}"));
    let background = if rustix::process::geteuid().is_root() {
        let device = super::direct::mount(mountpoint, options).map_err(refused)?;
        fuser::Session::from_fd(filesystem, device, config.acl, config)
            .and_then(fuser::Session::spawn)
            .map_err(|error| {
                // The device is closed: what is there is dead.
                unmount(mountpoint, true).err().unwrap_or_else(|| refused(error))
            })?
    } else {
        config.mount_options = vec![
            MountOption::FSName(options.source.clone()),
            MountOption::Subtype("cairn".into()),
            MountOption::DefaultPermissions,
        ];
        if options.read_only {
            config.mount_options.push(MountOption::RO);
        }
        config.mount_options.extend(options.kernel_options.iter().map(|word| kernel_option(word)));
        fuser::spawn_mount(filesystem, mountpoint, &config).map_err(refused)?
    };
    vfs.set_kernel_cache(Arc::new(Kernel(background.notifier())));
    // The kernel has agreed (INIT) and the threads read: requests are served. No
    // call here may wait for an answer of this mount: killed meanwhile, the process
    // could neither answer nor end, as the kernel waits out what was taken.
    if let Err(error) = super::direct::read_ahead(mountpoint, READ_AHEAD_KIB) {
        tracing::debug!(%error, "the kernel reads ahead as far as it does by itself");
    }
    Ok(Session { background, mountpoint: mountpoint.to_owned() })
}

/// Unmounts; `lazy` detaches even when busy.
///
/// # Errors
/// [`MountError`]: busy (with what to do), not mounted.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    if rustix::process::geteuid().is_root() {
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        return rustix::mount::unmount(mountpoint, flags).map_err(|error| match error {
            Errno::BUSY => failed(mountpoint, "busy: a program has files open there or its folder is a current directory (see `fuser -vm`)"),
            Errno::INVAL => failed(mountpoint, "not mounted"),
            other => failed(mountpoint, other.to_string()),
        });
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(failed(mountpoint, String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
        Err(error) => Err(failed(
            mountpoint,
            format!("fusermount3 cannot be run: {error}; install the package fuse3"),
        )),
    }
}
