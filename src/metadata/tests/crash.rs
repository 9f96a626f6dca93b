//! The embedded engine after the death of the machine: copies of its folder,
//! their journal cut or torn behind what was persisted.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::super::{EmbeddedEngine, Engine};
use super::{assert_sound, at, embedded, name, node, tree_over};
use crate::types::{FileKind, Ino};

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// The journal that is being written.
fn journal(dir: &Path) -> PathBuf {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "jnl") {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "the test writes less than one journal: {found:?}");
    found.remove(0)
}

/// Bytes of the journal that were written (it is preallocated with zeros).
fn written(journal: &Path) -> u64 {
    let bytes = fs::read(journal).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// How many of the numbered transactions are there; asserts that they are the
/// first ones and whole.
fn prefix(dir: &Path) -> usize {
    let engine = EmbeddedEngine::open(dir, 1 << 20).unwrap();
    let mut seen = Vec::new();
    let snapshot = engine.snapshot().unwrap();
    snapshot
        .scan(b"k", b"l", &mut |key, value| {
            seen.push((u32::from_be_bytes(key[1..5].try_into().unwrap()), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    for (index, (number, value)) in seen.iter().enumerate() {
        assert_eq!(*number as usize, index, "a commit is missing before a later one");
        let twin = snapshot.get(&[b"B".as_slice(), &number.to_be_bytes()].concat()).unwrap();
        assert_eq!(twin.as_ref(), Some(value), "half a transaction");
    }
    seen.len()
}

fn write(engine: &EmbeddedEngine, number: u32) {
    let value = vec![number as u8 | 1; 20 + (number as usize * 37) % 300];
    let mut tx = engine.begin().unwrap();
    tx.put(&[b"k".as_slice(), &number.to_be_bytes()].concat(), &value);
    tx.put(&[b"B".as_slice(), &number.to_be_bytes()].concat(), &value);
    tx.commit().unwrap();
}

#[test]
fn every_cut_of_the_journal_leaves_a_prefix_with_all_that_was_persisted() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let engine = EmbeddedEngine::open(&live, 1 << 20).unwrap();
    // (length of the journal, transactions in it), at each persist.
    let mut persisted = vec![(0, 0)];
    for number in 0..60u32 {
        write(&engine, number);
        if number % 7 == 3 {
            engine.persist().unwrap();
            persisted.push((written(&journal(&live)), number as usize + 1));
        }
    }
    let still = dir.path().join("still");
    copy_folder(&live, &still);
    let length = written(&journal(&still));
    let first = persisted[1].0;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..40 {
        let crashed = dir.path().join(format!("crash{round}"));
        copy_folder(&still, &crashed);
        let cut = random.u64(first..=length);
        let file = fs::OpenOptions::new().write(true).open(journal(&crashed)).unwrap();
        file.set_len(cut).unwrap();
        if round % 2 == 0 {
            // The length was durable before the bytes: zeros follow.
            file.set_len(64 << 20).unwrap();
        }
        drop(file);
        let kept = prefix(&crashed);
        let due = persisted.iter().rfind(|(at, _)| *at <= cut).unwrap().1;
        assert!(kept >= due, "cut at {cut} of {length}: {kept} of {due} persisted");
        // What comes after the crash is kept, too.
        let engine = EmbeddedEngine::open(&crashed, 1 << 20).unwrap();
        write(&engine, kept as u32);
        drop(engine);
        assert_eq!(prefix(&crashed), kept + 1);
        fs::remove_dir_all(&crashed).unwrap();
    }
}

#[test]
fn a_tree_that_was_killed_is_sound_and_has_every_commit() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let tree = tree_over(embedded(&live));
    for n in 0..200u32 {
        let text = name(&format!("f{n}"));
        let ino = tree.create(Ino::ROOT, &text, &node(FileKind::File)).unwrap().ino;
        if n % 3 == 0 {
            tree.link(ino, Ino::ROOT, &name(&format!("l{n}")), at(2)).unwrap();
        }
        if n % 5 == 0 {
            tree.unlink(Ino::ROOT, &text, at(3)).unwrap();
        }
        if n % 40 == 7 {
            // No close, no persist: the process dies here.
            let killed = dir.path().join(format!("killed{n}"));
            copy_folder(&live, &killed);
            let found = tree_over(embedded(&killed));
            assert_eq!(found.stats(), tree.stats());
            let entries = found.inode(Ino::ROOT).unwrap().entries;
            assert_eq!(entries, tree.inode(Ino::ROOT).unwrap().entries);
            assert_sound(&found);
            let made = found.create(Ino::ROOT, &name("new"), &node(FileKind::File)).unwrap();
            assert!(made.ino > ino, "a number was given twice");
        }
    }
}

#[test]
fn a_tree_whose_journal_was_cut_anywhere_is_sound_with_exact_counters() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let tree = tree_over(embedded(&live));
    tree.engine().persist().unwrap();
    let first = written(&journal(&live));
    for n in 0..60u32 {
        let kind = if n % 4 == 0 { FileKind::Directory } else { FileKind::File };
        let made = tree.create(Ino::ROOT, &name(&format!("f{n}")), &node(kind)).unwrap();
        if n % 4 == 1 {
            tree.link(made.ino, Ino::ROOT, &name(&format!("l{n}")), at(2)).unwrap();
        }
        if n % 8 == 4 {
            tree.rmdir(Ino::ROOT, &name(&format!("f{n}")), at(2)).unwrap();
        }
    }
    let length = written(&journal(&live));
    for round in 0..16 {
        let cut = first + (length - first) * round / 16 + round;
        let crashed = dir.path().join(format!("crash{round}"));
        copy_folder(&live, &crashed);
        fs::OpenOptions::new().write(true).open(journal(&crashed)).unwrap().set_len(cut).unwrap();
        let found = tree_over(embedded(&crashed));
        assert_sound(&found);
        assert!(found.mark_count().unwrap() > 0, "what changed is marked");
    }
}

#[test]
fn a_torn_last_commit_is_dropped_and_all_before_it_stays() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let engine = EmbeddedEngine::open(&live, 1 << 20).unwrap();
    for number in 0..10 {
        write(&engine, number);
    }
    engine.persist().unwrap();
    let first = written(&journal(&live));
    // One large commit over many pages, of which some never reached the disk.
    let mut tx = engine.begin().unwrap();
    for number in 0..200u32 {
        tx.put(&[b"z".as_slice(), &number.to_be_bytes()].concat(), &[7; 300]);
    }
    tx.commit().unwrap();
    let length = written(&journal(&live));
    for (round, hole) in (first..length - 4096).step_by(4096).enumerate() {
        let torn = dir.path().join(format!("torn{round}"));
        copy_folder(&live, &torn);
        let path = journal(&torn);
        let mut bytes = fs::read(&path).unwrap();
        let page = hole.next_multiple_of(4096) as usize;
        bytes[page..page + 4096].fill(0);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(prefix(&torn), 10, "a hole at {page}");
        fs::remove_dir_all(&torn).unwrap();
    }
}

/// A live engine with persists now and then; (bytes of the journal that were
/// durable, transactions in them) at the end of each.
fn live_with_persists(live: &Path, random: &mut fastrand::Rng) -> Vec<(u64, usize)> {
    let engine = EmbeddedEngine::open(live, 1 << 20).unwrap();
    let mut persisted = Vec::new();
    for number in 0..80u32 {
        write(&engine, number);
        if random.u8(0..6) == 0 || number == 5 {
            engine.persist().unwrap();
            persisted.push((written(&journal(live)), number as usize + 1));
        }
    }
    persisted
}

#[test]
fn damage_of_what_was_persisted_is_told_from_a_torn_tail() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let persisted = live_with_persists(&live, &mut random);
    // Two persists follow what is damaged: the second says that the first ended.
    let known = persisted[persisted.len() - 3].0;
    let before = fs::read(journal(&live)).unwrap();
    let mut found = 0;
    for round in 0..24 {
        let damaged = dir.path().join(format!("damaged{round}"));
        copy_folder(&live, &damaged);
        let path = journal(&damaged);
        let mut bytes = before.clone();
        let at = random.usize(0..known as usize);
        bytes[at] ^= 1 << random.u8(0..8);
        fs::write(&path, &bytes).unwrap();
        match EmbeddedEngine::open(&damaged, 1 << 20) {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("is damaged at byte"), "a flip at {at} of {known}: {text}");
                assert_eq!(fs::read(&path).unwrap(), bytes, "what is damaged is left as it is");
                found += 1;
            }
            // No checksum covers a batch's own number; then no row is missing.
            Ok(engine) => {
                drop(engine);
                assert_eq!(prefix(&damaged), 80, "a flip at {at} of {known}");
            }
        }
        fs::remove_dir_all(&damaged).unwrap();
    }
    assert!(found > 12, "{found} of 24");
}

