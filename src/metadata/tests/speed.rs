//! Figures for `src/docs/performance.md`; run with `--ignored --nocapture`.

use std::time::Instant;

use super::{embedded, name, node, tree_over};
use crate::types::{FileKind, Ino};

#[test]
#[ignore = "prints figures"]
fn creates_lookups_listing_marks_and_persist_of_10000_files() {
    const FILES: u32 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let tree = tree_over(embedded(dir.path()));
    let timed = |what: &str, count: u32, run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        let each = start.elapsed().as_secs_f64() * 1e6 / f64::from(count);
        println!("{what}: {each:.1} us each ({count})");
    };
    let names: Vec<_> = (0..FILES).map(|n| name(&format!("file-{n}"))).collect();
    timed("create", FILES, &mut || {
        for text in &names {
            tree.create(Ino::ROOT, text, &node(FileKind::File)).unwrap();
        }
    });
    timed("persist after it", 1, &mut || tree.engine().persist().unwrap());
    timed("lookup and inode", FILES, &mut || {
        for text in &names {
            let dentry = tree.lookup(Ino::ROOT, text).unwrap();
            tree.inode(dentry.ino).unwrap();
        }
    });
    timed("read_directory", FILES, &mut || {
        let (mut after, mut count) = (0, 0);
        while let Some((_, last)) = {
            let page = tree.read_directory(Ino::ROOT, after, 1024).unwrap();
            count += page.entries.len();
            page.entries.into_iter().next_back()
        } {
            after = last.cookie;
        }
        assert_eq!(count, FILES as usize);
    });
    timed("delta of all", FILES, &mut || {
        let token = tree.snapshot_rows(true, &mut |_| Ok(())).unwrap();
        tree.clear_marks(&token).unwrap();
    });
    timed("delta of one row after that", 20, &mut || {
        for n in 0..20u32 {
            tree.create(Ino::ROOT, &name(&format!("more-{n}")), &node(FileKind::File)).unwrap();
            let token = tree.snapshot_rows(true, &mut |_| Ok(())).unwrap();
            tree.clear_marks(&token).unwrap();
        }
    });
    timed("has_marks", 1000, &mut || {
        for _ in 0..1000 {
            tree.has_marks().unwrap();
        }
    });
    timed("unlink and reap", FILES, &mut || {
        for text in &names {
            let removed = tree.unlink(Ino::ROOT, text, super::at(2)).unwrap();
            tree.reap(removed.ino).unwrap();
        }
    });
}
