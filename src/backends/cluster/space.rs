//! Space and health, as the cluster's own metrics have them.

use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ClusterBackend;
use crate::backends::{BackendError, ErrorKind, Usage};
use crate::types::Block;

/// What nobody has.
const NO_LIMIT: u64 = 1 << 62;

/// A peer's metric. Of an alert: the one that did not come any more.
#[derive(Debug, Deserialize)]
pub(super) struct Metric {
    #[serde(default)]
    name: String,
    #[serde(default)]
    peer: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    valid: bool,
}

/// Bytes of which so many copies on different peers can be made, with so much free at each.
fn room(mut free: Vec<u64>, copies: usize) -> u64 {
    free.sort_unstable_by(|one, two| two.cmp(one));
    if copies == 0 || copies > free.len() {
        return 0;
    }
    // Whatever the largest peers take, the others have to take the rest.
    let bound = |largest: usize| {
        let rest: u128 = free[largest..].iter().copied().map(u128::from).sum();
        rest / (copies - largest) as u128
    };
    (0..copies).map(bound).min().map_or(0, |bytes| u64::try_from(bytes).unwrap_or(u64::MAX))
}

impl ClusterBackend {
    /// One JSON value, of which nothing is written as `null`.
    pub(super) async fn tells<T>(&self, path: &str) -> Result<T, BackendError>
    where
        T: DeserializeOwned + Default,
    {
        let told: Option<T> = self.rpc.request(Method::GET, path, &[], None).await?.json().await?;
        Ok(told.unwrap_or_default())
    }

    async fn metrics(&self, name: &str) -> Result<Vec<Metric>, BackendError> {
        let mut all: Vec<Metric> = self.tells(&format!("monitor/metrics/{name}")).await?;
        all.retain(|metric| metric.valid);
        Ok(all)
    }

    pub(super) async fn space(&self) -> Result<Usage, BackendError> {
        let metrics = self.metrics("freespace").await?;
        let free: Vec<u64> = metrics.iter().filter_map(|one| one.value.parse().ok()).collect();
        let (_, most) = self.copies;
        // Everywhere, or as the cluster is set: that is everywhere unless somebody said.
        let copies = usize::try_from(most).ok().filter(|n| *n > 0).unwrap_or(free.len());
        let copies = copies.min(free.len());
        let left = (!free.is_empty()).then(|| room(free, copies));
        self.room.found(left.unwrap_or(NO_LIMIT));
        Ok(Usage {
            used_bytes: None,
            capacity_bytes: self.options.capacity,
            available_bytes: left.map(|left| left.min(self.options.capacity.unwrap_or(NO_LIMIT))),
        })
    }

    /// Kubos store above their `StorageMax`; we do not.
    pub(super) async fn refuse_beyond_capacity(
        &self,
        blocks: &[&Block],
    ) -> Result<(), BackendError> {
        let bytes: u64 = blocks.iter().map(|block| block.data.len() as u64).sum();
        if self.room.take(bytes) {
            return Ok(());
        }
        let usage = self.space().await?;
        if self.room.take(bytes) {
            return Ok(());
        }
        let message = format!(
            "{} has {} bytes left for all copies of a block: raise Datastore.StorageMax of its \
             Kubos, or run `ipfs-cluster-ctl ipfs gc`",
            self.rpc.at(),
            usage.available_bytes.unwrap_or_default()
        );
        Err(BackendError::new(ErrorKind::Full, message))
    }

    /// Whether enough peers are up for a block to be put; alerts are logged.
    pub(super) async fn health(&self) -> Result<(), BackendError> {
        let alerts: Vec<Metric> = self.tells("health/alerts").await?;
        let mut told: Vec<String> =
            alerts.iter().map(|alert| format!("{} of {}", alert.name, alert.peer)).collect();
        told.sort_unstable();
        told.dedup();
        let up = self.metrics("ping").await?.len();
        let changed = {
            let mut last = self.alerts.lock();
            let changed = *last != told;
            last.clone_from(&told);
            changed
        };
        if changed && !told.is_empty() {
            tracing::warn!(
                backend = self.rpc.at(),
                alerts = told.join(", "),
                "alerts of its peers"
            );
        }
        let (least, _) = self.copies;
        if usize::try_from(least).is_ok_and(|least| up < least) {
            let message = format!(
                "{}: {up} of {least} peers that are needed are up (missing: {}): start them, or \
                 lower replication_min=",
                self.rpc.at(),
                told.join(", ")
            );
            return Err(BackendError::new(ErrorKind::Unavailable, message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_fits_as_often_as_there_are_copies() {
        for (free, copies, wanted) in [
            (&[100, 50, 10][..], 1, 160),
            (&[100, 50, 10], 2, 60),
            (&[100, 50, 10], 3, 10),
            (&[100, 50, 10], 4, 0),
            (&[40, 40, 40], 2, 60),
            (&[u64::MAX, u64::MAX], 1, u64::MAX),
            (&[], 1, 0),
            (&[5], 0, 0),
        ] {
            assert_eq!(room(free.to_vec(), copies), wanted, "{free:?} {copies}");
        }
    }
}
