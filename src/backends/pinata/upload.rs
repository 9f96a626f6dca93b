//! Uploads: an archive (CAR) in one form, or in pieces that go on where they stopped.
//!
//! docs.pinata.cloud, "Upload by CAR File" and "Resumable Uploads" (TUS 1.0.0, core protocol
//! and creation). What an archive is, is found out after the upload: its file has no CID
//! until then, and the gateway nothing to give.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use ::cid::multibase::Base;
use bytes::Bytes;
use reqwest::header::HeaderName;
use reqwest::{Body, Method, Url};
use serde_json::Value;

use super::PinataAccount;
use super::api::{Data, File, FileKind};
use crate::backends::kubo::{CONTENT_TYPE, Pieces, in_form};
use crate::backends::{BackendError, ErrorKind};
use crate::types::Cid;

/// More goes in pieces: the limit of Pinata's own client, below the 100 MB that they tell.
pub(super) const WHOLE_MAX: u64 = 94_371_840;
/// Pieces are below 50 MB.
const PIECE: u64 = 48_000_000;
/// How long it may take until an archive is served.
const SETTLED: Duration = Duration::from_mins(1);
/// Between looks, from the first to the last.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// Pieces that fail one after the other without anything arriving.
const TRIES: u32 = 3;
/// Uploads that did not end and are remembered.
const UNENDED: usize = 256;

const RESUMABLE: (HeaderName, &str) = (HeaderName::from_static("tus-resumable"), "1.0.0");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_OFFSET: &str = "upload-offset";

/// How far an upload of an earlier call came.
#[derive(Debug, Clone)]
pub(super) enum Unended {
    /// It is there, as a file of this id.
    File(String),
    /// Where its pieces go.
    Pieces(String),
}

/// An archive, and what its file says of itself.
pub(super) struct Upload<'u> {
    pub kind: FileKind,
    pub name: &'u str,
    pub root: Cid,
    pub keyvalues: Value,
    pub archive: VecDeque<Bytes>,
}

impl Upload<'_> {
    fn len(&self) -> u64 {
        self.archive.iter().map(|piece| piece.len() as u64).sum()
    }

    /// TUS, `Upload-Metadata`: keys with values in base64.
    fn metadata(&self) -> String {
        let keyvalues = self.keyvalues.to_string();
        let all = [
            ("filename", self.name),
            ("filetype", "application/vnd.ipld.car"),
            ("network", "public"),
            ("car", "true"),
            ("keyvalues", &keyvalues),
        ];
        let pair = |(key, value): &(&str, &str)| format!("{key} {}", Base::Base64Pad.encode(value));
        all.iter().map(pair).collect::<Vec<_>>().join(",")
    }
}

/// Bytes of the pieces from an offset on, without a copy.
fn part(pieces: &VecDeque<Bytes>, offset: u64, most: u64) -> VecDeque<Bytes> {
    let (mut skip, mut left) = (offset, most);
    let mut part = VecDeque::new();
    for piece in pieces {
        let len = piece.len() as u64;
        if skip >= len {
            skip -= len;
            continue;
        }
        let end = len.min(skip.saturating_add(left));
        part.push_back(piece.slice(skip as usize..end as usize));
        left -= end - skip;
        skip = 0;
        if left == 0 {
            break;
        }
    }
    part
}

impl PinataAccount {
    fn wrong(&self, message: &str) -> BackendError {
        BackendError::new(ErrorKind::Other, format!("{}: {message}", self.shown))
    }

    /// Uploads it, unless an earlier call did, and waits until it is what it should be. It is
    /// served then, or soon; until [`Self::ended`] the next call goes on from here.
    pub(super) async fn upload(&self, upload: &Upload<'_>) -> Result<File, BackendError> {
        let earlier = self.unended.lock().remove(&upload.root);
        let id = match earlier {
            Some(Unended::File(id)) if self.file(&id).await?.is_some() => Some(id),
            Some(Unended::Pieces(at)) => self.in_pieces(upload, Some(at)).await?,
            _ if upload.len() > WHOLE_MAX => self.in_pieces(upload, None).await?,
            _ => Some(self.whole(upload).await?),
        };
        let until = Instant::now() + SETTLED;
        if let Some(id) = id {
            self.remember(upload.root, Unended::File(id.clone()));
            return self.follow(&id, &upload.root, until).await;
        }
        let file = self.find(upload, until).await?;
        self.remember(upload.root, Unended::File(file.id.clone()));
        Ok(file)
    }

