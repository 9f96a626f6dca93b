//! `cairn mount` and `cairn umount`.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::arguments::Mount;
use super::client::{Target, mounts};
use super::output::Output;
use super::setup::{create_options, volume_dir};
use crate::api::{Command, ErrorCode, Failure};
use crate::config::{Config, LocalChange};
use crate::daemon::{Identity, Lock, MountRequest, Volume, VolumeMode, check_local, run_mount};
use crate::fuse::MountOptions;
use crate::runtime::Shutdown;
use crate::telemetry::{LogFormat, init_logging};
use crate::types::AccessTimes;

/// A daemon's log is set aside at a mount when it is longer.
const LOG_BYTES: u64 = 16 << 20;
/// How long a remount asks again while files are open for writing.
const REMOUNT_PATIENCE: Duration = Duration::from_secs(1);
/// How long an unmount waits for the daemon to end.
const UMOUNT_DEADLINE: Duration = Duration::from_mins(2);

fn usage(text: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::Usage, text)
}

/// `mount.cairn SOURCE MOUNTPOINT [-sfnv] [-o OPTS]`, as mount(8) calls it.
pub(super) fn helper_arguments(words: &[OsString]) -> Result<Vec<OsString>, Failure> {
    let (mut places, mut options) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-o") => {
                options.push(words.next().cloned().ok_or_else(|| usage("-o needs options"))?);
            }
            // Sloppy, fake, no mtab, verbose, type: nothing here depends on them.
            Some("-t") => drop(words.next()),
            Some(flag) if flag.starts_with('-') && flag.len() > 1 => {}
            _ => places.push(word.clone()),
        }
    }
    let [source, mountpoint] = places.as_slice() else {
        return Err(usage("usage: mount.cairn VOLUME MOUNTPOINT [-o OPTS]"));
    };
    let mut out = ["cairn", "mount", "--quiet"].map(OsString::from).to_vec();
    out.extend([mountpoint.clone(), "--volume".into(), source.clone()]);
    for option in options {
        out.extend(["-o".into(), option]);
    }
    Ok(out)
}

/// What `-o` said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    policy: Vec<String>,
    kernel: Vec<String>,
    read_only: bool,
    remount: bool,
    allow_other: Option<bool>,
    volume: Option<PathBuf>,
}

impl Options {
    fn access_times(&self) -> AccessTimes {
        let said = |word| self.kernel.iter().any(|known| known == word);
        match (said("noatime"), said("nodiratime")) {
            (true, _) => AccessTimes::None,
            (false, true) => AccessTimes::NotDirectories,
            (false, false) => AccessTimes::All,
        }
    }
}

fn parse_options(lists: &[String]) -> Result<Options, Failure> {
    let mut options = Options::default();
    for word in
        lists.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|word| !word.is_empty())
    {
        let (key, value) =
            word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("level" | "wait_on" | "on_degraded" | "min" | "target" | "max", Some(_)) => {
                options.policy.push(word.to_owned());
            }
            ("volume", Some(dir)) => options.volume = Some(dir.into()),
            ("remount", None) => options.remount = true,
            ("ro", None) => options.read_only = true,
            ("rw", None) => options.read_only = false,
            ("allow_other", None) => options.allow_other = Some(true),
            (
                "noatime" | "nodiratime" | "nosuid" | "nodev" | "noexec" | "nosymfollow" | "sync"
                | "dirsync",
                None,
            ) => {
                options.kernel.push(word.to_owned());
            }
            ("strictatime", None) => {
                return Err(usage(
                    "`strictatime` cannot be kept: reads of cached pages do not reach the daemon; leave it out for relatime, or say noatime".to_owned(),
                ));
            }
            // What fstab has for mount(8), systemd and people.
            (
                "defaults"
                | "auto"
                | "noauto"
                | "user"
                | "nouser"
                | "users"
                | "owner"
                | "group"
                | "nofail"
                | "_netdev"
                | "atime"
                | "relatime"
                | "norelatime"
                | "nostrictatime"
                | "diratime"
                | "lazytime"
                | "nolazytime"
                | "suid"
                | "dev"
                | "exec"
                | "symfollow"
                | "async"
                | "silent"
                | "loud"
                | "nomand"
                | "noiversion"
                | "default_permissions"
                | "comment"
                // What mount(8) takes from /proc/mounts at a remount.
                | "user_id"
                | "group_id",
                _,
            ) => {}
            (other, _) if other.starts_with("x-") || other.starts_with("X-") => {}
            _ => {
                return Err(usage(format!(
                    "`{word}` is not a mount option; known: level=, wait_on=, on_degraded=, min=, target=, max=, volume=, ro, rw, allow_other, noatime, nodiratime, nosuid, nodev, noexec, nosymfollow, sync, dirsync"
                )));
            }
        }
    }
    Ok(options)
}

