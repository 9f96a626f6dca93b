//! What went wrong at a store, and what its owner can do: one row for each way.

use std::error::Error as StdError;

use reqwest::header::HeaderMap;

use crate::backends::web::{self, Cut, said};
use crate::backends::{BackendError, ErrorKind};

/// Where a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// The store said no: HTTP status, and its own word (`AccessDenied`), often empty.
    Status(u16, String),
    /// No answer came.
    NoAnswer(Cut),
    /// The answer broke off.
    Short,
    /// The answer is longer than any that was asked for.
    TooLong,
}

/// A request without the answer that it wants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct Failure {
    pub what: What,
    /// What the store or the system says, without secrets, on one line.
    pub text: String,
    pub retry_after_ms: Option<u64>,
}

fn causes<'e>(
    error: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'e (dyn StdError + 'static)| (**error).source())
}

impl Failure {
    pub fn new(what: What, text: &str) -> Self {
        Self { what, text: said(text), retry_after_ms: None }
    }

    /// The request or its answer's head did not come through.
    pub fn of_sending(error: reqwest::Error) -> Self {
        let (cut, text) = Cut::of(error);
        Self { what: What::NoAnswer(cut), text, retry_after_ms: None }
    }

    /// The answer's body did not come through.
    pub fn of_reading(error: reqwest::Error) -> Self {
        let (cut, text) = Cut::of(error);
        let what = if cut == Cut::Late { What::NoAnswer(cut) } else { What::Short };
        Self { what, text, retry_after_ms: None }
    }

    /// The store said no. `body`: what came with it, XML or JSON or nothing.
    pub fn of_status(status: u16, body: &[u8], headers: &HeaderMap) -> Self {
        let body = String::from_utf8_lossy(body);
        let code = element(&body, "Code").or_else(|| {
            // Azure's word, also in an answer that has no body.
            headers.get("x-ms-error-code").and_then(|v| v.to_str().ok()).map(str::to_owned)
        });
        let code = code.unwrap_or_default();
        let mut text = element(&body, "Message").or_else(|| google(&body)).unwrap_or_default();
        if let Some(region) = headers.get("x-amz-bucket-region").and_then(|v| v.to_str().ok()) {
            text = format!("{text} (the bucket is in region {region})");
        }
        // Azure's goes on with what only its support reads.
        let first = text.trim().lines().next().unwrap_or_default();
        let mut failure = Self::new(What::Status(status, said(&code)), first);
        failure.retry_after_ms = web::retry_after_ms(headers);
        failure
    }

    /// As the library passes it through: it looks at the kind, we at the source.
    pub fn into_library(self) -> opendal::Error {
        use opendal::ErrorKind as Kind;
        let kind = match &self.what {
            What::Status(401 | 403, _) => Kind::PermissionDenied,
            What::Status(404, code) if is_about_the_object(code) => Kind::NotFound,
            What::Status(304 | 412, _) => Kind::ConditionNotMatch,
            What::Status(416, _) => Kind::RangeNotSatisfied,
            What::Status(429 | 503, _) => Kind::RateLimited,
            _ => Kind::Unexpected,
        };
        opendal::Error::new(kind, self.text.clone()).set_source(self)
    }

    /// What it means for the place.
    fn kind(&self) -> ErrorKind {
        match &self.what {
            What::Status(status, code) => of_status(*status, code).0,
            What::NoAnswer(cut) => cut.kind(),
            What::Short | What::TooLong => ErrorKind::Corrupt,
        }
    }

    fn hint(&self) -> &'static str {
        match &self.what {
            What::Status(status, code) => of_status(*status, code).1,
            What::NoAnswer(Cut::Refused) => {
                "nobody listens there: is the store running, is the endpoint right?"
            }
            What::NoAnswer(cut) => cut.hint(),
            What::Short => "the answer broke off: it is asked again, and the copy is looked at",
            What::TooLong => "that is no answer of a store: is the endpoint right?",
        }
    }
}

/// The content of the first such element of a small XML document.
fn element(text: &str, name: &str) -> Option<String> {
    let rest = &text[text.find(&format!("<{name}>"))? + name.len() + 2..];
    let inner = &rest[..rest.find(&format!("</{name}>"))?];
    let plain = inner.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    Some(plain.replace("&apos;", "'").replace("&amp;", "&"))
}

/// What Google's JSON says ("HTTP status and error codes for JSON").
fn google(text: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    value.get("error")?.get("message")?.as_str().map(str::to_owned)
}

/// Whether a 404 says that the object is not there. HEAD has no word in its answer.
fn is_about_the_object(code: &str) -> bool {
    matches!(
        code,
        "" | "NoSuchKey" | "NotFound" | "NoSuchObject" | "NoSuchVersion" | "BlobNotFound"
    )
}

