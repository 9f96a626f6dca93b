use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use super::cluster::{ClusterBackend, ClusterSettings};
use super::kubo::{self, Address, KUBO, KuboBackend};
use super::object::{self, AzureSettings, GoogleSettings, ObjectBackend, S3Settings};
use super::pack::{self, Form, PACK_SIZE, PackBackend};
use super::peer::{self, PeerBackend};
use super::pinata::{self, PinataSettings};
use super::pinning::{PinningBackend, PinningSettings};
use super::settings::{PlaceOptions, PlaceSettings, is_name};
use super::sftp::{self, SftpBackend, SftpSettings};
use super::{Backend, BackendError, DirBackend, ErrorKind, web};
use crate::runtime::{SecretSource, is_secret_name};
use crate::types::{BackendId, ByteSize, printable};

/// Settings that say how a place is reached and with whose rights, not what it is.
const ACCESS: [&str; 14] = [
    "anonymous",
    "auth",
    "profile",
    "region",
    "style",
    "ca",
    "conditional",
    "kubo",
    "kubo_auth",
    "gateway",
    "gateway_auth",
    "identity",
    "config",
    "known_hosts",
];
/// Those of them that say whose keys are used, or name what is run.
const KEYS: [&str; 7] =
    ["auth", "profile", "kubo_auth", "gateway_auth", "identity", "config", "known_hosts"];
/// `gather=` of a place where small blocks share objects.
const GATHER: Duration = Duration::from_secs(1);

/// A backend as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Its id in the volume.
    pub id: BackendId,
    /// `file:///path`, `car:///path`, `parquet:///path`, `s3://bucket/prefix`,
    /// `azblob://container/prefix`, `gcs://bucket/prefix`,
    /// `ipfs://host:5001/folder`, `ipfs-cluster://host:9094/folder`,
    /// `pinning+https://host/root`, `pinata://folder` or `sftp://user@host/folder`.
    /// Query parameters are settings: `domain=`, `capacity=`, `read_only=1`, those of
    /// [`PlaceSettings`], and of its kind.
    pub url: String,
}

/// A URL that names no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backend `{url}`: {reason}")]
pub struct InvalidBackendUrl {
    /// As given (without secrets).
    pub url: String,
    /// What is wrong, and what to write instead.
    pub reason: String,
}

impl InvalidBackendUrl {
    fn new(url: &str, reason: impl Into<String>) -> Self {
        let mut reason: String = reason.into();
        // An error is one line, whatever was given.
        reason = reason.replace(|c: char| c.is_control(), "?");
        Self { url: printable(&without_secrets(url)), reason }
    }
}

/// Hides `user:password@` of a URL, and the values of parameters that have an `@` or are
/// named like secrets, unless they say where one is.
fn without_secrets(text: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = text.split_once("://") else { return text.into() };
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
    let authority = rest.split(['/', '#']).next().unwrap_or(rest);
    let rest = match authority.rsplit_once('@') {
        Some((secret, _)) => format!("***{}", &rest[secret.len()..]).into(),
        None => Cow::from(rest),
    };
    let Some(query) = query else { return format!("{scheme}://{rest}").into() };
    let shown = query.split('&').map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_secret = is_secret_name(key) && SecretSource::parse(value).is_none();
        let hide = is_secret || pair.contains('@') || pair.contains("%40");
        if hide { format!("{key}=***").into() } else { Cow::from(pair) }
    });
    format!("{scheme}://{rest}?{}", shown.collect::<Vec<_>>().join("&")).into()
}

/// What kind of place, and where.
enum Kind {
    Dir(PathBuf),
    /// A directory of archives of this form, of about so many bytes.
    Archives(Form, PathBuf, usize),
    S3(Box<S3Settings>),
    Azure(Box<AzureSettings>),
    Google(Box<GoogleSettings>),
    Kubo(Box<Address>),
    /// Another Cairn.
    Peer(Box<peer::Address>),
    Cluster(Box<ClusterSettings>),
    Pinning(Box<PinningSettings>),
    Pinata(Box<PinataSettings>),
    Sftp(Box<SftpSettings>),
}

