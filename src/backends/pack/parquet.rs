//! A pack: a Parquet file of one row group, with the columns `cid`, `codec` and `bytes`.
//!
//! Each block is a page of its own in `bytes`, compressed by zstd alone, so that one is read
//! without the others. What is in a pack is known from its end: behind the pages lies a label
//! (`label`), whose place and CID the file's metadata say as `cairn.label` (offset, length,
//! CID). Other tools read the columns, and pass the label over.
//!
//! ```text
//! PAR1  page of cids  page of codecs  page of a block ..  label  page index  metadata  PAR1
//! ```

use std::sync::Arc;

use ::parquet::basic::{Compression, Encoding, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::{KeyValue, ParquetMetaDataReader};
use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use ::parquet::schema::types::ColumnPath;
use ipld_core::ipld::Ipld;
use uuid::Uuid;

use super::label::{self, BLOCKS_MAX, Bad, Label, Read, Row, Sealed, lost};
use super::page::Page;
use crate::types::{Block, Cid, cid};

/// The label and what is behind it are mostly within so many bytes from the end.
pub(super) const TAIL: u64 = 64 << 10;
/// First and last bytes of a file.
const MAGIC: &[u8] = b"PAR1";
/// Length of the metadata, and the magic, at the end.
const FOOTER: usize = 8;
/// The metadata of three columns; more is not a pack's.
const METADATA_MAX: usize = 64 << 10;
/// Labels, and pages of texts, are shorter: a row has a hundred bytes at most.
const TEXTS_MAX: usize = BLOCKS_MAX * 128;
/// Bytes of a page before it ends by itself: those of texts end with their column.
const PAGE_BYTES: usize = TEXTS_MAX;
/// Fast, and a third smaller than the fastest for text.
const LEVEL: i32 = 3;
const LABEL: &str = "cairn.label";
const BYTES: &str = "bytes";
const SCHEMA: &str = "message blocks {
    required binary cid (STRING);
    required binary codec (STRING);
    required binary bytes;
}";

fn codec_of(id: &Cid) -> &'static str {
    match id.codec() {
        cid::RAW => "raw",
        _ => "dag-pb",
    }
}

fn properties() -> Result<WriterProperties, ParquetError> {
    let bytes = || ColumnPath::from(BYTES);
    Ok(WriterProperties::builder()
        .set_created_by("cairn".into())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(LEVEL)?))
        .set_encoding(Encoding::PLAIN)
        .set_dictionary_enabled(false)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_data_page_row_count_limit(BLOCKS_MAX + 1)
        .set_column_data_page_row_count_limit(bytes(), 1)
        .set_column_statistics_enabled(bytes(), EnabledStatistics::None)
        .build())
}

/// Makes a pack of distinct blocks, in their order, called `id`.
///
/// # Errors
/// When they do not fit; of the encoders, which do not fail.
pub(super) fn seal(
    backend: Uuid,
    (id, created): (Uuid, i64),
    blocks: &[Block],
) -> Result<Sealed, Bad> {
    let said = |error: ParquetError| error.to_string();
    let schema = Arc::new(parse_message_type(SCHEMA).map_err(said)?);
    let properties = Arc::new(properties().map_err(said)?);
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).map_err(said)?;
    let text = |text: String| ByteArray::from(text.into_bytes());
    let cids: Vec<ByteArray> = blocks.iter().map(|block| text(block.cid.to_string())).collect();
    let codecs: Vec<ByteArray> =
        blocks.iter().map(|block| text(codec_of(&block.cid).to_owned())).collect();
    let mut group = writer.next_row_group().map_err(said)?;
    for texts in [Some(&cids), Some(&codecs), None] {
        let column = group.next_column().map_err(said)?;
        let mut column = column.ok_or("a schema without its columns")?;
        let typed = column.typed::<ByteArrayType>();
        if let Some(texts) = texts {
            typed.write_batch(texts, None, None).map_err(said)?;
        } else {
            // A page ends between batches only.
            for block in blocks {
                let one = ByteArray::from(block.data.clone());
                typed.write_batch(&[one], None, None).map_err(said)?;
            }
        }
        column.close().map_err(said)?;
    }
    group.close().map_err(said)?;
    writer.flush().map_err(|error| error.to_string())?;
    let (pages, end) = pages_of(writer.inner(), blocks.len())?;
    let rows: Vec<Row> = blocks
        .iter()
        .zip(pages)
        .map(|(block, offset)| Row { cid: block.cid, offset, len: block.data.len() as u32 })
        .collect();
    let encoded = rows.iter().map(|row| {
        vec![
            Ipld::Bytes(row.cid.to_bytes()),
            Ipld::Integer(row.len.into()),
            Ipld::Integer(row.offset.into()),
        ]
    });
    let label = label::encode(backend, (id, created), encoded)?;
    writer.write_all(&label).map_err(|error| error.to_string())?;
    let where_it_is = format!("{end} {} {}", label.len(), cid::of_raw(&label));
    writer.append_key_value_metadata(KeyValue::new(LABEL.to_owned(), where_it_is));
    let bytes = writer.into_inner().map_err(said)?.into();
    Ok(Sealed { bytes, label: Label { backend, created, rows, end } })
}

