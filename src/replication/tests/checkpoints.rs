//! The checkpointer when its own files are damaged or gone: what it writes next
//! is whole again, and comes after all that was written before.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::harness::{World, bytes, eventually, policy};
use crate::backends::{Backend, MemoryBackend};
use crate::metadata::{Engine, MemoryEngine, Namespace};
use crate::replication::{
    Checkpointer, CheckpointerOptions, RecoverSource, ReplicationError, recover,
};
use crate::runtime::{Clock, ManualClock, Shutdown};
use crate::types::{Ino, Name, Timestamp, VolumeId, WriterId};

pub(super) struct Life {
    pub checkpointer: Arc<Checkpointer>,
    shutdown: Shutdown,
}

impl Life {
    pub fn end(self, world: &World) {
        self.shutdown.trigger();
        drop(self.checkpointer);
        // Tree and world hold it; a thread of the checkpointer would be a third.
        eventually("all threads end", || Arc::strong_count(&world.namespace) <= 1);
    }
}

pub(super) fn folder(world: &World) -> PathBuf {
    world.dir.path().join("checkpoints")
}

pub(super) fn start(world: &World, volume: VolumeId) -> Life {
    try_start(world, volume).unwrap()
}

fn try_start(world: &World, volume: VolumeId) -> Result<Life, ReplicationError> {
    let shutdown = Shutdown::default();
    let checkpointer = Checkpointer::start(
        Arc::clone(&world.namespace),
        Arc::clone(&world.registry),
        policy(""),
        world.bridge.clone(),
        Arc::clone(&world.clock),
        shutdown.clone(),
        CheckpointerOptions {
            dir: folder(world),
            volume,
            writer: WriterId::random(),
            profile: "unixfs-v1-2025".into(),
            delta_interval: Duration::from_hours(1),
            base_interval: Duration::from_hours(1),
            base_bytes: 1 << 30,
            max_deltas: 1000,
            definitions: std::collections::BTreeMap::new(),
            level_deadline: Duration::from_secs(20),
        },
    );
    Ok(Life { checkpointer: checkpointer?, shutdown })
}

/// Names in the tree that a bare machine gets from this place.
pub(super) fn recovered(world: &World, place: &Arc<MemoryBackend>) -> Vec<String> {
    let engine = Arc::new(MemoryEngine::default()) as Arc<dyn Engine>;
    let tree = Namespace::open(engine, Timestamp::default()).unwrap();
    let backend = Arc::clone(place) as Arc<dyn Backend>;
    let dir = tempfile::tempdir().unwrap();
    let source = RecoverSource { backend, volume: None };
    let _recovered = recover(&source, &tree, dir.path(), &world.bridge).unwrap();
    let has = |n: &u32| {
        let name = Name::new(format!("file-{n}")).unwrap();
        tree.lookup(Ino::ROOT, &name).is_ok()
    };
    (1..100u32).filter(has).map(|n| n.to_string()).collect()
}

fn newest_name(world: &World, place: &Arc<MemoryBackend>) -> String {
    let names = world.bridge.wait(Duration::from_secs(5), place.names("volumes/")).unwrap();
    let mut manifests = names.unwrap().into_iter().filter(|(name, _)| name.contains("/manifest-"));
    manifests.next_back().map(|(name, _)| name).unwrap_or_default()
}

#[test]
fn a_damaged_manifest_is_followed_by_a_base_with_a_new_number() {
    let (mut world, places) = World::with(&["a"]);
    world.stop();
    let volume = VolumeId::random();
    let life = start(&world, volume);
    world.commit(b"1", &policy(""));
    assert_eq!(life.checkpointer.checkpoint(false).unwrap().sequence, 1);
    world.commit(b"2", &policy(""));
    assert_eq!(life.checkpointer.checkpoint(false).unwrap().sequence, 2);
    life.end(&world);
    let path = folder(&world).join("manifest-000000000002.json");
    fs::write(&path, b"{ \"format\": 1, \"vol").unwrap();
    let life = start(&world, volume);
    world.commit(b"3", &policy(""));
    assert_eq!(life.checkpointer.checkpoint(false).unwrap().sequence, 3);
    // Only the damaged manifest knew of the second file.
    assert_eq!(recovered(&world, &places[0]), ["1", "2", "3"]);
    life.end(&world);
}

