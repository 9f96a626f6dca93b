//! A folder behind SFTP as a backend: OpenSSH's own server, on loopback.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use cairnfs::backends::{
    Backend, BackendError, BackendSpec, ErrorKind, Presence, conformance, open,
};
use cairnfs::runtime::Bridge;
use cairnfs::types::{Block, Cid};

use crate::support::{
    Sshd, Volume, World, all_read, detach, patient, skip, wait_until, write_files,
};

fn opened(url: &str, create: bool) -> Result<Arc<dyn Backend>, BackendError> {
    open(&BackendSpec::parse(url, &[]).unwrap(), create)
}

fn backend(url: &str) -> Arc<dyn Backend> {
    opened(url, true).unwrap()
}

fn wait<T>(bridge: &Bridge, call: impl Future<Output = T>) -> T {
    bridge.wait(Duration::from_mins(10), call).unwrap()
}

fn block(seed: u32, len: usize) -> Block {
    Block::raw(seed.to_le_bytes().into_iter().cycle().take(len).collect::<Vec<u8>>().into())
}

/// What happens to a connection after so many bytes in both directions.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Ended,
    Flipped,
    Silent,
}

/// A way to a server on which no connection lasts.
struct Way {
    port: u16,
    harmed: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

impl Way {
    fn to(server: u16, seed: u64) -> Self {
        eprintln!("seed {seed}");
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let (harmed, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (count, end) = (Arc::clone(&harmed), Arc::clone(&ended));
        thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(seed);
            for client in socket.incoming().map_while(Result::ok) {
                if end.load(Ordering::Acquire) {
                    return;
                }
                let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                // What it takes to be let in, and up to some blocks more.
                let most = random.usize(6_000..3_000_000);
                // A bit of a packet's length is silence, too.
                let harm = match random.u8(..24) {
                    0 => Harm::Silent,
                    1..=3 => Harm::Flipped,
                    _ => Harm::Ended,
                };
                let left = Arc::new(AtomicUsize::new(most));
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), upstream.try_clone().unwrap()),
                    (upstream, client),
                ] {
                    let (left, count) = (Arc::clone(&left), Arc::clone(&count));
                    thread::spawn(move || {
                        carry((&mut from, &mut to), harm, (&left, &count));
                        // The other direction ends, too.
                        for end in [from, to] {
                            drop(end.shutdown(Shutdown::Both));
                        }
                    });
                }
            }
        });
        Self { port, harmed, ended }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn carry(
    (from, to): (&mut TcpStream, &mut TcpStream),
    harm: Harm,
    (left, count): (&AtomicUsize, &AtomicUsize),
) {
    let mut part = vec![0; 16 << 10];
    while let Ok(len @ 1..) = from.read(&mut part) {
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |l| l.checked_sub(len));
        if taken.is_err() {
            count.fetch_add(1, Ordering::Relaxed);
            match harm {
                Harm::Ended => return,
                Harm::Flipped => part[len / 2] ^= 4,
                // Until somebody hangs up.
                Harm::Silent => {
                    while matches!(from.read(&mut part), Ok(1..)) {}
                    return;
                }
            }
        }
        if to.write_all(&part[..len]).is_err() {
            return;
        }
    }
}

#[test]
fn a_folder_behind_openssh_passes_the_conformance_suite() {
    let world = World::new();
    let Some(server) = Sshd::start(&world, "sftp_backend::conformance") else { return };
    let bridge = Bridge::start(2).unwrap();
    let number = AtomicUsize::new(0);
    let empty = || {
        let folder = format!("deep/c{}", number.fetch_add(1, Ordering::Relaxed));
        let opened = backend(&server.url(&folder));
        async move { opened }
    };
    wait(&bridge, conformance::run(empty)).unwrap();
}

#[test]
fn a_folder_behind_a_bad_network_does_what_every_backend_does() {
    let world = World::new();
    let Some(server) = Sshd::start(&world, "sftp_backend::network") else { return };
    let bridge = Bridge::start(2).unwrap();
    let way = Way::to(server.port(), fastrand::u64(..));
    let number = AtomicUsize::new(0);
    let empty = || {
        let folder = format!("n{}", number.fetch_add(1, Ordering::Relaxed));
        // Made by the good way: nobody is asked again while a backend is added.
        backend(&server.url(&folder));
        let spec = BackendSpec::parse(&server.url_by(way.port, &folder), &[]).unwrap();
        async move { patient(&spec) }
    };
    wait(&bridge, conformance::run(empty)).unwrap();
    let harmed = way.harmed.load(Ordering::Relaxed);
    assert!(harmed > 10, "{harmed} were harmed");
}

