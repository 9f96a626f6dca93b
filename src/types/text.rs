//! Text that people read.

/// Text for a terminal: control characters, and what else `str::escape_debug` escapes,
/// as there; quotes stay as they are.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut escaped = text.escape_debug();
    while let Some(one) = escaped.next() {
        let escape = if one == '\\' { escaped.next() } else { None };
        match escape {
            Some(quote @ ('\'' | '"')) => shown.push(quote),
            _ => shown.extend(std::iter::once(one).chain(escape)),
        }
    }
    shown
}

/// The same of a path, whose bytes may be no UTF-8.
#[must_use]
pub fn printable_path(path: &[u8]) -> String {
    printable(&String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_accents_stay_and_what_a_terminal_obeys_does_not() {
        assert_eq!(printable("the kernel's \"log\""), "the kernel's \"log\"");
        assert_eq!(
            printable("Zürich, naïve, cafe\u{301}, 東京"),
            "Zürich, naïve, cafe\u{301}, 東京"
        );
        assert_eq!(printable("a\nb\u{1b}[31m\\'\\"), "a\\nb\\u{1b}[31m\\\\'\\\\");
        assert_eq!(printable_path(b"a\xffb'c"), "a\u{fffd}b'c");
    }
}
