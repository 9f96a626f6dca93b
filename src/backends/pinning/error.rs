//! What a failure of a pinning service, or of the gateway beside it, means.
//!
//! A service answers with `{"error": {"reason": .., "details": ..}}` (Pinning Service API
//! 1.0.0, Failure); the status says what to do, the text is for people.

use reqwest::StatusCode;
use serde::Deserialize;

use crate::backends::kubo::{Words, of_status};
use crate::backends::web::said;
use crate::backends::{BackendError, ErrorKind};

/// Those of a service.
pub(super) static WORDS: Words = Words {
    server: "a pinning service",
    message: of_message,
    answer: of_answer,
    refused: "nobody listens there: are host and port right?",
    denied: "it refuses us: give the token of your account there with auth=file:/path",
    other: "that is no Pinning Service API: name the root of it, which has `pins` below it",
    elsewhere: "it sends us elsewhere: name the place itself (pinning+https:// for TLS)",
    long: "a proxy takes no body of ours: raise its limit",
    away: "a proxy cannot reach it",
};

/// Those of a gateway.
pub(super) static GATEWAY_WORDS: Words = Words {
    server: "a gateway",
    message: of_message,
    answer: of_gateway,
    refused: "nobody listens there: is gateway= right?",
    denied: "the gateway refuses us: name one that gives blocks to everybody with gateway=",
    other: "that is no gateway: name one that has /ipfs/ below it with gateway=",
    elsewhere: "the gateway sends us elsewhere: name the place itself with gateway=",
    long: "a proxy takes no body of ours: raise its limit",
    away: "a proxy cannot reach the gateway",
};

#[derive(Debug, Deserialize)]
struct Answer {
    error: Reason,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reason {
    reason: String,
    details: String,
}

/// Whether a request that was asked about or ended is not there.
pub(super) fn is_gone(error: &BackendError) -> bool {
    error.kind == ErrorKind::NotFound
}

/// An error that is told in words alone.
pub(super) fn of_message(at: &str, text: &str) -> BackendError {
    BackendError::new(ErrorKind::Other, format!("{at} says: {}", said(text)))
}

fn of_answer(
    at: &str,
    status: StatusCode,
    retry_after_ms: Option<u64>,
    body: &[u8],
) -> BackendError {
    let mut error = of_status(&WORDS, at, status, retry_after_ms);
    let Ok(Answer { error: Reason { reason, details } }) = serde_json::from_slice(body) else {
        return error;
    };
    let spent = ["INSUFFICIENT_FUNDS", "QUOTA", "LIMIT", "FULL"];
    let is_spent = status.is_client_error() && spent.iter().any(|word| reason.contains(word));
    error.kind = match status.as_u16() {
        // It is one of these, and not another server's.
        404 => ErrorKind::NotFound,
        429 => error.kind,
        _ if is_spent => ErrorKind::Full,
        400 | 409 => ErrorKind::Invalid,
        _ => error.kind,
    };
    let told = if details.is_empty() { reason } else { format!("{reason}: {details}") };
    let advice = if is_spent && error.kind == ErrorKind::Full {
        "; your account there has no more room"
    } else if error.kind == ErrorKind::Denied {
        "; give the token of your account there with auth=file:/path"
    } else {
        ""
    };
    error.message = format!("{at} answered {status}: {}{advice}", said(&told));
    error
}

fn of_gateway(at: &str, status: StatusCode, retry_after_ms: Option<u64>, _: &[u8]) -> BackendError {
    // 412: it does not have it, and was asked not to look elsewhere (Path Gateway,
    // `Cache-Control: only-if-cached`).
    if matches!(status.as_u16(), 404 | 410 | 412) {
        return BackendError::new(ErrorKind::NotFound, format!("{at} answered {status}"));
    }
    of_status(&GATEWAY_WORDS, at, status, retry_after_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_of_a_service_says_what_to_do() {
        for (status, kind, hint) in [
            (301, ErrorKind::Invalid, "pinning+https://"),
            (400, ErrorKind::Invalid, "request"),
            (401, ErrorKind::Denied, "auth=file:"),
            (403, ErrorKind::Denied, "auth=file:"),
            (404, ErrorKind::Invalid, "`pins` below"),
            (408, ErrorKind::Timeout, "proxy"),
            (429, ErrorKind::Throttled, "requests="),
            (500, ErrorKind::Other, "failed"),
            (502, ErrorKind::Unavailable, "proxy"),
            (503, ErrorKind::Throttled, "busy"),
            (504, ErrorKind::Timeout, "proxy"),
            (507, ErrorKind::Full, "room"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = of_answer("h", status, Some(7000), b"<html>");
            assert_eq!(error.kind, kind, "{status}");
            assert!(error.message.contains(hint), "{error}");
            let asks = matches!(kind, ErrorKind::Throttled | ErrorKind::Unavailable);
            assert_eq!(error.retry_after_ms, asks.then_some(7000), "{status}");
        }
    }

    #[test]
    fn what_a_service_says_is_told_on() {
        for (status, reason, kind, hint) in [
            (400, "BAD_REQUEST", ErrorKind::Invalid, "more"),
            (401, "UNAUTHORIZED", ErrorKind::Denied, "auth=file:"),
            (404, "NOT_FOUND", ErrorKind::NotFound, "more"),
            (409, "INSUFFICIENT_FUNDS", ErrorKind::Full, "account"),
            (409, "SOMETHING_ELSE", ErrorKind::Invalid, "more"),
            (422, "PIN_QUOTA_EXCEEDED", ErrorKind::Full, "account"),
            (429, "RATE_LIMIT", ErrorKind::Throttled, "more"),
            (500, "INTERNAL_SERVER_ERROR", ErrorKind::Other, "more"),
        ] {
            let body = format!(r#"{{"error":{{"reason":"{reason}","details":"more"}}}}"#);
            let status = StatusCode::from_u16(status).unwrap();
            let error = of_answer("h", status, Some(7000), body.as_bytes());
            assert_eq!(error.kind, kind, "{status} {reason}");
            assert!(error.message.contains(reason) && error.message.contains(hint), "{error}");
            assert_eq!(error.retry_after_ms, (status == 429).then_some(7000));
        }
        let gone = |status| of_gateway("h", StatusCode::from_u16(status).unwrap(), None, b"").kind;
        assert!([404, 410, 412].iter().all(|status| gone(*status) == ErrorKind::NotFound));
        assert_eq!(gone(403), ErrorKind::Denied);
    }
}
