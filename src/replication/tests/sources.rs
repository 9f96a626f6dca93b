//! Which place a block is read from, and what happens when that one fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::harness::bytes as random_bytes;
use super::harness::{World, blocks, eventually, policy};
use crate::backends::watched::{Watch, Watched};
use crate::backends::wrap::{Around, Attempt, Fault, FaultPlan, Operation, Wrapped, standard};
use crate::backends::{
    Backend, BackendError, BackendSpec, ErrorKind, MemoryBackend, PlaceSettings,
};
use crate::metadata::BackendRecord;
use crate::replication::{Wanted, Whereabouts};
use crate::types::Cid;

/// Leaves of the file in these tests.
const LEAVES: usize = 40;

/// Faults that begin when that is said.
struct Later(Arc<AtomicBool>, Fault);

#[async_trait]
impl Around for Later {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        bytes: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        if self.0.load(Ordering::SeqCst) {
            return self.1.around(operation, bytes, attempt).await;
        }
        attempt().await
    }

    fn received(&self, bytes: Bytes) -> Bytes {
        if self.0.load(Ordering::SeqCst) { self.1.received(bytes) } else { bytes }
    }
}

/// A volume whose file is on these places and not on the local disk.
fn elsewhere(
    places: &[&Arc<MemoryBackend>],
    wrapped: &[Arc<dyn Backend>],
) -> (World, Cid, Vec<Cid>) {
    let mut world = World::new();
    for (n, place) in places.iter().enumerate() {
        place.set_durable(true);
        let backend = wrapped.get(n).cloned();
        let plain = Arc::clone(*place) as Arc<dyn Backend>;
        world.add(["a", "b", "c"][n], backend.unwrap_or(plain));
    }
    world.start();
    // One here and one at each: a place that comes later gets none.
    let all = places.len() + 1;
    let wishes = policy(&format!("min=1,target={all},max={all}"));
    let root = world.commit(&random_bytes(11, 32 * LEAVES), &wishes);
    for n in 0..places.len() {
        world.until_verified(&root, ["a", "b", "c"][n]);
    }
    let all = blocks(&world, &root);
    world.stop();
    world.lose_local_blocks();
    world.start();
    (world, root, all)
}

fn memory(name: &str) -> Arc<MemoryBackend> {
    Arc::new(MemoryBackend::new(name))
}

fn gets(place: &MemoryBackend) -> u64 {
    place.calls(Operation::Get)
}

fn wanted(world: &World, root: &Cid, id: &Cid) -> Wanted {
    let whereabouts = world.replicator().whereabouts(root).unwrap();
    Wanted { whereabouts, ..Wanted::new(*id) }
}

/// Reads all of these blocks, one after the other.
fn read_all(world: &World, root: &Cid, all: &[Cid]) {
    let replicator = world.replicator();
    for id in all {
        let data = replicator.block_on(replicator.bring(wanted(world, root, id))).unwrap();
        assert!(crate::types::Block { cid: *id, data }.is_intact());
    }
}

#[test]
fn reads_go_to_the_quickest_place_once_they_were_measured() {
    let (a, b) = (memory("a"), memory("b"));
    let (world, root, all) = elsewhere(&[&a, &b], &[]);
    a.set_delay(Some(Duration::from_millis(40)));
    let before = (gets(&a), gets(&b));
    read_all(&world, &root, &all);
    let (slow, quick) = (gets(&a) - before.0, gets(&b) - before.1);
    assert!(slow <= 3 && quick + slow >= all.len() as u64, "{slow} of the slow, {quick}");
}

