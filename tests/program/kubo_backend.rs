//! Kubo as a backend: a real daemon on loopback, offline, and its collector amid all.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairnfs::backends::{Backend, BackendSpec, ErrorKind, Presence, conformance, open};
use cairnfs::runtime::Bridge;
use cairnfs::types::{Block, Cid, cid};

use crate::support::{KuboDaemon, Mount, Proxy, Volume, World, patient, wait_until};

fn backend(kubo: &KuboDaemon<'_>, folder: &str) -> Arc<dyn Backend> {
    open(&BackendSpec::parse(&kubo.url(folder), &[]).unwrap(), true).unwrap()
}

fn wait<T>(bridge: &Bridge, call: impl Future<Output = T>) -> T {
    bridge.wait(Duration::from_mins(10), call).unwrap()
}

/// Blocks of which the last is a node over the others.
fn content(seed: u8) -> Vec<Block> {
    let mut blocks = Vec::new();
    // No two leaves are the same.
    let data: Vec<u8> = (0..3 << 20).map(|i: u32| ((i >> 12) ^ (i >> 16)) as u8 ^ seed).collect();
    cairnfs::content::import_file(
        &cairnfs::content::Profile::UNIXFS_V1_2025,
        &mut data.as_slice(),
        &mut |cid, data| {
            blocks.push(Block { cid, data });
            Ok(())
        },
    )
    .unwrap();
    blocks
}

#[test]
fn a_real_kubo_passes_the_conformance_suite() {
    let world = World::new();
    let Some(kubo) = KuboDaemon::start(&world, "kubo_backend::conformance") else { return };
    let bridge = Bridge::start(2).unwrap();
    let number = AtomicU64::new(0);
    // A folder of its own is an empty place: others' blocks in the same Kubo are not seen.
    let empty = || {
        let folder = format!("c{}", number.fetch_add(1, Ordering::Relaxed));
        let opened = backend(&kubo, &folder);
        async move { opened }
    };
    wait(&bridge, conformance::run(empty)).unwrap();
}

#[test]
fn a_kubo_behind_a_bad_network_does_what_every_backend_does() {
    let world = World::new();
    let Some(kubo) = KuboDaemon::start(&world, "kubo_backend::network") else { return };
    let bridge = Bridge::start(2).unwrap();
    let proxy = Proxy::start(kubo.port());
    let number = AtomicU64::new(0);
    let empty = || {
        let folder = format!("n{}", number.fetch_add(1, Ordering::Relaxed));
        let url = kubo.url(&folder).replace(&kubo.port().to_string(), &proxy.port().to_string());
        let spec = BackendSpec::parse(&url, &[]).unwrap();
        async move { patient(&spec) }
    };
    wait(&bridge, conformance::run(empty)).unwrap();
    assert!(proxy.harmed() > 20, "{} were harmed", proxy.harmed());
}

#[test]
fn kubos_collection_takes_nothing_that_counts_and_everything_that_was_deleted() {
    let world = World::new();
    let Some(mut kubo) = KuboDaemon::start(&world, "kubo_backend::gc") else { return };
    let bridge = Bridge::start(2).unwrap();
    let place = backend(&kubo, "");
    let (kept, gone) = (content(1), content(2));
    // Children before parents, a collection after each put.
    for part in kept.chunks(2) {
        wait(&bridge, place.put_many(part)).unwrap();
        kubo.gc();
    }
    wait(&bridge, place.put_many(&gone)).unwrap();
    wait(&bridge, place.put_name("volumes/v/x", &kept[0].cid)).unwrap();
    // While many are put, too.
    let many: Vec<Block> =
        (0..200u32).map(|n| Block::raw(n.to_le_bytes().repeat(300).into())).collect();
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| (0..3).for_each(|_| kubo.gc()));
        for part in many.chunks(20) {
            wait(&bridge, place.put_many(part)).unwrap();
        }
        collector.join().unwrap();
    });
    // Two folders hold one block each for itself.
    let other = backend(&kubo, "other");
    wait(&bridge, other.put(&gone[0])).unwrap();
    let cids = |blocks: &[Block]| blocks.iter().map(|block| block.cid).collect::<Vec<Cid>>();
    wait(&bridge, place.delete_many(&cids(&gone))).unwrap();
    kubo.gc();
    // Nor does a daemon that is killed forget.
    kubo.kill();
    kubo.up();
    kubo.gc();
    for block in kept.iter().chain(&many).chain(&gone[..1]) {
        let data = wait(&bridge, place.get(&block.cid, None)).unwrap();
        assert_eq!(data, block.data, "{}", block.cid);
    }
    let there = wait(&bridge, place.presence(&cids(&kept))).unwrap();
    assert!(there.iter().all(|found| matches!(found, Presence::Present(_))), "{there:?}");
    let lost = wait(&bridge, place.presence(&cids(&gone))).unwrap();
    assert!(lost.iter().all(|found| *found == Presence::Absent), "{lost:?}");
    let here = wait(&bridge, other.presence(&cids(&gone[..1]))).unwrap();
    assert!(matches!(here[0], Presence::Present(_)), "{here:?}");
    for block in &gone[1..] {
        assert!(!kubo.has(&block.cid.to_string()), "{} is still there", block.cid);
    }
    let names = wait(&bridge, place.names("volumes/")).unwrap();
    assert_eq!(names, [("volumes/v/x".to_owned(), kept[0].cid)]);
}

