use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use url::Url;

use super::dir::DirOptions;
use super::settings::{PlaceSettings, is_name};
use super::{Backend, BackendError, DirBackend, ErrorKind};
use crate::types::{BackendId, ByteSize, printable};

/// A backend as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Its id in the volume.
    pub id: BackendId,
    /// `file:///path`. Query parameters are settings:
    /// `domain=`, `capacity=`, `read_only=1`, and those of [`PlaceSettings`].
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

/// Hides `user:password@` of a URL.
fn without_secrets(text: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = text.split_once("://") else { return text.into() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((secret, _)) => format!("{scheme}://***{}", &rest[secret.len()..]).into(),
        None => text.into(),
    }
}

/// What a URL says.
struct Parsed {
    url: Url,
    path: PathBuf,
    id: Option<BackendId>,
    options: DirOptions,
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
    let path = match url.scheme() {
        "file" => {
            let path = url.to_file_path();
            let path = path.map_err(|()| invalid("write file:///absolute/path".into()))?;
            if path.as_os_str().as_bytes().iter().any(u8::is_ascii_control) {
                return Err(invalid(control.into()));
            }
            path
        }
        "memory" => {
            return Err(invalid(
                "`memory:` is for tests and forgets everything: write file:///path or a path"
                    .into(),
            ));
        }
        scheme => {
            return Err(invalid(format!(
                "`{scheme}` is not a kind of backend: write file:///path or a path \
                 (./ before a relative one with a colon)"
            )));
        }
    };
    let (id, options) = settings(text, &url)?;
    Ok(Parsed { url, path, id, options })
}

fn settings(text: &str, url: &Url) -> Result<(Option<BackendId>, DirOptions), InvalidBackendUrl> {
    let invalid = |reason: String| InvalidBackendUrl::new(text, reason);
    let (mut options, mut id) = (DirOptions::default(), None);
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
                let Some(taken) = place.set(other, &value) else {
                    let other = printable(other);
                    let known = "use id, domain, capacity, read_only, tier, host, site, provider, \
                                 priority, price_gb_month, price_gb_out, price_request, alarm, \
                                 stop, bandwidth, requests, parallel, collect or scrub";
                    return Err(invalid(format!("`{other}` is not a setting: {known}")));
                };
                taken.map_err(invalid)?;
            }
        }
        if seen.contains(&key) {
            return Err(invalid(format!("`{key}` is set twice")));
        }
        seen.push(key);
    }
    Ok((id, options))
}

/// An id from the last part of a path: `/mnt/Disk B` gives `disk-b`.
fn slug(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
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
        let Parsed { mut url, path, id, .. } = parse(&absolute)?;
        let base = id.as_ref().map_or_else(|| slug(&path), |id| id.as_str().to_owned());
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

    /// The same place, opened so that nothing is written there.
    #[must_use]
    pub fn read_only(&self) -> Self {
        let Ok(mut url) = Url::parse(&self.url) else { return self.clone() };
        let mut kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(key, _)| key != "read_only")
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        kept.push(("read_only".into(), "1".into()));
        url.set_query(None);
        url.query_pairs_mut().extend_pairs(kept);
        Self { id: self.id.clone(), url: url.into() }
    }

    /// What the volume knows of its place.
    #[must_use]
    pub fn settings(&self) -> PlaceSettings {
        Url::parse(&self.url)
            .map_or_else(|_| PlaceSettings::default(), |url| PlaceSettings::of(&url))
    }

    /// The directory, when the backend is one on this machine.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        Some(parse(&self.url).ok()?.path)
    }
}

/// Opens a backend. `create` makes an empty place (a directory) when there is
/// none; without it a missing place is `Unavailable` (an unplugged disk must
/// not be replaced by an empty folder on the disk below).
///
/// # Errors
/// `Invalid` for a bad spec, else what the place says.
pub fn open(spec: &BackendSpec, create: bool) -> Result<Arc<dyn Backend>, BackendError> {
    let parsed = parse(&spec.url)
        .map_err(|error| BackendError::new(ErrorKind::Invalid, error.to_string()))?;
    Ok(Arc::new(DirBackend::open(&parsed.path, parsed.options, create)?))
}
