//! Storage nodes: other Cairns on loopback.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cairnfs::backends::{BackendSpec, conformance};

use crate::s3::certificates;
use crate::support::{
    Proxy, Run, World, all_read, content, http_client, patient, run, skip, wait_until, write_files,
};

const TOKEN: &str = "0123456789-token-of-a-test";

/// `cairn serve`, which ends with its test.
pub(crate) struct Node<'w> {
    world: &'w World,
    name: String,
    pub(crate) port: u16,
    tls: Option<(PathBuf, PathBuf, PathBuf)>,
    /// With what it says: nobody may hang up on it.
    child: Option<(Child, BufReader<ChildStdout>)>,
}

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

impl<'w> Node<'w> {
    pub(crate) fn start(world: &'w World, name: &str) -> Self {
        Self::start_with(world, name, None)
    }

    fn start_with(world: &'w World, name: &str, tls: Option<(PathBuf, PathBuf, PathBuf)>) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        secret(&world.path("tokens"), &format!("admin {TOKEN}\n"));
        secret(&world.path("token"), TOKEN);
        let mut node = Self { world, name: name.to_owned(), port, tls, child: None };
        node.up();
        node
    }

    fn store(&self) -> String {
        // One of archives among them.
        let kind = if self.name == "n2" || self.name.starts_with('c') { "car" } else { "file" };
        format!("{kind}://{}", self.world.path(&self.name).display())
    }

    fn up(&mut self) {
        let mut command = self.world.command(env!("CARGO_BIN_EXE_cairn"));
        command
            .args(["serve", "--store", &self.store(), "--tokens"])
            .arg(self.world.path("tokens"));
        command.args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        if let Some((cert, key, _)) = &self.tls {
            command.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        let log = self.world.path(&format!("{}.log", self.name));
        let log = fs::File::options().append(true).create(true).open(log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert!(line.contains(&self.port.to_string()), "{line}");
        self.child = Some((child, said));
    }

    /// As a machine that loses its power.
    fn kill(&mut self) {
        let (mut child, _said) = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn url(&self) -> String {
        self.url_by(self.port)
    }

    pub(crate) fn url_by(&self, port: u16) -> String {
        let (scheme, more) = match &self.tls {
            Some((_, _, ca)) => ("cairn+https", format!("&ca={}", ca.display())),
            None => ("cairn", String::new()),
        };
        let token = self.world.path("token");
        let name = &self.name;
        format!(
            "{scheme}://127.0.0.1:{port}?id={name}&domain={name}&auth=file:{}{more}",
            token.display()
        )
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Some((mut child, _said)) = self.child.take() {
            child.kill().and_then(|()| child.wait().map(drop)).unwrap_or_default();
        }
        if std::thread::panicking() {
            let log = self.world.path(&format!("{}.log", self.name));
            eprintln!("{}: {}", self.name, fs::read_to_string(log).unwrap_or_default());
        }
    }
}

#[test]
fn three_nodes_are_a_replicated_store_that_a_dead_one_comes_back_to() {
    let Some(world) = World::mountable("nodes::three") else { return };
    let mut nodes = ["n1", "n2", "n3"].map(|name| Node::start(&world, name));
    let urls = [nodes[0].url(), nodes[1].url(), nodes[2].url()];
    let volume = world.volume_on(&urls, "min=2,target=4,max=4");
    let mount = volume.mount();
    write_files(&mount.at, 0..8);
    let there = |count: u64| ["n1", "n2", "n3"].iter().all(|id| volume.copies_at(id) == count);
    wait_until("all nodes have all", || there(8));
    nodes[2].kill();
    write_files(&mount.at, 8..16);
    let status = volume.status();
    assert_ne!(status["queue"]["pending"], 0, "{status}");
    nodes[2].up();
    let since = Instant::now();
    wait_until("it catches up", || there(16));
    eprintln!("caught up after {:.1} s", since.elapsed().as_secs_f64());
    // Again, by hand.
    nodes[2].kill();
    write_files(&mount.at, 16..24);
    nodes[2].up();
    let since = Instant::now();
    volume.cairn(&["backend", "recover", "n3"]).ok();
    wait_until("it catches up", || there(24));
    eprintln!("by hand: after {:.1} s", since.elapsed().as_secs_f64());
    all_read(&mount.at, 24);
    volume.cairn(&["checkpoint", "--now"]).ok();
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
    // Each has all that is needed, metadata included.
    let [_, archives, _] = &nodes;
    let from = archives.url();
    fs::remove_dir_all(&volume.dir).unwrap();
    nodes[0].kill();
    nodes[2].kill();
    world.cairn(&["recover", "--from", &from, "--volume", &volume.text()]).ok();
    let mount = volume.mount();
    all_read(&mount.at, 24);
    mount.umount().ok();
}

#[test]
fn a_node_behind_a_bad_network_does_what_every_backend_does() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut harmed = 0;
    // Over directories, and over archives.
    for kind in ["d", "c"] {
        // A store for each part of the suite.
        let nodes = std::sync::Mutex::new(Vec::new());
        let made = || {
            let mut nodes = nodes.lock().unwrap();
            let node = Node::start(&world, &format!("{kind}{}", nodes.len()));
            let proxy = Proxy::start(node.port);
            let spec = BackendSpec::parse(&node.url_by(proxy.port()), &[]).unwrap();
            nodes.push((node, proxy));
            async move { tokio::task::block_in_place(|| patient(&spec)) }
        };
        if let Err(violation) = runtime.block_on(conformance::run(made)) {
            panic!("{violation}");
        }
        harmed += nodes.lock().unwrap().iter().map(|(_, proxy)| proxy.harmed()).sum::<usize>();
    }
    assert!(harmed > 20, "{harmed} were harmed");
}

#[test]
fn a_node_is_spoken_to_by_tls_and_refuses_strangers() {
    let world = World::new();
    let Some(tls) = certificates(&world.make_dir("tls")) else {
        skip("nodes::tls", "openssl is not installed");
        return;
    };
    let node = Node::start_with(&world, "n1", Some(tls));
    let test = |url: &str| -> Run { world.cairn(&["backend", "test", url]) };
    let url = node.url();
    test(&url).ok();
    // Its own authority only.
    let strange = url.split("&ca=").next().unwrap();
    test(strange).fails(1, &["ca="]);
    secret(&world.path("token"), "another-token-of-a-test");
    let refused = test(&url).fails(1, &["token"]);
    assert!(!format!("{}{}", refused.stdout, refused.stderr).contains("another-token"));
    // Others read its tokens, or guess them.
    let tokens = world.path("tokens");
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o644)).unwrap();
    let store = world.path("other");
    let serve = |more: &[&str]| {
        let words = ["serve", "--store", store.to_str().unwrap(), "--listen"];
        world.cairn(&[&words, more].concat())
    };
    serve(&["127.0.0.1:0", "--tokens", tokens.to_str().unwrap()]).fails(2, &["chmod 600"]);
    serve(&["0.0.0.0:0"]).fails(2, &["--tokens"]);
    let taken = node.port.to_string();
    serve(&[&format!("127.0.0.1:{taken}")]).fails(1, &["cannot listen"]);
}

