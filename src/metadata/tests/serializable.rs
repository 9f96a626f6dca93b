//! Transactions that run at the same time end as if they had run one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::super::{Commit, EmbeddedEngine, Engine, MemoryEngine, Reader, Transaction};

type Key = [u8; 2];
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Keys of both keyspaces of the embedded engine.
const PREFIXES: [u8; 2] = [b'k', b'B'];
const NUMBERS: u8 = 5;

fn embedded(test: impl Fn(&dyn Engine)) {
    let dir = tempfile::tempdir().unwrap();
    test(&EmbeddedEngine::open(dir.path(), 1 << 20).unwrap());
}

fn some_key(random: &mut fastrand::Rng) -> Key {
    [PREFIXES[random.usize(..2)], random.u8(..NUMBERS)]
}

/// Ends after `most` rows, as who looks for the first does.
fn scan(reader: &dyn Reader, start: Key, end: Key, most: usize) -> Rows {
    let mut rows = Vec::new();
    let visit = &mut |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), value.to_vec()));
        if rows.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    reader.scan(&start, &end, visit).unwrap();
    rows
}

#[derive(Debug, Clone)]
enum Step {
    Get(Key, Option<Vec<u8>>),
    Scan((Key, Key, usize), Rows),
    Write(Key, Option<Vec<u8>>),
}

type Map = BTreeMap<Key, Vec<u8>>;

fn write(map: &mut Map, key: Key, value: Option<Vec<u8>>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

/// What a transaction of these steps would have read on its own; it leaves its
/// writes in `map`.
fn replay(map: &mut Map, steps: &[Step]) -> Result<(), String> {
    for step in steps {
        let same = match step {
            Step::Get(key, read) => map.get(key) == read.as_ref(),
            Step::Scan((start, end, most), read) => {
                let rows = map.iter().filter(|(key, _)| *key >= start && *key < end).take(*most);
                rows.map(|(key, value)| (key.to_vec(), value.clone())).eq(read.iter().cloned())
            }
            Step::Write(key, value) => {
                write(map, *key, value.clone());
                true
            }
        };
        if !same {
            return Err(format!("{step:?} of {steps:?}, but there is {map:?}"));
        }
    }
    Ok(())
}

struct Open<'e> {
    tx: Box<dyn Transaction + 'e>,
    /// The rows and the number of commits when it began.
    base: Map,
    began: usize,
    steps: Vec<Step>,
}

impl Open<'_> {
    fn step(&mut self, random: &mut fastrand::Rng, value: u32) {
        let key = some_key(random);
        let step = match random.u8(..10) {
            0..4 => Step::Get(key, self.tx.get(&key).unwrap()),
            4..6 => {
                let (end, most) = ([key[0], random.u8(..=NUMBERS)], random.usize(1..4));
                Step::Scan((key, end, most), scan(self.tx.as_ref(), key, end, most))
            }
            6..9 => {
                self.tx.put(&key, &value.to_be_bytes());
                Step::Write(key, Some(value.to_be_bytes().to_vec()))
            }
            _ => {
                self.tx.delete(&key);
                Step::Write(key, None)
            }
        };
        self.steps.push(step);
    }

    fn writes(&self) -> BTreeSet<Key> {
        let key = |step: &Step| if let Step::Write(key, _) = step { Some(*key) } else { None };
        self.steps.iter().filter_map(key).collect()
    }

    fn has_read(&self, changed: Key) -> bool {
        let mut own = false;
        self.steps.iter().any(|step| match step {
            Step::Get(key, _) => *key == changed && !own,
            Step::Scan((start, end, _), _) => *start <= changed && changed < *end,
            Step::Write(key, _) => {
                own |= *key == changed;
                false
            }
        })
    }
}