#[test]
fn it_is_a_directory_to_the_machine_that_has_it() {
    let world = World::new();
    let Some(server) = Sshd::start(&world, "sftp_backend::directory") else { return };
    let bridge = Bridge::start(2).unwrap();
    let (far, path) = (backend(&server.url("place")), world.path("place"));
    let near = backend(path.to_str().unwrap());
    assert_eq!(far.id(), near.id());
    // Larger than a packet, and several of one shard.
    let blocks: Vec<Block> = (0..300).map(|n| block(n, 1 + n as usize * 3000)).collect();
    wait(&bridge, far.put_many(&blocks)).unwrap();
    let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
    let there: Vec<_> = blocks.iter().map(|b| Presence::Present(b.data.len() as u64)).collect();
    for place in [&near, &far] {
        assert_eq!(wait(&bridge, place.presence(&cids)).unwrap(), there);
        for block in blocks.iter().step_by(37) {
            assert_eq!(wait(&bridge, place.get(&block.cid, None)).unwrap(), block.data);
        }
        let page = wait(&bridge, place.list(None, 1000)).unwrap();
        assert_eq!((page.blocks.len(), page.next), (300, None));
    }
    let last = &blocks[299];
    let part = wait(&bridge, far.get(&last.cid, Some(300_000..700_001))).unwrap();
    assert_eq!(part, last.data[300_000..700_001]);
    // Nothing that is written is left behind, and files are their owner's.
    assert_eq!(fs::read_dir(path.join("tmp")).unwrap().count(), 0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("cairn-backend.json"))), (0o700, 0o600));
    wait(&bridge, near.put_name("a/b", &cids[0])).unwrap();
    assert_eq!(wait(&bridge, far.names("a")).unwrap(), [("a/b".to_owned(), cids[0])]);
    // What it holds is counted where a limit is set, and kept.
    let small = backend(&format!("{}&capacity=200MB", server.url("place")));
    let large = block(999, 2_000_000);
    let full = (0..60u32).find_map(|n| {
        wait(&bridge, small.put(&block(1000 + n, 2_000_000))).err().map(|error| (n, error))
    });
    let (count, error) = full.unwrap();
    assert_eq!((count, error.kind), (32, ErrorKind::Full), "{error}");
    wait(&bridge, small.delete_many(&[block(1000, 2_000_000).cid])).unwrap();
    wait(&bridge, small.put(&large)).unwrap();
    // A folder that is gone says nothing of what is absent.
    fs::rename(&path, world.path("away")).unwrap();
    for error in [
        wait(&bridge, far.presence(&cids)).unwrap_err(),
        wait(&bridge, far.get(&cids[0], None)).unwrap_err(),
        wait(&bridge, far.list(None, 10)).unwrap_err(),
        wait(&bridge, far.put(&block(7777, 10))).unwrap_err(),
        wait(&bridge, far.names("")).unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    }
    assert!(opened(&server.url("place"), false).is_err());
    fs::rename(world.path("away"), &path).unwrap();
    assert_eq!(wait(&bridge, far.presence(&cids)).unwrap(), there);
}

