//! What the local store is to the volume.

use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError};
use crate::types::ByteSize;

/// A smaller cache would be busy with itself: packs, and what is being written.
pub const LEAST_CACHE: u64 = 16 << 20;

/// What the local store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalRole {
    /// The first copy of everything.
    #[default]
    Replica,
    /// It keeps for a while what backends have; what lies there is no copy.
    Cache,
}

impl FromStr for LocalRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "replica" => Ok(Self::Replica),
            "cache" => Ok(Self::Cache),
            other => Err(format!("`{other}` is no role: use replica or cache")),
        }
    }
}

impl LocalRole {
    /// The name in text and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replica => "replica",
            Self::Cache => "cache",
        }
    }
}

/// What is to change of the local store; nothing where nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocalChange {
    /// Its role.
    pub role: Option<LocalRole>,
    /// Bytes of a cache.
    pub cache_bytes: Option<ByteSize>,
}

impl LocalChange {
    /// Whether it would be a cache, when it is `now`.
    ///
    /// # Errors
    /// A size without a cache, or too small a one.
    pub fn check(&self, now: LocalRole) -> Result<LocalRole, String> {
        let role = self.role.unwrap_or(now);
        match self.cache_bytes {
            Some(_) if role == LocalRole::Replica => {
                Err("--cache-size is of a cache: say --local-role cache, too, or leave it out"
                    .into())
            }
            Some(size) if size.0 < LEAST_CACHE => Err(format!(
                "--cache-size {size}: a cache needs at least {}",
                ByteSize(LEAST_CACHE)
            )),
            _ => Ok(role),
        }
    }
}

impl Config {
    /// Writes what the local store is into the file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn set_local(volume: &Path, change: &LocalChange) -> Result<(), ConfigError> {
        Self::edit(volume, |document| {
            let store = document.entry("store").or_insert_with(toml_edit::table);
            if let Some(role) = change.role {
                store["role"] = toml_edit::value(role.as_str());
            }
            if let Some(size) = change.cache_bytes {
                let bytes = i64::try_from(size.0).unwrap_or(i64::MAX);
                store["cache_bytes"] = toml_edit::value(bytes);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TEMPLATE;

    #[test]
    fn the_role_is_written_into_the_file_and_a_size_needs_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(Config::path(dir.path()), TEMPLATE).unwrap();
        let change =
            LocalChange { role: Some(LocalRole::Cache), cache_bytes: Some(ByteSize(20 << 30)) };
        assert_eq!(change.check(LocalRole::Replica), Ok(LocalRole::Cache));
        Config::set_local(dir.path(), &change).unwrap();
        let (config, _) = Config::load(dir.path()).unwrap();
        assert_eq!(config.store.role, LocalRole::Cache);
        assert_eq!(config.store.cache_bytes.0, 20 << 30);
        let text = std::fs::read_to_string(Config::path(dir.path())).unwrap();
        assert!(text.contains("# A pack is sealed at this size."));
        let size = |bytes| LocalChange { role: None, cache_bytes: Some(ByteSize(bytes)) };
        assert!(size(1 << 30).check(LocalRole::Replica).unwrap_err().contains("--local-role"));
        assert_eq!(size(1 << 30).check(LocalRole::Cache), Ok(LocalRole::Cache));
        assert!(size(1 << 20).check(LocalRole::Cache).unwrap_err().contains("16.0 MiB"));
        assert!("disk".parse::<LocalRole>().unwrap_err().contains("replica or cache"));
        std::fs::write(
            Config::path(dir.path()),
            "[store]\nrole = \"cache\"\ncache_bytes = \"1MiB\"\n",
        )
        .unwrap();
        let error = Config::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("store.cache_bytes"), "{error}");
    }
}