pub(super) fn mount(
    request: &Mount,
    level: Option<&str>,
    format: Option<LogFormat>,
    output: &Output,
) -> Result<(), Failure> {
    if request.foreground {
        super::allocator::settle();
    }
    let options = parse_options(&request.options)?;
    if options.remount {
        return remount(request, &options);
    }
    let dir = volume_dir(request.volume.as_ref().or(options.volume.as_ref()))?;
    let mountpoint = std::path::absolute(&request.mountpoint).map_err(super::failed)?;
    let mode = VolumeMode {
        read_only: request.read_only || options.read_only,
        access_times: options.access_times(),
        policy_override: options.policy.join(","),
        mountpoint: Some(mountpoint.clone()),
    };
    crate::fuse::clear_dead(&mountpoint).map_err(super::failed)?;
    if crate::backends::overlaps(&dir, &mountpoint).map_err(super::failed)? {
        return Err(usage(format!(
            "the volume folder {} and the mountpoint {} lie inside each other: choose another place",
            dir.display(),
            mountpoint.display()
        )));
    }
    let result = prepare(&dir, request).and_then(|()| {
        if request.foreground {
            let (config, _) = Config::load(&dir).map_err(|e| usage(e.to_string()))?;
            let filter = level.unwrap_or(&config.log.level);
            init_logging(filter, format.unwrap_or(config.log.format)).map_err(usage)?;
            let kernel = MountOptions {
                allow_other: options.allow_other.unwrap_or_else(|| rustix::process::geteuid().is_root()),
                kernel_options: options.kernel.clone(),
                ..MountOptions::default()
            };
            let ready = request.ready.clone();
            run_mount(&MountRequest { volume: dir.clone(), mountpoint: mountpoint.clone(), mode: mode.clone(), options: kernel, ready })
        } else {
            spawn(&dir, request, level, format)?;
            let value = json!({ "mountpoint": mountpoint.display().to_string(), "volume": dir.display().to_string() });
            if !request.quiet {
                output.fields(&value, &["mountpoint", "volume"]);
            }
            Ok(())
        }
    });
    if let (Err(failure), Some(ready)) = (&result, &request.ready) {
        // The process that waits prints it; ours goes to the log.
        let text = format!("{} {}\n", super::exit_code(failure.code), failure.message);
        crate::daemon::tell(ready, &text).map_err(super::failed)?;
    }
    result
}

/// `-o remount`: flags of the kernel's mount, and times of access, which the daemon
/// keeps. The policy of a mount is neither.
fn remount(request: &Mount, options: &Options) -> Result<(), Failure> {
    if !options.policy.is_empty() {
        return Err(usage(
            "level=, min= and the like cannot change while mounted: use `cairn policy set`, or unmount and mount again",
        ));
    }
    let mountpoint = std::path::absolute(&request.mountpoint).map_err(super::failed)?;
    let kernel = MountOptions {
        read_only: request.read_only || options.read_only,
        kernel_options: options.kernel.clone(),
        ..MountOptions::default()
    };
    let tell = || {
        let dir = mounts().into_iter().rev().find(|mount| mount.mountpoint == mountpoint);
        let dir = dir.map(|mount| mount.volume).ok_or_else(|| {
            let text = format!("{} is not a cairn mount", mountpoint.display());
            Failure::new(ErrorCode::NotFound, text)
        })?;
        let (read_only, access_times) = (kernel.read_only, options.access_times());
        let command = Command::Remount { read_only, access_times };
        let gone = || super::failed(format!("{}: no daemon answers", mountpoint.display()));
        crate::api::connect(&dir, &command, &mut |_| {}).ok_or_else(gone)?
    };
    // It may refuse to write: it is asked first then, and told last of the reverse.
    if !kernel.read_only {
        tell()?;
    }
    let (start, pause) = (Instant::now(), Shutdown::default());
    loop {
        match crate::fuse::remount(&mountpoint, &kernel) {
            Ok(()) if kernel.read_only => return tell().map(drop),
            Ok(()) => return Ok(()),
            // The kernel counts a file as open until we have heard of its close.
            Err(error)
                if error.kind() == std::io::ErrorKind::ResourceBusy
                    && start.elapsed() < REMOUNT_PATIENCE
                    && !pause.wait(Duration::from_millis(20)) => {}
            Err(error) => {
                let text = format!("{}: remount: {error}", mountpoint.display());
                return Err(super::failed(text));
            }
        }
    }
}

