//! The replicator over real local stores, places in memory and planned faults.
//! Waiting is for conditions with a bound; nothing sleeps for a time.

mod acknowledge;
mod audits;
mod checkpoints;
mod collect;
mod copies;
mod events;
mod evict;
mod explain;
mod faults;
mod harness;
mod pins;
mod planner;
mod policy;
mod policy_book;
mod reads;
mod sources;
