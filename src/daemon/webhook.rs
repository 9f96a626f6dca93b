//! Posts JSON to a URL.
//!
//! What may be secret (the URL's path and query, headers' values) is in no message:
//! a hook is named by scheme and host. Redirects are not followed, as they would take
//! the headers elsewhere.

use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use serde_json::Value;
use tokio::time::Instant;

use super::hooks::Ended;
use crate::config::HookConfig;
use crate::runtime::SecretSource;
use crate::types::Secret;

/// Pauses before the second, third and fourth try.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];

/// A webhook without what may be secret in it.
pub(super) fn shown(webhook: &str) -> String {
    match Url::parse(webhook) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
        }
        // `env:NAME` and `file:PATH` say where the URL is, not what it is.
        _ => webhook.to_owned(),
    }
}

/// A value as it is, or from `env:NAME` or `file:PATH`. A file that others can read is
/// refused.
fn value_of(text: &str) -> Result<Secret, String> {
    match SecretSource::parse(text) {
        Some(source @ (SecretSource::Variable(_) | SecretSource::File(_))) => source.read(),
        _ => Ok(Secret::new(text.to_owned())),
    }
}

/// The request but for its body, and the client that sends it.
fn prepare(hook: &HookConfig) -> Result<(Client, Url, reqwest::header::HeaderMap), String> {
    let url = Url::parse(value_of(&hook.webhook)?.expose())
        .map_err(|error| format!("the webhook is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("a webhook is http or https, not {}", url.scheme()));
    }
    let mut headers = reqwest::header::HeaderMap::new();
    for (name, value) in &hook.headers {
        let bad = |what: &str| format!("the header {name} has a bad {what}");
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("name"))?;
        let mut value =
            HeaderValue::from_str(value_of(value)?.expose()).map_err(|_| bad("value"))?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    // Set once in a process; who comes second finds the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("cairn/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(10))
        .build()
        .map_err(|error| format!("no client: {}", error.without_url()))?;
    Ok((client, url, headers))
}

/// The whole chain of causes, without the URL.
fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let (mut text, mut at): (String, Option<&dyn std::error::Error>) =
        (error.to_string(), std::error::Error::source(&error));
    while let Some(cause) = at {
        text = format!("{text}: {cause}");
        at = cause.source();
    }
    text
}

/// Whether another try may bring another answer.
fn is_temporary(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

/// Posts once, and again after what may pass, until the deadline.
pub(super) async fn post(hook: &HookConfig, message: &Value, deadline: Duration) -> Ended {
    let end = Instant::now() + deadline;
    let (client, url, headers) = match prepare(hook) {
        Ok(prepared) => prepared,
        Err(reason) => return Ended::failed(reason),
    };
    let body = message.to_string();
    let mut tries = 0;
    loop {
        let sent = client
            .post(url.clone())
            .headers(headers.clone())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body.clone())
            .send();
        tries += 1;
        let answer = match tokio::time::timeout_at(end, sent).await {
            Err(_) => {
                return Ended::timeout(format!("no answer within {deadline:?}, {tries} tries"));
            }
            Ok(Ok(response)) if response.status().is_success() => {
                return Ended::ok(format!("{}, {tries} tries", response.status()));
            }
            Ok(Ok(response)) if !is_temporary(response.status()) => {
                return Ended::failed(format!("{}, {tries} tries", response.status()));
            }
            Ok(Ok(response)) => response.status().to_string(),
            Ok(Err(error)) => told(error),
        };
        let pause = PAUSES.get(tries - 1).copied();
        match pause.filter(|pause| Instant::now() + *pause < end) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Ended::failed(format!("{answer}, {tries} tries")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_may_be_secret_in_a_url_is_not_shown() {
        for (webhook, wanted) in [
            ("https://user:pass@hooks.example.org/T0/B1/x?key=y", "https://hooks.example.org"),
            ("http://127.0.0.1:81/secret", "http://127.0.0.1:81"),
            ("env:HOOK_URL", "env:HOOK_URL"),
            ("file:/etc/cairn/url", "file:/etc/cairn/url"),
        ] {
            assert_eq!(shown(webhook), wanted);
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "Bearer x\n").unwrap();
        let text = format!("file:{}", path.display());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(value_of(&text).unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(value_of(&text).unwrap().expose(), "Bearer x");
        assert!(value_of("env:CAIRN_TEST_NOT_SET").unwrap_err().contains("CAIRN_TEST_NOT_SET"));
        assert_eq!(value_of("plain").unwrap().expose(), "plain");
    }
}
