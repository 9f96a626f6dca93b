//! Repacking: packs that are mostly dead, or small, give way to full ones.
//!
//! What is written anew is named `retired` by the head before it is there, and counts from
//! the moment at which the head names the old packs instead: blocks that died meanwhile die
//! in the new packs with that same change. A crash anywhere leaves retired packs, which
//! count for nothing and are deleted later.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::head::Positions;
use super::label::{BLOCKS_MAX, Label, Read, Sealed};
use super::{Form, Known, PackBackend, TRIES, now};
use crate::backends::{Backend, BackendError};
use crate::types::Block;

/// Readers have the old index for so long.
const READERS_S: i64 = 3600;
/// Packs of less than this part of a full one are merged, when there are more than a few.
const SMALL: u64 = 8;
const FEW: usize = 16;
/// So many at a time at most.
const TOGETHER: usize = 64;

/// A block that moves: from where, and to which position of which new pack.
struct Moved {
    from: (String, u32),
    block: Block,
}

/// Packs in groups whose living bytes make about one full pack.
struct Groups {
    target: u64,
    bytes: u64,
    all: Vec<Vec<String>>,
}

impl Groups {
    fn new(target: u64) -> Self {
        Self { target, bytes: 0, all: Vec::new() }
    }

    fn add(&mut self, name: String, bytes: u64) {
        match self.all.last_mut() {
            Some(group) if group.len() < TOGETHER && self.bytes + bytes <= self.target => {
                self.bytes += bytes;
                group.push(name);
            }
            _ => {
                self.bytes = bytes;
                self.all.push(vec![name]);
            }
        }
    }
}

impl PackBackend {
    /// Deletes what was retired an hour ago, and repacks one group of those that are worth
    /// it; whether there are others.
    pub(super) async fn compact_some(&self) -> Result<bool, BackendError> {
        self.ready().await?;
        self.refresh(true).await?;
        let deleted = self.delete_retired().await?;
        let groups = self.groups().await?;
        for (n, group) in groups.iter().enumerate() {
            let (retired, written) = self.repack(group).await?;
            // A group that cannot be read stays.
            if retired > 0 {
                let backend = self.location();
                tracing::info!(backend, deleted, retired, written, "packs are repacked");
                return Ok(n + 1 < groups.len());
            }
        }
        Ok(false)
    }

    /// Packs that the head gave up long ago go; those that a listing does not show leave
    /// the head.
    async fn delete_retired(&self) -> Result<u64, BackendError> {
        let Known { head, .. } = self.look_at_head().await?;
        let due = now().seconds - READERS_S;
        let old: Vec<String> =
            head.retired.iter().filter(|(_, at)| **at <= due).map(|(n, _)| n.clone()).collect();
        if old.is_empty() {
            return Ok(0);
        }
        self.shelf.delete(&old).await?;
        self.forget(old.iter().map(String::as_str));
        for _ in 0..TRIES {
            let known = self.look_at_head().await?;
            let leave = |head: &mut super::Head| {
                old.iter().for_each(|name| {
                    head.retired.remove(name);
                });
            };
            if self.change(known, Positions::new(), leave).await? {
                return Ok(old.len() as u64);
            }
        }
        Err(self.contended())
    }

    /// Packs that are repacked together: mostly dead ones, whose blocks fill a new pack,
    /// and small ones.
    async fn groups(&self) -> Result<Vec<Vec<String>>, BackendError> {
        let Known { head, dead, .. } = self.look_at_head().await?;
        let target = self.limits.pack as u64;
        let (mut worn, mut small) = (Groups::new(target), Groups::new(target));
        for (name, bytes) in self.index.sizes() {
            if head.retired.contains_key(&name) {
                continue;
            }
            let rows = self.index.rows(&name) as u64;
            let gone = dead.get(&name).map_or(0, BTreeSet::len) as u64;
            if gone * 2 > rows {
                worn.add(name, bytes / rows.max(1) * rows.saturating_sub(gone));
            } else if bytes < target / SMALL && rows * 2 < BLOCKS_MAX as u64 {
                small.add(name, bytes);
            }
        }
        // A few small ones more or less are not worth it.
        let small = small.all.into_iter().filter(|group| group.len() >= FEW);
        Ok(worn.all.into_iter().chain(small).collect())
    }

