//! Contents, staged rows, marks and events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::super::{
    Change, ContentCommit, ContentRecord, CopyRecord, CopyState, EventKind, EventRecord,
    MemoryEngine, MetadataError, Namespace, PinState, StagedRecord, VerifyMethod,
};
use super::{assert_sound, at, embedded, name, node, on_both, tree_over};
use crate::types::{BackendId, FileKind, Ino, cid};

fn file(tree: &Namespace, text: &str) -> Ino {
    tree.create(Ino::ROOT, &name(text), &node(FileKind::File)).unwrap().ino
}

fn copy(backend: &str, state: CopyState) -> CopyRecord {
    CopyRecord {
        backend: backend.parse::<BackendId>().unwrap(),
        state,
        at: at(4),
        method: VerifyMethod::Written,
    }
}

pub(super) fn commit(ino: Ino, version: u64, n: u8) -> ContentCommit {
    let record = ContentRecord {
        size: 10,
        tsize: 10,
        blocks: 1,
        refs: 0,
        profile: "unixfs-v1-2025".into(),
        min: 1,
        target: 2,
        max: 3,
        pin: PinState::BelowTarget,
        copies: vec![copy("local", CopyState::Verified)],
        holes: 0,
        policies: Vec::new(),
        created_s: 0,
        accessed_s: 0,
    };
    let root = Some(cid::of_raw(&[n]));
    ContentCommit {
        shared: false,
        ino,
        version,
        root,
        record,
        enqueue: true,
        size: 10,
        mtime: at(9),
    }
}

fn event(n: i64) -> EventRecord {
    EventRecord::new(at(n), EventKind::Mount, n.to_string())
}

/// What a delta would hold: rows and the numbers of events.
fn delta(tree: &Namespace) -> (Vec<Change>, Vec<u64>, super::super::MarkToken) {
    let (mut rows, mut events) = (Vec::new(), Vec::new());
    let token = tree.snapshot_rows(true, &mut |change| {
        match change {
            Change::Event(number, _) => events.push(number),
            row => rows.push(row),
        }
        Ok(())
    });
    (rows, events, token.unwrap())
}

#[test]
fn a_new_root_and_the_request_for_copies_come_in_one_commit() {
    on_both(|tree| {
        let (a, b) = (file(tree, "a"), file(tree, "b"));
        assert_eq!(tree.commit_contents(&[commit(a, 0, 1), commit(b, 0, 1)]).unwrap(), [true; 2]);
        let root = cid::of_raw(&[1]);
        assert_eq!(tree.content(&root).unwrap().unwrap().refs, 2);
        assert_eq!(tree.queue_page(None, 9).unwrap().len(), 1);
        let stats = tree.stats();
        assert_eq!((stats.pins, stats.queued, stats.bytes), (1, 1, 20));
        assert_eq!(stats.backends[&BackendId::local()], (1, 10));
        tree.commit_contents(&[commit(a, 1, 2), commit(b, 1, 2)]).unwrap();
        assert_eq!(tree.content(&root).unwrap().unwrap().refs, 0, "it waits for collection");
        let queued = tree.queue_page(None, 9).unwrap();
        assert_eq!(queued.iter().map(|(root, _)| *root).collect::<Vec<_>>(), [cid::of_raw(&[2])]);
        assert_eq!((tree.stats().pins, tree.stats().queued), (1, 1));
        assert_sound(tree);
    });
}

#[test]
fn a_lost_local_copy_is_there_again_when_the_content_is_written_again() {
    on_both(|tree| {
        let (a, b) = (file(tree, "a"), file(tree, "b"));
        tree.commit_contents(&[commit(a, 0, 1)]).unwrap();
        let root = cid::of_raw(&[1]);
        let lose = &mut |_: &_, record: &mut ContentRecord, _: &mut Option<_>| {
            record.copies = vec![copy("local", CopyState::Lost), copy("far", CopyState::Claimed)];
        };
        tree.update_contents(&[root], lose).unwrap();
        tree.commit_contents(&[commit(b, 0, 1)]).unwrap();
        let copies = tree.content(&root).unwrap().unwrap().copies;
        let wanted = [copy("local", CopyState::Verified), copy("far", CopyState::Claimed)];
        assert_eq!(copies, wanted);
        assert_sound(tree);
    });
}

#[test]
fn a_raised_policy_reaches_a_content_that_did_not_change() {
    on_both(|tree| {
        let a = file(tree, "a");
        tree.commit_contents(&[commit(a, 0, 1)]).unwrap();
        let root = cid::of_raw(&[1]);
        let settle = &mut |_: &_, record: &mut ContentRecord, row: &mut Option<_>| {
            record.pin = PinState::AtTarget;
            *row = None;
        };
        tree.update_contents(&[root], settle).unwrap();
        let mut again = commit(a, 1, 1);
        (again.record.target, again.record.max) = (4, 6);
        tree.commit_contents(&[again]).unwrap();
        let record = tree.content(&root).unwrap().unwrap();
        assert_eq!((record.refs, record.target, record.pin), (1, 4, PinState::BelowTarget));
        assert_eq!(tree.stats().queued, 1);
    });
}

#[test]
fn a_change_of_a_content_cannot_change_its_references() {
    on_both(|tree| {
        let a = file(tree, "a");
        tree.commit_contents(&[commit(a, 0, 1)]).unwrap();
        let meddle = &mut |_: &_, record: &mut ContentRecord, _: &mut Option<_>| record.refs = 7;
        tree.update_contents(&[cid::of_raw(&[1])], meddle).unwrap();
        assert_sound(tree);
    });
}

