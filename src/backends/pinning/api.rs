//! The calls of the Pinning Service API 1.0.0 (ipfs.github.io/pinning-services-api-spec).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::PinningBackend;
use super::error::is_gone;
use crate::backends::kubo::LENGTH;
use crate::backends::{BackendError, ErrorKind};
use crate::types::{Cid, Timestamp};

/// All of them: without it a service tells of `pinned` only.
const ALL: &str = "queued,pinning,pinned,failed";
/// CIDs of one request: the most that the API allows.
const ASKED: usize = 10;
/// Requests of one answer: the most that the API allows. Some services (IPFS Cluster) tell
/// times in whole seconds, and all of one have to fit.
const LISTED: usize = 1000;
/// The longest answer: with the addresses of the service a request has some kilobytes.
const ANSWER_MAX: usize = 8 << 20;
/// Addresses of ours that are sent: the most that the API allows.
pub(super) const ORIGINS: usize = 20;
/// As they are in a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Nanoseconds around a window of time: a service may leave its ends out, or round them.
const MARGIN: i64 = 1_000_000;
/// A window that is not cut further.
const NARROW: i64 = 4 * MARGIN;

/// What is to be pinned.
#[derive(Serialize)]
struct Wanted<'w> {
    cid: String,
    name: &'w str,
    origins: &'w [String],
    meta: BTreeMap<&'static str, String>,
}

/// A request to pin, as the service tells of it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Request {
    pub requestid: String,
    status: String,
    #[serde(default)]
    created: String,
    pin: Pinned,
    #[serde(default)]
    pub delegates: Vec<String>,
    #[serde(default)]
    info: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Pinned {
    cid: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    meta: Option<BTreeMap<String, serde_json::Value>>,
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The service has all of it.
    Pinned,
    /// It will do so.
    Coming,
    /// It gave up.
    Failed,
}

impl Request {
    pub fn state(&self) -> State {
        match self.status.as_str() {
            "pinned" => State::Pinned,
            "failed" => State::Failed,
            // `queued` and `pinning`; of another word nothing is known yet.
            _ => State::Coming,
        }
    }

    pub fn cid(&self) -> Option<Cid> {
        self.pin.cid.parse().ok()
    }

    pub fn name(&self) -> &str {
        self.pin.name.as_deref().unwrap_or_default()
    }

    /// The length of its block, where the service kept what we said.
    pub fn length(&self) -> Option<u64> {
        self.pin.meta.as_ref()?.get(LENGTH)?.as_str()?.parse().ok()
    }

    /// What the service says of it, for people.
    pub fn details(&self) -> String {
        let info = self.info.as_ref();
        let told = info.and_then(|info| info.get("status_details")?.as_str());
        told.unwrap_or_default().to_owned()
    }

    /// When it was made, in nanoseconds since 1970.
    fn created(&self) -> Option<i64> {
        time(&self.created)
    }
}

#[derive(Deserialize)]
struct Listed {
    /// All that match, on this page or not.
    #[serde(default)]
    count: u64,
    #[serde(default)]
    results: Option<Vec<Request>>,
}

/// A date of RFC 3339, with any offset, in nanoseconds since 1970.
fn time(text: &str) -> Option<i64> {
    let (date, offset) = match text.char_indices().rfind(|(at, c)| *at > 10 && "+-".contains(*c)) {
        Some((at, _)) => text.split_at(at),
        None => (text.trim_end_matches(['Z', 'z']), ""),
    };
    let seconds = match offset.split_at_checked(1) {
        Some((sign, rest)) => {
            let (hours, minutes) = rest.split_once(':')?;
            let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if sign == "-" { -seconds } else { seconds }
        }
        None => 0,
    };
    let time = humantime::parse_rfc3339(&format!("{date}Z")).ok()?;
    Some(Timestamp::from_system(time).as_nanos() - seconds * 1_000_000_000)
}

fn date(nanos: i64) -> String {
    let time = Timestamp::from_nanos(nanos.max(0)).to_system();
    humantime::format_rfc3339_nanos(time).to_string()
}

