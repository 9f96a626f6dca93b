//! What a cache lets go of, and what it never does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::harness::{World, blocks, bytes, eventually, policy};
use crate::backends::{Backend, ErrorKind, MemoryBackend, Operation};
use crate::metadata::{CopyRecord, CopyState, PinState, VerifyMethod};
use crate::replication::machine::{Job, Outcome};
use crate::replication::{Evictor, WriteResult};
use crate::store::IndexChange;
use crate::types::{BackendId, Block, Cid, Ino, Name, Timestamp};

const MIB: u64 = 1 << 20;
/// Of a file here.
const SIZE: usize = 256 << 10;

fn evictor(world: &World) -> Evictor {
    Evictor::new(world.replicator(), Arc::clone(&world.store))
}

fn commit_many(world: &mut World, count: u64, text: &str) -> Vec<Cid> {
    let policy = policy(text);
    (0..count).map(|seed| world.commit(&bytes(seed, SIZE), &policy)).collect()
}

fn used(world: &World) -> u64 {
    world.store.recount().unwrap();
    world.store.usage().unwrap().used_bytes
}

fn is_here(world: &World, id: &Cid) -> bool {
    world.store.locate(id).unwrap().is_some()
}

/// Passes until nothing more goes.
fn drain(world: &World, evictor: &Evictor) -> u64 {
    let mut bytes = 0;
    for _ in 0..200 {
        let done = evictor.pass().unwrap().unwrap();
        bytes += done.bytes;
        if done.wanted == 0 || (done.blocks == 0 && !done.more) {
            break;
        }
    }
    world.store.recount().unwrap();
    bytes
}

fn until_proven(world: &World, roots: &[Cid], places: &[&str]) {
    for (root, place) in roots.iter().flat_map(|root| places.iter().map(move |at| (root, at))) {
        world.until_verified(root, place);
    }
}

#[test]
fn what_lies_in_a_cache_is_no_copy() {
    let (mut world, places) = World::with_cache(64 * MIB, &["a", "b"]);
    places[1].fail_all(ErrorKind::Unavailable);
    let two = policy("min=2,target=2,level=QUORUM,on_degraded=queue");
    let root = world.commit(&bytes(1, SIZE), &two);
    world.until_verified(&root, "a");
    let record = world.record(&root);
    assert_eq!((record.copies.len(), record.pin), (1, PinState::BelowMin));
    eventually("b is down", || world.registry.places_now() == 1);
    let waited = world.replicator().wait(&root, &two).unwrap();
    assert_eq!(waited, WriteResult::BelowQuorum);
    let fails = policy("min=2,target=2,level=QUORUM,on_degraded=fail");
    let error = world.replicator().wait(&root, &fails).unwrap_err().to_string();
    assert!(error.contains("local: a cache, which is no copy"), "{error}");
    let explained = world.replicator().explain(Some((&root, &record)), &two).unwrap();
    assert_eq!(explained.copies, Some((1, 2)));
    assert_eq!(explained.places[0].why_not, "a cache: what lies there is no copy");
    assert!(explained.wait.text.contains("2 distinct copies at backends"), "{explained:?}");
    // What says that it is here changes nothing.
    world.replicator().fetch_all(&[root]).unwrap();
    assert_eq!(world.record(&root).copies.len(), 1);
    places[1].heal();
    world.until_verified(&root, "b");
    assert_eq!(world.replicator().wait(&root, &two).unwrap(), WriteResult::TargetAchieved);
    assert_eq!(world.record(&root).pin, PinState::AtTarget);
}

#[test]
fn the_levels_of_a_cache_wait_for_backends_alone() {
    let (mut world, _places) = World::with_cache(64 * MIB, &["a", "b", "c"]);
    let root = world.commit(&bytes(1, SIZE), &policy("min=2,target=3"));
    until_proven(&world, &[root], &["a", "b", "c"]);
    let record = world.record(&root);
    for (level, wanted) in
        [("LOCAL_DURABILITY", 0), ("SINGLE", 1), ("QUORUM", 2), ("ALL", 3), ("PROGRESSIVE", 1)]
    {
        let policy = policy(&format!("min=2,target=3,level={level}"));
        let explained = world.replicator().explain(Some((&root, &record)), &policy).unwrap();
        assert_eq!((explained.wait.copies, explained.wait.have), (wanted, Some(3)), "{level}");
    }
    // One copy is wanted, and the local store is none.
    assert!(world.replicator().wants_copies(&policy("min=1,target=1")));
}