/// Makes the volume when there is none; adds backends that it does not have.
fn prepare(dir: &Path, request: &Mount) -> Result<(), Failure> {
    if request.ready.is_some() {
        return Ok(());
    }
    if !Identity::exists(dir) {
        let local = request.local.change();
        let options = create_options(&request.backends, "", "unixfs-v1-2025", local)?;
        Volume::create(dir, &options)?;
        return Ok(());
    }
    let target = Target::of_volume(Some(dir.to_owned()))?;
    if Lock::is_held(target.volume()) {
        // Refused, or free when a mount that is ending has ended.
        drop(Lock::take(dir)?);
    }
    let (config, _) = Config::load(dir).map_err(|e| usage(e.to_string()))?;
    for url in &request.backends {
        let spec =
            crate::backends::BackendSpec::parse(url, &[]).map_err(|e| usage(e.to_string()))?;
        if !config.backends.iter().any(|known| known.url == spec.url) {
            target.send(&Command::BackendAdd { url: url.clone() }, &Output::new(true))?;
        }
    }
    let change = request.local.change();
    if change != LocalChange::default() {
        let (config, _) = Config::load(dir).map_err(|e| usage(e.to_string()))?;
        check_local(&change, config.store.role, config.backends.len())?;
        Config::set_local(dir, &change).map_err(super::failed)?;
    }
    Ok(())
}

/// Starts the daemon and waits until it says that the mount answers.
fn spawn(
    dir: &Path,
    request: &Mount,
    level: Option<&str>,
    format: Option<LogFormat>,
) -> Result<(), Failure> {
    let log_path = dir.join("daemon.log");
    if std::fs::metadata(&log_path).is_ok_and(|meta| meta.len() > LOG_BYTES) {
        std::fs::rename(&log_path, dir.join("daemon.log.1")).map_err(super::failed)?;
    }
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(super::failed)?;
    let pipe = tempfile::tempdir().map_err(super::failed)?;
    let ready = pipe.path().join("ready");
    rustix::fs::mknodat(rustix::fs::CWD, &ready, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .map_err(super::failed)?;
    // Opened for both ways: reading does not end before the daemon has written.
    let mut reader =
        std::fs::File::options().read(true).write(true).open(&ready).map_err(super::failed)?;
    let binary = std::env::current_exe().map_err(super::failed)?;
    let mut command = Process::new(binary);
    // The program may lie there as `mount.cairn`, and goes by its name.
    command
        .arg0("cairn")
        .arg("mount")
        .arg(std::path::absolute(&request.mountpoint).map_err(super::failed)?);
    command.arg("--volume").arg(dir).arg("--foreground").arg("--ready").arg(&ready);
    if request.read_only {
        command.arg("--read-only");
    }
    for option in &request.options {
        command.arg("-o").arg(option);
    }
    if let Some(level) = level {
        command.arg("--log-level").arg(level);
    }
    if let Some(format) = format {
        command.arg("--log-format").arg(if format == LogFormat::Json { "json" } else { "text" });
    }
    command
        .envs(super::allocator::settings())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0);
    let mut child = command.spawn().map_err(super::failed)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let mut byte = [0u8];
        while reader.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
            text.push(byte[0]);
        }
        sender.send(String::from_utf8_lossy(&text).into_owned())
    });
    let mut ended = None;
    loop {
        if let Ok(text) = receiver.recv_timeout(Duration::from_millis(100)) {
            if text == "ok" {
                return Ok(());
            }
            let (code, message) = text.split_once(' ').unwrap_or(("1", &text));
            let code = match code {
                "2" => ErrorCode::Usage,
                "3" => ErrorCode::NotFound,
                "4" => ErrorCode::Degraded,
                "5" => ErrorCode::Busy,
                "6" => ErrorCode::Damaged,
                _ => ErrorCode::Failed,
            };
            return Err(Failure::new(code, message));
        }
        // What a daemon wrote before it ended is in the pipe: one more look.
        if let Some(status) = ended {
            let text = format!(
                "the daemon ended ({status}) before the mount answered; see {}",
                log_path.display()
            );
            return Err(super::failed(text));
        }
        ended = child.try_wait().map_err(super::failed)?;
    }
}