    /// There is nothing to go on from.
    pub(super) fn ended(&self, root: &Cid) {
        self.unended.lock().remove(root);
    }

    fn remember(&self, root: Cid, how: Unended) {
        let mut unended = self.unended.lock();
        // Forgotten ones are sent again, and found to be there.
        if unended.len() >= UNENDED {
            unended.clear();
        }
        unended.insert(root, how);
    }

    /// In one form; the id of its file.
    async fn whole(&self, upload: &Upload<'_>) -> Result<String, BackendError> {
        let keyvalues = upload.keyvalues.to_string();
        let fields = [
            ("network", "public"),
            ("name", upload.name),
            ("car", "true"),
            ("keyvalues", &keyvalues),
        ];
        let body = Body::wrap(in_form(&fields, upload.archive.clone()));
        let body = Some((CONTENT_TYPE, body));
        let answer = self.uploads.exchange(Method::POST, ("files", &[]), &[], body).await?;
        let file = answer.json::<Data<File>>().await?.data;
        file.map(|file| file.id).ok_or_else(|| self.wrong("an upload was answered with nothing"))
    }

    /// In pieces, from where they stopped. The file's id is found later.
    async fn in_pieces(
        &self,
        upload: &Upload<'_>,
        earlier: Option<String>,
    ) -> Result<Option<String>, BackendError> {
        let len = upload.len();
        let known = match earlier {
            Some(at) => self.offset_of(&at).await?.map(|offset| (at, offset)),
            None => None,
        };
        let (at, mut offset) = match known {
            Some(known) => known,
            None => (self.begin(upload, len).await?, 0),
        };
        let mut failed = 0;
        while offset < len {
            match self.piece(&at, upload, offset).await {
                Ok(next) if next > offset && next <= len => {
                    offset = next;
                    failed = 0;
                }
                Ok(next) => {
                    let message = format!("an upload of {len} bytes went from {offset} to {next}");
                    return Err(self.wrong(&message));
                }
                Err(error) => {
                    failed += 1;
                    let is_passing = !matches!(error.kind, ErrorKind::Invalid | ErrorKind::Denied);
                    // The next call goes on from here.
                    if is_passing {
                        self.remember(upload.root, Unended::Pieces(at.clone()));
                    }
                    if !is_passing || failed >= TRIES || error.retry_after_ms.is_some() {
                        return Err(error);
                    }
                    let Some(now) = self.offset_of(&at).await? else { return Err(error) };
                    offset = now;
                }
            }
        }
        self.ended(&upload.root);
        Ok(None)
    }

    /// TUS, Creation: where the pieces go. Only of the same server: they carry the key.
    async fn begin(&self, upload: &Upload<'_>, len: u64) -> Result<String, BackendError> {
        let (len, metadata) = (len.to_string(), upload.metadata());
        let headers =
            [RESUMABLE, (UPLOAD_LENGTH, len.as_str()), (UPLOAD_METADATA, metadata.as_str())];
        let answer = self.uploads.exchange(Method::POST, ("files", &[]), &headers, None).await?;
        let at = answer.header("location").unwrap_or_default().to_owned();
        let base = self.uploads.base();
        let to = base.join(&at).ok().filter(|_| !at.is_empty());
        let origin = Url::origin(base);
        let to = to.filter(|to| to.origin() == origin);
        to.map(String::from).ok_or_else(|| {
            self.wrong("an upload in pieces was begun, and does not say where they go")
        })
    }