impl Kind {
    /// Takes a parameter that only this kind has; `None`: it has not.
    fn set(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        match self {
            Self::Archives(_, _, size) if key == PACK_SIZE => {
                Some(pack::size(value).map(|bytes| *size = bytes))
            }
            Self::Dir(_) | Self::Archives(..) => None,
            Self::S3(settings) => settings.set(key, value),
            Self::Azure(settings) => settings.set(key, value),
            Self::Google(settings) => settings.set(key, value),
            Self::Kubo(address) => address.set(key, value),
            Self::Peer(address) => address.set(key, value),
            Self::Cluster(settings) => settings.set(key, value),
            Self::Pinning(settings) => settings.set(key, value),
            Self::Pinata(settings) => settings.set(key, value),
            Self::Sftp(settings) => settings.set(key, value),
        }
    }

    /// Whether small blocks share objects there.
    fn has_packs(&self) -> bool {
        match self {
            Self::Dir(_)
            | Self::Kubo(_)
            | Self::Peer(_)
            | Self::Cluster(_)
            | Self::Pinning(_)
            | Self::Sftp(_) => false,
            Self::Archives(..) | Self::Pinata(_) => true,
            Self::S3(settings) => settings.packs(),
            Self::Azure(settings) => settings.common.packs,
            Self::Google(settings) => settings.common.packs,
        }
    }

    /// What is wrong about all parameters together.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Dir(_) | Self::Archives(..) | Self::Kubo(_) | Self::Peer(_) | Self::Sftp(_) => {
                Ok(())
            }
            Self::S3(settings) => settings.check(),
            Self::Azure(settings) => settings.check(),
            Self::Google(settings) => settings.check(),
            Self::Cluster(settings) => settings.check(),
            Self::Pinning(settings) => settings.check(),
            Self::Pinata(settings) => settings.check(),
        }
    }

    /// Its own parameters, for people.
    fn known(&self) -> &'static str {
        match self {
            Self::Dir(_) => "",
            Self::Archives(..) => "pack_size, ",
            Self::S3(_) => {
                "endpoint, region, style, ca, auth, profile, storage_class, sse, sse_key, \
                 checksum, conditional, packs, pack_size, "
            }
            Self::Azure(_) => "account, endpoint, auth, ca, conditional, packs, pack_size, ",
            Self::Google(_) => {
                "endpoint, auth, anonymous, storage_class, ca, conditional, packs, pack_size, "
            }
            Self::Kubo(_) => "auth, ca, durable, ",
            Self::Peer(_) => "auth, ca, ",
            Self::Cluster(_) => {
                "auth, ca, durable, kubo, kubo_auth, fetch, replication_min, replication_max, \
                 allocations, metadata, expire_in, "
            }
            Self::Pinning(_) => "auth, ca, folder, gateway, kubo, kubo_auth, keep, ",
            Self::Pinata(_) => "auth, gateway, gateway_auth, api, uploads, ca, ",
            Self::Sftp(_) => "identity, config, known_hosts, ",
        }
    }

    /// What `auth=` gives.
    fn gives(&self) -> &'static str {
        match self {
            Self::Dir(_) | Self::Archives(..) => {
                "what a place over a network asks for (a directory asks for nothing)"
            }
            Self::S3(_) => object::GIVES,
            Self::Azure(_) => object::AZURE_GIVES,
            Self::Google(_) => object::GOOGLE_GIVES,
            Self::Kubo(_) | Self::Cluster(_) | Self::Pinning(_) => kubo::GIVES,
            Self::Pinata(_) => pinata::GIVES,
            Self::Peer(_) => peer::GIVES,
            Self::Sftp(_) => sftp::GIVES,
        }
    }

    /// Whether both are one place, whoever asks and however.
    fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Dir(one) | Self::Archives(_, one, _),
                Self::Dir(two) | Self::Archives(_, two, _),
            ) => one == two,
            (Self::S3(one), Self::S3(two)) => one.identity() == two.identity(),
            (Self::Azure(one), Self::Azure(two)) => one.identity() == two.identity(),
            (Self::Google(one), Self::Google(two)) => one.identity() == two.identity(),
            (Self::Kubo(one), Self::Kubo(two)) => one.is_same_place(two),
            (Self::Peer(one), Self::Peer(two)) => one.is_same_place(two),
            (Self::Cluster(one), Self::Cluster(two)) => one.is_same_place(two),
            (Self::Pinning(one), Self::Pinning(two)) => one.is_same_place(two),
            (Self::Pinata(one), Self::Pinata(two)) => one.is_same_place(two),
            (Self::Sftp(one), Self::Sftp(two)) => one.is_same_place(two),
            _ => false,
        }
    }
}

