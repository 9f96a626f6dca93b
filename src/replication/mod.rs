//! Copies: how many, where, and who waits for them.
//!
//! `policy` says what is wanted. The `machine`, which does no I/O, knows the places'
//! health, compares desired and actual copies and orders the work by risk; the
//! durable queue (rows written in the transaction of the new root) says what is
//! missing. The `executor` sends it in post-order through a lane a backend, `verify` reads it back, `fetch` reads a block from
//! wherever it is good, and the checkpointer replicates the metadata. A crash
//! repeats work and never forgets it. A backend that is down or slow holds up
//! neither another one nor a read that another can answer.
//! `src/docs/replication.md` has the order of things and the guarantees.

mod adopt;
mod alarms;
mod assign;
mod audit;
mod bell;
mod calls;
mod checkpointer;
mod collect;
mod core;
mod doubts;
mod error;
mod event_files;
mod events;
mod evict;
mod executor;
mod explain;
mod fence;
mod fetch;
mod files;
mod health;
mod hedges;
mod keep;
mod level;
mod local;
mod local_manifests;
mod looks;
pub mod loss;
pub mod machine;
mod moves;
mod outlook;
mod pace;
mod pins;
mod policy;
mod policy_book;
mod policy_text;
mod probe;
mod queue;
mod race;
mod recover;
mod registry;
mod replicator;
mod room;
mod scrubbed;
mod send;
mod status;
mod upcoming;
mod upkeep;
mod verify;
mod waiters;
mod whereabouts;
mod whole;

pub use self::adopt::{Adopted, BlockSource, block_of_folder};
pub use self::alarms::{Alarm, AlarmKind, Fire, Notice, RateLimit};
pub use self::assign::Assignment;
pub use self::checkpointer::{CheckpointStatus, Checkpointer, CheckpointerOptions};
pub use self::collect::{BackendCollector, CollectMode, Collected, Mark};
pub use self::error::ReplicationError;
pub use self::event_files::{EventFiles, recover_events, repair_event_file};
pub use self::events::Events;
pub use self::evict::{CacheState, Evicted, Evictor};
pub use self::explain::{ExplainedPlace, ExplainedWait, Explanation};
pub use self::fetch::Wanted;
pub use self::health::{BackendState, BackendStatus};
pub use self::local::LocalBackend;
pub use self::pins::{CopyStatus, PinFilter, PinQuery, ShownCopy, ShownPin, ShownPins, ShownRow};
pub use self::policy::{
    Domain, InvalidPolicy, Level, OnDegraded, Policy, Strategy, TierClock, TierRule, WaitOn,
    WriteResult,
};
pub use self::policy_book::{
    Definition, PolicyBook, Resolved, TooManyPolicies, check_definition, check_name, expression,
    split_rule,
};
pub use self::queue::{ShownItem, ShownQueue, ShownWork};
pub use self::recover::{RecoverSource, Recovered, recover};
pub use self::registry::Registry;
pub use self::replicator::{Progress, Replicator, ReplicatorOptions};
pub use self::status::ReplicationStatus;
pub use self::whereabouts::Whereabouts;

#[cfg(test)]
mod tests;
