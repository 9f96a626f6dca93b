use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Wakes threads that found nothing to do. Who looks first asks [`Bell::heard`],
/// so that what rings during the look is not missed.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<u64>,
    heard: Condvar,
}

impl Bell {
    /// To be asked before the look.
    pub fn heard(&self) -> u64 {
        *self.rung.lock()
    }

    /// Wakes all.
    pub fn ring(&self) {
        let mut rung = self.rung.lock();
        *rung = rung.wrapping_add(1);
        drop(rung);
        self.heard.notify_all();
    }

    /// Returns when it rang since `heard`, or late.
    pub fn wait(&self, heard: u64, most: Duration) {
        let mut rung = self.rung.lock();
        if *rung == heard {
            self.heard.wait_for(&mut rung, most);
        }
    }
}
