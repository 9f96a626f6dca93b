use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a call ended. Few values each: no paths and no CIDs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendCall {
    kind: &'static str,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendName {
    backend: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendOperation {
    kind: &'static str,
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AlarmLabel {
    alarm: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HookRun {
    by: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemoryPart {
    part: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheWait {
    waits_for: &'static str,
}

/// A family of histograms of durations.
type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    // 10 microseconds to 42 seconds.
    Histogram::new(exponential_buckets(0.000_01, 4.0, 12))
}

fn durations<L: Clone + std::hash::Hash + Eq>() -> Durations<L> {
    Family::new_with_constructor(histogram as fn() -> Histogram)
}

/// Declares each metric once: its field, type, name and help. Counters get the
/// suffix `_total` in the text.
macro_rules! metrics {
    ($($(#[$meta:meta])* $vis:vis $field:ident: $type:ty = $make:expr, $name:literal, $help:literal;)*) => {
        /// Every metric of the process.
        pub struct Metrics {
            registry: Registry,
            $($(#[$meta])* #[doc = $help] $vis $field: $type,)*
        }

        impl Metrics {
            fn new() -> Self {
                let mut registry = Registry::default();
                $(
                    let $field: $type = $make;
                    registry.register($name, $help, $field.clone());
                )*
                Self { registry, $($field,)* }
            }
        }
    };
}

metrics! {
    fuse_requests: Family<Request, Counter> = Family::default(),
        "cairn_fuse_requests", "Requests of the kernel, by operation and outcome";
    fuse_seconds: Durations<Operation> = durations(),
        "cairn_fuse_request_seconds", "Duration of requests of the kernel, in seconds";

    daemon_memory_bytes: Family<MemoryPart, Gauge> = Family::default(),
        "cairn_daemon_memory_bytes", "Bytes that a part of the memory's budget holds";
    daemon_memory_most_bytes: Family<MemoryPart, Gauge> = Family::default(),
        "cairn_daemon_memory_most_bytes", "Bytes that a part of the memory's budget may hold";
    pub daemon_resident_bytes: Gauge = Gauge::default(),
        "cairn_daemon_resident_bytes", "Resident memory of the daemon";
    pub daemon_most_resident_bytes: Gauge = Gauge::default(),
        "cairn_daemon_most_resident_bytes", "Most resident memory that the daemon has had";

    pub metadata_conflicts: Counter = Counter::default(),
        "cairn_metadata_conflicts", "Transactions that were done again because of others";

    pub metadata_events_written: Counter = Counter::default(),
        "cairn_metadata_events", "Events recorded";
    pub metadata_events_dropped: Counter = Counter::default(),
        "cairn_metadata_dropped_events", "Events that there was no room for";

    replication_alarms: Family<AlarmLabel, Counter> = Family::default(),
        "cairn_replication_alarms", "Alarms raised, by alarm";
    pub replication_alarms_active: Gauge = Gauge::default(),
        "cairn_replication_active_alarms", "Alarms that hold";
    daemon_hooks: Family<HookRun, Counter> = Family::default(),
        "cairn_daemon_hook_runs", "Alarms told by hooks, by command or webhook and by outcome";

    pub vfs_commits: Counter = Counter::default(),
        "cairn_vfs_commits", "Files committed";
    pub vfs_leaves_hashed: Counter = Counter::default(),
        "cairn_vfs_leaves_hashed", "Leaves hashed";
    pub vfs_hashed_bytes: Counter = Counter::default(),
        "cairn_vfs_hashed_bytes", "Bytes of leaves and inner nodes hashed";
    pub vfs_nodes_hashed: Counter = Counter::default(),
        "cairn_vfs_nodes_hashed", "Inner nodes hashed";
    pub vfs_dirty_bytes: Gauge = Gauge::default(),
        "cairn_vfs_dirty_bytes", "Bytes of files that are written and not committed";
    pub vfs_memory_bytes: Gauge = Gauge::default(),
        "cairn_vfs_memory_bytes", "Bytes of such files that are in memory";
    pub vfs_open_files: Gauge = Gauge::default(),
        "cairn_vfs_open_files", "Open file handles";
    pub vfs_nodes: Gauge = Gauge::default(),
        "cairn_vfs_nodes", "Inodes that are held in memory: open, or not committed";

    pub store_packs_appended: Counter = Counter::default(),
        "cairn_store_pack_appends", "Blocks appended to packs";
    pub store_syncs: Counter = Counter::default(),
        "cairn_store_syncs", "Flushes of packs and segments to the medium";
    pub store_bytes_written: Counter = Counter::default(),
        "cairn_store_written_bytes", "Bytes written to packs and segments";
    pub store_used_bytes: Gauge = Gauge::default(),
        "cairn_store_used_bytes", "Bytes that the local store takes on its disk";
    pub store_available_bytes: Gauge = Gauge::default(),
        "cairn_store_available_bytes", "Bytes that are free on the local store's disk";
    pub store_capacity_bytes: Gauge = Gauge::default(),
        "cairn_store_capacity_bytes", "Size of the local store's disk, in bytes";
    pub store_collections: Counter = Counter::default(),
        "cairn_store_collections", "Collections of the local store";
    pub store_freed_bytes: Counter = Counter::default(),
        "cairn_store_freed_bytes", "Bytes that collections gave back to the disk";
    pub store_cache_filled_bytes: Counter = Counter::default(),
        "cairn_store_cache_filled_bytes", "Bytes of blocks that were brought into the cache";
    pub store_cache_passed: Counter = Counter::default(),
        "cairn_store_cache_passed_blocks",
        "Blocks that were brought and not kept: the cache had no room";
    pub store_cache_evicted_bytes: Counter = Counter::default(),
        "cairn_store_cache_evicted_bytes", "Bytes of blocks that the cache let go of";
    pub store_cache_budget_bytes: Gauge = Gauge::default(),
        "cairn_store_cache_budget_bytes", "Bytes that the cache may take; 0: no cache";
    store_cache_dirty_bytes: Family<CacheWait, Gauge> = Family::default(),
        "cairn_store_cache_dirty_bytes",
        "Bytes of contents that the cache must keep, by what they wait for";
    pub store_block_hits: Counter = Counter::default(),
        "cairn_store_block_hits", "Reads of blocks that were here";
    pub store_block_misses: Counter = Counter::default(),
        "cairn_store_block_misses", "Reads of blocks that were not here";
    pub store_blocks_verified: Counter = Counter::default(),
        "cairn_store_verified_blocks", "Blocks of the local store compared with their CID";
    pub store_blocks_corrupt: Counter = Counter::default(),
        "cairn_store_corrupt_blocks", "Blocks of the local store that did not match their CID";

    backend_calls: Family<BackendCall, Counter> = Family::default(),
        "cairn_backends_calls", "Calls of backends, by kind, operation and outcome";
    backend_seconds: Durations<BackendOperation> = durations(),
        "cairn_backends_call_seconds", "Duration of calls of backends, in seconds";
    backend_sent_bytes: Family<BackendKind, Counter> = Family::default(),
        "cairn_backends_sent_bytes", "Bytes of blocks sent to backends";
    backend_received_bytes: Family<BackendKind, Counter> = Family::default(),
        "cairn_backends_received_bytes", "Bytes of blocks received from backends";

    pub replication_queue_length: Gauge = Gauge::default(),
        "cairn_replication_queue_items", "Contents that wait for copies";
    pub replication_queue_failed: Gauge = Gauge::default(),
        "cairn_replication_queue_failed_items", "Of them, those whose last round failed";
    pub replication_pins_below_min: Gauge = Gauge::default(),
        "cairn_replication_pins_below_min", "Contents with fewer copies than their policy's min";
    pub replication_pins_below_target: Gauge = Gauge::default(),
        "cairn_replication_pins_below_target",
        "Contents with at least min and fewer copies than target";
    pub replication_backends_away: Gauge = Gauge::default(),
        "cairn_replication_backends_away", "Backends that take no writes now";
    pub replication_contents_sent: Counter = Counter::default(),
        "cairn_replication_sent_contents", "Contents sent to a backend";
    pub replication_rounds_failed: Counter = Counter::default(),
        "cairn_replication_failed_rounds", "Rounds of a content that failed";
    pub replication_blocks_fetched: Counter = Counter::default(),
        "cairn_replication_fetched_blocks",
        "Blocks read from a backend because the local copy was missing or bad";
    pub replication_blocks_ahead: Counter = Counter::default(),
        "cairn_replication_ahead_blocks", "Blocks sent for before somebody asked for them";
    replication_read_bytes: Family<BackendName, Counter> = Family::default(),
        "cairn_replication_read_bytes", "Bytes of good blocks that were read at a backend";
    pub replication_hedges_sent: Counter = Counter::default(),
        "cairn_replication_hedges", "Second places asked because the first was late";
    pub replication_hedges_won: Counter = Counter::default(),
        "cairn_replication_hedges_won", "Of them, those that had the block sooner";
    pub replication_read_failovers: Counter = Counter::default(),
        "cairn_replication_read_failovers",
        "Next places asked because one failed, gave wrong bytes or hung";
    pub replication_copies_corrupt: Counter = Counter::default(),
        "cairn_replication_corrupt_copies", "Blocks whose bytes were wrong at a backend";
    pub replication_repairs: Counter = Counter::default(),
        "cairn_replication_repairs", "Copies and blocks that were made whole again";

    pub checkpoint_deltas_written: Counter = Counter::default(),
        "cairn_checkpoint_writes", "Deltas and bases written";
    pub checkpoint_bytes_written: Counter = Counter::default(),
        "cairn_checkpoint_written_bytes", "Bytes of deltas and bases written";
    pub checkpoint_seconds: Histogram = histogram(),
        "cairn_checkpoint_write_seconds", "Duration of writing a delta or base, in seconds";
    pub checkpoint_age_seconds: Gauge = Gauge::default(),
        "cairn_checkpoint_age_seconds", "Age of the newest checkpoint, in seconds";
    pub checkpoint_copies: Gauge = Gauge::default(),
        "cairn_checkpoint_copies", "Places that hold the newest checkpoint whole";
}

impl Metrics {
    /// Counts one call of a backend; `outcome` is `ok`, `cancelled` or the kind
    /// of the error.
    pub fn backend_call(
        &self,
        kind: &'static str,
        operation: &'static str,
        outcome: &'static str,
        elapsed: Duration,
    ) {
        self.backend_calls.get_or_create(&BackendCall { kind, operation, outcome }).inc();
        let seconds = self.backend_seconds.get_or_create(&BackendOperation { kind, operation });
        seconds.observe(elapsed.as_secs_f64());
    }

    /// Sets what a part of the memory's budget may hold, and holds if that is known.
    pub fn memory_part(&self, part: &'static str, most: i64, used: Option<i64>) {
        self.daemon_memory_most_bytes.get_or_create(&MemoryPart { part }).set(most);
        if let Some(used) = used {
            self.daemon_memory_bytes.get_or_create(&MemoryPart { part }).set(used);
        }
    }

    /// Sets the bytes that the cache must keep, as they wait for `copies` or `proof`.
    pub fn cache_dirty(&self, waits_for: &'static str, bytes: i64) {
        self.store_cache_dirty_bytes.get_or_create(&CacheWait { waits_for }).set(bytes);
    }

    /// Counts an alarm that was raised.
    pub fn alarm(&self, alarm: &'static str) {
        self.replication_alarms.get_or_create(&AlarmLabel { alarm }).inc();
    }

    /// Counts a run of a hook; `outcome` is `ok`, `failed` or `timeout`.
    pub fn hook_run(&self, by: &'static str, outcome: &'static str) {
        self.daemon_hooks.get_or_create(&HookRun { by, outcome }).inc();
    }

    /// Counts bytes of blocks that a backend took.
    pub fn backend_sent(&self, kind: &'static str, bytes: u64) {
        self.backend_sent_bytes.get_or_create(&BackendKind { kind }).inc_by(bytes);
    }

    /// Counts bytes of a good block that was read at a backend of the volume.
    pub fn backend_read(&self, backend: &str, bytes: u64) {
        let name = BackendName { backend: backend.to_owned() };
        self.replication_read_bytes.get_or_create(&name).inc_by(bytes);
    }

    /// Counts bytes of blocks that a backend gave.
    pub fn backend_received(&self, kind: &'static str, bytes: u64) {
        self.backend_received_bytes.get_or_create(&BackendKind { kind }).inc_by(bytes);
    }

    /// Counts one request of the kernel.
    pub fn fuse_request(&self, operation: &'static str, succeeded: bool, elapsed: Duration) {
        let outcome = if succeeded { "ok" } else { "error" };
        self.fuse_requests.get_or_create(&Request { operation, outcome }).inc();
        self.fuse_seconds.get_or_create(&Operation { operation }).observe(elapsed.as_secs_f64());
    }

    /// All metrics in the `OpenMetrics` text format, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# metrics cannot be written: {error}\n# EOF\n"),
        }
    }
}

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(Metrics::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_help_type_labels_and_an_end() {
        let metrics = Metrics::new();
        metrics.backend_call("dir", "put", "ok", Duration::from_millis(3));
        metrics.backend_sent("dir", 7);
        metrics.vfs_dirty_bytes.set(42);
        let text = metrics.encode();
        for line in [
            "# HELP cairn_vfs_dirty_bytes Bytes of files that are written and not committed.",
            "# TYPE cairn_backends_calls counter",
            "cairn_backends_calls_total{kind=\"dir\",operation=\"put\",outcome=\"ok\"} 1",
            "cairn_backends_sent_bytes_total{kind=\"dir\"} 7",
            "cairn_vfs_dirty_bytes 42",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_name_is_of_the_product_and_of_a_layer() {
        let layers =
            ["daemon", "fuse", "vfs", "metadata", "store", "backends", "replication", "checkpoint"];
        let text = Metrics::new().encode();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        // Families without a value yet are left out.
        assert!(names.len() > 15, "{names:?}");
        for name in names {
            let layer = name.strip_prefix("cairn_").and_then(|rest| rest.split('_').next());
            assert!(layer.is_some_and(|layer| layers.contains(&layer)), "{name}");
        }
    }
}
