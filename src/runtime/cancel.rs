use std::sync::Arc;

use tokio::sync::watch;

/// Tells who waits that nobody wants the answer any more.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Default for Cancel {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Cancel {
    /// Ends the wait.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether the wait is to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the wait is to end.
    pub async fn cancelled(&self) {
        // An error says that the sender is gone, and it is in `self`.
        drop(self.0.subscribe().wait_for(|set| *set).await);
    }
}
