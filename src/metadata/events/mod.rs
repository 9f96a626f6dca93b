//! What happened to the volume: kinds, sealed files, and questions about them.
//!
//! New events are rows of the engine (`Namespace::append_events`), in the deltas
//! and the base like other rows. When there are many, or after a day, they are
//! sealed into a Parquet file of `events/` and their rows go; files go by age and
//! size. Numbers only rise. A crash repeats a sealing and loses no row: a file is
//! durable before its rows go, and rows that a file has are passed over. It is an
//! audit, not the truth: no state is read from it.

mod file;
mod kind;
mod log;
mod query;

pub use self::file::{EventFile, check_event_file, check_events_of};
pub use self::kind::{EventKind, Severity};
pub use self::log::{EventLog, Retention};
pub use self::query::{EventPage, EventQuery, NumberedEvent};

#[cfg(test)]
mod tests;
