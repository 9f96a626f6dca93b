use std::sync::Arc;
use std::time::Duration;

use super::super::machine::Outcome;
use super::harness::{World, blocks, bytes, eventually, policy};
use crate::backends::{ErrorKind, Operation};
use crate::metadata::{CopyState, PinState, VerifyMethod};
use crate::runtime::{Clock, ManualClock};
use crate::types::{Block, Timestamp};

#[test]
fn a_write_reaches_its_target_and_every_copy_is_read_back() {
    let (mut world, places) = World::with(&["a", "b"]);
    let policy = policy("");
    let roots = [0, 1, 31, 32, 33, 128, 5000].map(|len| world.commit(&bytes(7, len), &policy));
    world.until_drained();
    eventually("all are verified", || world.namespace.stats().unverified == 0);
    for root in roots {
        let record = world.record(&root);
        assert_eq!((record.pin, record.copies.len()), (PinState::AtTarget, 3));
        let remote = record.copies.iter().filter(|copy| !copy.backend.is_local());
        assert!(remote.clone().all(|copy| copy.method == VerifyMethod::ReadBack));
        for block in blocks(&world, &root) {
            assert!(places.iter().all(|place| place.contains(&block)));
        }
    }
    assert_eq!(world.namespace.stats().pins_by_state[2], roots.len() as u64);
}

#[test]
fn after_a_crash_the_queue_goes_on_without_being_asked() {
    let (mut world, places) = World::with(&["a", "b"]);
    places.iter().for_each(|place| place.fail(Operation::PutMany, ErrorKind::Other));
    let roots: Vec<_> = (0..50).map(|n| world.commit(&bytes(n, 100), &policy(""))).collect();
    eventually("a round failed", || world.row(&roots[0]).is_some_and(|row| row.attempts > 0));
    world.crash();
    places.iter().for_each(|place| place.heal());
    assert_eq!(world.namespace.stats().queued, 50);
    world.start();
    world.until_drained();
    for root in &roots {
        assert_eq!(world.record(root).pin, PinState::AtTarget);
    }
}

#[test]
fn claims_of_an_earlier_life_are_verified() {
    let (mut world, places) = World::with(&["a"]);
    places[0].fail(Operation::Get, ErrorKind::Denied);
    let root = world.commit(b"claimed", &policy(""));
    eventually("it is claimed", || world.state_at(&root, "a") == Some(CopyState::Claimed));
    world.crash();
    places[0].heal();
    world.registry.remove(&"a".parse().unwrap());
    world.add("a", places[0].clone());
    world.start();
    world.until_verified(&root, "a");
}

#[test]
fn a_corrupt_copy_is_found_by_reading_it_back_and_replaced() {
    let (mut world, places) = World::with(&["a"]);
    // A place that says yes to a put, since it has bytes of that length.
    let data = bytes(3, 32);
    let block = Block::raw(data.clone().into());
    world
        .bridge
        .wait(Duration::from_secs(5), async {
            crate::backends::Backend::put(places[0].as_ref(), &block).await.unwrap();
        })
        .unwrap();
    assert!(places[0].corrupt(&block.cid));
    let root = world.commit(&data, &policy(""));
    assert_eq!(root, block.cid);
    world.until_verified(&root, "a");
    world.until_drained();
    assert_eq!(places[0].calls(Operation::Delete), 1);
}

#[test]
fn a_copy_that_lost_a_leaf_under_its_root_is_found_and_completed() {
    let (mut world, places) = World::with(&["a"]);
    let data = bytes(4, 3000);
    let first = world.commit(&data, &policy(""));
    world.until_verified(&first, "a");
    let all = blocks(&world, &first);
    let leaf = all[all.len() / 2];
    assert!(places[0].lose(&leaf));
    // Another file that has the same content below a new root: the walk is cut
    // at what the place seems to hold.
    world
        .namespace
        .update_contents(&[first], &mut |_, record, _| {
            record.copies.retain(|copy| copy.backend.is_local());
        })
        .unwrap();
    world.replicator().replan().unwrap();
    world.until_verified(&first, "a");
    world.until_drained();
    assert!(places[0].contains(&leaf));
}

#[test]
fn a_round_that_fails_is_repeated_after_its_pause_and_not_before() {
    let mut world = World::new();
    let clock = Arc::new(ManualClock::at(Timestamp { seconds: 1_000_000, nanoseconds: 0 }));
    world.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    world.options.machine.backoff = (Duration::from_secs(10), Duration::from_hours(1));
    let place = world.add_memory("a");
    world.start();
    place.fail(Operation::PutMany, ErrorKind::Denied);
    place.fail_times(Operation::PutMany, ErrorKind::Invalid, 1);
    let root = world.commit(b"again", &policy(""));
    eventually("the first round fails", || world.row(&root).is_some_and(|row| row.attempts == 1));
    let row = world.row(&root).unwrap();
    assert!(row.last_error.starts_with("a: "), "{}", row.last_error);
    let pause = row.not_before.as_nanos() - clock.now().as_nanos();
    assert!((5_000_000_000..=10_000_000_000).contains(&pause), "{pause} ns");
    let calls = place.calls(Operation::PutMany);
    clock.advance(Duration::from_secs(4));
    world.replicator().core_for_tests().request_scan(false);
    eventually("the scan is over", || world.replicator().core_for_tests().is_idle());
    assert_eq!(place.calls(Operation::PutMany), calls);
    clock.advance(Duration::from_secs(7));
    world.until_drained();
}