#[test]
fn a_damaged_delta_is_never_passed_off_as_whole() {
    let (mut world, _) = World::with(&["a"]);
    world.stop();
    let life = start(&world, VolumeId::random());
    world.commit(b"1", &policy(""));
    life.checkpointer.checkpoint(false).unwrap();
    world.commit(b"2", &policy(""));
    life.checkpointer.checkpoint(false).unwrap();
    let path = folder(&world).join("delta-000000000002.parquet");
    let length = fs::metadata(&path).unwrap().len();
    fs::write(&path, bytes(1, usize::try_from(length).unwrap())).unwrap();
    let late = world.add_memory("b");
    life.checkpointer.serve_backends();
    eventually("the new place has a checkpoint", || !newest_name(&world, &late).is_empty());
    assert_eq!(recovered(&world, &late), ["1", "2"]);
    life.end(&world);
}

#[test]
fn a_volume_that_lost_its_checkpoints_goes_on_after_those_of_its_backends() {
    let (mut world, places) = World::with(&["a"]);
    world.stop();
    let volume = VolumeId::random();
    let life = start(&world, volume);
    for n in 1..4 {
        world.commit(&bytes(n, 10), &policy(""));
        life.checkpointer.checkpoint(false).unwrap();
    }
    let before = newest_name(&world, &places[0]);
    assert!(before.ends_with("00003"), "{before}");
    life.end(&world);
    fs::remove_dir_all(folder(&world)).unwrap();
    let life = start(&world, volume);
    world.commit(b"4", &policy(""));
    assert_eq!(life.checkpointer.checkpoint(false).unwrap().sequence, 4);
    assert!(newest_name(&world, &places[0]) > before);
    assert_eq!(recovered(&world, &places[0]), ["1", "2", "3", "4"]);
    life.end(&world);
}

#[test]
fn a_tree_that_went_back_in_time_buries_no_newer_checkpoint() {
    let (mut world, places) = World::with(&["a"]);
    world.stop();
    let volume = VolumeId::random();
    let life = start(&world, volume);
    world.commit(b"1", &policy(""));
    life.checkpointer.checkpoint(false).unwrap();
    world.commit(b"2", &policy(""));
    life.checkpointer.checkpoint(false).unwrap();
    life.end(&world);
    // The metadata is lost; an empty tree takes its place.
    let engine = Arc::new(MemoryEngine::default()) as Arc<dyn Engine>;
    world.namespace = Arc::new(Namespace::open(engine, Timestamp::default()).unwrap());
    let error = try_start(&world, volume).err().unwrap();
    assert!(matches!(error, ReplicationError::Behind { known: 0, found: 2, .. }), "{error}");
    // Not even when the local checkpoints are gone, too.
    fs::remove_dir_all(folder(&world)).unwrap();
    let life = start(&world, volume);
    life.checkpointer.checkpoint(true).unwrap();
    eventually("it says so", || life.checkpointer.status().refused.len() == 1);
    let reason = life.checkpointer.status().refused.remove(0);
    assert!(reason.contains("cairn recover"), "{reason}");
    assert_eq!(recovered(&world, &places[0]), ["1", "2"]);
    life.end(&world);
}

#[test]
fn a_backend_that_lost_the_checkpoint_gets_all_of_it_again() {
    let (mut world, places) = World::with(&["a"]);
    world.stop();
    let clock = Arc::new(ManualClock::at(Timestamp { seconds: 1_700_000_000, nanoseconds: 0 }));
    world.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    let life = start(&world, VolumeId::random());
    for n in 1..3 {
        world.commit(&bytes(n, 10), &policy(""));
        life.checkpointer.checkpoint(false).unwrap();
    }
    let (place, id) = (&places[0], "a".parse().unwrap());
    let whole = || !newest_name(&world, place).is_empty() && recovered(&world, place) == ["1", "2"];
    assert!(whole());
    // It is another disk now, and somebody says so.
    place.lose_all();
    life.checkpointer.doubt(&id);
    eventually("it is there again", whole);
    // A base alone is gone, and nobody says anything: the next look finds it.
    let names = world.bridge.wait(Duration::from_secs(5), place.names("volumes/")).unwrap();
    let (_, manifest) = names.unwrap().into_iter().next_back().unwrap();
    for block in place.stored().into_iter().filter(|block| *block != manifest) {
        place.lose(&block);
    }
    clock.advance(Duration::from_hours(2));
    eventually("base and delta are there again", || place.len() >= 3);
    assert!(whole());
    life.end(&world);
}
