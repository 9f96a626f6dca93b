//! The indexes of pins: what is listed, at what cost, and how an older tree gets them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::records::decode;
use super::super::{
    BackendRecord, Commit, ContentCommit, ContentRecord, CopyRecord, CopyState, Engine,
    MemoryEngine, MetadataError, Namespace, PinOrder, PinState, QueueRecord, VerifyMethod, keys,
};
use super::{assert_sound, at, name, node, on_both, tree_over};
use crate::types::{BackendId, Cid, FileKind, Ino, cid};

fn copy(backend: &str, state: CopyState) -> CopyRecord {
    CopyRecord { backend: backend.parse().unwrap(), state, at: at(9), method: VerifyMethod::None }
}

fn record(pin: PinState, copies: Vec<CopyRecord>) -> ContentRecord {
    ContentRecord {
        size: 5,
        tsize: 5,
        blocks: 1,
        refs: 0,
        profile: String::new(),
        min: 2,
        target: 3,
        max: 4,
        pin,
        copies,
        holes: 0,
        policies: Vec::new(),
        created_s: 40,
        accessed_s: 0,
    }
}

/// A file with a content.
fn add(tree: &Namespace, text: &str, record: ContentRecord, enqueue: bool) -> (Ino, Cid) {
    let ino = tree.create(Ino::ROOT, &name(text), &node(FileKind::File)).unwrap().ino;
    let root = cid::of_raw(text.as_bytes());
    let commit = ContentCommit {
        shared: false,
        ino,
        version: 0,
        root: Some(root),
        record,
        enqueue,
        size: 5,
        mtime: at(30),
    };
    assert_eq!(tree.commit_contents(&[commit]).unwrap(), [true]);
    (ino, root)
}

/// One of each kind: by state, with and without a row, with bad copies, unlinked.
fn sample(tree: &Namespace) {
    use CopyState::{Claimed, Corrupt, Lost, Verified};
    let local = || copy("local", Verified);
    add(tree, "new", record(PinState::BelowMin, vec![local()]), true);
    add(tree, "alone", record(PinState::BelowMin, vec![local()]), false);
    let two = vec![local(), copy("b", Claimed)];
    add(tree, "short", record(PinState::BelowTarget, two), true);
    let bad = vec![local(), copy("b", Corrupt), copy("c", Lost), copy("d", Verified)];
    add(tree, "damaged", record(PinState::AtTarget, bad), false);
    let many = vec![local(), copy("b", Verified), copy("c", Verified), copy("d", Verified)];
    let (_, root) = add(tree, "many", record(PinState::OverMax, many.clone()), false);
    tree.update_contents(&[root], &mut |_, _, row| {
        *row = Some(QueueRecord {
            attempts: 3,
            not_before: at(99),
            last_error: "d: no".into(),
            ..QueueRecord::new(at(20))
        });
    })
    .unwrap();
    add(tree, "good", record(PinState::AtTarget, many), false);
    add(tree, "gone", record(PinState::BelowMin, vec![copy("b", Lost)]), true);
    tree.unlink(Ino::ROOT, &name("gone"), at(31)).unwrap();
}

/// An engine with the rows of a tree of format 4: each key and value behind its length.
fn of_format_4() -> Arc<dyn Engine> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/tree-4");
    let bytes = std::fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut part = || {
        let (length, more) = rest.split_first_chunk::<4>()?;
        let (part, more) = more.split_at(u32::from_be_bytes(*length) as usize);
        rest = more;
        Some(part)
    };
    let engine = MemoryEngine::default();
    let mut tx = engine.begin().unwrap();
    while let Some(key) = part() {
        tx.put(key, part().unwrap());
    }
    assert_eq!(tx.commit().unwrap(), Commit::Done);
    Arc::new(engine)
}

fn keys_of(tree: &Namespace, table: u8) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut keep = |key: &[u8], _: &[u8]| {
        found.push(key.to_vec());
        ControlFlow::Continue(())
    };
    tree.engine().snapshot().unwrap().scan(&[table], &[table + 1], &mut keep).unwrap();
    found
}

