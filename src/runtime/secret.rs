use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::types::Secret;

/// The longest secret, in bytes.
const MOST: u64 = 64 << 10;
/// How long a program may take to give one.
const COMMAND: Duration = Duration::from_secs(10);

/// Where a secret is; never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// `env:NAME`: an environment variable.
    Variable(String),
    /// `file:PATH`: a file of one's own (or root's) that only its owner can read.
    File(PathBuf),
    /// `command:TEXT`: what a program (of `sh -c`) prints.
    Command(String),
}

impl SecretSource {
    /// Reads `env:NAME`, `file:PATH` or `command:TEXT`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':').filter(|(_, rest)| !rest.is_empty())?;
        match kind {
            "env" => Some(Self::Variable(rest.to_owned())),
            "file" => Some(Self::File(rest.into())),
            "command" => Some(Self::Command(rest.to_owned())),
            _ => None,
        }
    }

    /// Brings the secret, without what ends its last line. Blocks.
    ///
    /// # Errors
    /// What is wrong, and what to do; without the secret.
    pub fn read(&self) -> Result<Secret, String> {
        let text = match self {
            Self::Variable(name) => std::env::var(name).map_err(|_| {
                format!("the environment variable {name} is not set for the daemon")
            })?,
            Self::File(path) => of_file(path)?,
            Self::Command(text) => of_command(text)?,
        };
        let text = text.trim_end();
        if text.is_empty() {
            return Err(format!("{self} gives nothing"));
        }
        Ok(Secret::new(text.to_owned()))
    }

    /// Brings several, of which each has a name: `NAME=VALUE` lines, names in lower case.
    /// Where there are `[sections]`, those of `section`. `#` and `;` begin comments; values
    /// may stand in quotes. Blocks.
    ///
    /// # Errors
    /// As of [`Self::read`]; also for another form, and without such a section.
    pub fn read_named(&self, section: &str) -> Result<BTreeMap<String, Secret>, String> {
        let text = self.read()?;
        parse(text.expose(), section)
            .map_err(|(line, what)| format!("{self}, line {line}: {what}"))?
            .ok_or_else(|| format!("{self} has no section [{section}]: choose one with profile="))
    }
}

/// Whether a setting has a secret's name: where settings are shown, its value is not.
#[must_use]
pub fn is_secret_name(key: &str) -> bool {
    const WORDS: [&str; 7] =
        ["secret", "token", "password", "passwd", "access_key", "signature", "credential"];
    let key = key.to_ascii_lowercase().replace('-', "_");
    matches!(key.as_str(), "key" | "user" | "username" | "pass" | "auth")
        || key.ends_with("_auth")
        || WORDS.iter().any(|word| key.contains(word))
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Command(text) => write!(f, "command:{text}"),
        }
    }
}

fn of_file(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let fail = |error: std::io::Error| format!("{shown}: {error}");
    let file = std::fs::File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("{shown} has mode {mode:03o}: others can read it; chmod 600 {shown}"));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(format!("{shown} belongs to user {owner}, who may change it: chown it"));
    }
    if metadata.len() > MOST {
        return Err(format!("{shown} is too long for a secret"));
    }
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

fn of_command(text: &str) -> Result<String, String> {
    let fail = |error: std::io::Error| format!("`{text}` cannot be run: {error}");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", text]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // Its children end with it.
    let mut child = command.process_group(0).spawn().map_err(fail)?;
    let group = Pid::from_child(&child);
    let output = child.stdout.take();
    let (sender, receiver) = channel();
    let run = move || {
        let mut bytes = Vec::new();
        let read = output.map_or(Ok(0), |pipe| pipe.take(MOST + 1).read_to_end(&mut bytes));
        // Who does not listen any more killed it.
        sender.send(read.map(|_| bytes)).unwrap_or_default();
    };
    std::thread::Builder::new().name("cairn-secret".into()).spawn(run).map_err(fail)?;
    let read = receiver.recv_timeout(COMMAND);
    if !matches!(&read, Ok(Ok(bytes)) if bytes.len() as u64 <= MOST)
        && let Err(error) = kill_process_group(group, Signal::KILL)
    {
        tracing::debug!(%error, "a program that gives a secret has ended by itself");
    }
    let status = child.wait().map_err(fail)?;
    let bytes = read
        .map_err(|_| format!("`{text}` gave no secret within {COMMAND:?}: does it ask something?"))?
        .map_err(fail)?;
    if bytes.len() as u64 > MOST {
        return Err(format!("`{text}` printed too much for a secret"));
    }
    if !status.success() {
        return Err(format!("`{text}` failed ({status}): run it by hand to see why"));
    }
    String::from_utf8(bytes).map_err(|_| format!("`{text}` printed what is not UTF-8"))
}

type Section = BTreeMap<String, Secret>;

