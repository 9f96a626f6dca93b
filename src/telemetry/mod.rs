//! Logs and metrics. Metrics are declared in one place, named
//! `cairn_<layer>_<noun>_<unit>`, and have no paths or CIDs as labels.

mod logging;
mod metrics;

pub use self::logging::{LogFormat, init_logging};
pub use self::metrics::{Metrics, metrics};
