use futures_util::TryStreamExt;
use opendal::Operator;
use opendal::options::{ListOptions, WriteOptions};
use uuid::Uuid;

use super::failure::{explain, status_of};
use super::{Place, Store};
use crate::backends::marker::{MARKER, Marker};
use crate::backends::{BackendError, ErrorKind};
use crate::types::printable;

/// What a probe writes.
const PROBE: &str = "tmp/probe";

/// The id of the place; made where there is nothing, if `create`.
pub(super) async fn settle(store: &Store, create: bool) -> Result<Uuid, BackendError> {
    let (operator, location) = (&store.small, store.about.location.as_str());
    if let Some(id) = marker(operator, location).await? {
        return Ok(id);
    }
    if !create {
        let message = format!(
            "{location} has no {MARKER}: is it the right {} and prefix? \
             `cairn backend add` makes a new backend there",
            store.about.container
        );
        return Err(BackendError::new(ErrorKind::Unavailable, message));
    }
    refuse_others(operator, location).await?;
    let text = Marker::new().encode()?;
    let if_new = WriteOptions { if_not_exists: true, ..WriteOptions::default() };
    let written = match operator.write_options(MARKER, text.clone(), if_new).await {
        // A store without conditions: the last one wins, and is read back.
        Err(error) if !store.conditional || matches!(status_of(&error), Some(400 | 405 | 501)) => {
            operator.write(MARKER, text).await.map(drop)
        }
        other => other.map(drop),
    };
    match written {
        // Two that make it at once agree on one id: that of the first.
        Err(error) if !matches!(status_of(&error), Some(409 | 412)) => {
            Err(explain(location, "make a backend in", error))
        }
        _ => marker(operator, location).await?.ok_or_else(|| {
            let message = format!("{location} does not show the {MARKER} that was written there");
            BackendError::new(ErrorKind::Unavailable, message)
        }),
    }
}

/// What lies under the prefix and is not ours: nobody's bucket is taken for a place.
async fn refuse_others(operator: &Operator, location: &str) -> Result<(), BackendError> {
    let fail = |error| explain(location, "list", error);
    let options = ListOptions { limit: Some(10), recursive: true, ..ListOptions::default() };
    let mut lister = operator.lister_options("", options).await.map_err(fail)?;
    while let Some(entry) = lister.try_next().await.map_err(fail)? {
        let path = entry.path();
        if path.is_empty() || path == "/" {
            continue;
        }
        // What a creation that was cut short, or a removal of the marker, leaves.
        if ["blocks/", "names/", "tmp/"].iter().any(|ours| path.starts_with(ours)) {
            return Ok(());
        }
        let message = format!(
            "{location} is not a backend and not empty (it has `{}`): name a prefix of its own",
            printable(path)
        );
        return Err(BackendError::new(ErrorKind::Invalid, message));
    }
    Ok(())
}

/// The id in the marker; `None` when there is none.
async fn marker(operator: &Operator, location: &str) -> Result<Option<Uuid>, BackendError> {
    match operator.read(MARKER).await {
        Ok(bytes) => Marker::decode(&bytes.to_vec(), location).map(|marker| Some(marker.id)),
        Err(error) if error.kind() == opendal::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(explain(location, "read the marker of", error)),
    }
}

impl Place {
    /// Fails unless the place that was opened is still there: a bucket that was deleted,
    /// emptied or made anew says nothing about what is absent. One small read.
    pub(super) async fn check(&self) -> Result<(), BackendError> {
        let location = &self.store.about.location;
        let message = match marker(&self.store.small, location).await? {
            Some(id) if id == self.id => return Ok(()),
            Some(_) => format!("{location} is not the place that was opened: was it made anew?"),
            None => format!("{location} has lost its {MARKER}: was it emptied?"),
        };
        Err(BackendError::new(ErrorKind::Unavailable, message))
    }

    /// Writes a few bytes.
    pub(super) async fn try_write(&self) -> Result<(), BackendError> {
        let written = self.store.small.write(PROBE, "probe\n").await;
        written.map(drop).map_err(|error| self.fail("write in", error))
    }
}
