//! Kubo's RPC over HTTP, and servers like it: one request, its answer as it comes, errors
//! wherever they are.
//!
//! All of Kubo's is POST. An answer of 200 may end in an error: in the trailer `X-Stream-Error`,
//! or in a line. A body that is cut off is an error of the connection. A future that is
//! dropped closes its connection.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use ::cid::multibase::Base;
use bytes::{Buf, Bytes, BytesMut};
use http_body::Body as _;
use parking_lot::RwLock;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Client, Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::address::Address;
use super::car::Pieces;
use super::error::Words;
use super::{car, error};
use crate::backends::{BackendError, ErrorKind, web};
use crate::runtime::SecretSource;
use crate::types::Secret;

/// The longest line of an answer, and the longest answer that is not a block.
const LINE_MAX: usize = 1 << 20;

/// The way to one server.
pub(in crate::backends) struct Rpc {
    words: &'static Words,
    client: Client,
    base: Url,
    at: String,
    source: Option<SecretSource>,
    /// The header that has the secret as it is.
    key_header: Option<HeaderName>,
    secret: RwLock<Option<HeaderValue>>,
    /// It was refused: to be read again.
    refused: AtomicBool,
}

fn invalid(message: String) -> BackendError {
    BackendError::new(ErrorKind::Invalid, message)
}