#[test]
fn a_failure_at_one_place_holds_up_no_work_at_another() {
    let mut world = World::new();
    let clock = Arc::new(ManualClock::at(Timestamp { seconds: 1_000_000, nanoseconds: 0 }));
    world.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    world.options.machine.backoff = (Duration::from_mins(10), Duration::from_hours(1));
    let a = world.add_memory("a");
    world.add_memory("b");
    world.start();
    a.fail(Operation::PutMany, ErrorKind::Invalid);
    let root = world.commit(b"one of two", &policy("min=1,target=3,max=3"));
    let place = "a".parse().unwrap();
    let failed = |world: &World| world.row(&root).and_then(|row| row.tried(&place).cloned());
    eventually("it failed at a", || failed(&world).is_some());
    eventually("b has it", || world.state_at(&root, "b").is_some());
    eventually("nothing is under way", || world.replicator().is_idle());
    // No place is left: the row waits as long as the place does.
    let tried = failed(&world).unwrap();
    let row = world.row(&root).unwrap();
    assert_eq!((tried.attempts, row.not_before), (1, tried.not_before));
    assert!(tried.not_before > clock.now() && tried.error.starts_with("a: "), "{tried:?}");
    // What is to be mended elsewhere is mended now; the time stands still.
    let (b, bad) = ("b".parse().unwrap(), Outcome::Bad(CopyState::Corrupt));
    world.replicator().core_for_tests().record(&b, &[(root, bad)]).unwrap();
    eventually("it is mended", || world.state_at(&root, "b") != Some(CopyState::Corrupt));
    assert_eq!(failed(&world), Some(tried));
    assert_eq!(world.row(&root).unwrap().not_before, row.not_before);
    // A retry waits for nothing.
    a.heal();
    world.replicator().retry(&[root]).unwrap();
    world.until_drained();
    assert!(world.state_at(&root, "a").is_some());
}

#[test]
fn a_place_that_is_added_gets_what_lacks_copies() {
    let (mut world, _) = World::with(&["a"]);
    let root = world.commit(b"two of three", &policy(""));
    // All places that there are have it: nothing waits.
    world.until_drained();
    assert_eq!(world.record(&root).pin, PinState::BelowTarget);
    world.add_memory("b");
    assert_eq!(world.replicator().replan().unwrap(), 1);
    eventually("the target is reached", || world.record(&root).pin == PinState::AtTarget);
    world.until_drained();
}

#[test]
fn a_full_place_takes_no_part_and_the_row_says_so() {
    let (mut world, places) = World::with(&["a"]);
    places[0].set_capacity(Some(100));
    let root = world.commit(&bytes(1, 4000), &policy(""));
    eventually("the row says why", || {
        world.row(&root).is_some_and(|row| {
            row.last_error.contains("full") || row.last_error.contains("too little space")
        })
    });
    assert_eq!(world.state_at(&root, "a"), None);
    places[0].heal();
    world.until_drained();
}

#[test]
fn what_is_only_elsewhere_is_brought_back() {
    let (mut world, _) = World::with(&["a", "b"]);
    let root = world.commit(&bytes(9, 3000), &policy(""));
    world.until_verified(&root, "a");
    world.until_verified(&root, "b");
    world.stop();
    world.lose_local_blocks();
    world
        .namespace
        .update_contents(&[root], &mut |_, record, _| {
            record.copies.retain(|copy| !copy.backend.is_local());
        })
        .unwrap();
    world.start();
    world.replicator().replan().unwrap();
    world.until_verified(&root, "local");
    world.until_drained();
    assert!(!blocks(&world, &root).is_empty());
}

#[test]
fn draining_ends_when_all_is_sent_and_when_nothing_moves() {
    let (mut world, places) = World::with(&["a"]);
    world.commit(&bytes(1, 1000), &policy(""));
    assert!(world.replicator().drain(None, &mut |_| {}));
    places[0].fail_all(ErrorKind::Unavailable);
    world.commit(&bytes(2, 1000), &policy(""));
    assert!(!world.replicator().drain(None, &mut |_| {}));
    let mut seen = 0;
    assert!(!world.replicator().drain(Some(Duration::ZERO), &mut |now| seen = now.pending));
    assert_eq!(seen, 1);
}