#[test]
fn what_a_node_gives_as_a_car_is_unpacked_by_others() {
    let Some(world) = World::mountable("nodes::car") else { return };
    if Command::new("ipfs-car").arg("--version").output().is_err() {
        skip("nodes::car", "ipfs-car is not installed (npm install -g ipfs-car@3.1.0)");
        return;
    }
    let node = Node::start(&world, "n2");
    let volume = world.volume_on(&[node.url()], "min=2,target=2,max=2");
    let mount = volume.mount();
    write_files(&mount.at, 0..8);
    wait_until("all are there", || volume.copies_at("n2") == 8);
    let cid = world.cairn(&["cid", &mount.text("f7")]).ok().stdout;
    let cid = cid.split_whitespace().next().unwrap().to_owned();
    let url = format!("http://127.0.0.1:{}/ipfs/{cid}?format=car", node.port);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let car = runtime.block_on(async {
        let client = http_client();
        let answer = client.get(url).bearer_auth(TOKEN).send().await.unwrap();
        answer.error_for_status().unwrap().bytes().await.unwrap()
    });
    let (file, out) = (world.path("f7.car"), world.path("f7.out"));
    fs::write(&file, &car).unwrap();
    world.cairn(&["car", "verify", file.to_str().unwrap()]).ok();
    let mut unpack = world.command("ipfs-car");
    unpack.args(["unpack", file.to_str().unwrap(), "--output", out.to_str().unwrap()]);
    run(unpack, Duration::from_mins(1)).ok();
    assert!(fs::read(out).unwrap() == content(7));
    mount.umount().ok();
}
