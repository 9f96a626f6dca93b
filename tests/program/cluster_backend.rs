//! IPFS Cluster as a backend: two real peers, each before a real Kubo, on loopback.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairnfs::backends::{Backend, BackendSpec, ErrorKind, Presence, conformance, open};
use cairnfs::runtime::Bridge;
use cairnfs::types::{Block, Cid};

use crate::support::{ClusterPeer, Proxy, Volume, World, patient, wait_until};

/// Both peers have to have each block.
const EVERYWHERE: &str = "&replication_min=2&replication_max=-1";

fn backend(url: &str) -> Arc<dyn Backend> {
    open(&BackendSpec::parse(url, &[]).unwrap(), true).unwrap()
}

fn wait<T>(bridge: &Bridge, call: impl Future<Output = T>) -> T {
    bridge.wait(Duration::from_mins(10), call).unwrap()
}

fn blocks(seed: u8, count: u32) -> Vec<Block> {
    let data = |n: u32| [n.to_le_bytes().repeat(300), vec![seed; 7]].concat();
    (0..count).map(|n| Block::raw(data(n).into())).collect()
}

fn cids(blocks: &[Block]) -> Vec<Cid> {
    blocks.iter().map(|block| block.cid).collect()
}

#[test]
fn a_real_cluster_passes_the_conformance_suite() {
    let world = World::new();
    let Some(peers) = ClusterPeer::start(&world, "cluster_backend::conformance", 2) else { return };
    let bridge = Bridge::start(2).unwrap();
    let number = AtomicU64::new(0);
    let empty = || {
        let folder = format!("c{}", number.fetch_add(1, Ordering::Relaxed));
        let opened = backend(&peers[0].url(&folder, EVERYWHERE));
        async move { opened }
    };
    wait(&bridge, conformance::run(empty)).unwrap();
}

#[test]
fn a_cluster_behind_a_bad_network_does_what_every_backend_does() {
    let world = World::new();
    let Some(peers) = ClusterPeer::start(&world, "cluster_backend::network", 2) else { return };
    let bridge = Bridge::start(2).unwrap();
    let (rest, kubo) = (Proxy::start(peers[0].port), Proxy::start(peers[0].proxy));
    let number = AtomicU64::new(0);
    let empty = || {
        let folder = format!("n{}", number.fetch_add(1, Ordering::Relaxed));
        let url = format!(
            "ipfs-cluster://127.0.0.1:{}/{folder}?kubo=ipfs://127.0.0.1:{}{EVERYWHERE}",
            rest.port(),
            kubo.port()
        );
        let spec = BackendSpec::parse(&url, &[]).unwrap();
        async move { patient(&spec) }
    };
    wait(&bridge, conformance::run(empty)).unwrap();
    assert!(rest.harmed() > 20 && kubo.harmed() > 10, "{} {}", rest.harmed(), kubo.harmed());
}

