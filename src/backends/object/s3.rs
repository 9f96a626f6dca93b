//! `s3://bucket/prefix?endpoint=&region=&...`: what its URL may say, and the operator
//! that it makes.
//!
//! No secret is a setting. Who asks is, in this order: the keys that `auth=` gives, the
//! profile of `profile=` in the shared AWS files, else the usual chain: environment,
//! shared files, and for AWS itself single sign-on, web identity, container, instance
//! role.

use std::collections::BTreeMap;
use std::path::PathBuf;

use opendal::Operator;
use opendal::services::S3;
use reqsign_aws_v4::{
    EnvCredentialProvider, ProcessCredentialProvider, ProfileCredentialProvider,
    SSOCredentialProvider,
};
use reqsign_core::ProvideCredentialChain;
use url::Url;

use super::settings::{endpoint, flag, host, is_plain, prefix};
use super::transport::Transport;
use super::{Description, Store, Tags};
use crate::backends::{BackendError, ErrorKind, pack, web};
use crate::runtime::SecretSource;
use crate::types::Secret;

/// What `auth=` gives.
pub(in crate::backends) const GIVES: &str = "the lines AWS_ACCESS_KEY_ID=... and \
    AWS_SECRET_ACCESS_KEY=... (or set them in the environment, or write profile=NAME)";

/// Storage classes from which a block can be read at once. Those of archives are left
/// out: what is there has to be ordered hours before, which no reader of a file does.
const CLASSES: [&str; 8] = [
    "STANDARD",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "REDUCED_REDUNDANCY",
    "OUTPOSTS",
    "SNOW",
];

/// Where the bucket stands in a request's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `https://endpoint/bucket/key`.
    Path,
    /// `https://bucket.endpoint/key`.
    Virtual,
}

/// By what the store checks that it got the bytes which were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checksum {
    Crc32c,
    Md5,
    None,
}

/// What a URL says of an S3 place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backends) struct S3Settings {
    bucket: String,
    /// Without a slash at either end; may be empty.
    prefix: String,
    endpoint: Option<Url>,
    region: Option<String>,
    style: Option<Style>,
    ca: Option<PathBuf>,
    storage_class: Option<String>,
    sse: Option<String>,
    sse_key: Option<String>,
    profile: Option<String>,
    auth: Option<SecretSource>,
    checksum: Checksum,
    conditional: bool,
    packs: bool,
    pack_size: usize,
}

impl S3Settings {
    /// `packs=`: small blocks share objects.
    pub(in crate::backends) fn packs(&self) -> bool {
        self.packs
    }

    pub(in crate::backends) fn pack_size(&self) -> usize {
        self.pack_size
    }

