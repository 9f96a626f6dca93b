use std::sync::Arc;
use std::time::{Duration, Instant};

use super::harness::{World, bytes, eventually, policy};
use crate::backends::{ErrorKind, Operation};
use crate::metadata::{
    Change, ContentRecord, CopyRecord, CopyState, EmbeddedEngine, Namespace, PinState, VerifyMethod,
};
use crate::replication::machine::{Job, Outcome};
use crate::replication::{CopyStatus, PinQuery, Registry, ShownPin, WriteResult};
use crate::runtime::{Clock, ManualClock, SystemClock};
use crate::types::{BackendId, Cid, Timestamp, cid};

fn id(name: &str) -> BackendId {
    name.parse().unwrap()
}

fn show(world: &World, root: &Cid) -> ShownPin {
    let record = world.record(root);
    world.replicator().show_pins(&[(*root, record)]).unwrap().remove(0)
}

/// Place and state of each copy.
fn copies(pin: &ShownPin) -> Vec<(String, CopyStatus)> {
    let place = |id: &Option<BackendId>| id.as_ref().map_or("-".to_owned(), ToString::to_string);
    pin.copies.iter().map(|copy| (place(&copy.backend), copy.state)).collect()
}

fn of(list: &[(&str, CopyStatus)]) -> Vec<(String, CopyStatus)> {
    list.iter().map(|(name, state)| ((*name).to_owned(), *state)).collect()
}

fn pause(world: &World, name: Option<&str>, paused: bool) {
    let id = name.map(id);
    assert!(world.registry.fleet().write().set_paused(id.as_ref(), paused));
    world.replicator().pauses_changed();
}

#[test]
fn a_place_that_is_paused_gets_nothing_and_holds_up_nobody() {
    use CopyStatus::{Blocked, Verified};
    let (mut world, places) = World::with(&["a", "b"]);
    pause(&world, Some("a"), true);
    let policy = policy("level=ALL");
    let root = world.commit(&bytes(1, 200), &policy);
    // As if it were away: at once, not after the deadline.
    let start = Instant::now();
    assert_eq!(world.replicator().wait(&root, &policy).unwrap(), WriteResult::BelowQuorum);
    assert!(start.elapsed() < world.options.level_deadline / 2);
    world.until_verified(&root, "b");
    assert!(places[0].is_empty());
    let pin = show(&world, &root);
    assert_eq!(copies(&pin), of(&[("local", Verified), ("b", Verified), ("-", Blocked)]));
    assert!(pin.copies[2].reason.contains("a: paused"), "{pin:?}");
    // Whoever wants an error gets it, with what to do.
    let fails = "level=ALL,on_degraded=fail".parse().unwrap();
    let error = world.replicator().wait(&root, &fails).unwrap_err().to_string();
    assert!(error.contains("a: paused (`cairn queue resume`)"), "{error}");
    pause(&world, Some("a"), false);
    world.until_verified(&root, "a");
    assert_eq!(world.replicator().wait(&root, &policy).unwrap(), WriteResult::TargetAchieved);
}

#[test]
fn a_pause_of_all_holds_what_was_in_lanes_too_and_nothing_spins() {
    let (mut world, places) = World::with(&["a", "b"]);
    places.iter().for_each(|place| place.set_delay(Some(Duration::from_millis(50))));
    let policy = policy("");
    let roots: Vec<Cid> = (0..300).map(|n| world.commit(&bytes(n, 300), &policy)).collect();
    pause(&world, None, true);
    // What was being sent is finished; then nothing is under way, and nothing comes.
    eventually("nothing is under way", || world.replicator().is_idle());
    let stored = places.iter().map(|place| place.len()).sum::<usize>();
    let last = world.commit(b"later", &policy);
    assert_eq!(world.replicator().wait(&last, &policy).unwrap(), WriteResult::NoReplication);
    world.replicator().hurry();
    world.replicator().machine().request_sweep();
    eventually("nothing is under way", || world.replicator().is_idle());
    assert_eq!(places.iter().map(|place| place.len()).sum::<usize>(), stored);
    places.iter().for_each(|place| place.set_delay(None));
    pause(&world, None, false);
    world.until_drained();
    assert!(roots.iter().all(|root| world.record(root).pin == PinState::AtTarget));
}

