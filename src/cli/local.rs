//! `--local-role` and `--cache-size` of `cairn init`, `mount` and `recover`.

use clap::Args;

use crate::config::{LocalChange, LocalRole};
use crate::types::ByteSize;

/// What the local store is.
#[derive(Debug, Args)]
pub(super) struct Local {
    /// replica: the first copy of everything; cache: it keeps for a while what backends
    /// have, and counts as no copy.
    #[arg(long, value_name = "ROLE")]
    pub local_role: Option<LocalRole>,
    /// How much of the disk a cache takes (20GiB); what no backend is proven to have
    /// stays beyond that.
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<ByteSize>,
}

impl Local {
    pub fn change(&self) -> LocalChange {
        LocalChange { role: self.local_role, cache_bytes: self.cache_size }
    }
}
