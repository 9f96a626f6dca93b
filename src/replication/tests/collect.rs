//! Collection on backends: what is dead goes, late and parents first; what lives
//! stays, whatever happens beside it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::checkpoints::{self, Life};
use super::harness::{World, blocks, bytes, eventually, policy, spec};
use crate::backends::wrap::{Around, Attempt, Wrapped};
use crate::backends::{Backend, BackendError, ErrorKind, MemoryBackend, Operation};
use crate::content::parse_node;
use crate::metadata::{BackendRecord, CopyState};
use crate::replication::{BackendCollector, CollectMode, Collected, Events, ReplicationError};
use crate::runtime::ManualClock;
use crate::types::{BackendId, Cid, Ino, Name, Timestamp, VolumeId, cid};

const DAY: Duration = Duration::from_hours(24);
const NOW: Timestamp = Timestamp { seconds: 1_800_000_000, nanoseconds: 0 };

/// A volume with checkpoints and a clock that stands.
struct Volume {
    world: World,
    clock: Arc<ManualClock>,
    life: Option<Life>,
    id: VolumeId,
    files: BTreeMap<u32, Cid>,
    last: u32,
}

impl Volume {
    fn new(names: &[&str]) -> (Self, Vec<Arc<MemoryBackend>>) {
        let mut world = World::new();
        let clock = Arc::new(ManualClock::at(NOW));
        world.clock = Arc::clone(&clock) as _;
        let places = names.iter().map(|name| world.add_memory(name)).collect();
        let mut volume = Self::of(world, clock, VolumeId::random());
        volume.start();
        (volume, places)
    }

    fn of(world: World, clock: Arc<ManualClock>, id: VolumeId) -> Self {
        Self { world, clock, life: None, id, files: BTreeMap::new(), last: 0 }
    }

    fn start(&mut self) {
        self.world.start();
        self.life = Some(checkpoints::start(&self.world, self.id));
    }

    fn write(&mut self, data: &[u8], rules: &str) -> u32 {
        let root = self.world.commit(data, &policy(rules));
        self.last += 1;
        self.files.insert(self.last, root);
        self.last
    }

    fn remove(&mut self, file: u32) -> Cid {
        let name = Name::new(format!("file-{file}")).unwrap();
        let removed = self.world.namespace.unlink(Ino::ROOT, &name, NOW).unwrap();
        self.world.namespace.reap(removed.ino).unwrap();
        self.files.remove(&file).unwrap()
    }

    fn collector(&self) -> BackendCollector {
        BackendCollector::new(
            self.world.replicator(),
            Arc::clone(&self.life.as_ref().unwrap().checkpointer),
            self.world.dir.path().join("collect"),
            self.id,
        )
    }

    fn pass(&self, place: &str, grace: Duration) -> Result<Collected, ReplicationError> {
        self.collector().collect(&place.parse().unwrap(), CollectMode::Delete(grace))
    }

    /// Until all is where it should be, and proven.
    fn settle(&self) {
        self.world.until_drained();
        eventually("all is proven", || self.world.namespace.stats().unverified == 0);
        self.life.as_ref().unwrap().checkpointer.checkpoint(false).unwrap();
    }
}

fn there(place: &MemoryBackend) -> Vec<Cid> {
    place.stored().into_iter().filter(|id| place.contains(id)).collect()
}

/// One deletion of three is refused, or carried out and said to have failed.
struct Cuts(Mutex<fastrand::Rng>);

#[async_trait]
impl Around for Cuts {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        let fault = if operation == Operation::DeleteMany { self.0.lock().u8(0..6) } else { 9 };
        let result = if fault == 0 { None } else { Some(attempt().await) };
        match result.filter(|_| fault > 1) {
            Some(result) => result,
            None => Err(BackendError::new(ErrorKind::Throttled, "a planned fault")),
        }
    }
}

/// No node is there without all that it links to.
fn is_closed(place: &MemoryBackend, world: &World) -> Result<(), String> {
    for id in there(place) {
        if id.codec() != cid::DAG_PB {
            continue;
        }
        let data = world.bridge.block_on(place.get(&id, None)).unwrap();
        for child in parse_node(&id, &data).unwrap().children() {
            if !place.contains(&child) {
                return Err(format!("{id} is there without {child}"));
            }
        }
    }
    Ok(())
}

fn has_all(place: &MemoryBackend, blocks: &[Cid]) -> bool {
    blocks.iter().all(|id| place.contains(id))
}