#[test]
fn a_block_at_another_peer_is_read_from_its_kubo_or_not_at_all_unless_asked() {
    let world = World::new();
    let Some(peers) = ClusterPeer::start(&world, "cluster_backend::places", 2) else { return };
    let bridge = Bridge::start(2).unwrap();
    let one_copy = "&replication_min=1&replication_max=1&durable=1";
    // From one of the Kubos alone a part of them could not be read.
    let spec = BackendSpec::parse(&peers[0].url("p", one_copy), &[]).unwrap();
    let refused = open(&spec, true).err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Invalid);
    assert!(refused.message.contains("fetch=1") && refused.message.contains("kubo="), "{refused}");
    let both = format!(
        "ipfs-cluster://127.0.0.1:{}/p?kubo=ipfs://127.0.0.1:{},ipfs://127.0.0.1:{}{one_copy}\
         &metadata=owner:me",
        peers[0].port,
        peers[0].kubo.port(),
        peers[1].kubo.port()
    );
    let place = backend(&both);
    let all = blocks(1, 40);
    for part in all.chunks(10) {
        wait(&bridge, place.put_many(part)).unwrap();
    }
    // Each lies at one peer, and by what is free there it is not always the same one.
    let has = |peer: usize, block: &Block| peers[peer].kubo.has(&block.cid.to_string());
    for block in &all {
        assert!(has(0, block) != has(1, block), "{}", block.cid);
        assert_eq!(wait(&bridge, place.get(&block.cid, None)).unwrap(), block.data);
    }
    let found = wait(&bridge, place.presence(&cids(&all))).unwrap();
    assert!(found.iter().all(|found| matches!(found, Presence::Present(1207))), "{found:?}");
    // Read where the other one's Kubo is not asked.
    let elsewhere: Vec<&Block> = all.iter().filter(|block| !has(0, block)).collect();
    let here: Vec<&Block> = all.iter().filter(|block| has(0, block)).collect();
    let narrow = open(&spec, false).unwrap();
    for block in here.iter().take(3) {
        assert_eq!(wait(&bridge, narrow.get(&block.cid, None)).unwrap(), block.data);
    }
    // Were all of them at the first, the second would be the one that lacks them.
    let (lacks, lacked) = if elsewhere.is_empty() { (1, here) } else { (0, elsewhere) };
    let url = |more: &str| peers[lacks].url("p", &format!("{one_copy}{more}"));
    let narrow = open(&BackendSpec::parse(&url(""), &[]).unwrap(), false).unwrap();
    let said = wait(&bridge, narrow.get(&lacked[0].cid, None)).unwrap_err();
    assert_eq!(said.kind, ErrorKind::Unavailable);
    assert!(said.message.contains("fetch=1"), "{said}");
    assert!(!has(lacks, lacked[0]), "a read had it come over the network");
    let found = wait(&bridge, narrow.presence(&[lacked[0].cid])).unwrap();
    assert_eq!(found, [Presence::Present(1207)], "the cluster has it all the same");
    let gone = wait(&bridge, narrow.get(&Block::raw("none".into()).cid, None)).unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound);
    let fetches = backend(&url("&fetch=1"));
    assert_eq!(wait(&bridge, fetches.get(&lacked[0].cid, None)).unwrap(), lacked[0].data);
}

#[test]
fn a_put_counts_when_enough_peers_have_it_and_what_failed_is_tried_again() {
    let world = World::new();
    let Some(peers) = ClusterPeer::start(&world, "cluster_backend::copies", 2) else { return };
    let bridge = Bridge::start(2).unwrap();
    let two = "&replication_min=2&replication_max=2&fetch=1";
    let place = backend(&peers[0].url("", two));
    let all = blocks(2, 6);
    wait(&bridge, place.put_many(&all[..3])).unwrap();
    for block in &all[..3] {
        assert!(peers.iter().all(|peer| peer.kubo.has(&block.cid.to_string())), "{}", block.cid);
    }
    let usage = wait(&bridge, place.usage()).unwrap();
    assert!(usage.available_bytes.is_some_and(|bytes| bytes > 1 << 30), "{usage:?}");
    wait(&bridge, place.probe()).unwrap();
    // A pin that is lost at one peer is seen, and brought back by the next put.
    let pins = || {
        let all = peers[1].kubo.ipfs(&["pin", "ls", "--type=recursive", "--quiet"]).ok().stdout;
        // Holders lie in their own CIDs.
        let ours = all.lines().filter(|pin| pin.starts_with("bafyaa"));
        ours.map(str::to_owned).collect::<std::collections::BTreeSet<String>>()
    };
    let before = pins();
    assert_eq!(before.len(), 3, "{before:?}");
    for pin in &before {
        peers[1].kubo.ipfs(&["pin", "rm", pin]).ok();
    }
    wait(&bridge, place.put_many(&all[..3])).unwrap();
    assert_eq!(pins(), before);
}

