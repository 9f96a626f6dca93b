//! What an administrator does: places are set read-only, held and recovered, copies are
//! moved and evened out, contents are cancelled and tried again.

use cairnfs::backends::Usage;
use cairnfs::metadata::{MoveKind, MoveRecord};
use cairnfs::runtime::Clock;
use cairnfs::types::{BackendId, Cid, Timestamp};

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
            _ => {}
        }
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
