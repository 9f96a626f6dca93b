//! Large directories. `CAIRN_ENTRIES` says how many entries (`scripts/soak directory`).

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::time::Instant;

use crate::support::{Mount, World};

/// What the daemon may take in the gate, and with any number of entries.
const GATE_KIB: u64 = 192 << 10;
const MEMORY_KIB: u64 = 512 << 10;
const THREADS: usize = 4;

fn resident_kib(mount: &Mount<'_>) -> u64 {
    let pid = mount.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_large_directory_is_made_listed_looked_up_and_emptied_in_flat_memory() {
    let Some(world) = World::mountable("directory::large") else { return };
    let entries: usize =
        std::env::var("CAIRN_ENTRIES").map_or(20_000, |text| text.parse().unwrap());
    let volume = world.volume(&[], "min=1,target=1,max=1");
    let mount = volume.mount();
    let dir = mount.path("large");
    fs::create_dir(&dir).unwrap();
    println!("RSS {} MiB", resident_kib(&mount) >> 10);
    let step = |what: &str, work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        let resident = resident_kib(&mount);
        println!("{entries} {what}: {:.1?}, RSS {} MiB", begun.elapsed(), resident >> 10);
        let most = if entries <= 20_000 { GATE_KIB } else { MEMORY_KIB };
        assert!(resident < most, "{} MiB after {what}", resident >> 10);
    };
    step("created", &mut || {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let dir = &dir;
                scope.spawn(move || {
                    for n in (thread..entries).step_by(THREADS) {
                        fs::File::create_new(dir.join(format!("entry-{n:07}"))).unwrap();
                    }
                });
            }
        });
    });
    // As `ls -f`: names and kinds.
    let list = || {
        let mut seen = HashSet::new();
        for entry in fs::read_dir(&dir).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(seen.insert(name.clone()), "{name:?} was listed twice");
        }
        seen
    };
    step("listed", &mut || assert_eq!(list().len(), entries));
    let mut random = fastrand::Rng::with_seed(7);
    step("a tenth of them looked up at random", &mut || {
        for _ in 0..entries / 10 {
            let name = format!("entry-{:07}", random.usize(0..entries));
            assert!(fs::metadata(dir.join(name)).unwrap().is_file());
            assert!(fs::metadata(dir.join("nothing")).is_err());
        }
    });
    // Every second name goes and others come while the rest is being listed:
    // what stays is seen once, what comes at most once.
    step("listed while half of them is removed", &mut || {
        let mut seen: HashSet<OsString> = HashSet::new();
        for (count, entry) in fs::read_dir(&dir).unwrap().enumerate() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            assert!(seen.insert(name.clone()), "{name:?} was listed twice");
            if count % 2 == 0 && !name.to_str().unwrap().starts_with("new") {
                fs::remove_file(entry.path()).unwrap();
            }
            if count % 1000 == 0 && count < entries {
                fs::write(dir.join(format!("new-{count}")), b"").unwrap();
            }
        }
        let old = seen.iter().filter(|name| name.to_str().unwrap().starts_with("entry")).count();
        assert_eq!(old, entries, "of the first {entries}, each was there when its turn came");
    });
    let left = list();
    println!("{} are left", left.len());
    assert!(left.iter().any(|name| name.to_str().unwrap().starts_with("new")));
    step("the rest removed as `rm -r` does", &mut || fs::remove_dir_all(&dir).unwrap());
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}
