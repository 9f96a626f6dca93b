//! How programs reach a running volume: the control socket's messages.
//!
//! One request a connection, one JSON object a line: `{"version":1,"request":..}`
//! is answered by any number of `{"progress":..}` (or `{"item":..}`, a stream) and one `{"ok":..}` or
//! `{"error":..}`. The socket is in the volume's folder, for its owner only.

mod control;
mod pins;

pub use self::control::{
    Command, ErrorCode, Failure, Handler, ProgressReport, connect, connect_stream, serve,
};
pub use self::pins::{PinCommand, QueueCommand, What};