/// Where the page of each block begins in a file that is being written, and where the last
/// one ends.
fn pages_of(bytes: &[u8], blocks: usize) -> Result<(Vec<u64>, u64), Bad> {
    let mut at = MAGIC.len();
    let mut pages = Vec::with_capacity(blocks);
    // Those of cids and codecs come first.
    for n in 0..blocks + 2 {
        let page = Page::read(bytes.get(at..).unwrap_or_default())?;
        if page.values != (if n < 2 { blocks } else { 1 }) {
            return Err("its pages are not cut by blocks".into());
        }
        if n >= 2 {
            pages.push(at as u64);
        }
        at += page.len;
    }
    if at != bytes.len() {
        return Err("it has more pages than blocks".into());
    }
    Ok((pages, at as u64))
}

/// Reads what a pack of `len` bytes is from the end of it.
///
/// # Errors
/// With what is wrong about it.
pub(super) fn read_label(tail: &[u8], len: u64) -> Result<Read, Bad> {
    let start = len.checked_sub(tail.len() as u64).ok_or("it is longer than it was")?;
    let (rest, footer) = tail.split_last_chunk::<FOOTER>().ok_or("it is shorter than any pack")?;
    let (metadata_len, magic) = footer.split_at(FOOTER - MAGIC.len());
    let metadata_len = metadata_len.try_into().map_or(0, u32::from_le_bytes) as usize;
    if magic != MAGIC || metadata_len > METADATA_MAX {
        return Err("it does not end as a pack".into());
    }
    let Some(metadata) = rest.len().checked_sub(metadata_len).map(|at| &rest[at..]) else {
        return Ok(Read::More((metadata_len + FOOTER) as u64));
    };
    let metadata = ParquetMetaDataReader::decode_metadata(metadata)
        .map_err(|error| format!("its metadata does not decode: {error}"))?;
    let pairs = metadata.file_metadata().key_value_metadata().into_iter().flatten();
    let said = pairs.filter(|pair| pair.key == LABEL).find_map(|pair| pair.value.as_deref());
    let said = said.ok_or("it does not say where its label is")?;
    let wrong = || "where its label is does not parse".to_owned();
    let mut words = said.split(' ');
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).ok_or_else(wrong);
    let (end, label_len) = (number()?, number()?);
    let id: Cid = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
    let behind = end.checked_add(label_len).filter(|at| *at < len).ok_or_else(wrong)?;
    if label_len > TEXTS_MAX as u64 {
        return Err("its label is longer than any".into());
    }
    if end < start {
        return Ok(Read::More(len - end));
    }
    let data = tail.get((end - start) as usize..(behind - start) as usize).ok_or_else(wrong)?;
    if cid::verify(&id, data) != cid::Verdict::Match {
        return Err("its label does not match its hash".into());
    }
    let (backend, created, blocks) = label::parse(data, 3)?;
    let mut rows = Vec::with_capacity(blocks.len());
    for (cid, len, offset) in blocks {
        if offset >= end {
            return Err("its label names what lies behind it".into());
        }
        rows.push(Row { cid, offset, len });
    }
    Ok(Read::Whole(Label { backend, created, rows, end }))
}

