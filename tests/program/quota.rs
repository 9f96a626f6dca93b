//! `cairn quota`, as programs on a mount meet it.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;

use crate::support::{World, run};

const MIB: u64 = 1 << 20;

#[track_caller]
fn refused<T, E: Into<std::io::Error>>(result: Result<T, E>, errno: Errno) {
    let error: std::io::Error = result.err().unwrap().into();
    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{error}");
}

/// In all, free, and free inodes, as `df` has them.
fn df(path: &Path) -> (u64, u64, u64) {
    let stat = rustix::fs::statvfs(path).unwrap();
    (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize, stat.f_favail)
}

fn fill(path: &Path, bytes: u64) -> std::io::Result<()> {
    fs::write(path, vec![7; usize::try_from(bytes).unwrap()])
}

#[test]
fn a_directory_quota_is_edquot_at_the_call_that_would_exceed_it() {
    let Some(world) = World::mountable("quota::directory") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let at = |name: &str| mount.path(name);
    for dir in ["q", "q/inner", "free"] {
        fs::create_dir(at(dir)).unwrap();
    }
    fill(&at("q/inner/old"), MIB).unwrap();
    let set = ["--json", "quota", "set", &mount.text("q"), "--size", "4MiB", "--inodes", "6"];
    let set = world.cairn(&set).ok().json();
    assert_eq!((&set["used_bytes"], &set["used_inodes"]), (&MIB.into(), &2.into()), "{set}");
    // Bytes.
    let mut file = File::create(at("q/inner/new")).unwrap();
    file.write_all(&vec![1; 3 << 20]).unwrap();
    refused(file.write_all(b"x"), Errno::DQUOT);
    refused(file.set_len(3 * MIB + 1), Errno::DQUOT);
    refused(
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 3 * MIB + 1),
        Errno::DQUOT,
    );
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&vec![2; 3 << 20]).unwrap();
    drop(file);
    refused(fs::copy(at("q/inner/old"), at("q/copy")), Errno::DQUOT);
    fs::remove_file(at("q/copy")).unwrap();
    fill(&at("free/large"), MIB).unwrap();
    refused(fs::rename(at("free/large"), at("q/large")), Errno::DQUOT);
    assert_eq!(df(&at("q/inner")), (4 * MIB, 0, 3));
    // What is removed can be used again.
    fs::remove_file(at("q/inner/old")).unwrap();
    fs::rename(at("free/large"), at("q/large")).unwrap();
    // Inodes: inner, new, large, and three more.
    fs::create_dir(at("q/dir")).unwrap();
    symlink("x", at("q/link")).unwrap();
    File::create(at("q/last")).unwrap();
    refused(File::create(at("q/more")), Errno::DQUOT);
    refused(fs::create_dir(at("q/dir/more")), Errno::DQUOT);
    refused(symlink("x", at("q/more")), Errno::DQUOT);
    fs::hard_link(at("q/last"), at("q/second")).unwrap();
    // Across the boundary.
    refused(fs::hard_link(at("q/last"), at("free/link")), Errno::XDEV);
    refused(fs::rename(at("q/second"), at("free/second")), Errno::XDEV);
    refused(fs::rename(at("q/dir"), at("free/dir")), Errno::XDEV);
    let mut mv = world.command("mv");
    mv.arg(at("q/dir")).arg(at("free/dir"));
    run(mv, Duration::from_mins(1)).ok();
    assert!(at("free/dir").is_dir() && !at("q/dir").exists());
    File::create(at("q/more")).unwrap();
    fs::remove_file(at("q/second")).unwrap();
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
    let listed = volume.cairn(&["--json", "quota", "ls", "/"]).ok().json();
    let quota = &listed["quotas"][0];
    assert_eq!(quota["path"], "/q");
    assert_eq!((&quota["used_bytes"], &quota["bytes_percent"]), (&(4 * MIB).into(), &100.into()));
    assert_eq!((&quota["used_inodes"], &quota["limit_inodes"]), (&6.into(), &6.into()));
}