#[test]
fn what_is_dead_goes_at_a_second_mark_after_the_grace_period_and_nothing_else() {
    let (mut volume, places) = Volume::new(&["a", "b"]);
    let rules = "min=1,target=3,max=3";
    let shared = bytes(1, 2000);
    let kept = volume.write(&shared, rules);
    let mut longer = shared.clone();
    longer.extend(bytes(2, 1500));
    let gone = volume.write(&longer, rules);
    volume.settle();
    let kept = blocks(&volume.world, &volume.files[&kept]);
    let dead: Vec<Cid> = {
        let alive: HashSet<Cid> = kept.iter().copied().collect();
        let all = blocks(&volume.world, &volume.files[&gone]);
        all.into_iter().filter(|id| !alive.contains(id)).collect()
    };
    assert!(dead.len() > 50, "the two share some blocks and not all");
    let root = volume.remove(gone);
    let first = volume.pass("a", DAY).unwrap();
    assert_eq!(
        (first.dead_blocks, first.due_blocks, first.deleted_blocks),
        (dead.len() as u64, 0, 0)
    );
    volume.clock.advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(volume.pass("a", DAY).unwrap().deleted_blocks, 0, "a second too early");
    volume.clock.advance(Duration::from_secs(1));
    // The checkpoints that were written meanwhile have dead blocks of their own.
    let second = volume.pass("a", DAY).unwrap();
    assert_eq!(second.deleted_blocks, dead.len() as u64);
    assert!(dead.iter().all(|id| !places[0].contains(id)));
    assert!(has_all(&places[0], &kept));
    assert!(has_all(&places[1], &dead) && has_all(&places[1], &kept), "nobody asked for b");
    assert_eq!(volume.world.state_at(&root, "a"), Some(CopyState::Released));
    assert_eq!(volume.world.state_at(&root, "b"), Some(CopyState::Verified));
}

#[test]
fn a_place_that_was_away_learns_of_deletions_when_it_is_back() {
    let (mut volume, places) = Volume::new(&["a"]);
    let gone = volume.write(&bytes(1, 3000), "min=1,target=2,max=2");
    volume.settle();
    let dead = blocks(&volume.world, &volume.files[&gone]);
    places[0].fail_all(ErrorKind::Unavailable);
    volume.remove(gone);
    assert!(volume.pass("a", Duration::ZERO).is_err());
    places[0].heal();
    eventually("it is back", || volume.world.registry.get(&"a".parse().unwrap()).is_some());
    volume.life.as_ref().unwrap().checkpointer.checkpoint(false).unwrap();
    volume.pass("a", Duration::ZERO).unwrap();
    volume.pass("a", Duration::ZERO).unwrap();
    assert!(dead.iter().all(|id| !places[0].contains(id)));
}

#[test]
fn what_is_wanted_again_before_it_goes_stays_whole() {
    let (mut volume, places) = Volume::new(&["a"]);
    let rules = "min=1,target=2,max=2";
    let data = bytes(1, 4000);
    let file = volume.write(&data, rules);
    volume.settle();
    let all = blocks(&volume.world, &volume.files[&file]);
    volume.remove(file);
    volume.pass("a", DAY).unwrap();
    let again = volume.write(&data, rules);
    volume.clock.advance(DAY * 2);
    let report = volume.pass("a", DAY).unwrap();
    assert!(has_all(&places[0], &all), "{report:?}");
    volume.settle();
    let root = volume.files[&again];
    assert_eq!(volume.world.state_at(&root, "a"), Some(CopyState::Verified));
    // It is dead anew: its time begins anew, too.
    volume.remove(again);
    volume.pass("a", DAY).unwrap();
    assert!(has_all(&places[0], &all));
}

#[test]
fn an_error_of_a_listing_or_a_node_that_cannot_be_read_ends_a_pass_before_anything_goes() {
    let (mut volume, places) = Volume::new(&["a"]);
    let rules = "min=1,target=2,max=2";
    let lives = volume.write(&bytes(1, 4000), rules);
    let gone = volume.write(&bytes(2, 4000), rules);
    volume.settle();
    let root = volume.files[&lives];
    let dead = blocks(&volume.world, &volume.files[&gone]);
    volume.remove(gone);
    volume.pass("a", Duration::ZERO).unwrap();
    places[0].fail(Operation::List, ErrorKind::Other);
    assert!(volume.pass("a", Duration::ZERO).is_err());
    assert!(has_all(&places[0], &dead));
    places[0].heal();
    // Nobody has a good node of what lives.
    volume.world.store.apply(&[crate::store::IndexChange::Remove(root)]).unwrap();
    places[0].corrupt(&root);
    assert!(volume.pass("a", Duration::ZERO).is_err());
    assert!(has_all(&places[0], &dead));
}

