//! `ipfs://HOST:PORT/FOLDER` and `ipfs+https://...`: what a URL says of a Kubo, and of
//! servers that are named in the same way.

use std::path::PathBuf;

use url::{Host, Url};

use super::error::{self, Words};
use crate::backends::web;
use crate::runtime::SecretSource;

/// What `auth=` gives.
pub(in crate::backends) const GIVES: &str = "`bearer:TOKEN` or `basic:USER:PASSWORD`";

/// Of URLs with TLS: that of a proxy in front of it.
const TLS_PORT: u16 = 443;
/// The longest folder, in bytes: with a name of 200 bytes it has to fit into a pin's
/// name (255 bytes).
const FOLDER_MAX: usize = 32;

/// What the URLs of one kind of server have in common.
#[derive(Debug)]
pub(in crate::backends) struct Scheme {
    /// Of URLs without TLS.
    pub plain: &'static str,
    /// Of those with it.
    pub tls: &'static str,
    /// Where it listens by default.
    pub port: u16,
    /// Where its API begins.
    pub root: &'static str,
    /// What to write where there is no host.
    pub usage: &'static str,
    /// An id for a place without a folder.
    pub id: &'static str,
    /// What its failures mean.
    pub words: &'static Words,
    /// The header that has its secret as it is; `Authorization` without one.
    pub key_header: Option<&'static str>,
}

/// Kubo's RPC.
pub(in crate::backends) static KUBO: Scheme = Scheme {
    plain: "ipfs",
    tls: "ipfs+https",
    port: 5001,
    root: "/api/v0/",
    usage: "write ipfs://HOST:5001, the address of Kubo's RPC",
    id: "kubo",
    words: &error::WORDS,
    key_header: None,
};

/// Where a Kubo is, or a server of another kind, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Address {
    scheme: &'static Scheme,
    tls: bool,
    host: String,
    port: u16,
    /// Where its API begins, when the URL says it.
    root: Option<String>,
    /// What keeps volumes at one Kubo apart; empty for the only one.
    pub(in crate::backends) folder: String,
    /// `auth=`: where the Authorization header comes from.
    pub(in crate::backends) auth: Option<SecretSource>,
    /// `ca=`: certificates (PEM) that are trusted instead of the system's.
    pub(in crate::backends) ca: Option<PathBuf>,
    /// `durable=1`: its copies count though its datastore does not flush.
    pub(in crate::backends) durable: bool,
}

impl Address {
    /// Reads scheme (with TLS or without), host, port and path.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub(in crate::backends) fn of(scheme: &'static Scheme, url: &Url) -> Result<Self, String> {
        let tls = url.scheme() == scheme.tls;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(web::no_place_for_secrets(GIVES));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_ascii_lowercase(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => format!("[{ip}]"),
            _ => return Err(scheme.usage.into()),
        };
        let folder = folder(url.path().trim_matches('/'))
            .map_err(|why| format!("the folder after the port {why}"))?;
        let port = url.port().unwrap_or(if tls { TLS_PORT } else { scheme.port });
        let (root, auth, ca) = (None, None, None);
        Ok(Self { scheme, tls, host, port, root, folder, auth, ca, durable: false })
    }

    /// The same for servers whose API begins at the path of the URL.
    ///
    /// # Errors
    /// As [`Address::of`].
    pub(in crate::backends) fn with_root(
        scheme: &'static Scheme,
        url: &Url,
    ) -> Result<Self, String> {
        let mut place = url.clone();
        place.set_path("");
        let root = format!("{}/", url.path().trim_end_matches('/'));
        Ok(Self { root: Some(root), ..Self::of(scheme, &place)? })
    }

    /// Takes a parameter of the URL; `None` when it is not one of a Kubo's.
    pub fn set(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        Some(match key {
            "auth" => web::auth(value, GIVES).map(|source| self.auth = Some(source)),
            "durable" => match value {
                "0" | "1" => {
                    self.durable = value == "1";
                    Ok(())
                }
                _ => Err(format!("durable={value}: write 1 or 0")),
            },
            "ca" if !self.tls => Err(format!("ca= goes with {}://", self.scheme.tls)),
            "ca" => web::ca(value).map(|path| self.ca = Some(path)),
            _ => return None,
        })
    }

    /// Another server of the same machine, of another kind, without TLS.
    pub(in crate::backends) fn beside(&self, scheme: &'static Scheme, port: u16) -> Self {
        Self {
            scheme,
            tls: false,
            host: self.host.clone(),
            port,
            root: None,
            folder: String::new(),
            auth: None,
            ca: None,
            durable: false,
        }
    }

    /// An id for it: its folder, or the kind of server.
    pub fn slug(&self) -> &str {
        if self.folder.is_empty() { self.scheme.id } else { &self.folder }
    }

    /// Whether both are one folder of one Kubo.
    pub fn is_same_place(&self, other: &Self) -> bool {
        let host = self.host_for_domain() == other.host_for_domain();
        let here = |one: &Self| (one.port, one.root.clone(), one.folder.clone());
        host && here(self) == here(other)
    }

    /// As people write it, without parameters.
    pub(in crate::backends) fn shown(&self) -> String {
        let scheme = if self.tls { self.scheme.tls } else { self.scheme.plain };
        if let Some(root) = &self.root {
            let root = root.trim_end_matches('/');
            let which = if self.folder.is_empty() { "" } else { "?folder=" };
            return format!("{scheme}://{}:{}{root}{which}{}", self.host, self.port, self.folder);
        }
        let slash = if self.folder.is_empty() { "" } else { "/" };
        format!("{scheme}://{}:{}{slash}{}", self.host, self.port, self.folder)
    }

    /// The root of its API.
    pub(super) fn base(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let root = self.root.as_deref().unwrap_or(self.scheme.root);
        format!("{scheme}://{}:{}{root}", self.host, self.port)
    }

    /// The header that has its secret as it is.
    pub(super) fn key_header(&self) -> Option<&'static str> {
        self.scheme.key_header
    }

    /// What its failures mean.
    pub(super) fn words(&self) -> &'static Words {
        self.scheme.words
    }

    /// The machine.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether it is this machine's.
    pub fn is_loopback(&self) -> bool {
        web::is_loopback(Host::parse(&self.host).ok().as_ref().map(|host| match host {
            Host::Domain(name) => Host::Domain(name.as_str()),
            Host::Ipv4(address) => Host::Ipv4(*address),
            Host::Ipv6(address) => Host::Ipv6(*address),
        }))
    }

    /// Whether who listens on the way can read what is sent.
    pub(super) fn is_open_to_listeners(&self) -> bool {
        !self.tls && !self.is_loopback()
    }

    fn host_for_domain(&self) -> &str {
        if self.is_loopback() { "localhost" } else { &self.host }
    }

    /// Two folders, and two Kubos, on one machine fail together.
    pub(in crate::backends) fn failure_domain(&self) -> String {
        format!("host:{}", self.host_for_domain())
    }
}

