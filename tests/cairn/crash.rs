//! The daemon is killed at any moment.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Place, cairn_ok, can_mount};

/// Rounds; the soak script sets more.
fn rounds() -> u32 {
    std::env::var("CAIRN_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

#[test]
fn what_fsync_acknowledged_survives_kill_9() {
    if !can_mount("what_fsync_acknowledged_survives_kill_9") {
        return;
    }
    let place = Place::new();
    let seed: u64 =
        std::env::var("CAIRN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x00ca_1127);
    eprintln!("CAIRN_SEED={seed}, {} rounds", rounds());
    let mut random = seed;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut acknowledged: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..rounds() {
        let level = if round % 2 == 0 { "level=LOCAL_DURABILITY" } else { "level=QUORUM" };
        let options = ["-o", level];
        let mount = if round == 0 {
            place.mount_usual(&options)
        } else {
            place.mount("volume", "mnt", &options)
        };
        for (name, bytes) in &acknowledged {
            assert_eq!(&fs::read(mount.path(name)).unwrap(), bytes, "{name} in round {round}");
        }
        cairn_ok(&["fsck", "--volume", &mount.volume]);
        let stop = Arc::new(AtomicBool::new(false));
        // Noise that is never acknowledged: it may be there or not.
        let (noise, ended) = (mount.path("noise"), Arc::clone(&stop));
        let worker = std::thread::spawn(move || {
            drop(fs::create_dir(&noise));
            let mut i = 0u64;
            while !ended.load(Ordering::Relaxed) {
                if fs::write(
                    noise.join(format!("{round}-{i}")),
                    vec![b'n'; (i * 37 % 9000) as usize],
                )
                .is_err()
                {
                    return;
                }
                i += 1;
            }
        });
        for i in 0..3 + next() % 12 {
            let name = format!("kept-{round}-{i}");
            let len = (next() % 300_000) as usize;
            let bytes: Vec<u8> =
                (0..len).map(|j| (j as u64 * 31 + i + u64::from(round)) as u8).collect();
            let mut file = File::create(mount.path(&name)).unwrap();
            file.write_all(&bytes).unwrap();
            file.sync_all().unwrap();
            acknowledged.push((name, bytes));
        }
        if acknowledged.len() > 60 {
            for (name, _) in acknowledged.drain(..30) {
                fs::remove_file(mount.path(&name)).unwrap();
            }
        }
        mount.kill();
        stop.store(true, Ordering::Relaxed);
        worker.join().unwrap();
    }
    let mount = place.mount("volume", "mnt", &[]);
    for (name, bytes) in &acknowledged {
        assert_eq!(&fs::read(mount.path(name)).unwrap(), bytes, "{name} at the end");
    }
    mount.umount();
    cairn_ok(&["fsck", "--deep", "--volume", &place.at("volume")]);
}