/// What a URL says.
struct Parsed {
    url: Url,
    kind: Kind,
    id: Option<BackendId>,
    options: PlaceOptions,
}

fn parse(text: &str) -> Result<Parsed, InvalidBackendUrl> {
    let invalid = |reason: String| InvalidBackendUrl::new(text, reason);
    let control = "a backend's name has no newline and no control character";
    if text.bytes().any(|b| b.is_ascii_control()) {
        return Err(invalid(control.into()));
    }
    let url = if text.starts_with('/') {
        // A plain path: `?`, `#` and `%` in it are part of the name.
        Url::from_file_path(text).map_err(|()| invalid("it is not an absolute path".into()))?
    } else {
        Url::parse(text)
            .map_err(|e| invalid(format!("not a URL ({e}): write /path or file:///path")))?
    };
    if url.fragment().is_some() {
        return Err(invalid("a `#` in a path of a URL is written %23".into()));
    }
    let mut kind = match url.scheme() {
        scheme @ ("file" | "car" | "parquet") => {
            // Only of this scheme a URL gives a path.
            let local = Url::parse(&format!("file{}", &url.as_str()[scheme.len()..]));
            let path = local.ok().filter(|_| url.host_str().is_none_or(str::is_empty));
            let path = path.and_then(|url| url.to_file_path().ok());
            let path = path.ok_or_else(|| invalid(format!("write {scheme}:///absolute/path")))?;
            if path.as_os_str().as_bytes().iter().any(u8::is_ascii_control) {
                return Err(invalid(control.into()));
            }
            match Form::named(scheme) {
                Some(form) => Kind::Archives(form, path, pack::BYTES),
                None => Kind::Dir(path),
            }
        }
        "s3" => Kind::S3(Box::new(S3Settings::of(&url).map_err(invalid)?)),
        "azblob" => Kind::Azure(Box::new(AzureSettings::of(&url).map_err(invalid)?)),
        "gcs" => Kind::Google(Box::new(GoogleSettings::of(&url).map_err(invalid)?)),
        "memory" => {
            return Err(invalid(
                "`memory:` is for tests and forgets everything: write file:///path or a path"
                    .into(),
            ));
        }
        "cairn" | "cairn+https" => Kind::Peer(Box::new(peer::Address::of(&url).map_err(invalid)?)),
        "ipfs" | "ipfs+https" => Kind::Kubo(Box::new(Address::of(&KUBO, &url).map_err(invalid)?)),
        "ipfs-cluster" | "ipfs-cluster+https" => {
            Kind::Cluster(Box::new(ClusterSettings::of(&url).map_err(invalid)?))
        }
        "pinning+http" | "pinning+https" => {
            Kind::Pinning(Box::new(PinningSettings::of(&url).map_err(invalid)?))
        }
        "pinata" => Kind::Pinata(Box::new(PinataSettings::of(&url).map_err(invalid)?)),
        "sftp" => Kind::Sftp(Box::new(SftpSettings::of(&url).map_err(invalid)?)),
        scheme => {
            return Err(invalid(format!(
                "`{scheme}` is not a kind of backend: write file:///path, a path \
                 (./ before a relative one with a colon), car:///path, parquet:///path, \
                 s3://BUCKET/PREFIX, azblob://CONTAINER/PREFIX?account=NAME, gcs://BUCKET/PREFIX, \
                 ipfs://HOST:5001, ipfs-cluster://HOST:9094, \
                 pinning+https://HOST, pinata://FOLDER, sftp://USER@HOST/folder or \
                 cairn://HOST:7180"
            )));
        }
    };
    let (id, options) = settings(text, &url, &mut kind)?;
    kind.check().map_err(invalid)?;
    Ok(Parsed { url, kind, id, options })
}

