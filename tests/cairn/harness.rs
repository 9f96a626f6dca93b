//! Volumes in a temporary folder, and mounts that always end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub struct Place {
    pub dir: tempfile::TempDir,
}

/// Says loudly that a test cannot run here; in CI that is a failure.
pub fn can_mount(test: &str) -> bool {
    let possible = Path::new("/dev/fuse").exists();
    if !possible {
        assert!(std::env::var_os("CI").is_none(), "{test} needs /dev/fuse, and CI skips nothing");
        eprintln!("SKIPPED: {test} needs /dev/fuse");
    }
    possible
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a program that must succeed.
pub fn ok(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn cairn(arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_cairn"), arguments)
}

pub fn cairn_ok(arguments: &[&str]) -> String {
    ok(env!("CARGO_BIN_EXE_cairn"), arguments)
}

/// Runs `cairn`, which must fail with this code; gives its message.
pub fn cairn_fails(code: i32, arguments: &[&str]) -> String {
    let output = cairn(arguments);
    let message = text(&output);
    assert_eq!(output.status.code(), Some(code), "cairn {arguments:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A backend with a failure domain of its own.
    pub fn backend(&self, name: &str) -> String {
        format!("file://{}?domain={name}", self.at(name))
    }

    pub fn mount(&self, volume: &str, mountpoint: &str, more: &[&str]) -> Mount {
        let point = self.path(mountpoint);
        std::fs::create_dir_all(&point).unwrap();
        let volume = self.at(volume);
        let mut arguments = vec!["mount", point.to_str().unwrap(), "--volume", &volume];
        arguments.extend(more);
        cairn_ok(&arguments);
        Mount { point, volume }
    }

    /// A volume with two backends, mounted.
    pub fn mount_usual(&self, more: &[&str]) -> Mount {
        let (b, c) = (self.backend("b"), self.backend("c"));
        let mut all = vec!["--backend", &b, "--backend", &c];
        all.extend(more);
        self.mount("volume", "mnt", &all)
    }
}

pub struct Mount {
    pub point: PathBuf,
    pub volume: String,
}

impl Mount {
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&cairn_ok(&["status", "--volume", &self.volume, "--json"])).unwrap()
    }

    pub fn umount(self) {
        cairn_ok(&["umount", self.point.to_str().unwrap()]);
        std::mem::forget(self);
    }

    /// Kills the daemon at once.
    pub fn kill(self) {
        let lock = Path::new(&self.volume).join("lock");
        let pid = std::fs::read_to_string(&lock).unwrap();
        ok("kill", &["-9", pid.trim()]);
        // The lock is free once the process is gone.
        ok("flock", &[lock.to_str().unwrap(), "true"]);
        detach(&self.point);
        std::mem::forget(self);
    }
}

fn detach(point: &Path) {
    let point = point.to_str().unwrap();
    for (program, arguments) in [("umount", vec!["-l", point]), ("fusermount3", vec!["-uz", point])]
    {
        if Command::new(program)
            .args(&arguments)
            .output()
            .is_ok_and(|output| output.status.success())
        {
            return;
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let point = self.point.to_str().unwrap();
        if !cairn(&["umount", point, "--force"]).status.success() {
            detach(&self.point);
        }
    }
}

/// A small tree with everything that a copy must keep.
pub fn make_tree(top: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let at = |name: &str| top.join(name).to_str().unwrap().to_owned();
    std::fs::create_dir_all(top.join("sub/deep")).unwrap();
    for i in 0..50 {
        std::fs::write(top.join(format!("sub/file-{i}")), format!("content {i}").repeat(i * 20))
            .unwrap();
    }
    std::fs::write(top.join("empty"), b"").unwrap();
    let large: Vec<u8> = (0..875_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
    std::fs::write(top.join("sub/large"), large).unwrap();
    std::os::unix::fs::symlink("sub/file-1", top.join("link")).unwrap();
    std::fs::hard_link(top.join("sub/file-2"), top.join("sub/deep/hard")).unwrap();
    std::fs::write(top.join(std::ffi::OsStr::from_bytes(b"bad-\xff-name")), b"x").unwrap();
    std::fs::write(top.join("new\nline"), b"y").unwrap();
    ok("chmod", &["4711", &at("sub/file-3")]);
    ok("touch", &["-d", "1961-04-12T06:07:00.123456789Z", &at("sub/file-4")]);
    ok("setfattr", &["-n", "user.colour", "-v", "blue", &at("sub/file-5")]);
}

/// Compares two trees, with hard links, xattrs and times.
pub fn same(a: &Path, b: &Path) {
    let (a, b) = (format!("{}/", a.display()), format!("{}/", b.display()));
    let output = run("rsync", &["-aHXnci", "--delete", &a, &b]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "trees differ");
}
