//! The suite that every backend passes. It returns what does not hold instead
//! of panicking, so that a backend outside this crate, or a command that tests
//! a place, can run it too.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use super::check::NAME_MAX;
use super::{Backend, BackendError, ErrorKind, Presence};
use crate::types::{Block, Cid, cid};

/// A rule that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {found}")]
pub struct Violation {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// What was found instead.
    pub found: String,
}

type Check = Result<(), Violation>;

fn hold(rule: &'static str, holds: bool, found: impl std::fmt::Debug) -> Check {
    if holds { Ok(()) } else { Err(Violation { rule, found: format!("{found:?}") }) }
}

fn equal<T: PartialEq + std::fmt::Debug>(rule: &'static str, found: &T, wanted: &T) -> Check {
    if found == wanted {
        return Ok(());
    }
    Err(Violation { rule, found: format!("found {found:.200?}, wanted {wanted:.200?}") })
}

fn done<T>(rule: &'static str, result: Result<T, BackendError>) -> Result<T, Violation> {
    result.map_err(|error| Violation { rule, found: format!("{error} ({:?})", error.kind) })
}

fn refused<T>(rule: &'static str, result: Result<T, BackendError>, kind: ErrorKind) -> Check {
    match result {
        Err(error) if error.kind == kind => Ok(()),
        Err(error) => Err(Violation { rule, found: format!("{error} ({:?})", error.kind) }),
        Ok(_) => Err(Violation { rule, found: "success".to_owned() }),
    }
}

/// A block of `len` bytes that differ with `seed`.
fn block(seed: u64, len: usize) -> Block {
    let mut random = fastrand::Rng::with_seed(seed);
    Block::raw((0..len).map(|_| random.u8(..)).collect::<Vec<u8>>().into())
}

/// Blocks of all shapes: empty, small, the largest, and dag-pb under both
/// versions of the CID.
fn shapes() -> Vec<Block> {
    let mut blocks: Vec<Block> =
        [0, 1, 100, 4096, Block::MAX_LEN].into_iter().map(|len| block(len as u64, len)).collect();
    let directory = Bytes::from_static(&[0x0a, 0x02, 0x08, 0x01]);
    blocks.push(Block { cid: cid::of_dag_pb(&directory), data: directory.clone() });
    blocks.push(Block { cid: cid::v0(&cid::sha256(&directory)), data: directory });
    blocks
}

/// Runs the whole suite; `empty` gives an empty, writable backend each time.
///
/// # Errors
/// The first rule that does not hold.
pub async fn run<F, Made>(empty: F) -> Check
where
    F: Fn() -> Made,
    Made: Future<Output = Arc<dyn Backend>>,
{
    run_with_names_up_to(NAME_MAX, empty).await
}

/// Runs the whole suite where what is behind a backend keeps no name as long as the
/// longest: some servers make file names of keys.
///
/// # Errors
/// The first rule that does not hold.
pub async fn run_with_names_up_to<F, Made>(longest: usize, empty: F) -> Check
where
    F: Fn() -> Made,
    Made: Future<Output = Arc<dyn Backend>>,
{
    reads_what_was_put(&*empty().await).await?;
    refuses_what_cannot_be(&*empty().await).await?;
    answers_presence_in_order(&*empty().await).await?;
    puts_many_in_order(&*empty().await).await?;
    takes_puts_at_the_same_time(empty().await).await?;
    deletes(&*empty().await).await?;
    lists_in_pages(&*empty().await).await?;
    lists_while_blocks_go(&*empty().await).await?;
    keeps_names(&*empty().await, longest.clamp(10, NAME_MAX)).await?;
    reports_itself(&*empty().await).await
}

async fn reads_what_was_put(backend: &dyn Backend) -> Check {
    for block in shapes() {
        done("a block can be put", backend.put(&block).await)?;
        done("a block can be put again", backend.put(&block).await)?;
        let data = done("a block can be read", backend.get(&block.cid, None).await)?;
        hold("a read gives the bytes that were put", data == block.data, block.cid)?;
        let len = block.data.len() as u64;
        for range in [0..len, 0..0, len..len, len / 3..len / 2, len.saturating_sub(1)..len] {
            let part = backend.get(&block.cid, Some(range.clone())).await;
            let part = done("a part of a block can be read", part)?;
            let wanted = block.data.slice(range.start as usize..range.end as usize);
            hold("a part is the bytes of its range", part == wanted, (block.cid, range))?;
        }
    }
    Ok(())
}