#[test]
fn a_put_is_refused_while_a_peer_that_is_needed_is_away_and_taken_when_it_is_back() {
    let world = World::new();
    let Some(mut peers) = ClusterPeer::start(&world, "cluster_backend::away", 2) else { return };
    let bridge = Bridge::start(2).unwrap();
    let place = backend(&peers[0].url("", EVERYWHERE));
    let all = blocks(4, 3);
    wait(&bridge, place.put(&all[0])).unwrap();
    // The second one's Kubo alone: the peer is there and cannot pin.
    peers[1].kubo.kill();
    let refused = wait(&bridge, place.put(&all[1])).unwrap_err();
    assert!(refused.kind != ErrorKind::Invalid, "it may be tried again: {refused}");
    peers[1].kubo.up();
    wait_until("it is pinned at both", || wait(&bridge, place.put(&all[1])).is_ok());
    assert!(peers.iter().all(|peer| peer.kubo.has(&all[1].cid.to_string())));
    // The whole peer.
    peers[1].kill();
    wait_until("the other one knows that it is away", || {
        let told = wait(&bridge, place.probe()).err().map(|error| error.message);
        told.is_some_and(|told| told.contains("1 of 2 peers"))
    });
    let refused = wait(&bridge, place.put(&all[2])).unwrap_err();
    assert!(refused.kind != ErrorKind::Invalid, "it may be tried again: {refused}");
    for block in &all[..2] {
        assert_eq!(wait(&bridge, place.get(&block.cid, None)).unwrap(), block.data);
    }
    peers[1].up();
    wait_until("the other one knows that it is back", || wait(&bridge, place.probe()).is_ok());
    wait_until("it is pinned at both", || wait(&bridge, place.put(&all[2])).is_ok());
    let found = wait(&bridge, place.presence(&cids(&all))).unwrap();
    assert!(found.iter().all(|found| matches!(found, Presence::Present(_))), "{found:?}");
}

#[test]
fn what_was_deleted_goes_and_what_is_lost_or_wrong_at_a_kubo_is_seen_and_put_right() {
    let world = World::new();
    let Some(mut peers) = ClusterPeer::start(&world, "cluster_backend::rot", 1) else { return };
    let bridge = Bridge::start(2).unwrap();
    // What is asked of each pin is there; what ends by itself counts for no copy.
    let brief = backend(&peers[0].url("m", "&durable=1&metadata=owner:me&expire_in=30d"));
    assert!(!brief.capabilities().durable);
    wait(&bridge, brief.put(&Block::raw("brief".into()))).unwrap();
    let pin = peers[0].asks("/allocations?filter=pin");
    assert_eq!(
        (&pin["name"], &pin["metadata"]["owner"]),
        (&"cairn:cluster:m".into(), &"me".into())
    );
    assert!(pin["expire_at"].as_str().is_some_and(|time| time > "2026"), "{pin}");
    let place = backend(&peers[0].url("", "&durable=1"));
    assert!(place.capabilities().durable);
    let all = blocks(3, 4);
    wait(&bridge, place.put_many(&all)).unwrap();
    wait(&bridge, place.put_name("volumes/v/x", &all[0].cid)).unwrap();
    peers[0].kubo.gc();
    let here = |block: &Block| peers[0].kubo.has(&block.cid.to_string());
    assert!(all.iter().all(here), "its Kubo collects nothing that counts");
    wait(&bridge, place.delete(&all[0].cid)).unwrap();
    wait_until("its bytes go", || {
        peers[0].kubo.gc();
        !here(&all[0])
    });
    let file = |block: &Block| peers[0].kubo.file_of(block);
    fs::write(file(&all[1]), vec![9; all[1].data.len()]).unwrap();
    fs::remove_file(file(&all[2])).unwrap();
    let found = wait(&bridge, place.presence(&cids(&all))).unwrap();
    assert_eq!((found[0], found[2]), (Presence::Absent, Presence::Absent));
    let lost = wait(&bridge, place.get(&all[2].cid, None)).unwrap_err();
    assert_eq!(lost.kind, ErrorKind::NotFound, "{lost}");
    wait(&bridge, place.delete(&all[1].cid)).unwrap();
    wait(&bridge, place.put_many(&all)).unwrap();
    for block in &all {
        assert_eq!(wait(&bridge, place.get(&block.cid, None)).unwrap(), block.data);
    }
    let pages = wait(&bridge, place.list(None, 100)).unwrap().blocks;
    assert_eq!(pages.len(), 4);
    // A listing goes on when the peer was started anew, and in another process.
    let first = wait(&bridge, place.list(None, 2)).unwrap();
    peers[0].kill();
    peers[0].up();
    let anew = backend(&peers[0].url("", "&durable=1"));
    let rest = wait(&bridge, anew.list(first.next.as_deref(), 100)).unwrap();
    assert_eq!([first.blocks, rest.blocks].concat(), pages);
    let names = wait(&bridge, anew.names("volumes/")).unwrap();
    assert_eq!(names, [("volumes/v/x".to_owned(), all[0].cid)]);
}

