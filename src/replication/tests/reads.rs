use std::sync::Arc;
use std::time::{Duration, Instant};

use super::harness::{World, bytes, eventually, policy};
use crate::backends::{Backend, ErrorKind, Operation};
use crate::replication::fence::Fence;
use crate::replication::files::Source;
use crate::replication::{Events, ReplicationError};
use crate::types::{Block, Cid, VolumeId, cid};

/// A volume whose content is on `a` and `b` but not on the local disk.
fn elsewhere() -> (World, Vec<Arc<crate::backends::MemoryBackend>>, Cid, Vec<u8>) {
    let (mut world, places) = World::with(&["a", "b"]);
    let data = bytes(5, 32);
    let root = world.commit(&data, &policy(""));
    world.until_verified(&root, "a");
    world.until_verified(&root, "b");
    world.stop();
    world.lose_local_blocks();
    world.start();
    (world, places, root, data)
}

#[test]
fn a_block_that_is_missing_here_is_read_elsewhere_and_kept() {
    let (world, places, root, data) = elsewhere();
    assert_eq!(world.replicator().fetch(&root).unwrap(), data);
    let gets = places.iter().map(|place| place.calls(Operation::Get)).sum::<u64>();
    assert_eq!(world.replicator().fetch(&root).unwrap(), data);
    assert_eq!(places.iter().map(|place| place.calls(Operation::Get)).sum::<u64>(), gets);
    assert_eq!(world.store.get(&root).unwrap().unwrap(), data);
}

#[test]
fn a_local_block_whose_bytes_rotted_is_served_from_elsewhere_and_repaired() {
    let (mut world, _) = World::with(&["a"]);
    let data = bytes(6, 32);
    let root = world.commit(&data, &policy(""));
    world.until_verified(&root, "a");
    world.stop();
    let mut flipped = 0;
    let mut folders = vec![world.dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut file = std::fs::read(&path).unwrap();
            if let Some(at) = file.windows(data.len()).position(|window| window == data) {
                file[at] ^= 1;
                std::fs::write(&path, file).unwrap();
                flipped += 1;
            }
        }
    }
    assert_eq!(flipped, 1);
    world.crash();
    let clock = Arc::clone(&world.clock);
    world.options.events = Events::new(Arc::clone(&world.namespace), clock).unwrap();
    world.start();
    assert!(world.store.get(&root).is_err());
    assert_eq!(world.replicator().fetch(&root).unwrap(), data);
    assert_eq!(world.store.get(&root).unwrap().unwrap(), data);
    // It is in the audit, once.
    let told = || {
        world.options.events.flush();
        repairs(&world)
    };
    eventually("the repair is an event", || !told().is_empty());
    assert_eq!(world.replicator().fetch(&root).unwrap(), data);
    assert_eq!(told(), [("local".to_owned(), root.to_string())]);
}

