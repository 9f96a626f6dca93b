//! Every way in which an archive can be wrong.

use proptest::prelude::*;

use super::build::*;
use crate::archive::{ArchiveError, IndexState};
use crate::content::Profile;
use crate::content::car::{CarError, CarReader};
use crate::types::{Cid, cid};

const V1: Profile = Profile::UNIXFS_V1_2025;

fn one() -> (Cid, Vec<u8>) {
    let id = cid::of_raw(b"hello world");
    (id, car_v1(&[id], &[(id, b"hello world")]))
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    refused(b"", "not a CAR");
    refused(b"nonsense", "not a CAR");
    refused(&[0; 100], "not a CAR");
    refused(&with_length(b"\xa0"), "not a CAR");
    let (id, _) = one();
    refused(&header(&[id], 3), "version 3 is not known");
    refused(&header(&[id], 2), "version 2 is not known");
    refused(&header(&[], 1), "no root");
    // 63 GiB of header, of which nothing is there.
    refused(&varint(63 << 30), "a header of");
    refused(&[varint(32 << 20), vec![0xa2]].concat(), "cut off");
}

#[test]
fn a_false_length_is_found_before_memory_is_taken() {
    let (id, car) = one();
    let head = header(&[id], 1);
    refused(&[&head[..], &varint(1 << 40)].concat(), "a section of");
    refused(&[&head[..], &varint(2 * 1024 * 1024 + 161)].concat(), "a section of");
    let error = refused(&[&head[..], &varint(2 * 1024 * 1024)].concat(), "cut off");
    assert!(error.is_damage());
    refused(&[&car[..], &[0]].concat(), "a section of no bytes");
    refused(&[&head[..], &[0xaf, 0x00]].concat(), "over-long");
    refused(&[&head[..], &[0xff; 10]].concat(), "over 63 bits");
    let large = vec![0; 2 * 1024 * 1024 + 1];
    let id = cid::of_raw(&large);
    refused(&car_v1(&[id], &[(id, &large)]), "over 2097152");
    let large = &large[1..];
    let id = cid::of_raw(large);
    assert!(read(&car_v1(&[id], &[(id, large)])).is_ok(), "2 MiB are taken");
}

#[test]
fn a_cut_is_noticed_wherever_it_is() {
    let blocks = Blocks::default();
    let file = blocks.file(&V1, b"a small file");
    let root = blocks.directory(&V1, &[("a", file), ("b", blocks.file(&V1, b"another"))]);
    for version in [1, 2] {
        let car = blocks.car(version, &[root.cid]);
        for len in 0..car.len() {
            let error = read(&car[..len]).map(|_| ()).unwrap_err();
            assert!(error.is_damage(), "version {version}, {len} bytes: {error}");
        }
    }
}

#[test]
fn a_cut_at_a_section_names_the_missing_blocks() {
    let blocks = Blocks::default();
    let file = blocks.file(&V1, b"a file");
    let root = blocks.directory(&V1, &[("a", file)]);
    let sections = [(root.cid, &blocks.get(&root.cid)[..])];
    let car = car_v1(&[root.cid], &sections);
    let found = report(&car);
    assert_eq!(found.missing.count, 1);
    assert_eq!(found.missing.listed[0].cid, file.cid);
    assert_eq!(found.missing.listed[0].offset, Some(header(&[root.cid], 1).len() as u64));
    assert!(found.missing.listed[0].note.contains(&root.cid.to_string()));
    refused(&car, &format!("missing: block {}", file.cid));
    refused(&car_v1(&[root.cid], &[]), "is a root");
}

