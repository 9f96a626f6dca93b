//! `sftp://USER@HOST:PORT/folder`: what a URL says of a folder that SSH reaches.
//!
//! No secret is a setting. Who asks, and how, is what `ssh` itself finds: keys, agent,
//! `~/.ssh/config` with its aliases and jump hosts, known hosts.

use std::path::{Path, PathBuf};
use std::process::Command;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::backends::web;

const USAGE: &str = "write sftp://USER@HOST/folder, or sftp://HOST/~/folder in the home of who \
    logs in there";
/// Why a password, or `auth=`, has no place.
pub(in crate::backends) const GIVES: &str = "nothing: SSH finds keys and agents by itself, or \
    write identity=/path/of/key";
/// SSH's own.
const PORT: u16 = 22;
/// Seconds: who does not take a connection in this time is away.
const CONNECT: u32 = 5;
/// Who is silent for three times as many seconds is gone.
const ALIVE: u32 = 10;

/// What a URL says of a place behind SFTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftpSettings {
    user: Option<String>,
    /// A name, an address, or an alias of SSH's settings.
    host: String,
    port: Option<u16>,
    /// Absolute, or relative to the home of who logs in.
    folder: String,
    identity: Option<PathBuf>,
    config: Option<PathBuf>,
    known_hosts: Option<PathBuf>,
}

fn is_plain(text: &str, more: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(plain)
}

fn file(key: &str, value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    // ssh(1) reads `%` and `~` in some of its options.
    let fits = path.is_absolute() && !value.contains(['%', '"', '$']);
    if fits { Ok(path) } else { Err(format!("{key}={value}: write /the/whole/path")) }
}

impl SftpSettings {
    /// Reads user, host, port and folder.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub(in crate::backends) fn of(url: &Url) -> Result<Self, String> {
        if url.password().is_some() {
            return Err(format!(
                "a URL is no place for a password, as process lists, logs and the volume's \
                 metadata show it, and SSH takes none without a person: give it {}; change what \
                 was given away",
                GIVES.trim_start_matches("nothing: ")
            ));
        }
        let user = Some(url.username()).filter(|user| !user.is_empty());
        if let Some(user) = user.filter(|user| !is_plain(user, "-_.+")) {
            return Err(format!("`{user}` is not a user's name: {USAGE}"));
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        if !is_plain(host, "-_.:") {
            return Err(USAGE.to_owned());
        }
        let path = percent_decode_str(url.path()).decode_utf8();
        let path = path.map_err(|_| "a folder's name is UTF-8".to_owned())?;
        let path = path.trim_end_matches('/');
        let folder = path.strip_prefix("/~/").unwrap_or(path);
        let parts_fit = folder.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
        let begins = folder.split('/').next().is_some_and(|part| !matches!(part, "." | ".."));
        let is_named = !matches!(folder, "" | "/~");
        if !is_named || !parts_fit || !begins || folder.chars().any(char::is_control) {
            return Err(format!("name a folder of its own: {USAGE}"));
        }
        Ok(Self {
            user: user.map(str::to_owned),
            host: host.to_ascii_lowercase(),
            port: url.port(),
            folder: folder.to_owned(),
            identity: None,
            config: None,
            known_hosts: None,
        })
    }

    /// Takes a parameter of the URL; `None` when it is not one of SFTP's.
    pub(in crate::backends) fn set(
        &mut self,
        key: &str,
        value: &str,
    ) -> Option<Result<(), String>> {
        let place = match key {
            "identity" => &mut self.identity,
            "config" => &mut self.config,
            "known_hosts" => &mut self.known_hosts,
            _ => return None,
        };
        Some(file(key, value).map(|path| *place = Some(path)))
    }

    pub(super) fn folder(&self) -> &str {
        &self.folder
    }

    /// The machine.
    pub(in crate::backends) fn host(&self) -> &str {
        &self.host
    }

    /// Whether it is this machine.
    pub(in crate::backends) fn is_loopback(&self) -> bool {
        let address = self.host.parse().map(Host::Ipv6);
        web::is_loopback(Some(address.unwrap_or(Host::Domain(&self.host))))
    }

    /// An id for it: the last part of its path.
    pub(in crate::backends) fn slug(&self) -> &str {
        self.folder.rsplit('/').next().unwrap_or_default()
    }

    /// Two places on one machine fail together.
    pub(in crate::backends) fn failure_domain(&self) -> String {
        format!("host:{}", if self.is_loopback() { "localhost" } else { &self.host })
    }

    /// Whether both are one folder. The home is another one for another user.
    pub(in crate::backends) fn is_same_place(&self, other: &Self) -> bool {
        let port = |one: &Self| one.port.unwrap_or(PORT);
        let home = |one: &Self| (!one.folder.starts_with('/')).then(|| one.user.clone());
        self.failure_domain() == other.failure_domain()
            && port(self) == port(other)
            && self.folder == other.folder
            && home(self) == home(other)
    }

    /// As people write it, without parameters.
    pub(super) fn shown(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        let home = if self.folder.starts_with('/') { "" } else { "/~/" };
        format!("sftp://{user}{host}{port}{home}{}", self.folder)
    }

    /// What speaks SFTP with it. It asks nobody anything: who is not known, and a host that
    /// is not, is refused (ssh(1), `BatchMode`).
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("ssh");
        let option = |command: &mut Command, text: String| {
            command.arg("-o").arg(text);
        };
        let path = |path: &Path| path.display().to_string();
        if let Some(config) = &self.config {
            command.arg("-F").arg(config);
        }
        for text in [
            "BatchMode=yes",
            "LogLevel=ERROR",
            "ClearAllForwardings=yes",
            "ForwardAgent=no",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            "RequestTTY=no",
            // A connection of its own: one that is shared ends when somebody else ends it.
            "ControlMaster=no",
            "ControlPath=none",
        ] {
            option(&mut command, text.to_owned());
        }
        option(&mut command, format!("ConnectTimeout={CONNECT}"));
        option(&mut command, format!("ServerAliveInterval={ALIVE}"));
        if let Some(identity) = &self.identity {
            option(&mut command, "IdentitiesOnly=yes".to_owned());
            option(&mut command, format!("IdentityFile=\"{}\"", path(identity)));
        }
        if let Some(known) = &self.known_hosts {
            option(&mut command, format!("UserKnownHostsFile=\"{}\"", path(known)));
        }
        if let Some(user) = &self.user {
            command.arg("-l").arg(user);
        }
        if let Some(port) = self.port {
            command.arg("-p").arg(port.to_string());
        }
        command.args(["-s", "--", &self.host, "sftp"]);
        command
    }
}
