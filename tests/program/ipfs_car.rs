//! Archives of `ipfs-car` (the JavaScript implementation) come in, and ours open
//! there.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::{World, run, skip};

#[test]
fn ipfs_car_reads_our_archives_and_we_read_its() {
    let Some(world) = World::mountable("ipfs_car::both_ways") else { return };
    if Command::new("ipfs-car").arg("--version").output().is_err() {
        skip("ipfs_car::both_ways", "ipfs-car is not installed (npm install -g ipfs-car@3.1.0)");
        return;
    }
    let tree = world.make_dir("tree");
    fs::create_dir(tree.join("deep")).unwrap();
    let big: Vec<u8> =
        (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(tree.join("deep/several leaves"), big).unwrap();
    fs::write(tree.join("small"), b"hello\n").unwrap();
    fs::write(tree.join("empty"), b"").unwrap();
    let same = |a: &str, b: &str| {
        let mut diff = world.command("diff");
        diff.args(["-r", a, b]);
        run(diff, Duration::from_mins(1)).ok();
    };
    let theirs = |words: &[&str]| {
        let mut command = world.command("ipfs-car");
        command.args(words);
        run(command, Duration::from_mins(1)).ok()
    };
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let text = tree.to_str().unwrap();
    let car = world.path("theirs.car");
    let car = car.to_str().unwrap();
    let root = theirs(&["pack", text, "--no-wrap", "--output", car]).stdout.trim().to_owned();
    world.cairn(&["car", "verify", car]).ok();
    world.cairn(&["import", car, &mount.text("in")]).ok();
    same(text, &mount.text("in"));
    // It builds files and flat directories as the default profile does.
    let cid = world.cairn(&["cid", &mount.text("in")]).ok().stdout;
    assert_eq!(cid.split_whitespace().next(), Some(root.as_str()));
    for version in ["1", "2"] {
        let ours = world.path(&format!("ours-{version}.car"));
        let ours = ours.to_str().unwrap();
        world.cairn(&["export", &mount.text("in"), "-o", ours, "--car-version", version]).ok();
        let out = world.path(&format!("out-{version}"));
        let out = out.to_str().unwrap();
        theirs(&["unpack", ours, "--output", out]);
        same(text, out);
    }
}
