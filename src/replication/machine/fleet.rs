//! All places of a volume with their health. Pure: the time is given, and what
//! answers or fails is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::super::{BackendState, BackendStatus};
use super::health::{Health, HealthChange};
use super::moves::Moves;
use super::places::{Candidate, Places};
use super::spent::Spent;
use crate::backends::{BackendError, Micros, PlaceSettings, Usage, kind_of};
use crate::metadata::BackendRecord;
use crate::types::{BackendId, Timestamp};

/// A place that was full takes part again with this much space (or a twentieth
/// of a small one), so that it does not come and go with each block.
const SPACE_AFTER_FULL: u64 = 64 << 20;
/// Less than this more free space is no reason to look at the queue again.
const SPACE_STEP: u64 = 1 << 20;

/// What an open backend says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `dir`, `s3`, ...
    pub kind: String,
    /// Its failure domain.
    pub domain: String,
    /// What it took survives a crash there.
    pub durable: bool,
    /// Nothing can be written now.
    pub read_only: bool,
}

/// One backend.
#[derive(Debug, Clone)]
pub struct Member {
    /// Location without secrets.
    pub url: String,
    /// Tier, prices, limits.
    pub settings: PlaceSettings,
    /// What survives a restart.
    pub record: BackendRecord,
    /// Health.
    pub health: Health,
    /// Space, as last seen.
    pub usage: Usage,
    facts: Facts,
    open: bool,
    /// The least space that was free since contents without room were last
    /// looked at again.
    least_free: Option<u64>,
    /// Bytes of the contents that it has copies of; and when its space was last seen.
    held: u64,
    held_then: u64,
    /// What was used in the running month.
    spent: Spent,
}

/// The volume's places.
#[derive(Debug, Clone)]
pub struct Fleet {
    local: [String; 4],
    grace: Duration,
    members: BTreeMap<BackendId, Member>,
    /// Rises when more can be done than before.
    epoch: u64,
    /// Rises when fewer copies count than before.
    losses: u64,
    /// Whose record is to be kept.
    unsaved: BTreeSet<BackendId>,
    /// Of copies at each in earlier lives: when the last was looked at.
    newest_proofs: BTreeMap<BackendId, Timestamp>,
    /// The user holds all work.
    paused: bool,
    /// Copies that are to move.
    pub(super) moves: Arc<Moves>,
    /// Millionths of money a month that copies may cost.
    ceiling: Option<Micros>,
    /// The local store is a cache.
    cache: bool,
    cached: Cached,
}

/// The places, as long as nothing has changed: each result and each look asks for them.
#[derive(Debug, Default)]
struct Cached(Mutex<Option<Arc<Places>>>);

/// Another fleet goes its own way.
impl Clone for Cached {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Member {
    fn state(&self) -> BackendState {
        let capacity = self.usage.capacity_bytes;
        let enough = capacity.map_or(SPACE_AFTER_FULL, |all| SPACE_AFTER_FULL.min(all / 20));
        let cramped = self.health.state == BackendState::Full
            && self.usage.available_bytes.is_some_and(|free| free < enough);
        match (self.facts.read_only || self.record.read_only, cramped) {
            (true, _) => BackendState::ReadOnly,
            (false, true) => BackendState::Full,
            (false, false) => BackendState::Up,
        }
    }
}

impl Member {
    /// Bytes that we use there: what it last said and what came since, or by our count.
    #[must_use]
    pub fn used(&self) -> u64 {
        let since = self.held.saturating_sub(self.held_then);
        self.usage.used_bytes.map_or(self.held, |used| used.saturating_add(since))
    }

    /// What we used when it was last asked, and what was free then. Bytes that were given
    /// up and are still there are part of it, however copies move meanwhile.
    fn room(&self) -> Option<u64> {
        let used = self.usage.used_bytes.unwrap_or(self.held_then);
        self.usage.available_bytes.map(|free| free.saturating_add(used))
    }

    /// It takes no new copies: there are as many bytes as the user lets it have.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.settings.stop_bytes.is_some_and(|stop| self.used() >= stop)
    }

    /// What the copies there cost a month.
    #[must_use]
    pub fn cost(&self) -> Micros {
        self.settings.price.of_month(self.held)
    }

    /// What reads and requests cost in the running month so far.
    #[must_use]
    pub fn used_up(&self) -> Micros {
        self.spent.cost(&self.settings.price)
    }
}

