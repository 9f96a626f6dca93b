//! The `cairn` program as a user meets it: verbs, real mounts, crashes, recovery.
//!
//! Tests that need FUSE are passed over, loudly, where there is none, and fail
//! instead when `CI=true`. Every mount is taken away when its test ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at its first surprise")]

mod support;

mod access_times;
mod acl;
mod attributes;
mod backends;
mod bits;
mod cache;
mod cars;
mod clouds;
mod cluster_backend;
mod cold_reads;
mod collect;
mod crash;
mod damage;
mod descriptors;
mod directory;
mod edges;
mod ending;
mod events;
mod failpoints;
mod files;
mod full;
mod gateway;
mod healing;
mod ipfs_car;
mod kernel;
mod kubo;
mod kubo_backend;
mod lifecycle;
mod memory;
mod names;
mod nodes;
mod packages;
mod packs;
mod pinata;
mod pinning_backend;
mod pins;
mod policies;
mod postgres;
mod programs;
mod quota;
mod recovery;
mod s3;
mod semantics;
mod sftp_backend;
mod soak;
mod sparse;
mod stuck;
mod tls;
mod unixfs_attributes;
mod verbs;
