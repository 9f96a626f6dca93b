use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::run::run;
use super::{World, skip, wait_until};

const SSHD: &str = "/usr/sbin/sshd";
const SERVER: &str = "/usr/lib/openssh/sftp-server";

/// OpenSSH's server of a test's own, on loopback, for who runs the test.
pub struct Sshd<'w> {
    world: &'w World,
    port: u16,
    /// What it gives instead of SFTP, when it is not that.
    subsystem: String,
    child: Option<Child>,
}

impl<'w> Sshd<'w> {
    /// `None` where it is not installed (an error in CI).
    pub fn start(world: &'w World, test: &str) -> Option<Self> {
        Self::start_with(world, test, &format!("sftp {SERVER}"))
    }

    /// With another program as its subsystem.
    pub fn start_with(world: &'w World, test: &str, subsystem: &str) -> Option<Self> {
        for program in [SSHD, SERVER] {
            if !PathBuf::from(program).exists() {
                skip(test, &format!("there is no {program} (.ci/run installs it)"));
                return None;
            }
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for name in ["host", "key", "stranger"] {
            if world.path(name).exists() {
                continue;
            }
            let mut command = world.command("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(world.path(name));
            run(command, Duration::from_mins(1)).ok();
        }
        let public = fs::read_to_string(world.path("host.pub")).unwrap();
        fs::write(world.path("known"), format!("test-host {public}")).unwrap();
        fs::copy(world.path("key.pub"), world.path("authorized")).unwrap();
        if rustix::process::geteuid().is_root() {
            // Where it shuts in what is not trusted yet; its package's unit makes it.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let mut server = Self { world, port, subsystem: subsystem.to_owned(), child: None };
        server.up();
        Some(server)
    }

    /// Starts it, and waits until it listens.
    pub fn up(&mut self) {
        let path = |name: &str| self.world.path(name).display().to_string();
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n\
             MaxStartups 100\nSubsystem {}\n",
            self.port,
            path("host"),
            path("authorized"),
            self.subsystem
        );
        fs::write(path("sshd_config"), config).unwrap();
        let log = fs::File::options().create(true).append(true).open(path("sshd.log")).unwrap();
        let mut command = Command::new(SSHD);
        command.args(["-D", "-e", "-f", &path("sshd_config")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let port = self.port;
        wait_until("sshd listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// It and its sessions end at once.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        // Sessions are processes of their own.
        let mut command = Command::new("pkill");
        command.args(["-KILL", "-P", &child.id().to_string()]);
        run(command, Duration::from_mins(1));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A backend's URL, for a folder of this home.
    pub fn url(&self, folder: &str) -> String {
        self.url_by(self.port, folder)
    }

    /// The same, by way of another port.
    pub fn url_by(&self, port: u16, folder: &str) -> String {
        self.url_with(port, folder, "key", "known")
    }

    /// With another key, or other known hosts.
    pub fn url_with(&self, port: u16, folder: &str, key: &str, known: &str) -> String {
        let config = self.world.path("ssh_config");
        // The same host, whatever leads to it.
        fs::write(&config, "HostKeyAlias test-host\n").unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        let path = |name: &str| self.world.path(name).display().to_string();
        format!(
            "sftp://127.0.0.1:{port}{}?config={}&identity={}&known_hosts={}",
            path(folder),
            config.display(),
            path(key),
            path(known)
        )
    }
}

impl Drop for Sshd<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait().map(drop)).unwrap_or_default();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.world.path("sshd.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("sshd, the last first: {tail:#?}");
        }
    }
}
