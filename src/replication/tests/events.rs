//! What becomes of copies is an event; sealed files go to backends and come back.

use std::sync::Arc;
use std::time::Duration;

use super::harness::{World, bytes, eventually, policy};
use crate::backends::{Backend, MemoryBackend};
use crate::metadata::checkpoint::{BaseEntry, Manifest};
use crate::metadata::{
    CopyState, EventKind, EventLog, EventQuery, EventRecord, MemoryEngine, Namespace, Severity,
    VerifyMethod,
};
use crate::replication::machine::Outcome;
use crate::replication::{AlarmKind, EventFiles, Events, recover_events};
use crate::runtime::{Clock, ManualClock, Shutdown};
use crate::types::{BackendId, Timestamp, VolumeId, WriterId, cid};

fn tree() -> Arc<Namespace> {
    Arc::new(Namespace::open(Arc::new(MemoryEngine::default()), Timestamp::default()).unwrap())
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp { seconds: 1_700_000_000, nanoseconds: 0 }))
}

/// All rows, in their order.
fn rows(tree: &Namespace) -> Vec<(u64, EventRecord)> {
    let mut all = Vec::new();
    tree.visit_events(0, &mut |number, event| {
        all.push((number, event));
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    all
}

pub(super) fn kinds(tree: &Namespace) -> Vec<String> {
    rows(tree).into_iter().map(|(_, event)| event.kind).collect()
}

#[test]
fn many_copies_of_a_second_are_one_event_and_few_are_their_own() {
    let tree = tree();
    let events = Events::new(Arc::clone(&tree), clock()).unwrap();
    let b: BackendId = "b".parse().unwrap();
    let roots: Vec<_> = (0..100_000u32).map(|n| cid::of_raw(&n.to_le_bytes())).collect();
    let start = std::time::Instant::now();
    for batch in roots.chunks(500) {
        events.emit_many(EventKind::CopyPlaced, &b, batch, "");
    }
    eprintln!("100,000 copies are events after {:?}", start.elapsed());
    events.emit_many(EventKind::CopyVerified, &b, &roots[..3], "");
    events.flush();
    let all = rows(&tree);
    assert_eq!(all.len(), 4);
    let many = all.iter().find(|(_, event)| event.kind == "copy_placed").unwrap();
    assert_eq!((many.1.count, many.1.backend.as_str()), (100_000, "b"));
    assert!(many.1.detail.contains(&roots[15].to_string()), "{}", many.1.detail);
    let single: Vec<&str> =
        all.iter().filter(|(_, e)| e.kind == "copy_verified").map(|(_, e)| &*e.subject).collect();
    assert_eq!(single, roots[..3].iter().map(ToString::to_string).collect::<Vec<_>>());
}

#[test]
fn what_does_not_fit_is_counted_and_no_alarm_is_left_out() {
    let tree = tree();
    let events = Events::new(Arc::clone(&tree), clock()).unwrap();
    for n in 0..5000 {
        events.emit(EventKind::PolicySet, &n.to_string(), "");
    }
    for n in 0..5000 {
        events.emit(EventKind::ContentAtRisk, &n.to_string(), "");
    }
    events.flush();
    let all = rows(&tree);
    let count = |kind: &str| -> u64 {
        all.iter().filter(|(_, e)| e.kind == kind).map(|(_, e)| e.count).sum()
    };
    assert_eq!(count("content_at_risk"), 5000);
    assert_eq!(count("policy_set") + count("events_dropped"), 5000);
    assert_eq!(count("events_dropped"), 5000 - 4096);
}

#[test]
fn a_tree_that_cannot_be_written_loses_no_event() {
    let tree = tree();
    let events = Events::new(Arc::clone(&tree), clock()).unwrap();
    events.emit(EventKind::PolicySet, "volume", "");
    drop(events);
    assert_eq!(kinds(&tree), ["policy_set"], "the last handle writes what waits");
}

#[test]
fn an_alarm_is_raised_once_and_cleared_once_across_lives_of_the_volume() {
    let tree = tree();
    let clock = clock();
    let life = || Events::new(Arc::clone(&tree), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let minute = Duration::from_mins(1);
    {
        let events = life();
        for _ in 0..120 {
            events.observe(AlarmKind::BackendDown, "b", Some("no answer"), minute);
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(events.take_fires().len(), 1);
        assert_eq!(events.alarms().len(), 1);
    }
    let events = life();
    assert_eq!(events.alarms()[0].subject, "b");
    events.observe(AlarmKind::BackendDown, "b", Some("no answer"), minute);
    assert!(events.take_fires().is_empty());
    events.observe(AlarmKind::BackendDown, "b", None, minute);
    events.observe(AlarmKind::BackendDown, "b", None, minute);
    let fires = events.take_fires();
    assert!(fires.len() == 1 && fires[0].cleared);
    events.flush();
    let all = rows(&tree);
    let told: Vec<(&str, &str, Severity)> =
        all.iter().map(|(_, e)| (&*e.kind, &*e.backend, e.severity)).collect();
    let wanted = [("alarm_raised", "b", Severity::Alarm), ("alarm_cleared", "b", Severity::Notice)];
    assert_eq!(told, wanted);
    assert!(all[0].1.detail.starts_with("backend_down: no answer"));
    drop(events);
    assert!(life().alarms().is_empty());
}

#[test]
fn a_copy_is_placed_verified_found_bad_and_repaired_and_each_is_an_event() {
    let mut world = World::new();
    world.add_memory("a");
    let events = Events::new(Arc::clone(&world.namespace), Arc::clone(&world.clock)).unwrap();
    world.options.events = events.clone();
    world.start();
    let root = world.commit(&bytes(1, 100), &policy("min=1,target=2,max=2"));
    eventually("it is verified", || world.state_at(&root, "a") == Some(CopyState::Verified));
    // The row says it first.
    eventually("both are told", || {
        events.flush();
        let happened = kinds(&world.namespace);
        ["copy_placed", "copy_verified"].iter().all(|kind| happened.contains(&(*kind).into()))
    });
    assert!(events.alarms().is_empty());
}

#[test]
fn a_content_whose_last_good_copy_is_bad_is_an_alarm_and_each_verdict_an_event() {
    let mut world = World::new();
    let events = Events::new(Arc::clone(&world.namespace), Arc::clone(&world.clock)).unwrap();
    world.options.events = events.clone();
    world.start();
    let root = world.commit(&bytes(2, 100), &policy("min=1,target=1,max=1"));
    let local = BackendId::local();
    let core = Arc::clone(world.replicator().core_for_tests());
    // What is recorded here is not so: nobody is to look.
    core.machine.lanes().lock().pause(&local, true);
    let record = |outcome| {
        core.record(&local, &[(root, outcome)]).unwrap();
        events.flush();
        let count = |kind: &str| kinds(&world.namespace).iter().filter(|k| *k == kind).count();
        ["copy_lost", "copy_corrupt", "content_at_risk", "alarm_raised", "copy_repaired"].map(count)
    };
    let stored = || Outcome::Stored(CopyState::Verified, VerifyMethod::ReadBack);
    assert_eq!(record(Outcome::Bad(CopyState::Lost)), [1, 0, 1, 1, 0]);
    assert_eq!(events.alarms()[0].subject, root.to_string());
    assert_eq!(record(Outcome::Bad(CopyState::Corrupt)), [1, 1, 1, 1, 0], "raised once");
    assert_eq!(events.take_fires().len(), 1);
    assert_eq!(record(stored()), [1, 1, 1, 1, 1]);
    assert_eq!(record(stored()), [1, 1, 1, 1, 1], "what was known is no event");
    record(Outcome::Failed("no route".into()));
    let last = rows(&world.namespace).pop().unwrap().1;
    assert_eq!((&*last.kind, &*last.detail), ("round_failed", "no route"));
}

fn manifest(volume: VolumeId) -> Manifest {
    Manifest {
        format: 1,
        volume,
        sequence: 1,
        previous: None,
        base: BaseEntry { sequence: 1, files: Vec::new() },
        deltas: Vec::new(),
        policy: String::new(),
        policies: std::collections::BTreeMap::new(),
        profile: "unixfs-v1-2025".into(),
        backends: std::collections::BTreeMap::new(),
        writer: WriterId::random(),
        versions: std::collections::BTreeMap::new(),
        created: Timestamp::default(),
        files: 0,
        bytes: 0,
    }
}

#[test]
fn sealed_events_go_to_backends_and_come_back_with_a_recovery() {
    let world = World::new();
    let places: [Arc<MemoryBackend>; 2] = ["a", "b"].map(|name| world.add_memory(name));
    let dir = world.dir.path();
    let log = EventLog::open(&dir.join("events"), Arc::clone(&world.namespace)).unwrap();
    let volume = VolumeId::random();
    let registry = Arc::clone(&world.registry);
    let files = EventFiles::new(registry, world.bridge.clone(), Shutdown::default(), volume);
    let add = |count: i64| {
        for n in 0..count {
            let at = Timestamp { seconds: n, nanoseconds: 0 };
            let event = EventRecord::new(at, EventKind::CopyPlaced, n.to_string());
            world.namespace.append_event(&event).unwrap();
        }
    };
    add(100);
    log.seal().unwrap();
    places[1].set_read_only(true);
    files.bring(&log);
    add(20);
    log.seal().unwrap();
    places[1].set_read_only(false);
    files.bring(&log);
    let names = |place: &Arc<MemoryBackend>| {
        let names = world.bridge.block_on(place.names(&format!("volumes/{volume}/events-")));
        names.unwrap().len()
    };
    assert_eq!(places.each_ref().map(names), [2, 2], "one that was away catches up");
    // Recovered, with the rows of a checkpoint that has some of the same events.
    let checkpoints = dir.join("checkpoints");
    let base = checkpoints.join("base-000000000001");
    std::fs::create_dir_all(&base).unwrap();
    let mut writer = crate::metadata::checkpoint::BaseWriter::create(&base, 1).unwrap();
    for number in 110..=130 {
        let event = EventRecord::new(Timestamp::default(), EventKind::Mount, "row");
        writer.push(&crate::metadata::Change::Event(number, event)).unwrap();
    }
    writer.finish().unwrap();
    let again = tree();
    let place = Arc::clone(&places[0]) as Arc<dyn Backend>;
    let paths = (checkpoints.as_path(), &*dir.join("again"));
    recover_events(&place, &manifest(volume), paths, &again, &world.bridge).unwrap();
    let log = EventLog::open(&dir.join("again"), Arc::clone(&again)).unwrap();
    let page = log.query(&EventQuery { limit: 1000, ..EventQuery::default() }).unwrap();
    let numbers: Vec<u64> = page.events.iter().map(|numbered| numbered.number).collect();
    assert_eq!(numbers, (1..=130).collect::<Vec<u64>>());
    assert_eq!(page.events[119].event.kind, "copy_placed", "a file's word, not the row's");
    let before = again.event_numbers().end;
    assert!(before > 1 << 20, "numbers of the life before do not come again: {before}");
}

#[test]
fn events_of_a_recovered_checkpoint_stay_when_new_ones_come() {
    let tree = tree();
    let row = |number| Ok((number, EventRecord::new(Timestamp::default(), EventKind::Mount, "x")));
    tree.load_events(0, &mut (1..=50).map(row)).unwrap();
    let event = EventRecord::new(Timestamp::default(), EventKind::Recover, "a");
    tree.append_event(&event).unwrap();
    let all = rows(&tree);
    assert_eq!((all.len(), tree.event_rows(), all[0].0), (51, 51, 1));
    assert!(all[50].0 > 1 << 20);
}