/// What keeps volumes at one server apart.
///
/// # Errors
/// With what it may be.
pub(in crate::backends) fn folder(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    if text.len() > FOLDER_MAX || !text.bytes().all(plain) {
        return Err(format!("has at most {FOLDER_MAX} of a-z, 0-9, `-`, `_`, `.`"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Result<Address, String> {
        Address::of(&KUBO, &text.parse().unwrap())
    }

    #[test]
    fn an_address_has_a_host_a_port_and_a_folder() {
        for (text, shown, base) in [
            ("ipfs://localhost", "ipfs://localhost:5001", "http://localhost:5001/api/v0/"),
            ("ipfs://10.0.0.1:5002/", "ipfs://10.0.0.1:5002", "http://10.0.0.1:5002/api/v0/"),
            ("ipfs://[::1]:9/a-b", "ipfs://[::1]:9/a-b", "http://[::1]:9/api/v0/"),
            (
                "ipfs+https://Kubo.example.org/x",
                "ipfs+https://kubo.example.org:443/x",
                "https://kubo.example.org:443/api/v0/",
            ),
        ] {
            let address = address(text).unwrap();
            assert_eq!((address.shown().as_str(), address.base().as_str()), (shown, base));
        }
        for bad in ["ipfs://", "ipfs:///x", "ipfs:x", "ipfs://h/a/b", "ipfs://h/A", "ipfs://h/%20"]
        {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_with_what_to_do() {
        for text in ["ipfs://user:hidden@h", "ipfs://hidden@h"] {
            let said = address(text).unwrap_err();
            assert!(said.contains("auth=file:") && !said.contains("hidden"), "{said}");
        }
        let mut plain = address("ipfs://h").unwrap();
        let said = plain.set("auth", "bearer:hidden").unwrap().unwrap_err();
        assert!(said.contains("auth=env:") && !said.contains("hidden"), "{said}");
        plain.set("auth", "file:/etc/kubo").unwrap().unwrap();
        assert!(plain.set("ca", "/etc/ca.pem").unwrap().unwrap_err().contains("ipfs+https"));
        let mut tls = address("ipfs+https://h").unwrap();
        tls.set("ca", "/etc/ca.pem").unwrap().unwrap();
        assert!(tls.set("ca", "ca.pem").unwrap().is_err());
        assert!(tls.set("durable", "1").unwrap().is_ok() && tls.durable);
        assert!(tls.set("durable", "yes").unwrap().is_err());
        assert!(tls.set("colour", "red").is_none());
    }

    #[test]
    fn one_place_has_many_names() {
        let one = address("ipfs://localhost:5001/x").unwrap();
        assert!(one.is_same_place(&address("ipfs://127.0.0.1/x").unwrap()));
        assert!(!one.is_same_place(&address("ipfs://127.0.0.1/y").unwrap()));
        assert!(!one.is_same_place(&address("ipfs://127.0.0.1:5002/x").unwrap()));
        assert_eq!(one.failure_domain(), "host:localhost");
        assert!(address("ipfs://kubo.lan").unwrap().is_open_to_listeners());
        assert!(!one.is_open_to_listeners());
    }
}