fn settings(
    text: &str,
    url: &Url,
    kind: &mut Kind,
) -> Result<(Option<BackendId>, PlaceOptions), InvalidBackendUrl> {
    let invalid = |reason: String| InvalidBackendUrl::new(text, reason);
    let (mut options, mut id) = (PlaceOptions::default(), None);
    let mut place = PlaceSettings::default();
    let mut seen: Vec<Cow<'_, str>> = Vec::new();
    for (key, value) in url.query_pairs() {
        match key.as_ref() {
            "id" => {
                let parsed = value.parse::<BackendId>();
                id = Some(parsed.map_err(|error| invalid(error.to_string()))?);
            }
            "domain" => {
                if !is_name(&value) {
                    let reason = "domain= is a name of letters, digits and -_.:/";
                    return Err(invalid(reason.to_owned()));
                }
                options.domain = Some(value.into_owned());
            }
            "capacity" => {
                let size = value.parse::<ByteSize>();
                options.capacity = Some(size.map_err(|error| invalid(error.to_string()))?.0);
            }
            "read_only" => {
                options.read_only = match value.as_ref() {
                    "1" | "true" | "" => true,
                    "0" | "false" => false,
                    other => return Err(invalid(format!("read_only={other}: write 1 or 0"))),
                };
            }
            other => {
                let taken = place.set(other, &value).or_else(|| kind.set(other, &value));
                let refused = || {
                    Err(if is_secret_name(other) && SecretSource::parse(&value).is_none() {
                        web::no_place_for_secrets(kind.gives())
                    } else {
                        unknown(other, kind)
                    })
                };
                taken.unwrap_or_else(refused).map_err(invalid)?;
            }
        }
        if seen.contains(&key) {
            return Err(invalid(format!("`{key}` is set twice")));
        }
        seen.push(key);
    }
    Ok((id, options))
}

fn unknown(key: &str, kind: &Kind) -> String {
    format!(
        "`{}` is not a setting: use id, domain, capacity, read_only, {}tier, host, site, \
         provider, priority, price_gb_month, price_gb_out, price_request, alarm, stop, \
         bandwidth, requests, parallel, gather, collect or scrub",
        printable(key),
        kind.known()
    )
}

/// An id from the last part of a path, a bucket or a folder: `/mnt/Disk B` gives `disk-b`.
fn slug(kind: &Kind) -> String {
    let name = match kind {
        Kind::Dir(path) | Kind::Archives(_, path, _) => {
            path.file_name().unwrap_or_default().to_string_lossy().to_lowercase()
        }
        Kind::S3(settings) => settings.bucket().to_lowercase(),
        Kind::Azure(settings) => settings.container().to_owned(),
        Kind::Google(settings) => settings.bucket().to_owned(),
        Kind::Kubo(address) => address.slug().to_owned(),
        Kind::Peer(address) => address.slug(),
        Kind::Cluster(settings) => settings.slug().to_owned(),
        Kind::Pinning(settings) => settings.slug().to_owned(),
        Kind::Pinata(settings) => settings.slug().to_owned(),
        Kind::Sftp(settings) => settings.slug().to_lowercase(),
    };
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let clean: String = name.chars().map(plain).collect();
    let clean: String = clean.trim_matches('-').chars().take(48).collect();
    if clean.is_empty() || clean == "local" { "dir".to_owned() } else { clean }
}

