//! Rules of names and links that the model does not show, on both engines.

use std::sync::Arc;
use std::thread;

use super::super::{
    EmbeddedEngine, MemoryEngine, MetadataError, Namespace, NewNode, RenameMode, SetAttributes,
};
use super::{assert_sound, at, embedded, name, node, on_both, tree_over};
use crate::types::{FileKind, Ino};

const FILE: FileKind = FileKind::File;
const DIRECTORY: FileKind = FileKind::Directory;

fn make(tree: &Namespace, parent: Ino, text: &str, kind: FileKind) -> Ino {
    tree.create(parent, &name(text), &node(kind)).unwrap().ino
}

#[test]
fn a_new_tree_has_a_root_and_nothing_else() {
    on_both(|tree| {
        let root = tree.inode(Ino::ROOT).unwrap();
        assert_eq!((root.kind, root.nlink, root.entries), (DIRECTORY, 2, 0));
        assert_eq!((tree.stats().files, tree.stats().directories), (0, 1));
        assert_sound(tree);
    });
}

#[test]
fn a_setgid_directory_gives_its_group_to_all_and_its_bit_to_directories() {
    on_both(|tree| {
        let shared = NewNode { mode: 0o2775, gid: 77, ..node(DIRECTORY) };
        let shared = tree.create(Ino::ROOT, &name("shared"), &shared).unwrap().ino;
        let file = tree.create(shared, &name("f"), &node(FILE)).unwrap().inode;
        let folder = tree.create(shared, &name("d"), &node(DIRECTORY)).unwrap().inode;
        assert_eq!((file.gid, file.mode), (77, 0o755));
        assert_eq!((folder.gid, folder.mode), (77, 0o2755));
    });
}

#[test]
fn times_and_counts_of_a_directory_follow_its_entries() {
    on_both(|tree| {
        let dir = make(tree, Ino::ROOT, "d", DIRECTORY);
        let new = NewNode { now: at(50), ..node(DIRECTORY) };
        tree.create(dir, &name("sub"), &new).unwrap();
        let row = tree.inode(dir).unwrap();
        assert_eq!((row.nlink, row.entries, row.size), (3, 1, 3));
        assert_eq!((row.atime, row.mtime, row.ctime), (at(1), at(50), at(50)));
        tree.rmdir(dir, &name("sub"), at(60)).unwrap();
        let row = tree.inode(dir).unwrap();
        assert_eq!((row.nlink, row.entries, row.size, row.mtime), (2, 0, 0, at(60)));
    });
}

#[test]
fn cookies_start_at_16_are_never_reused_and_a_rename_keeps_the_place() {
    on_both(|tree| {
        make(tree, Ino::ROOT, "a", FILE);
        make(tree, Ino::ROOT, "b", FILE);
        assert_eq!(tree.lookup(Ino::ROOT, &name("a")).unwrap().cookie, 16);
        tree.unlink(Ino::ROOT, &name("b"), at(2)).unwrap();
        make(tree, Ino::ROOT, "c", FILE);
        assert_eq!(tree.lookup(Ino::ROOT, &name("c")).unwrap().cookie, 18);
        let (old, new) = (name("a"), name("z"));
        tree.rename((Ino::ROOT, &old), (Ino::ROOT, &new), RenameMode::Replace, at(3)).unwrap();
        assert_eq!(tree.lookup(Ino::ROOT, &new).unwrap().cookie, 16);
        // Over a name that is there: that name stays where it is.
        let over = name("c");
        tree.rename((Ino::ROOT, &new), (Ino::ROOT, &over), RenameMode::Replace, at(4)).unwrap();
        assert_eq!(tree.lookup(Ino::ROOT, &over).unwrap().cookie, 18);
        // Swapped: both names stay.
        let dir = make(tree, Ino::ROOT, "d", DIRECTORY);
        make(tree, dir, "other", FILE);
        let other = name("other");
        tree.rename((Ino::ROOT, &over), (dir, &other), RenameMode::Exchange, at(5)).unwrap();
        assert_eq!(tree.lookup(Ino::ROOT, &over).unwrap().cookie, 18);
        assert_eq!(tree.lookup(dir, &other).unwrap().cookie, 16);
        // Into another directory: at its end.
        let moved = name("moved");
        tree.rename((Ino::ROOT, &over), (dir, &moved), RenameMode::Replace, at(6)).unwrap();
        assert_eq!(tree.lookup(dir, &moved).unwrap().cookie, 17);
        tree.check(true, &mut |problem| panic!("{problem:?}")).unwrap();
    });
}

