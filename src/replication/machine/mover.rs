//! Carries wishes out that copies move: finds the contents, a window of them at a time,
//! and tells when nothing is left to move. The planner does the rest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::moves::{Moves, Stage, WINDOW};
use super::places::Standing;
use super::planner::{Content, Moment};
use super::time::since;
use super::{Machine, Places};
use crate::metadata::{ContentRecord, MetadataError, MoveKind, MoveRecord, PinState};
use crate::types::{BackendId, Cid, Timestamp};

/// Contents of a page.
const PAGE: usize = 1024;
/// Pages of one step.
const PAGES: usize = 32;
/// When all that is left waits for a place, it is looked at again after this long.
const REST: Duration = Duration::from_secs(10);
/// Wishes that ended and are remembered.
const ENDED: usize = 16;
/// A place is fuller than others when this part of its room more is taken, in percent.
const UNEVEN: u64 = 5;

/// What a look for copies to move found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MoveReport {
    /// Contents to be moved, and their bytes.
    pub contents: u64,
    /// Bytes.
    pub bytes: u64,
    /// Contents that are not moved, by reason.
    pub stays: BTreeMap<&'static str, u64>,
    /// Contents that cannot be moved now, by reason.
    pub waits: BTreeMap<&'static str, u64>,
    /// Nothing is left to be moved.
    pub finished: bool,
}

/// A wish that is being carried out.
#[derive(Debug, Clone)]
pub(super) struct Active {
    record: MoveRecord,
    /// The look at all contents under way.
    after: Option<Cid>,
    running: bool,
    added: u64,
    now: MoveReport,
    last: MoveReport,
    rested: Option<Timestamp>,
    levels: Vec<Level>,
}

impl Active {
    fn new(record: MoveRecord) -> Self {
        Self {
            record,
            after: None,
            running: false,
            added: 0,
            now: MoveReport::default(),
            last: MoveReport::default(),
            rested: None,
            levels: Vec::new(),
        }
    }
}

/// How full a place is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Level {
    id: BackendId,
    /// Bytes that should leave, or come.
    excess: u64,
    deficit: u64,
}

/// Places that are fuller or emptier than others of their tier, by the part of their
/// room that is taken.
fn levels(places: &Places, held: &BTreeMap<BackendId, (u64, u64)>) -> Vec<Level> {
    let mut tiers: BTreeMap<Option<&str>, Vec<(&BackendId, u128, u128)>> = BTreeMap::new();
    for place in &places.all {
        if place.id.is_local() || !place.available || place.draining || !place.durable {
            continue;
        }
        let ours = held.get(&place.id).map_or(0, |(_, bytes)| *bytes);
        if let Some(room) = place.room.filter(|room| *room > 0) {
            let of_tier = tiers.entry(place.settings.tier.as_deref()).or_default();
            of_tier.push((&place.id, ours.into(), room.into()));
        }
    }
    let mut levels = Vec::new();
    for of_tier in tiers.into_values() {
        let ours: u128 = of_tier.iter().map(|(_, ours, _)| ours).sum();
        let room: u128 = of_tier.iter().map(|(.., room)| room).sum();
        let share = |of: u128| of.saturating_mul(ours) / room.max(1);
        let margin = |of: u128| of.saturating_mul(UNEVEN.into()) / 100;
        let uneven = of_tier.iter().any(|(_, ours, room)| *ours > share(*room) + margin(*room));
        if !uneven {
            continue;
        }
        for (id, ours, room) in of_tier {
            let bytes = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
            levels.push(Level {
                id: id.clone(),
                excess: bytes(ours.saturating_sub(share(room))),
                deficit: bytes(share(room).saturating_sub(ours)),
            });
        }
    }
    levels
}

