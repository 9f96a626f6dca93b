//! `pinning+https://HOST/ROOT?kubo=..&gateway=..`: what a URL says of a pinning service.

use url::Url;

use super::error::{GATEWAY_WORDS, WORDS};
use crate::backends::kubo::{Address, GIVES, KUBO, Scheme, folder};
use crate::backends::web;
use crate::runtime::SecretSource;

/// The Pinning Service API.
static SERVICE: Scheme = Scheme {
    plain: "pinning+http",
    tls: "pinning+https",
    port: 9097,
    root: "/",
    usage: "write pinning+https://HOST/ROOT, the address that has `pins` below it",
    id: "pinning",
    words: &WORDS,
    key_header: None,
};

/// A gateway, at what comes before `ipfs/`.
static GATEWAY: Scheme = Scheme {
    plain: "http",
    tls: "https",
    port: 80,
    root: "/",
    usage: "write gateway=https://HOST, which has /ipfs/ below it",
    id: "gateway",
    words: &GATEWAY_WORDS,
    key_header: None,
};

/// How a service is reached, who gives it the blocks, and who gives them back.
#[derive(Debug, Clone)]
pub struct PinningSettings {
    pub(super) address: Address,
    kubo: Option<Address>,
    kubo_auth: Option<SecretSource>,
    gateway: Option<Address>,
    /// Our Kubo keeps what the service has pinned.
    pub(super) keep: bool,
}

impl PinningSettings {
    /// Reads scheme, host, port and root.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn of(url: &Url) -> Result<Self, String> {
        let address = Address::with_root(&SERVICE, url)?;
        Ok(Self { address, kubo: None, kubo_auth: None, gateway: None, keep: false })
    }

    /// Takes a parameter of the URL; `None` when it is not one of a service's.
    pub fn set(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        Some(match key {
            "folder" => folder(value)
                .map(|folder| self.address.folder = folder)
                .map_err(|why| format!("folder={value}: it {why}")),
            "kubo" => kubo(value).map(|kubo| self.kubo = Some(kubo)),
            "kubo_auth" => web::auth(value, GIVES)
                .map(|source| self.kubo_auth = Some(source))
                .map_err(|why| format!("kubo_{why}")),
            "gateway" => gateway(value).map(|gateway| self.gateway = Some(gateway)),
            "keep" => match value {
                "0" | "1" => {
                    self.keep = value == "1";
                    Ok(())
                }
                _ => Err(format!("keep={value}: write 1 or 0")),
            },
            // What a service does with its disks is its own.
            "durable" => return None,
            _ => return self.address.set(key, value),
        })
    }

    /// What is wrong about all of them together.
    ///
    /// # Errors
    /// With what to write instead.
    pub fn check(&self) -> Result<(), String> {
        if self.gateway.is_some() {
            return Ok(());
        }
        Err("a pinning service gives no bytes: name a gateway of it, by which blocks are read and \
             proven, with gateway=https://HOST"
            .to_owned())
    }

    /// Our Kubo, in a folder of its own there.
    pub(super) fn kubo(&self) -> Result<Address, String> {
        let mut kubo = match &self.kubo {
            Some(kubo) => kubo.clone(),
            None => kubo("ipfs://127.0.0.1:5001")?,
        };
        // No folder that a user gives has a colon.
        kubo.folder = format!("service:{}", self.address.folder);
        kubo.auth.clone_from(&self.kubo_auth);
        // What lies there lies there until the service has it.
        kubo.durable = true;
        Ok(kubo)
    }

    /// Who gives blocks back; `check` makes sure that there is one.
    pub(super) fn gateway(&self) -> Result<Address, String> {
        let mut gateway = self.gateway.clone().ok_or_else(|| GATEWAY.usage.to_owned())?;
        gateway.ca.clone_from(&self.address.ca);
        Ok(gateway)
    }

    /// An id for it.
    pub fn slug(&self) -> &str {
        self.address.slug()
    }

    /// The machine.
    pub fn host(&self) -> &str {
        self.address.host()
    }

    /// Whether it is this machine's.
    pub fn is_loopback(&self) -> bool {
        self.address.is_loopback()
    }

    /// Whether both are one folder of one service.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.address.is_same_place(&other.address)
    }
}