impl BackendSpec {
    /// Reads what a user typed; derives an id from the URL unless `id=` names
    /// one; `taken` ids are avoided by a number at the end. Relative paths are
    /// made absolute.
    ///
    /// # Errors
    /// [`InvalidBackendUrl`] for an unknown scheme, a bad parameter or id.
    pub fn parse(text: &str, taken: &[BackendId]) -> Result<Self, InvalidBackendUrl> {
        let invalid = |reason: String| InvalidBackendUrl::new(text, reason);
        if text.is_empty() {
            return Err(invalid("it is empty: write /path or file:///path".into()));
        }
        let is_relative_path =
            !text.starts_with('/') && (text.starts_with('.') || !text.contains(':'));
        let absolute: Cow<'_, str> = if is_relative_path {
            let path = std::path::absolute(text).map_err(|error| invalid(error.to_string()))?;
            let path = path.into_os_string().into_string();
            path.map_err(|_| invalid("a path that is not UTF-8 is written as file:// URL".into()))?
                .into()
        } else {
            text.into()
        };
        let Parsed { mut url, kind, id, .. } = parse(&absolute)?;
        let base = id.as_ref().map_or_else(|| slug(&kind), |id| id.as_str().to_owned());
        let is_taken = |text: &str| text == "local" || taken.iter().any(|id| id.as_str() == text);
        if id.is_some() && is_taken(&base) {
            let why = if base == "local" { "means the volume's own store" } else { "is taken" };
            return Err(invalid(format!("the id `{base}` {why}: choose another one with id=")));
        }
        let mut name = base.clone();
        let mut number = 2;
        while is_taken(&name) {
            name = format!("{base}-{number}");
            number += 1;
        }
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(key, _)| key != "id")
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        let id = name.parse::<BackendId>().map_err(|error| invalid(error.to_string()))?;
        Ok(Self { id, url: url.into() })
    }

    /// The id that a user typed with a URL, if it has one.
    ///
    /// # Errors
    /// As [`BackendSpec::parse`].
    pub fn given_id(text: &str) -> Result<Option<BackendId>, InvalidBackendUrl> {
        Self::parse(text, &[])?;
        // What is no URL is a path, which has no parameters.
        Ok(parse(text).ok().and_then(|parsed| parsed.id))
    }

    /// The same place, opened so that nothing is written there.
    #[must_use]
    pub fn read_only(&self) -> Self {
        self.keeping(|key| key != "read_only", &[("read_only".into(), "1".into())])
    }

    /// What the volume knows of its place.
    #[must_use]
    pub fn settings(&self) -> PlaceSettings {
        let mut settings = Url::parse(&self.url)
            .map_or_else(|_| PlaceSettings::default(), |url| PlaceSettings::of(&url))
            .at(self.remote_host());
        if parse(&self.url).is_ok_and(|parsed| parsed.kind.has_packs()) {
            settings.gather.get_or_insert(GATHER);
        }
        settings
    }

    /// The machine that has it, when it is not this one.
    fn remote_host(&self) -> Option<String> {
        match parse(&self.url).ok()?.kind {
            Kind::Dir(_) | Kind::Archives(..) => None,
            Kind::S3(settings) => (!settings.is_loopback()).then(|| settings.host()),
            Kind::Azure(settings) => (!settings.common.is_loopback()).then(|| settings.host()),
            Kind::Google(settings) => (!settings.common.is_loopback()).then(|| settings.host()),
            Kind::Kubo(address) => (!address.is_loopback()).then(|| address.host().to_owned()),
            Kind::Peer(address) => (!address.is_loopback()).then(|| address.host()),
            Kind::Cluster(settings) => {
                (!settings.is_loopback()).then(|| settings.host().to_owned())
            }
            Kind::Pinning(settings) => {
                (!settings.is_loopback()).then(|| settings.host().to_owned())
            }
            Kind::Pinata(settings) => (!settings.is_loopback()).then(|| settings.host().to_owned()),
            Kind::Sftp(settings) => (!settings.is_loopback()).then(|| settings.host().to_owned()),
        }
    }

    /// The directory, when the backend is one on this machine.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        match parse(&self.url).ok()?.kind {
            Kind::Dir(path) | Kind::Archives(_, path, _) => Some(path),
            Kind::S3(_)
            | Kind::Azure(_)
            | Kind::Google(_)
            | Kind::Kubo(_)
            | Kind::Peer(_)
            | Kind::Cluster(_)
            | Kind::Pinning(_)
            | Kind::Pinata(_)
            | Kind::Sftp(_) => None,
        }
    }

    /// Whether both are one place, whatever their settings: a path; host, bucket and
    /// prefix; host, port and folder.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        let (Ok(one), Ok(two)) = (parse(&self.url), parse(&other.url)) else { return false };
        one.kind.is_same_place(&two.kind)
    }

    /// The same place, without a word of where its keys are: what a manifest says of that
    /// is not believed, as it would send them to whoever wrote it.
    #[must_use]
    pub fn without_auth(&self) -> Self {
        self.keeping(|key| !KEYS.contains(&key), &[])
    }

    /// The same place with the settings of `other` that say how it is reached, and with
    /// whose rights: those of this machine.
    #[must_use]
    pub fn with_auth_of(&self, other: &Self) -> Self {
        let Ok(from) = Url::parse(&other.url) else { return self.clone() };
        let taken: Vec<(String, String)> = from
            .query_pairs()
            .filter(|(key, _)| ACCESS.contains(&key.as_ref()))
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        self.keeping(|key| !ACCESS.contains(&key), &taken)
    }

    /// This backend at another address: that of `other` with all that its URL says. What
    /// that leaves open (its tier, prices, limits) stays as it was.
    #[must_use]
    pub fn moved_to(&self, other: &Self) -> Self {
        let (Ok(from), Ok(to)) = (Url::parse(&self.url), Url::parse(&other.url)) else {
            return Self { id: self.id.clone(), url: other.url.clone() };
        };
        let one_kind = kind_of(&self.url) == kind_of(&other.url);
        // `endpoint` is a part of the address; the rest says what the place is to the volume.
        let stays = |key: &str, value: &str| {
            matches!(key, "domain" | "capacity" | "read_only")
                || PlaceSettings::default().set(key, value).is_some()
                || one_kind && key != "endpoint" && !ACCESS.contains(&key)
        };
        let said = |key: &str| to.query_pairs().any(|(given, _)| given == key);
        let kept: Vec<(String, String)> = from
            .query_pairs()
            .filter(|(key, value)| stays(key, value) && !said(key))
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        let url = other.keeping(|_| true, &kept).url;
        let url = if parse(&url).is_ok() { url } else { other.url.clone() };
        Self { id: self.id.clone(), url }
    }

    /// With those of its parameters, and these.
    fn keeping(&self, keep: impl Fn(&str) -> bool, more: &[(String, String)]) -> Self {
        let Ok(mut url) = Url::parse(&self.url) else { return self.clone() };
        let mut kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(key, _)| keep(key))
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        kept.extend_from_slice(more);
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        Self { id: self.id.clone(), url: url.into() }
    }
}