/// Place and block of each event of a repair.
fn repairs(world: &World) -> Vec<(String, String)> {
    let mut all = Vec::new();
    world
        .namespace
        .visit_events(0, &mut |_, event| {
            if event.kind == "block_repaired" {
                all.push((event.backend, event.subject));
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    all
}

#[test]
fn a_wrong_block_that_no_row_knows_stays_where_this_life_holds_no_claim() {
    let volume = VolumeId::random();
    for (taken_over, claimed) in [(false, false), (true, true), (false, true)] {
        let (mut world, places, root, data) = elsewhere();
        let clock = Arc::clone(&world.clock);
        world.stop();
        world.options.events = Events::new(Arc::clone(&world.namespace), clock).unwrap();
        world.start();
        let fence = Arc::new(Fence::new(volume));
        let id = "a".parse().unwrap();
        let backend = Arc::clone(&places[0]) as Arc<dyn Backend>;
        let source = Source { backend: &backend, bridge: &world.bridge };
        if claimed {
            fence.hold(&id, &source).unwrap();
        }
        if taken_over {
            Fence::new(volume).hold(&id, &source).unwrap();
        }
        world.registry.set_fence(fence);
        assert!(places[0].corrupt(&root));
        // The other place is late: `a` is asked, too, or first.
        places[1].set_delay(Some(Duration::from_secs(3)));
        assert_eq!(world.replicator().fetch(&root).unwrap(), data);
        let good = || {
            let got = world.bridge.wait(Duration::from_secs(5), backend.get(&root, None));
            got.unwrap().is_ok_and(|got| got == data)
        };
        if claimed && !taken_over {
            eventually("it is mended", good);
            eventually("which is an event", || {
                world.options.events.flush();
                repairs(&world) == [("a".to_owned(), root.to_string())]
            });
            continue;
        }
        // It was read again, and the claim was looked at: then it would have gone.
        eventually("it is read once more", || places[0].calls(Operation::Get) >= 2);
        world.options.events.flush();
        world.options.events = Events::default();
        world.stop();
        assert_eq!(places[0].calls(Operation::Delete), 0);
        let got = world.bridge.wait(Duration::from_secs(5), backend.get(&root, None));
        assert!(got.unwrap().is_ok_and(|got| got != data), "it was taken away");
        assert!(repairs(&world).is_empty());
    }
}

#[test]
fn wrong_bytes_are_never_served_and_are_replaced_where_they_lie() {
    let (world, places, root, data) = elsewhere();
    let fence = Arc::new(Fence::new(VolumeId::random()));
    let (id, backend) = ("a".parse().unwrap(), Arc::clone(&places[0]) as Arc<dyn Backend>);
    fence.hold(&id, &Source { backend: &backend, bridge: &world.bridge }).unwrap();
    world.registry.set_fence(fence);
    assert!(places[0].corrupt(&root) && places[1].contains(&root));
    // Either may be asked first; the second round must go to `a` alone.
    assert_eq!(world.replicator().fetch(&root).unwrap(), data);
    let block = Block::raw(data.into());
    let good = || {
        let got = world.bridge.wait(Duration::from_secs(5), async {
            crate::backends::Backend::get(places[0].as_ref(), &root, None).await
        });
        // It is not there for a moment while it is replaced.
        got.unwrap().is_ok_and(|got| got == block.data)
    };
    if !good() && places[0].calls(Operation::Delete) == 0 {
        // `b` answered first, and `a` was not asked: nothing is known of it yet.
        return;
    }
    eventually("the wrong copy is replaced", good);
}

#[test]
fn a_place_that_is_late_is_overtaken_by_the_next() {
    let (world, places, root, data) = elsewhere();
    places[0].set_delay(Some(Duration::from_hours(1)));
    let start = Instant::now();
    assert_eq!(world.replicator().fetch(&root).unwrap(), data);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn readers_of_one_block_share_one_fetch() {
    let (world, places, root, data) = elsewhere();
    let before: u64 = places.iter().map(|place| place.calls(Operation::Get)).sum();
    places.iter().for_each(|place| place.set_delay(Some(Duration::from_millis(200))));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(world.replicator().fetch(&root).unwrap(), data));
        }
    });
    let after: u64 = places.iter().map(|place| place.calls(Operation::Get)).sum();
    assert_eq!(after - before, 1);
}

#[test]
fn a_block_that_nobody_has_names_each_answer() {
    let (world, places, _, _) = elsewhere();
    places[1].fail(Operation::Get, ErrorKind::Denied);
    let missing = cid::of_raw(b"nobody has this");
    let error = world.replicator().fetch(&missing).unwrap_err();
    assert!(matches!(error, ReplicationError::NoGoodCopy { .. }));
    let text = error.to_string();
    assert!(text.contains("a: ") && text.contains("b: memory:b was told to fail"), "{text}");
}

#[test]
fn reads_go_on_from_a_place_that_takes_no_writes() {
    let (world, places, root, data) = elsewhere();
    places[0].fail_all(ErrorKind::Unavailable);
    places[1].set_read_only(true);
    assert_eq!(world.replicator().fetch(&root).unwrap(), data);
}
