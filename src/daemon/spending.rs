//! What was read and asked of backends in the running month, kept over restarts.

use std::collections::BTreeMap;

use crate::metadata::Namespace;
use crate::replication::Registry;
use crate::replication::machine::Spent;
use crate::types::BackendId;

/// By backend.
pub(super) type Spending = BTreeMap<BackendId, Spent>;

/// Goes on with what the last life stored; what cannot be read begins at zero.
pub(super) fn resume(namespace: &Namespace, registry: &Registry) {
    let stored = namespace.stored_spending().map_err(|error| error.to_string());
    let spent = stored.and_then(|text| match text {
        Some(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
        None => Ok(Spending::new()),
    });
    let spent = spent.unwrap_or_else(|error| {
        tracing::warn!(error, "what the month cost so far cannot be read: it begins at zero");
        Spending::new()
    });
    registry.resume_spending(&spent);
}

/// Stores it when it changed.
pub(super) fn keep(namespace: &Namespace, registry: &Registry, kept: &mut Spending) {
    registry.settle_spending();
    let spent = registry.fleet().read().spent();
    if spent == *kept {
        return;
    }
    let stored = serde_json::to_vec(&spent).map_err(|error| error.to_string());
    match stored.and_then(|text| namespace.store_spending(&text).map_err(|e| e.to_string())) {
        Ok(()) => *kept = spent,
        Err(error) => tracing::warn!(error, "what the month cost so far cannot be stored"),
    }
}