/// What is in a pack whose label does not say it: its pages are read one after the other, as
/// far as their headers lead. Blocks that do not match are left out, and keep their positions.
/// Without the page of cids nothing is found.
pub(super) fn scan(backend: Uuid, bytes: &[u8]) -> Label {
    let mut rows = Vec::new();
    let mut at = MAGIC.len();
    let page_at = |at: usize| Page::read(bytes.get(at..)?).ok();
    let mut cids = Vec::new();
    if let Some(page) = page_at(at).filter(|page| page.values <= BLOCKS_MAX) {
        cids = page.texts(TEXTS_MAX).unwrap_or_default();
        at += page.len;
        at += page_at(at).map_or(0, |codecs| codecs.len);
    }
    for id in &cids {
        let Some(page) = page_at(at) else { break };
        let offset = at as u64;
        let good = id.parse().ok().and_then(|id: Cid| {
            let data = page.value(Block::MAX_LEN).ok()?;
            (cid::verify(&id, &data) == cid::Verdict::Match).then_some(Row {
                cid: id,
                offset,
                len: data.len() as u32,
            })
        });
        rows.push(good.unwrap_or_else(|| lost(offset)));
        at += page.len;
    }
    Label { backend, created: 0, rows, end: at as u64 }
}

#[cfg(test)]
mod tests {
    use ::parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
    use ::parquet::file::metadata::PageIndexPolicy;
    use arrow_array::cast::AsArray;
    use bytes::Bytes;

    use super::super::Form;
    use super::*;

    const CREATED: i64 = 1_794_000_000;

    /// Empty ones, small and large ones, some that compress and some that do not, and one of
    /// CID version 0.
    fn blocks(count: usize) -> Vec<Block> {
        let mut random = fastrand::Rng::with_seed(count as u64);
        let data = |n: usize| -> Bytes {
            let len = [0, 1, 100, 4096, Block::MAX_LEN - 8][n % 5];
            let len = if n < 10 { len } else { len.min(64) };
            let letters = if n.is_multiple_of(2) { 0..=255 } else { 97..=99 };
            let bytes = std::iter::repeat_with(|| random.u8(letters.clone()));
            bytes.take(len).chain(n.to_le_bytes()).collect()
        };
        let mut blocks: Vec<Block> = (0..count).map(data).map(Block::raw).collect();
        if let Some(last) = blocks.last_mut() {
            last.cid = cid::v0(&cid::sha256(&last.data));
        }
        if count > 2 {
            blocks[1] = Block::raw(Bytes::new());
        }
        blocks
    }

    fn made(count: usize) -> (Vec<Block>, Sealed) {
        let blocks = blocks(count);
        let sealed = seal(Uuid::nil(), (Uuid::new_v4(), CREATED), &blocks).unwrap();
        (blocks, sealed)
    }

    fn data(bytes: &Bytes, row: &Row, part: &std::ops::Range<u64>) -> Result<Bytes, Bad> {
        let range = Form::Parquet.range((row.offset, row.len), part);
        let end = (range.end as usize).min(bytes.len());
        let read = bytes.slice((range.start as usize).min(end)..end);
        Form::Parquet.data(read, (&row.cid, row.len), part)
    }

    #[test]
    fn a_table_says_what_is_in_it_and_gives_each_block_alone() {
        for count in [1, 2, 9, 300, 5000, BLOCKS_MAX] {
            let (blocks, sealed) = made(count);
            let Sealed { bytes, label } = sealed;
            let len = bytes.len() as u64;
            // From its end alone, in at most three steps.
            let (mut wanted, mut steps) = (TAIL.min(len), 0);
            let read = loop {
                steps += 1;
                match read_label(&bytes[(len - wanted) as usize..], len).unwrap() {
                    Read::More(more) if more > wanted && more <= len => wanted = more,
                    Read::More(more) => panic!("{more} of {len}"),
                    Read::Whole(label) => break label,
                }
            };
            assert!(steps <= 2, "{steps}");
            assert_eq!((&read, read.created, read.rows.len()), (&label, CREATED, count));
            assert_eq!(scan(Uuid::nil(), &bytes).rows, label.rows);
            for (row, block) in label.rows.iter().zip(&blocks) {
                assert_eq!(row.cid, block.cid);
                let whole = 0..u64::from(row.len);
                assert_eq!(data(&bytes, row, &whole).unwrap(), block.data);
                if row.len > 2 {
                    let part = 1..whole.end - 1;
                    let inner = block.data.slice(1..block.data.len() - 1);
                    assert_eq!(data(&bytes, row, &part).unwrap(), inner);
                }
            }
        }
        assert!(seal(Uuid::nil(), (Uuid::nil(), 0), &[]).is_err());
    }

