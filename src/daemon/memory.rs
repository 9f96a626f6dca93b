//! What each part of the memory's budget holds right now.

use serde_json::{Value, json};

use super::volume::Volume;
use crate::telemetry::resident_bytes;

/// Bytes of a part, where they are known.
fn used(volume: &Volume, part: &str) -> Option<u64> {
    let per = |bytes: u64, most: u64, count: u64| bytes * count / most.max(1);
    let memory = &volume.memory;
    let (rows, directories) = volume.vfs.cached();
    let (blocks, verified) = volume.store.cached();
    match part {
        "dirty" => Some(volume.vfs.dirty_bytes().1),
        "rows" => Some(
            per(memory.rows / 4 * 3, memory.cached_rows() as u64, rows)
                + per(memory.rows / 4, memory.cached_directories() as u64, directories),
        ),
        "requests" => Some(volume.vfs.held_bytes()),
        "node_cache" => Some(blocks),
        "verified" => Some(per(memory.verified, memory.verified_entries() as u64, verified)),
        "engine_writes" => Some(volume.namespace.engine().write_buffer_bytes()),
        _ => None,
    }
}

/// The budget and its parts: name, bound, and use where it is known.
pub(super) fn parts(volume: &Volume) -> Vec<(&'static str, u64, Option<u64>)> {
    let parts = volume.memory.parts();
    parts.iter().map(|(name, bound)| (*name, *bound, used(volume, name))).collect()
}

pub(super) fn memory_json(volume: &Volume) -> Value {
    let (now, most) = resident_bytes();
    let parts: Vec<Value> = parts(volume)
        .into_iter()
        .map(|(name, bound, used)| json!({ "part": name, "most_bytes": bound, "used_bytes": used }))
        .collect();
    json!({
        "budget_bytes": volume.memory.budget, "resident_bytes": now, "most_resident_bytes": most,
        "parts": parts,
    })
}
