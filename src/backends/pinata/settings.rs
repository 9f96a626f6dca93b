//! `pinata://FOLDER?auth=..&gateway=..`: what a URL says of an account at Pinata.

use url::Url;

use super::error::{API_WORDS, GATEWAY_WORDS, UPLOAD_WORDS};
use crate::backends::kubo::{Address, Scheme, Words, folder};
use crate::backends::web;
use crate::runtime::SecretSource;

/// What `auth=` gives.
pub(in crate::backends) const GIVES: &str = "the JWT of a key of the account";

const fn scheme(
    words: &'static Words,
    usage: &'static str,
    key_header: Option<&'static str>,
) -> Scheme {
    Scheme {
        plain: "http",
        tls: "https",
        port: 80,
        root: "/",
        usage,
        id: "pinata",
        words,
        key_header,
    }
}

/// Files: listed, looked at, changed, deleted (Files API v3).
static API: Scheme =
    scheme(&API_WORDS, "write api=https://HOST/v3, the address that has `files` below it", None);
/// Files: uploaded.
static UPLOADS: Scheme = scheme(
    &UPLOAD_WORDS,
    "write uploads=https://HOST/v3, the address that has `files` below it",
    None,
);
/// A gateway, at what comes before `ipfs/`.
static GATEWAY: Scheme = scheme(
    &GATEWAY_WORDS,
    "write gateway=https://NAME.mypinata.cloud, the gateway of the account",
    Some("x-pinata-gateway-token"),
);

/// How an account is reached, and who gives its files back.
#[derive(Debug, Clone)]
pub struct PinataSettings {
    pub(super) folder: String,
    api: Address,
    uploads: Address,
    gateway: Option<Address>,
    auth: Option<SecretSource>,
    gateway_auth: Option<SecretSource>,
    ca: Option<std::path::PathBuf>,
}