fn names(device: &str, settings: &PlaceSettings, here: &[String; 4]) -> [String; 4] {
    let [_, host, site, provider] = here;
    let or =
        |own: &Option<String>, default: &String| own.clone().unwrap_or_else(|| default.clone());
    let host = or(&settings.host, host);
    [device.to_owned(), host, or(&settings.site, site), or(&settings.provider, provider)]
}

impl Fleet {
    /// Without backends; the local store's failure domains, and the time after
    /// which copies at a place that is away stop counting.
    #[must_use]
    pub fn new(local_domain: String, grace: Duration) -> Self {
        let here = || "this-host".to_owned();
        Self {
            local: [local_domain, here(), here(), here()],
            grace,
            members: BTreeMap::new(),
            epoch: 0,
            losses: 0,
            unsaved: BTreeSet::new(),
            newest_proofs: BTreeMap::new(),
            paused: false,
            moves: Arc::default(),
            ceiling: None,
            cache: false,
            cached: Cached::default(),
        }
    }

    /// The local store only keeps for a while what others have: what lies there is no
    /// copy. Set before anything is planned.
    pub fn set_local_cache(&mut self, cache: bool) {
        self.cache = cache;
        self.changed();
    }

    /// Whether the local store is a cache.
    #[must_use]
    pub fn is_local_cache(&self) -> bool {
        self.cache
    }

    /// Something changed of what planning sees.
    pub(super) fn changed(&mut self) {
        *self.cached.0.get_mut() = None;
    }

    /// When a copy at each was looked at last, in earlier lives: no backend that is added
    /// from now on is trusted from before that.
    pub fn set_newest_proofs(&mut self, newest: BTreeMap<BackendId, Timestamp>) {
        self.newest_proofs = newest;
    }

    /// Adds a backend that is not open yet. `record`: of an earlier life.
    pub fn add(
        &mut self,
        id: BackendId,
        url: String,
        settings: PlaceSettings,
        record: BackendRecord,
        now: Timestamp,
    ) {
        self.changed();
        // One that is away when the volume opens shares what it shared before.
        let domain = match record.domain.as_str() {
            "" => format!("unknown:{id}"),
            known => known.to_owned(),
        };
        let kind = kind_of(&url).to_owned();
        let mut health = Health::unknown(&record, now);
        health.proven(self.newest_proofs.get(&id).copied().unwrap_or_default());
        let member = Member {
            url,
            settings,
            health,
            record,
            usage: Usage::default(),
            facts: Facts {
                kind,
                domain,
                // Counted among the places to come.
                durable: true,
                read_only: false,
            },
            open: false,
            least_free: None,
            held: 0,
            held_then: 0,
            spent: Spent::default(),
        };
        self.members.insert(id, member);
        self.epoch += 1;
    }

    /// Forgets a backend.
    pub fn remove(&mut self, id: &BackendId) -> bool {
        self.changed();
        self.unsaved.remove(id);
        self.losses += 1;
        self.members.remove(id).is_some()
    }

    /// One backend.
    #[must_use]
    pub fn get(&self, id: &BackendId) -> Option<&Member> {
        self.members.get(id)
    }

    /// All backends.
    pub fn members(&self) -> impl Iterator<Item = (&BackendId, &Member)> {
        self.members.iter()
    }

    /// Rises when more can be done than before.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Rises when fewer copies count than before.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// It was opened (again).
    pub fn opened(&mut self, id: &BackendId, facts: Facts, now: Timestamp) -> bool {
        let Some(member) = self.members.get_mut(id) else { return false };
        if !member.open || member.facts != facts {
            (member.facts, member.open) = (facts, true);
            self.note_domain(id);
            self.changed();
        }
        self.reached(id, now)
    }

    /// What an open backend says of itself may change.
    pub fn set_facts(&mut self, id: &BackendId, facts: Facts) {
        self.changed();
        if let Some(member) = self.members.get_mut(id) {
            member.facts = facts;
            self.note_domain(id);
        }
    }

    fn note_domain(&mut self, id: &BackendId) {
        if let Some(member) = self.members.get_mut(id)
            && member.record.domain != member.facts.domain
        {
            member.record.domain.clone_from(&member.facts.domain);
            self.unsaved.insert(id.clone());
        }
    }

