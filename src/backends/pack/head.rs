//! `packs/head`: which of what lies in packs is dead.
//!
//! One small object that is changed by compare-and-swap, so that of two writers one loses
//! and begins anew. What is dead is named by position in its pack: a block that is put
//! again lies in another pack, and lives.

use std::collections::{BTreeMap, BTreeSet};

use ::cid::multibase::Base;
use serde::{Deserialize, Serialize};

use crate::types::cid;

/// Version of the head.
const FORMAT: u32 = 1;
/// A head is some kilobytes; more is not one.
pub(super) const HEAD_MAX: usize = 4 << 20;
/// More lists than that are merged into one.
pub(super) const LISTS_MAX: usize = 64;
/// First and last line of a list of dead positions.
const TITLE: &str = "cairn dead 1";
const END: &str = "end";

/// What it says, as JSON on one line; the line's SHA-256 in hexadecimal follows. Unknown members are ignored, a higher format is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    format: u32,
    /// Rises with each change.
    pub generation: u64,
    /// Lists of dead positions that hold, by their names.
    #[serde(default)]
    pub dead: Vec<String>,
    /// Packs that count for nothing, since when (seconds since 1970): their blocks are
    /// elsewhere, or they are being made from others.
    #[serde(default)]
    pub retired: BTreeMap<String, i64>,
}

impl Head {
    /// Before anything died.
    pub fn new() -> Self {
        Self { format: FORMAT, ..Self::default() }
    }

    /// # Errors
    /// None that is known.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let text = serde_json::to_string(self).map_err(|error| error.to_string())?;
        Ok(format!("{text}\n{}\n", digest_of(&text)).into_bytes())
    }

    /// # Errors
    /// With what is wrong about it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let (text, digest) = text.split_once('\n').ok_or("it is cut off")?;
        if digest.trim_end() != digest_of(text) {
            return Err("it does not match its hash".into());
        }
        // The format is read alone first: a newer head may have another shape.
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if format != u64::from(FORMAT) {
            return Err(format!(
                "it has format {format}, and this cairn knows {FORMAT}: use a newer cairn"
            ));
        }
        serde_json::from_value(value).map_err(|error| error.to_string())
    }
}

/// Positions in packs, by the packs' names.
pub(super) type Positions = BTreeMap<String, BTreeSet<u32>>;

/// A list of dead positions as text: a line a pack, `NAME 3,17-20`.
pub(super) fn encode_dead(dead: &Positions) -> String {
    let mut text = format!("{TITLE}\n");
    for (pack, positions) in dead.iter().filter(|(_, positions)| !positions.is_empty()) {
        text.push_str(pack);
        let mut before = ' ';
        let mut left = positions.iter().copied().peekable();
        while let Some(first) = left.next() {
            let mut last = first;
            while left.next_if(|next| *next == last + 1).is_some() {
                last += 1;
            }
            text.push(before);
            text.push_str(&first.to_string());
            if last > first {
                text.push('-');
                text.push_str(&last.to_string());
            }
            before = ',';
        }
        text.push('\n');
    }
    text.push_str(END);
    text.push('\n');
    text
}

/// Adds what the list of this name says to `dead`. `most`: of positions in a pack.
///
/// # Errors
/// With what is wrong about it; nothing is added then.
pub(super) fn decode_dead(
    name: &str,
    text: &[u8],
    most: u32,
    dead: &mut Positions,
) -> Result<(), String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    if dead_name(text) != name {
        return Err("it does not match the hash in its name".into());
    }
    let mut lines = text.lines();
    if lines.next() != Some(TITLE) {
        return Err("it is no list of dead blocks that this cairn knows".into());
    }
    let mut read = Positions::new();
    let mut ended = false;
    for line in lines {
        if ended {
            return Err("there is more after its end".into());
        }
        if line == END {
            ended = true;
            continue;
        }
        let wrong = || format!("`{}` is no line of it", line.escape_debug());
        let (pack, ranges) = line.split_once(' ').ok_or_else(wrong)?;
        let positions = read.entry(pack.to_owned()).or_default();
        for range in ranges.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = match (first.parse(), last.parse()) {
                (Ok(first), Ok(last)) if first <= last && last < most => (first, last),
                _ => return Err(wrong()),
            };
            positions.extend(first..=last);
        }
    }
    if !ended {
        return Err("it is cut off".into());
    }
    for (pack, positions) in read {
        dead.entry(pack).or_default().extend(positions);
    }
    Ok(())
}

fn digest_of(text: &str) -> String {
    Base::Base16Lower.encode(cid::sha256(text.as_bytes()))
}

/// The name of a list: of its content, so that a list which is written twice is one.
pub(super) fn dead_name(text: &str) -> String {
    format!("dead-{}.txt", digest_of(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(of: &[(&str, &[u32])]) -> Positions {
        of.iter().map(|(pack, all)| ((*pack).to_owned(), all.iter().copied().collect())).collect()
    }

    #[test]
    fn a_list_of_the_dead_is_text_and_is_read_back() {
        let dead = positions(&[("a.car", &[3, 17, 18, 19, 20, 22]), ("b.car", &[0])]);
        let text = encode_dead(&dead);
        assert_eq!(text, "cairn dead 1\na.car 3,17-20,22\nb.car 0\nend\n");
        let mut read = positions(&[("b.car", &[7])]);
        decode_dead(&dead_name(&text), text.as_bytes(), 100, &mut read).unwrap();
        let other = decode_dead("dead-x.txt", text.as_bytes(), 100, &mut read).unwrap_err();
        assert!(other.contains("hash"), "{other}");
        assert_eq!(read, positions(&[("a.car", &[3, 17, 18, 19, 20, 22]), ("b.car", &[0, 7])]));
        for (bad, hint) in [
            ("", "no list"),
            ("cairn dead 2\nend\n", "no list"),
            ("cairn dead 1\na.car 3\n", "cut off"),
            ("cairn dead 1\na.car 3\nend\nb.car 1\n", "after its end"),
            ("cairn dead 1\na.car\nend\n", "no line"),
            ("cairn dead 1\na.car 4-3\nend\n", "no line"),
            ("cairn dead 1\na.car 0-4000000000\nend\n", "no line"),
            ("cairn dead 1\na.car 100\nend\n", "no line"),
        ] {
            let mut read = Positions::new();
            let said = decode_dead(&dead_name(bad), bad.as_bytes(), 100, &mut read).unwrap_err();
            assert!(said.contains(hint) && read.is_empty(), "{bad:?}: {said}");
        }
    }

    #[test]
    fn a_head_is_read_back_and_a_newer_one_is_refused() {
        let mut head = Head::new();
        (head.generation, head.dead) = (7, vec!["dead-x.txt".into()]);
        head.retired.insert("p.car".into(), 8);
        let text = head.encode().unwrap();
        assert_eq!(Head::decode(&text).unwrap(), head);
        let text = String::from_utf8(text).unwrap();
        let sealed = |text: &str| format!("{text}\n{}\n", digest_of(text));
        let line = text.lines().next().unwrap();
        assert_eq!(sealed(line), text);
        let newer = sealed(&line.replace("\"format\":1", "\"format\":2,\"colour\":1"));
        assert!(Head::decode(newer.as_bytes()).unwrap_err().contains("newer cairn"));
        for bad in [sealed("{}"), "x".into(), line.into(), text.replace('7', "8")] {
            assert!(Head::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