#[test]
fn pins_of_the_user_and_ours_of_one_content_know_nothing_of_each_other() {
    let world = World::new();
    let Some(kubo) = KuboDaemon::start(&world, "kubo_backend::pins") else { return };
    let bridge = Bridge::start(2).unwrap();
    let place = backend(&kubo, "");
    let blocks = content(3);
    let root = blocks.last().unwrap().cid;
    let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
    let text = root.to_string();
    let whole = || {
        kubo.gc();
        kubo.ipfs(&["--offline", "cat", &text]).code == 0
    };
    // Ours first, then theirs; theirs goes, ours stays.
    wait(&bridge, place.put_many(&blocks)).unwrap();
    kubo.ipfs(&["pin", "add", "--name", "mine", &text]).ok();
    kubo.ipfs(&["pin", "rm", &text]).ok();
    assert!(whole(), "their unpinning took ours away");
    assert!(matches!(wait(&bridge, place.presence(&cids)).unwrap()[0], Presence::Present(_)));
    // Theirs again; ours goes, theirs stays, and so does what is in their MFS.
    kubo.ipfs(&["pin", "add", "--name", "mine", &text]).ok();
    let leaf = blocks[0].cid.to_string();
    kubo.ipfs(&["files", "cp", &format!("/ipfs/{leaf}"), "/leaf"]).ok();
    wait(&bridge, place.delete_many(&cids)).unwrap();
    assert!(whole(), "our deletion took what they have pinned");
    let names = kubo.ipfs(&["pin", "ls", "--names", "--type=recursive"]).ok().stdout;
    assert!(names.contains(&format!("{text} recursive mine")), "{names}");
    kubo.ipfs(&["pin", "rm", &text]).ok();
    assert!(!whole(), "nobody holds it");
    assert!(kubo.has(&leaf), "our deletion took a file of their MFS");
    // What is there without us is not taken for ours, and is when it is put.
    let found = wait(&bridge, place.presence(&[blocks[0].cid])).unwrap();
    assert_eq!(found, [Presence::Absent]);
    wait(&bridge, place.put(&blocks[0])).unwrap();
    kubo.ipfs(&["files", "rm", "/leaf"]).ok();
    kubo.gc();
    assert_eq!(wait(&bridge, place.get(&blocks[0].cid, None)).unwrap(), blocks[0].data);
}