    /// It answered a probe or took a write. True when it was not in use before.
    pub fn reached(&mut self, id: &BackendId, now: Timestamp) -> bool {
        let Some(member) = self.members.get_mut(id).filter(|member| member.open) else {
            return false;
        };
        let (state, before, seen) =
            (member.state(), member.health.state, member.health.in_places());
        let back = member.health.reached(state, now) == Some(HealthChange::Back);
        let after = member.health.state;
        if seen != member.health.in_places() {
            self.changed();
        }
        // One that only reads now is a change, too: its copies count again.
        if back || (before == BackendState::Down && after != before) {
            self.epoch += 1;
        }
        self.note(id);
        back
    }

    /// A backend's health, for who reads there.
    pub(in super::super) fn health_mut(&mut self, id: &BackendId) -> Option<&mut Health> {
        self.changed();
        self.members.get_mut(id).map(|member| &mut member.health)
    }

    /// A call failed. True when it takes no part any more.
    pub fn failed(&mut self, id: &BackendId, error: &BackendError, now: Timestamp) -> bool {
        let Some(member) = self.members.get_mut(id) else { return false };
        let (before, seen) = (member.health.state, member.health.in_places());
        let change = member.health.failed(error, now);
        let after = member.health.state;
        if seen != member.health.in_places() {
            self.changed();
        }
        if before == BackendState::Down && after != before {
            self.epoch += 1;
        }
        self.note(id);
        change == Some(HealthChange::Lost)
    }

    /// A copy there could not be read: see [`Health::unread`]. True when it takes no part
    /// any more.
    pub fn unread(&mut self, id: &BackendId, now: Timestamp) -> bool {
        let grace = self.grace;
        let Some(member) = self.members.get_mut(id) else { return false };
        let before = member.health.state;
        member.health.unread(grace, now);
        let lost = member.health.state != before;
        if lost {
            self.changed();
        }
        self.note(id);
        lost
    }

    /// A copy there was read, good or bad.
    pub fn read(&mut self, id: &BackendId) {
        if let Some(member) = self.members.get_mut(id) {
            member.health.read();
        }
    }

    /// Time passed: whose copies stop counting.
    pub fn tick(&mut self, now: Timestamp) -> Vec<BackendId> {
        let grace = self.grace;
        let ticked = |(id, member): (&BackendId, &mut Member)| {
            (member.health.tick(grace, now) == Some(HealthChange::GivenUp)).then(|| id.clone())
        };
        let given_up: Vec<BackendId> = self.members.iter_mut().filter_map(ticked).collect();
        if !given_up.is_empty() {
            self.changed();
        }
        for id in &given_up {
            self.note(id);
        }
        self.losses += given_up.len() as u64;
        given_up
    }

    /// When [`Fleet::tick`] will have something to say.
    #[must_use]
    pub fn due(&self) -> Option<Timestamp> {
        self.members.values().filter_map(|member| member.health.due(self.grace)).min()
    }

    /// A copy there was proven then.
    pub fn proven(&mut self, id: &BackendId, at: Timestamp) {
        if let Some(member) = self.members.get_mut(id) {
            member.health.proven(at);
        }
    }

    /// It is to leave, or is not any more.
    pub fn set_draining(&mut self, id: &BackendId, draining: bool) -> bool {
        self.changed();
        let Some(member) = self.members.get_mut(id) else { return false };
        member.record.draining = draining;
        self.unsaved.insert(id.clone());
        self.epoch += 1;
        self.losses += 1;
        true
    }

    /// Holds the work of a backend (`None`: all work), or lets it go on. Held, it is as
    /// if it were away for what is written, and can be read.
    pub fn set_paused(&mut self, id: Option<&BackendId>, paused: bool) -> bool {
        self.changed();
        match id.map(|id| self.members.get_mut(id)) {
            None => self.paused = paused,
            Some(None) => return false,
            Some(Some(member)) => {
                member.record.paused = paused;
                self.unsaved.extend(id.cloned());
            }
        }
        self.epoch += 1;
        true
    }

    /// Whether all work is held.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Nothing is to be written there, or is again.
    pub fn set_read_only(&mut self, id: &BackendId, read_only: bool, now: Timestamp) -> bool {
        self.changed();
        let Some(member) = self.members.get_mut(id) else { return false };
        member.record.read_only = read_only;
        self.unsaved.insert(id.clone());
        if member.health.state != BackendState::Down {
            self.reached(id, now);
        }
        // What was to go there has to find another place.
        self.losses += 1;
        true
    }

