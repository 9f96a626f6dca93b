//! Names in the `UnixFS` view, which knows only UTF-8.
//!
//! A byte that is not part of valid UTF-8 becomes U+FFFD followed by two
//! upper-case hexadecimal digits. A U+FFFD that is in the name itself is escaped
//! byte by byte in the same way (`\u{FFFD}EF\u{FFFD}BF\u{FFFD}BD`), so every name has one form and
//! the form leads back to it. Every other name is unchanged.

const MARK: char = '\u{FFFD}';

fn push_escaped(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        out.push(MARK);
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// The `UnixFS` form of a file name; see `src/docs/format.md`, "Names in `UnixFS`".
#[must_use]
pub fn escape_name(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for (index, part) in chunk.valid().split(MARK).enumerate() {
            if index > 0 {
                push_escaped(&mut out, MARK.to_string().as_bytes());
            }
            out.push_str(part);
        }
        push_escaped(&mut out, chunk.invalid());
    }
    out
}

/// The reverse of [`escape_name`]. A name that `escape_name` never makes (a
/// foreign archive may have a bare mark, or an escaped letter) stands for itself.
#[must_use]
pub fn unescape_name(name: &str) -> Vec<u8> {
    if !name.contains(MARK) {
        return name.as_bytes().to_vec();
    }
    match decode(name) {
        Some(bytes) if escape_name(&bytes) == name => bytes,
        _ => name.as_bytes().to_vec(),
    }
}

/// Turns each mark with two digits into its byte; `None` when one has none.
fn decode(name: &str) -> Option<Vec<u8>> {
    let mut parts = name.split(MARK);
    let mut out = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let code = part.get(..2).filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()))?;
        out.push(u8::from_str_radix(code, 16).ok()?);
        out.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn utf8_names_are_unchanged() {
        for name in ["a", "é", "日本", "a\nb", "%41", "..."] {
            assert_eq!(escape_name(name.as_bytes()), name);
        }
    }

    #[test]
    fn bad_bytes_are_escaped() {
        assert_eq!(escape_name(b"a\xffb"), "a\u{FFFD}FFb");
    }

    #[test]
    fn names_that_are_no_escapes_stand_for_themselves() {
        // A bare mark, a letter, a slash, lower-case digits: never made here.
        for name in ["\u{FFFD}", "a\u{FFFD}41", "\u{FFFD}2F", "\u{FFFD}ff", "\u{FFFD}F"] {
            assert_eq!(unescape_name(name), name.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(unescape_name(&escape_name(&name)), name);
        }

        #[test]
        fn marked_names_come_back(name in "[\u{FFFD}0-9A-Fx]{0,12}") {
            prop_assert_eq!(unescape_name(&escape_name(name.as_bytes())), name.as_bytes());
        }
    }
}
