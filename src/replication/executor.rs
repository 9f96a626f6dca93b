//! Owned by the replication layer.