#[test]
fn what_rots_or_is_lost_in_kubos_repo_is_seen_and_put_right() {
    let world = World::new();
    let Some(kubo) = KuboDaemon::start(&world, "kubo_backend::rot") else { return };
    let bridge = Bridge::start(2).unwrap();
    let place = backend(&kubo, "");
    let [rotten, short, lost, theirs] = [1, 2, 3, 4].map(|n: u8| Block::raw(vec![n; 5000].into()));
    let all = [&rotten, &short, &lost, &theirs];
    for block in all {
        wait(&bridge, place.put(block)).unwrap();
    }
    // The last is their user's, too.
    kubo.ipfs(&["pin", "add", &theirs.cid.to_string()]).ok();
    fs::write(kubo.file_of(&rotten), [9; 5000]).unwrap();
    fs::write(kubo.file_of(&short), [2; 100]).unwrap();
    fs::remove_file(kubo.file_of(&lost)).unwrap();
    fs::write(kubo.file_of(&theirs), [9; 5000]).unwrap();
    let found = |block: &Block| wait(&bridge, place.presence(&[block.cid])).unwrap()[0];
    assert_eq!(found(&short), Presence::Absent);
    assert_eq!(found(&lost), Presence::Absent);
    let wrong = wait(&bridge, place.get(&rotten.cid, None)).unwrap();
    assert_eq!(cid::verify(&rotten.cid, &wrong), cid::Verdict::Mismatch);
    // As a repair does: what is wrong is deleted, then all is put.
    for block in [&rotten, &theirs] {
        wait(&bridge, place.delete(&block.cid)).unwrap();
    }
    for block in all {
        wait(&bridge, place.put(block)).unwrap();
        assert_eq!(wait(&bridge, place.get(&block.cid, None)).unwrap(), block.data);
        assert_eq!(found(block), Presence::Present(5000));
    }
    kubo.gc();
    // A block whose bytes are gone is deleted all the same: no pin of it is left.
    fs::remove_file(kubo.file_of(&lost)).unwrap();
    wait(&bridge, place.delete_many(&all.map(|block| block.cid))).unwrap();
    assert_eq!(wait(&bridge, place.list(None, 100)).unwrap().blocks, []);
}

#[test]
fn a_listing_goes_on_when_kubo_was_started_anew() {
    let world = World::new();
    let Some(mut kubo) = KuboDaemon::start(&world, "kubo_backend::list") else { return };
    let bridge = Bridge::start(2).unwrap();
    let place = backend(&kubo, "");
    let blocks: Vec<Block> =
        (0..60u32).map(|n| Block::raw(n.to_le_bytes().to_vec().into())).collect();
    wait(&bridge, place.put_many(&blocks)).unwrap();
    kubo.ipfs(&["pin", "add", &blocks[0].cid.to_string()]).ok();
    let all = wait(&bridge, place.list(None, 1000)).unwrap().blocks;
    assert_eq!(all.len(), 60);
    let first = wait(&bridge, place.list(None, 25)).unwrap();
    // Its connection is gone; and another process goes on with a cursor.
    kubo.kill();
    kubo.up();
    let next = wait(&bridge, place.list(first.next.as_deref(), 25)).unwrap();
    let anew = backend(&kubo, "");
    let last = wait(&bridge, anew.list(next.next.as_deref(), 25)).unwrap();
    let pages: Vec<_> = [first.blocks, next.blocks, last.blocks].concat();
    assert_eq!(pages, all);
    assert_eq!(last.next, None);
    let bad = wait(&bridge, place.list(Some("x"), 1)).unwrap_err();
    assert_eq!(bad.kind, ErrorKind::Invalid);
}

#[test]
fn a_token_that_kubo_asks_for_comes_from_a_file_and_is_shown_nowhere() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let Some(mut kubo) = KuboDaemon::start(&world, "kubo_backend::token") else { return };
    kubo.kill();
    let allowed =
        "{\"cairn\":{\"AuthSecret\":\"bearer:hidden-token\",\"AllowedPaths\":[\"/api/v0\"]}}";
    kubo.ipfs(&["config", "--json", "API.Authorizations", allowed]).ok();
    kubo.up();
    let bare = kubo.url("");
    world.cairn(&["backend", "test", &bare]).fails(1, &["403", "auth=file:", "API.Authorizations"]);
    let path = world.path("token");
    fs::write(&path, "bearer:hidden-token\n").unwrap();
    let url = format!("{bare}?auth=file:{}", path.display());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    world.cairn(&["backend", "test", &url]).fails(1, &["chmod 600"]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let run = world.cairn(&["backend", "test", &url]).ok();
    assert!(run.stdout.contains("presence"), "{run:?}");
    let volume = world.path("volume");
    let volume = volume.to_str().unwrap();
    world.cairn(&["init", "--volume", volume, "--backend", &url]).ok();
    let shown = world.cairn(&["config", "show", "--volume", volume]).ok().stdout;
    assert!(shown.contains("auth=file") && !shown.contains("hidden"), "{shown}");
    let given = bare.replace("ipfs://", "ipfs://cairn:hidden@");
    let refused = world.cairn(&["backend", "test", &given]).fails(2, &["auth=file:", "***"]);
    assert!(!refused.stderr.contains("hidden"), "{refused:?}");
}

