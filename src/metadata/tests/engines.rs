//! What every engine must do; each test runs on both.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use proptest::prelude::*;

use super::super::{Commit, EmbeddedEngine, Engine, MemoryEngine, MetadataError, Reader, transact};

fn engines(test: impl Fn(&dyn Engine)) {
    test(&MemoryEngine::default());
    let dir = tempfile::tempdir().unwrap();
    test(&EmbeddedEngine::open(dir.path(), 1 << 20).unwrap());
}

fn rows(reader: &dyn Reader, start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    reader
        .scan(start, end, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

fn put(engine: &dyn Engine, pairs: &[(&[u8], &[u8])]) {
    let mut tx = engine.begin().unwrap();
    pairs.iter().for_each(|(key, value)| tx.put(key, value));
    assert_eq!(tx.commit().unwrap(), Commit::Done);
}

#[test]
fn a_transaction_sees_its_own_writes_and_nobody_else_does_before_the_commit() {
    engines(|engine| {
        put(engine, &[(b"a", b"1"), (b"c", b"3")]);
        let mut tx = engine.begin().unwrap();
        tx.put(b"b", b"2");
        tx.delete(b"c");
        assert_eq!(tx.get(b"b").unwrap().unwrap(), b"2");
        assert_eq!(tx.get(b"c").unwrap(), None);
        let seen = rows(tx.as_ref(), b"a", b"z");
        assert_eq!(seen, [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
        assert_eq!(engine.get(b"b").unwrap(), None);
        assert_eq!(engine.get(b"c").unwrap().unwrap(), b"3");
        assert_eq!(tx.commit().unwrap(), Commit::Done);
        assert_eq!(engine.get(b"b").unwrap().unwrap(), b"2");
        assert_eq!(engine.get(b"c").unwrap(), None);
    });
}

#[test]
fn a_dropped_transaction_leaves_nothing() {
    engines(|engine| {
        let mut tx = engine.begin().unwrap();
        tx.put(b"a", b"1");
        drop(tx);
        assert_eq!(engine.get(b"a").unwrap(), None);
    });
}

#[test]
fn a_snapshot_stays_as_it_was() {
    engines(|engine| {
        put(engine, &[(b"a", b"1"), (b"b", b"1")]);
        let before = engine.snapshot().unwrap();
        put(engine, &[(b"a", b"2"), (b"c", b"2")]);
        assert_eq!(before.get(b"a").unwrap().unwrap(), b"1");
        assert_eq!(before.get(b"c").unwrap(), None);
        assert_eq!(rows(before.as_ref(), b"a", b"z").len(), 2);
        assert_eq!(rows(engine.snapshot().unwrap().as_ref(), b"a", b"z").len(), 3);
    });
}

#[test]
fn a_scan_is_in_byte_order_half_open_and_stops_when_told() {
    engines(|engine| {
        put(engine, &[(b"a", b""), (b"a\x00", b""), (b"a\xff", b""), (b"b", b""), (b"B", b"")]);
        let keys = |start: &[u8], end: &[u8]| -> Vec<Vec<u8>> {
            let snapshot = engine.snapshot().unwrap();
            rows(snapshot.as_ref(), start, end).into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys(b"a", b"b"), [b"a".to_vec(), b"a\x00".to_vec(), b"a\xff".to_vec()]);
        assert_eq!(keys(b"a\x00", b"a\xff"), [b"a\x00".to_vec()]);
        assert!(keys(b"b", b"a").is_empty());
        assert!(keys(b"a", b"a").is_empty());
        let mut visits = 0;
        let stop = &mut |_: &[u8], _: &[u8]| {
            visits += 1;
            ControlFlow::Break(())
        };
        engine.snapshot().unwrap().scan(b"a", b"z", stop).unwrap();
        assert_eq!(visits, 1);
    });
}

#[test]
fn an_empty_value_is_a_value() {
    engines(|engine| {
        put(engine, &[(b"a", b"")]);
        assert_eq!(engine.get(b"a").unwrap(), Some(Vec::new()));
    });
}

#[test]
fn a_changed_key_that_was_read_is_a_conflict_and_then_nothing_is_written() {
    engines(|engine| {
        put(engine, &[(b"a", b"1")]);
        for (read, changed, conflict) in
            [(b"a", b"a", true), (b"n", b"n", true), (b"a", b"x", false)]
        {
            let mut tx = engine.begin().unwrap();
            tx.get(read).unwrap();
            tx.put(b"w", read);
            put(engine, &[(changed, b"2")]);
            let expected = if conflict { Commit::Conflict } else { Commit::Done };
            assert_eq!(tx.commit().unwrap(), expected, "{read:?} {changed:?}");
            if conflict {
                assert_eq!(engine.get(b"w").unwrap(), None);
            }
        }
    });
}

#[test]
fn a_new_or_removed_key_in_a_range_that_was_read_is_a_conflict() {
    engines(|engine| {
        put(engine, &[(b"d1", b""), (b"d5", b""), (b"e", b"")]);
        let attempt = |change: &dyn Fn()| {
            let mut tx = engine.begin().unwrap();
            rows(tx.as_ref(), b"d", b"e");
            tx.put(b"w", b"");
            change();
            tx.commit().unwrap()
        };
        assert_eq!(attempt(&|| put(engine, &[(b"d3", b"")])), Commit::Conflict);
        assert_eq!(attempt(&|| put(engine, &[(b"e", b"2")])), Commit::Done);
        let remove = || {
            let mut tx = engine.begin().unwrap();
            tx.delete(b"d5");
            assert_eq!(tx.commit().unwrap(), Commit::Done);
        };
        assert_eq!(attempt(&remove), Commit::Conflict);
    });
}

#[test]
fn blind_writes_of_one_key_do_not_conflict() {
    engines(|engine| {
        let mut tx = engine.begin().unwrap();
        tx.put(b"a", b"1");
        put(engine, &[(b"a", b"2")]);
        assert_eq!(tx.commit().unwrap(), Commit::Done);
        assert_eq!(engine.get(b"a").unwrap().unwrap(), b"1");
    });
}

#[test]
fn keys_of_the_block_index_live_beside_the_others() {
    engines(|engine| {
        put(engine, &[(b"B1", b"x"), (b"C1", b"y"), (b"P1", b"z"), (b"Q1", b"q")]);
        let snapshot = engine.snapshot().unwrap();
        assert_eq!(rows(snapshot.as_ref(), b"B", b"C"), [(b"B1".to_vec(), b"x".to_vec())]);
        assert_eq!(rows(snapshot.as_ref(), b"C", b"D"), [(b"C1".to_vec(), b"y".to_vec())]);
        assert_eq!(rows(snapshot.as_ref(), b"P", b"Q"), [(b"P1".to_vec(), b"z".to_vec())]);
    });
}

#[test]
fn counters_of_many_threads_lose_no_increment() {
    const THREADS: u64 = 4;
    const EACH: u64 = 100;
    engines(|engine| {
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let increment = |tx: &mut dyn super::super::Transaction| {
                            let old = tx
                                .get(b"n")?
                                .map_or(0, |v| v[..].try_into().map_or(0, u64::from_be_bytes));
                            tx.put(b"n", &(old + 1).to_be_bytes());
                            Ok(())
                        };
                        // The loser tries again for as long as it takes.
                        while let Err(error) = transact(engine, increment) {
                            assert!(matches!(error, MetadataError::Contended), "{error}");
                        }
                    }
                });
            }
        });
        let total = engine.get(b"n").unwrap().unwrap();
        assert_eq!(u64::from_be_bytes(total.try_into().unwrap()), THREADS * EACH);
    });
}

