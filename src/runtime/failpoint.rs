//! Named places where a test may end the process, as SIGKILL does.
//!
//! `CAIRN_CRASH_AT=NAME` or `NAME:N` kills the process when it reaches the point
//! NAME for the Nth time (the first). Builds without debug assertions, such as
//! releases, contain nothing of it: neither names nor the variable are in the
//! binary.

/// Every point, by layer and in the order in which a file meets them.
/// `tests/program/failpoints.rs` dies at each and looks at what is left; it fails
/// for a name that is here and not in the code, or the other way round.
#[cfg(debug_assertions)]
pub const NAMES: &[&str] = &[
    // A file's bytes become a segment or part of a pack.
    "store.staging.spilled",
    "store.staging.synced",
    "store.staging.named",
    "store.staging.set_aside",
    "store.staging.aside_removed",
    "store.seal.synced",
    "store.seal.renamed",
    "store.seal.named",
    "store.seal.indexed",
    "store.pack.begun",
    "store.pack.appended",
    "store.pack.rolled_over",
    "store.pack.synced",
    "store.pack.named",
    "store.pack.indexed",
    "store.pack.closed",
    // Opening.
    "store.recover.cut",
    "store.recover.discarded",
    // Collection.
    "store.collect.dropped",
    "store.collect.persisted",
    "store.collect.punched",
    "store.collect.unmarked",
    "store.collect.removed",
    "store.compact.trimmed",
    "store.compact.moved",
    "daemon.collect.begun",
    "daemon.collect.marked",
    "daemon.collect.checkpointed",
    "daemon.collect.rows_removed",
    // What a cache lets go of.
    "replication.evict.begun",
    "replication.evict.decided",
    // Collection on a backend.
    "collect.begun",
    "collect.marked",
    "collect.checkpointed",
    "collect.listed",
    "collect.condemned",
    "collect.rows",
    "collect.deleted",
    "collect.compacting",
    // Commit and fsync.
    "vfs.commit.hashed",
    "vfs.commit.appended",
    "vfs.commit.sealed",
    "vfs.commit.durable",
    "vfs.commit.committed",
    "vfs.commit.settled",
    "vfs.fsync.staged",
    "vfs.fsync.recorded",
    "vfs.fsync.committed",
    "vfs.fsync.replicated",
    "vfs.adopt.adopted",
    "vfs.adopt.persisted",
    "vfs.orphan.reaped",
    // The engine.
    "metadata.persist.begun",
    "metadata.persist.ended",
    "metadata.journal.set_aside",
    "metadata.journal.cut",
    // Base, delta and manifest.
    "checkpoint.write.noted",
    "checkpoint.table.written",
    "checkpoint.table.named",
    "checkpoint.delta.written",
    "checkpoint.base.begun",
    "checkpoint.base.written",
    "checkpoint.manifest.written",
    "checkpoint.manifest.named",
    "checkpoint.marks.cleared",
    "checkpoint.old.removing",
    "checkpoint.old.removed",
    "checkpoint.upload.files",
    "checkpoint.upload.manifest",
    "checkpoint.upload.named",
    "checkpoint.upload.trimmed",
    // Copies.
    "replication.send.sent",
    "replication.send.recorded",
    "backend.put.written",
    "backend.put.synced",
    "backend.put.shown",
    "backend.pack.written",
    "backend.pack.synced",
    "backend.pack.shown",
    "backend.name.written",
    "backend.name.shown",
    // A request of the kernel is taken and not answered.
    "fuse.getattr.taken",
    // An import.
    "daemon.import.recorded",
    "daemon.import.grafted",
    "daemon.import.named",
    // A backend leaves.
    "daemon.remove.configured",
    // A backend is replaced by another one.
    "daemon.replace.added",
    "daemon.move.begun",
    "daemon.replace.emptied",
    "daemon.replace.forgotten",
    // The end of a mount.
    "daemon.end.unmounted",
    "daemon.end.drained",
    "daemon.end.committed",
    "daemon.end.checkpointed",
    "daemon.end.persisted",
    "daemon.end.closed",
    // A new volume from a backend.
    "recover.fetched",
    "recover.loaded",
    "recover.settled",
    "recover.identified",
    "recover.replanned",
];

/// The process is here. Ends it when it was told to.
#[inline]
pub fn reach(name: &'static str) {
    #[cfg(debug_assertions)]
    armed::reach(name);
    #[cfg(not(debug_assertions))]
    let _: &str = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Armed {
        name: String,
        hits_left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn from_environment() -> Option<Armed> {
        let text = std::env::var("CAIRN_CRASH_AT").ok()?;
        let (name, hits) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Armed { name: name.to_owned(), hits_left: AtomicU64::new(hits.parse().unwrap_or(1)) })
    }

    pub(super) fn reach(name: &str) {
        let Some(armed) = ARMED.get_or_init(from_environment) else { return };
        if armed.name != name || armed.hits_left.fetch_sub(1, Ordering::Relaxed) != 1 {
            return;
        }
        eprintln!("killed at {name}");
        let killed =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        if killed.is_err() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NAMES;

    #[test]
    fn every_point_has_one_name() {
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
    }
}
