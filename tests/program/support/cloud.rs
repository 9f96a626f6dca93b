//! What speaks like Azure's and Google's stores, on loopback, each in a folder of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::run::run;
use super::store::BUCKET;
use super::{World, skip, wait_until};

const ACCOUNT: &str = "cairntest";
/// Looked for where no secret may be; in base64.
pub const CLOUD_KEY: &str = "Y2Fpcm4tdGVzdC1zZWNyZXQtMDEyMzQ1Njc4OQ==";

/// Signs and sends one request as Azure's "Authorize with Shared Key" says: no store of its
/// kind makes a container by itself.
const MAKE_CONTAINER: &str = r#"
import base64, hashlib, hmac, sys, urllib.request
from email.utils import formatdate
endpoint, account, key, container = sys.argv[1:]
date, version = formatdate(usegmt=True), "2021-08-06"
text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n"
text += f"/{account}/{account}/{container}\nrestype:container"
mac = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
request = urllib.request.Request(f"{endpoint}/{container}?restype=container", method="PUT")
request.add_header("x-ms-date", date)
request.add_header("x-ms-version", version)
request.add_header("Authorization", f"SharedKey {account}:{base64.b64encode(mac).decode()}")
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
"#;

/// Whose store it is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Azurite, Microsoft's own: <https://github.com/Azure/Azurite>
    Azure,
    /// <https://github.com/fsouza/fake-gcs-server>
    Google,
}

/// A running one; it ends with its test.
pub struct Cloud<'w> {
    world: &'w World,
    kind: Kind,
    port: u16,
    child: Option<Child>,
}

impl<'w> Cloud<'w> {
    /// `None` where it is not installed (an error in CI).
    pub fn start(world: &'w World, kind: Kind, test: &str) -> Option<Self> {
        let program = Self::program(kind);
        if let Err(error) = Command::new(program).arg("--help").output() {
            skip(test, &format!("{program} cannot be run: {error} (.ci/run installs it)"));
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut cloud = Self { world, kind, port, child: None };
        let keys = world.path("cloud-key");
        fs::write(&keys, format!("AZURE_STORAGE_ACCOUNT_KEY={CLOUD_KEY}\n")).unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
        if kind == Kind::Google {
            world.make_dir(&format!("google/{BUCKET}"));
        }
        cloud.up();
        if kind == Kind::Azure {
            let mut command = world.command("python3");
            let endpoint = format!("http://127.0.0.1:{port}/{ACCOUNT}");
            command.args(["-c", MAKE_CONTAINER, &endpoint, ACCOUNT, CLOUD_KEY, BUCKET]);
            run(command, Duration::from_mins(1)).ok();
        }
        Some(cloud)
    }

    fn program(kind: Kind) -> &'static str {
        match kind {
            Kind::Azure => "azurite-blob",
            Kind::Google => "fake-gcs-server",
        }
    }

    /// Starts it, and waits until it listens.
    pub fn up(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let port = self.port.to_string();
        let mut command = self.world.command(Self::program(self.kind));
        match self.kind {
            Kind::Azure => {
                command.env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{CLOUD_KEY}"));
                command.args(["--silent", "--skipApiVersionCheck", "--disableTelemetry"]);
                command.args(["--blobHost", "127.0.0.1", "--blobPort", &port, "--location"]);
                command.arg(self.world.make_dir("azure"));
            }
            Kind::Google => {
                command.args(["-scheme", "http", "-host", "127.0.0.1", "-port", &port]);
                command.args(["-public-host", &format!("127.0.0.1:{port}"), "-log-level", "error"]);
                command.args(["-backend", "filesystem", "-filesystem-root"]);
                command.arg(self.world.make_dir("google"));
            }
        }
        let log = self.world.path("cloud.log");
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let port = self.port;
        wait_until("the store listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// It is away.
    pub fn down(&mut self) {
        let mut child = self.child.take().unwrap();
        // Azurite writes down what it has when it is asked to end.
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A place in its bucket; `more` settings begin with `&`.
    pub fn url(&self, prefix: &str, more: &str) -> String {
        self.url_by(self.port, prefix, more)
    }

    /// The same, by way of another port.
    pub fn url_by(&self, port: u16, prefix: &str, more: &str) -> String {
        let here = format!("endpoint=http://127.0.0.1:{port}");
        match self.kind {
            Kind::Azure => {
                let keys = self.world.path("cloud-key");
                format!(
                    "azblob://{BUCKET}/{prefix}?{here}/{ACCOUNT}&account={ACCOUNT}&auth=file:{}{more}",
                    keys.display()
                )
            }
            Kind::Google => format!("gcs://{BUCKET}/{prefix}?{here}&anonymous=1{more}"),
        }
    }
}

impl Drop for Cloud<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait().map(drop)).unwrap_or_default();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.world.path("cloud.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("{:?}, the last first: {tail:#?}", self.kind);
        }
    }
}
