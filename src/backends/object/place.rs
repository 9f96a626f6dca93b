use futures_util::TryStreamExt;
use opendal::Operator;
use opendal::options::{ListOptions, WriteOptions};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::failure::{explain, status_of};
use super::{Place, Store};
use crate::backends::{BackendError, ErrorKind};
use crate::types::{Timestamp, printable};

/// Tells a place of ours from an empty prefix, and from another one under its name.
const MARKER: &str = "cairn-backend.json";
/// Version of the layout under the marker.
const FORMAT: u32 = 1;
/// A marker is some 120 bytes; more is not one.
const MARKER_MAX: usize = 64 * 1024;
/// What a probe writes.
const PROBE: &str = "tmp/probe";

/// The marker object. Unknown members are ignored, a higher format is refused.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    id: Uuid,
    /// Seconds since 1970.
    #[serde(default)]
    created: i64,
}

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
    let created = Timestamp::from_system(std::time::SystemTime::now()).seconds;
    let own = Marker { format: FORMAT, id: Uuid::new_v4(), created };
    let mut text = serde_json::to_vec(&own)
        .map_err(|error| BackendError::new(ErrorKind::Other, error.to_string()))?;
    text.push(b'\n');
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
    let bytes = match operator.read(MARKER).await {
        Ok(bytes) => bytes.to_vec(),
        Err(error) if error.kind() == opendal::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(explain(location, "read the marker of", error)),
    };
    let damaged = |what: String| {
        let message = format!(
            "{MARKER} in {location} is damaged ({what}): if the rest is sound, remove it and \
             run `cairn backend add`"
        );
        BackendError::new(ErrorKind::Invalid, message)
    };
    if bytes.len() > MARKER_MAX {
        return Err(damaged(format!("{} bytes", bytes.len())));
    }
    // The format is read alone first: a newer marker may have another shape.
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if format > u64::from(FORMAT) {
        let message = format!(
            "{location} has format {format}, and this cairn knows up to {FORMAT}: use a newer cairn"
        );
        return Err(BackendError::new(ErrorKind::Unsupported, message));
    }
    let marker: Marker =
        serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(marker.id))
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
