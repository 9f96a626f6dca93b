//! The deletions of a pass: parents first, in batches, each asked for anew.

use std::collections::{HashMap, HashSet};

use super::condemned::{Condemned, MOST};
use super::{Collected, Mark, Pass};
use crate::backends::Layout;
use crate::content::{inline_block, parse_node};
use crate::metadata::{ContentRecord, CopyRecord, CopyState};
use crate::replication::ReplicationError;
use crate::runtime::failpoint;
use crate::types::{Cid, cid};

/// Blocks of one batch: where they share objects, each batch is some requests whatever its
/// length.
const BATCH: usize = 128;
const BATCH_OF_PACKS: usize = 2048;

pub(super) struct Sweep<'s> {
    pub pass: &'s Pass<'s>,
    pub mark: &'s mut Mark,
}

impl Sweep<'_> {
    /// Copies that were given up: where as much as the policy asks for is proven
    /// elsewhere, their blocks that nothing else needs go at once. The others are
    /// marked before any goes.
    pub fn released(
        &mut self,
        contents: &[(Cid, ContentRecord)],
        report: &mut Collected,
    ) -> Result<(), ReplicationError> {
        let pass = self.pass;
        let mut due = Vec::new();
        for (root, record) in contents {
            if pass.may_collect(root)? {
                due.push(root);
            } else {
                pass.mark_content(self.mark, root)?;
                pass.core.machine.prove_others(root, record);
                report.waiting_copies += 1;
            }
        }
        for root in due {
            let blocks = self.blocks_of(root)?;
            let left = self.delete(blocks, Some(root), report)?;
            if !left.is_empty() || self.pass.tracker.is_touched(root) {
                report.waiting_copies += 1;
                continue;
            }
            pass.core.namespace.update_contents(&[*root], &mut |_, record, _| {
                let gone = |copy: &CopyRecord| {
                    copy.backend == *pass.id && copy.state == CopyState::Released
                };
                record.copies.retain(|copy| !gone(copy));
            })?;
            report.released_copies += 1;
        }
        Ok(())
    }

    /// The blocks of a content, nodes first; of a very large one all nodes and as
    /// many leaves as one pass takes up: the others have no parent then, and are
    /// found by a listing.
    fn blocks_of(&self, root: &Cid) -> Result<Vec<Condemned>, ReplicationError> {
        let (mut nodes, mut leaves, mut met) = (Vec::new(), Vec::new(), HashSet::new());
        let mut stack = vec![*root];
        while let Some(id) = stack.pop() {
            let leaf = id.codec() != cid::DAG_PB;
            if inline_block(&id).is_some() || (leaf && leaves.len() >= MOST) || !met.insert(id) {
                continue;
            }
            let block = Condemned { cid: id, bytes: 0, since_s: 0 };
            if leaf {
                leaves.push(block);
                continue;
            }
            nodes.push(block);
            let data = self.pass.core.fetcher.block(&id)?;
            stack.extend(parse_node(&id, &data)?.children());
        }
        nodes.extend(leaves);
        Ok(nodes)
    }

    /// Deletes blocks, nodes before what they link to. Comes back with those that
    /// stay: they were asked for, or are needed again. `released`: they are of a
    /// content whose copy there was given up.
    pub fn delete(
        &mut self,
        blocks: Vec<Condemned>,
        released: Option<&Cid>,
        report: &mut Collected,
    ) -> Result<Vec<Condemned>, ReplicationError> {
        let (nodes, leaves): (Vec<_>, Vec<_>) =
            blocks.into_iter().partition(|block| block.cid.codec() == cid::DAG_PB);
        let mut left = Vec::new();
        let order = self.parents_first(nodes)?;
        let most = match self.pass.backend.capabilities().layout {
            Layout::Blocks => BATCH,
            Layout::Packs => BATCH_OF_PACKS,
        };
        for generation in order.iter().map(Vec::as_slice).chain(std::iter::once(&leaves[..])) {
            for batch in generation.chunks(most) {
                left.extend(self.batch(batch, released, report)?);
            }
        }
        report.kept_blocks += left.len() as u64;
        Ok(left)
    }

    /// Nodes in generations: none links to one of an earlier generation, or of its
    /// own. One that cannot be read holds nothing up.
    fn parents_first(
        &self,
        nodes: Vec<Condemned>,
    ) -> Result<Vec<Vec<Condemned>>, ReplicationError> {
        let among: HashSet<Cid> = nodes.iter().map(|node| node.cid).collect();
        let mut children: HashMap<Cid, Vec<Cid>> = HashMap::new();
        let mut parents: HashMap<Cid, usize> = HashMap::new();
        for node in &nodes {
            self.pass.check_running()?;
            let below: HashSet<Cid> = self.pass.links(&node.cid)?.into_iter().collect();
            let below: Vec<Cid> = below.into_iter().filter(|id| among.contains(id)).collect();
            for child in &below {
                *parents.entry(*child).or_default() += 1;
            }
            children.insert(node.cid, below);
        }
        let mut rest: HashMap<Cid, Condemned> =
            nodes.into_iter().map(|node| (node.cid, node)).collect();
        let mut next: Vec<Cid> =
            rest.keys().filter(|id| !parents.contains_key(id)).copied().collect();
        let mut order = Vec::new();
        while !next.is_empty() {
            let mut after = Vec::new();
            for id in &next {
                for child in children.remove(id).unwrap_or_default() {
                    if let Some(count) = parents.get_mut(&child) {
                        *count -= 1;
                        if *count == 0 {
                            after.push(child);
                        }
                    }
                }
            }
            order.push(next.iter().filter_map(|id| rest.remove(id)).collect());
            next = after;
        }
        // Hashes make no circles: nothing is left in `rest`.
        Ok(order)
    }

    fn batch(
        &mut self,
        batch: &[Condemned],
        released: Option<&Cid>,
        report: &mut Collected,
    ) -> Result<Vec<Condemned>, ReplicationError> {
        let pass = self.pass;
        pass.hold()?;
        // What others need stays; so does all when the proof does not hold any more.
        let proven = match released {
            Some(root) => pass.may_collect(root)?,
            None => true,
        };
        let (mut due, mut changed) = (Vec::new(), false);
        for block in batch {
            if !self.mark.contains(&block.cid)
                && proven
                && self.may_go(&block.cid, released, &mut changed)?
            {
                due.push(block.cid);
            }
        }
        if changed {
            // A row that names a copy must not come back after its blocks went.
            pass.core.namespace.engine().persist()?;
        }
        failpoint::reach("collect.rows");
        let gone: HashSet<Cid> = if due.is_empty() {
            HashSet::new()
        } else {
            let deleted = self.pass.tracker.delete(pass.backend.as_ref(), &due);
            pass.core.calls.wait(deleted)?.into_iter().collect()
        };
        failpoint::reach("collect.deleted");
        let (mut left, mut of_others) = (Vec::new(), 0);
        for block in batch {
            if gone.contains(&block.cid) {
                report.deleted_blocks += 1;
                report.deleted_bytes += block.bytes;
            } else if released.is_some() && self.mark.contains(&block.cid) {
                of_others += 1;
            } else {
                self.keep(&block.cid)?;
                left.push(*block);
            }
        }
        tracing::debug!(backend = %pass.id, gone = gone.len(), left = left.len(), of_others, "collected");
        Ok(left)
    }

    /// All below a node that stays is needed, too.
    pub fn keep(&mut self, id: &Cid) -> Result<(), ReplicationError> {
        self.pass.keep(self.mark, id)
    }

    /// Whether no content is the reason to keep a block. A content that nobody has
    /// loses its copy there first, in a transaction.
    fn may_go(
        &self,
        id: &Cid,
        released: Option<&Cid>,
        changed: &mut bool,
    ) -> Result<bool, ReplicationError> {
        let (namespace, place) = (&self.pass.core.namespace, self.pass.id);
        let Some(record) = namespace.content(id)? else { return Ok(true) };
        if record.refs > 0 {
            return Ok(released == Some(id));
        }
        let mut go = true;
        let held =
            |copy: &&mut CopyRecord| copy.backend == *place && copy.state != CopyState::Released;
        namespace.update_contents(&[*id], &mut |_, record, _| {
            go = record.refs == 0;
            if go && let Some(copy) = record.copies.iter_mut().find(held) {
                copy.state = CopyState::Released;
                *changed = true;
            }
        })?;
        Ok(go)
    }
}
