use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::harness::{World, blocks, bytes, eventually, policy, spec};
use crate::backends::{Backend, BackendSpec, ErrorKind, MemoryBackend, Operation};
use crate::metadata::{BackendRecord, CopyState, VerifyMethod};
use crate::replication::WriteResult;
use crate::replication::audit::audit;
use crate::replication::send::Found;
use crate::runtime::{Clock, ManualClock};
use crate::types::{Cid, Timestamp, cid};

const DAY: Duration = Duration::from_hours(24);

/// Of these places, with a clock that is moved by hand; the day's sample is off.
fn world(urls: &[(&str, &str)]) -> (World, Vec<Arc<MemoryBackend>>, Arc<ManualClock>) {
    let mut world = World::new();
    let clock = Arc::new(ManualClock::at(Timestamp { seconds: 1_000_000, nanoseconds: 0 }));
    world.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    world.options.machine.sample_contents = 0;
    let places = urls.iter().map(|(name, parameters)| {
        let place = Arc::new(MemoryBackend::new(name));
        place.set_durable(true);
        let url = format!("{}{parameters}", spec(name).url);
        let spec = BackendSpec { id: name.parse().unwrap(), url };
        let backend = Arc::clone(&place) as Arc<dyn Backend>;
        world.registry.add(spec, BackendRecord::default(), Ok(backend));
        place
    });
    let places = places.collect();
    (world, places, clock)
}

fn copy_at(world: &World, root: &Cid, place: &str) -> (CopyState, VerifyMethod, i64) {
    let record = world.record(root);
    let copy = record.copies.iter().find(|copy| copy.backend.as_str() == place).unwrap();
    (copy.state, copy.method, copy.at.seconds)
}

fn leaf(world: &World, root: &Cid) -> Cid {
    let all = blocks(world, root);
    *all.iter().find(|id| id.codec() == cid::RAW).unwrap()
}

#[test]
fn a_content_that_is_written_again_is_audited_before_old_copies_count() {
    let (mut world, places, clock) = world(&[("a", ""), ("b", "")]);
    world.options.level_deadline = Duration::from_secs(2);
    world.start();
    let wishes = policy("min=3,target=3,max=3,level=ALL");
    let data = bytes(1, 3000);
    let root = world.commit(&data, &wishes);
    world.until_verified(&root, "a");
    world.until_verified(&root, "b");
    clock.advance(DAY * 6);
    places[1].fail(Operation::Get, ErrorKind::Other);
    world.commit(&data, &wishes);
    let reached = world.replicator().wait(&root, &wishes).unwrap();
    assert_eq!(reached, WriteResult::TargetAchieved, "they were looked at not long ago");
    clock.advance(DAY * 2);
    world.commit(&data, &wishes);
    let reached = world.replicator().wait(&root, &wishes).unwrap();
    assert_eq!(reached, WriteResult::BelowQuorum, "nobody knows whether it is still there");
    places[1].heal();
    let lost = leaf(&world, &root);
    assert!(places[1].lose(&lost));
    world.commit(&data, &wishes);
    let reached = world.replicator().wait(&root, &wishes).unwrap();
    assert_eq!(reached, WriteResult::TargetAchieved);
    assert!(places[1].contains(&lost), "what was lost meanwhile is there again");
    assert_eq!(copy_at(&world, &root, "a").2, clock.now().seconds);
    // An audit is no proof: it is read back behind everything else.
    eventually("all of it is read back", || {
        ["a", "b"].iter().all(|place| copy_at(&world, &root, place).1 == VerifyMethod::ReadBack)
    });
}

#[test]
fn where_reading_costs_an_audit_reads_some_leaves_and_finds_what_is_missing() {
    let (mut world, places, clock) = world(&[("a", "?scrub=audit")]);
    world.start();
    let root = world.commit(&bytes(2, 8000), &policy(""));
    eventually("it is audited", || {
        world.state_at(&root, "a").is_some() && copy_at(&world, &root, "a").1 == VerifyMethod::Audit
    });
    assert_eq!(copy_at(&world, &root, "a").0, CopyState::Claimed, "not all of it was read");
    let (all, nodes) = {
        let all = blocks(&world, &root);
        (all.len(), all.iter().filter(|id| id.codec() != cid::RAW).count())
    };
    let read = places[0].calls(Operation::Get);
    assert!(read >= nodes as u64 + 16 && read < all as u64, "{read} of {all}");
    let lost = leaf(&world, &root);
    assert!(places[0].lose(&lost));
    clock.advance(DAY * 31);
    world.replicator().look_at_all();
    eventually("what is missing is there again", || places[0].contains(&lost));
    // A small one is read whole by the same look.
    let small = world.commit(&bytes(3, 100), &policy(""));
    world.until_verified(&small, "a");
    assert_eq!(copy_at(&world, &small, "a").1, VerifyMethod::ReadBack);
}

