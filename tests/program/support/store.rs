//! Object stores of others, on loopback, each in a folder of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{World, skip, wait_until};

pub const BUCKET: &str = "bucket";
const KEY: &str = "cairn-test-key";
/// Looked for where no secret may be.
pub const SECRET: &str = "cairn-test-secret-0123456789";

/// Whose software it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Software {
    /// <https://github.com/s3s-project/s3s>
    S3sFs,
    /// <https://github.com/versity/versitygw>
    VersityGw,
}

impl Software {
    pub const ALL: [Self; 2] = [Self::S3sFs, Self::VersityGw];

    /// The longest name of a place that it keeps: s3s-fs makes one file name of a key, in
    /// base64, and has none for 160 bytes and more. Names of volumes have some 90.
    pub fn longest_name(self) -> usize {
        match self {
            Self::S3sFs => 120,
            Self::VersityGw => 200,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::S3sFs => "s3s-fs",
            Self::VersityGw => "versitygw",
        }
    }
}

/// A running store; it ends with its test.
pub struct Store {
    software: Software,
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
    /// Certificate and key, for https.
    tls: Option<(PathBuf, PathBuf)>,
}

impl Store {
    /// `None` where it is not installed (an error in CI).
    pub fn start(world: &World, software: Software, test: &str) -> Option<Self> {
        Self::start_with(world, software, test, None)
    }

    pub fn start_with(
        world: &World,
        software: Software,
        test: &str,
        tls: Option<(PathBuf, PathBuf)>,
    ) -> Option<Self> {
        let program = software.program();
        let found = Command::new(program).arg("--help").output();
        if let Err(error) = found {
            skip(test, &format!("{program} cannot be run: {error} (.ci/run installs it)"));
            return None;
        }
        let dir = world.make_dir(program);
        fs::create_dir_all(dir.join("data").join(BUCKET)).unwrap();
        let keys = dir.join("keys");
        fs::write(&keys, format!("AWS_ACCESS_KEY_ID={KEY}\nAWS_SECRET_ACCESS_KEY={SECRET}\n"))
            .unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut store = Self { software, dir, port, child: None, tls };
        store.start_again();
        Some(store)
    }

    /// After [`Self::kill`]: the same store at the same address.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let (data, port) = (self.dir.join("data"), self.port);
        let mut command = Command::new(self.software.program());
        match self.software {
            Software::S3sFs => {
                command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
                command.args(["--access-key", KEY, "--secret-key", SECRET]).arg(data);
            }
            Software::VersityGw => {
                command.env("ROOT_ACCESS_KEY", KEY).env("ROOT_SECRET_KEY", SECRET);
                command.args(["--port", &format!("127.0.0.1:{port}"), "--quiet"]);
                if let Some((cert, key)) = &self.tls {
                    command.arg("--cert").arg(cert).arg("--key").arg(key);
                }
                command.arg("posix").arg(data);
            }
        }
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        wait_until("the store listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// As a machine that loses its power.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A place in its bucket; `more` settings begin with `&`.
    pub fn url(&self, prefix: &str, more: &str) -> String {
        self.url_by(self.port, prefix, more)
    }

    /// The same, by way of another port.
    pub fn url_by(&self, port: u16, prefix: &str, more: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!(
            "s3://{BUCKET}/{prefix}?endpoint={scheme}://127.0.0.1:{port}&auth=file:{}{more}",
            self.keys().display()
        )
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn software(&self) -> Software {
        self.software
    }

    /// What the store keeps under a prefix.
    pub fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.dir.join("data").join(BUCKET).join(prefix), &mut found);
        found
    }
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let from = log.len().saturating_sub(4000);
            eprintln!("{:?}:\n{}", self.software, log.get(from..).unwrap_or(&log));
        }
        if self.child.is_some() {
            self.kill();
        }
    }
}
