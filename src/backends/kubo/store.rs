//! Blocks: put, looked for, deleted.
//!
//! A block is there when Kubo has its bytes *and* our holder is pinned: bytes that
//! nothing of ours holds may be gone after the next collection.

use std::collections::{HashMap, HashSet};

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use serde::Deserialize;

use super::KuboBackend;
use super::car::form;
use super::error::{is_absent, is_not_pinned, of_message};
use super::holder::raw;
use super::listing::{Named, Pinned};
use crate::backends::{BackendError, ErrorKind, Presence, check};
use crate::content::parse_node;
use crate::types::{Block, Cid, cid};

/// Small requests at the same time.
const AT_ONCE: usize = 16;

/// A line of the answer to `dag/import`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Imported {
    root: Option<Root>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Root {
    cid: Link,
    #[serde(default)]
    pin_error_msg: String,
}

#[derive(Deserialize)]
struct Link {
    #[serde(rename = "/")]
    text: String,
}

/// Blocks in generations: each links to none of its own generation or a later one. Raw
/// blocks, which link to nothing, are the first.
pub(in crate::backends) fn generations(blocks: &[Block]) -> Vec<Vec<&Block>> {
    let mut of: HashMap<Cid, usize> = HashMap::new();
    let mut all: Vec<Vec<&Block>> = Vec::new();
    for block in blocks {
        let id = raw(&block.cid);
        let number = if block.cid.codec() == cid::RAW {
            0
        } else {
            let children = parse_node(&block.cid, &block.data).map(|node| node.children());
            match children {
                Ok(children) => children
                    .iter()
                    .filter_map(|child| of.get(&raw(child)))
                    .map(|number| number + 1)
                    .max()
                    .unwrap_or(1)
                    .max(1),
                // What it links to is not known: after all before it.
                Err(_) => all.len().max(1),
            }
        };
        of.entry(id).and_modify(|known| *known = number.max(*known)).or_insert(number);
        if all.len() <= number {
            all.resize_with(number + 1, Vec::new);
        }
        all[number].push(block);
    }
    all
}

impl KuboBackend {
    async fn is_held(&self, holder: &Cid) -> Result<bool, BackendError> {
        let argument = holder.to_string();
        let arguments = [("arg", argument.as_str()), ("type", "recursive")];
        match self.rpc.send("pin/ls", &arguments, None).await {
            Ok(answer) => answer.whole(1 << 16).await.map(|_| true),
            Err(error) if is_not_pinned(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn presence_of(&self, id: &Cid) -> Result<Presence, BackendError> {
        let says_nothing =
            |error: &BackendError| matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Invalid);
        let mut found = self.held_length(id).await;
        if found.as_ref().is_err_and(says_nothing) {
            // An answer that broke off comes whole the second time.
            found = self.held_length(id).await;
        }
        match found {
            Ok(found) => Ok(found.map_or(Presence::Absent, Presence::Present)),
            // It lies there, and wrong: whoever reads it is told.
            Err(error) if says_nothing(&error) => {
                tracing::debug!(%error, %id, "presence is unknown");
                Ok(Presence::Unknown)
            }
            Err(error) => Err(error),
        }
    }

    /// The length of a block that is there and held.
    async fn held_length(&self, id: &Cid) -> Result<Option<u64>, BackendError> {
        let Some(len) = self.rpc.length(id).await? else { return Ok(None) };
        let held = self.is_held(&self.holders.of(id, len)?).await?;
        Ok(held.then_some(len))
    }

    pub(super) async fn look(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let looks: Vec<_> = cids.iter().map(|id| self.presence_of(id)).collect();
        iter(looks).buffered(AT_ONCE).try_collect().await
    }

    /// Stores blocks. `dag/import` and not `block/put`: one request a batch; Kubo hashes
    /// each block, and takes one lock of its collector from before the first byte until
    /// the last holder is pinned, so there is no moment at which a block is there and may
    /// be collected. It pins in any order, so nodes go after what they link to is pinned.
    pub(super) async fn put_all(&self, blocks: &[Block]) -> Result<(), BackendError> {
        blocks.iter().try_for_each(check::block)?;
        for generation in generations(blocks) {
            let mut seen = HashSet::new();
            let looks: Vec<_> = generation
                .into_iter()
                .filter(|block| seen.insert(block.cid))
                .map(|block| self.is_due(block))
                .collect();
            let due: Vec<Option<&Block>> = iter(looks).buffered(AT_ONCE).try_collect().await?;
            let due: Vec<&Block> = due.into_iter().flatten().collect();
            if !due.is_empty() {
                self.refuse_beyond_capacity(&due).await?;
                self.import(&due).await?;
            }
        }
        Ok(())
    }

    /// The block, unless it is there. A pin is not made again: Kubo takes the old one away
    /// first, and a crash in between would leave what others count on without one.
    async fn is_due<'b>(&self, block: &'b Block) -> Result<Option<&'b Block>, BackendError> {
        let len = block.data.len() as u64;
        let found = match self.rpc.length(&block.cid).await {
            Ok(None) => return Ok(Some(block)),
            Ok(Some(found)) => Some(found),
            Err(error) if error.kind == ErrorKind::Corrupt => None,
            Err(error) => return Err(error),
        };
        if found == Some(len) && self.is_held(&self.holders.of(&block.cid, len)?).await? {
            return Ok(None);
        }
        // Bytes that others brought, or that we gave up.
        self.rpc.make_way_for(block).await?;
        Ok(Some(block))
    }

