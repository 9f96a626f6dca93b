//! Where synchronous and asynchronous code meet, and the clock.
//!
//! `fuse`, `vfs`, `metadata`, `content` and `store` are synchronous threads;
//! `backends`, the executor and `api` run on tokio. Only [`Bridge`] crosses.
//! No lock may be held across a crossing.
//!
//! What waits for a place that may never answer holds no thread: it is a
//! [`Step`] that names a future, and is asked again when that has come.

mod bridge;
pub mod buffers;
mod callers;
mod cancel;
mod clock;
mod descriptors;
pub mod failpoint;
mod late;
mod room;
mod secret;
mod shutdown;
mod spool;
mod step;

pub use self::bridge::{Bridge, BridgeError};
pub use self::callers::{Callers, Watched};
pub use self::cancel::Cancel;
pub use self::clock::{Clock, ManualClock, SystemClock};
pub use self::descriptors::{descriptor_share, raise_descriptor_limit};
pub use self::late::within;
pub use self::room::Room;
pub use self::secret::{SecretSource, is_secret_name};
pub use self::shutdown::Shutdown;
pub use self::spool::{Held, Spool};
pub use self::step::Step;
