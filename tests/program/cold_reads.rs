//! Files that lie on a backend only, read through a mount.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::support::{Volume, World};

const MIB: usize = 1 << 20;

/// The sum of a counter's values.
fn counter(volume: &Volume<'_>, name: &str) -> u64 {
    let text = volume.cairn(&["stats"]).ok().stdout;
    let values = text.lines().filter(|line| line.starts_with(name)).map(|line| {
        let value = line.rsplit(' ').next().unwrap();
        value.parse::<u64>().unwrap_or_else(|error| panic!("{line}: {error}"))
    });
    values.sum()
}

#[test]
fn a_small_read_of_a_file_that_is_only_on_a_backend_moves_one_leaf() {
    let Some(world) = World::mountable("cold_reads::one_leaf") else { return };
    let volume = world.volume(&["b"], "min=1,target=2,max=2");
    let mount = volume.mount();
    let mut random = fastrand::Rng::with_seed(5);
    let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64 * MIB).collect();
    fs::write(mount.path("file"), &data).unwrap();
    mount.umount().ok();
    // Where the leaves lie here; the node that lists them lies in a pack.
    let segments = volume.dir.join("store/segments");
    fs::remove_dir_all(&segments).unwrap();
    fs::create_dir(&segments).unwrap();
    let mount = volume.mount();
    let file = fs::File::open(mount.path("file")).unwrap();
    let mut part = vec![0; 4096];
    file.read_exact_at(&mut part, 37 * MIB as u64 + 5).unwrap();
    assert!(part == data[37 * MIB + 5..][..4096]);
    let (blocks, bytes) =
        ("cairn_replication_fetched_blocks_total", "cairn_replication_read_bytes");
    assert_eq!((counter(&volume, blocks), counter(&volume, bytes)), (1, MIB as u64));
    assert_eq!(counter(&volume, "cairn_replication_ahead_blocks_total"), 0);
    drop(file);
    // In order, each comes once; most of them before they were asked for.
    assert!(fs::read(mount.path("file")).unwrap() == data);
    assert_eq!(counter(&volume, blocks), 64);
    let ahead = counter(&volume, "cairn_replication_ahead_blocks_total");
    assert!(ahead >= 16, "{ahead} of 64");
    let status = volume.status();
    let backends = status["backends"].as_array().unwrap();
    let b = backends.iter().find(|backend| backend["id"] == "b").unwrap();
    assert_eq!(b["read_bytes"], 64 * MIB as u64, "{b}");
    assert!(b["read_mib_ms"].is_u64(), "{b}");
    mount.umount().ok();
    volume.cairn(&["fsck", "--deep"]).ok();
}
