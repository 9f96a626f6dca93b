//! `cairn-backend.json`: tells a place of ours from the empty mountpoint that an unplugged
//! disk leaves, from an empty prefix, and from another place under its name.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BackendError, ErrorKind};
use crate::types::Timestamp;

/// Its file, or object.
pub(super) const MARKER: &str = "cairn-backend.json";
/// Version of the layout under the marker.
const FORMAT: u32 = 1;
/// A marker is some 120 bytes; more is not one.
pub(super) const MARKER_MAX: usize = 64 * 1024;

/// What it says, as JSON on one line. Unknown members are ignored, a higher format is
/// refused.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    format: u32,
    pub id: Uuid,
    /// Seconds since 1970.
    #[serde(default)]
    created: i64,
}

impl Marker {
    /// Of a place that is made now.
    pub fn new() -> Self {
        let created = Timestamp::from_system(std::time::SystemTime::now()).seconds;
        Self { format: FORMAT, id: Uuid::new_v4(), created }
    }

    /// # Errors
    /// None that is known: it has no member that JSON lacks.
    pub fn encode(&self) -> Result<Vec<u8>, BackendError> {
        let mut text = serde_json::to_vec(self)
            .map_err(|error| BackendError::new(ErrorKind::Other, error.to_string()))?;
        text.push(b'\n');
        Ok(text)
    }

    /// `bytes`: up to one more than [`MARKER_MAX`] of those that lie in `place`.
    ///
    /// # Errors
    /// `Invalid` when it is damaged, `Unsupported` when a newer cairn wrote it.
    pub fn decode(bytes: &[u8], place: &str) -> Result<Self, BackendError> {
        let damaged = |what: String| {
            let message = format!(
                "{MARKER} in {place} is damaged ({what}): if the rest is sound, remove it and \
                 run `cairn backend add`"
            );
            BackendError::new(ErrorKind::Invalid, message)
        };
        if bytes.len() > MARKER_MAX {
            return Err(damaged(format!("more than {MARKER_MAX} bytes")));
        }
        // The format is read alone first: a newer marker may have another shape.
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if format > u64::from(FORMAT) {
            let message = format!(
                "{place} has format {format}, and this cairn knows up to {FORMAT}: use a newer \
                 cairn"
            );
            return Err(BackendError::new(ErrorKind::Unsupported, message));
        }
        serde_json::from_value(value).map_err(|error| damaged(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> BackendError {
        Marker::decode(text.as_bytes(), "here").unwrap_err()
    }

    #[test]
    fn a_marker_is_read_back_and_what_is_none_says_what_to_do() {
        let marker = Marker::new();
        let text = marker.encode().unwrap();
        assert_eq!(Marker::decode(&text, "here").unwrap().id, marker.id);
        let id = Uuid::nil();
        let later = format!("{{\"format\":1,\"id\":\"{id}\",\"colour\":\"red\"}}");
        assert_eq!(Marker::decode(later.as_bytes(), "here").unwrap().id, id);
        for (text, kind, hint) in [
            ("", ErrorKind::Invalid, "remove it"),
            ("{\"format\":1}", ErrorKind::Invalid, "`id`"),
            (&" ".repeat(MARKER_MAX + 1), ErrorKind::Invalid, "65536 bytes"),
            ("{\"format\":2,\"place\":7}", ErrorKind::Unsupported, "newer cairn"),
        ] {
            let error = refused(text);
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains(hint) && error.message.contains("here"), "{error}");
        }
    }
}