/// Which requests are listed.
pub(super) struct Which<'w> {
    pub name: &'w str,
    /// `exact` or `partial`.
    pub matching: &'static str,
    pub status: &'static str,
}

impl PinningBackend {
    /// Asks for a pin.
    pub(super) async fn ask_for(
        &self,
        holder: &Cid,
        name: &str,
        len: Option<u64>,
    ) -> Result<Request, BackendError> {
        let origins = self.origins().await;
        let meta = len.map(|len| (LENGTH, len.to_string())).into_iter().collect();
        let wanted = Wanted { cid: holder.to_string(), name, origins: &origins, meta };
        let request: Request = self.rpc.post_json("pins", &wanted).await?.json().await?;
        if request.cid().as_ref() != Some(holder) {
            let message = format!(
                "{} was asked to pin {holder} and says that it pins {}",
                self.rpc.at(),
                request.pin.cid.escape_debug()
            );
            return Err(BackendError::new(ErrorKind::Other, message));
        }
        Ok(request)
    }

    /// Asks once more for what failed. Not in its place (`POST /pins/{requestid}`): where the
    /// id is the CID, as at IPFS Cluster, that ends what it has just made.
    pub(super) async fn ask_anew(
        &self,
        failed: &Request,
        holder: &Cid,
        (name, len): (&str, Option<u64>),
    ) -> Result<Request, BackendError> {
        self.end(failed).await?;
        self.ask_for(holder, name, len).await
    }

    async fn listed(&self, arguments: &[(&str, &str)]) -> Result<Listed, BackendError> {
        let answer = self.rpc.request(Method::GET, "pins", arguments, None).await?;
        let text = answer.whole(ANSWER_MAX).await?;
        serde_json::from_slice(&text).map_err(|error| {
            let message = format!(
                "{} answered what a pinning service does not answer ({error})",
                self.rpc.at()
            );
            BackendError::new(ErrorKind::Other, message)
        })
    }

    /// The requests of these, whatever they are called.
    pub(super) async fn seen(
        &self,
        holders: &[Cid],
    ) -> Result<HashMap<Cid, Vec<Request>>, BackendError> {
        let mut all: HashMap<Cid, Vec<Request>> = HashMap::new();
        for some in holders.chunks(ASKED) {
            let cids = some.iter().map(Cid::to_string).collect::<Vec<_>>().join(",");
            let limit = LISTED.to_string();
            let arguments = [("cid", cids.as_str()), ("status", ALL), ("limit", limit.as_str())];
            let Listed { count, results } = self.listed(&arguments).await?;
            let results = results.unwrap_or_default();
            if count > results.len() as u64 {
                let message = format!(
                    "{} tells of {} of {count} requests for {} pins: nothing is known of the rest",
                    self.rpc.at(),
                    results.len(),
                    some.len()
                );
                return Err(BackendError::new(ErrorKind::Other, message));
            }
            for request in results {
                if let Some(id) = request.cid().filter(|id| some.contains(id)) {
                    all.entry(id).or_default().push(request);
                }
            }
        }
        Ok(all)
    }

