//! What a failure of the RPC means, and what to do about it.
//!
//! Kubo answers with 500 and `{"Message": .., "Code": .., "Type": "error"}` whatever
//! happened, so for its own errors the text has to do; each is of v0.41.0.

use reqwest::StatusCode;
use serde::Deserialize;

use crate::backends::web::{Cut, said};
use crate::backends::{BackendError, ErrorKind};

/// What the failures of one kind of server mean. Each is told with the place first.
#[derive(Debug)]
pub(in crate::backends) struct Words {
    /// `a Kubo`.
    pub server: &'static str,
    /// An error that it tells: the message of an answer, of a line, or of a trailer.
    pub message: fn(&str, &str) -> BackendError,
    /// An answer that is no success: its status, how long to wait (ms), its body.
    pub answer: fn(&str, StatusCode, Option<u64>, &[u8]) -> BackendError,
    /// What to do when nobody listens.
    pub refused: &'static str,
    /// When it does not let us in.
    pub denied: &'static str,
    /// When something else answers.
    pub other: &'static str,
    /// When it is elsewhere.
    pub elsewhere: &'static str,
    /// When a proxy takes no body as long as the longest.
    pub long: &'static str,
    /// When a proxy finds nobody.
    pub away: &'static str,
}

/// Kubo's.
pub(super) static WORDS: Words = Words {
    server: "a Kubo",
    message: of_message,
    answer: of_answer,
    refused: "nobody listens there: start `ipfs daemon`, or name its Addresses.API",
    denied: "it refuses us: give the secret of an entry of its API.Authorizations with auth=file:/path, whose AllowedPaths have /api/v0 or version, block, dag/import, pin and repo/stat",
    other: "that is no Kubo RPC: name the port of Addresses.API (5001), not that of the gateway",
    elsewhere: "it sends us elsewhere: name the place itself (ipfs+https:// for TLS)",
    long: "a proxy takes no bodies of 8 MiB: raise its limit (client_max_body_size)",
    away: "a proxy cannot reach Kubo: start `ipfs daemon`",
};

/// Kubo's error.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    message: String,
}

fn is_no_block(text: &str) -> bool {
    text.contains("ipld: could not find") || text.contains("block was not found locally")
}

/// Whether a pin that was asked about or removed is not there.
pub(super) fn is_not_pinned(error: &BackendError) -> bool {
    error.kind == ErrorKind::NotFound && error.message.contains("not pinned")
}

/// Whether a block is not there.
pub(in crate::backends) fn is_absent(error: &BackendError) -> bool {
    error.kind == ErrorKind::NotFound
}

/// An error that Kubo tells: the message of an answer, of a line, or of a trailer.
pub(super) fn of_message(at: &str, text: &str) -> BackendError {
    let has = |what: &str| text.contains(what);
    let (kind, advice) = if is_no_block(text) || has("not pinned") {
        (ErrorKind::NotFound, "")
    } else if has("no space left on device") || has("disk quota exceeded") {
        (ErrorKind::Full, ": make room on the disk of its repo, or run `ipfs repo gc` there")
    } else if has("read-only file system") {
        (ErrorKind::ReadOnly, ": the disk of its repo is mounted read-only")
    } else if has("permission denied") {
        (ErrorKind::Denied, ": Kubo may not write its own repo; look at the owner of its files")
    } else if has("block in storage has different hash") || has("mismatch in content integrity") {
        (ErrorKind::Corrupt, ": what lies in its repo is damaged; `ipfs repo verify` lists it")
    } else if has("deadline exceeded") {
        (ErrorKind::Timeout, "")
    } else if has("too many open files") {
        (ErrorKind::Throttled, ": raise the limit of open files of its daemon (IPFS_FD_MAX)")
    } else if has("closed") || has("shutting down") || has("context canceled") {
        (ErrorKind::Unavailable, ": it seems to be shutting down")
    } else {
        (ErrorKind::Other, "")
    };
    BackendError::new(kind, format!("{at} says: {}{advice}", said(text)))
}

/// An answer that is not 200.
pub(super) fn of_answer(
    at: &str,
    status: StatusCode,
    retry_after_ms: Option<u64>,
    body: &[u8],
) -> BackendError {
    if let Ok(Answer { message }) = serde_json::from_slice(body)
        && (status == StatusCode::INTERNAL_SERVER_ERROR || status == StatusCode::BAD_REQUEST)
    {
        let mut error = of_message(at, &message);
        if status == StatusCode::BAD_REQUEST && error.kind == ErrorKind::Other {
            error.kind = ErrorKind::Invalid;
        }
        return error;
    }
    of_status(&WORDS, at, status, retry_after_ms)
}