#[test]
fn wherever_a_pass_is_cut_off_no_node_is_left_without_what_it_links_to() {
    let mut cuts_in_all = 0;
    for seed in 0..20 {
        let world = World::new();
        let place = Arc::new(MemoryBackend::new("a"));
        place.set_durable(true);
        let inner = Arc::clone(&place) as Arc<dyn Backend>;
        let cuts = Cuts(Mutex::new(fastrand::Rng::with_seed(seed)));
        let faulty = Arc::new(Wrapped::new(inner, cuts));
        world.registry.add(spec("a"), BackendRecord::default(), Ok(faulty));
        let mut volume = Volume::of(world, Arc::default(), VolumeId::random());
        volume.start();
        let rules = "min=1,target=2,max=2";
        let lives = volume.write(&bytes(seed, 3000), rules);
        let gone = volume.write(&bytes(seed + 1000, 30_000), rules);
        volume.world.until_drained();
        let (lives, dead) = (
            blocks(&volume.world, &volume.files[&lives]),
            blocks(&volume.world, &volume.files[&gone]),
        );
        volume.remove(gone);
        let mut cut = 0;
        eventually("a pass comes to its end", || {
            match volume.pass("a", Duration::ZERO) {
                Ok(_) => {}
                Err(_) => cut += 1,
            }
            is_closed(&place, &volume.world).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            assert!(has_all(&place, &lives), "seed {seed}");
            dead.iter().all(|id| !place.contains(id))
        });
        cuts_in_all += cut;
    }
    assert!(cuts_in_all > 20, "{cuts_in_all} passes were cut off");
}

#[test]
fn a_copy_that_was_given_up_goes_when_the_others_are_proven_and_not_before() {
    let (mut volume, mut places) = Volume::new(&["a", "b"]);
    let file = volume.write(&bytes(1, 3000), "min=1,target=3,max=3");
    volume.settle();
    places.push(volume.world.add_memory("c"));
    let root = volume.files[&file];
    let all = blocks(&volume.world, &root);
    let a: BackendId = "a".parse().unwrap();
    volume.world.registry.fleet().write().set_draining(&a, true);
    volume.world.replicator().replan().unwrap();
    eventually("it was given up", || {
        // Scans rest between two of them.
        volume.clock.advance(Duration::from_millis(50));
        volume.world.state_at(&root, "a") == Some(CopyState::Released)
    });
    // One of those that it was given up for is not proven any more: what lies there
    // may have to heal it.
    places[1].lose(&root);
    volume.clock.advance(DAY * 2);
    let report = volume.pass("a", DAY).unwrap();
    assert_eq!((report.released_copies, report.waiting_copies), (0, 1), "{report:?}");
    assert!(has_all(&places[0], &all));
    eventually("the lost copy is healed, and all are proven anew", || {
        volume.world.replicator().replan().unwrap();
        volume.pass("a", DAY).unwrap().released_copies == 1
    });
    assert!(all.iter().all(|id| !places[0].contains(id)));
    assert!(has_all(&places[1], &all) && has_all(&places[2], &all));
    assert_eq!(volume.world.state_at(&root, "a"), None);
}

#[test]
fn nothing_is_collected_where_another_volume_or_another_life_of_it_writes() {
    let (mut volume, places) = Volume::new(&["a"]);
    let gone = volume.write(&bytes(1, 3000), "min=1,target=2,max=2");
    volume.settle();
    let dead = blocks(&volume.world, &volume.files[&gone]);
    volume.remove(gone);
    volume.pass("a", Duration::ZERO).unwrap();
    let bridge = &volume.world.bridge;
    let (other, id) = (format!("volumes/{}/manifest-1", VolumeId::random()), dead[0]);
    bridge.block_on(places[0].put_name(&other, &id)).unwrap();
    let refused = volume.pass("a", Duration::ZERO).unwrap_err();
    assert!(refused.to_string().contains("has its data there, too"), "{refused}");
    bridge.block_on(places[0].delete_name(&other)).unwrap();
    let life = format!("volumes/{}/life-{:020}-ffff", volume.id, 99);
    bridge.block_on(places[0].put_name(&life, &id)).unwrap();
    let refused = volume.pass("a", Duration::ZERO).unwrap_err();
    assert!(matches!(refused, ReplicationError::Fenced { .. }), "{refused}");
    assert!(has_all(&places[0], &dead));
}

