//! The suite that every backend passes. It panics with what was wrong; it is
//! public so that a backend outside this crate can run it.

use std::sync::Arc;

use bytes::Bytes;

use super::{Backend, BackendError, ErrorKind, Presence};
use crate::types::{Block, Cid, cid};

type Check = Result<(), String>;

fn expect(what: &str, holds: bool) -> Check {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn told<T>(what: &str, result: Result<T, BackendError>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error} ({:?})", error.kind))
}

fn blocks() -> Vec<Block> {
    let mut blocks: Vec<Block> = [0usize, 1, 100, 4096, Block::MAX_LEN]
        .iter()
        .map(|len| Block::raw(Bytes::from((0..*len).map(|i| (i % 251) as u8).collect::<Vec<u8>>())))
        .collect();
    // dag-pb blocks, as CIDv1 and as CIDv0.
    let directory = Bytes::from_static(&[0x0a, 0x02, 0x08, 0x01]);
    blocks.push(Block { cid: cid::of_dag_pb(&directory), data: directory });
    let file = Bytes::from_static(&[0x0a, 0x04, 0x08, 0x02, 0x18, 0x00]);
    blocks.push(Block { cid: cid::v0(&cid::sha256(&file)), data: file });
    blocks
}

/// Runs the whole suite over an empty backend.
///
/// # Errors
/// The first rule that does not hold.
pub async fn run(backend: &Arc<dyn Backend>) -> Result<(), String> {
    stores_and_reads(backend).await?;
    lists_in_pages(backend).await?;
    takes_the_same_block_from_many(backend).await?;
    deletes(backend).await?;
    keeps_names(backend).await?;
    told("probe", backend.probe().await)?;
    told("usage", backend.usage().await).map(drop)
}

async fn stores_and_reads(backend: &Arc<dyn Backend>) -> Check {
    let absent = cid::of_raw(b"never stored");
    let blocks = blocks();
    let (first, rest) = blocks.split_at(2);
    for block in first {
        told("put", backend.put(block).await)?;
        told("a second put", backend.put(block).await)?;
    }
    told("put_many", backend.put_many(rest).await)?;
    for block in &blocks {
        let data = told("get", backend.get(&block.cid, None).await)?;
        expect("get gives the bytes that were put", data == block.data)?;
        let len = block.data.len() as u64;
        let part = told("ranged get", backend.get(&block.cid, Some(len / 3..len / 2)).await)?;
        let wanted = &block.data[(len / 3) as usize..(len / 2) as usize];
        expect("a range gives its bytes", part == wanted)?;
        let beyond = backend.get(&block.cid, Some(0..len + 1)).await;
        expect("a range beyond the end is refused", beyond.is_err_and(|e| e.kind == ErrorKind::Invalid))?;
    }
    let missing = backend.get(&absent, None).await;
    expect("a block that is not there is NotFound", missing.is_err_and(|e| e.kind == ErrorKind::NotFound))?;
    let mut asked: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
    asked.insert(1, absent);
    let presence = told("presence", backend.presence(&asked).await)?;
    let mut wanted: Vec<Presence> =
        blocks.iter().map(|block| Presence::Present(block.data.len() as u64)).collect();
    wanted.insert(1, Presence::Absent);
    expect("presence answers in the order asked", presence == wanted)
}

async fn lists_in_pages(backend: &Arc<dyn Backend>) -> Check {
    if !backend.capabilities().list {
        return Ok(());
    }
    let (mut seen, mut from, mut pages) = (Vec::new(), None::<String>, 0);
    loop {
        let page = told("list", backend.list(from.as_deref(), 2).await)?;
        expect("a page is within its limit", page.blocks.len() <= 2)?;
        seen.extend(page.blocks);
        pages += 1;
        from = page.next;
        if from.is_none() || pages > 100 {
            break;
        }
    }
    let mut wanted: Vec<(Cid, u64)> = blocks().iter().map(|b| (b.cid, b.data.len() as u64)).collect();
    wanted.sort();
    seen.sort();
    expect("a listing has every block once, with its length", seen == wanted)
}

async fn takes_the_same_block_from_many(backend: &Arc<dyn Backend>) -> Check {
    let block = Block::raw(Bytes::from_static(b"put by many at once"));
    let puts = (0..8).map(|_| backend.put(&block));
    for result in futures_util::future::join_all(puts).await {
        told("a put at the same time", result)?;
    }
    let data = told("get", backend.get(&block.cid, None).await)?;
    expect("puts at the same time leave the bytes", data == block.data)
}

async fn deletes(backend: &Arc<dyn Backend>) -> Check {
    if !backend.capabilities().delete {
        return Ok(());
    }
    let block = Block::raw(Bytes::from_static(b"put by many at once"));
    told("delete", backend.delete(&block.cid).await)?;
    told("a second delete", backend.delete(&block.cid).await)?;
    let presence = told("presence", backend.presence(&[block.cid]).await)?;
    expect("a deleted block is absent", presence == [Presence::Absent])?;
    told("put after delete", backend.put(&block).await)
}

async fn keeps_names(backend: &Arc<dyn Backend>) -> Check {
    let (one, two) = (cid::of_raw(b"1"), cid::of_raw(b"2"));
    for (name, id) in [("volumes/v/b", one), ("volumes/v/a", one), ("volumes/v/a", two), ("other", one)] {
        told("put_name", backend.put_name(name, &id).await)?;
    }
    let names = told("names", backend.names("volumes/").await)?;
    let wanted = [("volumes/v/a".to_owned(), two), ("volumes/v/b".to_owned(), one)];
    expect("names are sorted, filtered and replaced", names == wanted)?;
    told("delete_name", backend.delete_name("volumes/v/a").await)?;
    told("a second delete_name", backend.delete_name("volumes/v/a").await)?;
    let names = told("names", backend.names("volumes/").await)?;
    expect("a deleted name is gone", names == wanted[1..])?;
    let escape = backend.put_name("../escape", &one).await;
    expect("a name cannot leave its folder", escape.is_err_and(|e| e.kind == ErrorKind::Invalid))
}
