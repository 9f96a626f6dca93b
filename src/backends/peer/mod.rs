//! Another Cairn as a backend: a storage node (`cairn serve --store DIR`).
//!
//! Reads go by the trustless gateway specification, so any node that speaks it could be
//! read; writes, listings and names by the node's own requests ([`wire`]). The node compares
//! each block with its CID before it stores it.

mod address;
pub mod wire;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use reqwest::{Client, Method, Response, StatusCode};
use serde::de::DeserializeOwned;
use url::Url;
use uuid::Uuid;

pub use self::address::PORT;
pub(super) use self::address::{Address, GIVES};
use self::wire::{ASKED_MAX, About, BODY_MAX, CAR, FORMAT, Page, RAW, Role, STORE, Said, Stored};
use super::web::{self, Cut};
use super::{
    Backend, BackendError, Capabilities, ErrorKind, ListPage, PlaceOptions, Presence, Usage, check,
};
use crate::content::car::{encode_header, put_section, section_len};
use crate::types::{Block, Cid};

/// A node that does not answer in this time is not in reach.
const OPEN_DEADLINE: Duration = Duration::from_secs(9);
/// Answers that are no blocks: a page of a listing has some 700 KiB.
const ANSWER_MAX: usize = 4 << 20;
/// What is read of an answer that says no.
const REFUSAL_MAX: usize = 64 << 10;
/// Blocks of one request.
const SENT: usize = BODY_MAX / 2;

/// The way to one node.
#[derive(Clone)]
struct Way {
    client: Client,
    base: Url,
    at: String,
    token: Option<HeaderValue>,
    /// The store that was opened: another one's words say nothing of it.
    store: Option<Uuid>,
}

impl Way {
    /// Reads the token (from a file or a program: this blocks) and asks for nothing.
    fn new(address: &Address) -> Result<Self, BackendError> {
        let at = address.shown();
        let invalid = |why: String| BackendError::new(ErrorKind::Invalid, format!("{at}: {why}"));
        let denied = |why: String| {
            BackendError::new(ErrorKind::Denied, format!("{at}: the token of auth=: {why}"))
        };
        let mut token = None;
        if let Some(source) = &address.auth {
            let text = source.read().map_err(denied)?;
            let value = HeaderValue::from_str(&format!("Bearer {}", text.expose()));
            let mut value =
                value.map_err(|_| denied("it has characters that no header may have".into()))?;
            value.set_sensitive(true);
            token = Some(value);
            if address.is_open_to_listeners() {
                tracing::warn!(backend = %at, "the token of auth= goes there unencrypted: use cairn+https://");
            }
        }
        let base = Url::parse(&address.base()).map_err(|error| invalid(error.to_string()))?;
        let client = web::client(address.ca.as_deref(), address.is_loopback()).map_err(invalid)?;
        Ok(Self { client, base, at, token, store: None })
    }

