use std::io::{IsTerminal, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::error::CliError;
use super::exit::Code;

/// Where results, progress and errors go.
pub(super) struct Output {
    pub json: bool,
    terminal: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json, terminal: std::io::stderr().is_terminal() }
    }

    /// Prints a result: JSON, or lines for people.
    pub fn result(&self, value: &Value, people: impl FnOnce(&mut String)) -> Result<(), CliError> {
        let mut text = String::new();
        if self.json {
            text = serde_json::to_string_pretty(value).map_err(CliError::failed)?;
            text.push('\n');
        } else {
            people(&mut text);
        }
        Self::print(text.as_bytes())
    }

    /// Writes to standard output. A reader that went away (`| head`) is no error.
    pub fn print(bytes: &[u8]) -> Result<(), CliError> {
        let mut out = std::io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(CliError::failed(format!("standard output: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// A line on standard error for people; not with `--json`.
    pub fn note(&self, text: &str) {
        if !self.json {
            Self::complain(text);
        }
    }

    fn complain(text: &str) {
        // Nobody can be told that standard error is closed.
        writeln!(std::io::stderr().lock(), "{text}").unwrap_or(());
    }

    /// Reports a failure and gives its exit code.
    pub fn fail(&self, error: &CliError) -> Code {
        if self.json {
            let value = json!({ "error": {
                "code": error.code as u8,
                "message": error.message,
                "hint": error.hint,
            }});
            Self::complain(&value.to_string());
        } else {
            Self::complain(&format!("cairn: {}", error.message));
            if !error.hint.is_empty() {
                Self::complain(&format!("       {}", error.hint));
            }
        }
        error.code
    }

    /// A bar on a terminal; nothing elsewhere.
    pub fn progress(&self) -> Progress {
        Progress { bar: None, wanted: self.terminal && !self.json }
    }
}

/// Shows how long work is.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    wanted: bool,
}

impl Progress {
    pub fn show(&mut self, what: &str, done: u64, total: Option<u64>) {
        if !self.wanted {
            return;
        }
        let bar = self.bar.get_or_insert_with(ProgressBar::no_length);
        if let Some(total) = total {
            bar.set_length(total);
        }
        let bytes = what.contains("bytes");
        let form = match (total.is_some(), bytes) {
            (true, true) => "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {eta}",
            (true, false) => "{spinner} {msg} [{bar:30}] {pos}/{len}",
            (false, true) => "{spinner} {msg} {bytes} {bytes_per_sec}",
            (false, false) => "{spinner} {msg} {pos}",
        };
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A path for people: control characters are escaped, so that a newline in a
/// name cannot forge a line of output.
pub(super) fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    shown_bytes(path.as_os_str().as_bytes())
}

/// Bytes of a name for people.
pub(super) fn shown_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newline_in_a_name_is_escaped() {
        assert_eq!(shown_bytes(b"a\nb\x1b\xff\xc3\xa9"), "a\\nb\\u{1b}\\xff\u{e9}");
    }
}