#[test]
fn each_day_some_contents_chosen_at_random_are_proven_again() {
    let (mut world, places, clock) = world(&[("a", "")]);
    world.options.machine.sample_contents = 8;
    world.start();
    let roots: Vec<Cid> =
        (0..40).map(|n| world.commit(&bytes(n, 20 + n as usize * 3), &policy(""))).collect();
    world.until_drained();
    roots.iter().for_each(|root| world.until_verified(root, "a"));
    let rotten = |root: &&Cid| places[0].corrupt(root);
    assert_eq!(roots.iter().filter(rotten).count(), roots.len());
    let start = clock.now().seconds;
    let seen = |world: &World| {
        let looked = |root: &&Cid| copy_at(world, root, "a").2 > start;
        roots.iter().filter(looked).count()
    };
    clock.advance(Duration::from_hours(2));
    eventually("a sample was taken", || seen(&world) >= 2);
    world.until_drained();
    eventually("all are proven", || world.namespace.stats().unverified == 0);
    assert!(seen(&world) <= 8, "{}", seen(&world));
    let mut all = BTreeSet::new();
    for _ in 0..6 {
        clock.advance(DAY);
        let day = clock.now().seconds;
        let of_day = || {
            let looked = roots.iter().filter(|root| copy_at(&world, root, "a").2 >= day);
            looked.copied().collect::<BTreeSet<Cid>>()
        };
        eventually("one a day", || of_day().len() >= 2);
        // What was repaired is proven on the same day.
        world.until_drained();
        eventually("all are proven", || world.namespace.stats().unverified == 0);
        assert!(of_day().len() <= 8, "{}", of_day().len());
        all.extend(of_day());
    }
    assert!(all.len() > 8, "other ones on other days");
}

#[test]
fn under_a_node_that_is_there_what_was_lost_is_sent_again() {
    let (mut world, places, _) = world(&[("a", "")]);
    world.start();
    let data = bytes(4, 32 * 16);
    let root = world.commit(&data, &policy(""));
    world.until_verified(&root, "a");
    world.crash();
    world.registry.remove(&"a".parse().unwrap());
    world.add("a", places[0].clone());
    world.start();
    // It shares nodes with one that is longer.
    let lost = leaf(&world, &root);
    assert!(places[0].lose(&lost));
    let longer = world.commit(&[data.clone(), bytes(5, 320)].concat(), &policy(""));
    assert!(blocks(&world, &longer).contains(&lost));
    eventually("it has a copy", || world.state_at(&longer, "a").is_some());
    assert!(places[0].contains(&lost));
    // What was walked in this life is not asked for again.
    world.until_drained();
    let asked = places[0].calls(Operation::Presence);
    let again = world.commit(&[data, bytes(6, 320)].concat(), &policy(""));
    world.until_verified(&again, "a");
    assert!(places[0].calls(Operation::Presence) - asked < 12);
}

#[test]
fn an_audit_finds_what_is_missing_or_short_and_in_time_what_is_wrong() {
    let (mut world, places, _) = world(&[("a", "")]);
    world.start();
    let root = world.commit(&bytes(7, 40 * 32), &policy(""));
    world.until_verified(&root, "a");
    let (all, place) = (blocks(&world, &root), Arc::clone(&places[0]));
    world.stop();
    let calls = crate::replication::calls::Calls {
        bridge: world.bridge.clone(),
        stop: crate::runtime::Cancel::default(),
        deadline: Duration::from_secs(5),
        down: None,
    };
    let backend = Arc::clone(&place) as Arc<dyn Backend>;
    let look = |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        audit(&backend, &calls, &root, &mut random).unwrap().0
    };
    assert_eq!(look(1), Found::Sound);
    let put = |id: &Cid| {
        let data = world.store.get(id).unwrap().unwrap();
        let block = crate::types::Block { cid: *id, data };
        place.lose(id);
        world.bridge.wait(Duration::from_secs(5), place.put(&block)).unwrap().unwrap();
    };
    for id in &all {
        place.lose(id);
        assert_eq!(look(2), Found::Missing, "{id}");
        put(id);
        assert!(place.truncate(id, 3));
        assert_eq!(look(3), Found::Wrong, "{id}");
        put(id);
    }
    let rotten = leaf(&world, &root);
    assert!(place.corrupt(&rotten));
    let found = (0..40).filter(|seed| look(*seed) == Found::Wrong).count();
    assert!((8..=28).contains(&found), "16 of 40 leaves are read: {found} of 40");
    put(&rotten);
    place.fail(Operation::Presence, ErrorKind::Unavailable);
    let mut random = fastrand::Rng::with_seed(1);
    assert!(audit(&backend, &calls, &root, &mut random).is_err(), "nothing is known then");
}
