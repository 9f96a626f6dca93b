//! What `fsck` finds and repairs: rows are damaged below the tree.

use super::super::records::{Stored, decode, encode};
use super::super::{
    ContentCommit, ContentRecord, DentryRecord, InodeRecord, Namespace, PinState, QueueRecord,
    Stats, keys,
};
use super::{assert_sound, at, name, node, on_both};
use crate::types::{Cid, FileKind, Ino, cid};

/// A directory with a file of two names, a plain file with content, an xattr.
struct Sample {
    directory: Ino,
    linked: Ino,
    plain: Ino,
    root: Cid,
}

fn sample(tree: &Namespace) -> Sample {
    let make =
        |parent, text: &str, kind| tree.create(parent, &name(text), &node(kind)).unwrap().ino;
    let directory = make(Ino::ROOT, "d", FileKind::Directory);
    let linked = make(directory, "one", FileKind::File);
    tree.link(linked, Ino::ROOT, &name("two"), at(2)).unwrap();
    let plain = make(directory, "plain", FileKind::File);
    tree.set_xattr(plain, b"user.x", b"v", (false, false), at(2)).unwrap();
    let root = cid::of_raw(b"plain");
    let record = ContentRecord {
        size: 5,
        tsize: 5,
        blocks: 1,
        refs: 0,
        profile: String::new(),
        min: 1,
        target: 2,
        max: 3,
        pin: PinState::BelowTarget,
        copies: Vec::new(),
        holes: 0,
        policies: Vec::new(),
        created_s: 0,
        accessed_s: 0,
    };
    let commit = ContentCommit {
        shared: false,
        ino: plain,
        version: 0,
        root: Some(root),
        record,
        enqueue: true,
        size: 5,
        mtime: at(3),
    };
    assert_eq!(tree.commit_contents(&[commit]).unwrap(), [true]);
    Sample { directory, linked, plain, root }
}

fn set(tree: &Namespace, key: &[u8], value: Option<&[u8]>) {
    let mut tx = tree.engine().begin().unwrap();
    match value {
        Some(value) => tx.put(key, value),
        None => tx.delete(key),
    }
    tx.commit().unwrap();
}

fn change<T>(tree: &Namespace, key: &[u8], change: impl Fn(&mut T))
where
    T: Stored,
{
    let mut row: T = decode(key, &tree.engine().get(key).unwrap().unwrap()).unwrap();
    change(&mut row);
    set(tree, key, Some(&encode(&row)));
}

/// Damages, finds a problem that says `text`, repairs, and finds nothing.
fn repaired(text: &str, damage: impl Fn(&Namespace, &Sample)) {
    on_both(|tree| {
        let sample = sample(tree);
        assert_sound(tree);
        damage(tree, &sample);
        let mut said = Vec::new();
        let found = tree.check(true, &mut |problem| said.push(problem.to_string())).unwrap();
        assert!(said.iter().any(|line| line.contains(text)), "{text}: {said:#?}");
        assert_eq!(found, said.len() as u64, "not all was repairable: {said:#?}");
        assert_sound(tree);
    });
}

fn dentry_of(parent: Ino, text: &str) -> Vec<u8> {
    keys::under(keys::DENTRY, parent, text.as_bytes())
}

#[test]
fn a_name_without_an_inode_goes() {
    repaired("does not exist", |tree, sample| set(tree, &keys::inode(sample.linked), None));
}

#[test]
fn wrong_counts_are_set_right() {
    repaired("links", |tree, sample| {
        change(tree, &keys::inode(sample.linked), |row: &mut InodeRecord| row.nlink = 9);
    });
    repaired("entries", |tree, sample| {
        change(tree, &keys::inode(sample.directory), |row: &mut InodeRecord| row.entries = 9);
    });
    repaired("is used by 1 files", |tree, sample| {
        let key = keys::of_cid(keys::CONTENT, &sample.root);
        change(tree, &key, |row: &mut ContentRecord| row.refs = 9);
    });
}

#[test]
fn an_inode_without_a_name_is_found_again_with_its_content() {
    repaired("has no name", |tree, sample| {
        set(tree, &dentry_of(sample.directory, "plain"), None);
    });
    on_both(|tree| {
        let sample = sample(tree);
        set(tree, &dentry_of(sample.directory, "plain"), None);
        set(tree, &dentry_of(Ino::ROOT, "d"), None);
        tree.check(true, &mut |_| {}).unwrap();
        let lost = tree.lookup(Ino::ROOT, &name("lost+found")).unwrap().ino;
        for ino in [sample.plain, sample.directory] {
            assert_eq!(tree.lookup(lost, &name(&format!("#{ino}"))).unwrap().ino, ino);
        }
        assert_eq!(tree.inode(sample.plain).unwrap().content, Some(sample.root));
        assert_eq!(tree.content(&sample.root).unwrap().unwrap().refs, 1);
        assert!(tree.orphans().unwrap().is_empty(), "nothing waits to be thrown away");
    });
}