#[test]
fn all_damaged_blocks_are_named_with_their_offsets() {
    let blocks = Blocks::default();
    let files = [b"one", b"two", b"six"].map(|data| blocks.file(&V1, data));
    let root = blocks.directory(&V1, &[("1", files[0]), ("2", files[1]), ("3", files[2])]);
    let mut car = car_v1(
        &[root.cid],
        &[
            (root.cid, &blocks.get(&root.cid)),
            (files[0].cid, b"ONE"),
            (files[1].cid, b"two"),
            (files[2].cid, b"SIX"),
        ],
    );
    let first = header(&[root.cid], 1).len() + section(&root.cid, &blocks.get(&root.cid)).len();
    let found = report(&car);
    assert_eq!((found.damaged.count, found.missing.count, found.sections), (2, 0, 4));
    assert_eq!(found.damaged.listed[0].cid, files[0].cid);
    assert_eq!(found.damaged.listed[0].offset, Some(first as u64));
    assert_eq!(found.damaged.listed[1].offset, Some(first as u64 + 2 * 40));
    let error = refused(&car, &format!("block {} at offset {first} does not match", files[0].cid));
    assert!(matches!(error, ArchiveError::Faulty(_)) && error.is_damage());
    // A cut as well: both are said.
    car.pop();
    let text = report(&car).to_string();
    assert!(text.contains("cut off") && text.contains("does not match its hash"), "{text}");
    // Block by block the first is the end.
    let mut reader = CarReader::new(&car[..]).unwrap();
    assert_eq!(reader.next_section().unwrap().unwrap().cid, root.cid);
    assert!(
        matches!(reader.next_section(), Err(CarError::Mismatch { offset, .. }) if offset == first as u64)
    );
}

#[test]
fn blocks_that_cannot_be_checked_or_read_are_damage() {
    let blake = Cid::new_v1(cid::RAW, multihash::Multihash::wrap(0x1e, &[7; 32]).unwrap());
    refused(&car_v1(&[blake], &[(blake, b"x")]), "unknown kind (0x1e)");
    let pb = cid::of_dag_pb(b"not protobuf");
    refused(&car_v1(&[pb], &[(pb, b"not protobuf")]), "is no UnixFS");
    let cbor = cid::v1(cid::DAG_CBOR, &cid::sha256(b"\xa0"));
    refused(&car_v1(&[cbor], &[(cbor, b"\xa0")]), "codec 0x71");
    let (id, _) = one();
    let mut wrong = header(&[id], 1);
    wrong.extend(with_length(&[9; 40]));
    refused(&wrong, "a CID that does not decode");
    // An identity CID over other bytes.
    refused(&car_v1(&[id], &[(identity(b"abc"), b"abd"), (id, b"hello world")]), "does not match");
}

#[test]
fn harmless_oddities_are_taken_and_reported() {
    let (id, car) = one();
    let twice = [&car[..], &section(&id, b"hello world")].concat();
    let archive = read(&twice).unwrap();
    assert_eq!((archive.duplicates, archive.blocks(), archive.cids()), (1, 1, vec![id]));
    assert_eq!(archive.report().duplicates.listed[0].offset, Some(car.len() as u64));
    let other = cid::of_raw(b"other");
    let archive = read(&[&car[..], &section(&other, b"other")].concat()).unwrap();
    assert_eq!((archive.extra.clone(), archive.cids()), (vec![other], vec![id]));
    assert_eq!(archive.report().extra.listed[0].offset, Some(car.len() as u64));
    // Identity: as a root without a block, and with one.
    let inline = identity(b"abc");
    for car in [car_v1(&[inline], &[]), car_v1(&[inline], &[(inline, b"abc")])] {
        let archive = read(&car).unwrap();
        assert_eq!((archive.blocks(), archive.cids().len()), (0, 0));
        let plan = archive.plan().unwrap();
        assert_eq!(plan.nodes[0].content.as_ref().unwrap().link.size, 3);
        assert_eq!(&archive.load(&inline).unwrap()[..], b"abc");
    }
    let v0 = Blocks::default();
    let root = v0.file(&Profile::UNIXFS_V0_2015, b"hello world").cid;
    assert_eq!(root.to_string(), "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD");
    assert_eq!(read(&v0.car(1, &[root])).unwrap().cids(), [root]);
}