#[test]
fn a_listing_meets_what_stays_once_while_others_come_and_go() {
    on_both(|tree| {
        for n in 0..20 {
            make(tree, Ino::ROOT, &format!("stays{n}"), FILE);
            make(tree, Ino::ROOT, &format!("goes{n}"), FILE);
        }
        let (mut after, mut stayed, mut page) = (0, Vec::new(), 0);
        loop {
            let listed = tree.read_directory(Ino::ROOT, after, 3).unwrap();
            for (name, dentry) in &listed.entries {
                after = dentry.cookie;
                if name.as_bytes().starts_with(b"stays") {
                    stayed.push(name.clone());
                }
            }
            if listed.last || page == 19 {
                break;
            }
            tree.unlink(Ino::ROOT, &name(&format!("goes{page}")), at(2)).unwrap();
            make(tree, Ino::ROOT, &format!("comes{page}"), FILE);
            page += 1;
        }
        let unique: std::collections::BTreeSet<_> = stayed.iter().cloned().collect();
        assert_eq!((stayed.len(), unique.len()), (20, 20));
    });
}

#[test]
fn names_are_bytes() {
    on_both(|tree| {
        for bytes in [&b"\xff\xfe"[..], b"new\nline", b" ", &[b'x'; 255]] {
            let odd = crate::types::Name::new(bytes).unwrap();
            let made = tree.create(Ino::ROOT, &odd, &node(FILE)).unwrap();
            assert_eq!(tree.lookup(Ino::ROOT, &odd).unwrap().ino, made.ino);
            let mut path = b"/".to_vec();
            path.extend_from_slice(bytes);
            assert_eq!(tree.path_of(made.ino).unwrap().unwrap(), path);
        }
    });
}

#[test]
fn a_file_has_at_most_65000_links_and_a_directory_as_many_subdirectories() {
    on_both(|tree| {
        let file = make(tree, Ino::ROOT, "f", FILE);
        let full = make(tree, Ino::ROOT, "full", DIRECTORY);
        for ino in [file, full] {
            let fill = &mut |row: &mut super::super::InodeRecord| {
                row.nlink = 65_000;
                Ok(())
            };
            tree.update_inode(ino, fill).unwrap();
        }
        let linked = tree.link(file, Ino::ROOT, &name("g"), at(2));
        assert!(matches!(linked, Err(MetadataError::TooManyLinks(ino)) if ino == file));
        let made = tree.create(full, &name("sub"), &node(DIRECTORY));
        assert!(matches!(made, Err(MetadataError::TooManyLinks(ino)) if ino == full));
        make(tree, Ino::ROOT, "moved", DIRECTORY);
        let (old, new) = (name("moved"), name("sub"));
        let moved = tree.rename((Ino::ROOT, &old), (full, &new), RenameMode::Replace, at(2));
        assert!(matches!(moved, Err(MetadataError::TooManyLinks(ino)) if ino == full));
        make(tree, full, "file", FILE);
    });
}

#[test]
fn xattr_flags_are_kept() {
    on_both(|tree| {
        let file = make(tree, Ino::ROOT, "f", FILE);
        let replaced = tree.set_xattr(file, b"user.a", b"1", (false, true), at(2));
        assert!(matches!(replaced, Err(MetadataError::NoAttribute)));
        tree.set_xattr(file, b"user.a", b"", (true, false), at(2)).unwrap();
        assert_eq!(tree.get_xattr(file, b"user.a").unwrap(), b"");
        let created = tree.set_xattr(file, b"user.a", b"1", (true, false), at(2));
        assert!(matches!(created, Err(MetadataError::Exists)));
    });
}