    /// The user says that it is well again, and it was opened anew: its past is
    /// forgotten, and each copy there counts again when it was proven.
    pub fn recovered(&mut self, id: &BackendId, facts: Facts, now: Timestamp) -> bool {
        self.changed();
        let Some(member) = self.members.get_mut(id) else { return false };
        member.facts = facts;
        member.open = true;
        let state = member.state();
        member.health.recovered(state, now);
        self.epoch += 1;
        self.losses += 1;
        self.note(id);
        true
    }

    /// The place said how much room it has. With clearly more than before, what
    /// found too little is due again.
    pub fn set_usage(&mut self, id: &BackendId, usage: Usage) {
        self.changed();
        let Some(member) = self.members.get_mut(id) else { return };
        let more = match (member.least_free, usage.available_bytes) {
            (Some(least), Some(free)) => free > least + (least / 20).max(SPACE_STEP),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let least = if more { None } else { member.least_free };
        member.least_free = match (least, usage.available_bytes) {
            (Some(least), Some(free)) => Some(least.min(free)),
            (_, free) => free,
        };
        let stopped = member.stopped();
        member.usage = usage;
        member.held_then = member.held;
        if more || (stopped && !member.stopped()) {
            self.epoch += 1;
        }
    }

    /// Bytes of the contents that each has copies of, as they are counted.
    pub fn set_held(&mut self, held: &BTreeMap<BackendId, (u64, u64)>) {
        let (mut more, mut changed) = (false, false);
        for (id, member) in &mut self.members {
            let stopped = member.stopped();
            let before =
                std::mem::replace(&mut member.held, held.get(id).map_or(0, |(_, bytes)| *bytes));
            changed |= before != member.held;
            more |= stopped && !member.stopped();
        }
        if changed {
            self.changed();
        }
        if more {
            self.epoch += 1;
        }
    }

    /// What copies may cost a month.
    pub fn set_ceiling(&mut self, ceiling: Option<Micros>) {
        self.changed();
        self.ceiling = ceiling;
    }

    fn sum(&self, of: impl Fn(&Member) -> Micros) -> Micros {
        Micros(self.members.values().fold(0u64, |all, member| all.saturating_add(of(member).0)))
    }

    /// What copies cost a month and what was read and asked in the running one, together;
    /// and what they may.
    #[must_use]
    pub fn costs(&self) -> (Micros, Option<Micros>) {
        let all = self.sum(|member| Micros(member.cost().0.saturating_add(member.used_up().0)));
        (all, self.ceiling)
    }

    /// What reads and requests cost in the running month so far.
    #[must_use]
    pub fn used_up(&self) -> Micros {
        self.sum(Member::used_up)
    }

    /// What the running month will have cost at its end, if it goes on so.
    #[must_use]
    pub fn forecast(&self, now: Timestamp) -> Micros {
        self.sum(|member| {
            let price = &member.settings.price;
            Micros(member.cost().0.saturating_add(member.spent.forecast(price, now).0))
        })
    }

    fn is_thrifty(&self) -> bool {
        let (costs, ceiling) = self.costs();
        ceiling.is_some_and(|ceiling| costs > ceiling)
    }

    /// So many requests were made, and so many bytes were read. A month that is over is
    /// forgotten.
    pub fn spend(&mut self, used: &[(BackendId, (u64, u64))], now: Timestamp) {
        let before = self.is_thrifty();
        self.members.values_mut().for_each(|member| member.spent.turn(now));
        for (id, (requests, bytes_out)) in used {
            let Some(member) = self.members.get_mut(id) else { continue };
            let spent = &mut member.spent;
            spent.requests = spent.requests.saturating_add(*requests);
            spent.bytes_out = spent.bytes_out.saturating_add(*bytes_out);
        }
        if self.is_thrifty() != before {
            self.changed();
        }
    }

    /// What was used in the running month, by backend.
    #[must_use]
    pub fn spent(&self) -> BTreeMap<BackendId, Spent> {
        self.members.iter().map(|(id, member)| (id.clone(), member.spent)).collect()
    }

    /// Goes on with what an earlier life used in the same month.
    pub fn resume_spent(&mut self, spent: &BTreeMap<BackendId, Spent>, now: Timestamp) {
        for (id, member) in &mut self.members {
            if let Some(before) = spent.get(id) {
                member.spent = *before;
            }
            member.spent.turn(now);
        }
        self.changed();
    }

    fn note(&mut self, id: &BackendId) {
        let Some(member) = self.members.get_mut(id) else { return };
        let health = &member.health;
        let record = BackendRecord {
            away_since: health.away_since,
            given_up: health.given_up,
            trusted_since: health.trusted_since,
            ..member.record.clone()
        };
        if record != member.record {
            member.record = record;
            self.unsaved.insert(id.clone());
            self.changed();
        }
    }

    /// Records that changed since the last call, to be kept.
    pub fn take_unsaved(&mut self) -> Vec<(BackendId, BackendRecord)> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let record = |id: BackendId| {
            let record = self.members.get(&id)?.record.clone();
            Some((id, record))
        };
        unsaved.into_iter().filter_map(record).collect()
    }