#[test]
fn what_is_cancelled_is_left_alone_whatever_comes_until_it_is_retried() {
    use CopyStatus::{Blocked, Verified};
    let (mut world, places) = World::with(&["a"]);
    places[0].fail(Operation::PutMany, ErrorKind::Other);
    let policy = policy("min=1,target=2,max=2,level=ALL");
    let root = world.commit(&bytes(1, 300), &policy);
    eventually("a round failed", || world.row(&root).is_some_and(|row| row.attempts > 0));
    assert!(world.replicator().machine().cancel(&root).unwrap());
    places[0].heal();
    let untouched = |world: &World| {
        let replicator = world.replicator();
        replicator.machine().request_sweep();
        replicator.hurry();
        replicator.submit(&[root]);
        // Who waits for it is told at once.
        let told = replicator.wait(&root, &policy).unwrap();
        assert_eq!(told, WriteResult::NoReplication);
        eventually("all was looked at", || replicator.is_idle());
        assert!(!places[0].contains(&root));
        let pin = show(world, &root);
        assert_eq!(copies(&pin), of(&[("local", Verified), ("a", Blocked)]));
        assert!(pin.copies[1].reason.contains("cancelled by the user"), "{pin:?}");
        assert!(pin.queue.unwrap().cancelled);
    };
    untouched(&world);
    world.crash();
    world.registry.remove(&id("a"));
    world.add("a", places[0].clone());
    world.start();
    untouched(&world);
    world.replicator().retry(&[root]).unwrap();
    world.until_verified(&root, "a");
    assert!(!world.replicator().machine().cancel(&root).unwrap(), "it waits for nothing");
}

#[test]
fn a_file_that_is_written_asks_anew_for_what_was_cancelled() {
    let (mut world, places) = World::with(&["a"]);
    places[0].fail(Operation::PutMany, ErrorKind::Other);
    let policy = policy("min=1,target=2,max=2");
    let root = world.commit(&bytes(1, 300), &policy);
    eventually("a round failed", || world.row(&root).is_some_and(|row| row.attempts > 0));
    assert!(world.replicator().machine().cancel(&root).unwrap());
    places[0].heal();
    assert_eq!(world.commit(&bytes(1, 300), &policy), root);
    world.until_verified(&root, "a");
}

#[test]
fn a_copy_is_read_back_when_that_is_asked_for_and_repaired() {
    let (mut world, places) = World::with(&["a", "b"]);
    let root = world.commit(&bytes(1, 300), &policy(""));
    world.until_verified(&root, "a");
    world.until_verified(&root, "b");
    eventually("nothing is under way", || world.replicator().is_idle());
    let proven = |world: &World, name: &str| {
        let record = world.record(&root);
        record.copies.iter().find(|copy| copy.backend == id(name)).unwrap().at
    };
    let before = ["local", "a", "b"].map(|name| proven(&world, name));
    assert!(places[0].corrupt(&root));
    let (machine, record) = (world.replicator().machine(), world.record(&root));
    let asked = || {
        machine.ask_for_proofs(&["local", "a", "b"].map(id), Job::Verify, (&root, &record), true)
    };
    eventually("it is free", asked);
    assert!(!asked(), "somebody waits for it");
    eventually("all were read", || {
        let now = ["local", "a", "b"].map(|name| proven(&world, name));
        now.iter().zip(&before).all(|(now, before)| now > before)
    });
    world.until_verified(&root, "a");
    let seen = machine.seen_of(&root);
    let at = |name: &str| seen.iter().find(|(place, _)| *place == id(name)).unwrap().1.clone();
    assert_eq!(at("a"), Outcome::Bad(CopyState::Corrupt));
    assert_eq!(at("local"), Outcome::Verified(VerifyMethod::ReadBack));
    machine.unwatch(&root);
    assert!(machine.seen_of(&root).is_empty());
    let whole = world.store.get(&root).unwrap().unwrap();
    assert_eq!(
        world
            .bridge
            .block_on(crate::backends::Backend::get(places[0].as_ref(), &root, None))
            .unwrap(),
        whole
    );
}

/// All pages; each has no more than it may.
fn listed(world: &World, query: &PinQuery) -> Vec<Cid> {
    let (mut query, mut found) = (query.clone(), Vec::new());
    loop {
        let page = world.replicator().list_pins(&query).unwrap();
        assert!(page.pins.len() <= query.limit, "{page:?}");
        found.extend(page.pins.iter().map(|pin| pin.cid));
        if page.next.is_none() {
            return found;
        }
        assert!(page.next > query.after && query.has(page.next.as_ref().unwrap()));
        query.after = page.next;
    }
}