#[test]
fn sizes_of_files_count_and_attributes_that_are_none_stay() {
    on_both(|tree| {
        let file = make(tree, Ino::ROOT, "f", FILE);
        let grow = &mut |row: &mut super::super::InodeRecord| {
            row.size = 123;
            Ok(())
        };
        tree.update_inode(file, grow).unwrap();
        assert_eq!(tree.stats().bytes, 123);
        let set =
            SetAttributes { mode: Some(0o10_4711), mtime: Some(at(-5)), ..Default::default() };
        let row = tree.set_attributes(file, &set).unwrap();
        assert_eq!((row.mode, row.mtime, row.uid, row.atime), (0o4711, at(-5), 1, at(1)));
        tree.unlink(Ino::ROOT, &name("f"), at(2)).unwrap();
        assert_eq!(tree.stats().bytes, 123, "an open file has its bytes until it is reaped");
        tree.reap(file).unwrap();
        assert_eq!((tree.stats().bytes, tree.stats().files), (0, 0));
    });
}

#[test]
fn inode_numbers_are_not_reused_by_the_next_life() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = Ino::ROOT;
    for life in 0..3 {
        let tree = tree_over(embedded(dir.path()));
        let text = format!("f{life}");
        let ino = make(&tree, Ino::ROOT, &text, FILE);
        assert!(ino > last, "{ino} after {last}");
        tree.unlink(Ino::ROOT, &name(&text), at(2)).unwrap();
        tree.reap(ino).unwrap();
        last = ino;
    }
}

/// Threads that all change one directory: everybody gets through.
fn crowd(tree: &Namespace) {
    thread::scope(|scope| {
        for me in 0..4 {
            scope.spawn(move || {
                for n in 0..50 {
                    let text = format!("{me}-{n}");
                    make(tree, Ino::ROOT, &text, FILE);
                    if n % 2 == 0 {
                        tree.unlink(Ino::ROOT, &name(&text), at(3)).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(tree.inode(Ino::ROOT).unwrap().entries, 100);
    assert_eq!((tree.stats().files, tree.orphans().unwrap().len()), (200, 100));
    assert_sound(tree);
}

#[test]
fn many_threads_in_one_directory_all_succeed_and_the_counters_are_right() {
    on_both(crowd);
}

#[test]
fn directories_that_move_into_each_other_at_once_never_make_a_circle() {
    on_both(|tree| {
        for round in 0..20 {
            let (a, b) = (format!("a{round}"), format!("b{round}"));
            let (a_ino, b_ino) =
                (make(tree, Ino::ROOT, &a, DIRECTORY), make(tree, Ino::ROOT, &b, DIRECTORY));
            let (a, b, inner) = (name(&a), name(&b), name("in"));
            let moved = thread::scope(|scope| {
                let first = scope.spawn(|| {
                    tree.rename((Ino::ROOT, &a), (b_ino, &inner), RenameMode::Replace, at(2))
                });
                let second =
                    tree.rename((Ino::ROOT, &b), (a_ino, &inner), RenameMode::Replace, at(2));
                [first.join().unwrap().is_ok(), second.is_ok()]
            });
            assert_eq!(moved.iter().filter(|ok| **ok).count(), 1, "round {round}");
        }
        assert_sound(tree);
    });
}

#[test]
fn a_volume_of_a_newer_format_is_refused() {
    let engine: Arc<dyn super::super::Engine> = Arc::new(MemoryEngine::default());
    let mut tx = engine.begin().unwrap();
    tx.put(b"Fformat", &super::super::records::encode(&9u32));
    tx.commit().unwrap();
    let error = Namespace::open(engine, at(0)).err().unwrap();
    assert!(matches!(error, MetadataError::TooNew { found: 9, supported: 7 }), "{error}");
}

#[test]
fn an_engine_cannot_be_opened_in_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(EmbeddedEngine::open(file.path(), 1 << 20).is_err());
}
