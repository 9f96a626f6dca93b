//! `gcs://BUCKET/prefix?...`: Google's Cloud Storage by its JSON API, and what speaks like it.
//!
//! No secret is a setting. Who asks is what `auth=` gives, else what Google's libraries
//! find: `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's file, and what a machine there is given.
//! Conditions go by the generation of an object; etags are not for that (its "Request
//! preconditions").

use cid::multibase::Base;
use opendal::services::Gcs;
use url::Url;

use super::settings::{Common, flag, is_plain};
use super::{Description, Store, Tags};
use crate::backends::{BackendError, ErrorKind, web};
use crate::types::Secret;

/// What `auth=` gives.
pub(in crate::backends) const GOOGLE_GIVES: &str = "the key of a service account, the JSON that \
    Google made of it";

/// Storage classes; what lies in each is read at once.
const CLASSES: [&str; 4] = ["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"];
const HOST: &str = "storage.googleapis.com";

/// What a URL says of a place in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backends) struct GoogleSettings {
    bucket: String,
    pub common: Common,
    anonymous: bool,
    storage_class: Option<String>,
}

impl GoogleSettings {
    /// What stands before the `?`.
    pub(in crate::backends) fn of(url: &Url) -> Result<Self, String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(web::no_place_for_secrets(GOOGLE_GIVES));
        }
        let bucket = url.host_str().unwrap_or_default();
        // "About Cloud Storage buckets": names with dots have up to 222.
        let fits = (3..=222).contains(&bucket.len()) && is_plain(bucket, "-_.");
        if !fits || bucket.chars().any(|c| c.is_ascii_uppercase()) || url.port().is_some() {
            return Err(format!(
                "`{bucket}` is not a bucket's name (a-z, 0-9, -, _ and .): write \
                 gcs://BUCKET/PREFIX"
            ));
        }
        let common = Common::of(url)?;
        Ok(Self { bucket: bucket.to_owned(), common, anonymous: false, storage_class: None })
    }

    /// Takes a parameter; `None` when there is no such setting.
    pub(in crate::backends) fn set(
        &mut self,
        key: &str,
        value: &str,
    ) -> Option<Result<(), String>> {
        Some(match key {
            "anonymous" => flag(key, value).map(|yes| self.anonymous = yes),
            "storage_class" if CLASSES.contains(&value) => {
                self.storage_class = Some(value.to_owned());
                Ok(())
            }
            "storage_class" => {
                Err(format!("storage_class={value}: write one of {}", CLASSES.join(", ")))
            }
            _ => return self.common.set(key, value, GOOGLE_GIVES),
        })
    }

    /// What no parameter shows alone.
    pub(in crate::backends) fn check(&self) -> Result<(), String> {
        if self.anonymous && self.common.auth.is_some() {
            return Err("anonymous=1 asks without the key of auth=: leave one of them out".into());
        }
        self.common.check()
    }

    pub(in crate::backends) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The store's host, with its port when it is not the usual one.
    pub(in crate::backends) fn host(&self) -> String {
        self.common.host(|| HOST.to_owned())
    }

    /// Which place it is, whoever asks and however.
    pub(in crate::backends) fn identity(&self) -> String {
        format!("{}/{}/{}", self.host(), self.bucket, self.common.prefix)
    }

    fn location(&self) -> String {
        self.common.location("gcs", &self.bucket, &self.host())
    }

    /// Makes the operators; nothing is sent yet.
    pub(in crate::backends) fn store(&self, key: Option<&Secret>) -> Result<Store, BackendError> {
        let made = |class: Option<&str>| {
            let mut builder = Gcs::default()
                .bucket(&self.bucket)
                .root(&format!("/{}", self.common.prefix))
                .default_storage_class(class.unwrap_or_default());
            if let Some(url) = &self.common.endpoint {
                builder = builder.endpoint(url.as_str().trim_end_matches('/'));
            }
            if let Some(key) = key {
                let text = Base::Base64Pad.encode(key.expose());
                builder = builder.credential(&text).disable_config_load().disable_vm_metadata();
            }
            if self.anonymous {
                builder = builder.skip_signature();
            }
            self.common.operator(builder, &self.location())
        };
        // Pointers and the marker change and are read often: no class for what is seldom.
        let (small, blocks) = (made(None)?, made(self.storage_class.as_deref())?);
        Ok(Store {
            blocks,
            small,
            about: Description {
                kind: "gcs",
                location: self.location(),
                container: "bucket",
                domain: format!("gcs:{}/{}", self.host(), self.bucket),
            },
            conditional: self.common.conditional,
            tags: Tags::Versions,
        })
    }

    /// The key that `auth=` gives. Blocks while it reads.
    pub(in crate::backends) fn key(&self) -> Result<Option<Secret>, BackendError> {
        let denied = |why: String| {
            BackendError::new(ErrorKind::Denied, format!("{}: {why}", self.location()))
        };
        match &self.common.auth {
            Some(source) => {
                let found = source.read();
                let found = found.map_err(|why| denied(format!("the key of auth=: {why}")))?;
                let is_json = serde_json::from_str::<serde_json::Value>(found.expose())
                    .is_ok_and(|key| key.get("private_key").is_some());
                let none = || denied(format!("{source} is not {GOOGLE_GIVES}"));
                if is_json { Ok(Some(found)) } else { Err(none()) }
            }
            // What a machine of Google is given is for Google alone.
            None if !self.anonymous && !self.common.is_at(&[".googleapis.com"]) => {
                Err(denied(format!(
                    "no credentials: write auth=file:PATH, which gives {GOOGLE_GIVES}, or \
                     anonymous=1 for a store that asks for none"
                )))
            }
            None => Ok(None),
        }
    }
}
