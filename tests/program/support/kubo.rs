use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::run::{Run, run};
use super::{World, skip, wait_until};

/// A Kubo daemon of a test's own: its own repository, loopback, offline, one port for its
/// whole life, also when it is killed and started again.
pub struct KuboDaemon<'w> {
    world: &'w World,
    repo: PathBuf,
    port: u16,
    gateway: u16,
    /// It speaks with other daemons, of loopback.
    online: bool,
    daemon: Option<Child>,
}

impl<'w> KuboDaemon<'w> {
    /// A new one, up. `None` where Kubo is not installed (an error in CI).
    pub fn start(world: &'w World, test: &str) -> Option<Self> {
        Self::start_as(world, test, "kubo-daemon", false)
    }

    /// The same, with its repository in a folder of this name.
    pub fn start_as(world: &'w World, test: &str, name: &str, online: bool) -> Option<Self> {
        if Command::new("ipfs").arg("version").output().is_err() {
            skip(test, "ipfs (Kubo) is not in the PATH");
            return None;
        }
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let both = (free(), free());
        let port = both.0.local_addr().unwrap().port();
        let gateway = both.1.local_addr().unwrap().port();
        drop(both);
        let repo = world.path(name);
        let mut kubo = Self { world, repo, port, gateway, online, daemon: None };
        kubo.init();
        kubo.up();
        Some(kubo)
    }

    fn init(&self) {
        self.ipfs(&["init", "--empty-repo", "--profile=test,unixfs-v1-2025"]).ok();
        let api = format!("/ip4/127.0.0.1/tcp/{}", self.port);
        self.ipfs(&["config", "Addresses.API", &api]).ok();
        let gateway = format!("/ip4/127.0.0.1/tcp/{}", self.gateway);
        self.ipfs(&["config", "Addresses.Gateway", &gateway]).ok();
        // As its message asks for.
        let spec = self.ipfs(&["config", "Datastore.Spec"]).ok().stdout;
        let spec = spec.replace("\"sync\": false", "\"sync\": true");
        self.ipfs(&["config", "--json", "Datastore.Spec", &spec]).ok();
        // Nobody beyond the daemons that it is told of is asked for anything.
        self.ipfs(&["config", "Routing.Type", "none"]).ok();
    }

    /// `ipfs WORDS`, which asks the daemon when that is up.
    pub fn ipfs(&self, words: &[&str]) -> Run {
        let mut command = self.world.command("ipfs");
        command.env("IPFS_PATH", &self.repo).args(words);
        run(command, Duration::from_mins(1))
    }

    /// Starts the daemon, and waits until it answers.
    pub fn up(&mut self) {
        assert!(self.daemon.is_none(), "it is up");
        let log = fs::File::options().append(true).create(true).open(self.world.path("kubo.log"));
        let log = log.unwrap();
        let mut command = self.world.command("ipfs");
        command
            .env("IPFS_PATH", &self.repo)
            .env("IPFS_TELEMETRY", "off")
            .arg("daemon")
            .args((!self.online).then_some("--offline"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        let port = self.port;
        wait_until("Kubo is up", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// Kills the daemon, as a power cut would.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Its repository is lost; a new and empty one is at the same address.
    pub fn lose_repo(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.repo).unwrap();
        self.init();
        self.up();
    }

    /// What is in its repository, as files.
    pub fn repo(&self) -> &std::path::Path {
        &self.repo
    }

    /// The file of its flatfs that has a block.
    pub fn file_of(&self, block: &cairnfs::types::Block) -> PathBuf {
        let found: Vec<_> = fs::read_dir(self.repo.join("blocks"))
            .unwrap()
            .map(|shard| shard.unwrap().path())
            .filter(|shard| shard.is_dir())
            .flat_map(|shard| fs::read_dir(shard).unwrap().map(|file| file.unwrap().path()))
            .filter(|path| fs::read(path).is_ok_and(|bytes| bytes == block.data))
            .collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }

    /// A backend's URL.
    pub fn url(&self, folder: &str) -> String {
        format!("ipfs://127.0.0.1:{}/{folder}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of its gateway.
    pub fn gateway(&self) -> String {
        format!("http://127.0.0.1:{}", self.gateway)
    }

    /// Kubo's own collection.
    pub fn gc(&self) {
        self.ipfs(&["repo", "gc", "--quiet"]).ok();
    }

    /// Whether it has a block's bytes.
    pub fn has(&self, cid: &str) -> bool {
        self.ipfs(&["--offline", "block", "stat", cid]).code == 0
    }
}

impl Drop for KuboDaemon<'_> {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.world.path("kubo.log")).unwrap_or_default();
            eprintln!("kubo.log:\n{log}");
        }
    }
}
