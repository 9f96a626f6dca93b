use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{HookConfig, LEAST_CACHE, LocalRole, MemoryPlan};
use crate::backends::{BackendSpec, Micros};
use crate::replication::{InvalidPolicy, Policy, check_definition};
use crate::telemetry::LogFormat;
use crate::types::ByteSize;

/// What a new volume's file says.
pub const TEMPLATE: &str = "\
# Cairn volume settings. Flags and CAIRN_<SECTION>_<KEY> variables go over this file.
# Sizes: 4096, \"512MiB\", \"10GB\". Times are in seconds or milliseconds as the name says.

[volume]
# Copies and what an acknowledgement waits for. The local store counts as one.
# level: LOCAL_DURABILITY, SINGLE, QUORUM, ALL, TIERED, PROGRESSIVE; wait_on: close, fsync;
# on_degraded: queue, fail; `cairn policy set --help` has the other parts.
policy = \"min=2,target=3,max=5,level=QUORUM,wait_on=close,on_degraded=queue\"

# Policies by name, for `cairn policy set NAME PATH`; `cairn policy define` writes them.
# [policies]
# archive = \"min=3,target=3\"

[mount]
# Threads that read the kernel's requests.
threads = 4
# Memory of the daemon in all: data being written, caches, buffers. The sizes below and
# in [store] are parts of it; larger ones need a larger budget.
memory_bytes = \"512MiB\"
# Dirty data in memory; above it files being written go to the disk.
dirty_bytes = \"64MiB\"
# Files up to this size stay in memory until they are committed.
memory_file_bytes = \"128KiB\"
# Threads that hash a large file.
hash_threads = 2

[store]
# replica: the local store is the first copy of everything. cache: it keeps up to
# cache_bytes of what backends have, and counts as no copy; what they are not proven to
# have stays beyond that. `cairn mount --local-role` changes it, too.
role = \"replica\"
cache_bytes = \"20GiB\"
# A pack is sealed at this size.
pack_bytes = \"64MiB\"
# Cache of the metadata engine.
engine_cache_bytes = \"64MiB\"
# Cache of inner nodes of files and directories.
node_cache_bytes = \"32MiB\"
# Bytes of removed and overwritten files are given back to the disk this often,
# and soon after this many were given up or when the disk is nearly full.
collect_interval_s = 3600
collect_bytes = \"256MiB\"

[checkpoint]
# A delta at least this often while there are changes.
delta_interval_s = 30
# A new base after this long with changes.
base_interval_s = 300
# A new base when the deltas have this many bytes.
base_bytes = \"64MiB\"
# A new base when there are this many deltas.
max_deltas = 256

[replication]
# Deadline of one call of a backend.
call_deadline_s = 30
# How long a close or fsync waits for its level.
level_deadline_s = 60
# How often backends are asked whether they are well, and for their space. An error of
# any call is looked into at once.
probe_interval_s = 300
# How often backends that are away are asked whether they are back.
retry_interval_s = 5
# Copies at a backend that is away for longer than this do not count: others are made.
grace_s = 900
# Every content is compared with its policy this often.
check_interval_s = 900
# A copy is given up (trimmed, drained) only while enough others were proven within this.
proof_age_s = 86400
# Every copy, here and elsewhere, is read back and hashed this often, at this rate.
scrub_days = 30
scrub_bytes_per_second = \"64MiB\"
# Besides, so many contents of each place, chosen at random, are proven each day.
sample_contents = 64
# A file that is written with a content that is known already relies on copies that were
# looked at within this; older ones are audited before they count.
dedup_proof_s = 604800
# What nothing needs any more is looked for on each backend this often (0: only by
# `cairn gc`), and goes when it was found dead at least this long before.
collect_interval_s = 86400
collect_grace_s = 86400

[events]
# How long `cairn events` goes back, and how many bytes it may take.
keep_days = 90
keep_bytes = \"256MiB\"
# A backend that is down, or contents below their min, are an alarm after this long.
alarm_after_s = 60
# A place this full is an alarm.
full_percent = 90

