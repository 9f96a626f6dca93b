//! Numbers of policies, and walks that are due until they are done.

use std::ops::ControlFlow;

use super::{at, embedded, name, node, on_both, tree_over};
use crate::metadata::{RenameMode, merge_policies};
use crate::types::{FileKind, Ino};

#[test]
fn a_policy_that_is_set_asks_for_its_walk_in_the_same_transaction() {
    on_both(|tree| {
        let dir = tree.create(Ino::ROOT, &name("d"), &node(FileKind::Directory)).unwrap().ino;
        assert_eq!(tree.walks_due().unwrap(), []);
        tree.set_policy(dir, "archive,min=3").unwrap();
        let due = tree.walks_due().unwrap();
        assert_eq!(due.iter().map(|(ino, _)| *ino).collect::<Vec<_>>(), [dir]);
        // Asked for again while it walked: it is not done.
        tree.request_walk(dir).unwrap();
        tree.walk_done(dir, due[0].1).unwrap();
        let again = tree.walks_due().unwrap();
        assert!(again.len() == 1 && again[0].1 != due[0].1, "{again:?}");
        tree.walk_done(dir, again[0].1).unwrap();
        assert_eq!(tree.walks_due().unwrap(), []);
        let mut seen = Vec::new();
        tree.each_policy(&mut |ino, text| {
            seen.push((ino, text.to_owned()));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, [(dir, "archive,min=3".to_owned())]);
    });
}

#[test]
fn a_rename_between_policies_is_due_after_a_crash_and_another_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let moved = {
        let engine = embedded(dir.path());
        let tree = tree_over(std::sync::Arc::clone(&engine));
        let make = |text: &str| {
            tree.create(Ino::ROOT, &name(text), &node(FileKind::Directory)).unwrap().ino
        };
        let (to, one, other) = (make("to"), make("one"), make("other"));
        let into = |text: &str, walk| {
            let (from, to, mode) = (name(text), (to, name(text)), RenameMode::Replace);
            tree.rename_and_walk((Ino::ROOT, &from), (to.0, &to.1), mode, at(5), walk).unwrap();
        };
        into("one", true);
        into("other", false);
        assert_ne!(one, other);
        tree.keep_policy(7, "archive").unwrap();
        tree.note_policies(99).unwrap();
        engine.persist().unwrap();
        one
    };
    let tree = tree_over(embedded(dir.path()));
    let due: Vec<Ino> = tree.walks_due().unwrap().into_iter().map(|(ino, _)| ino).collect();
    assert_eq!(due, [moved]);
    assert_eq!(tree.policy_expressions().unwrap(), [(7, "archive".to_owned())]);
    assert_eq!(tree.noted_policies().unwrap(), Some(99));
}

#[test]
fn the_volumes_own_policy_has_a_number_only_among_others() {
    for (a, b, wanted) in [
        (&[][..], &[][..], &[][..]),
        (&[], &[5], &[0, 5]),
        (&[5], &[], &[0, 5]),
        (&[0, 5], &[3, 5], &[0, 3, 5]),
        (&[5], &[5], &[5]),
        (&[5], &[3], &[3, 5]),
    ] {
        let mut merged = a.to_vec();
        merge_policies(&mut merged, b);
        assert_eq!(merged, wanted, "{a:?} and {b:?}");
    }
}

#[test]
fn settings_that_changed_make_a_checkpoint_due() {
    on_both(|tree| {
        let token = tree.snapshot_rows(false, &mut |_| Ok(())).unwrap();
        tree.clear_marks(&token).unwrap();
        assert!(!tree.has_marks().unwrap());
        tree.note_policies(1).unwrap();
        assert!(tree.has_marks().unwrap());
    });
}
