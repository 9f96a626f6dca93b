//! `cairn://HOST:PORT` and `cairn+https://...`: what a URL says of a storage node.

use std::path::PathBuf;

use url::{Host, Url};

use crate::backends::web;
use crate::runtime::SecretSource;

/// What `auth=` gives.
pub(in crate::backends) const GIVES: &str = "the token that the node knows";
/// Where a node listens by default.
pub const PORT: u16 = 7180;

/// Where a node is, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    tls: bool,
    host: Host<String>,
    port: u16,
    /// `auth=`: where the token comes from.
    pub(super) auth: Option<SecretSource>,
    /// `ca=`: certificates (PEM) that are trusted instead of the system's.
    pub(super) ca: Option<PathBuf>,
}

impl Address {
    /// Reads scheme (`cairn` or `cairn+https`), host and port.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn of(url: &Url) -> Result<Self, String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(web::no_place_for_secrets(GIVES));
        }
        let write = "write cairn://HOST:7180, where `cairn serve` listens";
        let name = url.host_str().filter(|name| !name.is_empty()).ok_or(write)?;
        let host = Host::parse(&name.to_ascii_lowercase()).map_err(|_| write)?;
        if !matches!(url.path(), "" | "/") {
            return Err(format!("a node has no folders: {write}"));
        }
        let tls = url.scheme() == "cairn+https";
        Ok(Self { tls, host, port: url.port().unwrap_or(PORT), auth: None, ca: None })
    }

    /// Takes a parameter of the URL; `None` when it is not one of a node's.
    pub fn set(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        Some(match key {
            "auth" => web::auth(value, GIVES).map(|source| self.auth = Some(source)),
            "ca" if !self.tls => Err("ca= goes with cairn+https://".into()),
            "ca" => web::ca(value).map(|path| self.ca = Some(path)),
            _ => return None,
        })
    }

    /// Whether both are one node.
    pub fn is_same_place(&self, other: &Self) -> bool {
        (self.machine(), self.port) == (other.machine(), other.port)
    }

    /// As people write it, without parameters.
    pub fn shown(&self) -> String {
        let scheme = if self.tls { "cairn+https" } else { "cairn" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }

    /// The root of what it serves.
    pub(super) fn base(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}/", self.host, self.port)
    }

    /// An id for it.
    pub fn slug(&self) -> String {
        self.host.to_string().replace(['.', ':', '[', ']'], "-")
    }

    /// The machine.
    pub fn host(&self) -> String {
        self.host.to_string()
    }

    /// Whether it is this machine's.
    pub fn is_loopback(&self) -> bool {
        web::is_loopback(Some(match &self.host {
            Host::Domain(name) => Host::Domain(name.as_str()),
            Host::Ipv4(address) => Host::Ipv4(*address),
            Host::Ipv6(address) => Host::Ipv6(*address),
        }))
    }

    /// Whether who listens on the way can read what is sent.
    pub(super) fn is_open_to_listeners(&self) -> bool {
        !self.tls && !self.is_loopback()
    }

    /// One name for all ways to this machine.
    pub(super) fn machine(&self) -> String {
        if self.is_loopback() { "localhost".to_owned() } else { self.host.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Result<Address, String> {
        Address::of(&text.parse().unwrap())
    }

    #[test]
    fn a_node_has_a_host_and_a_port() {
        for (text, shown, base) in [
            ("cairn://localhost", "cairn://localhost:7180", "http://localhost:7180/"),
            ("cairn://10.0.0.1:9/", "cairn://10.0.0.1:9", "http://10.0.0.1:9/"),
            ("cairn://[::1]:9", "cairn://[::1]:9", "http://[::1]:9/"),
            ("cairn+https://Nas.lan", "cairn+https://nas.lan:7180", "https://nas.lan:7180/"),
        ] {
            let address = address(text).unwrap();
            assert_eq!((address.shown().as_str(), address.base().as_str()), (shown, base));
        }
        for bad in ["cairn://", "cairn:///x", "cairn:x", "cairn://h/a"] {
            assert!(address(bad).unwrap_err().contains("cairn serve"), "{bad}");
        }
        let said = address("cairn://user:hidden@h").unwrap_err();
        assert!(said.contains("auth=file:") && !said.contains("hidden"), "{said}");
        let one = address("cairn://localhost").unwrap();
        assert!(one.is_same_place(&address("cairn://127.0.0.1:7180").unwrap()));
        assert!(!one.is_same_place(&address("cairn://127.0.0.1:7181").unwrap()));
        assert!(
            !one.is_open_to_listeners() && address("cairn://nas").unwrap().is_open_to_listeners()
        );
    }
}