fn staged(pages: &[(u64, u8)]) -> StagedRecord {
    let pages = pages.iter().map(|(leaf, n)| (*leaf, vec![*n; 32])).collect();
    StagedRecord { size: 5 << 20, base: None, base_size: 0, mtime: at(5), pages }
}

#[test]
fn staged_pages_are_replaced_or_added_and_end_with_the_commit() {
    on_both(|tree| {
        let (a, b) = (file(tree, "a"), file(tree, "b"));
        tree.put_staged(b, &staged(&[(7, 7)])).unwrap();
        tree.put_staged(a, &staged(&[(0, 1), (300, 2)])).unwrap();
        tree.put_staged_pages(a, &staged(&[(300, 3), (2, 4)])).unwrap();
        let wanted = (a, staged(&[(0, 1), (2, 4), (300, 3)]));
        assert_eq!(tree.staged().unwrap(), [wanted, (b, staged(&[(7, 7)]))]);
        tree.put_staged(a, &staged(&[(2, 4)])).unwrap();
        assert_eq!(tree.staged().unwrap()[0], (a, staged(&[(2, 4)])));
        tree.commit_contents(&[commit(a, 0, 1)]).unwrap();
        tree.delete_staged(b).unwrap();
        assert!(tree.staged().unwrap().is_empty());
        let gone = tree.put_staged(Ino(99), &staged(&[]));
        assert!(matches!(gone, Err(MetadataError::NotFound)));
        assert_sound(tree);
    });
}

#[test]
fn a_row_that_changes_while_a_checkpoint_is_written_is_in_the_next_one() {
    on_both(|tree| {
        let a = file(tree, "a");
        let (rows, _, token) = delta(tree);
        assert_eq!(rows.len(), 3, "root, name, inode: {rows:?}");
        tree.set_xattr(a, b"user.x", b"1", (false, false), at(7)).unwrap();
        tree.clear_marks(&token).unwrap();
        let (rows, ..) = delta(tree);
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert!(rows.contains(&Change::Xattr(a, b"user.x".to_vec(), Some(b"1".to_vec()))));
    });
}

#[test]
fn a_checkpoint_that_failed_leaves_its_rows_to_the_next_each_once() {
    on_both(|tree| {
        let a = file(tree, "a");
        for _ in 0..3 {
            let _failed = delta(tree);
            tree.set_xattr(a, b"user.x", b"1", (false, false), at(7)).unwrap();
        }
        let (rows, ..) = delta(tree);
        assert_eq!(rows.len(), 4, "root, name, inode, xattr: {rows:?}");
    });
}

#[test]
fn a_visitor_that_fails_is_not_called_again() {
    on_both(|tree| {
        file(tree, "a");
        for only_marked in [true, false] {
            let mut calls = 0;
            let failed = tree.snapshot_rows(only_marked, &mut |_| {
                calls += 1;
                Err(MetadataError::NoSpace)
            });
            assert!(matches!(failed, Err(MetadataError::NoSpace)));
            assert_eq!(calls, 1);
        }
    });
}

#[test]
fn marks_stay_over_a_restart_whatever_the_clock_says() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree_over(embedded(dir.path()));
    file(&tree, "a");
    drop(tree);
    let early = Namespace::open(embedded(dir.path()), at(-1_000_000)).unwrap();
    file(&early, "b");
    let (rows, _, token) = delta(&early);
    assert_eq!(rows.len(), 5);
    early.clear_marks(&token).unwrap();
    drop(early);
    let late = tree_over(embedded(dir.path()));
    assert!(!late.has_marks().unwrap());
    file(&late, "c");
    assert_eq!(late.mark_count().unwrap(), 3);
}

#[test]
fn events_are_taken_once_and_never_get_a_number_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for life in 0..3 {
        let tree = tree_over(embedded(dir.path()));
        tree.append_event(&event(life)).unwrap();
        let (_, events, token) = delta(&tree);
        tree.append_event(&event(100 + life)).unwrap();
        tree.clear_marks(&token).unwrap();
        let (_, later, token) = delta(&tree);
        assert_eq!((events.len(), later.len()), (1, 1));
        seen.extend(events.into_iter().chain(later));
        tree.clear_marks(&token).unwrap();
        assert!(!tree.has_marks().unwrap());
    }
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
}

#[test]
fn events_that_nobody_takes_are_bounded_and_the_newest_stay() {
    let tree = tree_over(Arc::new(MemoryEngine::default()));
    let batch: Vec<EventRecord> = (0..7000).map(event).collect();
    let dropped: u64 = (0..10).map(|_| tree.append_events(&batch).unwrap()).sum();
    assert_eq!(dropped, 70_000 - 65_536);
    let (_, events, token) = delta(&tree);
    assert_eq!((events.len(), events.last()), (65_536, Some(&70_000)));
    tree.clear_marks(&token).unwrap();
    assert!(delta(&tree).1.is_empty());
}

#[test]
fn a_busy_tree_cannot_starve_the_clearing_of_marks() {
    on_both(|tree| {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    file(tree, &format!("busy{n}"));
                    n += 1;
                }
            });
            for _ in 0..10 {
                let (_, _, token) = delta(tree);
                tree.clear_marks(&token).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_sound(tree);
    });
}
