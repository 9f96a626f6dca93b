//! Copies: how many, where, and who waits for them.
//!
//! `policy` says what is wanted, `placement` chooses backends, the durable queue
//! (rows written in the transaction of the new root) says what is missing, the
//! executor sends it in post-order, `fetch` reads a block from wherever it is
//! good, and the checkpointer replicates the metadata. A crash repeats work and
//! never forgets it. A backend that is down never blocks a read that another
//! can answer.

mod checkpointer;
mod error;
mod fetch;
mod health;
mod placement;
mod policy;
mod recover;
mod registry;
mod replicator;
mod send;

pub use self::checkpointer::{CheckpointStatus, Checkpointer, CheckpointerOptions};
pub use self::error::ReplicationError;
pub use self::health::{BackendState, BackendStatus};
pub use self::policy::{InvalidPolicy, Level, OnDegraded, Policy, WaitOn, WriteResult};
pub use self::recover::{RecoverSource, Recovered, recover};
pub use self::registry::Registry;
pub use self::replicator::{Progress, Replicator, ReplicatorOptions};

#[cfg(test)]
mod tests;