impl Machine {
    /// Takes up the wishes of earlier lives.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn load_moves(&self) -> Result<(), MetadataError> {
        let rows = self.namespace.move_records()?;
        let mut moving = self.moving.lock();
        *moving = rows.into_iter().map(|(number, row)| (number, Active::new(row))).collect();
        self.set_pairs(&moving);
        Ok(())
    }

    fn set_pairs(&self, moving: &BTreeMap<u32, Active>) {
        let whole = moving.values().filter(|one| one.record.below.is_none());
        let pairs = whole.filter_map(|one| one.record.from.clone().zip(one.record.to.clone()));
        self.fleet.write().change_moves(|moves| moves.set_pairs(pairs.collect()));
    }

    /// The wishes, and what the last look at each found.
    #[must_use]
    pub fn moves(&self) -> Vec<(u32, MoveRecord, MoveReport)> {
        let moving = self.moving.lock();
        moving.iter().map(|(n, one)| (*n, one.record.clone(), one.last.clone())).collect()
    }

    /// What became of a wish that ended a while ago.
    #[must_use]
    pub fn ended_move(&self, number: u32) -> Option<(MoveRecord, MoveReport)> {
        self.ended.lock().get(&number).cloned()
    }

    /// A wish, durable when the engine's log is. Gives its number.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn begin_move(&self, record: &MoveRecord) -> Result<u32, MetadataError> {
        let _step = self.stepping.lock();
        let mut moving = self.moving.lock();
        // Who waits for one that ended must not meet another.
        let last = moving.last_key_value().map(|(last, _)| *last);
        let ended = self.ended.lock().last_key_value().map(|(last, _)| *last);
        let number = last.max(ended).map_or(1, |last| last.saturating_add(1));
        self.namespace.set_move(number, Some(record))?;
        moving.insert(number, Active::new(record.clone()));
        self.set_pairs(&moving);
        Ok(number)
    }

    /// It is done, or not wished any more: what is under way stays where it is.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn end_move(&self, number: u32) -> Result<(), MetadataError> {
        let _step = self.stepping.lock();
        let mut moving = self.moving.lock();
        self.namespace.set_move(number, None)?;
        let Some(ended) = moving.remove(&number) else { return Ok(()) };
        self.set_pairs(&moving);
        {
            let mut kept = self.ended.lock();
            kept.insert(number, (ended.record.clone(), ended.last.clone()));
            while kept.len() > ENDED {
                kept.pop_first();
            }
        }
        if ended.record.kind == MoveKind::Replace {
            return Ok(());
        }
        let dropped: Vec<Cid> = self.fleet.read().moves().contents().copied().collect();
        self.fleet.write().change_moves(|moves| dropped.iter().for_each(|root| moves.drop(root)));
        drop(moving);
        self.settle_all(&dropped)
    }

    /// What a wish would move. Changes nothing.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn survey_move(&self, record: &MoveRecord) -> Result<MoveReport, MetadataError> {
        let places = self.places();
        let (mut one, moment) = (Active::new(record.clone()), self.moment(&places));
        one.levels = levels(&places, &self.namespace.stats().backends);
        self.each_of(record, &mut None, usize::MAX, &mut |root, content| {
            self.consider(&mut one, root, content, &moment);
            true
        })?;
        Ok(one.now)
    }

    /// A step of each wish: what is done leaves the window, and others come in.
    ///
    /// # Errors
    /// Of the metadata; the step is repeated then.
    pub fn move_some(&self) -> Result<Vec<(u32, MoveRecord, MoveReport)>, MetadataError> {
        let _step = self.stepping.lock();
        let numbers: Vec<u32> = self.moving.lock().keys().copied().collect();
        let mut reports = Vec::new();
        for number in numbers {
            let Some(mut one) = self.moving.lock().get(&number).cloned() else { continue };
            let before = one.record.clone();
            match one.record.kind {
                MoveKind::Replace => self.replace_some(&mut one)?,
                MoveKind::Migrate | MoveKind::Rebalance => self.fill(&mut one)?,
            }
            reports.push((number, one.record.clone(), one.last.clone()));
            let mut moving = self.moving.lock();
            let Some(known) = moving.get_mut(&number) else { continue };
            if before != one.record {
                self.namespace.set_move(number, Some(&one.record))?;
            }
            *known = one;
        }
        Ok(reports)
    }

    /// Visits contents from `after` on, in the scope of a wish; false stops. `after` is
    /// `None` when all were visited.
    fn each_of(
        &self,
        record: &MoveRecord,
        after: &mut Option<Cid>,
        pages: usize,
        visit: &mut dyn FnMut(&Cid, &ContentRecord) -> bool,
    ) -> Result<bool, MetadataError> {
        if let Some(top) = record.below {
            let mut failure = None;
            let whole = self.namespace.each_file(top, &mut |_, root| {
                let go_on = match self.namespace.content(root) {
                    Ok(Some(content)) => visit(root, &content),
                    Ok(None) => true,
                    Err(error) => {
                        failure = Some(error);
                        false
                    }
                };
                if go_on && !self.is_stopped() {
                    std::ops::ControlFlow::Continue(())
                } else {
                    std::ops::ControlFlow::Break(())
                }
            })?;
            return failure.map_or(Ok(whole), Err);
        }
        for _ in 0..pages {
            let page = self.namespace.contents_page(after.as_ref(), PAGE)?;
            if page.is_empty() {
                *after = None;
                return Ok(true);
            }
            for (root, content) in &page {
                if content.refs > 0 && !visit(root, content) {
                    return Ok(false);
                }
                *after = Some(*root);
            }
            if self.is_stopped() {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// From where to where a content is to move, if it is to be moved now.
    fn consider(
        &self,
        one: &mut Active,
        root: &Cid,
        record: &ContentRecord,
        moment: &Moment<'_>,
    ) -> Option<(BackendId, BackendId)> {
        let policy = self.policy_of(record);
        let content = Content { root, record, policy: &policy };
        let (way, stage) = match (&one.record.from, &one.record.to) {
            (Some(from), Some(to)) => ((from.clone(), to.clone()), content.stage(from, to, moment)),
            _ => balance(&mut one.levels, &content, moment)?,
        };
        match stage {
            Stage::Done => return None,
            Stage::Stays(why) => {
                *one.now.stays.entry(why).or_default() += 1;
                return None;
            }
            Stage::Waits(why) => {
                *one.now.waits.entry(why).or_default() += 1;
                return None;
            }
            Stage::Send | Stage::Leave => {}
        }
        one.now.contents += 1;
        one.now.bytes = one.now.bytes.saturating_add(record.size);
        Some(way)
    }

    fn fill(&self, one: &mut Active) -> Result<(), MetadataError> {
        let places = self.places();
        let moment = self.moment(&places);
        let mut moves = Moves::clone(&places.moves);
        let mut changed = self.prune(one, &mut moves, &moment)?;
        let now = self.clock.now();
        let rests = one.rested.is_some_and(|at| at <= now && since(at, now) < REST);
        if !one.running && moves.is_empty() && !rests {
            one.running = true;
            (one.after, one.added, one.now) = (None, 0, MoveReport::default());
            one.levels = levels(&places, &self.namespace.stats().backends);
        }
        if one.running && moves.len() < WINDOW / 2 {
            let (mut after, mut added) = (one.after, Vec::new());
            let record = one.record.clone();
            let whole = self.each_of(&record, &mut after, PAGES, &mut |root, content| {
                if moves.of(root).is_some() {
                    return true;
                }
                let Some((from, to)) = self.consider(one, root, content, &moment) else {
                    return true;
                };
                if !moves.add(*root, &from, &to) {
                    return false;
                }
                added.push(*root);
                true
            })?;
            one.after = after;
            one.added += added.len() as u64;
            changed.extend(added);
            // A walk of the tree begins at its top again.
            if whole || record.below.is_some() {
                one.running = false;
                let idle = one.now.waits.is_empty() && whole;
                one.now.finished = one.added == 0 && moves.is_empty() && idle;
                one.rested = (one.added == 0).then_some(now);
            }
            one.last = one.now.clone();
        }
        if !changed.is_empty() {
            self.fleet.write().change_moves(|kept| *kept = moves);
            self.settle_all(&changed)?;
            self.lanes.lock().request_scan(false);
        }
        Ok(())
    }

    /// What is done, or is to stay, leaves the window.
    fn prune(
        &self,
        one: &mut Active,
        moves: &mut Moves,
        moment: &Moment<'_>,
    ) -> Result<Vec<Cid>, MetadataError> {
        let mut dropped = Vec::new();
        let roots: Vec<Cid> = moves.contents().copied().collect();
        for root in roots {
            let Some((from, to)) = moves.of(&root) else { continue };
            let record = self.namespace.content(&root)?.filter(|record| record.refs > 0);
            let stage = record.as_ref().map(|record| {
                let policy = self.policy_of(record);
                Content { root: &root, record, policy: &policy }.stage(from, to, moment)
            });
            match (stage, record) {
                (Some(Stage::Send | Stage::Leave), _) => continue,
                (Some(Stage::Done), Some(record)) => {
                    one.record.contents += 1;
                    one.record.bytes = one.record.bytes.saturating_add(record.size);
                }
                _ => {}
            }
            moves.drop(&root);
            dropped.push(root);
        }
        Ok(dropped)
    }

    /// Whether the place that is replaced can go: nothing is there, or it is away for
    /// good and others have all that it held.
    fn replace_some(&self, one: &mut Active) -> Result<(), MetadataError> {
        let Some(from) = one.record.from.clone() else { return Ok(()) };
        let places = self.places();
        let (copies, bytes) =
            self.namespace.stats().backends.get(&from).copied().unwrap_or_default();
        let mut report = MoveReport { contents: copies, bytes, ..MoveReport::default() };
        report.finished = copies == 0;
        let away = places.get(&from).is_none_or(|place| place.given_up);
        let now = self.clock.now();
        let rests = one.rested.is_some_and(|at| at <= now && since(at, now) < REST);
        if copies > 0 && away && rests {
            return Ok(());
        }
        if copies > 0 && away {
            one.rested = Some(now);
            (report.contents, report.bytes) = self.held_only_with(&from, &places)?;
            report.finished = report.contents == 0;
            if !report.finished {
                report.waits.insert("others do not have enough proven copies yet", report.contents);
            }
        }
        one.last = report;
        Ok(())
    }

    /// Contents with a copy there that would be short of proven copies without it.
    fn held_only_with(
        &self,
        gone: &BackendId,
        places: &Places,
    ) -> Result<(u64, u64), MetadataError> {
        let (mut contents, mut bytes, mut after) = (0, 0, None);
        loop {
            let page = self.namespace.contents_page(after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { return Ok((contents, bytes)) };
            after = Some(*last);
            for (_, record) in page.iter().filter(|(_, record)| record.refs > 0) {
                if !record.good_copies().any(|copy| copy.backend == *gone) {
                    continue;
                }
                let policy = self.policy_of(record);
                let mut proven = super::DomainSet::default();
                for copy in record.copies.iter().filter(|copy| copy.backend != *gone) {
                    if let Some((number, Standing::Good)) = places.standing(copy)
                        && copy.is_proven()
                    {
                        proven.insert(places.domain(number, policy.distinct));
                    }
                }
                let possible = places.configured(&proven, &policy);
                if proven.len() < usize::from(policy.target).min(possible)
                    || record.pin == PinState::BelowMin
                {
                    contents += 1;
                    bytes += record.size;
                }
            }
            if self.is_stopped() {
                return Ok((contents.max(1), bytes));
            }
        }
    }
}

/// The way of a content from a fuller place to an emptier one.
fn balance(
    levels: &mut [Level],
    content: &Content<'_>,
    moment: &Moment<'_>,
) -> Option<((BackendId, BackendId), Stage)> {
    let bytes = content.record.size;
    let held = |id: &BackendId| content.record.good_copies().any(|copy| copy.backend == *id);
    let tier = |id: &BackendId| moment.places.get(id)?.settings.tier.clone();
    let from = levels.iter().position(|one| one.excess >= bytes.max(1) && held(&one.id))?;
    let mut to: Vec<usize> = (0..levels.len()).filter(|n| levels[*n].deficit >= bytes).collect();
    // One that has it costs nothing.
    to.sort_by_key(|n| (!held(&levels[*n].id), std::cmp::Reverse(levels[*n].deficit)));
    for number in to {
        let (source, sink) = (&levels[from].id, &levels[number].id);
        if tier(source) != tier(sink) {
            continue;
        }
        let way = (source.clone(), sink.clone());
        match content.stage(source, sink, moment) {
            stage @ (Stage::Send | Stage::Leave) => {
                levels[from].excess -= bytes;
                if stage == Stage::Send {
                    levels[number].deficit -= bytes;
                }
                return Some((way, stage));
            }
            Stage::Done | Stage::Stays(_) | Stage::Waits(_) => {}
        }
    }
    None
}

impl Machine {
    /// Whether a wish moves copies from or to a place.
    #[must_use]
    pub fn is_moving(&self, id: &BackendId) -> bool {
        self.moving.lock().values().any(|one| {
            one.record.kind == MoveKind::Rebalance
                || one.record.from.as_ref() == Some(id)
                || one.record.to.as_ref() == Some(id)
        })
    }
}

pub(super) type Moving = BTreeMap<u32, Active>;
pub(super) type Ended = BTreeMap<u32, (MoveRecord, MoveReport)>;

impl super::Fleet {
    /// The copies that are to move.
    #[must_use]
    pub fn moves(&self) -> Arc<Moves> {
        Arc::clone(&self.moves)
    }

    /// Changes them.
    pub fn change_moves(&mut self, change: impl FnOnce(&mut Moves)) {
        self.changed();
        change(Arc::make_mut(&mut self.moves));
    }
}
