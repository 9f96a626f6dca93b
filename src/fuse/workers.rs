//! Threads for requests that wait for backends, so that those that only read
//! memory are never behind them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// Threads; as many closes and syncs wait at the same time.
const THREADS: usize = 32;
/// Jobs that wait for a thread before the request's own thread has to.
const BACKLOG: usize = 1024;

pub(super) struct Workers {
    sender: SyncSender<Job>,
}

impl Workers {
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel::<Job>(BACKLOG);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            std::thread::Builder::new().name("cairn-wait".into()).spawn(move || run(&receiver))?;
        }
        Ok(Self { sender })
    }

    /// Runs a job on one of the threads; here when they are gone.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        if let Err(error) = self.sender.send(Box::new(job)) {
            error.0();
        }
    }
}

fn run(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let job = receiver.lock().recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}