    /// A request; `path` with its parameters.
    async fn send(
        &self,
        method: Method,
        path: &str,
        (kind, body): (&'static str, Bytes),
        range: Option<String>,
    ) -> Result<Response, BackendError> {
        let url = self.base.join(path).map_err(|error| {
            BackendError::new(ErrorKind::Invalid, format!("{}: {path}: {error}", self.at))
        })?;
        let mut request = self.client.request(method, url);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, kind).body(body);
        }
        let answer = request.send().await.map_err(|error| self.cut(error))?;
        let says = answer.headers().get(STORE).and_then(|store| store.to_str().ok());
        let says: Option<Uuid> = says.and_then(|store| store.parse().ok());
        let is_ok = answer.status().is_success();
        if self.store.is_some_and(|store| says != Some(store)) && (is_ok || says.is_some()) {
            let message = format!("{} is not the store that was opened: was it replaced?", self.at);
            return Err(BackendError::new(ErrorKind::Unavailable, message));
        }
        if is_ok {
            return Ok(answer);
        }
        let status = answer.status();
        let wait = web::retry_after_ms(answer.headers());
        let total = total_of(&answer);
        // Who cannot even tell what failed has failed all the same.
        let said = self.read(answer, REFUSAL_MAX).await.unwrap_or_default();
        let mut error = self.refused(status, &said);
        error.retry_after_ms = wait;
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            error.kind = ErrorKind::Invalid;
            let has = total.map(|total| format!(": it has {total} bytes")).unwrap_or_default();
            error.message = format!("{} has no such part of {path}{has}", self.at);
        }
        Err(error)
    }

    fn cut(&self, error: reqwest::Error) -> BackendError {
        let (cut, text) = Cut::of(error);
        BackendError::new(cut.kind(), format!("{}: {text}; {}", self.at, cut.hint()))
    }

    /// What an answer means that says no.
    fn refused(&self, status: StatusCode, said: &[u8]) -> BackendError {
        if let Ok(Said { kind, message }) = serde_json::from_slice(said) {
            let message = format!("{} says: {}", self.at, web::said(&message));
            return BackendError::new(wire::kind_of(&kind), message);
        }
        let (kind, advice) = match status.as_u16() {
            401 => (ErrorKind::Denied, "it wants a token: auth=file:/path"),
            403 => (ErrorKind::Denied, "the token does not allow it"),
            404 => (ErrorKind::Unsupported, "is it a node of `cairn serve`?"),
            408 | 429 => (ErrorKind::Throttled, "it is asked again later"),
            502..=504 => (ErrorKind::Unavailable, "it is tried again"),
            507 => (ErrorKind::Full, "make room there"),
            500..=599 => (ErrorKind::Other, "look at its log"),
            _ => (ErrorKind::Invalid, "is it a node of `cairn serve`?"),
        };
        BackendError::new(kind, format!("{} answered {status}: {advice}", self.at))
    }

    /// The whole body.
    async fn read(&self, mut answer: Response, most: usize) -> Result<Bytes, BackendError> {
        let mut data = BytesMut::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| self.cut(error))? {
            if data.len() + piece.len() > most {
                let message = format!("{} answered more than {most} bytes", self.at);
                return Err(BackendError::new(ErrorKind::Corrupt, message));
            }
            data.extend_from_slice(&piece);
        }
        Ok(data.freeze())
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, BackendError> {
        serde_json::from_slice(body).map_err(|error| {
            let message = format!("{} answered what no node answers ({error})", self.at);
            BackendError::new(ErrorKind::Other, message)
        })
    }

    async fn about(&self) -> Result<About, BackendError> {
        let answer = self.send(Method::GET, "v1/node", ("", Bytes::new()), None).await?;
        let about: About = self.parse(&self.read(answer, REFUSAL_MAX).await?)?;
        if about.format > FORMAT {
            let message = format!(
                "{} speaks format {}, and this cairn knows up to {FORMAT}: use a newer cairn",
                self.at, about.format
            );
            return Err(BackendError::new(ErrorKind::Unsupported, message));
        }
        Ok(about)
    }
}