#[test]
fn what_is_proven_elsewhere_goes_the_longest_unused_first_and_comes_back() {
    let (mut world, places) = World::with_cache(8 * MIB, &["a", "b"]);
    let roots = commit_many(&mut world, 48, "min=2,target=2");
    until_proven(&world, &roots, &["a", "b"]);
    world.store.note_read(&roots[0]);
    let evictor = evictor(&world);
    assert!(used(&world) > 12 * MIB);
    assert!(drain(&world, &evictor) >= 4 * MIB);
    assert!(used(&world) <= 8 * MIB, "{}", used(&world));
    assert!(is_here(&world, &roots[0]), "it was read last");
    assert!(is_here(&world, &roots[47]) && !is_here(&world, &roots[1]));
    let state = evictor.state();
    assert!(state.evictable_bytes > 6 * MIB && state.waits_for_proof_bytes == 0, "{state:?}");
    // All is read again, in order: it comes from the backends and makes others go.
    let gets = |places: &[Arc<MemoryBackend>]| -> u64 {
        places.iter().map(|place| place.calls(Operation::Get)).sum()
    };
    let before = gets(&places);
    for (seed, root) in roots.iter().enumerate() {
        let data = whole(&world, root);
        assert!(data == bytes(seed as u64, SIZE), "content {seed}");
        drain(&world, &evictor);
        assert!(used(&world) <= 9 * MIB, "{}", used(&world));
    }
    assert!(gets(&places) > before);
    let again = gets(&places);
    assert!(whole(&world, &roots[47]) == bytes(47, SIZE));
    assert_eq!(gets(&places), again, "what was just read is here");
}

/// The bytes of a content, as a reader gets them.
fn whole(world: &World, root: &Cid) -> Vec<u8> {
    let mut data = Vec::new();
    crate::content::walk_post_order(
        root,
        &mut |_| Ok(true),
        &mut |id| Ok(world.replicator().fetch(id).unwrap()),
        &mut |id, block| {
            if id.codec() == crate::types::cid::RAW {
                data.extend_from_slice(block);
            }
            Ok(())
        },
    )
    .unwrap();
    data
}

#[test]
fn nothing_unproven_goes_however_much_there_is_and_it_goes_when_it_is_proven() {
    let (mut world, places) = World::with_cache(4 * MIB, &["a", "b"]);
    places[1].fail_all(ErrorKind::Unavailable);
    let roots = commit_many(&mut world, 32, "min=2,target=2");
    for root in &roots {
        world.until_verified(root, "a");
    }
    let evictor = evictor(&world);
    assert_eq!(drain(&world, &evictor), 0);
    let state = evictor.state();
    assert!(state.stuck && state.waits_for_copies_bytes >= 8 * MIB, "{state:?}");
    assert!(roots.iter().all(|root| is_here(&world, root)));
    places[1].heal();
    eventually("the cache drains", || {
        drain(&world, &evictor);
        used(&world) <= 4 * MIB
    });
    assert!(!evictor.state().stuck);
}

#[test]
fn proofs_that_are_too_old_are_asked_for_at_once() {
    let (mut world, _places) = World::with_cache(4 * MIB, &["a"]);
    let roots = commit_many(&mut world, 32, "min=1,target=1");
    until_proven(&world, &roots, &["a"]);
    let long_ago = Timestamp { seconds: world.clock.now().seconds - 100_000, nanoseconds: 0 };
    world
        .namespace
        .update_contents(&roots, &mut |_, record, _| {
            record.copies.iter_mut().for_each(|copy| copy.at = long_ago);
        })
        .unwrap();
    let evictor = evictor(&world);
    assert_eq!(drain(&world, &evictor), 0, "nothing is proven now");
    assert!(evictor.state().waits_for_proof_bytes >= 8 * MIB);
    eventually("the cache drains", || {
        drain(&world, &evictor);
        used(&world) <= 4 * MIB
    });
    let old = |root: &&Cid| world.record(root).copies.iter().any(|copy| copy.at == long_ago);
    assert!(roots.iter().filter(old).count() > 0, "no more is read back than must be");
}

#[test]
fn of_a_content_larger_than_the_cache_a_part_goes() {
    let (mut world, _places) = World::with_cache(8 * MIB, &["a"]);
    // Of a dead block in a pack, whole pages are given back: small ones leave much.
    world.profile.chunk_size = 256 << 10;
    let data = bytes(1, 16 << 20);
    let root = world.commit(&data, &policy("min=1,target=1"));
    world.until_verified(&root, "a");
    let all = blocks(&world, &root);
    let evictor = evictor(&world);
    drain(&world, &evictor);
    assert!(used(&world) <= 8 * MIB);
    let here = all.iter().filter(|id| is_here(&world, id)).count();
    assert!(here > all.len() / 4, "{here} of {}", all.len());
    assert!(is_here(&world, &root), "its nodes stay longest");
    assert!(whole(&world, &root) == data);
}

