//! Puts the layers together into a volume and runs it.
//!
//! A volume's folder has `volume.json` (identity), `cairn.toml` (settings), `lock`
//! (held with the holder's pid), `control.sock`, `meta/` (engine), `store/`
//! (blocks), `checkpoints/` (Parquet), `events/` (Parquet) and `daemon.log`. One process holds a
//! volume at a time: the daemon of a mount, or a verb that works offline.

mod backends;
mod check;
mod collect;
#[cfg(test)]
mod collect_tests;
mod drain;
mod events;
mod evict;
mod gateway;
mod gc;
mod handler;
mod heal;
mod hooks;
mod identity;
mod loss;
mod memory;
mod moves;
mod pins;
mod policy;
mod queue;
mod quota;
mod run;
mod spending;
mod spool;
mod stats;
mod transfer;
mod tree;
mod tree_walk;
mod unmount;
mod unpin;
mod volume;
mod watch;
mod webhook;

pub use self::handler::{Offline, offline, status_json};
pub use self::hooks::hook_name;
pub use self::identity::{Identity, Lock, default_volume};
pub(crate) use self::run::tell;
pub use self::run::{MountRequest, run_mount};
pub(crate) use self::volume::check_local;
pub use self::volume::{CreateOptions, RecoverOptions, Volume, VolumeMode};