#[test]
fn pins_are_found_by_their_state_and_by_that_of_their_copies() {
    let (mut world, places) = World::with(&["a", "b"]);
    let all = policy("");
    let whole: Vec<Cid> = (0..9).map(|n| world.commit(&bytes(n, 100), &all)).collect();
    world.until_drained();
    eventually("all are verified", || world.namespace.stats().unverified == 0);
    let here = world.commit(b"here only", &policy("min=1,target=1,max=1"));
    // No place but the local one takes these now.
    places[1].set_read_only(true);
    places[0].fail(Operation::PutMany, ErrorKind::Other);
    let stuck = world.commit(&bytes(50, 500), &all);
    eventually("a round failed", || world.row(&stuck).is_some_and(|row| row.attempts > 0));
    let copy = CopyState::Corrupt;
    world
        .namespace
        .update_contents(&whole[..2], &mut |_, record, _| record.copies[1].state = copy)
        .unwrap();
    let sorted = |mut roots: Vec<Cid>| {
        roots.sort_by_key(Cid::to_bytes);
        roots
    };
    let find = |state: Option<&str>, backend: Option<&str>| {
        let state = state.map(|text| text.parse().unwrap());
        let query = PinQuery { state, backend: backend.map(id), limit: 3, ..PinQuery::default() };
        sorted(listed(&world, &query))
    };
    let every = sorted([whole.clone(), vec![here, stuck]].concat());
    assert_eq!(find(None, None), every);
    assert_eq!(find(Some("below_min"), None), [stuck]);
    assert_eq!(find(Some("below_min"), Some("a")), []);
    // Between two rounds.
    eventually("it is blocked", || find(Some("blocked"), None) == [stuck]);
    assert_eq!(find(Some("verified"), Some("local")), every);
    assert_eq!(find(None, Some("b")), sorted(whole.clone()));
    assert_eq!(find(Some("claimed"), None), []);
    let corrupt_at = |root: &Cid| {
        world.record(root).copies.iter().find(|c| c.state == copy).map(|c| c.backend.clone())
    };
    for root in &whole[..2] {
        if let Some(place) = corrupt_at(root) {
            assert!(find(Some("corrupt"), Some(place.as_str())).contains(root));
        }
    }
    let by_size = PinQuery { min_size: Some(101), limit: 2, ..PinQuery::default() };
    assert_eq!(listed(&world, &by_size), [stuck]);
    let by_size = PinQuery { max_size: Some(99), limit: 2, ..PinQuery::default() };
    assert_eq!(listed(&world, &by_size), [here]);
    let error = "tired".parse::<crate::replication::PinFilter>().unwrap_err();
    assert!(error.contains("below_min") && error.contains("blocked"), "{error}");
}