#[test]
fn a_quota_of_the_root_is_a_volume_of_that_size() {
    let Some(world) = World::mountable("quota::volume") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    // A volume that is not mounted can have one, too.
    volume.cairn(&["quota", "set", "/", "--size", "8MiB"]).ok();
    let mount = volume.mount();
    assert_eq!((df(&mount.at).0, df(&mount.at).1), (8 * MIB, 8 * MIB));
    let mut written = 0;
    let mut file = File::create(mount.path("file")).unwrap();
    let error = loop {
        match file.write(&vec![1; 3 << 19]) {
            Ok(count) => written += count as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{error}");
    assert!(written > 6 * MIB && written <= 8 * MIB, "{written}");
    file.sync_all().unwrap();
    drop(file);
    // All that df says can be written.
    let left = df(&mount.at).1;
    fill(&mount.path("rest"), left).unwrap();
    assert!(df(&mount.at).1 < 4096);
    fs::create_dir(mount.path("dir")).unwrap();
    // A larger one below does not help, a smaller one holds as well.
    let dir = mount.text("dir");
    world.cairn(&["quota", "set", &dir, "--size", "1GiB"]).ok();
    refused(fill(&mount.path("dir/x"), 8192), Errno::NOSPC);
    fs::remove_file(mount.path("rest")).unwrap();
    world.cairn(&["quota", "set", &dir, "--size", "4KiB"]).ok();
    refused(fill(&mount.path("dir/x"), 8192), Errno::DQUOT);
    let shown = world.cairn(&["--json", "quota", "show", &dir]).ok().json();
    let paths: Vec<_> = shown["quotas"].as_array().unwrap().iter().map(|q| &q["path"]).collect();
    assert_eq!(paths, ["/dir", "/"]);
    world.cairn(&["quota", "remove", &dir]).ok();
    world.cairn(&["quota", "remove", &dir]).fails(3, &["no quota of its own"]);
    world.cairn(&["quota", "set", &dir]).fails(2, &["--size"]);
    world.cairn(&["quota", "set", &mount.text("file"), "--size", "1MiB"]).fails(1, &["directory"]);
    fill(&mount.path("dir/x"), 8192).unwrap();
    let text = world.cairn(&["quota", "ls", mount.at.to_str().unwrap()]).ok().stdout;
    assert!(text.contains("8.0 MiB") && text.lines().count() == 2, "{text}");
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn an_import_that_exceeds_a_quota_leaves_nothing() {
    let Some(world) = World::mountable("quota::import") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    for dir in ["tree", "tree/sub", "q"] {
        fs::create_dir(mount.path(dir)).unwrap();
    }
    for file in ["tree/a", "tree/sub/b"] {
        fill(&mount.path(file), MIB).unwrap();
    }
    let car = world.path("tree.car").to_str().unwrap().to_owned();
    world.cairn(&["export", &mount.text("tree"), "-o", &car, "--metadata"]).ok();
    world.cairn(&["quota", "set", &mount.text("q"), "--size", "1500KiB"]).ok();
    world.cairn(&["import", &car, &mount.text("q/tree")]).fails(1, &["quota"]);
    assert_eq!(fs::read_dir(mount.path("q")).unwrap().count(), 0);
    let shown = world.cairn(&["--json", "quota", "show", &mount.text("q")]).ok().json();
    assert_eq!(shown["quotas"][0]["used_bytes"], 0, "{shown}");
    world.cairn(&["quota", "set", &mount.text("q"), "--size", "2MiB"]).ok();
    world.cairn(&["import", &car, &mount.text("q/tree")]).ok();
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_quota_survives_kill_9_and_comes_back_with_a_recovery() {
    let Some(world) = World::mountable("quota::recovery") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    fs::create_dir_all(mount.path("q/inner")).unwrap();
    world.cairn(&["quota", "set", &mount.text("q"), "--size", "2MiB", "--inodes", "3"]).ok();
    fill(&mount.path("q/inner/file"), MIB).unwrap();
    let file = File::open(mount.path("q/inner/file")).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let used = |words: &[&str]| {
        let quota = volume.cairn(words).ok().json()["quotas"][0].clone();
        assert_eq!((&quota["used_bytes"], &quota["used_inodes"]), (&MIB.into(), &2.into()));
        assert_eq!((&quota["limit_bytes"], &quota["limit_inodes"]), (&(2 * MIB).into(), &3.into()));
    };
    mount.kill();
    used(&["--json", "quota", "show", "/q/inner"]);
    volume.cairn(&["fsck"]).ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    volume.cairn(&["recover", "--from", &world.backend_url("b")]).ok();
    used(&["--json", "quota", "ls", "/"]);
    let mount = volume.mount();
    File::create(mount.path("q/last")).unwrap();
    refused(File::create(mount.path("q/more")), Errno::DQUOT);
    refused(fill(&mount.path("q/last"), MIB + 1), Errno::DQUOT);
    let mut listed = Command::new("getfattr");
    listed.args(["-d", "-m", "-"]).arg(mount.path("q"));
    if let Ok(output) = listed.output() {
        assert!(!String::from_utf8_lossy(&output.stdout).contains("quota"));
    }
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