/// The kind of place that a URL names, as [`Backend::kind`] says when it is open.
#[must_use]
pub fn kind_of(url: &str) -> &'static str {
    match parse(url).map(|parsed| parsed.kind) {
        Ok(Kind::S3(_)) => "s3",
        Ok(Kind::Azure(_)) => "azblob",
        Ok(Kind::Google(_)) => "gcs",
        Ok(Kind::Kubo(_)) => "kubo",
        Ok(Kind::Archives(form, ..)) => form.name(),
        Ok(Kind::Cluster(_)) => "cluster",
        Ok(Kind::Pinning(_)) => "pinning",
        Ok(Kind::Pinata(_)) => "pinata",
        Ok(Kind::Peer(_)) => "cairn",
        Ok(Kind::Sftp(_)) => "sftp",
        Ok(Kind::Dir(_)) | Err(_) => "dir",
    }
}

/// Opens a backend. `create` makes an empty place (a directory, or a prefix of a bucket,
/// which must exist) when there is none; without it a missing place is `Unavailable` (an
/// unplugged disk must not be replaced by an empty folder on the disk below). A Kubo that
/// does not flush is not taken up by `create`.
///
/// # Errors
/// `Invalid` for a bad spec, else what the place says.
pub fn open(spec: &BackendSpec, create: bool) -> Result<Arc<dyn Backend>, BackendError> {
    open_in(spec, create, None)
}

