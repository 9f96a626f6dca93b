//! Threads for what is more than a look into memory: the disk is waited for here,
//! a backend never.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// Threads; as many syncs of the disk share a group commit.
const THREADS: usize = 32;

/// Jobs that wait for a thread are as many as the kernel has requests: each is a
/// thread of a program that waits for its answer.
pub(super) struct Workers {
    sender: Sender<Job>,
}

impl Workers {
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            std::thread::Builder::new().name("cairn-wait".into()).spawn(move || run(&receiver))?;
        }
        Ok(Self { sender })
    }

    /// Runs a job on one of the threads; here when they are gone. Never waits.
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
