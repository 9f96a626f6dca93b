use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use url::Url;

use super::dir::DirOptions;
use super::{Backend, BackendError, DirBackend, ErrorKind, MemoryBackend};
use crate::types::{BackendId, ByteSize};

/// A backend as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Its id in the volume.
    pub id: BackendId,
    /// `file:///path` or `memory:name`. Query parameters are settings:
    /// `domain=`, `capacity=`, `read_only=1`.
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

/// What a URL says.
enum Parsed {
    Dir(PathBuf, DirOptions),
    Memory(String),
}

fn parse(text: &str) -> Result<(Parsed, Option<BackendId>, Url), InvalidBackendUrl> {
    let invalid = |reason: String| InvalidBackendUrl { url: text.escape_debug().to_string(), reason };
    if text.bytes().any(|b| b.is_ascii_control()) {
        return Err(invalid("a URL has no newline and no control character".into()));
    }
    let url = if text.starts_with('/') {
        // A plain path: `?` and `#` in it are part of the name.
        Url::from_file_path(text).map_err(|()| invalid("not an absolute path".into()))?
    } else {
        Url::parse(text).map_err(|e| invalid(format!("not a URL ({e}); write file:///path or a path")))?
    };
    let (mut options, mut id) = (DirOptions::default(), None);
    for (key, value) in url.query_pairs() {
        match key.as_ref() {
            "id" => id = Some(value.parse().map_err(|e: crate::types::InvalidBackendId| invalid(e.to_string()))?),
            "domain" if !value.is_empty() => options.domain = Some(value.into_owned()),
            "capacity" => {
                let size: ByteSize = value.parse().map_err(|e: crate::types::InvalidByteSize| invalid(e.to_string()))?;
                options.capacity = Some(size.0);
            }
            "read_only" => {
                options.read_only = match value.as_ref() {
                    "1" | "true" | "" => true,
                    "0" | "false" => false,
                    other => return Err(invalid(format!("read_only={other}: write 1 or 0"))),
                };
            }
            other => {
                return Err(invalid(format!("`{other}` is not a setting: use id, domain, capacity or read_only")));
            }
        }
    }
    let parsed = match url.scheme() {
        "file" => {
            let path = url.to_file_path().map_err(|()| invalid("write file:///absolute/path".into()))?;
            Parsed::Dir(path, options)
        }
        "memory" => Parsed::Memory(url.path().to_owned()),
        scheme => {
            return Err(invalid(format!("`{scheme}` is not a kind of backend; known: file:///path, or a plain path")));
        }
    };
    Ok((parsed, id, url))
}

fn slug(path: &Path) -> String {
    let name = path.file_name().map_or_else(|| "root".into(), |name| name.to_string_lossy().to_lowercase());
    let clean: String =
        name.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).collect();
    let clean = clean.trim_matches('-').chars().take(48).collect::<String>();
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
        let invalid = |reason: String| InvalidBackendUrl { url: text.escape_debug().to_string(), reason };
        let absolute = match text.split_once(':') {
            None if !text.starts_with('/') && !text.is_empty() => std::path::absolute(text)
                .map_err(|e| invalid(e.to_string()))?
                .into_os_string()
                .into_string()
                .map_err(|_| invalid("a path that is not UTF-8 is written as a file:// URL".into()))?,
            _ => text.to_owned(),
        };
        let (parsed, id, mut url) = parse(&absolute)?;
        let base = match (&id, &parsed) {
            (Some(id), _) => id.as_str().to_owned(),
            (None, Parsed::Dir(path, _)) => slug(path),
            (None, Parsed::Memory(name)) => slug(Path::new(name)),
        };
        let is_taken = |text: &str| text == "local" || taken.iter().any(|id| id.as_str() == text);
        if id.is_some() && is_taken(&base) {
            return Err(invalid(format!("the id `{base}` is taken; choose another with id=")));
        }
        let mut name = base.clone();
        let mut number = 2;
        while is_taken(&name) {
            name = format!("{base}-{number}");
            number += 1;
        }
        let kept: Vec<(String, String)> =
            url.query_pairs().filter(|(key, _)| key != "id").map(|(k, v)| (k.into_owned(), v.into_owned())).collect();
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        let id = name.parse().map_err(|e: crate::types::InvalidBackendId| invalid(e.to_string()))?;
        Ok(Self { id, url: url.into() })
    }

    /// The directory, when the backend is one on this machine.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        match parse(&self.url) {
            Ok((Parsed::Dir(path, _), _, _)) => Some(path),
            _ => None,
        }
    }
}

/// Opens a backend. `create` makes an empty place (a directory) when there is
/// none; without it a missing place is `Unavailable` (an unplugged disk must
/// not be replaced by an empty folder on the disk below).
///
/// # Errors
/// `Invalid` for a bad spec, else what the place says.
pub fn open(spec: &BackendSpec, create: bool) -> Result<Arc<dyn Backend>, BackendError> {
    let (parsed, ..) = parse(&spec.url).map_err(|e| BackendError::new(ErrorKind::Invalid, e.to_string()))?;
    Ok(match parsed {
        Parsed::Dir(path, options) => Arc::new(DirBackend::open(&path, options, create)?),
        Parsed::Memory(name) => Arc::new(MemoryBackend::new(&name)),
    })
}