pub(super) fn umount(
    target: Option<PathBuf>,
    volume: Option<PathBuf>,
    timeout_s: Option<u64>,
    force: bool,
    output: &Output,
) -> Result<(), Failure> {
    let dir = match (&target, volume) {
        (Some(path), None) => {
            let absolute = std::path::absolute(path).map_err(super::failed)?;
            let found = mounts().into_iter().find(|mount| mount.mountpoint == absolute);
            let canonical = || absolute.canonicalize().ok();
            let found = found.or_else(|| {
                let path = canonical()?;
                mounts().into_iter().find(|mount| mount.mountpoint == path)
            });
            found
                .ok_or_else(|| {
                    Failure::new(
                        ErrorCode::NotFound,
                        format!("{} is not a cairn mount", path.display()),
                    )
                })?
                .volume
        }
        (_, volume) => volume_dir(volume.as_ref())?,
    };
    Identity::load(&dir)?;
    let mut bar = output.progress();
    let command = Command::Umount { force, timeout_s };
    let answer = crate::api::connect(&dir, &command, &mut |report| bar.show(&report));
    bar.clear();
    let value = if let Some(answer) = answer {
        answer?
    } else {
        // The daemon is dead: its mount, if any, only needs to be detached.
        let dead = mounts().into_iter().find(|mount| mount.volume == dir);
        let Some(dead) = dead else {
            return Err(Failure::new(
                ErrorCode::NotFound,
                format!("the volume {} is not mounted", dir.display()),
            ));
        };
        crate::fuse::unmount(&dead.mountpoint, true).map_err(super::failed)?;
        json!({ "mountpoint": dead.mountpoint.display().to_string(), "pending": 0, "checkpoint": null })
    };
    let (start, pause) = (Instant::now(), Shutdown::default());
    while Lock::is_held(&dir) {
        if start.elapsed() > UMOUNT_DEADLINE || pause.wait(Duration::from_millis(20)) {
            return Err(Failure::new(
                ErrorCode::Busy,
                "it is unmounted, but the daemon still writes; see daemon.log in the volume",
            ));
        }
    }
    output.fields(&value, &["mountpoint", "pending", "checkpoint"]);
    if let Some(note) = value["note"].as_str() {
        output.note(note);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted_out_and_unknown_ones_refused() {
        let options = parse_options(&[
            "defaults,_netdev,ro,noatime,level=ALL".into(),
            "x-systemd.automount".into(),
        ])
        .unwrap();
        assert_eq!(
            (options.read_only, options.kernel, options.policy),
            (true, vec!["noatime".to_owned()], vec!["level=ALL".to_owned()])
        );
        assert!(parse_options(&["strictatime".into()]).unwrap_err().message.contains("relatime"));
        assert!(parse_options(&["colour=red".into()]).unwrap_err().message.contains("wait_on="));
    }

    #[test]
    fn mount_8_calls_are_understood() {
        let words: Vec<OsString> =
            ["/srv/volume", "/mnt", "-sn", "-o", "rw,noatime"].iter().map(Into::into).collect();
        let out = helper_arguments(&words).unwrap();
        assert_eq!(
            out,
            ["cairn", "mount", "--quiet", "/mnt", "--volume", "/srv/volume", "-o", "rw,noatime"]
                .map(OsString::from)
        );
    }
}