fn put(tree: &Namespace, key: &[u8], value: &[u8]) {
    let mut tx = tree.engine().begin().unwrap();
    tx.put(key, value);
    assert_eq!(tx.commit().unwrap(), Commit::Done);
}

#[test]
fn a_tree_of_format_4_gets_its_indexes_when_it_is_opened() {
    let fresh = tree_over(Arc::new(MemoryEngine::default()));
    sample(&fresh);
    // Then a row began at its file's own time.
    fresh
        .update_all_contents(&mut |_, _, row| {
            if let Some(row) = row.as_mut().filter(|row| row.since.seconds == 40) {
                row.since = at(30);
            }
        })
        .unwrap();
    let tree = tree_over(of_format_4());
    assert_sound(&tree);
    assert_eq!(tree.stats(), fresh.stats());
    assert_eq!((tree.stats().corrupt, tree.stats().lost), (1, 2));
    let trusted = |id: &str| tree.stats().trusted.get(&id.parse().unwrap()).copied();
    assert_eq!((trusted("b"), trusted("c")), (Some((2, 1)), Some((2, 0))));
    for table in [keys::AT_RISK, keys::DAMAGED] {
        assert!(!keys_of(&tree, table).is_empty());
        assert_eq!(keys_of(&tree, table), keys_of(&fresh, table));
    }
    let format = tree.engine().get(keys::FORMAT).unwrap().unwrap();
    assert_eq!(decode::<u32>(keys::FORMAT, &format).unwrap(), 7);
}

#[test]
fn an_upgrade_that_was_cut_off_begins_anew() {
    let engine = of_format_4();
    let wanted = keys_of(&tree_over(of_format_4()), keys::AT_RISK);
    {
        // Of a try before, and of contents that an older program changed since.
        let tree = tree_over(Arc::new(MemoryEngine::default()));
        for n in 0..1500u32 {
            add(&tree, &n.to_string(), record(PinState::BelowMin, Vec::new()), false);
        }
        let mut tx = engine.begin().unwrap();
        keys_of(&tree, keys::AT_RISK).iter().for_each(|key| tx.put(key, &[]));
        assert_eq!(tx.commit().unwrap(), Commit::Done);
    }
    let tree = tree_over(Arc::clone(&engine));
    assert_eq!(keys_of(&tree, keys::AT_RISK), wanted);
    assert_sound(&tree);
}

/// All pages of a list, with each page's bound held.
fn listed(
    tree: &Namespace,
    order: &PinOrder,
    (limit, most): (usize, usize),
    wanted: &mut dyn FnMut(&Cid, &ContentRecord) -> bool,
) -> Vec<Cid> {
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let page = tree.pins_page(order, after.as_deref(), (limit, most), wanted).unwrap();
        assert!(page.pins.len() <= limit && page.examined <= most, "{page:?}");
        found.extend(page.pins.iter().map(|pin| pin.root));
        let Some(next) = page.next else { return found };
        assert!(order.has(&next) && after.is_none_or(|after| next > after), "it does not move on");
        after = Some(next);
    }
}

