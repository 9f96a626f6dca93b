//! Losing backends, blocks and the machine's own disk.

use std::fs;

use crate::harness::{Place, cairn_fails, cairn_ok, can_mount, make_tree, ok, same};

#[test]
fn everything_comes_back_from_one_backend() {
    if !can_mount("everything_comes_back_from_one_backend") {
        return;
    }
    let place = Place::new();
    make_tree(&place.path("tree"));
    let mount = place.mount_usual(&[]);
    ok("cp", &["-a", &place.at("tree"), &mount.at("copy")]);
    let status = mount.status();
    assert_eq!(status["files"], 54, "{status}");
    for key in ["total", "at_target", "below_target", "below_min", "over_max", "unverified"] {
        assert!(status["pins"][key].is_u64(), "{key}: {status}");
    }
    cairn_ok(&["sync", mount.point.to_str().unwrap()]);
    mount.umount();
    fs::remove_dir_all(place.path("volume")).unwrap();
    fs::remove_dir_all(place.path("b")).unwrap();
    cairn_ok(&["recover", "--from", &place.backend("c"), "--volume", &place.at("again")]);
    let mount = place.mount("again", "mnt2", &[]);
    same(&place.path("tree"), &mount.path("copy"));
    cairn_ok(&["fsck", "--volume", &mount.volume, "--deep"]);
    cairn_ok(&["umount", mount.point.to_str().unwrap(), "--force"]);
    std::mem::forget(mount);
    cairn_ok(&["recover", "--from", &place.backend("c"), "--volume", &place.at("full"), "--full"]);
}

#[test]
fn an_fsynced_file_survives_the_loss_of_the_disk_at_once() {
    if !can_mount("an_fsynced_file_survives_the_loss_of_the_disk_at_once") {
        return;
    }
    let place = Place::new();
    let mount = place.mount_usual(&[]);
    fs::create_dir(mount.path("d")).unwrap();
    let file = fs::File::create(mount.path("d/precious")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"do not lose", 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    // No unmount, no checkpoint: what fsync acknowledged is all there is.
    mount.kill();
    fs::remove_dir_all(place.path("volume")).unwrap();
    cairn_ok(&["recover", "--from", &place.backend("b"), "--volume", &place.at("again")]);
    let mount = place.mount("again", "mnt2", &[]);
    assert_eq!(fs::read(mount.path("d/precious")).unwrap(), b"do not lose");
    mount.umount();
}

#[test]
fn a_backend_that_is_away_stops_nothing_and_catches_up() {
    if !can_mount("a_backend_that_is_away_stops_nothing_and_catches_up") {
        return;
    }
    let place = Place::new();
    let mount = place.mount_usual(&[]);
    fs::write(mount.path("before"), b"1").unwrap();
    fs::rename(place.path("c"), place.path("c.away")).unwrap();
    fs::write(mount.path("while"), b"2").unwrap();
    assert_eq!(fs::read(mount.path("while")).unwrap(), b"2");
    fs::rename(place.path("c.away"), place.path("c")).unwrap();
    cairn_ok(&["umount", mount.point.to_str().unwrap(), "--timeout", "60"]);
    std::mem::forget(mount);
    cairn_ok(&["recover", "--from", &place.backend("c"), "--volume", &place.at("again")]);
    let mount = place.mount("again", "mnt2", &[]);
    assert_eq!(fs::read(mount.path("while")).unwrap(), b"2");
    mount.umount();
}

#[test]
fn a_corrupt_local_block_is_served_from_a_backend_and_repaired() {
    if !can_mount("a_corrupt_local_block_is_served_from_a_backend_and_repaired") {
        return;
    }
    let place = Place::new();
    let mount = place.mount_usual(&[]);
    fs::write(mount.path("small"), b"unique small content").unwrap();
    cairn_ok(&["sync", mount.point.to_str().unwrap()]);
    mount.umount();
    for pack in fs::read_dir(place.path("volume/store/packs")).unwrap() {
        let path = pack.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(6).position(|window| window == b"unique").unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let found = cairn_fails(6, &["fsck", "--deep", "--volume", &place.at("volume")]);
    assert!(found.contains("corrupt"), "{found}");
    let mount = place.mount("volume", "mnt", &[]);
    assert_eq!(fs::read(mount.path("small")).unwrap(), b"unique small content");
    mount.umount();
    cairn_ok(&["fsck", "--deep", "--volume", &place.at("volume")]);
}