    /// TUS, HEAD: how much is there; `None` when nobody knows of it.
    async fn offset_of(&self, at: &str) -> Result<Option<u64>, BackendError> {
        let answer = self.uploads.exchange(Method::HEAD, (at, &[]), &[RESUMABLE], None).await;
        match answer {
            Ok(answer) => Ok(answer.header(UPLOAD_OFFSET).and_then(|text| text.parse().ok())),
            // 404, 410, and 403 of servers that say no more: it is begun again.
            Err(error)
                if matches!(
                    error.kind,
                    ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Denied
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// TUS, PATCH: a piece; how much is there then.
    async fn piece(&self, at: &str, upload: &Upload<'_>, offset: u64) -> Result<u64, BackendError> {
        let from = offset.to_string();
        let headers = [RESUMABLE, (HeaderName::from_static(UPLOAD_OFFSET), from.as_str())];
        let body = Body::wrap(Pieces::new(part(&upload.archive, offset, PIECE)));
        let body = Some(("application/offset+octet-stream", body));
        let answer = self.uploads.exchange(Method::PATCH, (at, &[]), &headers, body).await?;
        if let Some(told) = answer.header("upload-cid")
            && told != upload.root.to_string()
        {
            return Err(self.other(&upload.root, told));
        }
        let next = answer.header(UPLOAD_OFFSET).and_then(|text| text.parse().ok());
        Ok(next.unwrap_or_else(|| (offset + PIECE).min(upload.len())))
    }

    fn other(&self, root: &Cid, told: &str) -> BackendError {
        let shown: String = told.chars().take(100).collect();
        let message = format!(
            "{} made `{}` of the archive of {root}: nothing of it is taken for stored",
            self.shown,
            shown.escape_debug()
        );
        BackendError::new(ErrorKind::Corrupt, message)
    }

    /// The file of an upload in pieces, which tell no id.
    async fn find(&self, upload: &Upload<'_>, until: Instant) -> Result<File, BackendError> {
        let mut wait = LOOKS.0;
        loop {
            let mut files = self.files_of(upload.kind, &upload.root).await?;
            if let Some(file) = files.pop() {
                return Ok(file);
            }
            self.pause(&mut wait, until, &upload.root).await?;
        }
    }

    /// Waits until its CID is known, which has to be this one.
    async fn follow(&self, id: &str, root: &Cid, until: Instant) -> Result<File, BackendError> {
        let mut wait = LOOKS.0;
        loop {
            let Some(file) = self.file(id).await? else {
                self.ended(root);
                let message =
                    format!("the archive of {root} did not become a file: is it paid for?");
                return Err(self.wrong(&message));
            };
            match file.root() {
                Some(text) if text == root.to_string() => return Ok(file),
                Some(other) => {
                    let error = self.other(root, other);
                    self.ended(root);
                    self.remove_file(id).await?;
                    return Err(error);
                }
                None => self.pause(&mut wait, until, root).await?,
            }
        }
    }

    /// A little longer each time, until it is too long.
    pub(super) async fn pause(
        &self,
        wait: &mut Duration,
        until: Instant,
        root: &Cid,
    ) -> Result<(), BackendError> {
        if Instant::now() + *wait > until {
            let message = format!(
                "{} has the archive of {root}, and has not taken it in after {SETTLED:?}: it is \
                 looked for again",
                self.shown
            );
            return Err(BackendError::new(ErrorKind::Timeout, message));
        }
        tokio::time::sleep(*wait).await;
        *wait = (*wait * 2).min(LOOKS.1);
        Ok(())
    }

    /// How long `store` may wait for what it stored.
    pub(super) fn patience() -> (Duration, Instant) {
        (LOOKS.0, Instant::now() + SETTLED)
    }
}

/// Uploads that did not end.
pub(super) type Unendeds = parking_lot::Mutex<HashMap<Cid, Unended>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_pieces_is_the_bytes_of_its_range() {
        let pieces: VecDeque<Bytes> =
            ["abc", "", "defg", "h"].map(|text| Bytes::from_static(text.as_bytes())).into();
        let all = b"abcdefgh";
        for from in 0..=all.len() {
            for most in 1..=all.len() {
                let part = part(&pieces, from as u64, most as u64);
                let found: Vec<u8> = part.iter().flat_map(|piece| piece.to_vec()).collect();
                assert_eq!(found, all[from..(from + most).min(all.len())], "{from} {most}");
            }
        }
    }

    #[test]
    fn metadata_of_an_upload_are_pairs_in_base64() {
        let upload = Upload {
            kind: FileKind::Blocks,
            name: "n",
            root: crate::types::cid::of_raw(b""),
            keyvalues: serde_json::json!({"a": "b"}),
            archive: VecDeque::new(),
        };
        let text = "filename bg==,filetype YXBwbGljYXRpb24vdm5kLmlwbGQuY2Fy,network cHVibGlj,\
                    car dHJ1ZQ==,keyvalues eyJhIjoiYiJ9";
        assert_eq!(upload.metadata(), text);
    }
}
