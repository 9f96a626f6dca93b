//! What an administrator does: places are set read-only and recovered, copies moved.

use cairnfs::metadata::{MoveKind, MoveRecord};
use cairnfs::runtime::Clock;

use crate::world::{World, facts};

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
                let under_way = self.machine.moves().first().map(|(number, ..)| *number);
                if let Some(number) = under_way {
                    self.note("moves end".into());
                    self.machine.end_move(number).unwrap();
                    return;
                }
                self.note(format!("copies move from {id} to {to}"));
                let (kind, since) = (MoveKind::Migrate, now);
                let (from, to, below) = (Some(id), Some(to), None);
                let record = MoveRecord { kind, from, to, below, since, contents: 0, bytes: 0 };
                self.machine.begin_move(&record).unwrap();
            }
            _ => {}
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
