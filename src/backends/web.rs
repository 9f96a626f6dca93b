//! What backends over HTTP share: the client, why no answer came, and where a secret is.
//!
//! Nothing is tried again here and no redirect is followed: `wrap/` has the retries and
//! the deadlines, and what a request is signed with, or carries, is for one host.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Client};
use url::Host;

use super::{BackendError, ErrorKind};
use crate::runtime::{Bridge, SecretSource, within};
use crate::types::printable;

/// Who does not take a connection in this time is away.
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections that are kept to a host.
const IDLE: usize = 32;
/// Of what others say, so many characters are shown.
const SAID_MAX: usize = 300;

/// A client, for places on this machine without a proxy. `ca`: a file of certificates (PEM)
/// that are trusted instead of the system's.
///
/// # Errors
/// With what is wrong about the certificates.
pub(super) fn client(ca: Option<&Path>, is_loopback: bool) -> Result<Client, String> {
    // Set once in a process; who comes second finds the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut builder = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("cairn/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .pool_max_idle_per_host(IDLE);
    if is_loopback {
        builder = builder.no_proxy();
    }
    if let Some(path) = ca {
        let shown = path.display();
        let pem = std::fs::read(path).map_err(|error| format!("ca={shown}: {error}"))?;
        let none = || format!("ca={shown} has no certificate in PEM form");
        let bundle = Certificate::from_pem_bundle(&pem).map_err(|_| none())?;
        if bundle.is_empty() {
            return Err(none());
        }
        builder = builder.tls_certs_only(bundle);
    }
    builder.build().map_err(|error| format!("no client for HTTP: {}", Cut::of(error).1))
}

/// Why no whole answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Nobody listens there, or no way leads there.
    Refused,
    /// The host has no address.
    Name,
    /// No trust in who answers, or no common version of TLS.
    Tls,
    /// What answers speaks no TLS.
    Plain,
    /// The connection took too long.
    Late,
    /// The connection broke.
    Broken,
    /// It was never sent.
    Unsent,
}

impl Cut {
    /// With the whole chain of causes, but for the URL: the place is named anyway.
    pub fn of(error: reqwest::Error) -> (Self, String) {
        let error = error.without_url();
        let (mut io, mut tls, mut texts) = (None, false, Vec::new());
        for cause in causes(&error) {
            io = io.or(cause.downcast_ref::<io::Error>().map(io::Error::kind));
            tls |= cause.is::<rustls::Error>();
            texts.push(cause.to_string());
        }
        texts.dedup();
        let text = texts.join(": ");
        // rustls: the first bytes are of no record that it knows.
        let cut = if tls && text.contains("InvalidContentType") {
            Self::Plain
        } else if tls {
            Self::Tls
        } else if text.contains("dns error") || text.contains("failed to lookup address") {
            Self::Name
        } else if error.is_timeout() || io == Some(io::ErrorKind::TimedOut) {
            Self::Late
        } else if error.is_connect() {
            Self::Refused
        } else if error.is_builder() {
            Self::Unsent
        } else {
            Self::Broken
        };
        (cut, said(&text))
    }

    /// What it means for the place.
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::Refused | Self::Name | Self::Tls | Self::Plain => ErrorKind::Unavailable,
            Self::Late => ErrorKind::Timeout,
            Self::Broken => ErrorKind::Other,
            Self::Unsent => ErrorKind::Invalid,
        }
    }

    /// What its owner can do.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Refused => "nobody listens there: does it run, are host and port right?",
            Self::Name => "its host has no address: is it written right, does DNS work?",
            Self::Tls => {
                "no secure connection: for a certificate of your own name its authority with ca="
            }
            Self::Plain => {
                "what listens there speaks no TLS: write the URL without https, if the way there \
                 is safe, or the port that has it"
            }
            Self::Late => "it does not answer in time: is the network up, is a proxy needed?",
            Self::Broken => "the connection broke off: it is tried again",
            Self::Unsent => "the request cannot be made: look at the settings in the URL",
        }
    }
}

/// The causes of an error, those that `io::Error` hides among them.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> Vec<&'e (dyn Error + 'static)> {
    let (mut all, mut next) = (Vec::new(), Some(error));
    while let Some(at) = next {
        all.push(at);
        let hidden = at.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match hidden {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => at.source(),
        };
    }
    all
}

/// What others say, on one line of a bounded length.
pub(super) fn said(text: &str) -> String {
    let shown = printable(&text.trim().chars().take(SAID_MAX).collect::<String>());
    // What is escaped got longer.
    shown.chars().take(SAID_MAX).collect()
}

/// How long a place wants to be left alone, in milliseconds.
pub(super) fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    let until = humantime::parse_rfc3339(&rfc3339(text)?).ok()?;
    let left = until.duration_since(std::time::SystemTime::now()).unwrap_or_default();
    Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7) as `1994-11-06T08:49:37Z`.