#[test]
fn a_user_or_a_token_of_a_cluster_comes_from_a_file_and_is_shown_nowhere() {
    let world = World::new();
    let test = "cluster_backend::token";
    let Some(peer) = ClusterPeer::start_guarded(&world, test, "cairn:hidden") else { return };
    let bare = peer.url("", "");
    world.cairn(&["backend", "test", &bare]).fails(1, &["401", "auth=file:", "basic_auth"]);
    let path = world.path("secret");
    let url = format!("{bare}&auth=file:{}", path.display());
    for secret in ["basic:cairn:hidden".to_owned(), format!("bearer:{}", peer.token())] {
        fs::write(&path, &secret).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let run = world.cairn(&["backend", "test", &url]).ok();
        assert!(run.stdout.contains("presence") && !run.stdout.contains("hidden"), "{run:?}");
    }
    let given = bare.replace("127.0.0.1:", "cairn:hidden@127.0.0.1:");
    let refused = world.cairn(&["backend", "test", &given]).fails(2, &["auth=file:", "***"]);
    assert!(!refused.stderr.contains("hidden"), "{refused:?}");
}

#[test]
fn a_volume_on_a_cluster_goes_on_without_it_and_comes_back_from_it_alone() {
    let Some(world) = World::mountable("cluster_backend::mount") else { return };
    let Some(mut peers) = ClusterPeer::start(&world, "cluster_backend::mount", 2) else { return };
    let url = peers[0].url("", EVERYWHERE);
    let volume = Volume { world: &world, dir: world.path("volume") };
    let text = volume.text();
    let policy = "min=2,target=2,max=2,level=QUORUM";
    world.cairn(&["init", "--volume", &text, "--policy", policy, "--backend", &url]).ok();
    volume.probe_often();
    let mount = volume.mount();
    let data = |len: usize, seed: u8| -> Vec<u8> {
        (0..len).map(|i| (i >> 8) as u8 ^ (i as u8).wrapping_mul(31) ^ seed).collect()
    };
    let write = |name: &str, data: &[u8]| {
        let mut file = fs::File::create(mount.path(name)).unwrap();
        std::io::Write::write_all(&mut file, data).unwrap();
        file.sync_all().unwrap();
    };
    let (first, second) = (data(2_500_000, 1), data(300_000, 2));
    write("first", &first);
    assert_eq!(volume.copies_at("cluster"), 1, "fsync waits for it");
    // What was written here is read by `ipfs cat` at the second peer.
    let cid = world.cairn(&["cid", &mount.text("first")]).ok().stdout;
    let cid = cid.split_whitespace().next().unwrap().to_owned();
    let got = world.path("got");
    peers[1].kubo.gc();
    peers[1].kubo.ipfs(&["--offline", "get", "-o", got.to_str().unwrap(), &cid]).ok();
    assert_eq!(fs::read(&got).unwrap(), first, "what the second peer's Kubo gives");
    // The peer is killed amid the work, which goes on.
    peers[0].kill();
    write("second", &second);
    let small: Vec<Vec<u8>> = (0..10).map(|n| data(3000 + n, n as u8)).collect();
    small.iter().enumerate().for_each(|(n, data)| write(&format!("small-{n}"), data));
    wait_until("it is known to be away", || {
        volume.status()["backends"].to_string().contains("\"down\"")
    });
    peers[0].up();
    wait_until("all is there", || volume.copies_at("cluster") == 12);
    mount.umount().ok();
    // The disk is lost; the cluster alone has everything, names and all: asked at the
    // other peer.
    fs::remove_dir_all(&volume.dir).unwrap();
    volume.cairn(&["recover", "--from", &peers[1].url("", EVERYWHERE)]).ok();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("first")).unwrap(), first);
    assert_eq!(fs::read(mount.path("second")).unwrap(), second);
    for (n, wanted) in small.iter().enumerate() {
        assert_eq!(fs::read(mount.path(&format!("small-{n}"))).unwrap(), *wanted, "small-{n}");
    }
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
