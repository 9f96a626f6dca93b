//! Logs and metrics. Metrics are declared in one place, named
//! `cairn_<layer>_<noun>_<unit>`, and have no paths or CIDs as labels.

mod logging;
mod metrics;
mod resident;

pub use self::logging::{LogFormat, LogTarget, init_logging, init_logging_to};
pub use self::metrics::{Metrics, metrics};
pub use self::resident::resident_bytes;
