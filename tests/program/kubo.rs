//! Archives and CIDs against Kubo itself (`ipfs` in the PATH, offline).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::Duration;

use crate::support::{Run, World, run, skip};

/// Kubo with a repository of its own; nothing of it touches the network.
struct Kubo<'w>(&'w World);

impl<'w> Kubo<'w> {
    /// `None` where it is not installed (an error in CI).
    fn new(world: &'w World, test: &str) -> Option<Self> {
        if Command::new("ipfs").arg("version").output().is_err() {
            skip(test, "ipfs (Kubo) is not in the PATH");
            return None;
        }
        let kubo = Self(world);
        kubo.run(&["init", "--empty-repo", "--profile=test,unixfs-v1-2025"]).ok();
        Some(kubo)
    }

    fn run(&self, words: &[&str]) -> Run {
        let mut command = self.0.command("ipfs");
        command.env("IPFS_PATH", self.0.path("kubo")).arg("--offline").args(words);
        run(command, Duration::from_mins(2))
    }
}

/// Small and large files, a link, a folder of 3,000 names (a HAMT).
fn plant(world: &World) -> String {
    let top = world.make_dir("tree");
    fs::create_dir_all(top.join("sub/many")).unwrap();
    fs::write(top.join("small"), b"hello\n").unwrap();
    fs::write(top.join("empty"), b"").unwrap();
    let large: Vec<u8> =
        (0..5_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    fs::write(top.join("sub/large"), large).unwrap();
    symlink("../small", top.join("sub/link")).unwrap();
    for n in 0..3000 {
        fs::write(top.join(format!("sub/many/a name that is rather long, number {n}")), [0; 3])
            .unwrap();
    }
    top.to_str().unwrap().to_owned()
}

fn first_word(run: Run) -> String {
    run.ok().stdout.split_whitespace().next().unwrap().to_owned()
}

fn same(world: &World, a: &str, b: &str) {
    let mut diff = world.command("diff");
    diff.args(["-r", "--no-dereference", a, b]);
    run(diff, Duration::from_mins(1)).ok();
}

#[test]
fn our_cid_is_what_kubo_adds() {
    let world = World::new();
    let Some(kubo) = Kubo::new(&world, "kubo::same_cid") else { return };
    let tree = plant(&world);
    let theirs = kubo.run(&["add", "-r", "-Q", "--hidden", &tree]).ok();
    assert_eq!(first_word(world.cairn(&["cid", &tree])), theirs.stdout.trim());
    kubo.run(&["config", "profile", "apply", "unixfs-v0-2015"]).ok();
    let theirs = kubo.run(&["add", "-r", "-Q", "--hidden", &tree]).ok();
    let ours = world.cairn(&["cid", "--profile", "unixfs-v0-2015", &tree]);
    assert_eq!(first_word(ours), theirs.stdout.trim());
}

#[test]
fn kubo_reads_our_archives_and_we_read_its() {
    let Some(world) = World::mountable("kubo::archives") else { return };
    let Some(kubo) = Kubo::new(&world, "kubo::archives") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let tree = plant(&world);
    let mut copy = world.command("cp");
    copy.args(["-a", &tree]).arg(&mount.at);
    run(copy, Duration::from_mins(2)).ok();
    let cid = first_word(world.cairn(&["cid", &mount.text("tree")]));
    for version in ["1", "2"] {
        let car = world.path(&format!("ours-{version}.car"));
        let car = car.to_str().unwrap();
        world.cairn(&["export", &mount.text("tree"), "-o", car, "--car-version", version]).ok();
        let imported = kubo.run(&["dag", "import", "--stats", car]).ok();
        assert!(imported.stdout.contains(&cid), "{imported:?}");
        let out = world.path(&format!("got-{version}"));
        let out = out.to_str().unwrap();
        kubo.run(&["get", "-o", out, &cid]).ok();
        same(&world, &tree, out);
    }
    // What it exports of the same tree comes in here, under the same CID.
    let car = world.path("theirs.car");
    let mut export = world.command("ipfs");
    export
        .env("IPFS_PATH", world.path("kubo"))
        .args(["--offline", "dag", "export", "--progress=false", &cid])
        .stdout(fs::File::create(&car).unwrap());
    assert!(export.status().unwrap().success());
    let car = car.to_str().unwrap();
    world.cairn(&["car", "verify", car]).ok();
    world.cairn(&["import", car, &mount.text("back")]).ok();
    same(&world, &tree, &mount.text("back"));
    assert_eq!(first_word(world.cairn(&["cid", &mount.text("back")])), cid);
}

#[test]
fn mode_and_time_of_unixfs_1_5_are_kept() {
    let Some(world) = World::mountable("kubo::mode_and_time") else { return };
    let Some(kubo) = Kubo::new(&world, "kubo::mode_and_time") else { return };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let top = world.make_dir("tree/sub");
    for (name, mode, seconds) in [("run", 0o4755, 1_234_567_890), ("sub/secret", 0o600, 86_399)] {
        let path = world.path("tree").join(name);
        fs::write(&path, name).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let time = std::time::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }
    fs::set_permissions(&top, fs::Permissions::from_mode(0o1777)).unwrap();
    let tree = world.path("tree");
    let added = kubo
        .run(&[
            "add",
            "-r",
            "-Q",
            "--raw-leaves=false",
            "--preserve-mode",
            "--preserve-mtime",
            tree.to_str().unwrap(),
        ])
        .ok();
    let car = world.path("kept.car");
    let mut export = world.command("ipfs");
    export
        .env("IPFS_PATH", world.path("kubo"))
        .args(["--offline", "dag", "export", "--progress=false", added.stdout.trim()])
        .stdout(fs::File::create(&car).unwrap());
    assert!(export.status().unwrap().success());
    world.cairn(&["import", car.to_str().unwrap(), &mount.text("back")]).ok();
    for name in ["run", "sub", "sub/secret"] {
        let (theirs, ours) = (
            fs::metadata(tree.join(name)).unwrap(),
            fs::metadata(mount.path("back").join(name)).unwrap(),
        );
        assert_eq!(ours.mode() & 0o7777, theirs.mode() & 0o7777, "mode of {name}");
        assert_eq!(
            (ours.mtime(), ours.mtime_nsec()),
            (theirs.mtime(), theirs.mtime_nsec()),
            "time of {name}"
        );
    }
}
