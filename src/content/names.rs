//! Names in the UnixFS view, which knows only UTF-8.
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

/// The UnixFS form of a file name; see `src/docs/format.md`, "Names in UnixFS".
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

/// The reverse of [`escape_name`]. A mark that no digits follow (a foreign
/// archive may have one) stands for itself.
#[must_use]
pub fn unescape_name(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut parts = name.split(MARK);
    if let Some(first) = parts.next() {
        out.extend_from_slice(first.as_bytes());
    }
    for part in parts {
        let code =
            part.get(..2).filter(|c| c.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')));
        if let Some(byte) = code.and_then(|c| u8::from_str_radix(c, 16).ok()) {
            out.push(byte);
            out.extend_from_slice(&part.as_bytes()[2..]);
        } else {
            out.extend_from_slice(MARK.to_string().as_bytes());
            out.extend_from_slice(part.as_bytes());
        }
    }
    out
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