#[test]
fn whatever_reaches_the_disk_of_what_was_not_persisted_the_engine_opens_with_all_that_was() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let persisted = live_with_persists(&live, &mut random);
    let whole = fs::read(journal(&live)).unwrap();
    let end = written(&journal(&live)) as usize;
    for round in 0..24 {
        let crashed = dir.path().join(format!("crashed{round}"));
        copy_folder(&live, &crashed);
        // The machine stops between this persist and the end of the next one: of
        // what came after it, sectors are there in any order, or torn.
        let index = random.usize(0..persisted.len());
        let (durable, due) = persisted[index];
        let stop = persisted.get(index + 1).map_or(end, |(next, _)| *next as usize);
        let stop = random.usize(durable as usize..=stop);
        let mut bytes = whole.clone();
        bytes[stop..].fill(0);
        let sector = if random.bool() { 512 } else { 4096 };
        let mut at = durable as usize;
        while at < stop {
            let next = ((at / sector + 1) * sector).min(stop);
            match random.u8(0..4) {
                0 => bytes[at..next].fill(0),
                1 => bytes[random.usize(at..next)..next].fill(0),
                _ => {}
            }
            at = next;
        }
        fs::write(journal(&crashed), &bytes).unwrap();
        let kept = prefix(&crashed);
        assert!(kept >= due, "{kept} of {due} that were persisted");
        let engine = EmbeddedEngine::open(&crashed, 1 << 20).unwrap();
        write(&engine, kept as u32);
        engine.persist().unwrap();
        drop(engine);
        assert_eq!(prefix(&crashed), kept + 1);
        fs::remove_dir_all(&crashed).unwrap();
    }
}