#[test]
fn with_the_strategy_cost_reads_go_to_the_cheapest_place() {
    let (a, b) = (memory("a"), memory("b"));
    let (world, root, all) = elsewhere(&[&a, &b], &[]);
    b.set_delay(Some(Duration::from_millis(10)));
    let dear = BackendSpec {
        id: "a".parse().unwrap(),
        url: "file:///nonexistent/a?price_gb_out=0.09".to_owned(),
    };
    world.registry.add(dear, BackendRecord::default(), Ok(Arc::clone(&a) as Arc<dyn Backend>));
    let asked = |by_cost| {
        let places = world.registry.sources(1 << 20, &Whereabouts::default(), by_cost);
        places.into_iter().map(|place| place.id.to_string()).collect::<Vec<_>>()
    };
    read_all(&world, &root, &all);
    assert_eq!(asked(false), ["a", "b"]);
    assert_eq!(asked(true), ["b", "a"]);
}

#[test]
fn a_place_without_the_content_is_not_asked_however_quick_it_is() {
    let (a, b) = (memory("a"), memory("b"));
    let (world, root, all) = elsewhere(&[&b], &[]);
    // Added later, it has nothing; and `a` here is the place that has it.
    a.set_durable(true);
    world.add("new", Arc::clone(&a) as Arc<dyn Backend>);
    b.set_delay(Some(Duration::from_millis(5)));
    read_all(&world, &root, &all);
    assert_eq!(gets(&a), 0);
}

#[test]
fn a_place_that_gave_wrong_bytes_or_lacked_a_block_is_asked_last_for_a_while() {
    for lost in [false, true] {
        let (a, b) = (memory("a"), memory("b"));
        let (world, root, all) = elsewhere(&[&a, &b], &[]);
        b.set_delay(Some(Duration::from_millis(8)));
        for id in &all {
            assert!(if lost { a.lose(id) } else { a.corrupt(id) });
        }
        // What is doubted is not read back meanwhile.
        world.registry.fleet().write().set_paused(Some(&"a".parse().unwrap()), true);
        let before = gets(&a);
        read_all(&world, &root, &all);
        // With each answer that is wrong goes another look before it is replaced.
        let asked = gets(&a) - before;
        assert!(asked <= 4, "lost {lost}: asked {asked} times");
    }
}

#[test]
fn a_place_that_hangs_is_asked_once_or_twice_and_not_for_each_block() {
    let (a, b) = (memory("a"), memory("b"));
    let (world, root, all) = elsewhere(&[&a, &b], &[]);
    a.set_delay(Some(Duration::from_hours(1)));
    let before = gets(&a);
    let start = Instant::now();
    read_all(&world, &root, &all);
    let asked = gets(&a) - before;
    assert!(asked <= 3, "asked {asked} times");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn one_read_call_survives_every_fault_of_the_place_that_it_asks_first() {
    type Fail = fn(&MemoryBackend, &Cid);
    let faults: [(&str, Fail); 7] = [
        ("refused", |place, _| place.fail_all(ErrorKind::Unavailable)),
        ("denied", |place, _| place.fail(Operation::Get, ErrorKind::Denied)),
        ("no answer", |place, _| place.fail(Operation::Get, ErrorKind::Timeout)),
        ("wrong bytes", |place, id| assert!(place.corrupt(id))),
        ("short", |place, id| assert!(place.truncate(id, 5))),
        ("lost", |place, id| assert!(place.lose(id))),
        ("stalled", |place, _| place.set_delay(Some(Duration::from_hours(1)))),
    ];
    for (name, fail) in faults {
        let (a, b) = (memory("a"), memory("b"));
        let (world, root, all) = elsewhere(&[&a, &b], &[]);
        let first = world.registry.sources(32, &Whereabouts::default(), false).remove(0).id;
        let places = [("a", &a), ("b", &b)];
        let place = places.iter().find(|(id, _)| first.as_str() == *id).unwrap().1;
        fail(place, &all[0]);
        let replicator = world.replicator();
        let read = replicator.block_on(replicator.bring(wanted(&world, &root, &all[0])));
        assert!(read.is_ok(), "{name}: {read:?}");
    }
}

#[test]
fn blocks_are_read_right_from_places_that_fail_at_random() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let plan = FaultPlan { refused: 0, short: 20, wrong: 20, slow: 2, ..FaultPlan::default() };
    let begun = Arc::new(AtomicBool::new(false));
    let places: Vec<_> = ["a", "b", "c"].map(memory).to_vec();
    let wrapped: Vec<_> = places
        .iter()
        .enumerate()
        .map(|(n, place)| {
            let plain = Arc::clone(place) as Arc<dyn Backend>;
            // Two of three fail; the third is right.
            if n == 2 {
                return plain;
            }
            let fault = Fault::new(plan, seed.wrapping_add(n as u64));
            let faulty = Wrapped::new(plain, Later(Arc::clone(&begun), fault));
            standard(Arc::new(faulty), Duration::from_secs(5), &PlaceSettings::default())
        })
        .collect();
    let (world, root, all) = elsewhere(&places.iter().collect::<Vec<_>>(), &wrapped);
    begun.store(true, Ordering::SeqCst);
    read_all(&world, &root, &all);
}