async fn refuses_what_cannot_be(backend: &dyn Backend) -> Check {
    let stored = block(1, 100);
    done("a block can be put", backend.put(&stored).await)?;
    let rule = "a range beyond the block is Invalid";
    refused(rule, backend.get(&stored.cid, Some(0..101)).await, ErrorKind::Invalid)?;
    refused(rule, backend.get(&stored.cid, Some(101..102)).await, ErrorKind::Invalid)?;
    let rule = "a range that ends before it starts is Invalid";
    let reversed = std::ops::Range { start: 50, end: 40 };
    refused(rule, backend.get(&stored.cid, Some(reversed)).await, ErrorKind::Invalid)?;
    let absent = block(2, 100);
    let rule = "a block that is not there is NotFound";
    refused(rule, backend.get(&absent.cid, None).await, ErrorKind::NotFound)?;
    refused(rule, backend.get(&absent.cid, Some(0..1)).await, ErrorKind::NotFound)?;
    let large = block(3, Block::MAX_LEN + 1);
    let rule = "a block above the limit is Invalid";
    refused(rule, backend.put(&large).await, ErrorKind::Invalid)?;
    let presence = done("presence answers", backend.presence(&[large.cid]).await)?;
    equal("a refused block is not there", &presence, &vec![Presence::Absent])
}

async fn answers_presence_in_order(backend: &dyn Backend) -> Check {
    let none = done("presence of nothing answers", backend.presence(&[]).await)?;
    equal("presence of nothing is nothing", &none, &Vec::new())?;
    let (here, gone) = (block(1, 11), block(2, 22));
    let rule = "presence answers in the order asked, also for one asked twice";
    done("a block can be put", backend.put(&here).await)?;
    let asked = [gone.cid, here.cid, gone.cid, here.cid];
    let found = done("presence answers", backend.presence(&asked).await)?;
    let (yes, no) = (Presence::Present(11), Presence::Absent);
    equal(rule, &found, &vec![no, yes, no, yes])
}

async fn puts_many_in_order(backend: &dyn Backend) -> Check {
    done("nothing can be put", backend.put_many(&[]).await)?;
    let mut blocks = shapes();
    blocks.push(blocks[2].clone());
    done("a block can be put", backend.put(&blocks[1]).await)?;
    done("blocks can be put together", backend.put_many(&blocks).await)?;
    for block in &blocks {
        let data = done("a block put with others is there", backend.get(&block.cid, None).await)?;
        hold("a read gives the bytes that were put", data == block.data, block.cid)?;
    }
    // The third one is refused: what is there then is a prefix.
    let some = [block(10, 10), block(11, 10), block(12, Block::MAX_LEN + 1), block(13, 10)];
    let rule = "blocks put together with a bad one are Invalid";
    refused(rule, backend.put_many(&some).await, ErrorKind::Invalid)?;
    let cids: Vec<Cid> = some.iter().map(|block| block.cid).collect();
    let found = done("presence answers", backend.presence(&cids).await)?;
    let there = found.iter().take_while(|p| matches!(p, Presence::Present(_))).count();
    let rest_absent = found[there..].iter().all(|p| *p == Presence::Absent);
    hold("blocks put together leave a prefix when one is refused", there <= 2 && rest_absent, found)
}

async fn takes_puts_at_the_same_time(backend: Arc<dyn Backend>) -> Check {
    let same = block(1, 100_000);
    let tasks = (0..16u64).map(|i| {
        let (backend, same) = (Arc::clone(&backend), same.clone());
        tokio::spawn(async move {
            let own = block(100 + i, 1000);
            backend.put_many(&[same.clone(), own.clone()]).await?;
            Ok::<_, BackendError>((backend.get(&same.cid, None).await?, own))
        })
    });
    for task in join_all(tasks).await {
        let ended = task.map_err(|error| Violation {
            rule: "puts at the same time come to an end",
            found: error.to_string(),
        })?;
        let (data, own) = done("the same block can be put by many at once", ended)?;
        hold("an acknowledged block is whole", data == same.data, same.cid)?;
        let data = done("a block put beside others is there", backend.get(&own.cid, None).await)?;
        hold("a read gives the bytes that were put", data == own.data, own.cid)?;
    }
    Ok(())
}

