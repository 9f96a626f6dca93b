//! How fast contents are sent to a place: no faster than the user lets them, and how
//! fast that was.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};

use super::machine::Fleet;
use crate::backends::wrap::{Around, Attempt, Operation, Rate};
use crate::backends::{BackendError, BackendSpec};
use crate::types::BackendId;

/// After so many bytes the speed is told, though more are under way.
const TOLD: u64 = 16 << 20;

/// Bytes that were sent since `since`, by all who send there at once.
#[derive(Debug)]
struct Window {
    under_way: u32,
    since: Instant,
    bytes: u64,
}

/// Around the puts of contents. Checkpoints are sent without it: they are small, and
/// must not wait behind a day of contents.
pub(super) struct Pace {
    id: BackendId,
    fleet: Arc<RwLock<Fleet>>,
    rate: Option<Rate>,
    window: Mutex<Window>,
}

impl Pace {
    pub fn new(spec: &BackendSpec, fleet: Arc<RwLock<Fleet>>) -> Self {
        let window = Window { under_way: 0, since: Instant::now(), bytes: 0 };
        Self {
            id: spec.id.clone(),
            fleet,
            rate: spec.settings().bandwidth.map(Rate::new),
            window: Mutex::new(window),
        }
    }

    /// A put begins.
    fn begin(&self) -> UnderWay<'_> {
        let mut window = self.window.lock();
        if window.under_way == 0 {
            *window = Window { under_way: 0, since: Instant::now(), bytes: 0 };
        }
        window.under_way += 1;
        UnderWay { pace: self, stored: 0 }
    }
}

/// A put that is under way.
struct UnderWay<'p> {
    pace: &'p Pace,
    stored: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut window = self.pace.window.lock();
        window.under_way -= 1;
        window.bytes += self.stored;
        if window.under_way > 0 && window.bytes < TOLD {
            return;
        }
        let (bytes, took) = (window.bytes, window.since.elapsed());
        (window.bytes, window.since) = (0, Instant::now());
        drop(window);
        if bytes > 0
            && let Some(health) = self.pace.fleet.write().health_mut(&self.pace.id)
        {
            health.sent(bytes, took);
        }
    }
}

#[async_trait]
impl Around for Pace {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        bytes: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        if !matches!(operation, Operation::Put | Operation::PutMany) {
            return attempt().await;
        }
        if let Some(rate) = &self.rate {
            rate.turn(bytes).await;
        }
        let mut put = self.begin();
        let result = attempt().await;
        if result.is_ok() {
            put.stored = bytes;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::backends::wrap::Wrapped;
    use crate::backends::{Backend, MemoryBackend};
    use crate::metadata::BackendRecord;
    use crate::types::{Block, Timestamp};

    fn paced(url: &str) -> (Wrapped<Pace>, Arc<RwLock<Fleet>>, BackendId) {
        let spec = BackendSpec::parse(url, &[]).unwrap();
        let (id, fleet) = (spec.id.clone(), Fleet::new("here".to_owned(), Duration::from_mins(1)));
        let fleet = Arc::new(RwLock::new(fleet));
        let record = BackendRecord::default();
        let now = Timestamp::default();
        fleet.write().add(id.clone(), spec.url.clone(), spec.settings(), record, now);
        let place = Arc::new(MemoryBackend::new("there"));
        (Wrapped::new(place, Pace::new(&spec, Arc::clone(&fleet))), fleet, id)
    }

    fn mib(n: u8) -> Block {
        Block::raw(bytes::Bytes::from(vec![n; 1 << 20]))
    }

    #[tokio::test(start_paused = true)]
    async fn contents_are_sent_as_fast_as_they_may_be_and_nothing_else_waits() {
        let (place, fleet, id) = paced("file:///b?bandwidth=1MiB");
        let (one, two) = (mib(1), mib(2));
        let start = Instant::now();
        let puts = async { tokio::join!(place.put(&one), place.put(&two)) };
        let others = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            place.get(&one.cid, None).await.unwrap();
            place.put_name("manifest", &one.cid).await.unwrap();
            start.elapsed().as_millis()
        };
        let ((first, second), read) = tokio::join!(puts, others);
        first.and(second).unwrap();
        assert!((100..110).contains(&read), "{read}");
        assert!((1_000..1_010).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        let fleet = fleet.read();
        let told = fleet.statuses().into_iter().find(|status| status.id == id).unwrap();
        assert!(told.send_mebibyte.is_some(), "what was sent is measured");
    }

    #[tokio::test]
    async fn a_put_that_fails_measures_nothing() {
        let (place, fleet, _) = paced("file:///b");
        let wrong = Block { data: bytes::Bytes::from(vec![0; 1 << 20]), ..mib(1) };
        let stored = place.put(&wrong).await.is_ok();
        assert_eq!(fleet.read().statuses()[0].send_mebibyte.is_some(), stored);
        assert_eq!(place.around().window.lock().under_way, 0);
    }
}