    /// Ends a request; one that is not there is success.
    pub(super) async fn end(&self, request: &Request) -> Result<(), BackendError> {
        let path = path_of(&request.requestid);
        match self.rpc.request(Method::DELETE, &path, &[], None).await {
            Ok(answer) => answer.whole(1 << 16).await.map(drop),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Requests that were made from `from` on, with their times, in the order of those and of
    /// their CIDs, until there are more than `most` of those that count.
    ///
    /// A service says how many there are, and gives the newest of them, or any (IPFS
    /// Cluster): so time is cut until all of a part come.
    pub(super) async fn list_from(
        &self,
        which: &Which<'_>,
        from: i64,
        most: usize,
        mut counts: impl FnMut(i64, &Cid) -> bool,
    ) -> Result<Vec<(i64, Cid, Request)>, BackendError> {
        let soon = SystemTime::now() + Duration::from_hours(24);
        let end = Timestamp::from_system(soon).as_nanos();
        let (mut low, mut width) = (from, end.saturating_sub(from).max(NARROW));
        let mut found = Vec::new();
        while low < end {
            let high = low.saturating_add(width);
            let (part, is_whole) = self.list_between(which, low, high).await?;
            if is_whole {
                found.extend(part.into_iter().filter(|(at, id, _)| counts(*at, id)));
                if found.len() > most {
                    break;
                }
                (low, width) = (high, width.saturating_mul(2));
            } else if width <= NARROW {
                let message = format!(
                    "{} has more than {LISTED} pins of {}: they cannot be told apart by time",
                    self.rpc.at(),
                    date(low)
                );
                return Err(BackendError::new(ErrorKind::Unsupported, message));
            } else {
                width = (width / 2).max(NARROW);
            }
        }
        Ok(found)
    }

    async fn list_between(
        &self,
        which: &Which<'_>,
        low: i64,
        high: i64,
    ) -> Result<(Vec<(i64, Cid, Request)>, bool), BackendError> {
        let (after, before) = (date(low - MARGIN), date(high.saturating_add(MARGIN)));
        let limit = LISTED.to_string();
        let arguments = [
            ("name", which.name),
            ("match", which.matching),
            ("status", which.status),
            ("after", &after),
            ("before", &before),
            ("limit", &limit),
        ];
        let Listed { count, results } = self.listed(&arguments).await?;
        let results = results.unwrap_or_default();
        let is_whole = count <= results.len() as u64;
        let mut part = Vec::new();
        for request in results {
            let Some(created) = request.created() else {
                let message = format!(
                    "{} tells no time of a pin (`{}`): it cannot be listed",
                    self.rpc.at(),
                    request.created.escape_debug()
                );
                return Err(BackendError::new(ErrorKind::Other, message));
            };
            if let Some(id) = request.cid().filter(|_| (low..high).contains(&created)) {
                part.push((created, id, request));
            }
        }
        part.sort_by_key(|(created, id, _)| (*created, id.to_bytes()));
        Ok((part, is_whole))
    }
}

fn path_of(requestid: &str) -> String {
    format!("pins/{}", utf8_percent_encode(requestid, PLAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_any_offset_are_read() {
        let zero = 1_595_871_148_000_000_000;
        for (text, nanos) in [
            ("2020-07-27T17:32:28Z", zero),
            ("2020-07-27T17:32:28.276Z", zero + 276_000_000),
            ("2020-07-27T17:32:28.000000007Z", zero + 7),
            ("2020-07-27T19:32:28+02:00", zero),
            ("2020-07-27T12:02:28-05:30", zero),
        ] {
            assert_eq!(time(text), Some(nanos), "{text}");
        }
        for bad in ["", "yesterday", "2020-07-27", "2020-07-27T17:32:28+2"] {
            assert_eq!(time(bad), None, "{bad}");
        }
        assert_eq!(date(zero + 7), "2020-07-27T17:32:28.000000007Z");
    }

    #[test]
    fn a_request_is_read_as_the_specification_writes_it() {
        let text = r#"{"requestid":"a b/c","status":"queued","created":"2020-07-27T17:32:28Z",
            "pin":{"cid":"bafkqaaa","name":"x","origins":[],"meta":{"cairn-length":"7"}},
            "delegates":["/ip4/1.2.3.4/tcp/4001/p2p/x"],"info":{"status_details":"waits"}}"#;
        let mut request: Request = serde_json::from_str(text).unwrap();
        assert_eq!((request.state(), request.length()), (State::Coming, Some(7)));
        assert_eq!((request.name(), request.details().as_str()), ("x", "waits"));
        assert_eq!(path_of(&request.requestid), "pins/a%20b%2Fc");
        for (status, state) in
            [("pinning", State::Coming), ("pinned", State::Pinned), ("failed", State::Failed)]
        {
            status.clone_into(&mut request.status);
            assert_eq!(request.state(), state);
        }
        let bare = r#"{"requestid":"1","status":"pinned","pin":{"cid":"x"}}"#;
        let bare: Request = serde_json::from_str(bare).unwrap();
        assert_eq!((bare.cid(), bare.length(), bare.created()), (None, None, None));
    }
}