/// An index of sha2-256 rows as go-car lays it out, by hand.
fn index(rows: &[(Cid, u64)]) -> Vec<u8> {
    let mut rows: Vec<(Vec<u8>, u64)> =
        rows.iter().map(|(id, offset)| (id.hash().digest().to_vec(), *offset)).collect();
    rows.sort();
    let mut out = vec![0x81, 0x08];
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&0x12u64.to_le_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&40u32.to_le_bytes());
    out.extend_from_slice(&(rows.len() as u64 * 40).to_le_bytes());
    for (digest, offset) in rows {
        out.extend_from_slice(&digest);
        out.extend_from_slice(&offset.to_le_bytes());
    }
    out
}

#[test]
fn a_version_2_archive_is_checked_in_all_its_parts() {
    let (id, data) = one();
    let at = header(&[id], 1).len() as u64;
    let good = index(&[(id, at)]);
    for padding in [(0, 0), (1333, 777)] {
        let archive = read(&car_v2(&data, &good, padding)).unwrap();
        assert!(archive.indexed);
        assert_eq!(archive.header().version, 2);
    }
    assert!(!read(&car_v2(&data, &[], (0, 0))).unwrap().indexed);
    let trailing = [&car_v2(&data, &[], (0, 0))[..], b"rest"].concat();
    assert_eq!(read(&trailing).unwrap().report().trailing_bytes, 4);
    let car = car_v2(&data, &good, (0, 0));
    let patched = |at: usize, value: u64| {
        let mut car = car.clone();
        car[at..at + 8].copy_from_slice(&value.to_le_bytes());
        car
    };
    refused(&patched(27, 50), "inside the header");
    refused(&patched(27, u64::MAX), "overflows");
    refused(&patched(35, 20), "shorter than the data's header");
    refused(&patched(35, 1 << 40), "inside the data");
    refused(&patched(35, data.len() as u64 - 1), "goes beyond the data");
    refused(&patched(43, 60), "inside the data");
    refused(&patched(43, 1 << 40), "the padding before the index");
    let no_index = car_v2(&data, &[], (0, 0));
    let mut beyond = no_index.clone();
    beyond[35..43].copy_from_slice(&(1u64 << 40).to_le_bytes());
    refused(&beyond, "cut off");
    refused(&car[..40], "the CARv2 header");
    // A version 2 inside a version 2, and a pragma in other words.
    refused(&car_v2(&car, &[], (0, 0)), "version 2 is not known");
    let mut long = b"\x0b\xa1\x67version\x18\x02".to_vec();
    long.extend_from_slice(&car[11..]);
    refused(&long, "not a CAR");
}

#[test]
fn a_wrong_index_is_found() {
    let (id, data) = one();
    let other = cid::of_raw(b"other");
    let at = header(&[id], 1).len() as u64;
    let wrong = |index: &[u8], word: &str| {
        refused(&car_v2(&data, index, (0, 0)), word);
    };
    wrong(&index(&[(id, at + 1)]), "where no block of its hash begins");
    wrong(&index(&[(id, 1 << 50)]), "where no block of its hash begins");
    wrong(&index(&[(id, u64::MAX)]), "where no block of its hash begins");
    wrong(&index(&[(other, at)]), "where no block of its hash begins");
    wrong(&index(&[]), "is not in it");
    wrong(&[&index(&[(id, at)])[..], &[0]].concat(), "bytes after it");
    wrong(&index(&[(id, at)])[..50], "cut off");
    wrong(&[0x82, 0x08], "no kind of index");
    wrong(&[0x81, 0x88, 0x00], "over-long");
    let mut code = index(&[(id, at)]);
    code[6] = 0x13;
    wrong(&code, "where no block");
    let mut width = index(&[(id, at)]);
    width[18] = 39;
    wrong(&width, "rows of 39");
    // Rows out of order: a reader that searches by halves would miss blocks.
    let (a, b) = (cid::of_raw(b"a"), cid::of_raw(b"b"));
    let pair = car_v1(&[a], &[(a, b"a"), (b, b"b")]);
    let second = at + section(&a, b"a").len() as u64;
    let mut swapped = index(&[(a, at), (b, second)]);
    assert!(read(&car_v2(&pair, &swapped, (0, 0))).unwrap().indexed);
    let rows = swapped.split_off(30);
    swapped.extend_from_slice(&rows[40..]);
    swapped.extend_from_slice(&rows[..40]);
    refused(&car_v2(&pair, &swapped, (0, 0)), "not sorted");
    // A row that leads to bytes inside a block which look like a section.
    let fake = [&b"...."[..], &section(&b, b"b")].concat();
    let outer = cid::of_raw(&fake);
    let car = car_v1(&[outer], &[(outer, &fake), (b, b"b")]);
    let inside = header(&[outer], 1).len() as u64 + 37 + 4;
    let real = header(&[outer], 1).len() as u64 + section(&outer, &fake).len() as u64;
    let rows = |b_at| index(&[(outer, at), (b, b_at)]);
    assert!(read(&car_v2(&car, &rows(real), (0, 0))).unwrap().indexed);
    refused(&car_v2(&car, &rows(inside), (0, 0)), "where no block of its hash begins");
}