impl PinataSettings {
    /// Reads the folder.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn of(url: &Url) -> Result<Self, String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(web::no_place_for_secrets(GIVES));
        }
        if url.port().is_some() || !url.path().trim_matches('/').is_empty() {
            return Err("write pinata://FOLDER, or pinata:// alone; another address of Pinata's \
                        API is api="
                .to_owned());
        }
        let folder = folder(url.host_str().unwrap_or_default())
            .map_err(|why| format!("the folder after pinata:// {why}"))?;
        Ok(Self {
            folder,
            api: address(&API, "api", "https://api.pinata.cloud/v3")?,
            uploads: address(&UPLOADS, "uploads", "https://uploads.pinata.cloud/v3")?,
            gateway: None,
            auth: None,
            gateway_auth: None,
            ca: None,
        })
    }

    /// Takes a parameter of the URL; `None` when it is not one of Pinata's.
    pub fn set(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        Some(match key {
            "auth" => web::auth(value, GIVES).map(|source| self.auth = Some(source)),
            "gateway_auth" => web::auth(value, "a key of the gateway")
                .map(|source| self.gateway_auth = Some(source))
                .map_err(|why| format!("gateway_{why}")),
            "gateway" => address(&GATEWAY, key, value).map(|at| self.gateway = Some(at)),
            "api" => address(&API, key, value).map(|at| self.api = at),
            "uploads" => address(&UPLOADS, key, value).map(|at| self.uploads = at),
            "ca" => web::ca(value).map(|path| self.ca = Some(path)),
            _ => return None,
        })
    }

    /// What is wrong about all of them together.
    ///
    /// # Errors
    /// With what to write instead.
    pub fn check(&self) -> Result<(), String> {
        if self.auth.is_none() {
            return Err(format!(
                "it asks whose account: say where {GIVES} is with auth=file:/path (of mode 0600), \
                 auth=env:NAME or auth=command:PROGRAM"
            ));
        }
        if self.gateway.is_none() {
            return Err(
                "what is stored there is read back by the account's gateway: name it with \
                        gateway=https://NAME.mypinata.cloud"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn with_access(&self, address: &Address, auth: Option<&SecretSource>) -> Address {
        let mut address = address.clone();
        address.auth = auth.cloned();
        address.ca.clone_from(&self.ca);
        address
    }

    pub(super) fn api(&self) -> Address {
        self.with_access(&self.api, self.auth.as_ref())
    }

    pub(super) fn uploads(&self) -> Address {
        self.with_access(&self.uploads, self.auth.as_ref())
    }

    /// `check` makes sure that there is one.
    pub(super) fn gateway(&self) -> Result<Address, String> {
        let gateway = self.gateway.as_ref().ok_or_else(|| GATEWAY.usage.to_owned())?;
        Ok(self.with_access(gateway, self.gateway_auth.as_ref()))
    }

    /// An id for it.
    pub fn slug(&self) -> &str {
        if self.folder.is_empty() { API.id } else { &self.folder }
    }

    /// The machine.
    pub fn host(&self) -> &str {
        self.api.host()
    }

    /// Whether it is this machine's.
    pub fn is_loopback(&self) -> bool {
        self.api.is_loopback()
    }

    /// Where copies fail together.
    pub(super) fn failure_domain(&self) -> String {
        self.api.failure_domain()
    }

    /// As people write it.
    pub(super) fn shown(&self) -> String {
        format!("pinata://{} ({})", self.folder, self.api.shown())
    }

    /// Whether both are one folder of one account: which account a token is of is not known,
    /// so folders of two accounts are told apart by their names.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.folder == other.folder && self.api.is_same_place(&other.api)
    }
}

fn address(scheme: &'static Scheme, key: &str, value: &str) -> Result<Address, String> {
    let usage = || format!("{key}={value}: {}", scheme.usage);
    let url = Url::parse(value).map_err(|_| usage())?;
    if ![scheme.plain, scheme.tls].contains(&url.scheme()) || url.query().is_some() {
        return Err(usage());
    }
    Address::with_root(scheme, &url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<PinataSettings, String> {
        let url: Url = text.parse().unwrap();
        let mut settings = PinataSettings::of(&url)?;
        for (key, value) in url.query_pairs() {
            settings.set(&key, &value).ok_or_else(|| format!("{key} is none"))??;
        }
        settings.check().map(|()| settings)
    }

    #[test]
    fn a_url_names_a_folder_a_key_and_a_gateway() {
        let one = settings(
            "pinata://photos?auth=env:JWT&gateway=https://a.mypinata.cloud&gateway_auth=file:/k\
             &ca=/ca.pem",
        )
        .unwrap();
        assert_eq!(one.shown(), "pinata://photos (https://api.pinata.cloud:443/v3)");
        assert_eq!(one.uploads().shown(), "https://uploads.pinata.cloud:443/v3");
        assert_eq!(one.gateway().unwrap().shown(), "https://a.mypinata.cloud:443");
        assert_eq!((one.slug(), one.host()), ("photos", "api.pinata.cloud"));
        assert!(one.gateway().unwrap().ca.is_some() && !one.is_loopback());
        let bare = settings(
            "pinata://?auth=file:/jwt&gateway=http://127.0.0.1:8080&api=http://127.0.0.1:1/v3\
             &uploads=http://127.0.0.1:1/v3",
        )
        .unwrap();
        assert_eq!((bare.slug(), bare.is_loopback()), ("pinata", true));
        assert!(!one.is_same_place(&bare));
        let same = settings("pinata://photos?auth=env:B&gateway=https://b.mypinata.cloud").unwrap();
        assert!(one.is_same_place(&same));
    }

    #[test]
    fn settings_of_an_account_that_cannot_be_say_what_to_write() {
        for (bad, hint) in [
            ("pinata://f", "auth=file:"),
            ("pinata://f?gateway=https://g", "auth=file:"),
            ("pinata://f?auth=env:J", "gateway=https://NAME"),
            ("pinata://f?auth=hidden", "auth=file:"),
            ("pinata://f?auth=env:J&gateway=g", "NAME.mypinata.cloud"),
            ("pinata://f?auth=env:J&gateway=https://u:hidden@g", "auth=file:"),
            ("pinata://f?auth=env:J&gateway=https://g&gateway_auth=hidden", "gateway_auth="),
            ("pinata://f?auth=env:J&gateway=https://g&api=ftp://x", "api=https://"),
            ("pinata://f?auth=env:J&gateway=https://g&uploads=x", "uploads=https://"),
            ("pinata://hidden:x@f?auth=env:J&gateway=https://g", "auth=file:"),
            ("pinata://f:99?auth=env:J&gateway=https://g", "api="),
            ("pinata://f/g?auth=env:J&gateway=https://g", "pinata://FOLDER"),
            ("pinata://F%20?auth=env:J&gateway=https://g", "a-z"),
            ("pinata://f?auth=env:J&gateway=https://g&ca=pem", "/the/whole"),
        ] {
            let said = settings(bad).unwrap_err();
            assert!(said.contains(hint), "{bad}: {said}");
            assert!(!said.contains("hidden"), "{said}");
        }
    }
}
