//! Quotas beside concurrency, crashes and damage; the model has the rules.

use std::sync::Arc;

use super::super::records::encode;
use super::super::{
    Engine, MemoryEngine, MetadataError, Namespace, QuotaLimits, UsageRecord, keys,
};
use super::{assert_sound, at, embedded, name, node, on_both, tree_over};
use crate::types::{FileKind, Ino};

fn limits(bytes: u64, inodes: u64) -> QuotaLimits {
    let limit = |n: u64| (n > 0).then_some(n);
    QuotaLimits { bytes: limit(bytes), inodes: limit(inodes) }
}

fn set(tree: &Namespace, ino: Ino, limits: QuotaLimits) {
    tree.set_quota(ino, limits, at(1), &mut || Ok(())).unwrap();
}

pub fn used(tree: &Namespace, ino: Ino) -> (u64, u64) {
    let quotas = tree.quotas_at(ino).unwrap();
    let quota = quotas.iter().find(|quota| quota.ino == ino).unwrap();
    (quota.bytes, quota.inodes)
}

pub fn make(tree: &Namespace, parent: Ino, text: &str, kind: FileKind) -> Ino {
    tree.create(parent, &name(text), &node(kind)).unwrap().ino
}

#[test]
fn limits_have_a_text_form_that_reads_back() {
    for some in [limits(1, 0), limits(0, 2), limits(u64::MAX, 3), limits(0, 0)] {
        assert_eq!(some.to_string().parse::<QuotaLimits>().unwrap(), some);
    }
    for bad in ["bytes", "bytes=x", "files=3", "bytes=-1"] {
        assert!(bad.parse::<QuotaLimits>().is_err(), "{bad}");
    }
}

#[test]
fn threads_side_by_side_never_exceed_a_quota_and_fill_it() {
    on_both(|tree| {
        let top = make(tree, Ino::ROOT, "top", FileKind::Directory);
        let dirs: Vec<Ino> =
            (0..4).map(|n| make(tree, top, &format!("d{n}"), FileKind::Directory)).collect();
        set(tree, top, limits(1000, 104));
        set(tree, dirs[0], limits(0, 10));
        std::thread::scope(|scope| {
            for (n, dir) in dirs.iter().enumerate() {
                scope.spawn(move || {
                    for i in 0..60 {
                        let made =
                            tree.create(*dir, &name(&format!("f{i}")), &node(FileKind::File));
                        match made {
                            Ok(made) => match tree.stage_growth(made.ino, 17, false) {
                                Ok(()) | Err(MetadataError::QuotaExceeded(_)) => {}
                                Err(error) => panic!("{error}"),
                            },
                            Err(MetadataError::QuotaExceeded(full)) => {
                                assert!(full == top || (n == 0 && full == *dir));
                            }
                            Err(error) => panic!("{error}"),
                        }
                        let (bytes, inodes) = used(tree, top);
                        assert!(bytes <= 1000 && inodes <= 104, "{bytes} {inodes}");
                    }
                });
            }
        });
        assert_eq!(used(tree, top), (1000 / 17 * 17, 104));
        assert!(used(tree, dirs[0]).1 <= 10);
        assert_sound(tree);
    });
}

#[test]
fn a_quota_set_while_others_create_and_remove_counts_exactly() {
    on_both(|tree| {
        let top = make(tree, Ino::ROOT, "top", FileKind::Directory);
        let inner = make(tree, top, "inner", FileKind::Directory);
        for i in 0..300 {
            make(tree, inner, &format!("old{i}"), FileKind::File);
        }
        std::thread::scope(|scope| {
            for n in 0..3 {
                scope.spawn(move || {
                    for i in 0..150 {
                        make(tree, inner, &format!("new{n}-{i}"), FileKind::File);
                        if n == 0 {
                            let removed = tree.unlink(inner, &name(&format!("old{i}")), at(2));
                            tree.reap(removed.unwrap().ino).unwrap();
                        }
                    }
                });
            }
            scope.spawn(move || {
                for round in 0..5 {
                    set(tree, top, limits(0, 5000));
                    set(tree, inner, limits(0, 6000));
                    if round < 4 {
                        tree.remove_quota(top, at(3)).unwrap();
                        tree.remove_quota(inner, at(3)).unwrap();
                    }
                }
            });
        });
        assert_eq!((used(tree, top).1, used(tree, inner).1), (601, 600));
        assert_sound(tree);
    });
}

#[test]
fn a_count_that_a_crash_interrupted_is_made_at_the_next_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (top, used_before) = {
        let tree = tree_over(embedded(dir.path()));
        let top = make(&tree, Ino::ROOT, "top", FileKind::Directory);
        for i in 0..20 {
            make(&tree, top, &format!("f{i}"), FileKind::File);
        }
        set(&tree, top, limits(0, 21));
        // As it stands while the count runs.
        let mut tx = tree.engine().begin().unwrap();
        let row = UsageRecord { bytes: 0, inodes: 0, counted: false };
        tx.put(&keys::number(keys::USAGE, top.0), &encode(&row));
        tx.commit().unwrap();
        tree.engine().persist().unwrap();
        (top, used(&tree, top))
    };
    let tree = tree_over(embedded(dir.path()));
    assert_eq!(used(&tree, top), used_before);
    make(&tree, top, "last", FileKind::File);
    let refused = tree.create(top, &name("more"), &node(FileKind::File)).unwrap_err();
    assert!(matches!(refused, MetadataError::QuotaExceeded(full) if full == top), "{refused}");
    assert_sound(&tree);
}