#[test]
fn who_is_not_let_in_is_told_why() {
    let world = World::new();
    let test = "sftp_backend::refused";
    let Some(server) = Sshd::start(&world, test) else { return };
    let says = |url: &str, hint: &str| {
        world.cairn(&["backend", "test", url]).fails(1, &[hint]);
    };
    let port = server.port();
    fs::write(world.path("nobody"), "").unwrap();
    says(&server.url_with(port, "x", "stranger", "known"), "identity=");
    says(&server.url_with(port, "x", "key", "nobody"), "known_hosts=");
    fs::write(world.path("others"), {
        let other = fs::read_to_string(world.path("stranger.pub")).unwrap();
        format!("test-host {other}")
    })
    .unwrap();
    says(&server.url_with(port, "x", "key", "others"), "ssh-keygen -R");
    fs::create_dir_all(world.path("full/of")).unwrap();
    let Err(error) = opened(&server.url("full"), true) else { panic!("it is not empty") };
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.message.contains("not empty (it has `of`)"), "{error}");
    fs::create_dir_all(world.path("packed/packs")).unwrap();
    fs::write(
        world.path("packed/cairn-backend.json"),
        r#"{"format":1,"id":"6a1f7a5e-8c1e-4a57-9c3e-2b1f0c9d8e7f","created":1}"#,
    )
    .unwrap();
    says(&server.url("packed"), "archives of many blocks");
    drop(backend(&server.url("tried")));
    let run = world.cairn(&["backend", "test", &server.url("tried")]).ok();
    assert!(run.stdout.contains("presence"), "{run:?}");
    drop(server);
    let Some(other) = Sshd::start_with(&world, test, "other /bin/false") else { return };
    says(&other.url("x"), "Subsystem sftp");
    let Some(other) = Sshd::start_with(&world, test, "sftp /bin/cat") else { return };
    says(&other.url("x"), "cannot reach");
}

/// A disk of 6 MiB, unmounted when its test ends.
struct Disk(PathBuf);

impl Disk {
    fn mount(&self, options: &str) -> bool {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "none"]).arg(&self.0);
        command.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

#[test]
fn a_disk_that_is_full_there_or_read_only_is_told_apart() {
    let world = World::new();
    let test = "sftp_backend::full";
    let Some(server) = Sshd::start(&world, test) else { return };
    let disk = Disk(world.make_dir("disk"));
    if !disk.mount("size=6m") {
        skip(test, "a tmpfs cannot be mounted");
        return;
    }
    let bridge = Bridge::start(2).unwrap();
    let place = backend(&server.url("disk"));
    let found = (0..10u32)
        .find_map(|n| wait(&bridge, place.put(&block(n, 2_000_000))).err())
        .expect("it was never full");
    assert_eq!(found.kind, ErrorKind::Full, "{found}");
    let usage = wait(&bridge, place.usage()).unwrap();
    assert_eq!(usage.capacity_bytes, Some(6 << 20), "{usage:?}");
    // When the file that did not fit is closed there.
    wait_until("it is read-only", || disk.mount("remount,ro"));
    let refused = wait(&bridge, place.put(&block(77, 100))).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::ReadOnly, "{refused}");
    let first = block(0, 2_000_000);
    assert_eq!(wait(&bridge, place.get(&first.cid, None)).unwrap(), first.data);
}

#[test]
fn a_volume_goes_on_while_the_server_is_away_and_comes_back_from_it_alone() {
    let test = "sftp_backend::volume";
    let Some(world) = World::mountable(test) else { return };
    let Some(mut server) = Sshd::start(&world, test) else { return };
    let url = format!("{}&id=nas", server.url("store"));
    let volume = Volume { world: &world, dir: world.path("volume") };
    let text = volume.text();
    let policy = "min=1,target=2,max=2,level=QUORUM";
    world.cairn(&["init", "--volume", &text, "--policy", policy, "--backend", &url]).ok();
    volume.probe_often();
    let mount = volume.mount();
    write_files(&mount.at, 0..8);
    wait_until("all are proven", || volume.copies_at("nas") == 8 && volume.is_settled());
    server.kill();
    write_files(&mount.at, 8..12);
    assert_eq!(volume.copies_at("nas"), 8);
    server.up();
    volume.cairn(&["backend", "recover", "nas"]).ok();
    wait_until("it catches up", || volume.copies_at("nas") == 12 && volume.is_settled());
    volume.cairn(&["checkpoint", "--now"]).ok();
    mount.umount().ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    world.cairn(&["recover", "--from", &url, "--volume", &text]).ok();
    let mount = volume.mount();
    all_read(&mount.at, 12);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
    // It ends with its daemon.
    let alias = format!("-p {}", server.port());
    wait_until("no ssh is left", || {
        let found = Command::new("pgrep").args(["-f", "--", &alias]).output().unwrap();
        found.stdout.is_empty()
    });
}