    /// What stands before the `?`.
    pub(in crate::backends) fn of(url: &Url) -> Result<Self, String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(web::no_place_for_secrets(GIVES));
        }
        if url.port().is_some() {
            return Err("a bucket has no port: write s3://BUCKET/PREFIX?endpoint=http://HOST:PORT"
                .to_owned());
        }
        let bucket = url.host_str().unwrap_or_default();
        let fits = (3..=63).contains(&bucket.len()) && is_plain(bucket, ".-_");
        if !fits || !bucket.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(format!(
                "`{bucket}` is not a bucket's name (3 to 63 letters, digits and .-_): \
                 write s3://BUCKET/PREFIX"
            ));
        }
        if bucket.ends_with("--x-s3") {
            let reason = "a directory bucket (S3 Express) lists in no order: use another bucket";
            return Err(reason.to_owned());
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix(url)?,
            endpoint: None,
            region: None,
            style: None,
            ca: None,
            storage_class: None,
            sse: None,
            sse_key: None,
            profile: None,
            auth: None,
            checksum: Checksum::Crc32c,
            conditional: true,
            packs: true,
            pack_size: pack::BYTES,
        })
    }

    /// Takes a parameter; `None` when S3 has no such setting.
    pub(in crate::backends) fn set(
        &mut self,
        key: &str,
        value: &str,
    ) -> Option<Result<(), String>> {
        let result = match key {
            "endpoint" => endpoint(value, GIVES).map(|url| self.endpoint = Some(url)),
            "region" if !value.is_empty() && is_plain(value, "-_") => {
                self.region = Some(value.to_owned());
                Ok(())
            }
            "region" => Err(format!("region={value}: write its name, such as eu-central-1")),
            "style" => match value {
                "path" | "virtual" => {
                    let path = value == "path";
                    self.style = Some(if path { Style::Path } else { Style::Virtual });
                    Ok(())
                }
                _ => Err(format!("style={value}: write path or virtual")),
            },
            "ca" => web::ca(value).map(|path| self.ca = Some(path)),
            "auth" => web::auth(value, GIVES).map(|source| self.auth = Some(source)),
            "profile" if !value.is_empty() && is_plain(value, "-_.@+ ") => {
                self.profile = Some(value.to_owned());
                Ok(())
            }
            "profile" => Err(format!("profile={value}: write the name of a profile")),
            "storage_class" if CLASSES.contains(&value) => {
                self.storage_class = Some(value.to_owned());
                Ok(())
            }
            "storage_class" => Err(format!(
                "storage_class={value}: write one of {}; what lies in an archive class cannot be \
                 read when a file is",
                CLASSES.join(", ")
            )),
            "sse" => match value {
                "AES256" | "aws:kms" => {
                    self.sse = Some(value.to_owned());
                    Ok(())
                }
                _ => Err(format!("sse={value}: write AES256 or aws:kms")),
            },
            "sse_key" if !value.is_empty() && is_plain(value, "-_:/") => {
                self.sse_key = Some(value.to_owned());
                Ok(())
            }
            "sse_key" => Err("sse_key= is the id or ARN of a KMS key (not the key)".to_owned()),
            "checksum" => match value {
                "crc32c" => Ok(Checksum::Crc32c),
                "md5" => Ok(Checksum::Md5),
                "none" => Ok(Checksum::None),
                _ => Err(format!("checksum={value}: write crc32c, md5 or none")),
            }
            .map(|checksum| self.checksum = checksum),
            "conditional" => flag(key, value).map(|yes| self.conditional = yes),
            pack::PACK_SIZE => pack::size(value).map(|size| self.pack_size = size),
            "packs" => flag(key, value).map(|yes| self.packs = yes),
            _ => return None,
        };
        Some(result)
    }

    /// What no parameter shows alone.
    pub(in crate::backends) fn check(&self) -> Result<(), String> {
        if self.sse_key.is_some() && self.sse.as_deref() != Some("aws:kms") {
            return Err("sse_key= needs sse=aws:kms".to_owned());
        }
        if self.style() == Style::Virtual && self.bucket.contains('.') {
            return Err(format!("no certificate covers {}.HOST: write style=path", self.bucket));
        }
        if self.ca.is_some() && self.endpoint.as_ref().is_some_and(|url| url.scheme() == "http") {
            return Err("ca= needs an endpoint with https".to_owned());
        }
        Ok(())
    }

    fn style(&self) -> Style {
        // AWS is leaving the path style; others rarely have a name for each bucket.
        let usual = if self.endpoint.is_some() { Style::Path } else { Style::Virtual };
        self.style.unwrap_or(usual)
    }

    pub(in crate::backends) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The store's host, with its port when it is not the usual one.
    pub(in crate::backends) fn host(&self) -> String {
        let Some(endpoint) = &self.endpoint else { return "s3.amazonaws.com".to_owned() };
        host(endpoint)
    }

    /// Which place it is, whoever asks and however.
    pub(in crate::backends) fn identity(&self) -> String {
        format!("s3://{}/{}/{}", self.host(), self.bucket, self.prefix)
    }

    /// Whether the store runs on this machine.
    pub(in crate::backends) fn is_loopback(&self) -> bool {
        web::is_loopback(self.endpoint.as_ref().and_then(Url::host))
    }

    fn is_aws(&self) -> bool {
        let Some(endpoint) = &self.endpoint else { return true };
        let host = endpoint.host_str().unwrap_or_default();
        let ours = [".amazonaws.com", ".amazonaws.com.cn"];
        endpoint.scheme() == "https" && ours.iter().any(|end| host.ends_with(end))
    }

    fn region(&self) -> Result<String, BackendError> {
        let of_environment = || {
            let names = ["AWS_REGION", "AWS_DEFAULT_REGION"];
            names.iter().find_map(|name| std::env::var(name).ok()).filter(|name| !name.is_empty())
        };
        let usual = || match &self.endpoint {
            Some(url) if url.host_str()?.ends_with(".r2.cloudflarestorage.com") => {
                Some("auto".to_owned())
            }
            Some(_) => Some("us-east-1".to_owned()),
            None => None,
        };
        self.region.clone().or_else(of_environment).or_else(usual).ok_or_else(|| {
            let message = format!(
                "{} says no region: write region= (such as eu-central-1), or set AWS_REGION",
                self.identity()
            );
            BackendError::new(ErrorKind::Invalid, message)
        })
    }

    /// The place for people.
    fn location(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("s3://{}{slash}{} at {}", self.bucket, self.prefix, self.host())
    }

    /// Makes the operators; nothing is sent yet.
    pub(in crate::backends) fn store(&self, keys: Option<&Keys>) -> Result<Store, BackendError> {
        let region = self.region()?;
        let endpoint = match &self.endpoint {
            Some(url) => url.as_str().trim_end_matches('/').to_owned(),
            None if region.starts_with("cn-") => format!("https://s3.{region}.amazonaws.com.cn"),
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        let transport = Transport::open(self.ca.as_deref(), self.is_loopback())
            .map_err(|reason| BackendError::new(ErrorKind::Invalid, reason))?;
        let made = |class: Option<&str>| {
            let mut builder = self.builder(&region, &endpoint, keys);
            if let Some(class) = class {
                builder = builder.default_storage_class(class);
            }
            Operator::new(builder).map(|operator| transport.serve(operator)).map_err(|error| {
                let message = format!("{}: {}", self.location(), error.message());
                BackendError::new(ErrorKind::Invalid, message).caused_by(error)
            })
        };
        // Pointers and the marker change and are read often: no class for what is seldom.
        let (small, blocks) = (made(None)?, made(self.storage_class.as_deref())?);
        Ok(Store {
            blocks,
            small,
            about: Description {
                kind: "s3",
                location: self.location(),
                container: "bucket",
                domain: format!("s3:{}/{}", self.host(), self.bucket),
            },
            conditional: self.conditional,
            tags: Tags::Etags,
        })
    }

    fn builder(&self, region: &str, endpoint: &str, keys: Option<&Keys>) -> S3 {
        let mut builder = S3::default()
            .bucket(&self.bucket)
            .root(&format!("/{}", self.prefix))
            .region(region)
            .endpoint(endpoint);
        if self.style() == Style::Virtual {
            builder = builder.enable_virtual_host_style();
        }
        match self.checksum {
            Checksum::Crc32c => builder = builder.checksum_algorithm("crc32c"),
            Checksum::Md5 => builder = builder.checksum_algorithm("md5"),
            Checksum::None => {}
        }
        if let Some(sse) = &self.sse {
            builder = builder.server_side_encryption(sse);
        }
        if let Some(key) = &self.sse_key {
            builder = builder.server_side_encryption_aws_kms_key_id(key);
        }
        match (keys, &self.profile) {
            (Some(keys), _) => {
                builder = builder
                    .access_key_id(keys.id.expose())
                    .secret_access_key(keys.secret.expose())
                    .disable_config_load()
                    .disable_ec2_metadata();
                if let Some(token) = &keys.token {
                    builder = builder.session_token(token.expose());
                }
            }
            // The usual chain would ask the environment first.
            (None, Some(profile)) => {
                let chain = ProvideCredentialChain::new()
                    .push(ProfileCredentialProvider::new().with_profile(profile))
                    .push(SSOCredentialProvider::new().with_profile(profile))
                    .push(ProcessCredentialProvider::new().with_profile(profile));
                builder = builder.credential_provider_chain(chain);
            }
            // What a machine of AWS is given is for AWS alone.
            (None, None) if !self.is_aws() => {
                let chain = ProvideCredentialChain::new()
                    .push(EnvCredentialProvider::new())
                    .push(ProfileCredentialProvider::new())
                    .push(ProcessCredentialProvider::new());
                builder = builder.credential_provider_chain(chain);
            }
            // The usual chain.
            (None, None) => {}
        }
        builder
    }

    /// The keys that `auth=` gives. Blocks while it reads.
    pub(in crate::backends) fn keys(&self) -> Result<Option<Keys>, BackendError> {
        let Some(source) = &self.auth else { return Ok(None) };
        let denied = |why: String| {
            let message = format!("{}: the keys of auth=: {why}", self.location());
            BackendError::new(ErrorKind::Denied, message)
        };
        let section = self.profile.as_deref().unwrap_or("default");
        let keys = Keys::of(source.read_named(section).map_err(denied)?);
        let missing =
            || denied(format!("{source} has no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
        keys.map(Some).ok_or_else(missing)
    }
}

/// Who asks.
#[derive(Clone)]
pub(in crate::backends) struct Keys {
    id: Secret,
    secret: Secret,
    token: Option<Secret>,
}

impl Keys {
    fn of(mut found: BTreeMap<String, Secret>) -> Option<Self> {
        let id = found.remove("aws_access_key_id")?;
        let secret = found.remove("aws_secret_access_key")?;
        Some(Self { id, secret, token: found.remove("aws_session_token") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_of_aws_is_given_goes_to_aws_alone() {
        let is_aws = |endpoint: &str| {
            let mut settings = S3Settings::of(&"s3://bucket".parse().unwrap()).unwrap();
            settings.endpoint = Url::parse(endpoint).ok();
            settings.is_aws()
        };
        for yes in ["", "https://s3.eu-central-1.amazonaws.com", "https://s3.cn-1.amazonaws.com.cn"]
        {
            assert!(is_aws(yes), "{yes}");
        }
        for no in ["http://s3.amazonaws.com", "https://amazonaws.com.evil.org", "http://127.0.0.1"]
        {
            assert!(!is_aws(no), "{no}");
        }
    }
}