#[test]
fn what_is_used_is_the_same_after_a_reopening_and_an_orphan_is_freed_by_its_end() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
    let tree = tree_over(engine.clone());
    let top = make(&tree, Ino::ROOT, "top", FileKind::Directory);
    set(&tree, Ino::ROOT, limits(0, 100));
    set(&tree, top, limits(0, 10));
    let inner = make(&tree, top, "inner", FileKind::Directory);
    let file = make(&tree, inner, "file", FileKind::File);
    tree.unlink(inner, &name("file"), at(2)).unwrap();
    let gone = tree.rmdir(top, &name("inner"), at(2)).unwrap().ino;
    tree.reap(gone).unwrap();
    drop(tree);
    let tree = tree_over(engine);
    assert_eq!((used(&tree, Ino::ROOT).1, used(&tree, top).1), (2, 1), "the orphan counts");
    assert_sound(&tree);
    tree.reap(file).unwrap();
    assert_eq!((used(&tree, Ino::ROOT).1, used(&tree, top).1), (1, 0));
    assert_sound(&tree);
}

#[test]
fn a_wrong_count_is_found_and_counted_again() {
    on_both(|tree| {
        let top = make(tree, Ino::ROOT, "top", FileKind::Directory);
        make(tree, top, "file", FileKind::File);
        set(tree, top, limits(0, 2));
        let (key, lone) = (keys::number(keys::USAGE, top.0), keys::number(keys::USAGE, 77));
        let mut tx = tree.engine().begin().unwrap();
        tx.put(&key, &encode(&UsageRecord { bytes: 9, inodes: 7, counted: true }));
        tx.put(&lone, &encode(&UsageRecord { bytes: 9, inodes: 7, counted: true }));
        tx.commit().unwrap();
        let mut told = Vec::new();
        assert_eq!(tree.check(true, &mut |problem| told.push(problem.to_string())).unwrap(), 2);
        assert!(told[0].contains("has 0 bytes and 1 inodes"), "{told:?}");
        assert_eq!(used(tree, top), (0, 1));
        assert_sound(tree);
        make(tree, top, "second", FileKind::File);
        tree.create(top, &name("third"), &node(FileKind::File)).unwrap_err();
    });
}

#[test]
fn a_quota_is_no_attribute_and_ends_with_its_directory() {
    on_both(|tree| {
        let top = make(tree, Ino::ROOT, "top", FileKind::Directory);
        set(tree, top, limits(5, 0));
        assert!(tree.list_xattrs(top).unwrap().is_empty());
        let quota = b"system.cairn.quota";
        assert!(tree.get_xattr(top, quota).is_err());
        assert!(tree.set_xattr(top, quota, b"bytes=9", (false, false), at(2)).is_err());
        assert!(tree.remove_xattr(top, quota, at(2)).is_err());
        let file = make(tree, Ino::ROOT, "file", FileKind::File);
        let refused = tree.set_quota(file, limits(5, 0), at(2), &mut || Ok(())).unwrap_err();
        assert!(matches!(refused, MetadataError::NotADirectory(_)), "{refused}");
        tree.rmdir(Ino::ROOT, &name("top"), at(2)).unwrap();
        tree.reap(top).unwrap();
        assert!(tree.quotas_below(Ino::ROOT).unwrap().is_empty());
        assert_sound(tree);
    });
}

#[test]
fn a_quota_that_is_set_again_counts_what_a_file_without_a_name_holds() {
    on_both(|tree| {
        let top = make(tree, Ino::ROOT, "top", FileKind::Directory);
        set(tree, top, limits(0, 0));
        let file = make(tree, top, "file", FileKind::File);
        tree.stage_growth(file, 5, false).unwrap();
        tree.unlink(top, &name("file"), at(2)).unwrap();
        assert_eq!(used(tree, top), (5, 1));
        tree.remove_quota(top, at(3)).unwrap();
        set(tree, top, limits(0, 0));
        assert_eq!(used(tree, top), (5, 1));
        tree.stage_growth(file, 0, true).unwrap();
        tree.reap(file).unwrap();
        assert_eq!(used(tree, top), (0, 0));
        assert_sound(tree);
    });
}

#[test]
fn a_quota_that_is_set_again_counts_what_was_written_while_there_was_none() {
    on_both(|tree| {
        let top = make(tree, Ino::ROOT, "top", FileKind::Directory);
        set(tree, top, limits(0, 0));
        let file = make(tree, top, "file", FileKind::File);
        tree.unlink(top, &name("file"), at(2)).unwrap();
        tree.remove_quota(top, at(3)).unwrap();
        tree.stage_growth(file, 5, false).unwrap();
        set(tree, top, limits(0, 0));
        assert_eq!(used(tree, top), (5, 1));
        tree.stage_growth(file, 7, true).unwrap();
        assert_eq!(used(tree, top), (7, 1));
        tree.stage_growth(file, 0, true).unwrap();
        tree.reap(file).unwrap();
        assert_eq!(used(tree, top), (0, 0));
        assert_sound(tree);
    });
}
