//! Each mistake has a clear answer and loses nothing.

use std::fs;

use crate::harness::{Place, cairn_fails, cairn_ok, can_mount};

#[test]
fn a_folder_that_is_no_volume_is_named() {
    let place = Place::new();
    let message = cairn_fails(3, &["status", "--volume", &place.at("nothing")]);
    assert!(message.contains("is not a cairn volume; `cairn init"), "{message}");
}

#[test]
fn a_newer_volume_is_refused() {
    let place = Place::new();
    cairn_ok(&["init", "--volume", &place.at("v")]);
    let path = place.path("v/volume.json");
    let text = fs::read_to_string(&path).unwrap().replace("\"format\": 1", "\"format\": 9");
    fs::write(&path, text).unwrap();
    let message = cairn_fails(1, &["status", "--volume", &place.at("v")]);
    assert!(message.contains("use a newer cairn"), "{message}");
}

#[test]
fn unknown_schemes_policies_and_keys_say_what_is_known() {
    let place = Place::new();
    let volume = place.at("v");
    let message = cairn_fails(2, &["init", "--volume", &volume, "--backend", "gopher://x"]);
    let kinds = ["file:///path", "s3://", "ipfs://"];
    assert!(kinds.iter().all(|kind| message.contains(kind)), "{message}");
    let message = cairn_fails(2, &["init", "--volume", &volume, "--policy", "min=4,target=2"]);
    assert!(message.contains("min <= target <= max"), "{message}");
    cairn_ok(&["init", "--volume", &volume]);
    let config = place.path("v/cairn.toml");
    let text = fs::read_to_string(&config).unwrap().replace("threads = 4", "thread = 4");
    fs::write(&config, text).unwrap();
    let message = cairn_fails(2, &["config", "show", "--volume", &volume]);
    assert!(message.contains("did you mean `threads`?"), "{message}");
    assert_eq!(cairn_ok(&["config", "path", "--volume", &volume]).trim(), config.to_str().unwrap());
}

#[test]
fn a_second_mount_is_refused_with_the_holders_pid() {
    if !can_mount("a_second_mount_is_refused_with_the_holders_pid") {
        return;
    }
    let place = Place::new();
    let mount = place.mount_usual(&[]);
    fs::create_dir(place.path("other")).unwrap();
    let message = cairn_fails(5, &["mount", &place.at("other"), "--volume", &mount.volume]);
    let pid = fs::read_to_string(place.path("volume/lock")).unwrap();
    assert!(message.contains(&format!("process {}", pid.trim())), "{message}");
    mount.umount();
}

#[test]
fn places_that_lie_inside_each_other_are_refused() {
    if !can_mount("places_that_lie_inside_each_other_are_refused") {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("mnt")).unwrap();
    std::os::unix::fs::symlink(place.path("mnt"), place.path("alias")).unwrap();
    let inside = place.at("alias/backend");
    let message = cairn_fails(
        2,
        &["mount", &place.at("mnt"), "--volume", &place.at("volume"), "--backend", &inside],
    );
    assert!(message.contains("lie inside each other"), "{message}");
    let message = cairn_fails(2, &["mount", &place.at("mnt"), "--volume", &place.at("mnt/volume")]);
    assert!(message.contains("lie inside each other"), "{message}");
}

#[test]
fn a_read_only_backend_is_reported_and_the_rest_goes_on() {
    if !can_mount("a_read_only_backend_is_reported_and_the_rest_goes_on") {
        return;
    }
    let place = Place::new();
    let (b, c) = (place.backend("b"), format!("{}&read_only=1", place.backend("c")));
    // The place is made by a volume that may write there.
    cairn_ok(&["init", "--volume", &place.at("first"), "--backend", &place.backend("c")]);
    let mount = place.mount("volume", "mnt", &["--backend", &b, "--backend", &c]);
    fs::write(mount.path("file"), b"x").unwrap();
    let status = mount.status();
    assert_eq!(status["backends"][2]["state"], "read_only", "{status}");
    mount.umount();
}

#[test]
fn on_degraded_fail_tells_the_writer_and_loses_nothing() {
    if !can_mount("on_degraded_fail_tells_the_writer_and_loses_nothing") {
        return;
    }
    let place = Place::new();
    let mount = place.mount("volume", "mnt", &["-o", "on_degraded=fail"]);
    let mut file = fs::File::create(mount.path("file")).unwrap();
    std::io::Write::write_all(&mut file, b"x").unwrap();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(5));
    drop(file);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"x");
    mount.umount();
}

#[test]
fn backends_and_policies_change_while_mounted() {
    if !can_mount("backends_and_policies_change_while_mounted") {
        return;
    }
    let place = Place::new();
    let b = place.backend("b");
    let mount = place.mount("volume", "mnt", &["--backend", &b]);
    fs::write(mount.path("file"), b"x").unwrap();
    cairn_ok(&["backend", "add", &place.backend("c"), "--volume", &mount.volume]);
    cairn_ok(&["sync", mount.point.to_str().unwrap()]);
    assert!(cairn_ok(&["backend", "list", "--volume", &mount.volume]).contains("\nc "));
    assert!(cairn_ok(&["backend", "show", "c", "--volume", &mount.volume]).contains("domain:c"));
    assert!(cairn_ok(&["backend", "test", &place.backend("c")]).contains("range"));
    cairn_fails(3, &["backend", "show", "zebra", "--volume", &mount.volume]);
    cairn_ok(&["backend", "remove", "b", "--volume", &mount.volume]);
    cairn_ok(&["policy", "set", "min=1,target=2", &mount.at("file")]);
    assert!(cairn_ok(&["policy", "show", &mount.at("file")]).contains("target=2"));
    assert!(cairn_ok(&["stats", "--volume", &mount.volume]).contains("cairn_fuse_requests"));
    cairn_ok(&["checkpoint", "--now", "--volume", &mount.volume]);
    mount.umount();
}

#[test]
fn completions_and_man_pages_are_generated() {
    let place = Place::new();
    assert!(cairn_ok(&["completions", "bash"]).contains("cairn"));
    cairn_ok(&["man", &place.at("man")]);
    assert!(fs::read_to_string(place.path("man/cairn-mount.1")).unwrap().contains("MOUNTPOINT"));
}