#[test]
fn lists_come_page_by_page_whatever_the_pages_are() {
    on_both(|tree| {
        sample(tree);
        let root = |text: &str| cid::of_raw(text.as_bytes());
        let of = |order: &PinOrder| {
            let whole = listed(tree, order, (100, 100), &mut |_, _| true);
            for pages in [(1, 1), (1, 100), (2, 3), (100, 1)] {
                assert_eq!(listed(tree, order, pages, &mut |_, _| true), whole, "{order:?}");
            }
            whole
        };
        let all = of(&PinOrder::all());
        assert_eq!(all.len() as u64, tree.stats().pins);
        let below_min = of(&PinOrder::InState(PinState::BelowMin));
        // As risky as others, and for longer: its age is its content's.
        assert_eq!(below_min, [root("gone"), root("new"), root("alone")]);
        assert_eq!(of(&PinOrder::InState(PinState::BelowTarget)), [root("short")]);
        assert_eq!(of(&PinOrder::InState(PinState::AtTarget)), []);
        let waiting = of(&PinOrder::Waiting);
        // By verified copies, then by age; what lacks none comes last.
        let mut alike = [root("new"), root("short")];
        alike.sort_by_key(Cid::to_bytes);
        assert_eq!(waiting, [root("gone"), alike[0], alike[1], root("many")]);
        assert_eq!(of(&PinOrder::ByRisk), [waiting, vec![root("alone")]].concat());
        let damaged = |state, id: Option<&str>| {
            of(&PinOrder::Damaged(state, id.map(|id| id.parse().unwrap())))
        };
        assert_eq!(damaged(CopyState::Corrupt, None), [root("damaged")]);
        assert_eq!(damaged(CopyState::Corrupt, Some("b")), [root("damaged")]);
        assert_eq!(damaged(CopyState::Corrupt, Some("c")), []);
        assert_eq!(damaged(CopyState::Lost, None), [root("gone"), root("damaged")]);
    });
}

#[test]
fn what_waits_is_listed_by_verified_copies_that_count_then_by_age() {
    on_both(|tree| {
        use CopyState::{Claimed, Verified};
        let mut roots = Vec::new();
        for (n, verified) in [(1, 2), (2, 1), (3, 1), (4, 0)] {
            let mut copies = vec![copy("local", Claimed), copy("b", Claimed), copy("c", Claimed)];
            copies.iter_mut().take(verified).for_each(|copy| copy.state = Verified);
            let record = ContentRecord {
                created_s: 100 - n,
                target: 4,
                ..record(PinState::BelowTarget, copies)
            };
            roots.push(add(tree, &n.to_string(), record, true).1);
        }
        let waiting = |tree: &Namespace| listed(tree, &PinOrder::Waiting, (9, 9), &mut |_, _| true);
        // The time is that of the commit, not the file's own.
        assert_eq!(tree.queue_row(&roots[0]).unwrap().unwrap().since.seconds, 99);
        assert_eq!(waiting(tree), [roots[3], roots[2], roots[1], roots[0]]);
        // Its copies are counted by those who know what they are worth.
        tree.update_contents(&roots[..1], &mut |_, _, row| {
            if let Some(row) = row {
                row.verified = 0;
            }
        })
        .unwrap();
        assert_eq!(waiting(tree), [roots[3], roots[0], roots[2], roots[1]]);
        assert_sound(tree);
    });
}

