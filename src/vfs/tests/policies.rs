//! Contents follow the policies of where their files are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::world::{Ground, World};
use crate::metadata::RenameMode;
use crate::replication::expression;
use crate::runtime::Shutdown;
use crate::types::{FileKind, Ino, Name};
use crate::vfs::{OpenOptions, Vfs};

const POLICY: &str = "min=1,target=1,max=5,level=LOCAL_DURABILITY";
const PATIENCE: Duration = Duration::from_secs(30);

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn make(vfs: &Vfs, parent: Ino, text: &str, kind: FileKind) -> Ino {
    vfs.make(parent, &name(text), kind, (0o755, 0), (0, 0), b"").unwrap().ino
}

fn write(vfs: &Vfs, ino: Ino, data: &[u8]) {
    let id = vfs.open_file(ino, OpenOptions { write: true, ..OpenOptions::default() }).unwrap();
    vfs.write(id, 0, data).unwrap();
    vfs.release(id).unwrap();
}

/// The target that a file's content has, and what its numbers stand for.
fn asked(vfs: &Vfs, ino: Ino) -> (u8, Vec<String>) {
    let root = vfs.namespace().inode(ino).unwrap().content.unwrap();
    let record = vfs.namespace().content(&root).unwrap().unwrap();
    let book = vfs.replicator.policies();
    let rules = record.policies.iter().map(|n| book.expression_of(*n).unwrap()).collect();
    assert_eq!(record.target, book.of(&record.policies).target);
    (record.target, rules)
}

#[track_caller]
fn until_walked(vfs: &Vfs) {
    let (start, pace) = (Instant::now(), Shutdown::default());
    while !vfs.namespace().walks_due().unwrap().is_empty() {
        assert!(start.elapsed() < PATIENCE, "a walk does not end");
        assert!(!pace.wait(Duration::from_millis(1)));
    }
}

#[test]
fn a_walk_that_a_crash_cut_off_is_taken_up_at_the_next_start() {
    let mut world = World::new(Ground::Simulated, POLICY, 1024, 64 << 20);
    let vfs = world.vfs();
    let dir = make(vfs, Ino::ROOT, "dir", FileKind::Directory);
    let deep = make(vfs, dir, "deep", FileKind::Directory);
    let files = [make(vfs, dir, "a", FileKind::File), make(vfs, deep, "b", FileKind::File)];
    for (n, file) in files.iter().enumerate() {
        write(vfs, *file, &[u8::try_from(n).unwrap(); 100]);
    }
    vfs.commit_all().unwrap();
    assert_eq!(asked(vfs, files[0]), (1, vec![]));
    // The transaction is all that came of it.
    vfs.namespace().set_policy(dir, "target=3").unwrap();
    vfs.namespace().engine().persist().unwrap();
    world.kill();
    let vfs = world.vfs();
    until_walked(vfs);
    for file in files {
        assert_eq!(asked(vfs, file), (3, vec!["target=3".to_owned()]));
    }
}

#[test]
fn who_commits_amid_changes_of_policy_has_the_last_one_in_the_end() {
    let world = World::new(Ground::Simulated, POLICY, 1024, 64 << 20);
    let vfs = world.vfs();
    let dir = make(vfs, Ino::ROOT, "dir", FileKind::Directory);
    let over = AtomicBool::new(false);
    let files: Vec<Ino> = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut files = Vec::new();
            for n in 0..60 {
                let file = make(vfs, dir, &format!("f{n}"), FileKind::File);
                write(vfs, file, format!("{n} of {dir}").as_bytes());
                vfs.commit_all().unwrap();
                files.push(file);
            }
            over.store(true, Ordering::Release);
            files
        });
        let mut n = 0;
        while !over.load(Ordering::Acquire) {
            n += 1;
            vfs.set_policy_at(dir, &format!("target={}", n % 4 + 1)).unwrap();
            let moved = format!("f{}", n % 60);
            for (from, to) in [(dir, Ino::ROOT), (Ino::ROOT, dir)] {
                // It may not be there yet, or be busy.
                let (from, to) = ((from, &name(&moved)), (to, &name(&moved)));
                vfs.rename(from, to, RenameMode::NoReplace).unwrap_or(());
            }
        }
        vfs.set_policy_at(dir, "target=5").unwrap();
        writer.join().unwrap()
    });
    vfs.commit_all().unwrap();
    until_walked(vfs);
    for file in files {
        let inside = vfs.namespace().inode(file).unwrap().parent == dir;
        let wanted =
            if inside { (5, vec![expression("", &["target=5".into()])]) } else { (1, vec![]) };
        assert_eq!(asked(vfs, file), wanted, "{file}");
    }
}

#[test]
fn a_content_of_several_files_is_lowered_by_a_walk_from_the_root_only() {
    let world = World::new(Ground::Simulated, POLICY, 1024, 64 << 20);
    let vfs = world.vfs();
    let (a, b) = (
        make(vfs, Ino::ROOT, "a", FileKind::Directory),
        make(vfs, Ino::ROOT, "b", FileKind::Directory),
    );
    vfs.set_policy_at(a, "target=4").unwrap();
    vfs.set_policy_at(b, "min=2,target=2").unwrap();
    let (one, two) = (make(vfs, a, "f", FileKind::File), make(vfs, b, "f", FileKind::File));
    for file in [one, two] {
        write(vfs, file, b"the same in both");
    }
    vfs.commit_all().unwrap();
    let both = vec!["target=4".to_owned(), "min=2,target=2".to_owned()];
    assert_eq!(asked(vfs, one), (4, both.clone()));
    vfs.set_policy_now(a, "", &mut |_| {}).unwrap();
    assert_eq!(asked(vfs, one).0, 4, "it is used in b, too: nothing is taken from it");
    vfs.converge(Ino::ROOT, &mut |_| {}).unwrap();
    assert_eq!(asked(vfs, one), (2, vec![String::new(), both[1].clone()]));
    // A content that only one file has is exact at once.
    vfs.unlink(a, &name("f")).unwrap();
    vfs.set_policy_now(b, "target=3", &mut |_| {}).unwrap();
    assert_eq!(asked(vfs, two), (3, vec!["target=3".to_owned()]));
}
