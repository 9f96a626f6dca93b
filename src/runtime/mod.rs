//! Where synchronous and asynchronous code meet, and the clock.
//!
//! `fuse`, `vfs`, `metadata`, `content` and `store` are synchronous threads;
//! `backends`, the executor and `api` run on tokio. Only [`Bridge`] crosses.
//! No lock may be held across a crossing.

mod bridge;
mod clock;
mod descriptors;
mod shutdown;

pub use self::bridge::{Bridge, BridgeError};
pub use self::clock::{Clock, ManualClock, SystemClock};
pub use self::descriptors::{descriptor_share, raise_descriptor_limit};
pub use self::shutdown::Shutdown;