#[test]
fn the_older_index_and_repeated_rows_are_read() {
    let (id, mut data) = one();
    let at = header(&[id], 1).len() as u64;
    let whole = index(&[(id, at)]);
    let older = [&[0x80, 0x08], &whole[14..]].concat();
    assert!(read(&car_v2(&data, &older, (0, 0))).unwrap().indexed);
    let again = data.len() as u64;
    data.extend(section(&id, b"hello world"));
    for rows in [vec![(id, at), (id, again)], vec![(id, at)], vec![(id, again)]] {
        assert!(read(&car_v2(&data, &index(&rows), (0, 0))).unwrap().indexed);
    }
}

#[test]
fn a_damaged_archive_of_any_size_has_a_short_report() {
    let id = cid::of_raw(b"root");
    let blocks: Vec<Cid> = (0..1500u32).map(|i| cid::of_raw(&i.to_le_bytes())).collect();
    let mut sections: Vec<(Cid, &[u8])> = vec![(id, b"root")];
    sections.extend(blocks.iter().map(|id| (*id, &b"wrong"[..])));
    let found = report(&car_v1(&[id], &sections));
    assert_eq!((found.damaged.count, found.damaged.listed.len()), (1500, 1000));
    let text = found.to_string();
    assert!(text.len() < 2000 && text.contains("1500 blocks are damaged in all"), "{text}");
    assert_eq!(found.index, IndexState::Absent);
}

fn sample() -> (Blocks, Cid) {
    let blocks = Blocks::default();
    let file = blocks.file(&V1, b"the content of a file");
    let link = blocks.symlink(&V1, b"file");
    let inner = blocks.directory(&V1, &[("file", file), ("link", link)]);
    let root = blocks.directory(&V1, &[("dir", inner), ("file", file)]);
    (blocks, root.cid)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens to one byte: it is found, or it did no harm.
    #[test]
    fn a_changed_byte_is_found_or_changes_nothing(v2: bool, at in 0usize..2000, flip in 1u8..) {
        let (blocks, root) = sample();
        let car = blocks.car(if v2 { 2 } else { 1 }, &[root]);
        let whole = read(&car).unwrap();
        let at = at % car.len();
        let mut bad = car.clone();
        bad[at] ^= flip;
        if let Ok(archive) = read(&bad) {
            prop_assert_eq!(archive.roots(), &[root], "offset {}", at);
            prop_assert_eq!(archive.cids(), whole.cids());
            prop_assert_eq!(archive.plan().unwrap(), whole.plan().unwrap());
            for id in archive.cids() {
                prop_assert_eq!(archive.load(&id).unwrap(), blocks.get(&id));
            }
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(read(&bytes));
        let (id, mut car) = one();
        car.extend_from_slice(&bytes);
        drop(read(&car));
        let index = [&[0x81, 0x08], &bytes[..]].concat();
        drop(read(&car_v2(&car_v1(&[id], &[(id, b"hello world")]), &index, (0, 0))));
    }
}
