//! Parquet: base, deltas, manifest, compaction, and loading them back.