#[test]
fn the_queue_is_listed_riskiest_first_with_its_work() {
    let (mut world, places) = World::with(&["a", "b"]);
    places[1].fail(Operation::PutMany, ErrorKind::Other);
    let one_more = world.commit(&bytes(1, 100), &policy("min=1,target=3,max=3"));
    world.until_verified(&one_more, "a");
    places[0].fail(Operation::PutMany, ErrorKind::Other);
    let risky = world.commit(&bytes(2, 100), &policy("min=3,target=3,max=3"));
    let fresh = world.commit(&bytes(3, 100), &policy("min=1,target=3,max=3"));
    for root in [risky, fresh] {
        eventually("a round failed", || world.row(&root).is_some_and(|row| row.attempts > 0));
    }
    let mut order = Vec::new();
    let mut after = None;
    loop {
        let page = world.replicator().list_queue(1, after.as_deref()).unwrap();
        for item in &page.items {
            order.push(item.pin.cid);
            let row = item.pin.queue.as_ref().unwrap();
            assert!(!row.reason.is_empty() && !row.waits.is_empty(), "{item:?}");
            assert_eq!(item.eta_s, row.eta_s);
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    // Fewest verified copies first, then the oldest.
    let mut alike = [risky, fresh];
    alike.sort_by_key(|root| (world.row(root).unwrap().since.seconds, root.to_bytes()));
    assert_eq!(order, [alike[0], alike[1], one_more]);
}

#[test]
fn every_item_of_the_queue_says_when_or_what_it_waits_for() {
    let mut world = World::new();
    let clock = Arc::new(ManualClock::at(Timestamp { seconds: 1_000_000, nanoseconds: 0 }));
    world.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    world.options.machine.backoff = (Duration::from_mins(10), Duration::from_hours(1));
    let [a, b] = ["a", "b"].map(|name| world.add_memory(name));
    world.start();
    let item = |world: &World, root: &Cid| {
        let page = world.replicator().list_queue(9, None).unwrap();
        let item = page.items.into_iter().find(|item| item.pin.cid == *root).unwrap();
        let row = item.pin.queue.clone().unwrap();
        assert_eq!(item.eta_s, row.eta_s);
        (row.eta_s, row.waits, row.waits_for)
    };
    let both = policy("min=1,target=3,max=3");
    // What the lanes move is measured first.
    world.commit(&bytes(1, 100_000), &both);
    world.until_drained();
    // Between two rounds: the pause, and what is in the lane.
    a.fail(Operation::PutMany, ErrorKind::Invalid);
    let failed = world.commit(&bytes(2, 300), &both);
    eventually("b has it, and a has failed", || {
        world.row(&failed).is_some_and(|row| row.attempts > 0)
            && world.state_at(&failed, "b").is_some()
            && world.replicator().is_idle()
    });
    let (eta, waits, waits_for) = item(&world, &failed);
    assert!(eta.is_some_and(|eta| (300..=601).contains(&eta)), "{eta:?}");
    assert!(waits.contains("the copy at a failed once, the next try is in"), "{waits}");
    assert_eq!(waits_for, []);
    // Somebody holds the place: nobody can say.
    world.registry.fleet().write().set_paused(Some(&id("b")), true);
    world.replicator().pauses_changed();
    let held = world.commit(&bytes(3, 300), &both);
    eventually("it failed at a", || world.row(&held).is_some_and(|row| row.attempts > 0));
    let (eta, waits, waits_for) = item(&world, &held);
    assert_eq!((eta, waits_for), (None, vec![id("b")]));
    assert!(waits.contains("waits for backend b (paused"), "{waits}");
    assert!(world.replicator().machine().cancel(&held).unwrap());
    let (eta, waits, _) = item(&world, &held);
    assert_eq!(eta, None);
    assert!(waits.contains("cancelled by the user"), "{waits}");
    world.registry.fleet().write().set_paused(Some(&id("b")), false);
    world.replicator().pauses_changed();
    a.heal();
    world.replicator().retry(&[held, failed]).unwrap();
    world.until_drained();
    assert!(b.contains(&held));
}

/// Rows of `count` pins: most are whole, one in ten thousand is short, or corrupt.
fn rows(count: u64) -> impl Iterator<Item = Result<Change, crate::metadata::MetadataError>> {
    let now = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    let copy = move |name: &str, state| CopyRecord {
        backend: id(name),
        state,
        at: now,
        method: VerifyMethod::ReadBack,
    };
    (0..count).map(move |n| {
        let mut copies = vec![copy("local", CopyState::Verified), copy("a", CopyState::Verified)];
        let (short, bad) = (n % 10_000 == 1, n % 10_000 == 2);
        if !short {
            copies.push(copy("b", if bad { CopyState::Corrupt } else { CopyState::Verified }));
        }
        let record = ContentRecord {
            size: 4096 + n % 1000,
            tsize: 4096 + n % 1000,
            blocks: 1,
            refs: 1,
            profile: String::new(),
            min: 2,
            target: 3,
            max: 5,
            pin: if short || bad { PinState::BelowTarget } else { PinState::AtTarget },
            copies,
            holes: 0,
            policies: Vec::new(),
            created_s: now.seconds,
            accessed_s: 0,
        };
        Ok(Change::Content(cid::of_raw(&n.to_le_bytes()), Some(record)))
    })
}

/// `scripts/soak pins` runs it with 10,000,000.
#[test]
fn a_page_of_very_many_pins_looks_at_few_rows() {
    let count = std::env::var("CAIRN_PINS").ok().and_then(|n| n.parse().ok()).unwrap_or(30_000u64);
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new();
    for name in ["a", "b"] {
        world.add_memory(name);
    }
    let engine = Arc::new(EmbeddedEngine::open(dir.path(), 32 << 20).unwrap());
    world.namespace = Arc::new(Namespace::open(engine, Timestamp::default()).unwrap());
    // Nothing is worked on: rows only.
    world.registry.fleet().write().set_paused(None, true);
    let start = Instant::now();
    world.namespace.load_rows(&mut rows(count)).unwrap();
    println!("{count} pins: filled in {:.1} s", start.elapsed().as_secs_f64());
    world.start();
    let time = |what: &str, run: &mut dyn FnMut() -> usize| {
        for round in ["first", "again"] {
            let start = Instant::now();
            let examined = run();
            let took = start.elapsed().as_secs_f64() * 1000.0;
            println!("{what:44} {round} {took:9.3} ms, {examined} rows looked at");
        }
    };
    time("pin status (counters)", &mut || {
        let stats = world.namespace.stats();
        assert_eq!((stats.pins, stats.corrupt), (count, count / 10_000));
        0
    });
    let short = usize::try_from(count / 10_000).unwrap();
    for (state, backend, few) in [
        (None, None, 100),
        (Some("at_target"), None, 102),
        (Some("below_target"), None, 100),
        (Some("below_target"), Some("b"), 200),
        (Some("below_min"), None, 0),
        (None, Some("b"), 102),
        (Some("corrupt"), None, 100),
        (Some("corrupt"), Some("a"), 0),
        (Some("corrupt"), Some("b"), 100),
        (Some("lost"), None, 0),
        (Some("blocked"), None, 200),
    ] {
        let filter = state.map(|text| text.parse().unwrap());
        let query =
            PinQuery { state: filter, backend: backend.map(id), limit: 100, ..PinQuery::default() };
        let what = format!("pin ls --state {state:?} --backend {backend:?}");
        time(&what, &mut || {
            let page = world.replicator().list_pins(&query).unwrap();
            assert!(page.examined <= few, "{what}: {} rows", page.examined);
            let bad = page
                .pins
                .iter()
                .filter(|pin| pin.copies.iter().any(|copy| copy.state == CopyStatus::Corrupt));
            if state == Some("corrupt") && backend != Some("a") {
                assert_eq!(bad.count(), short.min(100));
            }
            page.examined
        });
    }
    time("pin ls --min-size, which few have", &mut || {
        let query = PinQuery { min_size: Some(1 << 40), limit: 100, ..PinQuery::default() };
        let page = world.replicator().list_pins(&query).unwrap();
        assert!(page.pins.is_empty() && page.examined <= 8192 && page.next.is_some());
        page.examined
    });
    time("queue ls", &mut || world.replicator().list_queue(100, None).unwrap().items.len());
}

#[test]
fn copies_are_queued_sending_draining_and_stale_as_their_work_and_places_are() {
    let mut world = World::new();
    let grace = Duration::from_millis(1);
    let registry = Registry::new("device:here".into(), grace, Arc::new(SystemClock));
    world.registry = Arc::new(registry);
    let place = world.add_memory("a");
    world.start();
    let first = |world: &World, state: &str| {
        let state = Some(state.parse().unwrap());
        let query = PinQuery { state, backend: Some(id("a")), limit: 1, ..PinQuery::default() };
        world.replicator().list_pins(&query).unwrap().pins.pop()
    };
    let reason = |pin: &ShownPin| {
        let copy = pin.copies.iter().find(|copy| copy.backend == Some(id("a"))).unwrap();
        copy.reason.clone()
    };
    // More than the workers of its lane take at once.
    place.set_delay(Some(Duration::from_millis(300)));
    let policy = policy("min=1,target=2,max=2");
    let roots: Vec<Cid> = (0..600).map(|n| world.commit(&bytes(n, 40), &policy)).collect();
    eventually("some are sent", || first(&world, "sending").is_some());
    eventually("some wait", || first(&world, "queued").is_some());
    place.set_delay(None);
    world.until_drained();
    eventually("all are verified", || world.namespace.stats().unverified == 0);
    for state in ["sending", "queued", "draining", "stale", "blocked", "wanted"] {
        assert!(first(&world, state).is_none(), "{state}");
    }
    world.registry.fleet().write().set_draining(&id("a"), true);
    world.replicator().wake();
    eventually("it leaves", || {
        let found = first(&world, "draining");
        found.is_some_and(|pin| reason(&pin).contains("another place is needed"))
    });
    world.registry.fleet().write().set_draining(&id("a"), false);
    // Away for longer than its grace period, as soon as somebody notices.
    place.fail_all(ErrorKind::Unavailable);
    world.commit(b"who notices", &policy);
    eventually("it is away", || {
        first(&world, "stale").is_some_and(|pin| reason(&pin).contains("away for too long"))
    });
    assert_eq!(world.record(&roots[0]).copies.len(), 2);
}
