//! What happens to the places, the clock and the daemon.

use std::time::Duration;

use cairnfs::runtime::Clock;
use cairnfs::types::{Cid, Ino, Timestamp};

use crate::place::Bytes;
use crate::world::{World, policy_number, short};

impl World {
    /// One event, chosen at random.
    pub fn event(&mut self) {
        let place = self.random.usize(1..self.places.len());
        let id = self.places[place].id.clone();
        match self.random.u8(0..100) {
            0..35 => {
                for _ in 0..self.random.usize(1..4) {
                    self.write();
                }
            }
            35..50 => {
                let up = !self.places[place].up;
                self.places[place].up = up;
                self.places[place].away_at = self.now;
                if up && self.machine.places().get(&id).is_some_and(|known| known.given_up) {
                    self.places[place].doubted_at = self.now;
                }
                self.note(format!("{id} is {}", if up { "back" } else { "away" }));
            }
            50..54 => {
                self.note(format!("{id} lost everything"));
                let all: Vec<Cid> = self.places[place].truth.keys().copied().collect();
                for root in all {
                    self.damage(place, &root, None);
                }
            }
            54..62 => {
                let rotten = self.random.bool().then_some(Bytes::Rotten);
                let one = self.random.usize(0..self.places.len());
                let all: Vec<Cid> = self.places[one].truth.keys().copied().collect();
                if let Some(root) = self.random.choice(all) {
                    let id = self.places[one].id.clone();
                    self.note(format!("{id} {} became {rotten:?}", short(&root)));
                    self.damage(one, &root, rotten);
                }
            }
            62..67 => {
                let full = !self.places[place].full;
                self.places[place].full = full;
                self.note(format!("{id} full: {full}"));
            }
            67..71 => {
                let lies = !self.places[place].lies;
                self.places[place].lies = lies;
                self.note(format!("{id} lies: {lies}"));
            }
            71..77 => {
                self.places[place].refuses = *self.random.choice(&[0, 0, 5, 30, 90]).unwrap();
                self.places[place].applied_then_failed =
                    *self.random.choice(&[0, 0, 10, 60]).unwrap();
                self.note(format!("{id} refuses {}", self.places[place].refuses));
            }
            77..80 => {
                self.places[place].slow = *self.random.choice(&[1, 1, 20, 500]).unwrap();
                self.note(format!("{id} slow {}", self.places[place].slow));
            }
            80..84 => {
                let draining = self.random.bool();
                self.note(format!("{id} draining: {draining}"));
                self.fleet.write().set_draining(&id, draining);
            }
            84..88 => self.jump(),
            88..92 => self.change_policy(),
            92..96 => self.save(),
            _ => {
                self.note("crash".into());
                self.crash();
            }
        }
    }

    /// A copy rots or goes; nobody is told.
    fn damage(&mut self, place: usize, root: &Cid, to: Option<Bytes>) {
        // A cache's copy was nobody's promise.
        if self.places[place].is_good(root) && !(self.cache && place == 0) {
            self.lost(root);
        }
        match to {
            Some(bytes) => self.places[place].truth.insert(*root, bytes),
            None => self.places[place].truth.remove(root),
        };
        self.places[place].proven.remove(root);
        // What is left of them all is what faults left: see `check`.
        self.check();
    }

    /// The wall clock is set.
    fn jump(&mut self) {
        let seconds = i64::from(self.random.i32(-200_000..200_000));
        let now = self.clock.now();
        let to = Timestamp { seconds: now.seconds + seconds, ..now };
        self.note(format!("the clock jumps by {seconds} s"));
        self.clock.set(to);
        self.forget_absences();
        self.clock.advance(Duration::ZERO);
    }

    /// Grace periods may begin anew, and what was learned last may be forgotten.
    pub fn forget_absences(&mut self) {
        for place in &mut self.places {
            (place.away_at, place.doubted_at) = (self.now, 0);
        }
    }

    /// A user wants more or fewer copies of a content.
    fn change_policy(&mut self) {
        let all: Vec<Cid> = self.contents.keys().copied().collect();
        let Some(root) = self.random.choice(all) else { return };
        let max = self.random.u8(1..=5);
        let target = self.random.u8(1..=max);
        let min = self.random.u8(1..=target);
        self.note(format!("policy of {} is {min},{target},{max}", short(&root)));
        self.namespace
            .update_contents(&[root], &mut |_, record, _| {
                record.policies = vec![policy_number(min.into(), target.into(), max.into())];
            })
            .unwrap();
        if let Some(known) = self.contents.get_mut(&root) {
            known.policy = (min, target, max);
            // Who asked for more or fewer was promised no more than that.
            known.acked = known.acked.map(|acked| acked.min(usize::from(min)));
        }
        self.machine.request_sweep();
        self.save();
    }

    /// A client removes files whose contents faults took everywhere, and has room for others.
    pub fn remove_lost(&mut self) {
        let gone: Vec<Cid> =
            self.contents.keys().filter(|root| self.is_gone(root)).copied().collect();
        for root in gone {
            if self.random.u8(0..4) > 0 {
                continue;
            }
            let Some(known) = self.contents.remove(&root) else { continue };
            let (name, ino) = known.file;
            self.note(format!("{} is removed", short(&root)));
            self.namespace.unlink(Ino::ROOT, &name, self.clock.now()).unwrap();
            self.namespace.reap(ino).unwrap();
            self.save();
        }
    }

    /// Faults stop: places are back, with what is left there.
    pub fn calm_down(&mut self) {
        self.note("calm".into());
        self.calm = true;
        for place in &mut self.places {
            place.heal();
        }
        let ids: Vec<_> = self.places.iter().skip(1).map(|place| place.id.clone()).collect();
        for id in ids {
            self.fleet.write().set_draining(&id, false);
        }
        if self.hands.is_some() {
            self.release_all();
        }
    }
}
