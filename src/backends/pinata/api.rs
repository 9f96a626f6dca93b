//! Pinata's Files API v3 (docs.pinata.cloud, `pinata-api-v3.yaml`): files of the account.

use std::collections::BTreeMap;

use reqwest::{Body, Method};
use serde::Deserialize;
use serde_json::{Value, json};

use super::PinataAccount;
use crate::backends::bundle::{Dead, Entry};
use crate::backends::kubo::NamePin;
use crate::backends::{BackendError, ErrorKind};
use crate::types::Cid;

/// Files on a page.
const PAGE: &str = "1000";
/// The longest page.
const PAGE_BYTES: usize = 8 << 20;
/// Names that are read, at most.
const NAMES_MAX: usize = 100_000;

/// What a file of ours is: `blocks` or `name`.
const KIND: &str = "cairn";
const FOLDER: &str = "cairn-folder";
const LABEL: &str = "cairn-label";
const DEAD: &str = "cairn-dead";
const HOLDER: &str = "cairn-holder";

/// What is stored of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Blocks,
    Name,
}

impl FileKind {
    fn text(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Name => "name",
        }
    }
}

/// The form of each answer.
#[derive(Deserialize)]
pub(super) struct Data<T> {
    pub data: Option<T>,
}

/// A file of the account.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct File {
    pub id: String,
    /// None, empty or `pending` until it is known.
    #[serde(default)]
    pub cid: Option<String>,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    keyvalues: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Files {
    #[serde(default)]
    files: Option<Vec<File>>,
    #[serde(default)]
    next_page_token: Option<String>,
}

impl File {
    fn value(&self, key: &str) -> Option<&str> {
        self.keyvalues.as_ref()?.get(key)?.as_str()
    }

    /// `None` while it is not known.
    pub fn root(&self) -> Option<&str> {
        self.cid.as_deref().filter(|text| !matches!(*text, "" | "pending"))
    }

    /// The bundle that it is; `None` for others.
    pub fn entry(&self) -> Option<Entry> {
        let root: Cid = self.root()?.parse().ok()?;
        let label: Cid = self.value(LABEL)?.parse().ok()?;
        let dead = match self.value(DEAD) {
            None | Some("") => Dead::default(),
            Some(text) => match Dead::parse(text) {
                Ok(dead) => dead,
                Err(why) => {
                    tracing::warn!(id = self.id, why, "what is dead in a bundle does not read");
                    return None;
                }
            },
        };
        Some(Entry { root, label, handle: self.id.clone(), dead })
    }
}

/// A file's id in a path.
fn path_of(id: &str) -> Result<String, BackendError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if id.is_empty() || !id.bytes().all(plain) {
        let message = format!("`{}` is no id of a file", id.escape_debug());
        return Err(BackendError::new(ErrorKind::Other, message));
    }
    Ok(format!("files/public/{id}"))
}

impl PinataAccount {
    /// What a file of ours says of itself.
    pub(super) fn keyvalues(&self, kind: FileKind, more: &[(&str, &str)]) -> Value {
        let mut all = json!({ KIND: kind.text(), FOLDER: self.folder_value() });
        for (key, value) in more {
            all[*key] = Value::from(*value);
        }
        all
    }

    /// Those of a bundle.
    pub(super) fn of_bundle(&self, label: &Cid, dead: &Dead) -> Value {
        self.keyvalues(FileKind::Blocks, &[(LABEL, &label.to_string()), (DEAD, &dead.text())])
    }

    /// Those of a name.
    pub(super) fn of_name(&self, holder: &Cid) -> Value {
        self.keyvalues(FileKind::Name, &[(HOLDER, &holder.to_string())])
    }

    /// A filter needs a value: a folder without a name has one, too.
    fn folder_value(&self) -> String {
        format!(":{}", self.folder)
    }

    fn is_ours(&self, file: &File, kind: FileKind) -> bool {
        file.value(KIND) == Some(kind.text()) && file.value(FOLDER) == Some(&self.folder_value())
    }

    /// Files of ours of a kind, the newest first, and where the next page begins. A service
    /// that takes no filter lists all, of which ours are taken.
    pub(super) async fn files(
        &self,
        kind: FileKind,
        more: &[(&str, &str)],
        from: Option<&str>,
    ) -> Result<(Vec<File>, Option<String>), BackendError> {
        let (of_kind, of_folder) = (format!("keyvalues[{KIND}]"), format!("keyvalues[{FOLDER}]"));
        let folder = self.folder_value();
        let mut arguments = vec![
            ("limit", PAGE),
            ("order", "DESC"),
            (of_kind.as_str(), kind.text()),
            (of_folder.as_str(), folder.as_str()),
        ];
        arguments.extend(more);
        arguments.extend(from.map(|from| ("pageToken", from)));
        let answer = self.api.request(Method::GET, "files/public", &arguments, None).await?;
        let page: Data<Files> = answer.json_of(PAGE_BYTES).await?;
        let Some(page) = page.data else { return Ok((Vec::new(), None)) };
        let files = page.files.unwrap_or_default();
        let next = page.next_page_token.filter(|next| !next.is_empty() && !files.is_empty());
        Ok((files.into_iter().filter(|file| self.is_ours(file, kind)).collect(), next))
    }

