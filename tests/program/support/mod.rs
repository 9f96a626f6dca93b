//! A home of its own for each test, the program in it, volumes and mounts.

mod cloud;
mod cluster;
mod kubo;
mod model;
mod numbered;
mod oracle;
mod pinata;
mod proxy;
mod run;
mod sshd;
mod store;
mod tls;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

pub use self::cloud::{CLOUD_KEY, Cloud, Kind as CloudKind};
pub use self::cluster::ClusterPeer;
pub use self::kubo::KuboDaemon;
pub use self::model::Random;
pub use self::numbered::{all_read, content, write_files};
pub use self::oracle::{Ack, Stop, Writer};
pub use self::pinata::{FakePinata, JWT, Manner, is_public};
pub use self::proxy::{Proxy, patient};
pub use self::run::{Run, run};
pub use self::sshd::Sshd;
pub use self::store::{SECRET, Software, Store};
pub use self::tls::TlsFront;
pub use self::tree::{Entry, difference, make_tree, snapshot};

/// A temporary home with everything that a test makes in it.
pub struct World {
    dir: tempfile::TempDir,
}

/// For what speaks HTTP on this machine.
pub fn http_client() -> reqwest::Client {
    // Set once in a process; who comes second finds the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder().no_proxy().build().unwrap()
}

impl World {
    /// For tests without a mount.
    pub fn new() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(tell_failures_at_once);
        let dir = tempfile::Builder::new().prefix("cairn-test-").tempdir().unwrap();
        Self { dir }
    }

    /// For tests with a mount; `None` where there is no FUSE (an error in CI).
    pub fn mountable(test: &str) -> Option<Self> {
        let fuse = fs::File::options().read(true).write(true).open("/dev/fuse");
        let mut reason = fuse.err().map(|error| format!("/dev/fuse cannot be opened: {error}"));
        if !rustix::process::geteuid().is_root() {
            let helper = Command::new("fusermount3").arg("--version").output();
            reason =
                reason.or(helper.err().map(|error| format!("fusermount3 cannot be run: {error}")));
        }
        let Some(reason) = reason else { return Some(Self::new()) };
        skip(test, &reason);
        None
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory.
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Any program, in this home.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CAIRN_") {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.dir.path())
            .env_remove("XDG_DATA_HOME")
            .current_dir(self.dir.path());
        command
    }

    /// `cairn` with these words.
    pub fn cairn<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Run {
        let mut command = self.command(env!("CARGO_BIN_EXE_cairn"));
        command.args(words);
        run(command, Duration::from_mins(2))
    }

    /// A volume with directory backends that count as distinct places.
    pub fn volume(&self, backends: &[&str], policy: &str) -> Volume<'_> {
        let urls: Vec<String> = backends.iter().map(|name| self.backend_url(name)).collect();
        self.volume_on(&urls, policy)
    }

    /// A volume with these backends.
    pub fn volume_on(&self, urls: &[String], policy: &str) -> Volume<'_> {
        let volume = Volume { world: self, dir: self.path("volume") };
        let mut words = vec![
            "init".to_owned(),
            "--volume".into(),
            volume.text(),
            "--policy".into(),
            policy.into(),
        ];
        for url in urls {
            words.extend(["--backend".to_owned(), url.clone()]);
        }
        self.cairn(&words).ok();
        volume
    }

    /// The URL of a directory backend whose failure domain is its own name.
    pub fn backend_url(&self, name: &str) -> String {
        format!("file://{}?domain={name}", self.path(name).display())
    }

    /// The same, of archives: `car` or `parquet`.
    pub fn archives_url(&self, form: &str, name: &str) -> String {
        format!("{form}://{}?domain={name}", self.path(name).display())
    }
}

/// What fails is said when it fails, too, in the words that come again at the end: a log
/// of half an hour that is cut short has it.
fn tell_failures_at_once() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let line = format!("FAILS {}: {panic}\n", thread.name().unwrap_or("a thread"));
        // Past the capture of what a test prints; nothing is lost if it cannot be written.
        drop(std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()));
        usual(panic);
    }));
}

/// Says, where `scripts/test` counts it, that a test was not run.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: {reason}, and CI skips nothing");
    let list = Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped");
    let line = format!("{test}: {reason}\n");
    let mut file = fs::File::options().append(true).create(true).open(list).unwrap();
    std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
    eprint!("SKIPPED {line}");
}

