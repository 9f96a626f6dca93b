//! The replication core through years of failures: the code that the daemon runs,
//! over simulated places and a simulated clock. What is checked after each event is
//! in `check.rs`. A seed replays exactly: `CAIRN_SEED=7 CAIRN_SEEDS=1`.

#![expect(clippy::unwrap_used, reason = "a simulation that cannot go on fails")]
#![expect(clippy::panic, reason = "a broken invariant ends the test")]

mod cache;
mod check;
mod faults;
mod hands;
mod place;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

/// Seeds in CI; `scripts/soak simulate N` runs more.
const SEEDS: u64 = 2000;

/// Seeds with an administrator, and where the local store is a cache.
const HANDS: u64 = 150;
const CACHES: u64 = 100;

/// Ends all threads when one of them found something.
struct Last<'n>(&'n AtomicU64);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(u64::MAX / 2, Ordering::Relaxed);
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn no_acknowledged_content_is_lost_and_all_converges_when_faults_stop() {
    each_seed(SEEDS, &World::new);
}

/// Runs the worlds of so many seeds, or of those that the environment asks for, on all
/// processors.
fn each_seed(count: u64, world: &(dyn Fn(u64) -> World + Sync)) {
    let (first, seeds) = (number("CAIRN_SEED", 1), number("CAIRN_SEEDS", count));
    let (next, hours) = (AtomicU64::new(first), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _last = Last(&next);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let mut world = world(seed);
                    world.run();
                    hours.fetch_add(world.elapsed().as_secs() / 3600, Ordering::Relaxed);
                }
            });
        }
    });
    println!("seeds {first} to {}: {} simulated hours", first + seeds - 1, hours.into_inner());
}

#[test]
fn what_an_administrator_does_loses_nothing_and_ends_when_faults_stop() {
    each_seed(HANDS, &World::with_hands);
}

#[test]
fn a_cache_lets_go_of_nothing_that_is_not_proven_elsewhere() {
    each_seed(CACHES, &World::with_cache);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 11] {
        let traces: Vec<u64> = (0..2)
            .map(|_| {
                let mut world = World::new(seed);
                world.run();
                world.trace_hash()
            })
            .collect();
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}