/// A status that says it all.
pub(in crate::backends) fn of_status(
    words: &Words,
    at: &str,
    status: StatusCode,
    retry_after_ms: Option<u64>,
) -> BackendError {
    let (kind, what) = match status.as_u16() {
        401 | 403 => (ErrorKind::Denied, words.denied),
        404 | 405 => (ErrorKind::Invalid, words.other),
        300..=399 => (ErrorKind::Invalid, words.elsewhere),
        408 | 504 => (ErrorKind::Timeout, "no answer in the time that a proxy waits"),
        413 => (ErrorKind::Invalid, words.long),
        429 => (ErrorKind::Throttled, "it asks for fewer requests: set requests= or parallel="),
        502 => (ErrorKind::Unavailable, words.away),
        503 => (ErrorKind::Throttled, "it is too busy"),
        507 => (ErrorKind::Full, "no room is left there"),
        400..=499 => (ErrorKind::Invalid, "it does not take the request"),
        _ => (ErrorKind::Other, "it failed"),
    };
    let mut error = BackendError::new(kind, format!("{at} answered {status}: {what}"));
    if matches!(kind, ErrorKind::Throttled | ErrorKind::Unavailable) {
        error.retry_after_ms = retry_after_ms;
    }
    error
}

/// No whole answer came.
pub(super) fn of_transport(words: &Words, at: &str, error: reqwest::Error) -> BackendError {
    let (cut, text) = Cut::of(error);
    let hint = match cut {
        Cut::Refused => words.refused,
        _ => cut.hint(),
    };
    BackendError::new(cut.kind(), format!("{at}: {text}; {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubo_says_is_told_apart() {
        for (text, kind) in [
            (
                "block was not found locally (offline): ipld: could not find bafy",
                ErrorKind::NotFound,
            ),
            ("path 'bafy' is not pinned", ErrorKind::NotFound),
            ("not pinned or pinned indirectly", ErrorKind::NotFound),
            ("write /x: no space left on device", ErrorKind::Full),
            ("open /x: read-only file system", ErrorKind::ReadOnly),
            ("open /x: permission denied", ErrorKind::Denied),
            ("block in storage has different hash than requested", ErrorKind::Corrupt),
            ("mismatch in content integrity, expected: a, got: b", ErrorKind::Corrupt),
            ("context deadline exceeded", ErrorKind::Timeout),
            ("open /x: too many open files", ErrorKind::Throttled),
            ("leveldb: closed", ErrorKind::Unavailable),
            ("something new", ErrorKind::Other),
        ] {
            let error = of_message("ipfs://h", text);
            assert_eq!(error.kind, kind, "{text}");
            assert!(error.message.starts_with("ipfs://h says: "), "{error}");
            let body = format!(r#"{{"Message":"{text}","Code":0,"Type":"error"}}"#);
            let told =
                of_answer("ipfs://h", StatusCode::INTERNAL_SERVER_ERROR, None, body.as_bytes());
            assert_eq!(told.kind, kind, "{text}");
        }
        assert!(is_not_pinned(&of_message("h", "path 'x' is not pinned")));
        assert!(!is_not_pinned(&of_message("h", "ipld: could not find x")));
        let long = of_message("h", &"x\n".repeat(1000));
        assert!(long.message.len() < 400 && !long.message.contains('\n'));
    }

    #[test]
    fn each_status_says_what_to_do() {
        for (status, kind, hint) in [
            (301, ErrorKind::Invalid, "ipfs+https://"),
            (400, ErrorKind::Invalid, "request"),
            (401, ErrorKind::Denied, "auth=file:"),
            (403, ErrorKind::Denied, "API.Authorizations"),
            (404, ErrorKind::Invalid, "Addresses.API"),
            (405, ErrorKind::Invalid, "gateway"),
            (408, ErrorKind::Timeout, "proxy"),
            (413, ErrorKind::Invalid, "client_max_body_size"),
            (429, ErrorKind::Throttled, "requests="),
            (500, ErrorKind::Other, "failed"),
            (502, ErrorKind::Unavailable, "ipfs daemon"),
            (503, ErrorKind::Throttled, "busy"),
            (504, ErrorKind::Timeout, "proxy"),
            (507, ErrorKind::Full, "room"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = of_answer("ipfs://h", status, Some(7000), b"<html>");
            assert_eq!(error.kind, kind, "{status}");
            assert!(error.message.contains(hint), "{error}");
            let asks = matches!(kind, ErrorKind::Throttled | ErrorKind::Unavailable);
            assert_eq!(error.retry_after_ms, asks.then_some(7000), "{status}");
        }
        let body = br#"{"Message":"argument \"cid\" is required","Code":1,"Type":"error"}"#;
        let error = of_answer("h", StatusCode::BAD_REQUEST, None, body);
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
}
