//! What an administrator does: places are set read-only, held and recovered, copies are
//! moved and evened out, contents are cancelled and tried again.

use cairnfs::backends::{PlaceSettings, Scrub, Usage};
use cairnfs::metadata::{BackendRecord, CopyRecord, CopyState, MoveKind, MoveRecord, VerifyMethod};
use cairnfs::replication::machine::{Fleet, Job, Outcome, Standing, Task};
use cairnfs::runtime::Clock;
use cairnfs::types::{BackendId, Cid, Timestamp};

use crate::place::{Bytes, Place};
use crate::world::{World, facts, short};

impl World {
    /// Something, now and then.
    pub fn hand(&mut self) {
        let Some(random) = &mut self.hands else { return };
        let what = random.u8(0..100);
        let (place, other) =
            (random.usize(1..self.places.len()), random.usize(1..self.places.len()));
        let on = random.bool();
        let (id, to) = (self.places[place].id.clone(), self.places[other].id.clone());
        let now = self.clock.now();
        match what {
            0..8 => {
                self.note(format!("{id} read-only: {on}"));
                self.fleet.write().set_read_only(&id, on, now);
            }
            8..14 if self.places[place].up => {
                self.note(format!("{id} recovered by hand"));
                let facts = facts(&self.places[place]);
                self.fleet.write().recovered(&id, facts, now);
            }
            14..22 if place != other => {
                self.note(format!("copies move from {id} to {to}"));
                self.wish(MoveKind::Migrate, Some(id).zip(Some(to)), now);
            }
            22..28 => {
                self.note("places are evened out".into());
                self.wish(MoveKind::Rebalance, None, now);
            }
            28..40 => {
                let one = (what < 38).then_some(&id);
                self.note(format!("{} held: {on}", one.map_or("all", |id| id.as_str())));
                self.fleet.write().set_paused(one, on);
                self.machine.pauses_changed();
            }
            40..48 => {
                let all: Vec<Cid> = self.contents.keys().copied().collect();
                let Some(root) = self.hands.as_mut().and_then(|random| random.choice(all)) else {
                    return;
                };
                if on {
                    let waited = self.machine.cancel(&root).unwrap();
                    self.note(format!("{} cancelled: {waited}", short(&root)));
                } else {
                    self.note(format!("{} is tried again", short(&root)));
                    self.machine.retry(&[root]).unwrap();
                }
            }
            48..54 if self.places[place].member => self.leave(place, on),
            48..58 if !self.places[place].member => self.join(place),
            _ => {}
        }
    }

    /// A backend is removed, unless it has the last proven copy of something that can be
    /// read now. `cut`: the daemon dies when its settings are written and no row yet.
    fn leave(&mut self, place: usize, cut: bool) {
        let id = self.places[place].id.clone();
        let members = self.places.iter().skip(1).filter(|place| place.member).count();
        if members < 2 || self.machine.is_moving(&id) || self.has_last_copies(&id) {
            return;
        }
        self.note(format!("{id} is removed{}", if cut { ", and a crash" } else { "" }));
        // Copies go with it, as if faults took them.
        let truth = self.places[place].truth.clone();
        for (root, _) in truth.iter().filter(|(_, bytes)| **bytes == Bytes::Good) {
            self.lost(root);
        }
        let left = &mut self.places[place];
        left.member = false;
        left.aside = std::mem::take(&mut left.truth);
        for known in [&mut left.proven, &mut left.read, &mut left.stored, &mut left.garbage] {
            known.clear();
        }
        if cut {
            self.crash();
        } else {
            self.fleet.write().remove(&id);
            self.clear(&id);
        }
        self.check();
    }

    fn has_last_copies(&self, id: &BackendId) -> bool {
        let places = self.machine.places();
        let proven = |copy: &CopyRecord| match places.standing(copy) {
            Some((number, Standing::Good)) => copy.is_proven() && places.all[number].readable,
            _ => false,
        };
        self.contents.keys().any(|root| {
            let record = self.namespace.content(root).unwrap().unwrap();
            record.good_copies().any(|copy| copy.backend == *id)
                && !record.copies.iter().any(|copy| copy.backend != *id && proven(copy))
        })
    }

