use std::time::{Duration, Instant};

use super::harness::{World, bytes, eventually, policy};
use crate::backends::{BackendError, ErrorKind, Operation};
use crate::metadata::PinState;
use crate::replication::{ReplicationError, WriteResult};

/// Far below the level's deadline of a minute.
const AT_ONCE: Duration = Duration::from_secs(10);

#[test]
fn a_quorum_is_acknowledged_while_the_third_place_hangs_and_others_go_on() {
    let (mut world, places) = World::with(&["a", "b", "slow"]);
    places[2].set_delay(Some(Duration::from_hours(1)));
    let policy = policy("min=2,target=4,max=5,level=QUORUM");
    let start = Instant::now();
    for n in 0..300 {
        let root = world.commit(&bytes(n, 200), &policy);
        let reached = world.replicator().wait(&root, &policy).unwrap();
        assert_eq!(reached, WriteResult::QuorumAchieved);
        assert_ne!(world.record(&root).pin, PinState::BelowMin);
    }
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert_eq!(world.namespace.stats().queued, 300);
    assert!(places[2].is_empty());
    // The calls that hang do not hold up the end.
    let start = Instant::now();
    world.stop();
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn with_all_places_down_the_write_is_queued_at_once_and_caught_up_when_they_return() {
    let (mut world, places) = World::with(&["a", "b"]);
    places.iter().for_each(|place| place.fail_all(ErrorKind::Unavailable));
    let policy = policy("");
    let start = Instant::now();
    let root = world.commit(&bytes(1, 500), &policy);
    assert_eq!(world.replicator().wait(&root, &policy).unwrap(), WriteResult::NoReplication);
    assert!(start.elapsed() < AT_ONCE);
    eventually("the row says why", || {
        world.row(&root).is_some_and(|row| row.last_error.contains("down"))
    });
    places[1].heal();
    eventually("the one that is back has it", || world.state_at(&root, "b").is_some());
    assert_eq!(world.state_at(&root, "a"), None);
    places[0].heal();
    eventually("the target is reached", || world.record(&root).pin == PinState::AtTarget);
    world.until_drained();
    assert_eq!(world.replicator().wait(&root, &policy).unwrap(), WriteResult::TargetAchieved);
}

#[test]
fn what_is_on_its_way_to_a_place_that_goes_down_is_taken_by_another_at_once() {
    let (mut world, places) = World::with(&["a", "b"]);
    places[0].set_delay(Some(Duration::from_hours(1)));
    let policy = policy("min=2,target=2,max=3,level=QUORUM");
    let roots: Vec<_> = (0..40).map(|n| world.commit(&bytes(n, 300), &policy)).collect();
    world.replicator().submit(&roots);
    let stored = |root| world.state_at(root, "b").is_some();
    eventually("half is on its way to the one that hangs", || {
        let idle = places[1].calls(Operation::PutMany) > 0 && roots.iter().any(stored);
        idle && places[0].calls(Operation::Presence) > 0
    });
    let (id, start) = ("a".parse().unwrap(), Instant::now());
    world.registry.failed(&id, &BackendError::new(ErrorKind::Unavailable, "gone"));
    for root in &roots {
        assert_eq!(world.replicator().wait(root, &policy).unwrap(), WriteResult::TargetAchieved);
        assert!(world.state_at(root, "b").is_some() && world.state_at(root, "a").is_none());
    }
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert!(world.registry.statuses()[0].last_error.contains("gone"));
    world.until_drained();
    world.stop();
}

#[test]
fn a_place_that_does_not_survive_counts_for_no_level_and_is_given_nothing() {
    let mut world = World::new();
    let (kept, lost) = (world.add_memory("kept"), world.add_memory("lost"));
    lost.set_durable(false);
    // Known once it is opened.
    world.add("lost", lost.clone());
    world.start();
    let policy = policy("min=2,target=3,max=5,level=ALL");
    let root = world.commit(&bytes(1, 500), &policy);
    let start = Instant::now();
    world.replicator().wait(&root, &policy).unwrap();
    assert!(start.elapsed() < AT_ONCE);
    world.until_drained();
    assert!(!kept.is_empty() && lost.is_empty());
    assert_ne!(world.record(&root).pin, PinState::AtTarget, "two places of three");
    // A claim of an earlier time counts no more, either.
    kept.fail_all(ErrorKind::Unavailable);
    let second = world.commit(&bytes(2, 500), &policy);
    assert_eq!(world.replicator().wait(&second, &policy).unwrap(), WriteResult::NoReplication);
}

#[test]
fn a_policy_that_fails_when_degraded_says_what_is_missing() {
    let (mut world, places) = World::with(&["a"]);
    places[0].fail_all(ErrorKind::Unavailable);
    let policy = policy("on_degraded=fail");
    let root = world.commit(b"precious", &policy);
    let error = world.replicator().wait(&root, &policy).unwrap_err();
    assert!(matches!(error, ReplicationError::BelowLevel { have: 1, want: 2, .. }));
    assert!(error.to_string().contains("a: "), "{error}");
}

#[test]
fn each_level_waits_for_its_copies_and_counts_failure_domains_once() {
    let mut world = World::new();
    let [a, b] = ["a", "b"].map(|name| world.add_memory(name));
    a.set_domain("one-host");
    b.set_domain("one-host");
    for name in ["a", "b"] {
        world.registry.remove(&name.parse().unwrap());
    }
    world.add("a", a.clone());
    world.add("b", b.clone());
    world.start();
    let replicator = world.replicator().clone();
    let quorum = policy("min=3,target=3,max=5");
    let root = world.commit(b"on two places of one host", &quorum);
    assert_eq!(replicator.wait(&root, &quorum).unwrap(), WriteResult::BelowQuorum);
    let record = world.record(&root);
    assert_eq!((record.pin, record.copies.len()), (PinState::BelowMin, 2));
    assert!(a.is_empty() != b.is_empty(), "two copies in one failure domain");

    for (text, wanted) in [
        ("level=LOCAL_DURABILITY", 1),
        ("level=SINGLE", 2),
        ("min=1,target=2,level=QUORUM", 2),
        ("min=1,target=2,level=ALL", 2),
    ] {
        let policy = policy(text);
        let root = world.commit(text.as_bytes(), &policy);
        let reached = replicator.wait(&root, &policy).unwrap();
        assert!(reached <= WriteResult::QuorumAchieved, "{text}: {reached:?}");
        assert!(world.record(&root).good_copies().count() >= wanted, "{text}");
    }
}

#[test]
fn all_is_not_acknowledged_while_a_configured_place_is_away() {
    let (mut world, places) = World::with(&["a", "b"]);
    places[1].fail_all(ErrorKind::Unavailable);
    let policy = policy("level=ALL");
    let root = world.commit(b"all", &policy);
    assert_eq!(world.replicator().wait(&root, &policy).unwrap(), WriteResult::BelowQuorum);
}

#[test]
fn the_end_wakes_who_waits() {
    let (mut world, places) = World::with(&["a"]);
    places[0].set_delay(Some(Duration::from_hours(1)));
    let policy = policy("");
    let root = world.commit(b"waits", &policy);
    let (replicator, start) = (world.replicator().clone(), Instant::now());
    let waiter = {
        let policy = policy.clone();
        std::thread::spawn(move || replicator.wait(&root, &policy))
    };
    eventually("the place is asked", || places[0].calls(Operation::PutMany) > 0);
    world.replicator().core_for_tests().stop();
    assert_eq!(waiter.join().unwrap().unwrap(), WriteResult::NoReplication);
    assert!(start.elapsed() < AT_ONCE);
}

#[test]
fn tiered_waits_for_the_first_tier_and_progressive_for_the_first_copy() {
    let (mut world, places) = World::with(&["a"]);
    places[0].set_delay(Some(Duration::from_hours(1)));
    let start = Instant::now();
    for text in [
        "min=2,target=2,level=PROGRESSIVE",
        // No backend has a tier: the local store is the first.
        "min=2,target=2,level=TIERED,tiers=ssd:1/cloud:1",
    ] {
        let policy = policy(text);
        let root = world.commit(&bytes(text.len() as u64, 200), &policy);
        let reached = world.replicator().wait(&root, &policy).unwrap();
        assert_eq!(reached, WriteResult::QuorumAchieved, "{text}");
        let explained = world.replicator().explain(Some((&root, &world.record(&root))), &policy);
        assert_eq!(explained.unwrap().wait.copies, 1, "{text}");
    }
    // Two in a tier that has one place.
    let policy = policy("min=2,target=2,level=TIERED,tiers=ssd:2,on_degraded=fail");
    let root = world.commit(&bytes(7, 200), &policy);
    let error = world.replicator().wait(&root, &policy).unwrap_err();
    assert!(matches!(error, ReplicationError::BelowLevel { have: 1, want: 2, .. }), "{error}");
    assert!(start.elapsed() < AT_ONCE);
}