[capacity]
# More bytes of files than this are an alarm, and so are more in the local store. Nothing
# stops: what must not be exceeded is a quota (`cairn quota set MOUNT --size 1TB`), and
# for a backend `stop=` in its URL (`alarm=` there: 100 GB).
alarm_bytes = \"50GB\"
local_alarm_bytes = \"100GB\"
# What a month may cost: all copies by the backends' price_gb_month=, and what was read and
# asked in the running month by price_gb_out= and price_request=; above it is an alarm, and
# cheaper backends come first, whatever else is wished. The policies' copies are made
# all the same. Empty: no ceiling.
cost_ceiling = \"\"

[log]
# error, warn, info, debug, trace, or a filter as in RUST_LOG.
level = \"info\"
# text or json
format = \"text\"

# What is told of alarms: below_min, corrupt, backend_down, capacity, cost. A command gets
# JSON on its standard input; a webhook a POST. `cairn hooks test` tries them.
# [[hooks]]
# on = [\"below_min\", \"corrupt\", \"backend_down\"]
# command = [\"/usr/local/bin/tell-me\"]
# interval_s = 3600       # one of a kind and subject in this time; the next says how many
# deadline_s = 30
# [[hooks]]
# on = [\"corrupt\"]
# webhook = \"https://example.org/alarm\"
# headers = { Authorization = \"file:/etc/cairn/token\" }      # or env:NAME

# Backends besides the local store; `cairn backend add URL` writes them.
# [[backends]]
# id = \"disk-b\"
# url = \"file:///mnt/disk-b/cairn\"      # or ipfs://127.0.0.1:5001, a Kubo
";

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not parse, or has an unknown key or a bad value.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with a hint.
        reason: String,
    },
    /// An environment variable has a bad value.
    #[error("environment variable {name}: {reason}")]
    Environment {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Built in.
    Default,
    /// The volume's file.
    File,
    /// A `CAIRN_` variable.
    Environment,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
        })
    }
}

/// `[volume]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeConfig {
    /// Text form of the policy.
    pub policy: String,
}

/// `[mount]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountConfig {
    /// Request threads.
    pub threads: u32,
    /// Memory in all.
    pub memory_bytes: ByteSize,
    /// Dirty bytes in memory.
    pub dirty_bytes: ByteSize,
    /// Files kept in memory.
    pub memory_file_bytes: ByteSize,
    /// Hash threads.
    pub hash_threads: u32,
}

/// `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// What the local store is.
    pub role: LocalRole,
    /// Bytes of the disk that it takes as a cache.
    pub cache_bytes: ByteSize,
    /// Pack size.
    pub pack_bytes: ByteSize,
    /// Engine cache.
    pub engine_cache_bytes: ByteSize,
    /// Node cache.
    pub node_cache_bytes: ByteSize,
    /// Seconds between collections.
    pub collect_interval_s: u64,
    /// Bytes given up that make a collection due.
    pub collect_bytes: ByteSize,
}

/// `[checkpoint]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Seconds between deltas.
    pub delta_interval_s: u64,
    /// Seconds between bases.
    pub base_interval_s: u64,
    /// Bytes of deltas.
    pub base_bytes: ByteSize,
    /// Number of deltas.
    pub max_deltas: u64,
}

/// `[replication]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationConfig {
    /// Seconds of one call.
    pub call_deadline_s: u64,
    /// Seconds of a wait for a level.
    pub level_deadline_s: u64,
    /// Seconds between probes of backends that are up.
    pub probe_interval_s: u64,
    /// Seconds between probes of backends that are away.
    pub retry_interval_s: u64,
    /// Seconds away after which copies stop counting.
    pub grace_s: u64,
    /// Seconds between two looks at all contents.
    pub check_interval_s: u64,
    /// Seconds for which a proof lets another copy go.
    pub proof_age_s: u64,
    /// Days in which every copy is read back.
    pub scrub_days: u64,
    /// Bytes a second that are read back at most.
    pub scrub_bytes_per_second: ByteSize,
    /// Contents of each place that are proven each day besides; 0: none.
    pub sample_contents: u64,
    /// Seconds for which a proof stands for a content that is written again.
    pub dedup_proof_s: u64,
    /// Seconds between collections of a backend; 0: none by itself.
    pub collect_interval_s: u64,
    /// Seconds that what nothing needs stays on a backend at least.
    pub collect_grace_s: u64,
}

