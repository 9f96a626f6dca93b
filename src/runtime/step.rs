use futures_util::future::BoxFuture;

/// How far work has come that may have to wait for a place elsewhere.
pub enum Step<T, E> {
    /// It is done.
    Done(T),
    /// It goes on when this is over, by the same call; an error is its end. The
    /// future uses no thread meanwhile, and to drop it gives up the wait only.
    Wait(BoxFuture<'static, Result<(), E>>),
}

impl<T, E> Step<T, E> {
    /// Waits for `future`.
    pub fn wait(future: impl Future<Output = Result<(), E>> + Send + 'static) -> Self {
        Self::Wait(Box::pin(future))
    }
}

impl<T, E> std::fmt::Debug for Step<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done(_) => "Done",
            Self::Wait(_) => "Wait",
        })
    }
}
