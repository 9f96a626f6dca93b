//! What an import makes while others look.

use super::world::{Ground, World, directory};
use crate::metadata::SetAttributes;
use crate::runtime::Clock;
use crate::types::{FileKind, Ino, Name};

#[test]
fn nothing_of_what_is_being_made_is_kept_by_the_kernel_and_all_of_it_afterwards() {
    let world = World::new(Ground::Embedded, "level=LOCAL_DURABILITY", 1 << 20, 8 << 20);
    let vfs = world.vfs();
    let name = |name: &str| Name::new(name).unwrap();
    let made = |name: &Name| {
        vfs.make(Ino::ROOT, name, FileKind::File, (0o644, 0), (0, 0), b"").unwrap().ino
    };
    let before = made(&name("before"));
    assert_eq!(vfs.attributes(Ino::ROOT).unwrap().nlink, 2);
    let asked = vfs.seen();
    let (first, second) = (vfs.begin_making(Ino::ROOT), vfs.begin_making(before));
    let node = directory(world.clock.now());
    let ino =
        first.graft(Ino::ROOT, &name("new"), &node, &SetAttributes::default(), &[], None).unwrap();
    assert_eq!(vfs.attributes(Ino::ROOT).unwrap().nlink, 3, "the row from before");
    let seen = vfs.seen();
    assert!(!vfs.may_keep(ino, seen) && !vfs.may_keep(Ino::ROOT, seen));
    drop(second);
    assert!(!vfs.may_keep(ino, seen) && !vfs.may_keep(before, seen), "asked before the end");
    let seen = vfs.seen();
    assert!(!vfs.may_keep(ino, seen) && vfs.may_keep(before, seen));
    drop(first);
    assert!(!vfs.may_keep(ino, seen), "asked before the end");
    assert!(!vfs.may_keep(before, asked), "asked before both, answered after");
    let seen = vfs.seen();
    assert!(vfs.may_keep(ino, seen) && vfs.may_keep(Ino::ROOT, seen));
}