/// Interleaves transactions step by step; the order of the commits is the serial
/// order. With `exact`, a conflict has a reason, too.
fn interleave(engine: &dyn Engine, seed: u64, exact: bool) -> (usize, usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model = Map::new();
    let mut commits: Vec<BTreeSet<Key>> = Vec::new();
    let (mut open, mut conflicts): (Vec<Open<'_>>, usize) = (Vec::new(), 0);
    for value in 0..1000 {
        if open.len() < 4 && random.u8(..4) == 0 {
            let (tx, base) = (engine.begin().unwrap(), model.clone());
            open.push(Open { tx, base, began: commits.len(), steps: Vec::new() });
        }
        if open.is_empty() {
            continue;
        }
        let at = random.usize(..open.len());
        if random.u8(..6) > 0 {
            open[at].step(&mut random, value);
            continue;
        }
        let done = open.swap_remove(at);
        replay(&mut done.base.clone(), &done.steps)
            .unwrap_or_else(|e| panic!("seed {seed}: not what was there at its beginning: {e}"));
        if random.u8(..8) == 0 {
            continue;
        }
        let writes = done.writes();
        let changed = commits[done.began..].iter().flatten().any(|key| done.has_read(*key));
        match done.tx.commit().unwrap() {
            Commit::Done if writes.is_empty() => {}
            Commit::Done => {
                replay(&mut model, &done.steps)
                    .unwrap_or_else(|e| panic!("seed {seed}: not serializable: {e}"));
                commits.push(writes);
            }
            Commit::Conflict => {
                assert!(changed || !exact, "seed {seed}: nothing that it read was changed");
                conflicts += 1;
            }
        }
    }
    drop(open);
    for prefix in PREFIXES {
        let rows = scan(engine.snapshot().unwrap().as_ref(), [prefix, 0], [prefix, 255], 255);
        let expected = model.iter().filter(|(key, _)| key[0] == prefix);
        assert!(rows.into_iter().eq(expected.map(|(k, v)| (k.to_vec(), v.clone()))), "seed {seed}");
    }
    (commits.len(), conflicts)
}

#[test]
fn interleaved_transactions_are_as_if_one_by_one_in_the_order_of_their_commits() {
    for seed in 0..40 {
        let clear = |engine: &dyn Engine| {
            let (commits, conflicts) = interleave(engine, seed, true);
            assert!(commits > 30 && conflicts > 5, "seed {seed}: {commits} {conflicts}");
        };
        embedded(clear);
        // It compares values: a key that was changed back is not changed.
        interleave(&MemoryEngine::default(), seed, false);
    }
}

/// A transaction of [`appends`] that was committed: the list of each key that it
/// read, before its own append.
#[derive(Debug, Default)]
struct Seen {
    lists: HashMap<Key, Vec<u32>>,
    appended: Vec<Key>,
}

fn list(value: &[u8]) -> Vec<u32> {
    value.as_chunks().0.iter().map(|id| u32::from_be_bytes(*id)).collect()
}

/// Transactions of one thread that read lists and append their number to some.
fn append(engine: &dyn Engine, first: u32, random: &mut fastrand::Rng) -> Vec<(u32, Seen)> {
    let mut done = Vec::new();
    for id in first..first + 300 {
        let (mut tx, mut seen) = (engine.begin().unwrap(), Seen::default());
        for _ in 0..random.u8(1..5) {
            let key = some_key(random);
            match random.u8(..4) {
                0 => {
                    let value = tx.get(&key).unwrap().unwrap_or_default();
                    if !seen.appended.contains(&key) {
                        seen.lists.insert(key, list(&value));
                    }
                }
                1 => {
                    let end = [key[0], random.u8(..=NUMBERS)];
                    let rows: HashMap<_, _> =
                        scan(tx.as_ref(), key, end, 255).into_iter().collect();
                    for key in (key[1]..end[1]).map(|number| [key[0], number]) {
                        if !seen.appended.contains(&key) {
                            let value = rows.get(&key[..]).map_or(&[][..], Vec::as_slice);
                            seen.lists.insert(key, list(value));
                        }
                    }
                }
                _ if !seen.appended.contains(&key) => {
                    let mut value = tx.get(&key).unwrap().unwrap_or_default();
                    seen.lists.insert(key, list(&value));
                    value.extend(id.to_be_bytes());
                    tx.put(&key, &value);
                    seen.appended.push(key);
                }
                _ => {}
            }
            thread::yield_now();
        }
        if tx.commit().unwrap() == Commit::Done {
            done.push((id, seen));
        }
    }
    done
}

/// The edges "comes before" of what was read and written; who reads a part of a
/// list comes before who appends to it next.
fn order(done: &[(u32, Seen)], last: &HashMap<Key, Vec<u32>>) -> Vec<(u32, u32)> {
    let mut edges = Vec::new();
    for ids in last.values() {
        edges.extend(ids.windows(2).map(|pair| (pair[0], pair[1])));
    }
    for (id, seen) in done {
        for (key, read) in &seen.lists {
            let whole = last.get(key).map_or(&[][..], Vec::as_slice);
            assert!(whole.starts_with(read), "{id} read {read:?} of {whole:?}");
            edges.extend(read.last().map(|before| (*before, *id)));
            edges.extend(whole.get(read.len()).map(|after| (*id, *after)));
        }
    }
    edges.retain(|(one, other)| one != other);
    edges
}

/// How many cannot be put in an order.
fn on_cycles(done: &[(u32, Seen)], edges: &[(u32, u32)]) -> usize {
    let (mut after, mut waits): (HashMap<u32, Vec<u32>>, HashMap<u32, usize>) = Default::default();
    for (one, other) in edges {
        after.entry(*one).or_default().push(*other);
        *waits.entry(*other).or_default() += 1;
    }
    let mut free: Vec<u32> =
        done.iter().map(|(id, _)| *id).filter(|id| !waits.contains_key(id)).collect();
    let mut ordered = 0;
    while let Some(id) = free.pop() {
        ordered += 1;
        for next in after.get(&id).into_iter().flatten() {
            let left = waits.get_mut(next).unwrap();
            *left -= 1;
            if *left == 0 {
                free.push(*next);
            }
        }
    }
    done.len() - ordered
}

#[test]
fn transactions_of_many_threads_have_an_order_that_explains_what_each_read() {
    for seed in 0..6u64 {
        embedded(|engine| {
            let work = |me: u32| {
                let mut random = fastrand::Rng::with_seed(seed * 100 + u64::from(me));
                append(engine, me * 1000, &mut random)
            };
            let done: Vec<(u32, Seen)> = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|me| scope.spawn(move || work(me))).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            let keys = PREFIXES.iter().flat_map(|p| (0..NUMBERS).map(|number| [*p, number]));
            let last: HashMap<Key, Vec<u32>> = keys
                .map(|key| (key, list(&engine.get(&key).unwrap().unwrap_or_default())))
                .collect();
            for (key, ids) in &last {
                let mut found = ids.clone();
                found.sort_unstable();
                let appended =
                    |(id, seen): &(u32, Seen)| seen.appended.contains(key).then_some(*id);
                let mut expected: Vec<u32> = done.iter().filter_map(appended).collect();
                expected.sort_unstable();
                assert_eq!(found, expected, "seed {seed}: who committed is there, once");
            }
            assert!(done.len() > 100, "seed {seed}: {}", done.len());
            assert_eq!(on_cycles(&done, &order(&done, &last)), 0, "seed {seed}");
        });
    }
}

#[test]
fn nobody_sees_half_of_a_commit_while_tables_are_flushed_and_compacted() {
    const ROWS: u16 = 4000;
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::open_sized(dir.path(), 1 << 20, 1 << 20).unwrap();
    let key = |n: u16| [&b"k"[..], &n.to_be_bytes()].concat();
    let put_all = |round: u8| {
        let mut tx = engine.begin().unwrap();
        (0..ROWS).for_each(|n| tx.put(&key(n), &[round; 100]));
        assert_eq!(tx.commit().unwrap(), Commit::Done);
    };
    put_all(0);
    let ended = AtomicBool::new(false);
    // Behind the last row that a commit writes comes the first that it wrote.
    let is_whole = |reader: &dyn Reader| {
        let last = reader.get(&key(ROWS - 1)).unwrap();
        assert_eq!(reader.get(&key(0)).unwrap(), last, "half of a commit");
        thread::yield_now();
        assert_eq!(reader.get(&key(ROWS - 1)).unwrap(), last, "it changed");
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                is_whole(engine.snapshot().unwrap().as_ref());
            }
        });
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                is_whole(engine.begin().unwrap().as_ref());
            }
        });
        (1..=100).for_each(put_all);
        ended.store(true, Ordering::Relaxed);
    });
}
