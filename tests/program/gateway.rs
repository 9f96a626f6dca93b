//! `cairn gateway`: a volume's contents over HTTP.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap};
use tokio::runtime::Runtime;

use crate::support::{Volume, World, http_client, run, skip, wait_until};

/// `cairn gateway`, which ends with its test.
struct Gateway {
    url: String,
    runtime: Runtime,
    client: reqwest::Client,
    child: Child,
    /// Nobody may hang up on it.
    _said: BufReader<ChildStdout>,
}

/// Status, head and body.
type Got = (u16, HeaderMap, Vec<u8>);

impl Gateway {
    fn start(world: &World, volume: &Volume<'_>, more: &[&str]) -> Self {
        let mut command = world.command(env!("CARGO_BIN_EXE_cairn"));
        command.args(["gateway", "--volume", &volume.text(), "--listen", "127.0.0.1:0"]).args(more);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let url = line.split_whitespace().last().unwrap().to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "{line}");
        let client = http_client();
        Self { url, runtime: Runtime::new().unwrap(), client, child, _said: said }
    }

    fn get_with(&self, path: &str, head: &[(&str, &str)]) -> Got {
        self.runtime.block_on(async {
            let mut request = self.client.get(format!("{}{path}", self.url));
            for (name, value) in head {
                request = request.header(*name, *value);
            }
            let answer = request.send().await.unwrap();
            let (status, head) = (answer.status().as_u16(), answer.headers().clone());
            (status, head, answer.bytes().await.unwrap().to_vec())
        })
    }

    fn get(&self, path: &str) -> Got {
        self.get_with(path, &[])
    }

    fn end(mut self, signal: rustix::process::Signal) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait().map(drop)).unwrap_or_default();
    }
}