#[test]
fn the_order_of_a_directory_is_made_again_from_its_names() {
    let order = |parent, cookie: u64| keys::under(keys::ORDER, parent, &cookie.to_be_bytes());
    repaired("missing", |tree, sample| set(tree, &order(sample.directory, 16), None));
    repaired("wrong", |tree, sample| set(tree, &order(sample.directory, 16), Some(b"\x01junk")));
    repaired("left over", |tree, sample| {
        let row = tree.engine().get(&order(sample.directory, 16)).unwrap().unwrap();
        set(tree, &order(sample.directory, 99), Some(&row));
    });
    repaired("next cookie", |tree, sample| {
        change(tree, &keys::inode(sample.directory), |row: &mut InodeRecord| row.next_cookie = 16);
    });
}

#[test]
fn kinds_and_parents_follow_the_inodes_and_names() {
    repaired("wrong kind", |tree, sample| {
        let key = dentry_of(sample.directory, "plain");
        change(tree, &key, |row: &mut DentryRecord| row.kind = FileKind::Fifo);
    });
    repaired("its row says", |tree, sample| {
        change(tree, &keys::inode(sample.plain), |row: &mut InodeRecord| row.parent = Ino::ROOT);
    });
    repaired("index row R", |tree, sample| {
        set(tree, &keys::under(keys::PARENT, sample.linked, &Ino::ROOT.0.to_be_bytes()), None);
    });
    repaired("index row R", |tree, sample| {
        set(
            tree,
            &keys::under(keys::PARENT, sample.plain, &7u64.to_be_bytes()),
            Some(&encode(&1u32)),
        );
    });
}

#[test]
fn rows_that_belong_to_nothing_go() {
    repaired("index row O", |tree, sample| {
        set(tree, &keys::number(keys::ORPHAN, sample.plain.0), Some(&[1]));
    });
    for table in [keys::ORPHAN, keys::STAGED, keys::XATTR] {
        repaired("left over", move |tree, _| {
            set(tree, &keys::under(table, Ino(12_345), b""), Some(&[1]));
        });
    }
    repaired("left over", |tree, _| {
        let row = QueueRecord::new(at(1));
        set(tree, &keys::of_cid(keys::QUEUE, &cid::of_raw(b"none")), Some(&encode(&row)));
    });
    repaired("extended attributes", |tree, sample| {
        set(tree, &keys::under(keys::XATTR, sample.plain, b"user.x"), None);
    });
}

#[test]
fn counters_and_the_next_number_are_counted_again() {
    repaired("counters", |tree, sample| {
        // Behind the tree's back, so that its counters are wrong.
        change(tree, &keys::inode(sample.plain), |row: &mut InodeRecord| row.size = 1000);
    });
    repaired("next inode number", |tree, _| set(tree, keys::NEXT_INO, Some(&encode(&2u64))));
    on_both(|tree| {
        sample(tree);
        tree.recount().unwrap();
        let stored = tree.engine().get(keys::STATS).unwrap().unwrap();
        assert_eq!(decode::<Stats>(keys::STATS, &stored).unwrap(), tree.stats());
    });
}

#[test]
fn what_cannot_be_repaired_is_told_and_left_alone() {
    on_both(|tree| {
        let sample = sample(tree);
        let content = keys::of_cid(keys::CONTENT, &sample.root);
        set(tree, &content, Some(b"\x01\xff"));
        let queue = keys::of_cid(keys::QUEUE, &sample.root);
        set(tree, &queue, None);
        let mut said = Vec::new();
        tree.check(true, &mut |problem| said.push(problem)).unwrap();
        assert!(said.iter().any(|problem| !problem.is_repairable()), "{said:?}");
        assert_eq!(tree.engine().get(&content).unwrap().unwrap(), b"\x01\xff");
        assert_eq!(tree.inode(sample.plain).unwrap().content, Some(sample.root));
    });
    on_both(|tree| {
        let sample = sample(tree);
        let inner = tree.create(sample.directory, &name("in"), &node(FileKind::Directory)).unwrap();
        change(tree, &keys::inode(sample.directory), |row: &mut InodeRecord| {
            row.parent = inner.ino;
        });
        let mut said = String::new();
        tree.check(false, &mut |problem| said += &problem.to_string()).unwrap();
        assert!(said.contains("own ancestor"), "{said}");
        assert!(tree.path_of(inner.ino).is_err() || tree.path_of(inner.ino).unwrap().is_none());
    });
}
