mod checks;
mod crash;
mod engines;
mod failing;
mod model;
mod pins;
mod policies;
mod quota_errors;
mod quotas;
mod records;
mod rows;
mod serializable;
mod tree;

use std::path::Path;
use std::sync::Arc;

use super::{EmbeddedEngine, Engine, MemoryEngine, Namespace, NewNode};
use crate::types::{FileKind, Name, Timestamp};

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanoseconds: 7 }
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub(super) fn node(kind: FileKind) -> NewNode {
    NewNode {
        kind,
        mode: 0o755,
        uid: 1,
        gid: 2,
        umask: None,
        rdev: 0,
        target: Vec::new(),
        now: at(1),
    }
}

pub(super) fn embedded(dir: &Path) -> Arc<dyn Engine> {
    Arc::new(EmbeddedEngine::open(dir, 8 << 20).unwrap())
}

pub(super) fn tree_over(engine: Arc<dyn Engine>) -> Namespace {
    Namespace::open(engine, at(0)).unwrap()
}

/// Runs a test on a tree over each engine.
pub(super) fn on_both(test: impl Fn(&Namespace)) {
    test(&tree_over(Arc::new(MemoryEngine::default())));
    let dir = tempfile::tempdir().unwrap();
    test(&tree_over(embedded(dir.path())));
}

/// Nothing is wrong with the tree.
pub(super) fn assert_sound(tree: &Namespace) {
    let mut problems = Vec::new();
    tree.check(false, &mut |problem| problems.push(problem.to_string())).unwrap();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