#[test]
fn copies_are_counted_as_a_look_at_all_contents_counts_them() {
    on_both(|tree| {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut files, mut now) = (Vec::new(), 10);
        let mut trusted = [at(0), at(0), at(0)];
        let states = [
            CopyState::Claimed,
            CopyState::Verified,
            CopyState::Corrupt,
            CopyState::Lost,
            CopyState::Released,
        ];
        let one = |random: &mut fastrand::Rng, now: i64| {
            let state = states[random.usize(..states.len())];
            CopyRecord { at: at(now), ..copy(&format!("b{}", random.u8(0..3)), state) }
        };
        for step in 0..300u32 {
            now += random.i64(0..3);
            match random.u8(0..10) {
                0..=3 => {
                    let copies = vec![one(&mut random, now), copy("local", CopyState::Verified)];
                    files.push(
                        add(tree, &step.to_string(), record(PinState::BelowTarget, copies), true).1,
                    );
                }
                4..=7 if !files.is_empty() => {
                    let new = one(&mut random, now);
                    let root = files[random.usize(..files.len())];
                    tree.update_contents(&[root], &mut |_, record, _| {
                        record.copies.retain(|copy| copy.backend != new.backend);
                        record.copies.push(new.clone());
                    })
                    .unwrap();
                }
                8 if step > 20 => {
                    let gone = random.u32(0..step);
                    let gone = tree.unlink(Ino::ROOT, &name(&gone.to_string()), at(now));
                    // There may be none of this name.
                    assert!(matches!(gone, Ok(_) | Err(MetadataError::NotFound)), "{gone:?}");
                }
                _ => {
                    // The backend comes back after a long time.
                    now += 1;
                    let n = random.usize(0..3);
                    trusted[n] = at(now);
                    let record = BackendRecord { trusted_since: at(now), ..Default::default() };
                    tree.set_backend_record(&format!("b{n}").parse().unwrap(), Some(&record))
                        .unwrap();
                }
            }
        }
        let mut found: BTreeMap<BackendId, (u64, u64)> = BTreeMap::new();
        tree.each_content(&mut |_, record| {
            for copy in record.good_copies().filter(|_| record.refs > 0) {
                let n: usize = copy.backend.as_str()[1..].parse().unwrap_or(usize::MAX);
                if copy.at >= trusted.get(n).copied().unwrap_or_default() {
                    let (verified, claimed) = found.entry(copy.backend.clone()).or_default();
                    *if copy.state == CopyState::Verified { verified } else { claimed } += 1;
                }
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(tree.stats().trusted, found, "seed {seed}");
        assert_sound(tree);
        let again = Namespace::open(Arc::clone(tree.engine()), at(now)).unwrap();
        assert_eq!(again.stats(), tree.stats());
    });
}

#[test]
fn a_page_looks_at_no_more_rows_than_it_may_however_few_are_wanted() {
    on_both(|tree| {
        let good = || record(PinState::AtTarget, vec![copy("local", CopyState::Verified)]);
        for n in 0..300u32 {
            add(tree, &n.to_string(), good(), false);
        }
        let (_, rare) = add(tree, "rare", record(PinState::BelowMin, Vec::new()), false);
        // One of 301 by its state: one row. By anything else: as many as a page may.
        let page = |order: &PinOrder, wanted: &mut dyn FnMut(&Cid, &ContentRecord) -> bool| {
            tree.pins_page(order, None, (100, 50), wanted).unwrap()
        };
        let found = page(&PinOrder::InState(PinState::BelowMin), &mut |_, _| true);
        assert_eq!((found.pins[0].root, found.examined, found.next), (rare, 1, None));
        let found = page(&PinOrder::all(), &mut |_, record| record.size == 0);
        assert_eq!((found.pins.len(), found.examined), (0, 50));
        assert!(found.next.is_some());
        let mut wanted = |root: &Cid, _: &ContentRecord| *root == rare;
        assert_eq!(listed(tree, &PinOrder::all(), (100, 50), &mut wanted), [rare]);
        // By a range of CIDs: only rows in it.
        let bytes = rare.to_bytes();
        let order = PinOrder::ByCid(bytes[..6].to_vec(), keys::end_of(&bytes[..6]));
        let found = page(&order, &mut |_, _| true);
        assert_eq!((found.pins[0].root, found.next), (rare, None));
        assert!(found.examined < 3);
    });
}

#[test]
fn rows_of_the_indexes_that_are_wrong_are_found_and_set_right() {
    let damages: [fn(&Namespace); 4] = [
        |tree: &Namespace| {
            let key = keys_of(tree, keys::AT_RISK)[0].clone();
            let mut tx = tree.engine().begin().unwrap();
            tx.delete(&key);
            tx.commit().unwrap();
        },
        |tree: &Namespace| {
            let mut key = keys_of(tree, keys::AT_RISK)[0].clone();
            key[3] += 1;
            put(tree, &key, &[]);
        },
        |tree: &Namespace| {
            let mut key = keys_of(tree, keys::DAMAGED)[0].clone();
            key[2] = b'z';
            put(tree, &key, &[]);
        },
        |tree: &Namespace| put(tree, &[keys::DAMAGED, 2, b'x'], &[]),
    ];
    for damage in damages {
        let tree = tree_over(Arc::new(MemoryEngine::default()));
        sample(&tree);
        damage(&tree);
        assert!(tree.check(true, &mut |_| ()).unwrap() > 0);
        assert_sound(&tree);
    }
}