    /// A backend of a name that the volume had before, with some of what lay there.
    fn join(&mut self, place: usize) {
        let id = self.places[place].id.clone();
        self.note(format!("{id} is added"));
        self.clear(&id);
        let mut aside = std::mem::take(&mut self.places[place].aside);
        if let Some(random) = &mut self.hands {
            aside.retain(|_, _| random.u8(0..4) > 0);
        }
        let joined = &mut self.places[place];
        (joined.member, joined.truth) = (true, aside);
        // What lies there counts when it was read or sent since: see `check`.
        (joined.away_at, joined.doubted_at) = (self.now, self.now);
        let now = self.clock.now();
        join(&mut self.fleet.write(), &self.places[place], BackendRecord::default(), now);
        self.plan_anew();
    }

    /// As the daemon does before it adds one, and after it removed one.
    fn clear(&mut self, id: &BackendId) {
        self.namespace.forget_backend(id).unwrap();
        self.namespace.set_backend_record(id, None).unwrap();
        self.save();
        self.plan_anew();
    }

    fn plan_anew(&mut self) {
        self.machine.request_sweep();
        self.machine.lanes().lock().request_scan(true);
    }

    /// Work at a place that left meanwhile: it fails, or was done and says so late.
    pub fn late(&mut self, place: usize, task: &Task) -> Outcome {
        if task.job != Job::Send || self.random.bool() {
            return Outcome::Failed("the place left".into());
        }
        self.places[place].aside.insert(task.root, Bytes::Good);
        Outcome::Stored(CopyState::Claimed, VerifyMethod::Written)
    }

    /// One at a time: while there is one, it ends instead.
    fn wish(&mut self, kind: MoveKind, way: Option<(BackendId, BackendId)>, since: Timestamp) {
        let under_way = self.machine.moves().first().map(|(number, ..)| *number);
        if let Some(number) = under_way {
            self.note("moves end".into());
            self.machine.end_move(number).unwrap();
            return;
        }
        let (from, to) = way.unzip();
        let record = MoveRecord { kind, from, to, below: None, since, contents: 0, bytes: 0 };
        self.machine.begin_move(&record).unwrap();
    }

    /// What is held goes on, and what is read-only is written to.
    pub fn release_all(&mut self) {
        let ids: Vec<_> = self.places.iter().skip(1).map(|place| place.id.clone()).collect();
        let now = self.clock.now();
        let mut fleet = self.fleet.write();
        for id in &ids {
            fleet.set_read_only(id, false, now);
            fleet.set_paused(Some(id), false);
        }
        fleet.set_paused(None, false);
        drop(fleet);
        self.machine.pauses_changed();
    }

    /// How full a place says that it is: some have room for all, some for a few contents.
    pub fn usage(&self, place: usize) -> Usage {
        let used = self.places[place].truth.len() as u64 * (32 << 20);
        let capacity = (1 + place as u64 % 4) << 31;
        Usage {
            used_bytes: Some(used),
            capacity_bytes: Some(capacity),
            available_bytes: Some(capacity.saturating_sub(used)),
        }
    }

    /// The daemon's step.
    pub fn move_some(&mut self) {
        if self.machine.moves().is_empty() {
            return;
        }
        for (number, _, report) in self.machine.move_some().unwrap() {
            if report.finished {
                self.note("moves are done".into());
                self.machine.end_move(number).unwrap();
            }
        }
    }

    pub fn is_read_only(&self, place: usize) -> bool {
        let fleet = self.fleet.read();
        fleet.get(&self.places[place].id).is_some_and(|member| member.record.read_only)
    }
}

/// A place of the volume.
pub fn join(fleet: &mut Fleet, place: &Place, record: BackendRecord, now: Timestamp) {
    let scrub = if place.audits { Scrub::Audit } else { Scrub::Full };
    let settings = PlaceSettings { scrub, ..PlaceSettings::default() };
    fleet.add(place.id.clone(), String::new(), settings, record, now);
    if place.up {
        fleet.opened(&place.id, facts(place), now);
    }
}