async fn deletes(backend: &dyn Backend) -> Check {
    let (gone, kept) = (block(1, 10), block(2, 10));
    done("blocks can be put", backend.put_many(&[gone.clone(), kept.clone()]).await)?;
    if !backend.capabilities().delete {
        let rule = "a backend without delete says Unsupported";
        return refused(rule, backend.delete(&gone.cid).await, ErrorKind::Unsupported);
    }
    done("a block can be deleted", backend.delete(&gone.cid).await)?;
    done("a block can be deleted again", backend.delete(&gone.cid).await)?;
    let presence = done("presence answers", backend.presence(&[gone.cid, kept.cid]).await)?;
    let wanted = vec![Presence::Absent, Presence::Present(10)];
    equal("a deleted block is absent, others stay", &presence, &wanted)?;
    done("a deleted block can be put again", backend.put(&gone).await)?;
    let data = done("a block put again is there", backend.get(&gone.cid, None).await)?;
    hold("a read gives the bytes that were put", data == gone.data, gone.cid)?;
    let many: Vec<Block> = (3..9).map(|seed| block(seed, 20)).collect();
    done("blocks can be put", backend.put_many(&many).await)?;
    // The second is named twice, the last one is not there.
    let wanted = [many[1].cid, many[3].cid, many[1].cid, block(99, 20).cid];
    done("several blocks can be deleted", backend.delete_many(&wanted).await)?;
    let cids: Vec<Cid> = many.iter().map(|block| block.cid).collect();
    let presence = done("presence answers", backend.presence(&cids).await)?;
    let (here, gone) = (Presence::Present(20), Presence::Absent);
    let wanted = vec![here, gone, here, gone, here, here];
    equal("those that were named are gone, others stay", &presence, &wanted)?;
    done("nothing can be deleted", backend.delete_many(&[]).await)
}

async fn list_all(backend: &dyn Backend, limit: usize) -> Result<Vec<(Cid, u64)>, Violation> {
    let (mut seen, mut from) = (Vec::new(), None::<String>);
    loop {
        let page = done("a page can be listed", backend.list(from.as_deref(), limit).await)?;
        let len = page.blocks.len();
        hold("a page has at most as many blocks as were asked for", len <= limit, len)?;
        hold("a page that is not the last has blocks", page.next.is_none() || len > 0, &page.next)?;
        seen.extend(page.blocks);
        match page.next {
            Some(next) => {
                hold("the cursor moves", from.as_ref() != Some(&next), &next)?;
                from = Some(next);
            }
            None => return Ok(seen),
        }
    }
}

async fn lists_in_pages(backend: &dyn Backend) -> Check {
    if !backend.capabilities().list {
        let rule = "a backend without list says Unsupported";
        return refused(rule, backend.list(None, 10).await, ErrorKind::Unsupported);
    }
    let none = list_all(backend, 10).await?;
    equal("an empty place lists nothing", &none, &Vec::new())?;
    let mut blocks = shapes();
    blocks.extend((0..60).map(|i| block(1000 + i, 8)));
    done("blocks can be put", backend.put_many(&blocks).await)?;
    let wanted: BTreeSet<(Cid, u64)> =
        blocks.iter().map(|block| (block.cid, block.data.len() as u64)).collect();
    let mut first = None;
    for limit in [1, 7, wanted.len(), 1000] {
        let seen = list_all(backend, limit).await?;
        hold("no block is listed twice", seen.len() == wanted.len(), seen.len())?;
        let set: BTreeSet<(Cid, u64)> = seen.iter().copied().collect();
        equal("every block is listed with its length", &set, &wanted)?;
        let order = first.get_or_insert_with(|| seen.clone());
        equal("the order of a listing does not depend on its pages", &seen, order)?;
    }
    Ok(())
}