#[test]
fn write_skew_over_ranges_is_impossible() {
    // Each thread adds its row only when the range is empty: one may succeed.
    engines(|engine| {
        for round in 0..20u8 {
            let barrier = Barrier::new(3);
            let won = AtomicU64::new(0);
            thread::scope(|scope| {
                for me in 0..3u8 {
                    let (barrier, won) = (&barrier, &won);
                    scope.spawn(move || {
                        let mut tx = engine.begin().unwrap();
                        let empty =
                            rows(tx.as_ref(), &[b'k', round], &[b'k', round + 1]).is_empty();
                        barrier.wait();
                        if empty {
                            tx.put(&[b'k', round, me], b"");
                            if tx.commit().unwrap() == Commit::Done {
                                won.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            });
            assert_eq!(won.load(Ordering::Relaxed), 1, "round {round}");
        }
    });
}

#[test]
fn persists_of_many_threads_all_return() {
    engines(|engine| {
        thread::scope(|scope| {
            for me in 0..6u8 {
                scope.spawn(move || {
                    for n in 0..10u8 {
                        put(engine, &[(&[b'k', me, n], b"v")]);
                        engine.persist().unwrap();
                    }
                });
            }
        });
        assert_eq!(rows(engine.snapshot().unwrap().as_ref(), b"k", b"l").len(), 60);
    });
}

#[test]
fn the_embedded_engine_keeps_rows_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..3u8 {
        let engine = EmbeddedEngine::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(rows(engine.snapshot().unwrap().as_ref(), b"k", b"l").len(), usize::from(n));
        put(&engine, &[(&[b'k', n], b"v"), (&[b'B', n], b"v")]);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Get(u8),
    Scan(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..16, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        (0u8..16).prop_map(Step::Delete),
        (0u8..16).prop_map(Step::Get),
        (0u8..16, 0u8..16).prop_map(|(a, b)| Step::Scan(a, b)),
    ]
}

/// Runs transactions, and shows what each read, against a map.
fn agrees_with_a_map(engine: &dyn Engine, transactions: &[(Vec<Step>, bool)]) {
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for (steps, commits) in transactions {
        let mut tx = engine.begin().unwrap();
        let mut view = model.clone();
        for step in steps {
            match *step {
                Step::Put(key, value) => {
                    tx.put(&[b'k', key], &[value]);
                    view.insert(vec![b'k', key], vec![value]);
                }
                Step::Delete(key) => {
                    tx.delete(&[b'k', key]);
                    view.remove(&vec![b'k', key]);
                }
                Step::Get(key) => {
                    assert_eq!(tx.get(&[b'k', key]).unwrap().as_ref(), view.get(&vec![b'k', key]));
                }
                Step::Scan(start, end) => {
                    let expected: Vec<_> = view
                        .iter()
                        .filter(|(key, _)| key[1] >= start && key[1] < end)
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect();
                    assert_eq!(rows(tx.as_ref(), &[b'k', start], &[b'k', end]), expected);
                }
            }
        }
        if *commits {
            assert_eq!(tx.commit().unwrap(), Commit::Done, "nobody else writes");
            model = view;
        }
    }
    let all: Vec<_> = model.into_iter().collect();
    assert_eq!(rows(engine.snapshot().unwrap().as_ref(), b"k", b"l"), all);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn engines_agree_with_a_map(
        transactions in prop::collection::vec((prop::collection::vec(step(), 0..8), prop::bool::weighted(0.8)), 0..24)
    ) {
        engines(|engine| agrees_with_a_map(engine, &transactions));
    }
}

#[test]
fn an_engine_is_shared_between_threads() {
    fn shared<T: Send + Sync + ?Sized>(_: &Arc<T>) {}
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
    shared(&engine);
}