/// What a store's refusal means, and what to do. Its own word goes before the status.
fn of_status(status: u16, code: &str) -> (ErrorKind, &'static str) {
    use ErrorKind::{
        Corrupt, Denied, Full, Invalid, NotFound, Other, Throttled, Timeout, Unavailable,
        Unsupported,
    };
    match (status, code) {
        (_, "ContainerNotFound" | "ContainerBeingDeleted") => {
            (Unavailable, "there is no such container: make it, or correct the name or account=")
        }
        (_, "AuthenticationFailed" | "AuthorizationFailure" | "InvalidAuthenticationInfo") => (
            Denied,
            "the key is not the account's, the token has expired, or nobody is let in from here: \
             look at the key and at the account's network rules",
        ),
        (_, "AccountIsDisabled" | "ResourceNotFound") => {
            (Unavailable, "the account is not there or switched off: correct account= or endpoint=")
        }
        (_, "BlobArchived" | "BlobBeingRehydrated") => {
            (Unavailable, "the object lies in the archive tier: bring it back before it is read")
        }
        (_, "Md5Mismatch" | "Crc64Mismatch") => {
            (Corrupt, "the bytes changed on their way; they are sent again")
        }
        (_, "ServerBusy") => {
            (Throttled, "the store asks for fewer requests: set requests= or parallel=")
        }
        (_, "OperationTimedOut") => (Timeout, "the store was too slow; it is tried again"),
        (_, "NoSuchBucket") => {
            (Unavailable, "there is no such bucket: make it, or correct the name or the endpoint")
        }
        (
            _,
            "InvalidAccessKeyId"
            | "NotSignedUp"
            | "UnrecognizedClientException"
            | "XAdminUserNotFound",
        ) => (Denied, "the store does not know this access key: look at the credentials"),
        (_, "SignatureDoesNotMatch") => {
            (Denied, "the secret key is wrong, or a proxy changes requests: look at both")
        }
        (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "ExpiredTokenException") => {
            (Denied, "the session's token has expired: get a new one, then `cairn backend recover`")
        }
        (_, "RequestTimeTooSkewed") => (Denied, "this machine's clock is wrong: set it (NTP)"),
        (
            _,
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "TemporaryRedirect"
            | "IllegalLocationConstraintException",
        ) => (Invalid, "the bucket is elsewhere: write region= and endpoint= of where it is"),
        (_, "InvalidStorageClass") => {
            (Invalid, "the store has no such class: change storage_class=")
        }
        (
            _,
            "BadDigest"
            | "XAmzContentChecksumMismatch"
            | "XAmzContentSHA256Mismatch"
            | "InvalidDigest"
            | "IncompleteBody",
        ) => (Corrupt, "the bytes changed on their way; they are sent again"),
        (_, "QuotaExceeded" | "XMinioStorageFull" | "InsufficientCapacity" | "TooManyBuckets")
        | (507, _) => (Full, "the store is full: free space there, or add a backend"),
        (_, "SlowDown" | "TooManyRequests" | "RequestLimitExceeded" | "Throttling")
        | (429 | 503, _) => {
            (Throttled, "the store asks for fewer requests: set requests= or parallel=")
        }
        (_, "NotImplemented") | (405 | 501, _) => {
            (Unsupported, "the store cannot do this: try conditional=0 or checksum=none")
        }
        (_, "InvalidObjectState") => (
            Unavailable,
            "the object lies in an archive: restore it, and use another storage class",
        ),
        (401 | 403, _) => (
            Denied,
            "the store refuses this: look at the credentials, the bucket's policy and sse=",
        ),
        // Not there is something else than what was asked for.
        (404, _) if !is_about_the_object(code) => {
            (Unavailable, "look at the endpoint, the bucket and the credentials")
        }
        (404 | 410, _) => (NotFound, "it is not there"),
        (408, _) | (_, "RequestTimeout") => (Timeout, "the request was too slow for the store"),
        (409, _) => (Other, "somebody else changes the same object: it is tried again"),
        (412, _) => (Other, "somebody else changed the object meanwhile: it is tried again"),
        (416, _) => (Invalid, "the object is shorter than what was asked for"),
        (300..=399, _) => {
            (Invalid, "the store sends us elsewhere: write endpoint= and region= of where it is")
        }
        (400..=499, _) => {
            (Invalid, "the store does not accept the request: look at the URL's settings")
        }
        _ => (Other, "the store has trouble; it is tried again"),
    }
}

/// The failure behind a library's error.
pub(super) fn failure_of(error: &opendal::Error) -> Option<&Failure> {
    causes(error).find_map(|cause| cause.downcast_ref::<Failure>())
}

