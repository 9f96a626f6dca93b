use std::sync::mpsc::channel;
use std::time::Duration;

/// Runs work that may never come back (a call of a dead disk) on a thread of its
/// own. `None` when it is late: the thread is left behind, and ends when the
/// call does; so who calls this again does so a bounded number of times.
///
/// # Errors
/// When the operating system refuses a thread.
pub fn within<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Option<T>> {
    let (sender, receiver) = channel();
    let run = move || {
        // Nobody listens any more when it is late.
        sender.send(work()).unwrap_or_default();
    };
    std::thread::Builder::new().name("cairn-late".into()).spawn(run)?;
    Ok(receiver.recv_timeout(deadline).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_time_is_given_and_what_is_late_is_left_behind() {
        assert_eq!(within(Duration::from_mins(1), || 7).unwrap(), Some(7));
        let (_keep, never) = channel::<()>();
        let stuck = move || never.recv().unwrap_err();
        assert!(within(Duration::from_millis(10), stuck).unwrap().is_none());
    }
}