async fn lists_while_blocks_go(backend: &dyn Backend) -> Check {
    if !backend.capabilities().list || !backend.capabilities().delete {
        return Ok(());
    }
    let blocks: Vec<Block> = (0..30).map(|i| block(i, 8)).collect();
    done("blocks can be put", backend.put_many(&blocks).await)?;
    let first = done("a page can be listed", backend.list(None, 10).await)?;
    for (cid, _) in &first.blocks {
        done("a block can be deleted", backend.delete(cid).await)?;
    }
    let mut seen = first.blocks.len();
    let mut from = first.next;
    while let Some(next) = from {
        let page = backend.list(Some(&next), 10).await;
        let page = done("a listing goes on after its last block was deleted", page)?;
        seen += page.blocks.len();
        from = page.next;
    }
    equal("a listing has every block that stays, whatever goes", &seen, &blocks.len())
}

async fn keeps_names(backend: &dyn Backend, longest: usize) -> Check {
    let (one, two) = (cid::of_raw(b"1"), cid::v0(&cid::sha256(b"2")));
    let longest = format!("l/{}", "x".repeat(longest - 2));
    let given = ["volumes/v/b", "volumes/v/a", "volumes/v-1", "other", "volumes/v.x_0/1", &longest];
    for name in given {
        done("a name can be put", backend.put_name(name, &one).await)?;
    }
    done("a name can be put again", backend.put_name("volumes/v/a", &two).await)?;
    let all = done("names can be listed", backend.names("").await)?;
    let mut wanted: Vec<(String, Cid)> = given
        .iter()
        .map(|name| ((*name).to_owned(), if *name == "volumes/v/a" { two } else { one }))
        .collect();
    wanted.sort();
    equal("names are sorted, with their last CID", &all, &wanted)?;
    for prefix in ["volumes/", "volumes/v", "volumes/v/", "volumes/v/a", "vol", "none", "other/"] {
        let found = done("names can be listed", backend.names(prefix).await)?;
        let wanted: Vec<(String, Cid)> =
            all.iter().filter(|(name, _)| name.starts_with(prefix)).cloned().collect();
        equal("names are those with the prefix", &found, &wanted)?;
    }
    done("a name can be deleted", backend.delete_name("volumes/v/a").await)?;
    done("a name can be deleted again", backend.delete_name("volumes/v/a").await)?;
    done("a name that never was can be deleted", backend.delete_name("no/such/name").await)?;
    let found = done("names can be listed", backend.names("volumes/v/").await)?;
    equal("a deleted name is gone", &found, &vec![("volumes/v/b".to_owned(), one)])?;
    let too_long = "x".repeat(NAME_MAX + 1);
    let bad =
        ["", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", ".", "A", "a b", "ä", "a\n", "a\0"];
    for name in bad.into_iter().chain([too_long.as_str()]) {
        let rule = "a name that is none is Invalid";
        refused(rule, backend.put_name(name, &one).await, ErrorKind::Invalid)?;
    }
    Ok(())
}

async fn reports_itself(backend: &dyn Backend) -> Check {
    hold("it has a kind", !backend.kind().is_empty(), backend.kind())?;
    hold("it has a location", !backend.location().is_empty(), backend.location())?;
    let can = backend.capabilities();
    hold("it has a failure domain", !can.failure_domain.is_empty(), &can)?;
    hold("it takes at least one put at a time", can.parallel_puts > 0, &can)?;
    hold("it is not read-only", !can.read_only, &can)?;
    done("it answers a probe", backend.probe().await)?;
    let before = done("it tells its usage", backend.usage().await)?;
    done("a block can be put", backend.put(&block(1, 1000)).await)?;
    done("a block can be put again", backend.put(&block(1, 1000)).await)?;
    let after = done("it tells its usage", backend.usage().await)?;
    if let (Some(before), Some(after)) = (before.used_bytes, after.used_bytes) {
        hold("a block counts once", (1000..2000).contains(&(after - before)), (before, after))?;
    }
    let listed = done("names can be listed", backend.names("").await)?;
    equal("blocks are no names", &listed, &Vec::new())
}