    /// The places as they are now.
    #[must_use]
    pub fn places(&self) -> Arc<Places> {
        let mut cached = self.cached.0.lock();
        Arc::clone(cached.get_or_insert_with(|| Arc::new(self.seen())))
    }

    fn seen(&self) -> Places {
        let local = Candidate {
            id: BackendId::local(),
            domains: self.local.clone(),
            durable: true,
            cache: self.cache,
            state: BackendState::Up,
            readable: true,
            available: true,
            space: None,
            room: None,
            stopped: false,
            draining: false,
            paused: self.paused,
            given_up: false,
            trusted_since: Timestamp::default(),
            latency: Duration::ZERO,
            mebibyte: Duration::ZERO,
            settings: PlaceSettings::default(),
        };
        let candidate = |(id, member): (&BackendId, &Member)| {
            let state = member.health.state;
            Candidate {
                id: id.clone(),
                domains: names(&member.facts.domain, &member.settings, &self.local),
                durable: member.facts.durable,
                cache: false,
                state,
                readable: member.open && state != BackendState::Down,
                available: member.open
                    && matches!(state, BackendState::Up | BackendState::Degraded),
                space: member.usage.capacity_bytes.zip(member.usage.available_bytes),
                room: member.room(),
                stopped: member.stopped(),
                draining: member.record.draining,
                paused: self.paused || member.record.paused,
                given_up: member.health.given_up,
                trusted_since: member.health.trusted_since,
                latency: member.health.pace().0,
                mebibyte: member.health.pace().1,
                settings: member.settings.clone(),
            }
        };
        let all = std::iter::once(local).chain(self.members.iter().map(candidate)).collect();
        let mut places = Places::new(all);
        places.moves = Arc::clone(&self.moves);
        places.thrifty = self.is_thrifty();
        places
    }

    /// What `status` shows.
    #[must_use]
    pub fn statuses(&self) -> Vec<BackendStatus> {
        let status = |(id, member): (&BackendId, &Member)| BackendStatus {
            id: id.clone(),
            kind: member.facts.kind.clone(),
            url: member.url.clone(),
            state: member.health.state,
            domain: member.facts.domain.clone(),
            usage: member.usage,
            last_error: member.health.last_error.clone(),
            draining: member.record.draining,
            read_only: member.record.read_only,
            paused: member.record.paused,
            used: member.used(),
            stopped: member.stopped(),
            cost: member.cost(),
            spent: member.spent,
            used_up: member.used_up(),
            given_up: member.health.given_up,
            away_since: member.health.away_since,
            latency: member.health.latency,
            mebibyte: member.health.speed.expected(1 << 20),
            read_bytes: member.health.read_bytes,
            send_mebibyte: Some(member.health.send_mib).filter(|time| !time.is_zero()),
            latencies: member.health.latencies.to_vec(),
            errors: member.health.errors.iter().map(|(k, n)| (k.as_str().to_owned(), *n)).collect(),
            settings: member.settings.clone(),
        };
        self.members.iter().map(status).collect()
    }

    /// The failure domain of a place.
    #[must_use]
    pub fn domain_of(&self, id: &BackendId) -> Option<&str> {
        if id.is_local() {
            return Some(&self.local[0]);
        }
        self.members.get(id).map(|member| member.facts.domain.as_str())
    }
}

#[cfg(test)]
mod tests;