#[test]
fn what_is_removed_from_a_cache_is_remembered_from_then_on() {
    let (mut world, _places) = World::with_cache(16 * MIB, &["a"]);
    let root = world.commit(&bytes(1, SIZE), &policy("min=1,target=1"));
    world.until_verified(&root, "a");
    assert_eq!(world.record(&root).accessed_s, 0, "it was written long ago");
    let now = world.clock.now();
    let name = Name::new("file-1").unwrap();
    let removed = world.namespace.unlink(Ino::ROOT, &name, now).unwrap();
    world.namespace.reap(removed.ino).unwrap();
    let collect =
        |at: i64| world.namespace.remove_unreferenced(&[root], (at, at - 86_400)).unwrap();
    assert_eq!(collect(now.seconds + 3_600), 0);
    assert_eq!(world.record(&root).good_copies().count(), 1);
    assert_eq!(collect(now.seconds + 90_000), 1);
}

/// What a test knows of a copy.
fn random_copy(random: &mut fastrand::Rng, id: &str, now: Timestamp) -> Option<CopyRecord> {
    let state = match random.u8(0..10) {
        0..5 => CopyState::Verified,
        5 => CopyState::Claimed,
        6 => CopyState::Corrupt,
        7 => CopyState::Lost,
        8 => CopyState::Released,
        _ => return None,
    };
    let age = if random.u8(0..4) == 0 { 90_000 } else { random.i64(0..80_000) };
    let at = Timestamp { seconds: now.seconds - age, nanoseconds: 0 };
    Some(CopyRecord { backend: id.parse().unwrap(), state, at, method: VerifyMethod::ReadBack })
}

/// By the rule, said once more and plainly.
fn may_go(
    copies: &[CopyRecord],
    (min, target): (usize, usize),
    silent: &HashSet<BackendId>,
    lacking: &HashSet<BackendId>,
    now: Timestamp,
) -> bool {
    let counted = |copy: &&CopyRecord| {
        matches!(copy.state, CopyState::Claimed | CopyState::Verified) && !copy.backend.is_local()
    };
    let have = copies.iter().filter(counted).count();
    let proven = copies.iter().filter(counted).filter(|copy| {
        copy.state == CopyState::Verified
            && now.seconds - copy.at.seconds <= 86_400
            && !silent.contains(&copy.backend)
            && !lacking.contains(&copy.backend)
    });
    proven.count() >= target.min(have).max(min).max(1)
}

#[test]
fn a_cache_never_lets_go_of_what_is_not_proven_elsewhere() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    for round in 0..12 {
        one_round(seed.wrapping_add(round));
    }
}

fn one_round(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let names = ["a", "b", "c", "d"];
    let (mut world, places) = World::with_cache(2 * MIB, &names);
    // Nothing is sent or proven: the rows are the test's.
    world.registry.fleet().write().set_paused(None, true);
    let mut leaves: Vec<Vec<u8>> = Vec::new();
    let mut known: BTreeMap<Cid, (usize, usize)> = BTreeMap::new();
    for n in 0..24u64 {
        // Some leaves are those of other files.
        let mut data = Vec::new();
        for part in 0..random.u64(1..20) {
            if !leaves.is_empty() && random.u8(0..3) == 0 {
                data.extend_from_slice(&leaves[random.usize(0..leaves.len())]);
            } else {
                let leaf = bytes(seed ^ (n << 32) ^ part, 16 << 10);
                data.extend_from_slice(&leaf);
                leaves.push(leaf);
            }
        }
        let min = random.usize(1..=3);
        let target = random.usize(min..=4);
        let policy = policy(&format!("min={min},target={target},max=5"));
        let root = world.commit(&data, &policy);
        // One that is there already is kept by the stricter of both.
        let limits = known.entry(root).or_insert((0, 0));
        *limits = (limits.0.max(min), limits.1.max(target));
    }
    let of_root: HashMap<Cid, Vec<Cid>> =
        known.keys().map(|root| (*root, blocks(&world, root))).collect();
    // Places that lost contents without anybody knowing it.
    let now = world.clock.now();
    let mut lacking: HashMap<Cid, HashSet<BackendId>> = HashMap::new();
    for (root, all) in &of_root {
        for (name, place) in names.iter().zip(&places) {
            if random.u8(0..8) == 0 {
                lacking.entry(*root).or_default().insert(name.parse().unwrap());
                continue;
            }
            let all: Vec<Block> = all
                .iter()
                .map(|id| Block { cid: *id, data: world.store.get(id).unwrap().unwrap() })
                .collect();
            let put = async { place.put_many(&all).await };
            world.bridge.wait(Duration::from_secs(5), put).unwrap().unwrap();
        }
        world
            .namespace
            .update_contents(&[*root], &mut |_, record, _| {
                record.copies =
                    names.iter().filter_map(|id| random_copy(&mut random, id, now)).collect();
            })
            .unwrap();
    }
    // One is the leaf of another: whoever has it answers for both.
    for (root, absent) in &mut lacking {
        absent.retain(|id| {
            let place = &places[names.iter().position(|name| *name == id.as_str()).unwrap()];
            !place.contains(root)
        });
    }
    let mut silent: HashSet<BackendId> = HashSet::new();
    for (name, place) in names.iter().zip(&places) {
        if random.u8(0..5) == 0 {
            place.fail_all(ErrorKind::Unavailable);
            silent.insert(name.parse().unwrap());
        }
    }
    let none = HashSet::new();
    let judged: HashMap<Cid, bool> = known
        .iter()
        .map(|(root, limits)| {
            let record = world.record(root);
            let lacking = lacking.get(root).unwrap_or(&none);
            (*root, may_go(&record.copies, *limits, &silent, lacking, now))
        })
        .collect();
    let evictor = evictor(&world);
    drain(&world, &evictor);
    for (root, all) in &of_root {
        let gone = all.iter().filter(|id| !is_here(&world, id)).count();
        let record = world.record(root);
        assert!(
            gone == 0 || judged[root],
            "seed {seed}: {gone} blocks of {root} went: {:?} {record:?} silent {silent:?}",
            known[root],
        );
        assert!(record.copies.iter().all(|copy| !copy.backend.is_local()));
    }
    // And it does let go of the rest: without it nothing could be shown.
    let own: u64 = of_root
        .iter()
        .filter(|(root, _)| judged[*root])
        .flat_map(|(_, all)| all)
        .filter(|id| {
            let others = of_root.iter().filter(|(root, _)| !judged[*root]);
            is_here(&world, id) && !others.into_iter().any(|(_, all)| all.contains(id))
        })
        .count() as u64;
    let left = used(&world);
    assert!(left <= 2 * MIB || own == 0 || own * (16 << 10) <= 2 * MIB, "seed {seed}: {own} stay");
}

