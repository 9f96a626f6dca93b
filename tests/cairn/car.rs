//! CAR archives out of and into a mount.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::{Place, cairn_fails, cairn_ok, can_mount, make_tree, ok, same, text};

#[test]
fn exports_come_back_with_and_without_metadata() {
    if !can_mount("exports_come_back_with_and_without_metadata") {
        return;
    }
    let place = Place::new();
    make_tree(&place.path("tree"));
    let mount = place.mount_usual(&[]);
    ok("cp", &["-a", &place.at("tree"), &mount.at("copy")]);
    let (plain, full) = (place.at("plain.car"), place.at("full.car"));
    cairn_ok(&["export", &mount.at("copy"), "-o", &plain, "--car-version", "1"]);
    cairn_ok(&["export", &mount.at("copy"), "-o", &full, "--metadata"]);
    assert!(cairn_ok(&["car", "verify", &plain, "--json"]).contains("\"version\":1"));
    assert!(cairn_ok(&["car", "verify", &full, "--json"]).contains("\"indexed\":true"));
    cairn_ok(&["import", &full, &mount.at("full")]);
    same(&place.path("tree"), &mount.path("full"));
    cairn_ok(&["import", &plain, &mount.at("plain")]);
    assert_eq!(
        fs::read(mount.path("plain/sub/large")).unwrap(),
        fs::read(place.path("tree/sub/large")).unwrap()
    );
    assert_eq!(fs::read_link(mount.path("plain/link")).unwrap().to_str(), Some("sub/file-1"));
    // The CIDs of an import, of its source and of the disk are one.
    let cid = |path: &str| cairn_ok(&["cid", path]).split_whitespace().next().unwrap().to_owned();
    assert_eq!(cid(&mount.at("copy")), cid(&mount.at("plain")));
    assert_eq!(cid(&mount.at("copy")), cid(&place.at("tree")));
    // An imported file can be changed.
    let mut file = fs::OpenOptions::new().append(true).open(mount.path("plain/sub/large")).unwrap();
    file.write_all(b"more").unwrap();
    drop(file);
    assert!(fs::read(mount.path("plain/sub/large")).unwrap().ends_with(b"more"));
    cairn_fails(2, &["import", &plain, &mount.at("plain")]);
    mount.umount();
}

#[test]
fn archives_go_through_pipes() {
    if !can_mount("archives_go_through_pipes") {
        return;
    }
    let place = Place::new();
    let mount = place.mount_usual(&[]);
    fs::write(mount.path("file"), vec![7u8; 2_000_000]).unwrap();
    let cairn = env!("CARGO_BIN_EXE_cairn");
    let mut export = Command::new(cairn)
        .args(["export", &mount.at("file"), "-o", "-"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = export.stdout.take().unwrap();
    let import = Command::new(cairn)
        .args(["import", "-", &mount.at("again")])
        .stdin(input)
        .output()
        .unwrap();
    assert!(import.status.success(), "{}", text(&import));
    assert!(export.wait().unwrap().success());
    assert_eq!(fs::read(mount.path("again")).unwrap(), vec![7u8; 2_000_000]);
    mount.umount();
}

#[test]
fn a_damaged_archive_leaves_nothing_behind() {
    if !can_mount("a_damaged_archive_leaves_nothing_behind") {
        return;
    }
    let place = Place::new();
    let mount = place.mount_usual(&[]);
    fs::write(mount.path("file"), vec![7u8; 2_000_000]).unwrap();
    let archive = place.at("a.car");
    cairn_ok(&["export", &mount.at("file"), "-o", &archive, "--car-version", "1"]);
    let whole = fs::read(&archive).unwrap();
    let mut flipped = whole.clone();
    flipped[500_000] ^= 1;
    let cut = &whole[..whole.len() - 9];
    for (bytes, word) in
        [(&flipped[..], "does not match its hash"), (cut, "cut off"), (b"nonsense", "not a CAR")]
    {
        fs::write(&archive, bytes).unwrap();
        let message = cairn_fails(6, &["import", &archive, &mount.at("bad")]);
        assert!(message.contains(word), "{message}");
        cairn_fails(6, &["car", "verify", &archive]);
        assert_eq!(fs::read_dir(&mount.point).unwrap().count(), 1);
    }
    mount.umount();
}