/// The store's status, when it gave one.
pub(super) fn status_of(error: &opendal::Error) -> Option<u16> {
    match failure_of(error)?.what {
        What::Status(status, _) => Some(status),
        _ => None,
    }
}

/// Whether something was there that was not to be written over. Of a 409 it is Azure's word
/// that says so; S3's means that somebody else writes just now.
pub(super) fn was_there(error: &opendal::Error) -> bool {
    failure_of(error).is_some_and(|failure| match &failure.what {
        What::Status(412, _) => true,
        What::Status(409, code) => code == "BlobAlreadyExists",
        _ => false,
    })
}

/// Whether the connection ended before the answer: nobody knows what was done.
pub(super) fn is_broken(error: &opendal::Error) -> bool {
    failure_of(error).is_some_and(|failure| failure.what == What::NoAnswer(Cut::Broken))
}

/// The error of a backend: `cannot ACTION PLACE: what happened; what to do`.
pub(super) fn explain(place: &str, action: &str, error: opendal::Error) -> BackendError {
    let (kind, text, hint, wait) = if let Some(failure) = failure_of(&error) {
        let told = match &failure.what {
            What::Status(status, code) => {
                let parts = [format!("HTTP {status}"), code.clone(), failure.text.clone()];
                let parts: Vec<String> =
                    parts.into_iter().filter(|part| !part.is_empty()).collect();
                parts.join(" ")
            }
            _ => failure.text.clone(),
        };
        (failure.kind(), told, failure.hint(), failure.retry_after_ms)
    } else {
        let text = said(error.message());
        let (kind, hint) = of_library(&error);
        // The words of who signs are the same for each store.
        let unsigned = UNSIGNED.iter().find(|(scheme, _)| place.starts_with(scheme));
        let unsigned = unsigned.filter(|_| kind == ErrorKind::Denied);
        (kind, text, unsigned.map_or(hint, |(_, hint)| *hint), None)
    };
    let message = format!("cannot {action} {place}: {text}; {hint}");
    // The cause keeps only what was made here: a library's text may show headers.
    let mut explained = BackendError::new(kind, message);
    if let Some(failure) = failure_of(&error) {
        explained = explained.caused_by(failure.clone());
    }
    explained.retry_after_ms = wait;
    explained
}

/// What to do without credentials elsewhere than at S3.
const UNSIGNED: [(&str, &str); 2] = [
    (
        "azblob:",
        "no credentials: write auth=file:PATH (of mode 0600) in the URL, with the line \
         AZURE_STORAGE_ACCOUNT_KEY=... or AZURE_STORAGE_SAS_TOKEN=..., or set one of them in the \
         environment",
    ),
    (
        "gcs:",
        "no credentials: write auth=file:PATH (of mode 0600), the key of a service account, or set \
         GOOGLE_APPLICATION_CREDENTIALS",
    ),
];