#[test]
fn when_no_copy_is_good_what_the_cache_has_makes_them_good() {
    let (mut world, places) = World::with_cache(64 * MIB, &["a", "b"]);
    let root = commit_many(&mut world, 1, "min=2,target=2")[0];
    until_proven(&world, &[root], &["a", "b"]);
    let all = blocks(&world, &root);
    assert!(places[0].corrupt(&all[0]) && places[1].lose(&all[0]));
    until_all_are_known_to_be_bad(&world, &root);
    until_good_again(&world, &root);
}

#[test]
fn several_bad_copies_make_each_other_good() {
    let (mut world, places) = World::with_cache(64 * MIB, &["a", "b"]);
    let root = world.commit(&bytes(1, 3 << 20), &policy("min=2,target=2"));
    until_proven(&world, &[root], &["a", "b"]);
    let leaves: Vec<Cid> = blocks(&world, &root).into_iter().filter(|id| *id != root).collect();
    assert!(places[0].corrupt(&leaves[0]) && places[1].lose(&leaves[1]));
    for id in blocks(&world, &root) {
        world.store.apply(&[IndexChange::Remove(id)]).unwrap();
    }
    until_all_are_known_to_be_bad(&world, &root);
    until_good_again(&world, &root);
}

#[test]
fn a_block_that_its_place_cannot_bring_is_a_bad_copy() {
    let (mut world, places) = World::with_cache(64 * MIB, &["a", "b"]);
    let root = commit_many(&mut world, 1, "min=2,target=2")[0];
    until_proven(&world, &[root], &["a", "b"]);
    places[0].fail(Operation::Get, ErrorKind::Corrupt);
    let machine = world.replicator().machine();
    let a = [BackendId::from_str("a").unwrap()];
    eventually("it is asked", || {
        machine.ask_for_proofs(&a, Job::Verify, (&root, &world.record(&root)), false)
    });
    eventually("it is known to be bad", || world.state_at(&root, "a") == Some(CopyState::Corrupt));
    places[0].heal();
    until_good_again(&world, &root);
}

/// Both at one moment, with nothing done in between.
fn until_all_are_known_to_be_bad(world: &World, root: &Cid) {
    let replicator = world.replicator();
    let hold = |paused| {
        world.registry.fleet().write().set_paused(None, paused);
        replicator.pauses_changed();
    };
    hold(true);
    for name in ["a", "b"] {
        let bad = [(*root, Outcome::Bad(CopyState::Corrupt))];
        replicator.machine().record(&name.parse().unwrap(), &bad, &mut |_, _, _| {}).unwrap();
    }
    assert!(world.record(root).good_copies().next().is_none());
    hold(false);
}

fn until_good_again(world: &World, root: &Cid) {
    let good = |name| world.state_at(root, name) == Some(CopyState::Verified);
    eventually("both are proven again", || {
        world.replicator().retry(&[*root]).unwrap();
        good("a") && good("b")
    });
}