fn long() -> Vec<u8> {
    (0..900_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// A tree with a long file, a page, an odd name, links, and something private.
fn fill(at: &std::path::Path) {
    fs::create_dir_all(at.join("d/e")).unwrap();
    fs::write(at.join("d/long.bin"), long()).unwrap();
    fs::write(at.join("d/e/small.txt"), "small").unwrap();
    fs::write(at.join("d/a <b>&'\" ü.html"), "<p>page</p>").unwrap();
    symlink("../d/e/small.txt", at.join("d/to")).unwrap();
    symlink("../../etc/passwd", at.join("d/out")).unwrap();
    symlink("/etc/passwd", at.join("d/far")).unwrap();
    fs::write(at.join("d/secret"), "secret").unwrap();
    fs::set_permissions(at.join("d/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(at.join("closed")).unwrap();
    fs::write(at.join("closed/in"), "in").unwrap();
    fs::set_permissions(at.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn files_are_read_by_path_as_they_are_now_and_private_ones_are_not() {
    let Some(world) = World::mountable("gateway::files") else { return };
    let volume = world.volume(&["a"], "min=2,target=2,max=2");
    let mount = volume.mount();
    fill(&mount.at);
    let gateway = Gateway::start(&world, &volume, &[]);
    let (status, head, body) = gateway.get("/files/d/long.bin");
    assert!(status == 200 && body == long());
    let tag = head[ETAG].to_str().unwrap().to_owned();
    // Parts, and what is known already.
    for (asked, wanted) in [
        ("bytes=0-9", 0..10),
        ("bytes=1048570-1048585", 1_048_570..1_048_586),
        ("bytes=3599990-", 3_599_990..3_600_000),
        ("bytes=-7", 3_599_993..3_600_000),
    ] {
        let (status, head, body) = gateway.get_with("/files/d/long.bin", &[("range", asked)]);
        assert_eq!(status, 206, "{asked}");
        let of = format!("bytes {}-{}/3600000", wanted.start, wanted.end - 1);
        assert_eq!(head[CONTENT_RANGE], of);
        assert!(body == long()[wanted], "{asked}");
    }
    let status = |path: &str, head: &[(&str, &str)]| gateway.get_with(path, head).0;
    assert_eq!(status("/files/d/long.bin", &[("range", "bytes=3600000-")]), 416);
    assert_eq!(status("/files/d/long.bin", &[("if-none-match", &tag)]), 304);
    let other = [("range", "bytes=0-9"), ("if-range", "\"other\"")];
    assert_eq!(status("/files/d/long.bin", &other), 200);
    // What changes is another thing at once.
    fs::write(mount.at.join("d/e/small.txt"), "changed").unwrap();
    assert_eq!(gateway.get("/files/d/e/small.txt").2, b"changed");
    assert_eq!(gateway.get("/files/d/to").2, b"changed", "by a link");
    for (path, wanted) in [
        ("/files/d/none", 404),
        ("/files/d/e/small.txt/x", 404),
        ("/files/d/out", 404),
        ("/files/d/far", 404),
        ("/files/%2e%2e/%2e%2e/etc/passwd", 404),
        ("/files/d/secret", 403),
        ("/files/closed/", 403),
        ("/files/closed/in", 403),
        ("/other", 404),
    ] {
        assert_eq!(status(path, &[]), wanted, "{path}");
    }
    let (status, head, page) = gateway.get("/files/d/");
    let page = String::from_utf8(page).unwrap();
    assert!(status == 200 && head[CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
    assert!(page.contains("a &lt;b&gt;&amp;&#39;&quot; ü.html") && !page.contains("<b>"), "{page}");
    let (_, _, json) = gateway.get_with("/files/d", &[("accept", "application/json")]);
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let entries = json["entries"].as_array().unwrap();
    let page = entries.iter().find(|one| one["name"].as_str().unwrap().starts_with('a')).unwrap();
    let path = format!("/files/d/{}", page["href"].as_str().unwrap());
    let (_, head, body) = gateway.get(&path);
    assert_eq!(body, b"<p>page</p>");
    assert_eq!(head["content-security-policy"], "sandbox");
    assert!(head[CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
    // Who may see all asks for it.
    let open = Gateway::start(&world, &volume, &["--all"]);
    assert_eq!(open.get("/files/d/secret").2, b"secret");
    assert_eq!(open.get("/files/closed/in").2, b"in");
    drop(open);
    // It ends with the mount, and holds nothing of it.
    mount.umount().ok();
    let mut gateway = gateway;
    wait_until("it ends", || gateway.child.try_wait().unwrap().is_some());
    assert!(gateway.child.wait().unwrap().success());
}

#[test]
fn contents_are_read_by_cid_from_wherever_they_are() {
    let Some(world) = World::mountable("gateway::cid") else { return };
    let volume = world.volume(&["a"], "min=2,target=2,max=2");
    let mount = volume.mount();
    fill(&mount.at);
    let cid = |path: &str| {
        let said = world.cairn(&["cid", mount.at.join(path).to_str().unwrap()]).ok().stdout;
        said.split_whitespace().next().unwrap().to_owned()
    };
    let (dir, file) = (cid("d"), cid("d/long.bin"));
    let gateway = Gateway::start(&world, &volume, &[]);
    let (status, head, body) = gateway.get(&format!("/ipfs/{file}"));
    assert!(status == 200 && body == long());
    assert_eq!(head[ETAG], format!("\"{file}\""));
    assert!(head["cache-control"].to_str().unwrap().contains("immutable"));
    let across = [("range", "bytes=1048570-2097160")];
    let (status, _, body) = gateway.get_with(&format!("/ipfs/{dir}/long.bin"), &across);
    assert!(status == 206 && body == long()[1_048_570..2_097_161]);
    assert_eq!(gateway.get(&format!("/ipfs/{dir}/e/small.txt")).2, b"small");
    let (status, _, page) = gateway.get(&format!("/ipfs/{dir}"));
    assert!(status == 200 && String::from_utf8(page).unwrap().contains("long.bin"));
    let (status, head, _) = gateway.get(&format!("/ipfs/{dir}/e?format=raw"));
    assert_eq!((status, head[CONTENT_TYPE].to_str().unwrap()), (200, "application/vnd.ipld.raw"));
    let absent = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    for (path, wanted) in [
        (format!("/ipfs/{dir}/none"), 404),
        (format!("/ipfs/{absent}x"), 400),
        ("/ipfs/nothing".to_owned(), 400),
        (format!("/ipfs/{}?format=raw", absent.replace("hdw", "hdx")), 404),
    ] {
        assert_eq!(gateway.get(&path).0, wanted, "{path}");
    }
    // A whole tree, by its CID and by its path, for others to open.
    let (status, _, car) = gateway.get(&format!("/ipfs/{dir}?format=car"));
    assert_eq!(status, 200);
    assert!(gateway.get("/files/d?format=car").2 == car);
    let file = world.path("d.car");
    fs::write(&file, &car).unwrap();
    world.cairn(&["car", "verify", file.to_str().unwrap()]).ok();
    if Command::new("ipfs-car").arg("--version").output().is_err() {
        skip("gateway::ipfs-car", "ipfs-car is not installed (npm install -g ipfs-car@3.1.0)");
    } else {
        let mut list = world.command("ipfs-car");
        list.args(["blocks", file.to_str().unwrap()]);
        run(list, Duration::from_mins(1)).ok();
    }
    // Without a mount, until it is interrupted.
    drop(gateway);
    mount.umount().ok();
    let gateway = Gateway::start(&world, &volume, &[]);
    assert_eq!(gateway.get("/files/d/e/small.txt").2, b"small");
    assert_eq!(gateway.end(rustix::process::Signal::INT), 0);
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn beyond_this_machine_a_gateway_wants_tokens_and_certificates() {
    let Some(world) = World::mountable("gateway::door") else { return };
    let volume = world.volume(&["a"], "min=2,target=2,max=2");
    let mount = volume.mount();
    fs::write(mount.at.join("f"), "f").unwrap();
    let tokens = world.path("tokens");
    fs::write(&tokens, "read 0123456789abcdef\n").unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let text = tokens.to_str().unwrap();
    volume.cairn(&["gateway", "--listen", "0.0.0.0:0"]).fails(2, &["--tokens", "--insecure"]);
    volume.cairn(&["gateway", "--listen", "0.0.0.0:0", "--tokens", text]).fails(2, &["--cert"]);
    let gateway = Gateway::start(&world, &volume, &["--tokens", text]);
    assert_eq!(gateway.get("/files/f").0, 401);
    let with = |token: &str| gateway.get_with("/files/f", &[("authorization", token)]).0;
    assert_eq!(with("Bearer 0123456789abcdef"), 200);
    assert_eq!(with("Bearer 0123456789abcdeg"), 401);
    let port = gateway.url.rsplit(':').next().unwrap().to_owned();
    volume.cairn(&["gateway", "--listen", &format!("127.0.0.1:{port}")]).fails(1, &["listen"]);
    mount.umount().ok();
}
