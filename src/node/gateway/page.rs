//! A directory as a page, and as JSON.

use axum::Json;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::encoded;
use crate::types::ByteSize;

/// Of a directory.
pub(super) struct Line {
    pub name: Vec<u8>,
    pub is_directory: bool,
    pub size: Option<u64>,
    /// As people read it.
    pub modified: Option<String>,
    pub cid: Option<String>,
}

/// One page of one.
pub(super) struct Page<'p> {
    pub path: &'p str,
    pub cid: Option<String>,
    pub lines: Vec<Line>,
    /// The query of the next page.
    pub next: Option<String>,
}

/// Text that is nothing else in HTML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn href(line: &Line) -> String {
    // `./`: a name with a colon is no scheme.
    format!("./{}{}", encoded(&line.name), if line.is_directory { "/" } else { "" })
}

pub(super) fn json(page: &Page<'_>) -> Response {
    let lines: Vec<_> = page
        .lines
        .iter()
        .map(|line| {
            json!({
                "name": String::from_utf8_lossy(&line.name), "href": href(line),
                "kind": if line.is_directory { "directory" } else { "file" },
                "bytes": line.size, "modified": line.modified, "cid": line.cid,
            })
        })
        .collect();
    Json(json!({ "path": page.path, "cid": page.cid, "entries": lines, "next": page.next }))
        .into_response()
}

pub(super) fn html(page: &Page<'_>) -> Response {
    let title = escaped(page.path);
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui,sans-serif;\
         margin:1rem auto;max-width:60rem;padding:0 1rem}}table{{border-collapse:collapse;\
         width:100%}}td,th{{padding:.2rem .5rem;text-align:left;overflow-wrap:anywhere}}\
         td:nth-child(n+2),th:nth-child(n+2){{text-align:right;white-space:nowrap}}\
         </style><h1>{title}</h1>"
    );
    if let Some(cid) = &page.cid {
        out.extend(["<p><code>", &escaped(cid), "</code></p>"]);
    }
    out.push_str("<table><thead><tr><th scope=\"col\">Name<th scope=\"col\">Size<th scope=\"col\">Modified (UTC)<tbody>");
    if page.path.trim_matches('/').contains('/')
        || page.path.starts_with("/files/") && page.path != "/files/"
    {
        out.push_str("<tr><td><a href=\"../\">../</a><td><td>");
    }
    for line in &page.lines {
        let name = escaped(&String::from_utf8_lossy(&line.name));
        let slash = if line.is_directory { "/" } else { "" };
        let size = line.size.map(|bytes| ByteSize(bytes).to_string()).unwrap_or_default();
        let time = line.modified.as_deref().unwrap_or_default();
        let href = href(line);
        out.extend([
            "<tr><td><a href=\"",
            &href,
            "\">",
            &name,
            slash,
            "</a><td>",
            &size,
            "<td>",
            time,
        ]);
    }
    out.push_str("</table>");
    if page.lines.is_empty() {
        out.push_str("<p>This directory is empty.</p>");
    }
    if let Some(next) = &page.next {
        out.extend(["<p><a href=\"?", &escaped(next), "\">More</a></p>"]);
    }
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    let mut response =
        ([(CONTENT_TYPE, kind), (CONTENT_SECURITY_POLICY, policy)], out).into_response();
    let sniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, sniff);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_text_and_a_link_whatever_is_in_it() {
        let line = |name: &[u8]| Line {
            name: name.to_vec(),
            is_directory: false,
            size: None,
            modified: None,
            cid: None,
        };
        assert_eq!(escaped("<a href='&\">\u{7}"), "&lt;a href=&#39;&amp;&quot;&gt;\u{fffd}");
        assert_eq!(href(&line(b"javascript:a b")), "./javascript%3Aa%20b");
        assert_eq!(href(&line(b"\xff?#%")), "./%FF%3F%23%25");
    }
}