/// A volume's folder.
pub struct Volume<'w> {
    pub world: &'w World,
    pub dir: PathBuf,
}

impl<'w> Volume<'w> {
    pub fn text(&self) -> String {
        self.dir.to_str().unwrap().to_owned()
    }

    /// `cairn VERB.. --volume DIR`.
    pub fn cairn(&self, words: &[&str]) -> Run {
        let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        all.extend(["--volume".to_owned(), self.text()]);
        self.world.cairn(&all)
    }

    /// Asks backends every second how they are: one that goes away while nothing is
    /// written is seen.
    pub fn probe_often(&self) {
        let path = self.dir.join("cairn.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("probe_interval_s = 300\n"));
        let text = text.replace("probe_interval_s = 300\n", "probe_interval_s = 1\n");
        std::fs::write(&path, text).unwrap();
    }

    pub fn status(&self) -> serde_json::Value {
        self.cairn(&["--json", "status"]).ok().json()
    }

    pub fn mount(&self) -> Mount<'w> {
        self.mount_with(&[])
    }

    /// The mount that something else has made at the usual place.
    pub fn mounted(&self) -> Mount<'w> {
        let at = self.world.make_dir("mnt");
        Mount { world: self.world, volume: self.dir.clone(), at, mounted: true }
    }

    pub fn mount_with(&self, words: &[&str]) -> Mount<'w> {
        let at = self.world.make_dir("mnt");
        let mut all = vec!["mount", at.to_str().unwrap()];
        all.extend_from_slice(words);
        self.cairn(&all).ok();
        Mount { world: self.world, volume: self.dir.clone(), at, mounted: true }
    }
}

/// A mount that is gone when its test ends, however it ends.
pub struct Mount<'w> {
    pub world: &'w World,
    pub volume: PathBuf,
    pub at: PathBuf,
    mounted: bool,
}

impl Mount<'_> {
    pub fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The daemon's process, as the volume's lock names it.
    pub fn pid(&self) -> rustix::process::Pid {
        let text = fs::read_to_string(self.volume.join("lock")).unwrap();
        let pid = text.split_whitespace().next().unwrap();
        rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap()
    }

    /// Unmounts as users do.
    pub fn umount(mut self) -> Run {
        self.mounted = false;
        self.world.cairn(&[Path::new("umount"), &self.at])
    }

    /// Kills the daemon and clears the dead mount away.
    pub fn kill(self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::KILL).unwrap();
        self.kill_leftovers();
    }

    /// After the daemon was killed: waits for its end and clears the dead mount away.
    pub fn kill_leftovers(mut self) {
        self.mounted = false;
        // Its threads end after its first one: the lock is free when all have ended.
        let lock = fs::File::open(self.volume.join("lock")).unwrap();
        wait_until("the daemon is gone", || {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared).is_ok()
        });
        drop(lock);
        detach(&self.at);
    }

    /// The mount is gone already, by other means.
    pub fn forget(mut self) {
        self.mounted = false;
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        let ended = self.world.cairn(&[Path::new("umount"), Path::new("--force"), &self.at]);
        if ended.code != 0 {
            eprintln!("umount of a test: {ended:?}");
            detach(&self.at);
        }
        if std::thread::panicking() {
            eprintln!(
                "daemon.log:\n{}",
                fs::read_to_string(self.volume.join("daemon.log")).unwrap_or_default()
            );
        }
    }
}

/// Takes a mount away, dead or alive.
pub fn detach(at: &Path) {
    let program = if rustix::process::geteuid().is_root() { "umount" } else { "fusermount3" };
    let flags: &[&str] = if program == "umount" { &["-l"] } else { &["-u", "-z"] };
    // Not mounted is as good.
    drop(Command::new(program).args(flags).arg(at).output());
}

/// Looks again until it is so, for at most 30 s.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let (_keep, never) = std::sync::mpsc::channel::<()>();
    for _ in 0..1500 {
        if so() {
            return;
        }
        never.recv_timeout(Duration::from_millis(20)).unwrap_or(());
    }
    panic!("30 s have passed and not: {what}");
}
