use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Tells every thread of a daemon that the end has begun.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    state: Arc<(Mutex<bool>, Condvar)>,
}

impl Shutdown {
    /// Begins the end; wakes all who wait.
    pub fn trigger(&self) {
        let (flag, wake) = &*self.state;
        *flag.lock() = true;
        wake.notify_all();
    }

    /// Whether the end has begun.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        *self.state.0.lock()
    }

    /// Sleeps for `time`, or until the end begins. True means the end.
    #[must_use]
    pub fn wait(&self, time: Duration) -> bool {
        let (flag, wake) = &*self.state;
        let mut guard = flag.lock();
        if !*guard {
            wake.wait_for(&mut guard, time);
        }
        *guard
    }
}
