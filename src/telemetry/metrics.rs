use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

/// Every metric of the process.
pub struct Metrics {
    registry: Registry,
    backend_calls: Family<Call, Counter>,
    backend_bytes: Counter,
    backend_seconds: Family<Operation, Histogram>,
    fuse_requests: Family<Call, Counter>,
    fuse_seconds: Family<Operation, Histogram>,
    /// Leaves that were hashed.
    pub vfs_leaves_hashed: Counter,
    /// Inner nodes that were hashed.
    pub vfs_nodes_hashed: Counter,
    /// Files that were committed.
    pub vfs_commits: Counter,
    /// Bytes of dirty files in memory.
    pub vfs_dirty_bytes: Gauge,
    /// Contents sent to backends.
    pub replication_contents_sent: Counter,
    /// Rounds of a content that failed.
    pub replication_rounds_failed: Counter,
    /// Blocks read from a backend because the local copy was missing or bad.
    pub replication_blocks_fetched: Counter,
    /// Copies whose bytes were wrong.
    pub replication_copies_corrupt: Counter,
    /// Checkpoints written.
    pub checkpoint_deltas_written: Counter,
    /// Bytes of checkpoints written.
    pub checkpoint_bytes_written: Counter,
}

fn seconds() -> Histogram {
    // 10 microseconds to 40 seconds.
    Histogram::new(exponential_buckets(0.000_01, 4.0, 12))
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::default();
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        Self {
            backend_calls: register!(
                "cairn_backend_calls",
                "Calls of backends, by operation and outcome",
                Family::default()
            ),
            backend_bytes: register!("cairn_backend_sent_bytes", "Bytes sent to backends", Counter::default()),
            backend_seconds: register!(
                "cairn_backend_call_seconds",
                "Duration of calls of backends",
                Family::new_with_constructor(seconds as fn() -> Histogram)
            ),
            fuse_requests: register!(
                "cairn_fuse_requests",
                "Requests of the kernel, by operation and outcome",
                Family::default()
            ),
            fuse_seconds: register!(
                "cairn_fuse_request_seconds",
                "Duration of requests of the kernel",
                Family::new_with_constructor(seconds as fn() -> Histogram)
            ),
            vfs_leaves_hashed: register!("cairn_vfs_leaves_hashed", "Leaves hashed", Counter::default()),
            vfs_nodes_hashed: register!("cairn_vfs_nodes_hashed", "Inner nodes hashed", Counter::default()),
            vfs_commits: register!("cairn_vfs_commits", "Files committed", Counter::default()),
            vfs_dirty_bytes: register!("cairn_vfs_dirty_bytes", "Bytes of dirty files in memory", Gauge::default()),
            replication_contents_sent: register!(
                "cairn_replication_contents_sent",
                "Contents sent to a backend",
                Counter::default()
            ),
            replication_rounds_failed: register!(
                "cairn_replication_rounds_failed",
                "Rounds of a content that failed",
                Counter::default()
            ),
            replication_blocks_fetched: register!(
                "cairn_replication_blocks_fetched",
                "Blocks read from a backend because the local copy was missing or bad",
                Counter::default()
            ),
            replication_copies_corrupt: register!(
                "cairn_replication_copies_corrupt",
                "Blocks whose bytes were wrong at a backend",
                Counter::default()
            ),
            checkpoint_deltas_written: register!(
                "cairn_checkpoint_written",
                "Deltas and bases written",
                Counter::default()
            ),
            checkpoint_bytes_written: register!(
                "cairn_checkpoint_written_bytes",
                "Bytes of deltas and bases written",
                Counter::default()
            ),
            registry,
        }
    }

    /// Counts one call of a backend.
    pub fn backend_call(&self, operation: &'static str, succeeded: bool, bytes: u64, elapsed: Duration) {
        let outcome = if succeeded { "ok" } else { "error" };
        self.backend_calls.get_or_create(&Call { operation, outcome }).inc();
        self.backend_bytes.inc_by(bytes);
        self.backend_seconds.get_or_create(&Operation { operation }).observe(elapsed.as_secs_f64());
    }

    /// Counts one request of the kernel.
    pub fn fuse_request(&self, operation: &'static str, succeeded: bool, elapsed: Duration) {
        let outcome = if succeeded { "ok" } else { "error" };
        self.fuse_requests.get_or_create(&Call { operation, outcome }).inc();
        self.fuse_seconds.get_or_create(&Operation { operation }).observe(elapsed.as_secs_f64());
    }

    /// All metrics in the OpenMetrics text format, which Prometheus reads.
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
