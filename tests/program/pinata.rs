//! Pinata as a backend, against a fake of it whose archives go into a real Kubo.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairnfs::backends::{Backend, BackendSpec, ErrorKind, Presence, conformance, open};
use cairnfs::runtime::Bridge;
use cairnfs::types::Block;

use crate::support::{
    FakePinata, JWT, Manner, Proxy, Volume, World, all_read, is_public, patient, wait_until,
    write_files,
};

fn backend(url: &str) -> Arc<dyn Backend> {
    open(&BackendSpec::parse(url, &[]).unwrap(), true).unwrap()
}

fn wait<T>(bridge: &Bridge, call: impl Future<Output = T>) -> T {
    bridge.wait(Duration::from_mins(10), call).unwrap()
}

fn block(seed: u32, len: usize) -> Block {
    Block::raw(seed.to_le_bytes().into_iter().cycle().take(len).collect::<Vec<u8>>().into())
}

#[test]
fn a_fake_of_pinata_passes_the_conformance_suite() {
    let world = World::new();
    let Some(fake) = FakePinata::start(&world, "pinata::conformance") else { return };
    let bridge = Bridge::start(2).unwrap();
    let number = AtomicU64::new(0);
    for manner in [Manner::default(), Manner { looks: 2, ..Manner::default() }] {
        fake.behaves(manner);
        let empty = || {
            let folder = format!("c{}", number.fetch_add(1, Ordering::Relaxed));
            let opened = backend(&fake.url(&world, &folder));
            async move { opened }
        };
        wait(&bridge, conformance::run(empty)).unwrap();
    }
}

#[test]
fn a_fake_of_pinata_behind_a_bad_network_does_what_every_backend_does() {
    let world = World::new();
    let Some(fake) = FakePinata::start(&world, "pinata::network") else { return };
    let bridge = Bridge::start(2).unwrap();
    let proxy = Proxy::start(fake.port());
    let number = AtomicU64::new(0);
    let empty = || {
        let folder = format!("n{}", number.fetch_add(1, Ordering::Relaxed));
        let key = world.path("jwt");
        let url =
            format!("{}&auth=file:{}", FakePinata::bare(proxy.port(), &folder), key.display());
        let spec = BackendSpec::parse(&url, &[]).unwrap();
        async move { patient(&spec) }
    };
    wait(&bridge, conformance::run(empty)).unwrap();
    assert!(proxy.harmed() > 20, "{} were harmed", proxy.harmed());
}

#[test]
fn a_thousand_small_blocks_are_two_files_and_public_by_their_own_cids() {
    let world = World::new();
    let Some(fake) = FakePinata::start(&world, "pinata::small") else { return };
    let bridge = Bridge::start(2).unwrap();
    let place = backend(&fake.url(&world, "s"));
    let text = Block::raw(b"<!doctype html><html>a page</html>".as_slice().into());
    let mut all: Vec<Block> = (0..1000).map(|n| block(n, 4096)).collect();
    all.push(text.clone());
    wait(&bridge, place.put_many(&all)).unwrap();
    assert_eq!((fake.files(), fake.uploaded().1), (2, 2));
    assert!(is_public(&fake.kubo, &text.cid, &text.data));
    assert_eq!(wait(&bridge, place.get(&text.cid, None)).unwrap(), text.data);
    // Another machine finds them by the account alone.
    let other = backend(&fake.url(&world, "s"));
    let asked: Vec<_> = all.iter().map(|block| block.cid).collect();
    let found = wait(&bridge, other.presence(&asked)).unwrap();
    assert!(found.iter().all(|one| matches!(one, Presence::Present(_))));
    assert_eq!(wait(&bridge, other.get(&all[700].cid, Some(3..9))).unwrap(), all[700].data[3..9]);
    // Half of them go: nothing is sent for that, and what lives is written anew once.
    wait(&bridge, other.delete_many(&asked[..300])).unwrap();
    assert_eq!((fake.files(), fake.uploaded().1), (2, 2));
    while wait(&bridge, other.compact()).unwrap() {}
    assert_eq!((fake.files(), fake.uploaded().1), (2, 3));
    let listed = wait(&bridge, place.list(None, 10_000)).unwrap();
    assert_eq!(listed.blocks.len(), 701);
    wait(&bridge, place.delete_many(&asked)).unwrap();
    assert_eq!(fake.files(), 0);
    // Somebody takes files away at the account.
    wait(&bridge, place.put_many(&all[..9])).unwrap();
    fake.lose_files();
    assert_eq!(wait(&bridge, place.presence(&asked[..1])).unwrap(), [Presence::Absent]);
    let lost = wait(&bridge, place.get(&asked[1], None)).unwrap_err();
    assert_eq!(lost.kind, ErrorKind::NotFound, "{lost}");
    let url = format!("{}&capacity=10kB", fake.url(&world, "small"));
    let small = backend(&url);
    wait(&bridge, small.put_many(&all[..2])).unwrap();
    let full = wait(&bridge, small.put(&all[3])).unwrap_err();
    assert_eq!(full.kind, ErrorKind::Full, "{full}");
}

