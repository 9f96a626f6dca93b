//! More files than descriptors.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{World, skip};

/// Files that are open for writing at once, where this process may open as many.
const FILES: usize = 20_000;
/// Descriptors of this process for other things.
const SPARE: usize = 2_000;
/// What the daemon may have open.
const LIMIT: u64 = 1024;
/// Above `memory_file_bytes` below: each has a staging file.
const LEN: usize = 6_000;

fn bytes_of(number: usize) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    fastrand::Rng::with_seed(number as u64).fill(&mut bytes);
    bytes
}

#[test]
fn thousands_of_files_are_written_at_once_by_a_daemon_with_1024_descriptors() {
    let test = "descriptors::twenty_thousand";
    let Some(world) = World::mountable(test) else { return };
    // This process needs one each; the daemon does not.
    let own = getrlimit(Resource::Nofile);
    let most = own.maximum.map_or(usize::MAX, |most| most as usize);
    let files_open = FILES.min(most.saturating_sub(SPARE));
    if files_open < 4 * LIMIT as usize {
        skip(test, &format!("this process may open only {most} files"));
        return;
    }
    println!("{files_open} files");
    let wanted = (files_open + SPARE) as u64;
    let raised = Rlimit { current: Some(wanted.max(own.current.unwrap_or(0))), ..own };
    setrlimit(Resource::Nofile, raised).unwrap();
    let volume = world.volume(&["b"], "min=1,target=2,max=2,wait_on=fsync,level=LOCAL_DURABILITY");
    let config = volume.dir.join("cairn.toml");
    let text = fs::read_to_string(&config).unwrap();
    let small = text.replace("memory_file_bytes = \"128KiB\"", "memory_file_bytes = \"4KiB\"");
    assert_ne!(small, text);
    fs::write(&config, small).unwrap();
    // Inherited by the daemon that `cairn mount` starts; hard, so that it cannot raise it.
    let mount = {
        let mut command = world.command("prlimit");
        command.arg(format!("--nofile={LIMIT}:{LIMIT}")).arg(env!("CARGO_BIN_EXE_cairn"));
        command.args(["mount", world.make_dir("mnt").to_str().unwrap(), "--volume"]);
        command.arg(&volume.dir);
        match command.output() {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => {
                skip(test, &format!("prlimit: {error}"));
                return;
            }
        }
        volume.mounted()
    };
    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.pid().as_raw_nonzero()));
    let limits = limits.unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.matches("1024").count(), 2, "{line}");
    let path = |number: usize| mount.path(&format!("d{}/f{number}", number % 20));
    for n in 0..20 {
        fs::create_dir(mount.path(&format!("d{n}"))).unwrap();
    }
    let half = LEN / 2;
    let mut files = Vec::with_capacity(files_open);
    for number in 0..files_open {
        let file = File::options().read(true).write(true).create_new(true).open(path(number));
        let file = file.unwrap_or_else(|e| panic!("file {number}: {e}"));
        // From behind: a hole first, so that the file is larger than memory takes.
        file.write_all_at(&bytes_of(number)[half..], half as u64).unwrap();
        files.push(file);
    }
    let held = fs::read_dir(format!("/proc/{}/fd", mount.pid().as_raw_nonzero())).unwrap().count();
    assert!(held < LIMIT as usize, "{held} descriptors");
    for (number, file) in files.iter().enumerate() {
        file.write_all_at(&bytes_of(number)[..half], 0).unwrap();
    }
    // Without a name it is written all the same.
    fs::remove_file(path(0)).unwrap();
    for (number, file) in files.iter().enumerate().step_by(97) {
        let mut bytes = vec![0; LEN];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == bytes_of(number), "file {number}");
        file.sync_data().unwrap();
    }
    drop(files);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
    let mount = volume.mount();
    for number in (1..files_open).step_by(13) {
        let name = format!("d{}/f{number}", number % 20);
        assert!(fs::read(mount.path(&name)).unwrap() == bytes_of(number), "file {number}");
    }
    mount.umount().ok();
}
