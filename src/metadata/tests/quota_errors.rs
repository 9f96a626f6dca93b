//! Quotas over an engine that fails or waits, and over damaged rows.

use std::sync::Arc;

use super::super::{MetadataError, Namespace, QuotaLimits, keys};
use super::failing::{FailingEngine, Fails};
use super::quotas::{make, used};
use super::rows::commit;
use super::{assert_sound, at, name, node, on_both, tree_over};
use crate::types::{FileKind, Ino};

fn inodes(limit: u64) -> QuotaLimits {
    QuotaLimits { bytes: None, inodes: Some(limit) }
}

/// A directory with one in it, which has a file.
fn small_tree(tree: &Namespace) -> (Ino, Ino, Ino) {
    let top = make(tree, Ino::ROOT, "top", FileKind::Directory);
    let inner = make(tree, top, "inner", FileKind::Directory);
    let file = make(tree, inner, "file", FileKind::File);
    (top, inner, file)
}

fn delete_row(tree: &Namespace, key: &[u8]) {
    let mut tx = tree.engine().begin().unwrap();
    tx.delete(key);
    tx.commit().unwrap();
}

#[test]
fn a_quota_that_could_not_be_counted_is_taken_back_or_counted_when_it_is_set_again() {
    for which in 0..4 {
        for lasting in [false, true] {
            let engine = Arc::new(FailingEngine::default());
            let tree = tree_over(engine.clone());
            let (top, inner, file) = small_tree(&tree);
            let fails = match which {
                0 => Fails::Commit(0),
                1 => Fails::Snapshot,
                2 => Fails::Read(keys::inode(inner)),
                _ => Fails::Commit(1),
            };
            // It was written before the quota was set.
            let set = |limit| {
                let mut stage = || tree.stage_growth(file, 5, true);
                tree.set_quota(top, inodes(limit), at(1), &mut stage)
            };
            engine.fail(fails.clone(), lasting);
            let failed = set(3).unwrap_err();
            assert!(matches!(failed, MetadataError::Storage(_)), "{fails:?}: {failed}");
            engine.heal();
            let left = tree.quotas_below(Ino::ROOT).unwrap().len();
            let stuck = lasting && fails == Fails::Commit(1);
            assert_eq!(left, usize::from(stuck), "{fails:?}, lasting: {lasting}");
            for n in 0..2 {
                make(&tree, inner, &format!("between{n}"), FileKind::File);
            }
            set(3).unwrap();
            assert_eq!(used(&tree, top), (5, 4), "{fails:?}, lasting: {lasting}");
            let refused = tree.create(inner, &name("more"), &node(FileKind::File)).unwrap_err();
            assert!(matches!(refused, MetadataError::QuotaExceeded(full) if full == top));
            tree.stage_growth(file, 0, true).unwrap();
            assert_eq!(used(&tree, top), (0, 4));
            assert_sound(&tree);
        }
    }
}

#[test]
fn a_count_that_cannot_read_a_directory_fails_and_stores_nothing() {
    let engine = Arc::new(FailingEngine::default());
    let tree = tree_over(engine.clone());
    let (top, inner, _) = small_tree(&tree);
    tree.set_quota(top, inodes(9), at(1), &mut || Ok(())).unwrap();
    engine.fail(Fails::Read(keys::inode(inner)), false);
    let failed = tree.recount_quotas().unwrap_err();
    assert!(matches!(failed, MetadataError::Storage(_)), "{failed}");
    assert_eq!(used(&tree, top), (0, 2));
    assert_sound(&tree);
}

#[test]
fn what_hangs_in_a_directory_that_does_not_exist_is_damaged_and_nobody_waits() {
    on_both(|tree| {
        let (top, inner, file) = small_tree(tree);
        tree.set_quota(top, inodes(9), at(1), &mut || Ok(())).unwrap();
        delete_row(tree, &keys::inode(inner));
        for forced in [false, true] {
            let failed = tree.stage_growth(file, 5, forced).unwrap_err();
            assert!(matches!(failed, MetadataError::Damaged { .. }), "{failed}");
        }
        let failed = tree.commit_contents(&[commit(file, 0, 1)]).unwrap_err();
        assert!(matches!(failed, MetadataError::Damaged { .. }), "{failed}");
        assert_eq!(used(tree, top).0, 0);
    });
}

#[test]
fn a_commit_of_one_file_that_is_refused_says_why_and_leaves_nothing() {
    on_both(|tree| {
        let (top, _, file) = small_tree(tree);
        let bytes = QuotaLimits { bytes: Some(9), inodes: None };
        tree.set_quota(top, bytes, at(1), &mut || Ok(())).unwrap();
        let (stats, row) = (tree.stats(), tree.inode(file).unwrap());
        let refused = tree.commit_contents(&[commit(file, 0, 1)]).unwrap_err();
        assert!(matches!(refused, MetadataError::QuotaExceeded(full) if full == top), "{refused}");
        assert_eq!((tree.stats(), tree.inode(file).unwrap()), (stats, row));
        assert_eq!(used(tree, top), (0, 2));
        assert!(tree.contents_page(None, 9).unwrap().is_empty());
        assert!(tree.queue_page(None, 9).unwrap().is_empty());
        assert_sound(tree);
        tree.set_quota(top, QuotaLimits::default(), at(1), &mut || Ok(())).unwrap();
        assert_eq!(tree.commit_contents(&[commit(file, 0, 1)]).unwrap(), [true]);
        assert_eq!(used(tree, top), (10, 2));
    });
}

#[test]
fn who_waits_for_the_engine_holds_no_lock() {
    let engine = Arc::new(FailingEngine::default());
    let tree = tree_over(engine.clone());
    let (top, inner, file) = small_tree(&tree);
    tree.set_quota(top, inodes(9), at(1), &mut || Ok(())).unwrap();
    engine.behind(true);
    std::thread::scope(|scope| {
        scope.spawn(|| make(&tree, inner, "more", FileKind::File));
        scope.spawn(|| tree.unlink(inner, &name("file"), at(2)).unwrap());
        scope.spawn(|| tree.remove_quota(inner, at(2)).unwrap_err());
        engine.wait_for_waiting(3);
        // All that needs the commit lock, the quotas' or that of numbers goes on.
        assert_eq!(tree.stats().files, 1);
        tree.stage_growth(file, 5, false).unwrap();
        assert_eq!(used(&tree, top), (5, 2));
        let mut rows = 0;
        tree.snapshot_rows(true, &mut |_| {
            rows += 1;
            Ok(())
        })
        .unwrap();
        assert!(rows > 0);
        engine.behind(false);
    });
    tree.stage_growth(file, 0, true).unwrap();
    assert_eq!(used(&tree, top), (0, 3));
    assert_sound(&tree);
}
