use std::time::Instant;

use super::harness::{World, bytes, eventually, policy};
use crate::backends::{DirBackend, DirOptions};

/// Prints how fast small contents reach two directories.
#[test]
#[ignore = "a measurement"]
fn small_contents_a_second_to_two_directories() {
    let mut world = World::new();
    let base = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let options = DirOptions { domain: Some(name.into()), ..DirOptions::default() };
        let dir = DirBackend::open(&base.path().join(name), options, true).unwrap();
        world.add(name, std::sync::Arc::new(dir));
    }
    let count = 5000u32;
    for n in 0..u64::from(count) {
        world.commit(&bytes(n, 30), &policy(""));
    }
    let start = Instant::now();
    world.start();
    eventually("all are sent", || world.namespace.stats().queued == 0);
    let sent = start.elapsed();
    eventually("all are verified", || world.namespace.stats().unverified == 0);
    println!(
        "{:.0} contents/s sent to each of two directories, verified after {:?}",
        f64::from(count) / sent.as_secs_f64(),
        start.elapsed()
    );
}
