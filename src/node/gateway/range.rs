//! Parts of what is asked for, and what the asker has already (RFC 9110, 13 and 14).

use std::ops::Range;
use std::time::SystemTime;

use axum::http::HeaderMap;
use axum::http::header::{IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE};

fn text(headers: &HeaderMap, name: axum::http::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// One range of bytes; several, and other units, are passed over, as section 14.2 lets
/// a server do. `Err`: there is nothing of it.
pub(super) fn range_of(headers: &HeaderMap, len: u64) -> Result<Option<Range<u64>>, ()> {
    let Some(text) = text(headers, RANGE).and_then(|text| text.strip_prefix("bytes=")) else {
        return Ok(None);
    };
    let Some((first, last)) = text.trim().split_once('-').filter(|_| !text.contains(',')) else {
        return Ok(None);
    };
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| text.parse::<u64>().ok();
    let range = match (first.is_empty(), last.is_empty()) {
        (true, true) => return Ok(None),
        (true, false) => {
            let Some(count) = number(last) else { return Ok(None) };
            len.saturating_sub(count)..if count == 0 { 0 } else { len }
        }
        (false, open) => {
            let Some(first) = number(first) else { return Ok(None) };
            let last = if open { len } else { number(last).map_or(0, |n| n.saturating_add(1)) };
            if !open && last <= first {
                return Ok(None);
            }
            first..last.min(len)
        }
    };
    if range.start < range.end { Ok(Some(range)) } else { Err(()) }
}

/// Whether a part may be answered: `If-Range` (13.1.5) wants the whole of what has
/// another tag. Dates are taken for another tag: the whole is never wrong.
pub(super) fn is_of_this(headers: &HeaderMap, tag: &str) -> bool {
    text(headers, IF_RANGE).is_none_or(|wanted| wanted.trim() == tag)
}

/// Whether the asker has what is there: by its tag (13.1.2), else by its time (13.1.3).
pub(super) fn is_known(headers: &HeaderMap, tag: &str, modified: Option<SystemTime>) -> bool {
    let plain = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    if let Some(known) = text(headers, IF_NONE_MATCH) {
        return known.trim() == "*" || known.split(',').any(|one| plain(one) == plain(tag));
    }
    let since =
        text(headers, IF_MODIFIED_SINCE).and_then(|text| httpdate::parse_http_date(text).ok());
    // Dates have whole seconds.
    let second =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map(|d| d.as_secs());
    match (since.map(second), modified.map(second)) {
        (Some(Ok(since)), Some(Ok(modified))) => modified <= since,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn with(name: HeaderName, text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(text).unwrap());
        headers
    }

    #[test]
    fn a_range_is_what_is_there_of_it() {
        for (text, wanted) in [
            ("bytes=0-9", Ok(Some(0..10))),
            ("bytes=90-", Ok(Some(90..100))),
            ("bytes=-5", Ok(Some(95..100))),
            ("bytes=-500", Ok(Some(0..100))),
            ("bytes=99-500", Ok(Some(99..100))),
            ("bytes=100-", Err(())),
            ("bytes=-0", Err(())),
            ("bytes=0-1,5-6", Ok(None)),
            ("bytes=9-1", Ok(None)),
            ("bytes=a-b", Ok(None)),
            ("bytes=-", Ok(None)),
            ("items=0-1", Ok(None)),
        ] {
            assert_eq!(range_of(&with(RANGE, text), 100), wanted, "{text}");
        }
        assert_eq!(range_of(&HeaderMap::new(), 100), Ok(None));
    }

    #[test]
    fn what_the_asker_has_is_told_by_tag_and_else_by_time() {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_500);
        let known = |headers: &HeaderMap| is_known(headers, "\"a\"", Some(modified));
        for (text, wanted) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("*", true),
            ("\"b\"", false),
        ] {
            assert_eq!(known(&with(IF_NONE_MATCH, text)), wanted, "{text}");
        }
        for (seconds, wanted) in [(999, false), (1000, true), (1001, true)] {
            let date =
                httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(known(&with(IF_MODIFIED_SINCE, &date)), wanted, "{seconds}");
        }
        // The tag counts, not the time.
        let mut both = with(IF_NONE_MATCH, "\"b\"");
        let later = httpdate::fmt_http_date(modified + Duration::from_hours(1));
        both.insert(IF_MODIFIED_SINCE, HeaderValue::from_str(&later).unwrap());
        assert!(!known(&both) && !known(&HeaderMap::new()));
        assert!(
            is_of_this(&HeaderMap::new(), "\"a\"") && is_of_this(&with(IF_RANGE, "\"a\""), "\"a\"")
        );
        assert!(!is_of_this(&with(IF_RANGE, "\"b\""), "\"a\""));
    }
}
