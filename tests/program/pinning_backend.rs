//! A pinning service as a backend: the one of a real IPFS Cluster, which fetches from a real
//! Kubo of ours into one of its own, on loopback.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairnfs::backends::{Backend, BackendSpec, ErrorKind, Presence, conformance, open};
use cairnfs::runtime::Bridge;
use cairnfs::types::Block;

use crate::support::{
    ClusterPeer, KuboDaemon, Proxy, Volume, World, all_read, patient, wait_until, write_files,
};

/// A service, and our Kubo.
struct Service<'w> {
    peer: ClusterPeer<'w>,
    ours: KuboDaemon<'w>,
}

impl<'w> Service<'w> {
    fn start(world: &'w World, test: &str) -> Option<Self> {
        let peer = ClusterPeer::start(world, test, 1)?.pop().unwrap();
        let ours = KuboDaemon::start_as(world, test, "ours", true)?;
        Some(Self { peer, ours })
    }

    fn url(&self, folder: &str) -> String {
        self.url_by(self.peer.service, folder)
    }

    fn url_by(&self, port: u16, folder: &str) -> String {
        format!(
            "pinning+http://127.0.0.1:{port}?folder={folder}&gateway={}\
             &kubo=ipfs://127.0.0.1:{}",
            self.peer.kubo.gateway(),
            self.ours.port()
        )
    }
}

fn backend(url: &str) -> Arc<dyn Backend> {
    open(&BackendSpec::parse(url, &[]).unwrap(), true).unwrap()
}

fn wait<T>(bridge: &Bridge, call: impl Future<Output = T>) -> T {
    bridge.wait(Duration::from_mins(10), call).unwrap()
}

fn block(seed: u8, len: usize) -> Block {
    Block::raw((0..len).map(|i| (i >> 8) as u8 ^ seed).collect::<Vec<u8>>().into())
}

#[test]
fn a_real_pinning_service_passes_the_conformance_suite() {
    let world = World::new();
    let Some(service) = Service::start(&world, "pinning_backend::conformance") else { return };
    let bridge = Bridge::start(2).unwrap();
    let number = AtomicU64::new(0);
    let empty = || {
        let folder = format!("c{}", number.fetch_add(1, Ordering::Relaxed));
        let opened = backend(&service.url(&folder));
        async move { opened }
    };
    wait(&bridge, conformance::run(empty)).unwrap();
}

#[test]
fn a_pinning_service_behind_a_bad_network_does_what_every_backend_does() {
    let world = World::new();
    let Some(service) = Service::start(&world, "pinning_backend::network") else { return };
    let bridge = Bridge::start(2).unwrap();
    let proxy = Proxy::start(service.peer.service);
    let number = AtomicU64::new(0);
    let empty = || {
        let folder = format!("n{}", number.fetch_add(1, Ordering::Relaxed));
        let spec = BackendSpec::parse(&service.url_by(proxy.port(), &folder), &[]).unwrap();
        async move { patient(&spec) }
    };
    wait(&bridge, conformance::run(empty)).unwrap();
    assert!(proxy.harmed() > 20, "{} were harmed", proxy.harmed());
}