/// Bytes of the whole, as a `Content-Range` says them (RFC 9110, 14.4).
fn total_of(answer: &Response) -> Option<u64> {
    answer.headers().get(CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.parse().ok()
}

/// A storage node.
pub(super) struct PeerBackend {
    way: Way,
    capabilities: Capabilities,
    options: PlaceOptions,
}

impl PeerBackend {
    /// Asks the node who it is. Blocks its thread for at most ten seconds.
    ///
    /// # Errors
    /// `Unavailable` when nobody answers, `Denied` without the right token, `Unsupported` for
    /// a newer node.
    pub fn open(address: &Address, options: PlaceOptions) -> Result<Self, BackendError> {
        let way = Way::new(address)?;
        let (known, address) = (way.clone(), address.clone());
        // Connections end with the runtime that they were made in: a way of its own.
        let ask = move || async move {
            let client = web::client(address.ca.as_deref(), address.is_loopback());
            let client = client.map_err(|why| BackendError::new(ErrorKind::Invalid, why))?;
            Way { client, ..known }.about().await.map(|about| (about, address.machine()))
        };
        let (about, machine) = web::at_opening(&way.at, OPEN_DEADLINE, ask)?;
        let domain = format!("cairn:{machine}/{}", about.capabilities.failure_domain);
        let capabilities = Capabilities {
            // It compares them with their CIDs.
            verifies: true,
            delete: about.capabilities.delete && about.role >= Role::Admin,
            read_only: about.capabilities.read_only
                || about.role < Role::Write
                || options.read_only,
            failure_domain: options.domain_or(&domain),
            ..about.capabilities
        };
        Ok(Self { way: Way { store: Some(about.store), ..way }, capabilities, options })
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: (&'static str, Bytes),
    ) -> Result<Bytes, BackendError> {
        let answer = self.way.send(method, path, body, None).await?;
        self.way.read(answer, ANSWER_MAX).await
    }

    fn refuse_writes(&self) -> Result<(), BackendError> {
        self.options.refuse_writes(&self.way.at)
    }

    async fn refuse_beyond_capacity(&self, bytes: u64) -> Result<(), BackendError> {
        let Some(capacity) = self.options.capacity else { return Ok(()) };
        let used = self.usage().await?.used_bytes.unwrap_or(0);
        if used.saturating_add(bytes) <= capacity {
            return Ok(());
        }
        let message = format!(
            "{} holds {used} of the {capacity} bytes that its setting `capacity` allows",
            self.way.at
        );
        Err(BackendError::new(ErrorKind::Full, message))
    }

    /// Blocks as a CAR, in their order.
    fn car(&self, blocks: &[Block]) -> Result<Bytes, BackendError> {
        let fail = |error: &dyn std::fmt::Display| {
            BackendError::new(ErrorKind::Other, format!("{}: no CAR: {error}", self.way.at))
        };
        let roots: Vec<Cid> = blocks.last().map(|block| block.cid).into_iter().collect();
        let mut car = encode_header(&roots).map_err(|error| fail(&error))?;
        let sections = blocks.iter().map(|b| section_len(&b.cid, b.data.len() as u64));
        car.reserve(sections.sum::<u64>() as usize);
        for block in blocks {
            put_section(&mut car, &block.cid, &block.data).map_err(|error| fail(&error))?;
        }
        Ok(car.into())
    }

    async fn length(&self, cid: &Cid) -> Result<u64, BackendError> {
        match self.presence(&[*cid]).await?.first() {
            Some(Presence::Present(len)) => Ok(*len),
            _ => Err(self.missing(cid)),
        }
    }

    fn missing(&self, cid: &Cid) -> BackendError {
        BackendError::new(ErrorKind::NotFound, format!("{} has no block {cid}", self.way.at))
    }
}

fn lines<'c>(cids: impl IntoIterator<Item = &'c Cid>) -> Bytes {
    cids.into_iter().flat_map(|cid| format!("{cid}\n").into_bytes()).collect()
}

const TEXT: &str = "text/plain";
const NOTHING: (&str, Bytes) = ("", Bytes::new());

#[async_trait]
impl Backend for PeerBackend {
    fn kind(&self) -> &'static str {
        "cairn"
    }

    fn location(&self) -> String {
        self.way.at.clone()
    }

    fn id(&self) -> Option<Uuid> {
        self.way.store
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        self.put_many(std::slice::from_ref(block)).await
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        blocks.iter().try_for_each(check::block)?;
        self.refuse_writes()?;
        let bytes = blocks.iter().map(|block| block.data.len() as u64).sum();
        self.refuse_beyond_capacity(bytes).await?;
        let mut rest = blocks;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |block: &&Block| {
                bytes += block.data.len() + 64;
                bytes <= SENT
            };
            let count = rest.iter().take(ASKED_MAX).take_while(fits).count().max(1);
            let (part, others) = rest.split_at(count);
            let said = self.ask(Method::POST, "v1/blocks", (CAR, self.car(part)?)).await?;
            let stored: Stored = self.way.parse(&said)?;
            if stored.blocks != part.len() {
                let message = format!(
                    "{} stored {} of {} blocks, and says that all is well",
                    self.way.at,
                    stored.blocks,
                    part.len()
                );
                return Err(BackendError::new(ErrorKind::Other, message));
            }
            rest = others;
        }
        Ok(())
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        if let Some(range) = range.clone().filter(|range| range.start >= range.end) {
            let len = self.length(cid).await?;
            return check::range(cid, Some(range), len).map(|_| Bytes::new());
        }
        let path = format!("ipfs/{cid}?format=raw");
        let header = range.as_ref().map(|r| format!("bytes={}-{}", r.start, r.end - 1));
        let answer = self.way.send(Method::GET, &path, (RAW, Bytes::new()), header).await?;
        let total = total_of(&answer);
        let data = self.way.read(answer, Block::MAX_LEN).await?;
        let Some(range) = range else { return Ok(data) };
        // What goes beyond the end is answered up to it.
        check::range(cid, Some(range.clone()), total.unwrap_or(data.len() as u64))?;
        if data.len() as u64 == range.end - range.start {
            return Ok(data);
        }
        let message = format!("block {cid} came short from {}", self.way.at);
        Err(BackendError::new(ErrorKind::Corrupt, message))
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let mut found = Vec::with_capacity(cids.len());
        for part in cids.chunks(ASKED_MAX) {
            let said = self.ask(Method::POST, "v1/has", (TEXT, lines(part))).await?;
            let text = String::from_utf8_lossy(&said);
            let before = found.len();
            found.extend(text.lines().map_while(wire::presence_of));
            if found.len() - before != part.len() {
                let message = format!("{} did not answer what was asked", self.way.at);
                return Err(BackendError::new(ErrorKind::Other, message));
            }
        }
        Ok(found)
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.delete_many(std::slice::from_ref(cid)).await
    }

    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.refuse_writes()?;
        for part in cids.chunks(ASKED_MAX) {
            self.ask(Method::POST, "v1/delete", (TEXT, lines(part))).await?;
        }
        Ok(())
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        let mut path = format!("v1/blocks?limit={}", limit.clamp(1, ASKED_MAX));
        if let Some(from) = from {
            let encoded: String = url::form_urlencoded::byte_serialize(from.as_bytes()).collect();
            path.push_str("&from=");
            path.push_str(&encoded);
        }
        let page: Page = self.way.parse(&self.ask(Method::GET, &path, NOTHING).await?)?;
        let mut blocks = Vec::with_capacity(page.blocks.len());
        for (text, len) in page.blocks {
            let cid = text.parse().map_err(|error| {
                let message = format!("{} lists `{}`: {error}", self.way.at, web::said(&text));
                BackendError::new(ErrorKind::Other, message)
            })?;
            blocks.push((cid, len));
        }
        Ok(ListPage { blocks, next: page.next })
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        check::name(name)?;
        self.refuse_writes()?;
        let path = format!("v1/names/{name}");
        self.ask(Method::PUT, &path, (TEXT, lines([cid]))).await.map(drop)
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let encoded: String = url::form_urlencoded::byte_serialize(prefix.as_bytes()).collect();
        let path = format!("v1/names?prefix={encoded}");
        let said: Vec<(String, String)> =
            self.way.parse(&self.ask(Method::GET, &path, NOTHING).await?)?;
        let mut names = Vec::with_capacity(said.len());
        for (name, text) in said {
            let cid = text.parse().map_err(|error| {
                let message = format!("{}: the name {}: {error}", self.way.at, web::said(&name));
                BackendError::new(ErrorKind::Corrupt, message)
            })?;
            names.push((name, cid));
        }
        Ok(names)
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        check::name(name)?;
        self.refuse_writes()?;
        self.ask(Method::DELETE, &format!("v1/names/{name}"), NOTHING).await.map(drop)
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        let said = self.ask(Method::GET, "v1/usage", NOTHING).await?;
        let usage: Usage = self.way.parse(&said)?;
        let Some(capacity) = self.options.capacity else { return Ok(usage) };
        let left = usage.used_bytes.map(|used| capacity.saturating_sub(used));
        Ok(Usage {
            capacity_bytes: Some(usage.capacity_bytes.map_or(capacity, |of| of.min(capacity))),
            available_bytes: left.into_iter().chain(usage.available_bytes).min(),
            ..usage
        })
    }

    async fn probe(&self) -> Result<(), BackendError> {
        let path = if self.capabilities.read_only { "v1/usage" } else { "v1/probe" };
        let method = if self.capabilities.read_only { Method::GET } else { Method::POST };
        self.ask(method, path, NOTHING).await.map(drop)
    }

    async fn compact(&self) -> Result<bool, BackendError> {
        if !self.capabilities.delete {
            return Ok(false);
        }
        let said = self.ask(Method::POST, "v1/compact", NOTHING).await?;
        self.way.parse(&said)
    }
}