/// `[events]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// Days that events are kept.
    pub keep_days: u64,
    /// Bytes of event files.
    pub keep_bytes: ByteSize,
    /// Seconds that a cause must hold.
    pub alarm_after_s: u64,
    /// Percent of a place's space.
    pub full_percent: u64,
}

/// `[capacity]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacityConfig {
    /// Bytes of files that make an alarm.
    pub alarm_bytes: ByteSize,
    /// Bytes of the local store that make an alarm.
    pub local_alarm_bytes: ByteSize,
    /// What copies may cost a month; empty is no ceiling.
    pub cost_ceiling: String,
}

impl CapacityConfig {
    /// The ceiling; `None` when there is none.
    ///
    /// # Errors
    /// What to write.
    pub fn ceiling(&self) -> Result<Option<Micros>, String> {
        let text = self.cost_ceiling.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let wrong =
            || format!("capacity.cost_ceiling = \"{text}\": write an amount such as \"12.50\"");
        Micros::parse(text).map(Some).ok_or_else(wrong)
    }
}

impl Default for CapacityConfig {
    fn default() -> Self {
        Self {
            alarm_bytes: ByteSize(50_000_000_000),
            local_alarm_bytes: ByteSize(100_000_000_000),
            cost_ceiling: String::new(),
        }
    }
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Filter.
    pub level: String,
    /// Form.
    pub format: LogFormat,
}

impl Default for VolumeConfig {
    fn default() -> Self {
        Self { policy: Policy::default().to_string() }
    }
}

impl Default for MountConfig {
    fn default() -> Self {
        Self {
            threads: 4,
            memory_bytes: ByteSize(512 << 20),
            dirty_bytes: ByteSize(64 << 20),
            memory_file_bytes: ByteSize(128 << 10),
            hash_threads: 2,
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            role: LocalRole::default(),
            cache_bytes: ByteSize(20 << 30),
            pack_bytes: ByteSize(64 << 20),
            engine_cache_bytes: ByteSize(64 << 20),
            node_cache_bytes: ByteSize(32 << 20),
            collect_interval_s: 3600,
            collect_bytes: ByteSize(256 << 20),
        }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            delta_interval_s: 30,
            base_interval_s: 300,
            base_bytes: ByteSize(64 << 20),
            max_deltas: 256,
        }
    }
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            call_deadline_s: 30,
            level_deadline_s: 60,
            probe_interval_s: 300,
            retry_interval_s: 5,
            grace_s: 900,
            check_interval_s: 900,
            proof_age_s: 86_400,
            scrub_days: 30,
            scrub_bytes_per_second: ByteSize(64 << 20),
            sample_contents: 64,
            dedup_proof_s: 604_800,
            collect_interval_s: 86_400,
            collect_grace_s: 86_400,
        }
    }
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self { keep_days: 90, keep_bytes: ByteSize(256 << 20), alarm_after_s: 60, full_percent: 90 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// All settings of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Copies.
    pub volume: VolumeConfig,
    /// Policies by name, in text form.
    pub policies: BTreeMap<String, String>,
    /// The mount.
    pub mount: MountConfig,
    /// The local store.
    pub store: StoreConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
    /// Backends' times.
    pub replication: ReplicationConfig,
    /// The audit, and alarms.
    pub events: EventsConfig,
    /// Bytes and money.
    pub capacity: CapacityConfig,
    /// Logs.
    pub log: LogConfig,
    /// Who is told of alarms.
    pub hooks: Vec<HookConfig>,
    /// Backends.
    pub backends: Vec<BackendSpec>,
}

impl Config {
    /// The file in a volume.
    #[must_use]
    pub fn path(volume: &Path) -> PathBuf {
        volume.join("cairn.toml")
    }

