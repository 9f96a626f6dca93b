use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is not a log format: use text or json")),
        }
    }
}

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogTarget {
    /// Standard error.
    #[default]
    Stderr,
    /// A file, appended to; made with mode 0600, since names of files are in it.
    File(PathBuf),
}

/// Libraries that name what they sign with at lower levels: whatever is asked for.
const QUIET: &str = "reqsign_core=warn,reqsign_aws_core=warn,reqsign_aws_v4=warn";

/// Starts logging to standard error, as [`init_logging_to`] does.
///
/// # Errors
/// When `filter` does not parse.
pub fn init_logging(filter: &str, format: LogFormat) -> Result<(), String> {
    init_logging_to(filter, format, &LogTarget::Stderr)
}

/// Starts logging. `filter` is a level or what `tracing_subscriber::EnvFilter`
/// reads (`info,cairnfs::replication=debug`). A second call changes nothing.
///
/// # Errors
/// When `filter` does not parse or the file cannot be opened.
pub fn init_logging_to(filter: &str, format: LogFormat, target: &LogTarget) -> Result<(), String> {
    // A plain level is about us: libraries speak from warnings on.
    let is_level = filter.parse::<tracing::Level>().is_ok();
    // An answer that the kernel does not want any more, since its caller was killed,
    // is an error of `fuser::reply`; it is none of ours. A connection that ends is told by
    // who had it.
    let full = if is_level {
        format!("warn,fuser=error,fuser::reply=off,russh_sftp=error,cairnfs={filter}")
    } else {
        filter.to_owned()
    };
    let filter = EnvFilter::try_new(format!("{full},{QUIET}")).map_err(|error| {
        format!("log level `{filter}`: {error}; use error, warn, info, debug or trace")
    })?;
    let (writer, colour) = match target {
        LogTarget::Stderr => (BoxMakeWriter::new(std::io::stderr), std::io::stderr().is_terminal()),
        LogTarget::File(path) => {
            let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
            let file = opened
                .map_err(|error| format!("cannot open the log {}: {error}", path.display()))?;
            (BoxMakeWriter::new(Arc::new(file)), false)
        }
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let lines = fmt::layer().with_writer(writer).with_ansi(colour).with_target(false);
            registry.with(lines).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(writer)).try_init(),
    };
    // Already started (tests): the first one stays.
    started.or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logging_starts_once_and_says_what_a_level_is() {
        init_logging("warn", LogFormat::Text).unwrap();
        init_logging("debug,cairnfs::backends=trace", LogFormat::Json).unwrap();
        let error = init_logging("cairnfs=loud", LogFormat::Text).unwrap_err();
        assert!(error.contains("use error, warn"), "{error}");
        let nowhere = LogTarget::File("/no/such/folder/log".into());
        let error = init_logging_to("info", LogFormat::Json, &nowhere).unwrap_err();
        assert!(error.contains("/no/such/folder/log"), "{error}");
    }
}
