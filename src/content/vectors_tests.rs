//! CIDs that independent implementations agree on: `tests/fixtures/cids.json`
//! (generators and CIDs from IPIP-499 and cross-checked runs of other tools).

use std::collections::BTreeMap;
use std::io::Read;

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use serde_json::Value;

use super::*;
use crate::types::cid::sha256;

fn key_stream(seed: &str) -> ChaCha20 {
    ChaCha20::new(&sha256(seed.as_bytes()).into(), &[0u8; 12].into())
}

struct Stream(ChaCha20);

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        buf.fill(0);
        self.0.apply_keystream(buf);
        Ok(buf.len())
    }
}

struct Mod251(u64);

impl Read for Mod251 {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        for byte in &mut *buf {
            *byte = (self.0 % 251) as u8;
            self.0 += 1;
        }
        Ok(buf.len())
    }
}

fn reader(how: &Value) -> Box<dyn Read> {
    if let Some(text) = how["utf8"].as_str() {
        return Box::new(std::io::Cursor::new(text.as_bytes().to_vec()));
    }
    let size = how["size"].as_u64().unwrap();
    match how["pattern"].as_str().unwrap() {
        "mod251" => Box::new(Mod251(0).take(size)),
        "zeros" => Box::new(std::io::repeat(0).take(size)),
        "chacha20" => Box::new(Stream(key_stream(how["seed"].as_str().unwrap())).take(size)),
        other => panic!("unknown pattern {other}"),
    }
}

#[derive(Default)]
struct Tree {
    directories: BTreeMap<String, Tree>,
    leaves: BTreeMap<String, Link>,
}

impl Tree {
    fn place(&mut self, path: &str) -> (&mut Self, String) {
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().unwrap().to_owned();
        let mut at = self;
        for part in parts {
            at = at.directories.entry(part.to_owned()).or_default();
        }
        (at, name)
    }

    fn build(self, profile: &Profile) -> Link {
        let mut entries: Vec<DirectoryEntry> =
            self.leaves.into_iter().map(|(name, link)| DirectoryEntry { name, link }).collect();
        for (name, tree) in self.directories {
            entries.push(DirectoryEntry { name, link: tree.build(profile) });
        }
        build_directory(profile, entries, &mut |_, _| Ok(())).unwrap()
    }
}

fn file(profile: &Profile, how: &Value) -> Link {
    import_file(profile, &mut *reader(how), &mut |_, _| Ok(())).unwrap()
}

fn directory(profile: &Profile, how: &Value) -> Link {
    let mut tree = Tree::default();
    if let Some(entries) = how["entries"].as_array() {
        for entry in entries {
            let (at, name) = tree.place(entry["path"].as_str().unwrap());
            if entry["dir"].as_bool() == Some(true) {
                at.directories.entry(name).or_default();
            } else if let Some(target) = entry["symlink"].as_str() {
                at.leaves.insert(name, symlink(profile, target.as_bytes()).0);
            } else {
                at.leaves.insert(name, file(profile, &entry["file"]));
            }
        }
    }
    if let Some(numbered) = how["numbered"].as_object() {
        let format = numbered["format"].as_str().unwrap();
        let content = file(profile, &numbered["content"]);
        let (before, rest) = format.split_once("%0").unwrap();
        let (width, after) = rest.split_once('d').unwrap();
        let width: usize = width.parse().unwrap();
        for i in 0..numbered["count"].as_u64().unwrap() {
            let (at, name) = tree.place(&format!("{before}{i:0width$}{after}"));
            at.leaves.insert(name, content);
        }
    }
    if let Some(names) = how["chacha20_names"].as_object() {
        const ALPHABET: &[u8; 39] = b"abcdefghijklmnopqrstuvwxyz01234567890-_";
        let content = file(profile, &names["content"]);
        let mut stream = key_stream(names["seed"].as_str().unwrap());
        let count = names["count"].as_u64().unwrap();
        for i in 0..count {
            let key = if i + 1 == count && !names["last_name_len"].is_null() {
                "last_name_len"
            } else {
                "name_len"
            };
            let mut bytes = vec![0u8; names[key].as_u64().unwrap() as usize];
            stream.apply_keystream(&mut bytes);
            let name = bytes.iter().map(|b| char::from(ALPHABET[usize::from(*b) % 39])).collect();
            tree.leaves.insert(name, content);
        }
    }
    tree.build(profile)
}

#[test]
fn cids_equal_those_of_other_implementations() {
    let text = include_str!("../../tests/fixtures/cids.json");
    let vectors: Vec<Value> = serde_json::from_str(text).unwrap();
    // The two of 1 GiB are streamed: a few seconds, no memory.
    for vector in &vectors {
        let profile: Profile = vector["profile"].as_str().unwrap().parse().unwrap();
        let how = &vector["how_to_generate"];
        let link = match vector["kind"].as_str().unwrap() {
            "file" => file(&profile, how),
            _ => directory(&profile, how),
        };
        let name = &vector["name"];
        assert_eq!(link.cid.to_string(), vector["cid"].as_str().unwrap(), "{name} {profile}");
        assert_eq!(Some(link.tsize), vector["tsize"].as_u64(), "tsize of {name} {profile}");
    }
    assert!(vectors.len() >= 80);
}