    /// All of ours with this CID.
    pub(super) async fn files_of(
        &self,
        kind: FileKind,
        root: &Cid,
    ) -> Result<Vec<File>, BackendError> {
        let text = root.to_string();
        let (files, _) = self.files(kind, &[("cid", &text)], None).await?;
        Ok(files.into_iter().filter(|file| file.root() == Some(&text)).collect())
    }

    /// A file as it is now; `None` when it is not there.
    pub(super) async fn file(&self, id: &str) -> Result<Option<File>, BackendError> {
        match self.api.request(Method::GET, &path_of(id)?, &[], None).await {
            Ok(answer) => Ok(answer.json::<Data<File>>().await?.data),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes what a file says of itself: all of it, as Pinata does not say whether the rest
    /// would stay.
    pub(super) async fn update(&self, id: &str, keyvalues: &Value) -> Result<(), BackendError> {
        let text = json!({ "keyvalues": keyvalues }).to_string();
        let body = Some(("application/json", Body::from(text)));
        let path = path_of(id)?;
        let answer = self.api.exchange(Method::PUT, (&path, &[]), &[], body).await?;
        let now = answer.json::<Data<File>>().await?.data;
        let wanted = keyvalues.get(DEAD).and_then(Value::as_str);
        if now.as_ref().is_some_and(|file| file.value(DEAD) != wanted) {
            let message = format!("{} did not take what is dead in {id}", self.shown);
            return Err(BackendError::new(ErrorKind::Other, message));
        }
        Ok(())
    }

    /// Deletes a file; one that is not there is success.
    pub(super) async fn remove_file(&self, id: &str) -> Result<(), BackendError> {
        match self.api.request(Method::DELETE, &path_of(id)?, &[], None).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Names that begin so, with their files.
    pub(super) async fn named(&self, prefix: &str) -> Result<Vec<(File, NamePin)>, BackendError> {
        let (mut from, mut all) = (None::<String>, Vec::new());
        let wanted = self.holders.pin_name(prefix);
        loop {
            let (files, next) = self.files(FileKind::Name, &[], from.as_deref()).await?;
            for file in files {
                let Some(name) = file.name.clone().filter(|name| name.starts_with(&wanted)) else {
                    continue;
                };
                let holder = file.value(HOLDER).and_then(|text| text.parse::<Cid>().ok());
                let pin = holder.and_then(|holder| self.holders.name_of(&name, &holder));
                if let Some(pin) = pin {
                    all.push((file, pin));
                } else {
                    tracing::warn!(id = file.id, name, "a file that is no name is ignored");
                }
            }
            if all.len() > NAMES_MAX {
                let message = format!("{} has more than {NAMES_MAX} names", self.shown);
                return Err(BackendError::new(ErrorKind::Invalid, message));
            }
            match next {
                Some(next) if from.as_ref() != Some(&next) => from = Some(next),
                _ => return Ok(all),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_it_is() {
        let root = crate::types::cid::of_raw(b"x");
        let text = format!(
            r#"{{"data":{{"id":"0191-a","cid":"{root}","size":3,"name":"n","is_duplicate":true,
               "keyvalues":{{"cairn-label":"{root}","cairn-dead":"AQI","other":7}}}}}}"#
        );
        let file = serde_json::from_str::<Data<File>>(&text).unwrap().data.unwrap();
        let entry = file.entry().unwrap();
        assert_eq!((entry.root, entry.handle.as_str()), (root, "0191-a"));
        assert_eq!(entry.dead.text(), "AQI");
        for bare in [r#"{"id":"1"}"#, r#"{"id":"1","cid":"pending","keyvalues":null}"#] {
            let file: File = serde_json::from_str(bare).unwrap();
            assert!(file.root().is_none() && file.entry().is_none());
        }
        let empty: Data<Files> = serde_json::from_str(r#"{"data":{"files":null}}"#).unwrap();
        assert!(empty.data.unwrap().files.is_none());
        assert!(path_of("../x").is_err() && path_of("").is_err());
        assert_eq!(path_of("0191-a").unwrap(), "files/public/0191-a");
    }
}