#[test]
fn what_a_service_has_is_asked_of_its_gateway_and_never_of_our_kubo() {
    let world = World::new();
    let Some(mut service) = Service::start(&world, "pinning_backend::gateway") else { return };
    let bridge = Bridge::start(2).unwrap();
    let (place, keeps) =
        (backend(&service.url("g")), backend(&format!("{}&keep=1", service.url("k"))));
    let (one, two) = (block(1, 300_000), block(2, 300_000));
    wait(&bridge, place.put(&one)).unwrap();
    wait(&bridge, keeps.put(&two)).unwrap();
    // What the service has pinned need not stay at our Kubo.
    service.ours.gc();
    let ours = |service: &Service<'_>, block: &Block| service.ours.has(&block.cid.to_string());
    assert_eq!((ours(&service, &one), ours(&service, &two)), (false, true));
    // It goes on without our Kubo, but for what is new.
    service.ours.kill();
    assert_eq!(wait(&bridge, place.get(&one.cid, None)).unwrap(), one.data);
    let asked = [one.cid, block(9, 5).cid];
    let found = wait(&bridge, place.presence(&asked)).unwrap();
    assert_eq!(found, [Presence::Present(300_000), Presence::Absent]);
    let refused = wait(&bridge, place.put(&block(3, 100))).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
    assert!(refused.message.contains("kubo="), "{refused}");
    let reads = open(&BackendSpec::parse(&service.url("g"), &[]).unwrap(), false).unwrap();
    assert_eq!(wait(&bridge, reads.get(&one.cid, Some(5..9))).unwrap(), one.data[5..9]);
    service.ours.up();
    // What the service lost is not there, though ours has it.
    let file = service.peer.kubo.file_of(&two);
    service.peer.kubo.kill();
    fs::remove_file(file).unwrap();
    service.peer.kubo.up();
    let lost = wait(&bridge, keeps.get(&two.cid, None)).unwrap_err();
    assert_eq!(lost.kind, ErrorKind::Unavailable, "{lost}");
    assert!(lost.message.contains("gateway="), "{lost}");
    assert!(ours(&service, &two));
    wait(&bridge, keeps.delete(&two.cid)).unwrap();
    wait(&bridge, keeps.put(&two)).unwrap();
    assert_eq!(wait(&bridge, keeps.get(&two.cid, None)).unwrap(), two.data);
    service.peer.kubo.kill();
    let away = wait(&bridge, place.probe()).unwrap_err();
    assert_eq!(away.kind, ErrorKind::Unavailable, "{away}");
}

#[test]
fn a_token_of_a_service_comes_from_a_file_and_is_shown_nowhere() {
    let world = World::new();
    let test = "pinning_backend::token";
    let Some(peer) = ClusterPeer::start_guarded(&world, test, "cairn:hidden") else { return };
    let Some(ours) = KuboDaemon::start_as(&world, test, "ours", true) else { return };
    let service = Service { peer, ours };
    let bare = service.url("t");
    world.cairn(&["backend", "test", &bare]).fails(1, &["401", "auth=file:"]);
    let path = world.path("secret");
    fs::write(&path, "basic:cairn:hidden").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let url = format!("{bare}&auth=file:{}", path.display());
    let run = world.cairn(&["backend", "test", &url]).ok();
    assert!(run.stdout.contains("presence") && !run.stdout.contains("hidden"), "{run:?}");
    let given = bare.replace("127.0.0.1:", "cairn:hidden@127.0.0.1:");
    let refused = world.cairn(&["backend", "test", &given]).fails(2, &["auth=file:", "***"]);
    assert!(!refused.stderr.contains("hidden"), "{refused:?}");
}

#[test]
fn a_volume_on_a_pinning_service_comes_back_from_it_alone() {
    let test = "pinning_backend::mount";
    let Some(world) = World::mountable(test) else { return };
    let Some(mut service) = Service::start(&world, test) else { return };
    let url = format!("{}&id=service", service.url("volume"));
    let volume = Volume { world: &world, dir: world.path("volume") };
    let policy = "min=1,target=2,max=2,level=QUORUM";
    let text = volume.text();
    world.cairn(&["init", "--volume", &text, "--policy", policy, "--backend", &url]).ok();
    volume.probe_often();
    let mount = volume.mount();
    write_files(&mount.at, 0..8);
    wait_until("all are proven", || volume.copies_at("service") == 8 && volume.is_settled());
    // Nobody gives the service blocks: the queue has them until somebody does.
    service.ours.kill();
    write_files(&mount.at, 8..12);
    assert_eq!(volume.copies_at("service"), 8);
    service.ours.up();
    volume.cairn(&["heal", "--backend", "service"]).ok();
    wait_until("it catches up", || volume.copies_at("service") == 12 && volume.is_settled());
    volume.cairn(&["checkpoint", "--now"]).ok();
    mount.umount().ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    service.ours.lose_repo();
    world.cairn(&["recover", "--from", &url, "--volume", &text]).ok();
    let mount = volume.mount();
    all_read(&mount.at, 12);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