fn parse(text: &str, section: &str) -> Result<Option<Section>, (usize, &'static str)> {
    let (mut without, mut wanted) = (Section::new(), None::<Section>);
    let mut at: Option<String> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').ok_or((number, "a section is [NAME]"))?.trim();
            // `config` files have `[profile NAME]`, `credentials` files `[NAME]`.
            let name = name.strip_prefix("profile ").unwrap_or(name).trim();
            if name == section {
                wanted.get_or_insert_default();
            }
            at = Some(name.to_owned());
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (key, value) = line.split_once('=').ok_or((number, "write NAME=VALUE"))?;
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|quote| {
            value.strip_prefix(*quote)?.strip_suffix(*quote).filter(|inner| !inner.contains(*quote))
        });
        let secret = Secret::new(quoted.unwrap_or(value).to_owned());
        let key = key.trim().to_ascii_lowercase();
        match (&at, &mut wanted) {
            (None, _) => drop(without.insert(key, secret)),
            (Some(name), Some(found)) if name == section => drop(found.insert(key, secret)),
            _ => {}
        }
    }
    Ok(if at.is_none() { Some(without) } else { wanted })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn read(text: &str) -> Result<String, String> {
        Ok(SecretSource::parse(text).unwrap().read()?.expose().to_owned())
    }

    #[test]
    fn a_secret_comes_from_a_variable_a_file_of_ones_own_or_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "hidden\n").unwrap();
        let file = format!("file:{}", path.display());
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let said = read(&file).unwrap_err();
        assert!(said.contains("chmod 600") && !said.contains("hidden"), "{said}");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&file).unwrap(), "hidden");
        assert_eq!(read(&format!("command:cat {}", path.display())).unwrap(), "hidden");
        let said = read("command:echo hidden; exit 3").unwrap_err();
        assert!(said.contains("by hand") && !said.contains(" hidden\n"), "{said}");
        assert!(read("command:true").unwrap_err().contains("gives nothing"));
        assert!(read("command:cat /dev/zero").unwrap_err().contains("too much"));
        assert!(read("env:CAIRN_TEST_NOT_SET").unwrap_err().contains("CAIRN_TEST_NOT_SET"));
        assert!(read("file:/nonexistent/token").unwrap_err().contains("/nonexistent/token"));
        for other in ["hidden", "bearer:hidden", "env:", "file:", ""] {
            assert!(SecretSource::parse(other).is_none(), "{other}");
        }
        assert_eq!(SecretSource::parse(&file).unwrap().to_string(), file);
    }

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, SecretSource) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (dir, SecretSource::File(path))
    }

    #[test]
    fn secrets_are_read_from_lines_or_from_a_section() {
        let plain = "# mine\nexport AWS_ACCESS_KEY_ID=one\nAWS_SECRET_ACCESS_KEY = \"t=wo\"\n";
        let (_dir, keys) = file(plain, 0o600);
        let found = keys.read_named("default").unwrap();
        assert_eq!(found["aws_access_key_id"].expose(), "one");
        assert_eq!(found["aws_secret_access_key"].expose(), "t=wo");
        let sections = "[default]\naws_access_key_id = a\n[profile other]\naws_access_key_id = b\n";
        let (_dir, keys) = file(sections, 0o400);
        assert_eq!(keys.read_named("default").unwrap()["aws_access_key_id"].expose(), "a");
        assert_eq!(keys.read_named("other").unwrap()["aws_access_key_id"].expose(), "b");
        assert!(keys.read_named("third").unwrap_err().contains("no section [third]"));
        let program = SecretSource::parse("command:echo a=b").unwrap();
        assert_eq!(program.read_named("default").unwrap()["a"].expose(), "b");
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_none_is_refused_without_its_values() {
        for mode in [0o644, 0o640, 0o604, 0o660] {
            let (_dir, keys) = file("AWS_SECRET_ACCESS_KEY=hidden", mode);
            let error = keys.read_named("default").unwrap_err();
            assert!(error.contains("chmod 600") && !error.contains("hidden"), "{error}");
        }
        let (dir, keys) = file("hidden", 0o600);
        let error = keys.read_named("default").unwrap_err();
        assert!(error.contains("line 1: write NAME=VALUE") && !error.contains("hidden"), "{error}");
        assert_eq!(keys.read().unwrap().expose(), "hidden");
        let folder = SecretSource::File(dir.path().into());
        assert!(folder.read().unwrap_err().contains("not a file"));
        let none = SecretSource::File(dir.path().join("none"));
        assert!(none.read().unwrap_err().contains("none: "));
    }

    #[test]
    fn names_of_secrets_are_known_and_others_are_not_taken_for_them() {
        for name in ["secret", "SECRET_KEY", "access-key-id", "session_token", "X-Amz-Signature"] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["profile", "sse_key", "endpoint", "id", "domain", "priority"] {
            assert!(!is_secret_name(name), "{name}");
        }
    }
}
