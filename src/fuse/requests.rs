//! Requests that may wait for a backend: they hold no thread while they do, and
//! end when their caller is signalled.

use std::sync::Arc;
use std::time::Instant;

use fuser::{Errno, Request};

use super::reply::errno;
use super::workers::Workers;
use crate::runtime::{Bridge, Callers, Step, Watched};
use crate::telemetry;
use crate::vfs::VfsError;

/// What a step of a request gives.
pub(super) type Stepped<T> = Result<Step<T, VfsError>, VfsError>;

/// Counts how a request ended, after so long.
pub(super) fn ended<T>(
    operation: &'static str,
    start: Instant,
    result: Result<T, VfsError>,
) -> Result<T, Errno> {
    telemetry::metrics().fuse_request(operation, result.is_ok(), start.elapsed());
    result.map_err(|error| {
        let errno = errno(&error);
        if errno == Errno::EIO {
            tracing::error!(operation, %error, "a request failed");
        } else {
            tracing::trace!(operation, %error, "a request was answered with an error");
        }
        errno
    })
}

/// Runs requests to their answers.
pub(super) struct Requests {
    workers: Workers,
    callers: Callers,
    bridge: Bridge,
}

/// One request: its steps, and the answer.
pub(super) struct Job<S, R> {
    operation: &'static str,
    start: Instant,
    /// The caller's thread, as the kernel told it.
    tid: u32,
    step: S,
    reply: R,
    /// Told when a signal ended the wait.
    cut: Option<Box<dyn FnOnce() + Send>>,
    watched: Option<Watched>,
}

impl<S, R> Job<S, R> {
    pub fn new(operation: &'static str, request: &Request, step: S, reply: R) -> Self {
        let tid = request.pid();
        Self { operation, start: Instant::now(), tid, step, reply, cut: None, watched: None }
    }

    /// It began before it was put together.
    pub fn since(mut self, start: Instant) -> Self {
        self.start = start;
        self
    }

    pub fn when_cut(mut self, cut: impl FnOnce() + Send + 'static) -> Self {
        self.cut = Some(Box::new(cut));
        self
    }
}

impl Requests {
    pub fn start(bridge: Bridge) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self { workers: Workers::start()?, callers: Callers::start()?, bridge }))
    }

    /// Begins on a worker.
    pub fn begin<T, S, R>(self: &Arc<Self>, mut job: Job<S, R>)
    where
        T: Send + 'static,
        S: FnMut() -> Stepped<T> + Send + 'static,
        R: FnOnce(Result<T, Errno>) + Send + 'static,
    {
        let this = Arc::clone(self);
        self.workers.run(move || {
            let stepped = (job.step)();
            this.go_on(job, stepped);
        });
    }

    /// Begins on this thread.
    pub fn run<T, S, R>(self: &Arc<Self>, mut job: Job<S, R>)
    where
        T: Send + 'static,
        S: FnMut() -> Stepped<T> + Send + 'static,
        R: FnOnce(Result<T, Errno>) + Send + 'static,
    {
        let stepped = (job.step)();
        self.go_on(job, stepped);
    }

    /// Goes on after a step.
    pub fn go_on<T, S, R>(self: &Arc<Self>, mut job: Job<S, R>, stepped: Stepped<T>)
    where
        T: Send + 'static,
        S: FnMut() -> Stepped<T> + Send + 'static,
        R: FnOnce(Result<T, Errno>) + Send + 'static,
    {
        let wait = match stepped {
            Ok(Step::Done(value)) => return job.answer(Ok(value)),
            Ok(Step::Wait(wait)) => wait,
            Err(error) => return job.answer(Err(error)),
        };
        if job.watched.is_none() {
            job.watched = self.callers.watch(job.tid);
        }
        let Some(cancel) = job.watched.as_ref().map(|watched| watched.cancel().clone()) else {
            return job.answer(Err(rustix::io::Errno::NOMEM.into()));
        };
        let this = Arc::clone(self);
        self.bridge.spawn(async move {
            let waited = tokio::select! {
                biased;
                waited = wait => waited,
                () = cancel.cancelled() => {
                    if let Some(cut) = job.cut.take() {
                        cut();
                    }
                    Err(rustix::io::Errno::INTR.into())
                }
            };
            match waited {
                Ok(()) => this.begin(job),
                Err(error) => job.answer(Err(error)),
            }
        });
    }
}

impl<S, R> Job<S, R> {
    fn answer<T>(self, result: Result<T, VfsError>)
    where
        R: FnOnce(Result<T, Errno>),
    {
        (self.reply)(ended(self.operation, self.start, result));
    }
}
