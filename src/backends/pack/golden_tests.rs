//! What lies at places that earlier versions wrote.

use std::path::Path;

use super::head::{Head, decode_dead, encode_dead};
use super::*;

/// The bytes of a golden file. With `CAIRN_WRITE_GOLDEN` set, a file that is missing is made;
/// none is replaced.
fn kept(name: &str, made: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name);
    if std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, made).unwrap();
    }
    std::fs::read(&path).unwrap()
}

/// The same, which must be these.
fn golden(name: &str, made: &[u8]) -> Vec<u8> {
    let found = kept(name, made);
    assert!(found == made, "{name} would be written in another way");
    found
}

/// A raw block, a node with a CID of version 0, and one that compresses.
fn blocks() -> [Block; 3] {
    let data = [Bytes::from_static(b"cairn"), Bytes::new(), vec![7; 5000].into()];
    let mut blocks = data.map(Block::raw);
    let node = Bytes::from_static(b"\x0a\x02\x08\x01");
    blocks[1] = Block { cid: cid::v0(&cid::sha256(&node)), data: node };
    blocks
}

#[test]
fn packs_of_parquet_are_read_as_ever() {
    let backend: Uuid = "0a1b2c3d-4e5f-4a6b-9c7d-8e9fa0b1c2d3".parse().unwrap();
    let id: Uuid = "f0e1d2c3-b4a5-4968-8776-655443322110".parse().unwrap();
    let blocks = blocks();
    let form = Form::Parquet;
    let made = form.seal_as(backend, (id, 1_794_000_000), &blocks).unwrap();
    // Other versions of zstd write other bytes.
    let pack = Bytes::from(kept("shared-pack-1.parquet", &made.bytes));
    for bytes in [pack, made.bytes] {
        let Read::Whole(label) = form.read_label(&bytes, bytes.len() as u64).unwrap() else {
            panic!("it is small");
        };
        assert_eq!((label.backend, label.created), (backend, 1_794_000_000));
        assert_eq!(form.scan(backend, &bytes).rows, label.rows);
        for (row, block) in label.rows.iter().zip(&blocks) {
            let whole = 0..block.data.len() as u64;
            let range = form.range((row.offset, row.len), &whole);
            let end = range.end.min(bytes.len() as u64);
            let read = bytes.slice(range.start as usize..end as usize);
            assert_eq!(row.cid, block.cid);
            assert_eq!(form.data(read, (&row.cid, row.len), &whole).unwrap(), block.data);
        }
        let at = Timestamp { seconds: 1_794_000_000, nanoseconds: 0 };
        assert!(is_pack(&pack_name(form, at, &bytes)));
    }
}

#[test]
fn packs_heads_and_lists_are_read_and_written_as_ever() {
    let backend: Uuid = "0a1b2c3d-4e5f-4a6b-9c7d-8e9fa0b1c2d3".parse().unwrap();
    let id: Uuid = "f0e1d2c3-b4a5-4968-8776-655443322110".parse().unwrap();
    let blocks = blocks();
    let sealed = Form::Car.seal_as(backend, (id, 1_794_000_000), &blocks).unwrap();
    let pack = golden("shared-pack-1.car", &sealed.bytes);
    let len = pack.len() as u64;
    let Read::Whole(label) = Form::Car.read_label(&pack, len).unwrap() else {
        panic!("it is small")
    };
    assert_eq!((label.backend, label.created), (backend, 1_794_000_000));
    for (row, block) in label.rows.iter().zip(&blocks) {
        let at = row.offset as usize;
        assert_eq!((row.cid, &pack[at..at + row.len as usize]), (block.cid, &block.data[..]));
    }
    let at = Timestamp { seconds: 1_794_000_000, nanoseconds: 12_999_999 };
    let name = pack_name(Form::Car, at, &pack);
    assert!(name.starts_with("001794000000012-") && is_pack(&name), "{name}");
    let dead = Positions::from([(name.clone(), BTreeSet::from([0, 2])), ("z".into(), [9].into())]);
    let text = golden("shared-dead-1.txt", encode_dead(&dead).as_bytes());
    let mut read = Positions::new();
    decode_dead(&dead_name(&encode_dead(&dead)), &text, 100, &mut read).unwrap();
    assert_eq!(read, dead);
    let mut head = Head::new();
    head.generation = 12;
    head.dead = vec![dead_name(&encode_dead(&dead))];
    head.retired.insert(name, 1_794_000_100);
    let text = golden("shared-head-1.json", &head.encode().unwrap());
    assert_eq!(Head::decode(&text).unwrap(), head);
}