    #[test]
    fn other_readers_find_a_table_with_a_page_a_block() {
        let (blocks, sealed) = made(300);
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let reader =
            ParquetRecordBatchReaderBuilder::try_new_with_options(sealed.bytes.clone(), options)
                .unwrap();
        let metadata = reader.metadata();
        assert_eq!(metadata.num_row_groups(), 1);
        let pages = metadata.page_index_for_row_group(0);
        let offsets =
            pages.page_locations(2).unwrap().iter().map(|page| page.offset.cast_unsigned());
        let rows = sealed.label.rows.iter().map(|row| row.offset);
        assert_eq!(offsets.collect::<Vec<_>>(), rows.collect::<Vec<_>>());
        let mut read = Vec::new();
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            let cids = batch.column_by_name("cid").unwrap().as_string::<i32>();
            let codecs = batch.column_by_name("codec").unwrap().as_string::<i32>();
            let bytes = batch.column_by_name("bytes").unwrap().as_binary::<i32>();
            for n in 0..batch.num_rows() {
                let id: Cid = cids.value(n).parse().unwrap();
                let codec = if id.codec() == cid::RAW { "raw" } else { "dag-pb" };
                assert_eq!(codecs.value(n), codec);
                read.push(Block { cid: id, data: Bytes::copy_from_slice(bytes.value(n)) });
            }
        }
        assert!(read == blocks);
        // Text takes less than it has.
        let text = Block::raw(b"to be or not to be, ".repeat(5000).into());
        let sealed = seal(Uuid::nil(), (Uuid::nil(), 0), std::slice::from_ref(&text)).unwrap();
        assert!(sealed.bytes.len() < text.data.len() / 10);
    }

    #[test]
    fn an_end_that_was_changed_or_cut_off_is_no_label() {
        let (_, Sealed { bytes, label }) = made(9);
        let len = bytes.len();
        let end = label.end as usize;
        for at in end..len {
            for bit in [0, 3, 7] {
                let mut tail = bytes[end..].to_vec();
                tail[at - end] ^= 1 << bit;
                match read_label(&tail, len as u64) {
                    Err(_) | Ok(Read::More(_)) => {}
                    Ok(Read::Whole(other)) => assert_eq!(other, label, "byte {at}"),
                }
            }
        }
        for cut in end..len {
            assert!(!matches!(read_label(&bytes[end..cut], cut as u64), Ok(Read::Whole(_))));
        }
        // The blocks are found all the same.
        assert_eq!(scan(Uuid::nil(), &bytes[..end]).rows, label.rows);
    }

    #[test]
    fn a_changed_byte_in_a_page_makes_no_other_block() {
        let (blocks, Sealed { bytes, label }) = made(4);
        let last = &label.rows[3];
        for at in label.rows[2].offset as usize..label.end as usize {
            let mut bad = bytes.to_vec();
            bad[at] ^= 0x10;
            let bad = Bytes::from(bad);
            for (row, block) in label.rows[2..].iter().zip(&blocks[2..]) {
                for part in [0..u64::from(row.len), 1..u64::from(row.len)] {
                    let Ok(found) = data(&bad, row, &part) else { continue };
                    let wanted = block.data.slice(part.start as usize..);
                    // A whole one is hashed by whoever asked.
                    let is_told =
                        part.start == 0 && cid::verify(&row.cid, &found) != cid::Verdict::Match;
                    assert!(found == wanted || is_told, "byte {at}");
                }
            }
            let found = scan(Uuid::nil(), &bad).rows;
            assert_eq!(found[..2], label.rows[..2], "byte {at}");
            let hit = at < last.offset as usize;
            assert!(found.get(2) == Some(&label.rows[2]) || hit, "byte {at}");
        }
        // Without the page of cids it is not known which blocks these are.
        let mut bad = bytes.to_vec();
        bad[MAGIC.len() + 40] ^= 1;
        assert!(scan(Uuid::nil(), &bad).rows.iter().all(|row| !label.rows.contains(row)));
        assert!(scan(Uuid::nil(), b"").rows.is_empty());
    }

    #[test]
    fn random_bytes_are_no_page() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let len = random.usize(..200);
            let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            // Mostly a header that parses.
            if random.bool() {
                bytes.splice(0..0, [0x15, 0, 0x15, random.u8(..128), 0x15, random.u8(..128)]);
                bytes.splice(6..6, [0x2c, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0]);
            }
            if let Ok(page) = Page::read(&bytes) {
                assert!(page.len <= bytes.len(), "seed {seed}");
                assert!(page.value(1000).is_err() && page.texts(1000).is_err(), "seed {seed}");
            }
            assert!(read_label(&bytes, bytes.len() as u64).is_err(), "seed {seed}");
        }
    }
}