/// The header of `bearer:TOKEN`, `basic:USER:PASSWORD`, or a token alone; with `is_key` it is
/// the secret itself.
fn header(secret: &Secret, is_key: bool) -> Result<HeaderValue, String> {
    let text = secret.expose().trim();
    let value = match text.split_once(':') {
        _ if is_key => text.to_owned(),
        Some(("basic", pair)) if pair.contains(':') => {
            format!("Basic {}", Base::Base64Pad.encode(pair))
        }
        Some(("basic", _)) => return Err("`basic:` needs USER:PASSWORD after it".into()),
        Some(("bearer", token)) => format!("Bearer {token}"),
        _ => format!("Bearer {text}"),
    };
    let mut value = HeaderValue::from_str(&value)
        .map_err(|_| "it has characters that no header may have".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(
    source: Option<&SecretSource>,
    is_key: bool,
    at: &str,
) -> Result<Option<HeaderValue>, BackendError> {
    let Some(source) = source else { return Ok(None) };
    let secret = source.read().and_then(|secret| header(&secret, is_key));
    secret.map(Some).map_err(|why| {
        BackendError::new(ErrorKind::Denied, format!("{at}: the secret of auth=: {why}"))
    })
}

impl Rpc {
    /// Reads the secret (from a file or a program: this blocks) and asks for nothing.
    ///
    /// # Errors
    /// `Denied` without the secret, `Invalid` for bad certificates.
    pub fn new(address: &Address) -> Result<Self, BackendError> {
        let at = address.shown();
        let secret = read(address.auth.as_ref(), address.key_header().is_some(), &at)?;
        if secret.is_some() && address.is_open_to_listeners() {
            tracing::warn!(backend = %at, "the secret of auth= goes there unencrypted: use TLS (+https)");
        }
        Self::with(address, secret)
    }

    /// The same, with connections of its own.
    ///
    /// # Errors
    /// `Invalid` for bad certificates.
    pub fn anew(&self, address: &Address) -> Result<Self, BackendError> {
        Self::with(address, self.secret.read().clone())
    }

    fn with(address: &Address, secret: Option<HeaderValue>) -> Result<Self, BackendError> {
        let at = address.shown();
        let base = Url::parse(&address.base())
            .map_err(|error| invalid(format!("{at} is no address: {error}")))?;
        let client = web::client(address.ca.as_deref(), address.is_loopback())
            .map_err(|why| invalid(format!("{at}: {why}")))?;
        let (source, secret) = (address.auth.clone(), RwLock::new(secret));
        let key_header = address.key_header().map(HeaderName::from_static);
        let (words, refused) = (address.words(), AtomicBool::new(false));
        Ok(Self { words, client, base, at, source, key_header, secret, refused })
    }

    /// Where it is, without secrets.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// The root of its API.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Reads the secret again when it was refused: whoever changed it need not open the
    /// backend anew.
    pub async fn renew(&self) -> Result<(), BackendError> {
        let Some(source) = &self.source else { return Ok(()) };
        if !self.refused.load(Ordering::Acquire) {
            return Ok(());
        }
        let (source, at) = (source.clone(), self.at.clone());
        let is_key = self.key_header.is_some();
        let again = tokio::task::spawn_blocking(move || read(Some(&source), is_key, &at)).await;
        let again = again.map_err(|cut| BackendError::new(ErrorKind::Other, cut.to_string()))?;
        *self.secret.write() = again?;
        self.refused.store(false, Ordering::Release);
        Ok(())
    }

    /// Sends a request to Kubo; nothing of it is ever fetched from the network (`offline`).
    pub async fn send(
        &self,
        path: &str,
        arguments: &[(&str, &str)],
        form: Option<Pieces>,
    ) -> Result<Answer, BackendError> {
        let arguments = [arguments, &[("offline", "true")]].concat();
        self.request(Method::POST, path, &arguments, form).await
    }

    /// Sends a request as it is.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        arguments: &[(&str, &str)],
        form: Option<Pieces>,
    ) -> Result<Answer, BackendError> {
        let body = form.map(|form| (car::CONTENT_TYPE, Body::wrap(form)));
        self.exchange(method, (path, arguments), &[], body).await
    }

    /// Sends a request with a JSON value.
    pub async fn post_json<T: Serialize + Sync>(
        &self,
        path: &str,
        value: &T,
    ) -> Result<Answer, BackendError> {
        let text = serde_json::to_vec(value).map_err(|error| invalid(error.to_string()))?;
        let body = ("application/json", Body::from(text));
        self.exchange(Method::POST, (path, &[]), &[], Some(body)).await
    }

    /// Sends a request with these headers, and a body of this type.
    pub async fn exchange(
        &self,
        method: Method,
        (path, arguments): (&str, &[(&str, &str)]),
        headers: &[(HeaderName, &str)],
        body: Option<(&'static str, Body)>,
    ) -> Result<Answer, BackendError> {
        let mut url = self
            .base
            .join(path)
            .map_err(|error| invalid(format!("{}: no path {path}: {error}", self.at)))?;
        if !arguments.is_empty() {
            url.query_pairs_mut().extend_pairs(arguments);
        }
        let mut request = self.client.request(method, url);
        if let Some(secret) = self.secret.read().clone() {
            request = request.header(self.key_header.clone().unwrap_or(AUTHORIZATION), secret);
        }
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if let Some((kind, body)) = body {
            request = request.header(CONTENT_TYPE, kind).body(body);
        }
        let response =
            request.send().await.map_err(|cut| error::of_transport(self.words, &self.at, cut))?;
        let status = response.status();
        let wait = web::retry_after_ms(response.headers());
        let (words, at) = (self.words, self.at.clone());
        let headers = response.headers().clone();
        let answer = Answer { words, headers, body: response.into(), at, buffer: BytesMut::new() };
        if status.is_success() {
            return Ok(answer);
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            self.refused.store(true, Ordering::Release);
        }
        // Who cannot even tell what failed has failed all the same.
        let body = answer.whole(LINE_MAX).await.unwrap_or_default();
        Err((self.words.answer)(&self.at, status, wait, &body))
    }

    /// Sends a request to Kubo whose answer is one JSON value.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        arguments: &[(&str, &str)],
    ) -> Result<T, BackendError> {
        self.send(path, arguments, None).await?.json().await
    }
}

fn parse<T: DeserializeOwned>(words: &Words, at: &str, text: &[u8]) -> Result<T, BackendError> {
    serde_json::from_slice(text).map_err(|error| {
        let message = format!("{at} answered what {} does not answer ({error})", words.server);
        BackendError::new(ErrorKind::Other, message)
    })
}

/// The body of an answer.
pub(in crate::backends) struct Answer {
    words: &'static Words,
    headers: HeaderMap,
    body: Body,
    at: String,
    buffer: BytesMut,
}

impl Answer {
    /// A header of it that is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The next piece; `None` at the end that Kubo meant.
    async fn piece(&mut self) -> Result<Option<Bytes>, BackendError> {
        loop {
            let body = &mut self.body;
            let frame = match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
                None => return Ok(None),
                Some(frame) => {
                    frame.map_err(|cut| error::of_transport(self.words, &self.at, cut))?
                }
            };
            match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    // Cluster says that there was none, before it says which there was.
                    let mut said = trailers.get_all("x-stream-error").iter();
                    if let Some(said) = said.find(|said| !said.is_empty()) {
                        let text = String::from_utf8_lossy(said.as_bytes());
                        return Err((self.words.message)(&self.at, &text));
                    }
                }
            }
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// `Corrupt` when it is longer than `most` bytes.
    pub async fn whole(mut self, most: usize) -> Result<Bytes, BackendError> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if all.len() + piece.len() > most {
                let message = format!("{} answered more than {most} bytes", self.at);
                return Err(BackendError::new(ErrorKind::Corrupt, message));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// All of it, as one JSON value.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, BackendError> {
        self.json_of(LINE_MAX).await
    }

    /// The same of at most so many bytes.
    pub async fn json_of<T: DeserializeOwned>(self, most: usize) -> Result<T, BackendError> {
        let (words, at) = (self.words, self.at.clone());
        parse(words, &at, &self.whole(most).await?)
    }

    /// The next line, as JSON; `None` at the end.
    pub async fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, BackendError> {
        let mut seen = 0;
        loop {
            if let Some(end) = self.buffer[seen..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(seen + end);
                self.buffer.advance(1);
                if line.iter().all(u8::is_ascii_whitespace) {
                    seen = 0;
                    continue;
                }
                return parse(self.words, &self.at, &line).map(Some);
            }
            seen = self.buffer.len();
            if seen > LINE_MAX {
                let message = format!("{} answered a line without an end", self.at);
                return Err(BackendError::new(ErrorKind::Other, message));
            }
            match self.piece().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None if self.buffer.is_empty() => return Ok(None),
                None => return parse(self.words, &self.at, &self.buffer.split()).map(Some),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_becomes_a_header() {
        for (secret, wanted) in [
            ("bearer:abc", "Bearer abc"),
            ("basic:user:pass:word", "Basic dXNlcjpwYXNzOndvcmQ="),
            ("basic:u:p", "Basic dTpw"),
            ("abc\n", "Bearer abc"),
        ] {
            let value = header(&Secret::new(secret.into()), false).unwrap();
            assert_eq!(value.to_str().unwrap(), wanted);
            assert!(value.is_sensitive());
        }
        for bad in ["basic:user", "a\nb"] {
            assert!(header(&Secret::new(bad.into()), false).is_err(), "{bad:?}");
        }
        let key = header(&Secret::new("basic:user\n".into()), true).unwrap();
        assert_eq!(key.to_str().unwrap(), "basic:user");
    }
}