#[test]
fn a_whole_content_is_brought_by_many_reads_at_a_time_and_no_more_than_may_be() {
    let (a, watch) = (memory("a"), Arc::new(Watch::default()));
    let plain = Arc::clone(&a) as Arc<dyn Backend>;
    let wrapped = Arc::new(Wrapped::new(plain, Watched(Arc::clone(&watch)))) as Arc<dyn Backend>;
    let (world, root, all) = elsewhere(&[&a], &[wrapped]);
    *watch.delay.lock() = Duration::from_millis(10);
    watch.most.store(0, Ordering::SeqCst);
    assert_eq!(world.replicator().fetch_all(&[root]).unwrap(), all.len() as u64);
    let most = watch.most.load(Ordering::SeqCst);
    assert!((4..=17).contains(&most), "{most} at a time");
    for id in &all {
        assert!(world.store.locate(id).unwrap().is_some(), "it is durable here when that is said");
    }
}

#[test]
fn what_nobody_waits_for_leaves_calls_for_who_does_and_never_waits() {
    let (a, watch) = (memory("a"), Arc::new(Watch::default()));
    let plain = Arc::clone(&a) as Arc<dyn Backend>;
    let watched = Arc::new(Wrapped::new(plain, Watched(Arc::clone(&watch)))) as Arc<dyn Backend>;
    let (world, root, all) =
        elsewhere(&[&a], &[standard(watched, Duration::from_mins(1), &PlaceSettings::default())]);
    *watch.delay.lock() = Duration::from_hours(1);
    let replicator = world.replicator();
    let sent = all.iter().skip(1).filter(|id| replicator.ahead(&wanted(&world, &root, id), false));
    assert!(sent.count() > 20, "the calls return at once");
    // Eight of the place's sixteen calls hang; the reader has one at once.
    eventually("those that may go have gone", || watch.now.load(Ordering::SeqCst) == 8);
    *watch.delay.lock() = Duration::ZERO;
    let start = Instant::now();
    replicator.block_on(replicator.bring(wanted(&world, &root, &all[0]))).unwrap();
    // And so has one who wants what waits for its turn.
    let last = all.last().unwrap();
    replicator.block_on(replicator.bring(wanted(&world, &root, last))).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn what_is_sent_for_ahead_has_a_bound_in_bytes() {
    let (a, watch) = (memory("a"), Arc::new(Watch::default()));
    let plain = Arc::clone(&a) as Arc<dyn Backend>;
    let watched = Arc::new(Wrapped::new(plain, Watched(Arc::clone(&watch)))) as Arc<dyn Backend>;
    let (mut world, root, all) = elsewhere(&[&a], &[watched]);
    world.stop();
    world.options.ahead_bytes = 4 << 20;
    world.start();
    *watch.delay.lock() = Duration::from_hours(1);
    let large = |id: &Cid| Wanted { bytes: 1 << 20, ..wanted(&world, &root, id) };
    let sent = |whole| all.iter().filter(|id| world.replicator().ahead(&large(id), whole)).count();
    assert_eq!(sent(true), 2, "whole contents leave half of it");
    assert_eq!(sent(false), 4);
    assert_eq!(sent(false), 4, "and those are on their way");
}