/// Errors that the library makes itself, or whose cause it kept to itself.
fn of_library(error: &opendal::Error) -> (ErrorKind, &'static str) {
    use opendal::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => (ErrorKind::NotFound, "it is not there"),
        Kind::PermissionDenied => (ErrorKind::Denied, "look at the credentials"),
        Kind::RateLimited => (ErrorKind::Throttled, "the store asks for fewer requests"),
        Kind::ConfigInvalid | Kind::IsADirectory | Kind::NotADirectory => {
            (ErrorKind::Invalid, "look at the settings in the URL")
        }
        Kind::Unsupported => (ErrorKind::Unsupported, "the store cannot do this"),
        Kind::ConditionNotMatch | Kind::AlreadyExists => {
            (ErrorKind::Other, "somebody else changed the object meanwhile: it is tried again")
        }
        Kind::RangeNotSatisfied => {
            (ErrorKind::Invalid, "the object is shorter than what was asked for")
        }
        _ if error.message().contains("sign") => (
            ErrorKind::Denied,
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write profile= \
             or auth=file: (of mode 0600) in the URL",
        ),
        _ => (ErrorKind::Corrupt, "the answer is not what was asked for; it is asked again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, body: &str) -> BackendError {
        let failure = Failure::of_status(status, body.as_bytes(), &HeaderMap::new());
        explain("s3://b at h", "read a block in", failure.into_library())
    }

    fn xml(code: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>it &lt;said&gt; so</Message></Error>"
        )
    }

    #[test]
    fn each_answer_has_its_kind_and_says_what_to_do() {
        use ErrorKind::{
            Corrupt, Denied, Full, Invalid, NotFound, Other, Throttled, Timeout, Unavailable,
            Unsupported,
        };
        for (status, code, kind, hint) in [
            (301, "PermanentRedirect", Invalid, "region="),
            (307, "", Invalid, "endpoint="),
            (400, "", Invalid, "settings"),
            (400, "AuthorizationHeaderMalformed", Invalid, "region="),
            (400, "BadDigest", Corrupt, "sent again"),
            (400, "ExpiredToken", Denied, "expired"),
            (400, "InvalidStorageClass", Invalid, "storage_class="),
            (400, "RequestTimeout", Timeout, "too slow"),
            (401, "", Denied, "credentials"),
            (403, "", Denied, "credentials"),
            (403, "AccessDenied", Denied, "policy"),
            (403, "InvalidAccessKeyId", Denied, "access key"),
            (403, "InvalidObjectState", Unavailable, "archive"),
            (403, "QuotaExceeded", Full, "add a backend"),
            (403, "RequestTimeTooSkewed", Denied, "clock"),
            (403, "SignatureDoesNotMatch", Denied, "secret key"),
            (404, "", NotFound, "not there"),
            (404, "NoSuchKey", NotFound, "not there"),
            (404, "NoSuchBucket", Unavailable, "make it"),
            (404, "XAdminUserNotFound", Denied, "access key"),
            (404, "NoSuchTenant", Unavailable, "credentials"),
            (405, "MethodNotAllowed", Unsupported, "cannot do"),
            (408, "", Timeout, "too slow"),
            (409, "ConditionalRequestConflict", Other, "tried again"),
            (412, "PreconditionFailed", Other, "meanwhile"),
            (416, "InvalidRange", Invalid, "shorter"),
            (429, "", Throttled, "requests="),
            (500, "InternalError", Other, "trouble"),
            (501, "NotImplemented", Unsupported, "conditional=0"),
            (502, "", Other, "trouble"),
            (503, "", Throttled, "requests="),
            (503, "SlowDown", Throttled, "requests="),
            (504, "", Other, "trouble"),
            (507, "", Full, "add a backend"),
            (403, "AuthenticationFailed", Denied, "account's"),
            (404, "BlobNotFound", NotFound, "not there"),
            (404, "ContainerNotFound", Unavailable, "no such container"),
            (404, "ResourceNotFound", Unavailable, "account="),
            (409, "BlobArchived", Unavailable, "archive tier"),
            (400, "Md5Mismatch", Corrupt, "sent again"),
            (503, "ServerBusy", Throttled, "requests="),
            (500, "OperationTimedOut", Timeout, "tried again"),
        ] {
            let error = told(status, &xml(code));
            assert_eq!(error.kind, kind, "{status} {code}: {error}");
            assert!(error.message.contains(hint), "{status} {code}: {error}");
            assert!(error.message.contains(&status.to_string()), "{error}");
            assert!(error.message.contains("it <said> so"), "{error}");
            assert!(error.message.starts_with("cannot read a block in s3://b at h: "), "{error}");
            // Without a word of the store's own, and with something that is no XML.
            assert_eq!(told(status, "<html>no").message.lines().count(), 1);
        }
    }

    #[test]
    fn what_breaks_on_the_way_has_its_kind_and_says_what_to_do() {
        use ErrorKind::{Corrupt, Invalid, Other, Timeout, Unavailable};
        for (what, kind, hint) in [
            (What::NoAnswer(Cut::Refused), Unavailable, "running"),
            (What::NoAnswer(Cut::Name), Unavailable, "DNS"),
            (What::NoAnswer(Cut::Tls), Unavailable, "ca="),
            (What::NoAnswer(Cut::Plain), Unavailable, "speaks no TLS"),
            (What::NoAnswer(Cut::Late), Timeout, "network"),
            (What::NoAnswer(Cut::Broken), Other, "tried again"),
            (What::Short, Corrupt, "asked again"),
            (What::TooLong, Corrupt, "endpoint"),
            (What::NoAnswer(Cut::Unsent), Invalid, "settings"),
        ] {
            let failure = Failure::new(what.clone(), "system's\nword");
            let error = explain("p", "reach", failure.into_library());
            assert_eq!(error.kind, kind, "{what:?}");
            assert!(error.message.contains(hint), "{error}");
            assert_eq!(error.message.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn errors_of_the_library_itself_have_their_kind_too() {
        use opendal::ErrorKind as Kind;
        let of = |kind, text: &str| explain("p", "reach", opendal::Error::new(kind, text));
        let signing = of(Kind::Unexpected, "signing http request");
        assert_eq!(signing.kind, ErrorKind::Denied);
        assert!(signing.message.contains("auth=file:"), "{signing}");
        assert_eq!(of(Kind::NotFound, "x").kind, ErrorKind::NotFound);
        assert_eq!(of(Kind::ConfigInvalid, "x").kind, ErrorKind::Invalid);
        assert_eq!(of(Kind::Unexpected, "too little data").kind, ErrorKind::Corrupt);
    }
}
