//! `cairn stats`: the counters, and what is so right now.

use super::volume::Volume;
use crate::replication::BackendState;
use crate::telemetry::{metrics, resident_bytes};

/// The metrics' text, with gauges as of now. Asks no backend.
pub(super) fn stats(volume: &Volume) -> String {
    let metrics = metrics();
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let (dirty, memory) = volume.vfs.dirty_bytes();
    metrics.vfs_dirty_bytes.set(number(dirty));
    metrics.vfs_memory_bytes.set(number(memory));
    for (part, bound, used) in super::memory::parts(volume) {
        metrics.memory_part(part, number(bound), used.map(number));
    }
    let (resident, most) = resident_bytes();
    metrics.daemon_resident_bytes.set(number(resident));
    metrics.daemon_most_resident_bytes.set(number(most));
    metrics.vfs_nodes.set(number(volume.vfs.nodes_held()));
    metrics.vfs_open_files.set(number(volume.vfs.open_handles()));
    match volume.store.usage() {
        Ok(usage) => {
            metrics.store_used_bytes.set(number(usage.used_bytes));
            metrics.store_available_bytes.set(number(usage.available_bytes));
            metrics.store_capacity_bytes.set(number(usage.capacity_bytes));
        }
        Err(error) => tracing::warn!(%error, "the local store's space is not known"),
    }
    super::evict::gauges(volume);
    let stats = volume.namespace.stats();
    let [below_min, below_target, ..] = stats.pins_by_state;
    metrics.replication_queue_length.set(number(stats.queued));
    metrics.replication_queue_failed.set(number(stats.failed));
    metrics.replication_pins_below_min.set(number(below_min));
    metrics.replication_pins_below_target.set(number(below_target));
    let takes_writes = |state| matches!(state, BackendState::Up | BackendState::Degraded);
    let statuses = volume.registry.statuses();
    let away = statuses.iter().filter(|status| !takes_writes(status.state)).count();
    metrics.replication_backends_away.set(number(away as u64));
    let checkpoint = volume.checkpointer.status();
    metrics.checkpoint_age_seconds.set(number(checkpoint.age_s));
    metrics.checkpoint_copies.set(i64::from(checkpoint.copies));
    metrics.encode()
}