    /// Reads a volume's settings, with the environment over the file. The
    /// second value says where each `section.key` comes from.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(volume: &Path) -> Result<(Self, BTreeMap<String, Origin>), ConfigError> {
        let environment = |name: &str| std::env::var(name).ok();
        Self::load_with(volume, &environment)
    }

    fn load_with(
        volume: &Path,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Self, BTreeMap<String, Origin>), ConfigError> {
        let path = Self::path(volume);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Io { path, source }),
        };
        let invalid = |reason: String| ConfigError::Invalid { path: path.clone(), reason };
        let mut table: toml::Table = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        let defaults =
            toml::Table::try_from(Self::default()).map_err(|e| invalid(e.to_string()))?;
        let mut origins = BTreeMap::new();
        for (section, keys) in &defaults {
            for (key, default) in keys.as_table().into_iter().flatten() {
                let full = format!("{section}.{key}");
                let in_file = table.get(section).and_then(|s| s.get(key)).is_some();
                origins.insert(full.clone(), if in_file { Origin::File } else { Origin::Default });
                let name = format!("CAIRN_{}_{}", section.to_uppercase(), key.to_uppercase());
                if let Some(value) = environment(&name) {
                    let value = typed(&value, default)
                        .map_err(|reason| ConfigError::Environment { name, reason })?;
                    let entry =
                        table.entry(section.clone()).or_insert_with(|| toml::Table::new().into());
                    if let Some(section) = entry.as_table_mut() {
                        section.insert(key.clone(), value);
                    }
                    origins.insert(full, Origin::Environment);
                }
            }
        }
        let config: Self =
            table.try_into().map_err(|e: toml::de::Error| invalid(hint(e.message(), &defaults)))?;
        let policy: Policy =
            config.volume.policy.parse().map_err(|e: InvalidPolicy| invalid(e.to_string()))?;
        for (name, text) in &config.policies {
            check_definition(&policy, name, text)
                .map_err(|e| invalid(format!("[policies] {name}: {e}")))?;
        }
        MemoryPlan::of(&config).map_err(&invalid)?;
        let size = config.store.cache_bytes;
        if config.store.role == LocalRole::Cache && size.0 < LEAST_CACHE {
            let least = ByteSize(LEAST_CACHE);
            return Err(invalid(format!("store.cache_bytes = {size}: write at least {least}")));
        }
        config.capacity.ceiling().map_err(&invalid)?;
        for hook in &config.hooks {
            hook.check().map_err(&invalid)?;
        }
        for spec in &config.backends {
            BackendSpec::parse(&spec.url, &[]).map_err(|e| invalid(e.to_string()))?;
        }
        Ok((config, origins))
    }

    /// The policy of the file.
    #[must_use]
    pub fn policy(&self) -> Policy {
        // `load` has parsed it.
        self.volume.policy.parse().unwrap_or_default()
    }

    /// Changes the file, keeping comments and order.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn edit(
        volume: &Path,
        change: impl FnOnce(&mut toml_edit::DocumentMut),
    ) -> Result<(), ConfigError> {
        let path = Self::path(volume);
        let io = |source| ConfigError::Io { path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(io)?;
        let mut document: toml_edit::DocumentMut =
            text.parse().map_err(|e: toml_edit::TomlError| ConfigError::Invalid {
                path: path.clone(),
                reason: e.to_string(),
            })?;
        change(&mut document);
        let temporary = path.with_extension("toml.tmp");
        std::fs::write(&temporary, document.to_string())
            .and_then(|()| std::fs::File::open(&temporary)?.sync_all())
            .and_then(|()| std::fs::rename(&temporary, &path))
            .and_then(|()| std::fs::File::open(volume)?.sync_all())
            .map_err(io)
    }

    /// Writes the policy into the file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn set_policy(volume: &Path, policy: &Policy) -> Result<(), ConfigError> {
        Self::edit(volume, |document| {
            document["volume"]["policy"] = toml_edit::value(policy.to_string());
        })
    }

    /// Writes a named policy into the file, or removes it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn set_definition(
        volume: &Path,
        name: &str,
        text: Option<&str>,
    ) -> Result<(), ConfigError> {
        Self::edit(volume, |document| {
            let policies = document.entry("policies").or_insert_with(toml_edit::table);
            if let Some(text) = text {
                policies[name] = toml_edit::value(text);
            } else if let Some(policies) = policies.as_table_like_mut() {
                policies.remove(name);
            }
        })
    }

    /// Writes the list of backends into the file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn set_backends(volume: &Path, backends: &[BackendSpec]) -> Result<(), ConfigError> {
        Self::edit(volume, |document| {
            let mut tables = toml_edit::ArrayOfTables::new();
            for spec in backends {
                let mut table = toml_edit::Table::new();
                table["id"] = toml_edit::value(spec.id.as_str());
                table["url"] = toml_edit::value(spec.url.as_str());
                tables.push(table);
            }
            if tables.is_empty() {
                document.remove("backends");
            } else {
                document["backends"] = toml_edit::Item::ArrayOfTables(tables);
            }
        })
    }
}

