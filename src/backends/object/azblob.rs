//! `azblob://CONTAINER/prefix?account=&...`: Azure's Blob Storage, and what speaks like it.
//!
//! No secret is a setting. Who asks is, in this order: what `auth=` gives, the environment,
//! and for Azure itself what a machine or a workload there is given.

use std::collections::BTreeMap;

use opendal::services::Azblob;
use url::Url;

use super::settings::Common;
use super::{Description, Store, Tags};
use crate::backends::{BackendError, ErrorKind, web};
use crate::types::Secret;

/// What `auth=` gives.
pub(in crate::backends) const AZURE_GIVES: &str = "the line AZURE_STORAGE_ACCOUNT_KEY=... or \
    AZURE_STORAGE_SAS_TOKEN=... (or set one of them in the environment)";

/// Names of an account's key, and of a SAS token, in files and in the environment.
const KEY: [&str; 2] = ["azure_storage_account_key", "azure_storage_key"];
const SAS: [&str; 1] = ["azure_storage_sas_token"];
/// Azure's own, of all its clouds.
const AZURE: [&str; 3] =
    [".blob.core.windows.net", ".blob.core.chinacloudapi.cn", ".blob.core.usgovcloudapi.net"];

/// What a URL says of a place in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backends) struct AzureSettings {
    container: String,
    pub common: Common,
    account: Option<String>,
}

fn is_name(text: &str, lengths: std::ops::RangeInclusive<usize>, more: &str) -> bool {
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c);
    lengths.contains(&text.len()) && text.chars().all(lower)
}

impl AzureSettings {
    /// What stands before the `?`.
    pub(in crate::backends) fn of(url: &Url) -> Result<Self, String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(web::no_place_for_secrets(AZURE_GIVES));
        }
        let container = url.host_str().unwrap_or_default();
        // "Naming and referencing containers, blobs, and metadata" of its REST API.
        if !is_name(container, 3..=63, "-") || url.port().is_some() {
            return Err(format!(
                "`{container}` is not a container's name (3 to 63 of a-z, 0-9, -): write \
                 azblob://CONTAINER/PREFIX?account=NAME"
            ));
        }
        let common = Common::of(url)?;
        Ok(Self { container: container.to_owned(), common, account: None })
    }

    /// Takes a parameter; `None` when there is no such setting.
    pub(in crate::backends) fn set(
        &mut self,
        key: &str,
        value: &str,
    ) -> Option<Result<(), String>> {
        Some(match key {
            "account" if is_name(value, 3..=24, "") => {
                self.account = Some(value.to_owned());
                Ok(())
            }
            "account" => Err(format!("account={value}: write its name, of a-z and 0-9")),
            _ => return self.common.set(key, value, AZURE_GIVES),
        })
    }

    /// What no parameter shows alone.
    pub(in crate::backends) fn check(&self) -> Result<(), String> {
        if self.account.is_none() {
            return Err("it says no account: write account=NAME".to_owned());
        }
        self.common.check()
    }

    fn account(&self) -> &str {
        self.account.as_deref().unwrap_or_default()
    }

    pub(in crate::backends) fn container(&self) -> &str {
        &self.container
    }

    /// The store's host, with its port when it is not the usual one.
    pub(in crate::backends) fn host(&self) -> String {
        self.common.host(|| format!("{}.blob.core.windows.net", self.account()))
    }

    /// Which place it is, whoever asks and however.
    pub(in crate::backends) fn identity(&self) -> String {
        let (account, prefix) = (self.account(), &self.common.prefix);
        format!("{}/{account}/{}/{prefix}", self.host(), self.container)
    }

    fn location(&self) -> String {
        self.common.location("azblob", &self.container, &self.host())
    }

    /// Makes the operators; nothing is sent yet.
    pub(in crate::backends) fn store(&self, key: Option<&AzureKey>) -> Result<Store, BackendError> {
        let endpoint = self.common.endpoint.as_ref().map_or_else(
            || format!("https://{}", self.host()),
            |url| url.as_str().trim_end_matches('/').to_owned(),
        );
        let builder = Azblob::default()
            .container(&self.container)
            .root(&format!("/{}", self.common.prefix))
            .endpoint(&endpoint)
            .account_name(self.account());
        let builder = match key {
            Some(AzureKey::Account(key)) => builder.account_key(key.expose()),
            Some(AzureKey::Sas(token)) => builder.sas_token(token.expose().trim_start_matches('?')),
            None => builder,
        };
        let operator = self.common.operator(builder, &self.location())?;
        Ok(Store {
            blocks: operator.clone(),
            small: operator,
            about: Description {
                kind: "azblob",
                location: self.location(),
                container: "container",
                domain: format!("azblob:{}/{}", self.host(), self.account()),
            },
            conditional: self.common.conditional,
            tags: Tags::Etags,
        })
    }

    /// The key that `auth=` gives, or the environment. Blocks while it reads.
    pub(in crate::backends) fn key(&self) -> Result<Option<AzureKey>, BackendError> {
        let denied = |why: String| {
            let message = format!("{}: {why}", self.location());
            BackendError::new(ErrorKind::Denied, message)
        };
        if let Some(source) = &self.common.auth {
            let found = source.read_named("default");
            let found = found.map_err(|why| denied(format!("the key of auth=: {why}")))?;
            let none = || {
                denied(format!(
                    "{source} has no AZURE_STORAGE_ACCOUNT_KEY and no AZURE_STORAGE_SAS_TOKEN"
                ))
            };
            return AzureKey::of(found).map(Some).ok_or_else(none);
        }
        let named = KEY.iter().chain(&SAS).filter_map(|name| {
            let value = std::env::var(name.to_ascii_uppercase()).ok()?;
            Some(((*name).to_owned(), Secret::new(value)))
        });
        match AzureKey::of(named.collect()) {
            // What a machine of Azure is given is for Azure alone.
            None if !self.common.is_at(&AZURE) => Err(denied(format!(
                "no credentials: write auth=file:PATH, which gives {AZURE_GIVES}"
            ))),
            found => Ok(found),
        }
    }
}

/// Who asks.
#[derive(Clone)]
pub(in crate::backends) enum AzureKey {
    /// The account's own.
    Account(Secret),
    /// A token that allows some of it.
    Sas(Secret),
}

impl AzureKey {
    fn of(mut found: BTreeMap<String, Secret>) -> Option<Self> {
        let mut one = |names: &[&str]| names.iter().find_map(|name| found.remove(*name));
        one(&KEY).map(Self::Account).or_else(|| one(&SAS).map(Self::Sas))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_of_azure_is_given_goes_to_azure_alone() {
        let is_azure = |endpoint: &str| {
            let mut settings = AzureSettings::of(&"azblob://box".parse().unwrap()).unwrap();
            settings.common.endpoint = Url::parse(endpoint).ok();
            settings.common.is_at(&AZURE)
        };
        for yes in ["", "https://me.blob.core.windows.net", "https://x.blob.core.chinacloudapi.cn"]
        {
            assert!(is_azure(yes), "{yes}");
        }
        for no in [
            "http://me.blob.core.windows.net",
            "https://me.blob.core.windows.net.evil.org",
            "http://127.0.0.1:10000/devstoreaccount1",
        ] {
            assert!(!is_azure(no), "{no}");
        }
    }
}