#[test]
fn a_long_archive_goes_in_pieces_and_goes_on_where_it_stopped() {
    let world = World::new();
    let Some(fake) = FakePinata::start(&world, "pinata::pieces") else { return };
    let bridge = Bridge::start(2).unwrap();
    let place = backend(&fake.url(&world, "l"));
    let all: Vec<Block> = (0..110).map(|n| block(n, 1 << 20)).collect();
    let bytes = 110 << 20;
    // A piece that was taken and answered with an error is not sent again.
    fake.behaves(Manner { breaks: 1, looks: 1, ..Manner::default() });
    wait(&bridge, place.put_many(&all)).unwrap();
    let (sent, begun) = fake.uploaded();
    assert!(sent > bytes && sent < bytes + 100_000 && begun == 1, "{sent} in {begun}");
    for block in [&all[0], &all[109]] {
        assert_eq!(wait(&bridge, place.get(&block.cid, None)).unwrap(), block.data);
    }
    wait(&bridge, place.delete_many(&all.iter().map(|b| b.cid).collect::<Vec<_>>())).unwrap();
    // One that stops altogether is gone on with by the next call.
    fake.behaves(Manner { pieces: Some(1), ..Manner::default() });
    let error = wait(&bridge, place.put_many(&all)).unwrap_err();
    assert!(error.message.contains("no more pieces"), "{error}");
    fake.behaves(Manner::default());
    wait(&bridge, place.put_many(&all)).unwrap();
    let (again, begun) = fake.uploaded();
    assert!(again - sent < bytes + 100_000 && begun == 2, "{} in {begun}", again - sent);
    assert_eq!(wait(&bridge, place.get(&all[60].cid, None)).unwrap(), all[60].data);
}

#[test]
fn an_archive_that_is_not_taken_in_or_becomes_something_else_is_no_copy() {
    let world = World::new();
    let Some(fake) = FakePinata::start(&world, "pinata::refused") else { return };
    let bridge = Bridge::start(2).unwrap();
    let place = backend(&fake.url(&world, "r"));
    for (manner, kind, hint) in [
        (Manner { refuses: true, ..Manner::default() }, ErrorKind::Other, "did not become"),
        (Manner { mangles: true, ..Manner::default() }, ErrorKind::Corrupt, "nothing of it"),
    ] {
        fake.behaves(manner);
        let error = wait(&bridge, place.put(&block(1, 100))).unwrap_err();
        assert!(error.kind == kind && error.message.contains(hint), "{error}");
        let found = wait(&bridge, place.presence(&[block(1, 100).cid])).unwrap();
        assert_eq!((found, fake.files()), (vec![Presence::Absent], 0));
    }
    fake.behaves(Manner::default());
    wait(&bridge, place.put(&block(1, 100))).unwrap();
    assert_eq!(wait(&bridge, place.get(&block(1, 100).cid, None)).unwrap(), block(1, 100).data);
}

#[test]
fn the_keys_of_an_account_come_from_files_and_are_shown_nowhere() {
    let world = World::new();
    let Some(fake) = FakePinata::start(&world, "pinata::keys") else { return };
    let bare = FakePinata::bare(fake.port(), "k");
    world.cairn(&["backend", "test", &bare]).fails(2, &["auth=file:"]);
    let path = world.path("other");
    fs::write(&path, "not-the-key").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let url = format!("{bare}&auth=file:{}", path.display());
    let run = world.cairn(&["backend", "test", &url]).fails(1, &["401", "auth=file:"]);
    assert!(!run.stderr.contains("not-the-key"), "{run:?}");
    let url = fake.url(&world, "k");
    let run = world.cairn(&["backend", "test", &url]).ok();
    assert!(run.stdout.contains("presence") && !run.stdout.contains(JWT), "{run:?}");
    fake.behaves(Manner { key: Some("not-the-key"), ..Manner::default() });
    world.cairn(&["backend", "test", &url]).fails(1, &["gateway_auth="]);
    let url = format!("{url}&gateway_auth=file:{}", path.display());
    let run = world.cairn(&["backend", "test", &url]).ok();
    assert!(!run.stdout.contains("not-the-key"), "{run:?}");
}

#[test]
fn a_volume_on_a_fake_of_pinata_comes_back_from_it_alone() {
    let test = "pinata::mount";
    let Some(world) = World::mountable(test) else { return };
    let Some(fake) = FakePinata::start(&world, test) else { return };
    let url = format!("{}&id=pinata", fake.url(&world, "volume"));
    let volume = Volume { world: &world, dir: world.path("volume") };
    let policy = "min=1,target=2,max=2,level=QUORUM";
    let text = volume.text();
    world.cairn(&["init", "--volume", &text, "--policy", policy, "--backend", &url]).ok();
    volume.probe_often();
    let mount = volume.mount();
    write_files(&mount.at, 0..30);
    wait_until("all are proven", || volume.copies_at("pinata") == 30 && volume.is_settled());
    // The account has lost its gateway's key, as it were, and gets it back.
    fake.behaves(Manner { key: Some("another"), ..Manner::default() });
    write_files(&mount.at, 30..34);
    fake.behaves(Manner::default());
    volume.cairn(&["heal", "--backend", "pinata"]).ok();
    wait_until("it catches up", || volume.copies_at("pinata") == 34 && volume.is_settled());
    fs::remove_file(mount.at.join("f33")).unwrap();
    volume.cairn(&["checkpoint", "--now"]).ok();
    mount.umount().ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    world.cairn(&["recover", "--from", &url, "--volume", &text]).ok();
    let mount = volume.mount();
    all_read(&mount.at, 33);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
