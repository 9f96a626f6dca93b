//! What a failure of Pinata's, or of the gateway of an account, means.
//!
//! Pinata tells of errors as `{"error": {"code": .., "message": ..}}` or `{"error": TEXT}`
//! (docs.pinata.cloud has no list of them): the status says what to do, the text is for
//! people.

use reqwest::StatusCode;
use serde_json::Value;

use crate::backends::kubo::{Words, of_status};
use crate::backends::web::said;
use crate::backends::{BackendError, ErrorKind};

/// Those of the API.
pub(super) static API_WORDS: Words = Words {
    server: "Pinata's API",
    message: of_message,
    answer: of_answer,
    refused: "nobody listens there: is api= right?",
    denied: "it refuses us: give a key of the account that may read and write files \
             (org:files:read, org:files:write) with auth=file:/path",
    other: "that is no Files API: name the address that has `files` below it with api=",
    elsewhere: "it sends us elsewhere: name the place itself with api=",
    long: "it takes no request of ours: is a proxy between?",
    away: "a proxy cannot reach it",
};

/// Those of uploads.
pub(super) static UPLOAD_WORDS: Words = Words {
    server: "Pinata's uploads",
    refused: "nobody listens there: is uploads= right?",
    other: "that takes no uploads: name the address that has `files` below it with uploads=",
    elsewhere: "it sends us elsewhere: name the place itself with uploads=",
    long: "it takes no archive of this size: is it Pinata's upload API, is a proxy between?",
    ..API_WORDS
};

/// Those of a gateway.
pub(super) static GATEWAY_WORDS: Words = Words {
    server: "a gateway",
    message: of_message,
    answer: of_gateway,
    refused: "nobody listens there: is gateway= right?",
    denied: "the gateway refuses us: is it the account's own? one with a gateway key asks for \
             gateway_auth=file:/path",
    other: "that is no gateway: name one that has /ipfs/ below it with gateway=",
    elsewhere: "the gateway sends us elsewhere: name the place itself with gateway=",
    long: "a proxy takes no request of ours",
    away: "a proxy cannot reach the gateway",
};

/// Whether a gateway refuses a content, and not who asks (401).
pub(super) fn is_refused(error: &BackendError) -> bool {
    error.kind == ErrorKind::Denied && !error.message.contains("answered 401")
}

/// An error that is told in words alone.
fn of_message(at: &str, text: &str) -> BackendError {
    BackendError::new(ErrorKind::Other, format!("{at} says: {}", said(text)))
}

/// What it says of an error; `None` where nothing of Pinata's answered.
fn told(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let parts = ["reason", "message", "details"].map(|key| error.get(key).and_then(text));
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    Some(text(error).unwrap_or_else(|| parts.join(": ")))
}

fn of_answer(
    at: &str,
    status: StatusCode,
    retry_after_ms: Option<u64>,
    body: &[u8],
) -> BackendError {
    let mut error = of_status(&API_WORDS, at, status, retry_after_ms);
    let Some(text) = told(body) else { return error };
    let lower = text.to_ascii_lowercase();
    let is_spent = ["limit", "quota", "storage", "exceed"].iter().any(|word| lower.contains(word));
    let is_plan = ["plan", "paid", "upgrade", "feature"].iter().any(|word| lower.contains(word));
    let advice = match status.as_u16() {
        404 => {
            // It is one of the account's files that is not there.
            error.kind = ErrorKind::NotFound;
            ""
        }
        429 => return error,
        400..=499 if is_plan => {
            error.kind = ErrorKind::Denied;
            "; archives (CAR) need a plan that is paid for"
        }
        402 => {
            error.kind = ErrorKind::Full;
            "; the account has no more room"
        }
        400..=499 if is_spent => {
            error.kind = ErrorKind::Full;
            "; the account has no more room"
        }
        401 | 403 => {
            "; give a key of the account that may read and write files with auth=file:/path"
        }
        _ => "",
    };
    error.message = format!("{at} answered {status}: {}{advice}", said(&text));
    error
}

fn of_gateway(at: &str, status: StatusCode, retry_after_ms: Option<u64>, _: &[u8]) -> BackendError {
    // 410 and 412: those that look nowhere else; 404: also Pinata's for what it has not.
    if matches!(status.as_u16(), 404 | 410 | 412) {
        return BackendError::new(ErrorKind::NotFound, format!("{at} answered {status}"));
    }
    of_status(&GATEWAY_WORDS, at, status, retry_after_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_says_what_to_do() {
        for (status, body, kind, hint) in [
            (301, "", ErrorKind::Invalid, "api="),
            (400, r#"{"error":{"code":400,"message":"bad car"}}"#, ErrorKind::Invalid, "bad car"),
            (401, "", ErrorKind::Denied, "auth=file:"),
            (401, r#"{"error":"Not Authorized"}"#, ErrorKind::Denied, "auth=file:"),
            (402, r#"{"error":{"message":"pay"}}"#, ErrorKind::Full, "room"),
            (403, r#"{"error":{"reason":"PAID_FEATURE_ONLY"}}"#, ErrorKind::Denied, "plan"),
            (403, r#"{"error":{"message":"storage exceeded"}}"#, ErrorKind::Full, "room"),
            (404, "<html>", ErrorKind::Invalid, "api="),
            (404, r#"{"error":{"message":"no file"}}"#, ErrorKind::NotFound, "no file"),
            (413, "", ErrorKind::Invalid, "proxy"),
            (429, r#"{"error":{"message":"limit"}}"#, ErrorKind::Throttled, "requests="),
            (500, r#"{"error":{"message":"oops"}}"#, ErrorKind::Other, "oops"),
            (502, "", ErrorKind::Unavailable, "proxy"),
            (503, "", ErrorKind::Throttled, "busy"),
            (504, "", ErrorKind::Timeout, "proxy"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = of_answer("h", status, Some(7000), body.as_bytes());
            assert_eq!(error.kind, kind, "{status} {body}");
            assert!(error.message.contains(hint), "{error}");
            let asks = matches!(kind, ErrorKind::Throttled | ErrorKind::Unavailable);
            assert_eq!(error.retry_after_ms, asks.then_some(7000), "{status}");
        }
        let gone = |status| of_gateway("h", StatusCode::from_u16(status).unwrap(), None, b"");
        assert!([404, 410, 412].iter().all(|status| gone(*status).kind == ErrorKind::NotFound));
        assert!(gone(403).message.contains("gateway_auth="));
        assert!(is_refused(&gone(403)) && !is_refused(&gone(401)) && !is_refused(&gone(404)));
    }
}
