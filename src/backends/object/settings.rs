//! What the URLs of object stores have in common.

use std::path::PathBuf;

use opendal::{Builder, Operator};
use url::Url;

use super::transport::Transport;
use crate::backends::{BackendError, ErrorKind, pack, web};
use crate::runtime::SecretSource;

/// Bytes of a key; ours need some 100 behind the prefix.
const PREFIX_MAX: usize = 512;

pub(super) fn is_plain(text: &str, more: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// A setting that is 1 or 0.
pub(super) fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "0" | "1" => Ok(value == "1"),
        _ => Err(format!("{key}={value}: write 1 or 0")),
    }
}

/// What stands behind the bucket, without a slash at either end; may be empty.
pub(super) fn prefix(url: &Url) -> Result<String, String> {
    let prefix = url.path().trim_matches('/');
    let parts_fit = prefix.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if prefix.is_empty() || is_plain(prefix, "-_./=") && parts_fit && prefix.len() <= PREFIX_MAX {
        return Ok(prefix.to_owned());
    }
    Err(format!("`{prefix}` is not a prefix: use letters, digits, -_.= and single slashes"))
}

/// A host of a store. `gives`: what `auth=` reads, for who writes a secret there.
pub(super) fn endpoint(value: &str, gives: &str) -> Result<Url, String> {
    let url = server(value, gives)?;
    if url.path() == "/" {
        return Ok(url);
    }
    Err(wrong("has more than a host and a port"))
}

/// The same where a path may be behind it.
fn server(value: &str, gives: &str) -> Result<Url, String> {
    let Ok(url) = Url::parse(value) else { return Err(wrong("is no URL")) };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(web::no_place_for_secrets(gives));
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong("is not http or https"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has more than a host and a port"));
    }
    Ok(url)
}

fn wrong(what: &str) -> String {
    format!("the endpoint {what}: write endpoint=https://HOST or http://HOST:PORT")
}

/// A host, with its port when it is not the usual one.
pub(super) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What the URLs of stores other than S3 have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backends) struct Common {
    /// Without a slash at either end; may be empty.
    pub prefix: String,
    pub endpoint: Option<Url>,
    pub ca: Option<PathBuf>,
    pub auth: Option<SecretSource>,
    pub conditional: bool,
    /// Small blocks share objects.
    pub packs: bool,
    pub pack_size: usize,
}

impl Common {
    pub fn of(url: &Url) -> Result<Self, String> {
        Ok(Self {
            prefix: prefix(url)?,
            endpoint: None,
            ca: None,
            auth: None,
            conditional: true,
            packs: true,
            pack_size: pack::BYTES,
        })
    }

    /// Takes a parameter; `None` when it is none of these.
    pub fn set(&mut self, key: &str, value: &str, gives: &str) -> Option<Result<(), String>> {
        Some(match key {
            "endpoint" => server(value, gives).map(|url| self.endpoint = Some(url)),
            "ca" => web::ca(value).map(|path| self.ca = Some(path)),
            "auth" => web::auth(value, gives).map(|source| self.auth = Some(source)),
            "conditional" => flag(key, value).map(|yes| self.conditional = yes),
            "packs" => flag(key, value).map(|yes| self.packs = yes),
            pack::PACK_SIZE => pack::size(value).map(|size| self.pack_size = size),
            _ => return None,
        })
    }

    /// What no parameter shows alone.
    pub fn check(&self) -> Result<(), String> {
        if self.ca.is_some() && self.endpoint.as_ref().is_some_and(|url| url.scheme() == "http") {
            return Err("ca= needs an endpoint with https".to_owned());
        }
        let path = self.endpoint.as_ref().map(Url::path).unwrap_or_default();
        if is_plain(path, "/-_.") {
            return Ok(());
        }
        Err("endpoint= has more than a host, a port and a path".to_owned())
    }

    /// Whether the store runs on this machine.
    pub fn is_loopback(&self) -> bool {
        web::is_loopback(self.endpoint.as_ref().and_then(Url::host))
    }

    /// The endpoint's host, or the store's usual one.
    pub fn host(&self, usual: impl FnOnce() -> String) -> String {
        self.endpoint.as_ref().map_or_else(usual, host)
    }

    /// Whether it is one of these hosts, or the usual one: what a machine there is given is
    /// for it alone.
    pub fn is_at(&self, ends: &[&str]) -> bool {
        let Some(endpoint) = &self.endpoint else { return true };
        let host = endpoint.host_str().unwrap_or_default();
        endpoint.scheme() == "https" && ends.iter().any(|end| host.ends_with(end))
    }

    /// The place for people.
    pub fn location(&self, scheme: &str, container: &str, host: &str) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{scheme}://{container}{slash}{} at {host}", self.prefix)
    }

    /// An operator that sends by our own client.
    pub fn operator(&self, builder: impl Builder, at: &str) -> Result<Operator, BackendError> {
        let invalid = |reason: String| BackendError::new(ErrorKind::Invalid, reason);
        let transport = Transport::open(self.ca.as_deref(), self.is_loopback()).map_err(invalid)?;
        let operator = Operator::new(builder).map(|operator| transport.serve(operator));
        operator.map_err(|error| {
            let message = format!("{at}: {}", error.message());
            BackendError::new(ErrorKind::Invalid, message).caused_by(error)
        })
    }
}
