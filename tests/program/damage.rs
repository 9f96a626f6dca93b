//! Files of a volume or a backend that are damaged, cut, gone or not ours: each
//! is repaired from another copy, or told clearly, and nothing is lost.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::{Volume, World, difference, make_tree, run, snapshot, wait_until};

type Tree = std::collections::BTreeMap<PathBuf, crate::support::Entry>;

/// All files below a folder, sorted.
pub(crate) fn files(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Turns bytes around in the middle of a file; its length and time stay.
pub(crate) fn flip(path: &Path) {
    flip_at(path, fs::metadata(path).unwrap().len() / 2);
}

/// The same near its beginning.
fn flip_early(path: &Path) {
    flip_at(path, fs::metadata(path).unwrap().len().min(200) / 2);
}

fn flip_at(path: &Path, at: u64) {
    let meta = fs::metadata(path).unwrap();
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; usize::try_from(meta.len() - at).unwrap().min(64)];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    file.write_all_at(&bytes, at).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
}

fn halve(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

/// A volume with two backends and a tree in it, unmounted and complete.
fn filled(world: &World) -> (Volume<'_>, Tree) {
    make_tree(&world.path("source"));
    for n in 0..20 {
        fs::write(world.path(&format!("source/small-{n}")), format!("{n}").repeat(500)).unwrap();
    }
    let original = snapshot(&world.path("source"));
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    let mount = volume.mount();
    let mut copy = std::process::Command::new("cp");
    copy.arg("-aT").arg(world.path("source")).arg(mount.path("tree"));
    run(copy, std::time::Duration::from_mins(2)).ok();
    mount.umount().ok();
    (volume, original)
}

/// The tree is whole on a mount, and all damage is repaired by `fsck`.
fn whole(volume: &Volume<'_>, original: &Tree, what: &str) {
    let mount = volume.mount();
    assert_eq!(difference(original, &snapshot(&mount.path("tree"))), [""; 0], "{what}");
    fs::write(mount.path("still writable"), what).unwrap();
    mount.umount().ok();
    volume.cairn(&["fsck", "--repair", "--deep"]).ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}

/// The tree comes back from one backend.
fn recoverable(world: &World, backend: &str, original: &Tree) {
    let again = Volume { world, dir: world.path(&format!("from-{backend}")) };
    again.cairn(&["recover", "--from", &world.backend_url(backend)]).ok();
    whole(&again, original, &format!("recovered from {backend}"));
    fs::remove_dir_all(&again.dir).unwrap();
}

#[test]
fn damaged_cut_and_missing_packs_are_read_elsewhere_and_repaired() {
    let Some(world) = World::mountable("damage::packs") else { return };
    let (volume, original) = filled(&world);
    let harms: [(&str, fn(&Path)); 3] =
        [("flipped", flip), ("cut", halve), ("gone", |path| fs::remove_file(path).unwrap())];
    for (what, harm) in harms {
        let packs = files(&volume.dir.join("store/packs"));
        assert!(!packs.is_empty(), "no pack to damage");
        packs.iter().for_each(|pack| harm(pack));
        volume.cairn(&["fsck", "--deep"]).fails(6, &["--repair"]);
        whole(&volume, &original, &format!("packs {what}"));
    }
}

#[test]
fn cut_and_missing_segments_are_read_elsewhere_and_repaired() {
    let Some(world) = World::mountable("damage::segments") else { return };
    let (volume, original) = filled(&world);
    let harms: [(&str, fn(&Path)); 2] =
        [("cut", halve), ("gone", |path| fs::remove_file(path).unwrap())];
    for (what, harm) in harms {
        let segments = files(&volume.dir.join("store/segments"));
        if segments.is_empty() {
            // What was repaired lies in packs.
            break;
        }
        segments.iter().for_each(|segment| harm(segment));
        volume.cairn(&["fsck"]).fails(6, &["--repair"]);
        whole(&volume, &original, &format!("segments {what}"));
    }
}

#[test]
fn a_store_that_is_gone_is_filled_again_from_the_backends() {
    let Some(world) = World::mountable("damage::store") else { return };
    let (volume, original) = filled(&world);
    fs::remove_dir_all(volume.dir.join("store")).unwrap();
    whole(&volume, &original, "without its store");
}

#[test]
fn without_a_second_copy_damage_is_an_error_that_names_the_block_and_hides_nothing() {
    let Some(world) = World::mountable("damage::single") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let good = vec![7; 300_000];
    fs::write(mount.path("good"), &good).unwrap();
    mount.umount().ok();
    let safe = files(&volume.dir.join("store"));
    let mount = volume.mount();
    fs::write(mount.path("bad"), vec![9; 300_000]).unwrap();
    mount.umount().ok();
    let new = files(&volume.dir.join("store")).into_iter().filter(|path| !safe.contains(path));
    assert!(new.map(|path| flip(&path)).count() > 0);
    volume.cairn(&["fsck", "--deep"]).fails(6, &["bafk"]);
    volume.cairn(&["fsck", "--deep", "--repair"]).fails(6, &["bafk", "another copy"]);
    let mount = volume.mount();
    assert_eq!(fs::read(mount.path("bad")).unwrap_err().raw_os_error(), Some(5));
    assert!(fs::read(mount.path("good")).unwrap() == good);
    fs::remove_file(mount.path("bad")).unwrap();
    mount.umount().ok();
}

#[test]
fn damaged_checkpoint_files_are_found_rewritten_and_never_sent_as_whole() {
    let Some(world) = World::mountable("damage::checkpoints") else { return };
    let (volume, original) = filled(&world);
    let checkpoints = volume.dir.join("checkpoints");
    let harmed = |part: &str| -> Vec<PathBuf> {
        let mut all = files(&checkpoints);
        all.retain(|path| path.to_str().unwrap().contains(part));
        assert!(!all.is_empty(), "no {part}");
        all
    };
    for (part, harm) in [
        ("base-", flip as fn(&Path)),
        ("base-", flip_early),
        ("delta-", flip),
        ("manifest-", flip),
        ("base-", halve),
        ("delta-", halve),
        ("manifest-", halve),
        ("dentries.parquet", |path| fs::remove_file(path).unwrap()),
        ("manifest-", |path| fs::remove_file(path).unwrap()),
    ] {
        // A delta to damage, over the base there is.
        let mount = volume.mount();
        fs::write(mount.path("change"), part).unwrap();
        mount.umount().ok();
        let what = format!("{part} damaged");
        harmed(part).iter().for_each(|path| harm(path));
        if part != "manifest-" {
            volume.cairn(&["fsck"]).fails(6, &["checkpoint"]);
        }
        // A backend that comes new gets it all, whatever is damaged here.
        volume.cairn(&["backend", "add", &world.backend_url("late")]).ok();
        whole(&volume, &original, &what);
        recoverable(&world, "late", &original);
        volume.cairn(&["backend", "remove", "late", "--force"]).ok();
        fs::remove_dir_all(world.path("late")).unwrap();
    }
}

#[test]
fn metadata_that_is_gone_or_old_is_refused_and_its_checkpoints_are_not_buried() {
    let Some(world) = World::mountable("damage::old_metadata") else { return };
    let (volume, original) = filled(&world);
    let (meta, old) = (volume.dir.join("meta"), world.path("old meta"));
    let mut copy = std::process::Command::new("cp");
    copy.arg("-a").arg(&meta).arg(&old);
    run(copy, std::time::Duration::from_mins(1)).ok();
    let mount = volume.mount();
    fs::write(mount.path("tree/later"), b"later").unwrap();
    mount.umount().ok();
    let at = world.make_dir("mnt");
    let refused = || {
        volume.cairn(&["mount", at.to_str().unwrap()]).fails(6, &["checkpoint", "cairn recover"]);
    };
    fs::remove_dir_all(&meta).unwrap();
    refused();
    fs::remove_dir_all(&meta).unwrap();
    fs::rename(&old, &meta).unwrap();
    refused();
    // Even without the local checkpoints nothing newer is buried on a backend.
    fs::remove_dir_all(volume.dir.join("checkpoints")).unwrap();
    let mount = volume.mount();
    fs::write(mount.path("tree/of an old life"), b"x").unwrap();
    wait_until("status says so", || {
        volume.status()["checkpoint"]["refused"].as_array().is_some_and(|all| all.len() == 2)
    });
    world.cairn(&["umount", "--force", at.to_str().unwrap()]);
    mount.forget();
    let mut with_later = original;
    let again = Volume { world: &world, dir: world.path("again") };
    again.cairn(&["recover", "--from", &world.backend_url("b")]).ok();
    let mount = again.mount();
    assert_eq!(fs::read(mount.path("tree/later")).unwrap(), b"later");
    fs::remove_file(mount.path("tree/later")).unwrap();
    let mut back = snapshot(&mount.path("tree"));
    // The top's time moved with the removal.
    with_later.remove(Path::new(""));
    back.remove(Path::new(""));
    assert_eq!(difference(&with_later, &back), [""; 0]);
}

#[test]
fn every_damaged_file_of_the_metadata_is_an_error_with_advice_or_does_no_harm() {
    let Some(world) = World::mountable("damage::metadata") else { return };
    let (volume, original) = filled(&world);
    let meta = volume.dir.join("meta");
    let kept = world.path("kept");
    let copy = |from: &Path, to: &Path| {
        let mut copy = std::process::Command::new("cp");
        copy.arg("-aT").arg(from).arg(to);
        run(copy, std::time::Duration::from_mins(1)).ok();
    };
    copy(&volume.dir, &kept);
    let at = world.make_dir("mnt");
    let names: Vec<PathBuf> = files(&meta)
        .iter()
        .map(|path| path.strip_prefix(&volume.dir).unwrap().to_owned())
        .collect();
    assert!(!names.is_empty());
    let harms: [(&str, fn(&Path)); 4] = [
        ("flipped", flip),
        ("flipped early", flip_early),
        ("cut", halve),
        ("gone", |path| fs::remove_file(path).unwrap()),
    ];
    let mut refused = 0;
    for name in &names {
        for (what, harm) in harms {
            let path = volume.dir.join(name);
            if fs::metadata(&path).unwrap().len() < 2 && what != "gone" {
                continue;
            }
            harm(&path);
            let label = format!("{} {what}", name.display());
            let mounted = volume.cairn(&["mount", at.to_str().unwrap()]);
            if mounted.code == 0 {
                // What mounts has everything, or fails to read: it is never less.
                let seen = std::panic::catch_unwind(|| snapshot(&at.join("tree")));
                world.cairn(&["umount", "--force", at.to_str().unwrap()]);
                if let Ok(seen) = seen {
                    assert_eq!(difference(&original, &seen), [""; 0], "{label}");
                }
            } else {
                refused += 1;
                assert_eq!(mounted.code, 6, "{label}: {mounted:?}");
                assert!(mounted.stderr.contains("cairn recover"), "{label}: {mounted:?}");
                assert!(!mounted.stderr.contains("panicked"), "{label}: {mounted:?}");
            }
            fs::remove_dir_all(&volume.dir).unwrap();
            copy(&kept, &volume.dir);
        }
    }
    assert!(refused > 0);
    recoverable(&world, "c", &original);
}

#[test]
fn swapped_cut_and_missing_blocks_of_a_backend_are_never_served_and_are_replaced() {
    let Some(world) = World::mountable("damage::backend_blocks") else { return };
    let (volume, original) = filled(&world);
    let blocks = files(&world.path("b/blocks"));
    for (n, pair) in blocks.chunks(2).enumerate() {
        match (n % 3, pair) {
            (0, [one, two]) => {
                let (first, second) = (fs::read(one).unwrap(), fs::read(two).unwrap());
                fs::write(one, second).unwrap();
                fs::write(two, first).unwrap();
            }
            (1, [one, ..]) => halve(one),
            (_, [one, ..]) => fs::remove_file(one).unwrap(),
            _ => {}
        }
    }
    // All has to come from the backends, and b has nothing good to say.
    fs::remove_dir_all(volume.dir.join("store")).unwrap();
    whole(&volume, &original, "blocks of b swapped");
    recoverable(&world, "c", &original);
}

#[test]
fn recovery_takes_the_newest_checkpoint_that_is_whole_and_says_what_it_passed_over() {
    let Some(world) = World::mountable("damage::recovery") else { return };
    let (volume, original) = filled(&world);
    let names = || {
        let mut all = files(&world.path("b/names"));
        all.retain(|path| path.to_str().unwrap().contains("/manifest-"));
        all
    };
    let newest = names().pop().unwrap();
    let cid = fs::read_to_string(&newest).unwrap();
    let cid = cid.trim();
    let shard = &cid[cid.len() - 3..cid.len() - 1];
    let manifest = world.path("b/blocks").join(shard).join(cid);
    let mount = volume.mount();
    fs::write(mount.path("later"), b"x").unwrap();
    mount.umount().ok();
    let later = names().pop().unwrap();
    assert_ne!(newest, later);
    // The newest name leads to bytes that are not its manifest.
    let cid = fs::read_to_string(&later).unwrap();
    let cid = cid.trim();
    let shard = &cid[cid.len() - 3..cid.len() - 1];
    flip(&world.path("b/blocks").join(shard).join(cid));
    let again = Volume { world: &world, dir: world.path("again") };
    let run = again.cairn(&["recover", "--from", &world.backend_url("b")]).ok();
    assert!(run.stderr.contains(later.file_name().unwrap().to_str().unwrap()), "{run:?}");
    let mount = again.mount();
    assert_eq!(difference(&original, &snapshot(&mount.path("tree"))), [""; 0]);
    mount.umount().ok();
    fs::remove_dir_all(&again.dir).unwrap();
    // No manifest at all is whole.
    flip(&manifest);
    for name in names() {
        let cid = fs::read_to_string(&name).unwrap();
        let cid = cid.trim();
        let shard = &cid[cid.len() - 3..cid.len() - 1];
        let path = world.path("b/blocks").join(shard).join(cid);
        fs::write(&path, b"{}").unwrap();
    }
    let failed = again.cairn(&["recover", "--from", &world.backend_url("b")]);
    failed.fails(3, &["no complete checkpoint", "manifest-"]);
    assert!(!again.dir.join("volume.json").exists());
}

#[test]
fn a_damaged_identity_is_told_and_changes_nothing() {
    let world = World::new();
    let volume = world.volume(&["b"], "");
    let path = volume.dir.join("volume.json");
    let good = fs::read(&path).unwrap();
    for bad in [&b""[..], b"{", b"{\"format\":1}", b"\xff\xfe"] {
        fs::write(&path, bad).unwrap();
        volume.cairn(&["status"]).fails(6, &["volume.json is damaged", "cairn recover"]);
    }
    fs::write(&path, &good).unwrap();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_backend_that_turns_read_only_is_shown_and_catches_up() {
    let Some(world) = World::mountable("damage::read_only") else { return };
    if !rustix::process::geteuid().is_root() {
        crate::support::skip("damage::read_only", "a bind mount needs root");
        return;
    }
    let volume = world.volume(&["b", "c"], "min=2,target=3,max=3");
    let place = world.path("c");
    let mount_program = |words: &[&str]| {
        let mut command = std::process::Command::new("mount");
        command.args(words);
        run(command, std::time::Duration::from_secs(30)).ok();
    };
    let text = place.to_str().unwrap();
    mount_program(&["--bind", text, text]);
    let undo = Unmount(place.clone());
    mount_program(&["-o", "remount,bind,ro", text]);
    let mount = volume.mount();
    fs::write(mount.path("file"), b"not lost").unwrap();
    let state = || {
        let status = volume.status();
        let all = status["backends"].as_array().unwrap().clone();
        all.into_iter().find(|b| b["id"] == "c").unwrap()["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state(), "read_only");
    mount_program(&["-o", "remount,bind,rw", text]);
    wait_until("the backend takes writes again", || state() == "up");
    world.cairn(&["sync", mount.at.to_str().unwrap()]).ok();
    mount.umount().ok();
    drop(undo);
    let again = Volume { world: &world, dir: world.path("again") };
    again.cairn(&["recover", "--from", &world.backend_url("c")]).ok();
    let mount = again.mount();
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"not lost");
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        crate::support::detach(&self.0);
    }
}
