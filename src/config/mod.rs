//! The volume's settings: `cairn.toml`, environment, defaults.
//!
//! Flags go over `CAIRN_<SECTION>_<KEY>`, which go over the file, which goes over
//! the defaults. Unknown keys are errors with a hint. The file keeps the user's
//! comments when a verb changes it.

mod hooks;
mod load;
mod memory;
mod role;

pub use self::hooks::HookConfig;
pub use self::load::{
    CapacityConfig, CheckpointConfig, Config, ConfigError, EventsConfig, LogConfig, MountConfig,
    Origin, ReplicationConfig, StoreConfig, TEMPLATE,
};
pub use self::memory::MemoryPlan;
pub use self::role::{LEAST_CACHE, LocalChange, LocalRole};