fn rfc3339(date: &str) -> Option<String> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = date.split_once(", ")?.1.strip_suffix(" GMT")?.split(' ');
    let (day, month) = (words.next()?, words.next()?);
    let (year, time) = (words.next()?, words.next()?);
    let month = MONTHS.find(month).filter(|at| at % 3 == 0 && month.len() == 3)? / 3 + 1;
    Some(format!("{year}-{month:02}-{day}T{time}Z"))
}

/// Whether it is this machine. `s3:` and `ipfs:` leave an address in its text as it is.
pub(super) fn is_loopback(host: Option<Host<&str>>) -> bool {
    match host {
        Some(Host::Domain(name)) => {
            name == "localhost"
                || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        }
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// What `ca=` says.
pub(super) fn ca(value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err(format!("ca={value}: write /the/whole/path")) }
}

/// What `auth=` says. `gives`: what is read there.
pub(super) fn auth(value: &str, gives: &str) -> Result<SecretSource, String> {
    match SecretSource::parse(value) {
        Some(SecretSource::File(path)) if !path.is_absolute() => {
            Err(format!("auth=file:{}: write /the/whole/path", path.display()))
        }
        Some(source) => Ok(source),
        None => Err(format!(
            "auth= says where to read it, and not what it is: {}",
            no_place_for_secrets(gives)
        )),
    }
}

/// What to do instead of writing a secret into a URL.
pub(super) fn no_place_for_secrets(gives: &str) -> String {
    format!(
        "a URL is no place for keys, as process lists, logs and the volume's metadata show it: \
         write auth=file:/path (of mode 0600), auth=env:NAME or auth=command:PROGRAM, which give \
         {gives}; change what was given away"
    )
}

/// Runs what is asked when a place is opened, on a thread and a runtime of its own: callers
/// have another, and connections end with the one that they were made in. Blocks for
/// little more than the deadline.
///
/// # Errors
/// `Unavailable` when it is late, as of a disk that hangs; else what `ask` says.
pub(super) fn at_opening<T, Asking>(
    place: &str,
    deadline: Duration,
    ask: impl FnOnce() -> Asking + Send + 'static,
) -> Result<T, BackendError>
where
    T: Send + 'static,
    Asking: Future<Output = Result<T, BackendError>>,
{
    let late = || {
        let message = format!("{place}: no answer in time: is it up, is the network?");
        BackendError::new(ErrorKind::Unavailable, message)
    };
    let no_thread = |error: io::Error| {
        BackendError::new(ErrorKind::Other, format!("no thread to open a backend: {error}"))
    };
    let work = move || Ok(Bridge::start(1)?.wait(deadline, ask()));
    // A little more: what is late on the bridge says so itself.
    let answer = within(deadline + Duration::from_secs(1), work).map_err(no_thread)?;
    answer.ok_or_else(late)?.map_err(no_thread)?.map_err(|_| late())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_are_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let open = || client(Some(&file), true).err();
        assert!(open().unwrap().contains("ca.pem: "));
        std::fs::write(&file, "nothing").unwrap();
        assert!(open().unwrap().contains("no certificate"));
    }

    #[test]
    fn this_machine_has_many_names() {
        for (url, here) in [
            ("http://localhost:1", true),
            ("http://127.0.0.9", true),
            ("ipfs://127.0.0.1:5001/x", true),
            ("ipfs://[::1]", true),
            ("ipfs://10.0.0.1", false),
            ("https://localhost.example.org", false),
        ] {
            let url: url::Url = url.parse().unwrap();
            assert_eq!(is_loopback(url.host()), here, "{url}");
        }
    }

    #[test]
    fn the_time_that_a_place_wants_is_kept_in_seconds_or_as_a_date() {
        let waits = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            retry_after_ms(&headers)
        };
        assert_eq!(waits("7"), Some(7_000));
        assert_eq!(waits("soon"), None);
        assert_eq!(waits("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        let later = std::time::SystemTime::now() + Duration::from_secs(100);
        let text = humantime::format_rfc3339_seconds(later).to_string();
        let (date, time) = text.trim_end_matches('Z').split_once('T').unwrap();
        let parts: Vec<&str> = date.split('-').collect();
        let month =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
                [parts[1].parse::<usize>().unwrap() - 1];
        let http = format!("Mon, {} {month} {} {time} GMT", parts[2], parts[0]);
        let wait = waits(&http).unwrap();
        assert!((90_000..=100_000).contains(&wait), "{http}: {wait}");
    }

    #[test]
    fn who_never_answers_is_given_up() {
        let late = at_opening("p", Duration::from_millis(10), || {
            std::future::pending::<Result<(), BackendError>>()
        });
        assert_eq!(late.unwrap_err().kind, ErrorKind::Unavailable);
    }
}
