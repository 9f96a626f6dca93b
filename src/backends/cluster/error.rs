//! What a failure of Cluster's REST API means, and what to do about it.
//!
//! It answers with `{"code": .., "message": ..}`, mostly 500 whatever happened, so the text
//! has to do; each is of v1.1.6. What a peer's Kubo says is handed on in the same way.

use reqwest::StatusCode;
use serde::Deserialize;

use crate::backends::kubo::{Words, of_status};
use crate::backends::web::said;
use crate::backends::{BackendError, ErrorKind};

pub(super) static WORDS: Words = Words {
    server: "an IPFS Cluster",
    message: of_message,
    answer: of_answer,
    refused: "nobody listens there: start `ipfs-cluster-service daemon`, or name its \
              restapi.http_listen_multiaddress",
    denied: "it refuses us: give a user of its restapi.basic_auth_credentials, or a token of its /token, with auth=file:/path",
    other: "that is no REST API of IPFS Cluster: name the port of restapi.http_listen_multiaddress (9094)",
    elsewhere: "it sends us elsewhere: name the place itself (ipfs-cluster+https:// for TLS)",
    long: "a proxy takes no bodies of 3 MiB: raise its limit (client_max_body_size)",
    away: "a proxy cannot reach it: start `ipfs-cluster-service daemon`",
};

#[derive(Debug, Deserialize)]
struct Answer {
    message: String,
}

/// Whether a pin that was asked about or removed is not there.
pub(super) fn is_not_pinned(error: &BackendError) -> bool {
    error.kind == ErrorKind::NotFound && error.message.contains("pinset")
}

/// An error that Cluster, or a peer's Kubo, tells.
pub(super) fn of_message(at: &str, text: &str) -> BackendError {
    let has = |what: &str| text.contains(what);
    let (kind, advice) = if has("not part of the pinset") {
        (ErrorKind::NotFound, "")
    } else if has("not enough peers") || has("not enough allocations") {
        (
            ErrorKind::Unavailable,
            ": too few of its peers are up, or have room: look at `ipfs-cluster-ctl health \
             alerts`, or lower replication_min=",
        )
    } else if has("no space left on device") || has("disk quota exceeded") {
        (ErrorKind::Full, ": make room on that disk, or run `ipfs-cluster-ctl ipfs gc`")
    } else if has("follower") {
        (ErrorKind::ReadOnly, ": name a peer that may write")
    } else if has("unpinning is disallowed") {
        (ErrorKind::Denied, ": set ipfs_connector.ipfshttp.unpin_disable to false there")
    } else if has("replication factor") {
        (ErrorKind::Invalid, ": look at replication_min= and replication_max=")
    } else if has("all destinations") || has("failed to put blocks") {
        (ErrorKind::Unavailable, ": no Kubo of its peers took the block: do they run?")
    } else if has("connection refused") || has("no such host") || has("dial backoff") {
        (ErrorKind::Unavailable, ": a peer, or its Kubo, does not run")
    } else if has("deadline exceeded") || has("i/o timeout") || has("timed out") {
        (ErrorKind::Timeout, "")
    } else if has("read-only file system") {
        (ErrorKind::ReadOnly, ": a disk there is mounted read-only")
    } else if has("permission denied") {
        (ErrorKind::Denied, ": look at the owner of its files")
    } else if has("too many open files") {
        (ErrorKind::Throttled, ": raise its limit of open files")
    } else if has("context canceled") || has("shutting down") || has("shutdown") {
        (ErrorKind::Unavailable, ": it seems to be shutting down")
    } else {
        (ErrorKind::Other, "")
    };
    BackendError::new(kind, format!("{at} says: {}{advice}", said(text)))
}

/// An answer that is no success.
fn of_answer(
    at: &str,
    status: StatusCode,
    retry_after_ms: Option<u64>,
    body: &[u8],
) -> BackendError {
    if let Ok(Answer { message }) = serde_json::from_slice(body) {
        let told = of_message(at, &message);
        let is_told = match status.as_u16() {
            500 => true,
            400 => told.kind != ErrorKind::Other,
            404 => told.kind == ErrorKind::NotFound,
            _ => false,
        };
        if is_told {
            return told;
        }
        if status == StatusCode::BAD_REQUEST {
            return BackendError::new(ErrorKind::Invalid, told.message);
        }
    }
    of_status(&WORDS, at, status, retry_after_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cluster_says_is_told_apart() {
        for (text, kind) in [
            ("pin is not part of the pinset", ErrorKind::NotFound),
            ("not enough peers to allocate CID. Needed at least: 2.", ErrorKind::Unavailable),
            ("write /x: no space left on device", ErrorKind::Full),
            ("this peer is configured to be in follower mode", ErrorKind::ReadOnly),
            ("ipfs unpinning is disallowed by configuration on this peer", ErrorKind::Denied),
            ("cluster.replication_factor_min: replication factor", ErrorKind::Invalid),
            ("dial tcp 127.0.0.1:5001: connect: connection refused", ErrorKind::Unavailable),
            ("context deadline exceeded", ErrorKind::Timeout),
            ("open /x: read-only file system", ErrorKind::ReadOnly),
            ("open /x: permission denied", ErrorKind::Denied),
            ("accept: too many open files", ErrorKind::Throttled),
            ("something new", ErrorKind::Other),
        ] {
            let error = of_message("h", text);
            assert_eq!(error.kind, kind, "{text}");
            assert!(error.message.starts_with("h says: "), "{error}");
            let body = format!(r#"{{"code":500,"message":"{text}"}}"#);
            let told = of_answer("h", StatusCode::INTERNAL_SERVER_ERROR, None, body.as_bytes());
            assert_eq!(told.kind, kind, "{text}");
        }
        assert!(is_not_pinned(&of_message("h", "pin is not part of the pinset")));
        let long = of_message("h", &"x\n".repeat(1000));
        assert!(long.message.len() < 400 && !long.message.contains('\n'));
    }

    #[test]
    fn each_status_of_cluster_says_what_to_do() {
        for (status, kind, hint) in [
            (301, ErrorKind::Invalid, "ipfs-cluster+https://"),
            (400, ErrorKind::Invalid, "something"),
            (401, ErrorKind::Denied, "basic_auth_credentials"),
            (403, ErrorKind::Denied, "auth=file:"),
            (404, ErrorKind::Invalid, "9094"),
            (405, ErrorKind::Invalid, "9094"),
            (408, ErrorKind::Timeout, "proxy"),
            (413, ErrorKind::Invalid, "client_max_body_size"),
            (418, ErrorKind::Invalid, "request"),
            (429, ErrorKind::Throttled, "requests="),
            (500, ErrorKind::Other, "something"),
            (502, ErrorKind::Unavailable, "daemon"),
            (503, ErrorKind::Throttled, "busy"),
            (504, ErrorKind::Timeout, "proxy"),
            (507, ErrorKind::Full, "room"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = of_answer("h", status, Some(7000), br#"{"code":1,"message":"something"}"#);
            assert_eq!(error.kind, kind, "{status}");
            assert!(error.message.contains(hint), "{error}");
            let asks = matches!(kind, ErrorKind::Throttled | ErrorKind::Unavailable);
            assert_eq!(error.retry_after_ms, asks.then_some(7000), "{status}");
        }
        let gone = br#"{"code":404,"message":"pin is not part of the pinset"}"#;
        assert!(is_not_pinned(&of_answer("h", StatusCode::NOT_FOUND, None, gone)));
        assert_eq!(
            of_answer("h", StatusCode::BAD_GATEWAY, None, b"<html>").kind,
            ErrorKind::Unavailable
        );
    }
}