#[test]
fn nothing_is_collected_where_others_put_blocks_too() {
    let world = World::new();
    let place = Arc::new(MemoryBackend::new("a"));
    place.set_durable(true);
    let mut shared = spec("a");
    shared.url.push_str("?collect=0");
    let backend = Arc::clone(&place) as Arc<dyn Backend>;
    world.registry.add(shared, BackendRecord::default(), Ok(backend));
    let mut volume = Volume::of(world, Arc::default(), VolumeId::random());
    volume.start();
    let gone = volume.write(&bytes(1, 3000), "min=1,target=2,max=2");
    volume.settle();
    let dead = blocks(&volume.world, &volume.files[&gone]);
    volume.remove(gone);
    for _ in 0..2 {
        let refused = volume.pass("a", Duration::ZERO).unwrap_err();
        assert!(refused.to_string().contains("collect=0"), "{refused}");
    }
    assert!(has_all(&place, &dead));
}

#[test]
fn old_checkpoints_are_collected_and_recovery_goes_on() {
    let (mut volume, places) = Volume::new(&["a"]);
    for n in 0..30 {
        volume.write(&bytes(n, 100), "min=1,target=2,max=2");
        let base = n % 10 == 0;
        volume.life.as_ref().unwrap().checkpointer.checkpoint(base).unwrap();
    }
    volume.settle();
    let before = there(&places[0]).len();
    for _ in 0..3 {
        volume.pass("a", Duration::ZERO).unwrap();
    }
    let after = there(&places[0]).len();
    assert!(after + 15 < before, "{before} to {after}");
    assert_eq!(checkpoints::recovered(&volume.world, &places[0]).len(), 30);
}

/// Contents come, go and come again while two places are collected all the time,
/// without any grace period: every copy that is recorded as good is whole.
#[test]
fn no_copy_that_counts_is_touched_whatever_is_written_beside_a_collection() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut world = World::new();
    let places = ["a", "b"].map(|name| world.add_memory(name));
    let time = Arc::clone(&world.clock);
    world.options.events = Events::new(Arc::clone(&world.namespace), time).unwrap();
    let mut volume = Volume::of(world, Arc::default(), VolumeId::random());
    volume.start();
    let (collectors, done) = ([volume.collector(), volume.collector()], AtomicBool::new(false));
    let deleted = AtomicU64::new(0);
    let mut random = fastrand::Rng::with_seed(seed);
    std::thread::scope(|scope| {
        let workers: Vec<_> = collectors
            .iter()
            .zip(["a", "b"])
            .map(|(collector, id)| {
                let (done, deleted) = (&done, &deleted);
                let id = id.parse::<BackendId>().unwrap();
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let report = collector.collect(&id, CollectMode::Delete(Duration::ZERO));
                        let blocks = report.map_or(0, |report| report.deleted_blocks);
                        deleted.fetch_add(blocks, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for round in 0..100_000 {
            if round >= 400 && deleted.load(Ordering::Relaxed) >= 1000 {
                break;
            }
            let files: Vec<u32> = volume.files.keys().copied().collect();
            if files.len() > 6 || (round % 3 == 2 && !files.is_empty()) {
                let file = *random.choice(&files).unwrap();
                volume.remove(file);
            } else {
                // Few contents, which share their beginnings.
                let mut data = bytes(random.u64(0..3), 1500);
                data.extend(bytes(random.u64(0..3), random.usize(0..3) * 700));
                volume.write(&data, "min=1,target=3,max=3");
            }
            if random.u8(0..4) == 0 {
                volume.world.until_drained();
            }
        }
        volume.world.until_drained();
        done.store(true, Ordering::Relaxed);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    assert!(deleted.into_inner() >= 1000, "little was ever collected");
    let roots: HashSet<Cid> = volume.files.values().copied().collect();
    for root in roots {
        for (id, place) in ["a", "b"].iter().zip(&places) {
            let all = blocks(&volume.world, &root);
            if matches!(
                volume.world.state_at(&root, id),
                Some(CopyState::Verified | CopyState::Claimed)
            ) {
                assert!(has_all(place, &all), "{root} at {id}, seed {seed}");
            } else {
                panic!("{root} is not at {id}, seed {seed}");
            }
        }
    }
    // Nor was any found bad and healed before anybody looked.
    volume.world.options.events.flush();
    let kinds = super::events::kinds(&volume.world.namespace);
    assert!(!kinds.iter().any(|kind| kind == "copy_lost" || kind == "copy_corrupt"), "seed {seed}");
    assert!(kinds.iter().any(|kind| kind == "copy_verified"));
    for place in &places {
        is_closed(place, &volume.world).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}