    async fn import(&self, blocks: &[&Block]) -> Result<(), BackendError> {
        let holder = |block: &&Block| self.holders.of(&block.cid, block.data.len() as u64);
        let holders = blocks.iter().map(holder).collect::<Result<Vec<Cid>, _>>()?;
        let arguments = [
            ("pin-roots", "true"),
            ("stats", "false"),
            ("fast-provide-root", "false"),
            ("fast-provide-dag", "false"),
        ];
        let body = form(&holders, blocks)
            .map_err(|error| BackendError::new(ErrorKind::Other, error.to_string()))?;
        let mut answer = self.rpc.send("dag/import", &arguments, Some(body)).await?;
        let mut waited: HashSet<Cid> = holders.into_iter().collect();
        while let Some(line) = answer.line::<Imported>().await? {
            let Some(root) = line.root else { continue };
            if !root.pin_error_msg.is_empty() {
                let error = of_message(self.rpc.at(), &root.pin_error_msg);
                // A block that is not there at once after it was written is no `NotFound`.
                let kind = if is_absent(&error) { ErrorKind::Other } else { error.kind };
                let message = format!("{} (a block was not pinned)", error.message);
                return Err(BackendError::new(kind, message));
            }
            if let Ok(id) = root.cid.text.parse::<Cid>() {
                waited.remove(&id);
            }
        }
        if waited.is_empty() {
            return Ok(());
        }
        let message =
            format!("{} did not say that {} blocks are pinned", self.rpc.at(), waited.len());
        Err(BackendError::new(ErrorKind::Other, message))
    }

    /// Ends the pins of blocks: Kubo's own collection takes their bytes, unless something
    /// else of its user's needs them. Not `block/rm`: that looks at pins under this very
    /// CID, and not at all at files of MFS.
    pub(super) async fn delete_all(&self, cids: &[Cid]) -> Result<(), BackendError> {
        let mut seen = HashSet::new();
        let new = cids.iter().filter(|id| seen.insert(**id));
        let ends: Vec<_> = new.map(|id| self.let_go(id)).collect();
        let left: Vec<Option<Cid>> = iter(ends).buffered(AT_ONCE).try_collect().await?;
        let left: HashSet<Cid> = left.into_iter().flatten().collect();
        if left.is_empty() {
            return Ok(());
        }
        // Bytes that are gone or wrong do not tell the length, so their pins are looked for.
        let mut pins = self.pins().await?;
        while let Some((holder, id, _)) = pins.next(&self.holders).await? {
            if left.contains(&id) {
                self.unpin(&holder).await?;
            }
        }
        Ok(())
    }

    /// Ends the pin of a block; comes back with its CID when its pin has to be looked for.
    async fn let_go(&self, id: &Cid) -> Result<Option<Cid>, BackendError> {
        let len = match self.rpc.length(id).await {
            Ok(Some(len)) => len,
            Ok(None) => return Ok(Some(*id)),
            Err(error) if error.kind == ErrorKind::Corrupt => return Ok(Some(*id)),
            Err(error) => return Err(error),
        };
        if self.unpin(&self.holders.of(id, len)?).await? {
            return Ok(None);
        }
        match self.rpc.bytes(id).await {
            // Whole, and not held.
            Ok(bytes) if cid::verify(id, &bytes) == cid::Verdict::Match => Ok(None),
            Ok(_) => Ok(Some(*id)),
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => {
                Ok(Some(*id))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::content::{Profile, import_file};

    #[test]
    fn nodes_come_in_generations_after_what_they_link_to() {
        let mut blocks = Vec::new();
        let profile = Profile::UNIXFS_V1_2025;
        for seed in 0..3u8 {
            let mut data = std::io::Cursor::new(vec![seed; (2 << 20) + 7]);
            let take = &mut |cid, data| {
                blocks.push(Block { cid, data });
                Ok(())
            };
            import_file(&profile, &mut data, take).unwrap();
        }
        let odd = Bytes::from_static(b"not a node");
        blocks.push(Block { cid: cid::of_dag_pb(&odd), data: odd });
        let all = generations(&blocks);
        let counts: Vec<usize> = all.iter().map(Vec::len).collect();
        // Two leaves that are the same come from each file twice.
        assert_eq!(counts[1..], [3, 1], "{counts:?}");
        assert!(all[0].iter().all(|block| block.cid.codec() == cid::RAW));
        assert_eq!(counts.iter().sum::<usize>(), blocks.len());
        assert!(generations(&[]).is_empty());
    }
}