/// The same; `dir`: a folder for what is worth keeping of what is known of places with
/// packs. Without one it is asked for anew.
///
/// # Errors
/// As [`open`].
pub fn open_in(
    spec: &BackendSpec,
    create: bool,
    dir: Option<&Path>,
) -> Result<Arc<dyn Backend>, BackendError> {
    let dir = dir.map(|dir| dir.join(spec.id.as_str()));
    let parsed = parse(&spec.url)
        .map_err(|error| BackendError::new(ErrorKind::Invalid, error.to_string()))?;
    match parsed.kind {
        Kind::Dir(path) => {
            let place = Arc::new(DirBackend::open(&path, parsed.options, create)?);
            if !place.has_packs() {
                return Ok(place);
            }
            // A copy of a bucket, or of a directory of archives: they are read, and no more
            // are made.
            let (id, shelf) = (place.id(), Arc::new(place.packs()?));
            let limits = pack::Limits::none(pack::BYTES);
            Ok(Arc::new(PackBackend::new("dir", (place, shelf), id, limits, dir.as_deref())?))
        }
        Kind::Archives(form, path, size) => {
            let place = Arc::new(DirBackend::open(&path, parsed.options, create)?);
            let (id, shelf) = (place.id(), Arc::new(place.packs()?));
            let limits = pack::Limits::archives(form, size);
            Ok(Arc::new(PackBackend::new(form.name(), (place, shelf), id, limits, dir.as_deref())?))
        }
        Kind::S3(settings) => {
            let (keys, packs) = (settings.keys()?, settings.packs());
            let size = settings.pack_size();
            let make = move || settings.store(keys.as_ref());
            let place = Arc::new(ObjectBackend::open(make, parsed.options, create)?);
            in_objects("s3", place, (packs, size), dir.as_deref())
        }
        Kind::Azure(settings) => {
            let (key, packs) = (settings.key()?, settings.common.packs);
            let size = settings.common.pack_size;
            let make = move || settings.store(key.as_ref());
            let place = Arc::new(ObjectBackend::open(make, parsed.options, create)?);
            in_objects("azblob", place, (packs, size), dir.as_deref())
        }
        Kind::Google(settings) => {
            let (key, packs) = (settings.key()?, settings.common.packs);
            let size = settings.common.pack_size;
            let make = move || settings.store(key.as_ref());
            let place = Arc::new(ObjectBackend::open(make, parsed.options, create)?);
            in_objects("gcs", place, (packs, size), dir.as_deref())
        }
        Kind::Kubo(address) => Ok(Arc::new(KuboBackend::open(&address, parsed.options, create)?)),
        Kind::Peer(address) => Ok(Arc::new(PeerBackend::open(&address, parsed.options)?)),
        Kind::Cluster(settings) => {
            Ok(Arc::new(ClusterBackend::open(&settings, parsed.options, create)?))
        }
        Kind::Pinning(settings) => {
            Ok(Arc::new(PinningBackend::open(&settings, parsed.options, create)?))
        }
        Kind::Pinata(settings) => {
            Ok(Arc::new(pinata::open(&settings, parsed.options, dir.as_deref())?))
        }
        Kind::Sftp(settings) => Ok(Arc::new(SftpBackend::open(*settings, parsed.options, create)?)),
    }
}

/// A place in an object store, where small blocks share objects of about so many bytes.
fn in_objects(
    kind: &'static str,
    place: Arc<ObjectBackend>,
    (packs, size): (bool, usize),
    dir: Option<&Path>,
) -> Result<Arc<dyn Backend>, BackendError> {
    let small = pack::Limits::small_blocks(size);
    // Packs that are there are read in any case.
    let limits = if packs { small } else { pack::Limits::none(small.pack) };
    let (id, shelf) = (place.id(), place.packs());
    Ok(Arc::new(PackBackend::new(kind, (place, shelf), id, limits, dir)?))
}