fn volume<'w>(world: &'w World, urls: &[String], policy: &str) -> Volume<'w> {
    let volume = Volume { world, dir: world.path("volume") };
    let text = volume.text();
    let mut words = vec!["init", "--volume", text.as_str(), "--policy", policy];
    urls.iter().for_each(|url| words.extend(["--backend", url.as_str()]));
    world.cairn(&words).ok();
    volume
}

fn write(mount: &Mount<'_>, name: &str, len: usize, seed: u8) -> Vec<u8> {
    use std::io::Write;
    let data: Vec<u8> =
        (0..len).map(|i| (i >> 8) as u8 ^ (i as u8).wrapping_mul(31) ^ seed).collect();
    let mut file = fs::File::create(mount.path(name)).unwrap();
    file.write_all(&data).unwrap();
    file.sync_all().unwrap();
    data
}

#[test]
fn a_volume_on_kubo_goes_on_without_it_heals_and_comes_back_from_it_alone() {
    let Some(world) = World::mountable("kubo_backend::mount") else { return };
    let Some(mut kubo) = KuboDaemon::start(&world, "kubo_backend::mount") else { return };
    let url = kubo.url("");
    let volume = volume(&world, std::slice::from_ref(&url), "min=2,target=2,max=2,level=QUORUM");
    volume.probe_often();
    let mount = volume.mount();
    let first = write(&mount, "first", 2_500_000, 1);
    assert_eq!(volume.copies_at("kubo"), 1, "fsync waits for it");
    // Its address in IPFS is what the mount shows.
    let cid = world.cairn(&["cid", &mount.text("first")]).ok().stdout;
    let cid = cid.split_whitespace().next().unwrap().to_owned();
    let got = world.path("got");
    kubo.gc();
    kubo.ipfs(&["--offline", "get", "-o", got.to_str().unwrap(), &cid]).ok();
    assert_eq!(fs::read(&got).unwrap(), first, "what Kubo gives");
    // It is killed amid the work, which goes on.
    kubo.kill();
    let second = write(&mount, "second", 300_000, 2);
    let small: Vec<Vec<u8>> =
        (0..20).map(|n| write(&mount, &format!("small-{n}"), 3000 + n, n as u8)).collect();
    assert_eq!(fs::read(mount.path("first")).unwrap(), first);
    wait_until("it is known to be away", || {
        volume.status()["backends"].to_string().contains("\"down\"")
    });
    kubo.up();
    wait_until("all is there", || volume.copies_at("kubo") == 22);
    kubo.gc();
    mount.umount().ok();
    // The disk is lost; Kubo alone has everything, names and all.
    fs::remove_dir_all(&volume.dir).unwrap();
    volume.cairn(&["recover", "--from", &url]).ok();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("first")).unwrap(), first);
    assert_eq!(fs::read(mount.path("second")).unwrap(), second);
    for (n, wanted) in small.iter().enumerate() {
        assert_eq!(fs::read(mount.path(&format!("small-{n}"))).unwrap(), *wanted, "small-{n}");
    }
    assert_eq!(volume.copies_at("kubo"), 22, "it is known under its id");
    // Its repository is lost: that is found by looking, and healed.
    kubo.lose_repo();
    let look = ["pin", "verify", &mount.text(""), "--backend", "kubo", "--wait"];
    wait_until("it is back, and was read", || world.cairn(&look).code != 4);
    wait_until("all was sent again", || {
        let status = volume.status();
        status["pins"]["at_target"] == 22 && status["queue"]["pending"] == 0
    });
    kubo.gc();
    kubo.ipfs(&["--offline", "get", "-o", got.to_str().unwrap(), &cid]).ok();
    assert_eq!(fs::read(&got).unwrap(), first);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