/// Reads a variable's text as the type of the default.
fn typed(text: &str, default: &toml::Value) -> Result<toml::Value, String> {
    Ok(match default {
        toml::Value::Integer(_) => match text.parse::<ByteSize>() {
            Ok(size) => toml::Value::Integer(i64::try_from(size.0).map_err(|e| e.to_string())?),
            Err(error) => return Err(error.to_string()),
        },
        toml::Value::Boolean(_) => {
            toml::Value::Boolean(text.parse().map_err(|_| "write true or false".to_owned())?)
        }
        _ => toml::Value::String(text.to_owned()),
    })
}

/// Adds the nearest known key to an error about an unknown one.
fn hint(message: &str, defaults: &toml::Table) -> String {
    let message = message.trim();
    let Some(unknown) = message.split('`').nth(1).filter(|_| message.contains("unknown field"))
    else {
        return message.to_owned();
    };
    let mut known: Vec<&str> = defaults.keys().map(String::as_str).collect();
    known.extend(
        defaults
            .values()
            .filter_map(toml::Value::as_table)
            .flat_map(|t| t.keys().map(String::as_str)),
    );
    match known
        .into_iter()
        .min_by_key(|key| distance(key, unknown))
        .filter(|key| distance(key, unknown) <= 3)
    {
        Some(near) => format!("unknown key `{unknown}`; did you mean `{near}`?"),
        None => format!("unknown key `{unknown}`; `cairn config show` lists the known ones"),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = if x == *y { before } else { 1 + before.min(row[j]).min(row[j + 1]) };
            before = row[j + 1];
            row[j + 1] = cost;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        text: &str,
        variable: Option<(&str, &str)>,
    ) -> Result<(Config, BTreeMap<String, Origin>), ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(Config::path(dir.path()), text).unwrap();
        Config::load_with(dir.path(), &|name| {
            variable.filter(|(n, _)| *n == name).map(|(_, v)| v.to_owned())
        })
    }

    #[test]
    fn the_template_says_the_defaults() {
        assert_eq!(load(TEMPLATE, None).unwrap().0, Config::default());
    }

    #[test]
    fn the_environment_goes_over_the_file() {
        let variable = Some(("CAIRN_MOUNT_DIRTY_BYTES", "1MiB"));
        let (config, origins) = load("[mount]\ndirty_bytes = 5\nthreads = 9\n", variable).unwrap();
        assert_eq!((config.mount.dirty_bytes.0, config.mount.threads), (1 << 20, 9));
        assert_eq!(origins["mount.dirty_bytes"], Origin::Environment);
        assert_eq!(origins["mount.threads"], Origin::File);
        assert_eq!(origins["log.level"], Origin::Default);
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_hint() {
        let error = load("[mount]\ndirty_byte = 5\n", None).unwrap_err().to_string();
        assert!(error.contains("did you mean `dirty_bytes`?"), "{error}");
    }

    #[test]
    fn a_backend_in_memory_is_refused() {
        let text = "[[backends]]\nid = \"m\"\nurl = \"memory:m\"\n";
        let error = load(text, None).unwrap_err().to_string();
        assert!(error.contains("forgets everything"), "{error}");
    }

    #[test]
    fn edits_keep_comments() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(Config::path(dir.path()), TEMPLATE).unwrap();
        let spec = BackendSpec::parse("/mnt/b", &[]).unwrap();
        Config::set_backends(dir.path(), std::slice::from_ref(&spec)).unwrap();
        Config::set_policy(dir.path(), &"min=1,target=1".parse().unwrap()).unwrap();
        let text = std::fs::read_to_string(Config::path(dir.path())).unwrap();
        assert!(text.contains("# Threads that read the kernel's requests."));
        let config = Config::load_with(dir.path(), &|_| None).unwrap().0;
        assert_eq!((config.backends.clone(), config.policy().min), (vec![spec], 1));
    }
}