fn kubo(value: &str) -> Result<Address, String> {
    let usage = || format!("kubo={value}: write ipfs://HOST:5001, the RPC of a Kubo of yours");
    let url = Url::parse(value).map_err(|_| usage())?;
    if ![KUBO.plain, KUBO.tls].contains(&url.scheme()) || url.query().is_some() {
        return Err(usage());
    }
    let address = Address::of(&KUBO, &url)?;
    if address.folder.is_empty() { Ok(address) } else { Err(usage()) }
}

fn gateway(value: &str) -> Result<Address, String> {
    let usage = || format!("gateway={value}: {}", GATEWAY.usage);
    let url = Url::parse(value).map_err(|_| usage())?;
    if ![GATEWAY.plain, GATEWAY.tls].contains(&url.scheme()) || url.query().is_some() {
        return Err(usage());
    }
    Address::with_root(&GATEWAY, &url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<PinningSettings, String> {
        let url: Url = text.parse().unwrap();
        let mut settings = PinningSettings::of(&url)?;
        for (key, value) in url.query_pairs() {
            settings.set(&key, &value).ok_or_else(|| format!("{key} is none"))??;
        }
        settings.check().map(|()| settings)
    }

    #[test]
    fn a_url_names_a_service_a_kubo_and_a_gateway() {
        let one = settings(
            "pinning+https://api.example.org/psa/v1?gateway=https://gw.example.org&folder=photos\
             &kubo=ipfs%2Bhttps://kubo.lan:7&kubo_auth=env:K&auth=file:/t&keep=1&ca=/ca.pem",
        )
        .unwrap();
        assert_eq!(one.address.shown(), "pinning+https://api.example.org:443/psa/v1?folder=photos");
        assert_eq!(one.kubo().unwrap().shown(), "ipfs+https://kubo.lan:7/service:photos");
        assert_eq!(one.gateway().unwrap().shown(), "https://gw.example.org:443");
        assert_eq!((one.slug(), one.keep), ("photos", true));
        let plain = settings("pinning+http://127.0.0.1?gateway=http://127.0.0.1:8080").unwrap();
        assert_eq!(plain.address.shown(), "pinning+http://127.0.0.1:9097");
        assert_eq!(plain.kubo().unwrap().shown(), "ipfs://127.0.0.1:5001/service:");
        let same = settings("pinning+http://localhost:9097/?gateway=http://other").unwrap();
        assert!(plain.is_same_place(&same));
        assert!(!plain.is_same_place(&one));
        let other = settings("pinning+http://localhost:9097/v2?gateway=http://other").unwrap();
        assert!(!plain.is_same_place(&other));
    }

    #[test]
    fn settings_of_a_service_that_cannot_be_say_what_to_write() {
        for (bad, hint) in [
            ("", "gateway=https://HOST"),
            ("gateway=h", "/ipfs/"),
            ("gateway=ipfs://h", "/ipfs/"),
            ("gateway=http://h&kubo=h:5001", "ipfs://HOST:5001"),
            ("gateway=http://h&kubo=ipfs://h/folder", "ipfs://HOST:5001"),
            ("gateway=http://h&folder=A/b", "a-z"),
            ("gateway=http://h&keep=yes", "1 or 0"),
            ("gateway=http://h&durable=1", "durable"),
            ("gateway=http://h&auth=hidden", "auth=file:"),
            ("gateway=http://u:hidden@h", "auth=file:"),
            ("gateway=http://h&ca=/ca.pem", "pinning+https"),
        ] {
            let said = settings(&format!("pinning+http://h?{bad}")).unwrap_err();
            assert!(said.contains(hint), "{bad}: {said}");
            assert!(!said.contains("hidden"), "{said}");
        }
        assert!(settings("pinning+https://").unwrap_err().contains("pins"));
    }
}