    /// A pack, every living block hashed; `None` when it is not what it was.
    async fn read_pack(
        &self,
        name: &str,
        dead: Option<&BTreeSet<u32>>,
    ) -> Result<Option<Vec<Moved>>, BackendError> {
        let Some(bytes) = self.shelf.read(name, None).await? else { return Ok(None) };
        let form = Form::of(name);
        let label: Label = match form.read_label(&bytes, bytes.len() as u64) {
            Ok(Read::Whole(label)) => label,
            _ => form.scan(self.id, &bytes),
        };
        let mut moved = Vec::new();
        for (position, row) in (0u32..).zip(&label.rows) {
            if dead.is_some_and(|dead| dead.contains(&position)) {
                continue;
            }
            let whole = 0..u64::from(row.len);
            let at = form.range((row.offset, row.len), &whole);
            let (start, end) = (at.start.min(bytes.len() as u64), at.end.min(bytes.len() as u64));
            let read = bytes.slice(start as usize..end as usize);
            let data = form.data(read, (&row.cid, row.len), &whole);
            // A copy: a slice would keep what is dead in memory, too.
            let data = data.map(|data| Bytes::copy_from_slice(&data));
            let block = data.map(|data| Block { cid: row.cid, data });
            let Some(block) = block.ok().filter(Block::is_intact) else {
                // Whoever reads it is told, and brings it anew elsewhere.
                tracing::warn!(pack = name, cid = %row.cid, "a pack with a bad block stays");
                return Ok(None);
            };
            moved.push(Moved { from: (name.to_owned(), position), block });
        }
        Ok(Some(moved))
    }

    /// Writes the living blocks of these packs into new ones, which take their place.
    async fn repack(&self, group: &[String]) -> Result<(u64, u64), BackendError> {
        let Known { dead, .. } = self.look_at_head().await?;
        let (mut old, mut moved): (Vec<String>, Vec<Moved>) = (Vec::new(), Vec::new());
        for name in group {
            if let Some(blocks) = self.read_pack(name, dead.get(name)).await? {
                old.push(name.clone());
                moved.extend(blocks);
            }
        }
        if old.is_empty() {
            return Ok((0, 0));
        }
        // Who makes no new ones leaves a place as it is.
        let form = match self.limits.block {
            Some(_) => self.limits.form,
            None => Form::of(&old[0]),
        };
        let (packs, places) = self.seal_all(form, moved).await?;
        let names: Vec<&String> = packs.iter().map(|(name, _)| name).collect();
        if names.iter().any(|name| old.contains(name)) {
            return Ok((0, 0));
        }
        // They count for nothing before they are whole, and before they may count.
        self.edit(|head| {
            names.iter().for_each(|name| {
                head.retired.insert((*name).clone(), now().seconds);
            });
        })
        .await?;
        for (name, sealed) in &packs {
            self.shelf.put(name, sealed.bytes.clone()).await?;
        }
        for _ in 0..TRIES {
            let known = self.look_at_head().await?;
            if !names.iter().all(|name| known.head.retired.contains_key(*name)) {
                // Another one took them for what a crash left.
                return Ok((0, 0));
            }
            let mut more = Positions::new();
            for (from, (name, position)) in &places {
                if known.dead.get(&from.0).is_some_and(|dead| dead.contains(&from.1)) {
                    more.entry(name.clone()).or_default().insert(*position);
                }
            }
            // Known before they count: what lives is found from that moment on.
            for (name, sealed) in &packs {
                self.learn(name, sealed);
            }
            let take_place = |head: &mut super::Head| {
                for name in &names {
                    head.retired.remove(*name);
                }
                head.retired.extend(old.iter().map(|name| (name.clone(), now().seconds)));
            };
            if self.change(known, more, take_place).await? {
                return Ok((old.len() as u64, packs.len() as u64));
            }
        }
        Err(self.contended())
    }

    /// Full packs of these blocks, each block once; where each went.
    #[expect(clippy::type_complexity, reason = "from and to, of each block")]
    async fn seal_all(
        &self,
        form: Form,
        moved: Vec<Moved>,
    ) -> Result<(Vec<(String, Sealed)>, Vec<((String, u32), (String, u32))>), BackendError> {
        let mut first: BTreeMap<Vec<u8>, (usize, u32)> = BTreeMap::new();
        let (mut parts, mut froms): (Vec<Vec<Block>>, Vec<((String, u32), (usize, u32))>) =
            (Vec::new(), Vec::new());
        let mut bytes = 0;
        for Moved { from, block } in moved {
            if let Some(to) = first.get(&block.cid.to_bytes()) {
                froms.push((from, *to));
                continue;
            }
            let full = bytes + block.data.len() > self.limits.pack;
            if parts.last().is_none_or(|part| full || part.len() == BLOCKS_MAX) {
                parts.push(Vec::new());
                bytes = 0;
            }
            bytes += block.data.len();
            let number = parts.len() - 1;
            let to = (number, parts[number].len() as u32);
            first.insert(block.cid.to_bytes(), to);
            froms.push((from, to));
            parts[number].push(block);
        }
        let mut packs = Vec::with_capacity(parts.len());
        for part in parts {
            packs.push(self.seal(form, part).await?);
        }
        let named = |(number, position): (usize, u32)| (packs[number].0.clone(), position);
        let places = froms.into_iter().map(|(from, to)| (from, named(to))).collect();
        Ok((packs, places))
    }

    /// Changes the head, as often as others come before.
    async fn edit(&self, edit: impl Fn(&mut super::Head)) -> Result<(), BackendError> {
        for _ in 0..TRIES {
            let known = self.look_at_head().await?;
            if self.change(known, Positions::new(), &edit).await? {
                return Ok(());
            }
        }
        Err(self.contended())
    }
}
