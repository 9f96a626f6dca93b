//! One block of a Kubo: its length, its bytes, and the removal of wrong ones.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;

use super::error::{is_absent, of_message};
use super::holder::{raw, unpinned};
use super::rpc::Rpc;
use crate::backends::{BackendError, ErrorKind};
use crate::types::{Block, Cid};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stat {
    size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Removed {
    #[serde(default)]
    error: String,
}

impl Rpc {
    /// The length of a block, when its bytes are there.
    pub async fn length(&self, id: &Cid) -> Result<Option<u64>, BackendError> {
        match self.ask::<Stat>("block/stat", &[("arg", &raw(id).to_string())]).await {
            Ok(stat) => Ok(Some(stat.size)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its bytes, as they are there.
    pub async fn bytes(&self, id: &Cid) -> Result<Bytes, BackendError> {
        let argument = raw(id).to_string();
        self.read(id, &[("arg", &argument), ("offline", "true")]).await
    }

    /// Its bytes, wherever Kubo finds them in this time.
    pub async fn fetch(&self, id: &Cid, most: Duration) -> Result<Bytes, BackendError> {
        let (argument, most) = (raw(id).to_string(), format!("{}s", most.as_secs()));
        self.read(id, &[("arg", &argument), ("timeout", &most)]).await
    }

    async fn read(&self, id: &Cid, arguments: &[(&str, &str)]) -> Result<Bytes, BackendError> {
        let answer = self.request(Method::POST, "block/get", arguments, None).await;
        let answer = answer.map_err(|error| {
            if is_absent(&error) {
                let message = format!("{} has no block {id}", self.at());
                return BackendError::new(ErrorKind::NotFound, message);
            }
            error
        })?;
        answer.whole(Block::MAX_LEN).await
    }

    /// Sees to it that no wrong bytes lie where a block is to be put.
    pub async fn make_way_for(&self, block: &Block) -> Result<(), BackendError> {
        for _ in 0..2 {
            match self.bytes(&block.cid).await {
                Ok(bytes) if bytes == block.data => return Ok(()),
                Err(error) if is_absent(&error) => return Ok(()),
                Err(error) if error.kind != ErrorKind::Corrupt => return Err(error),
                _ => {}
            }
        }
        // Wrong, read twice: nobody loses anything by them.
        self.remove(&block.cid).await
    }

    /// Removes bytes that are wrong, whoever has them pinned: Kubo writes over nothing.
    async fn remove(&self, id: &Cid) -> Result<(), BackendError> {
        tracing::warn!(backend = %self.at(), %id, "wrong bytes are replaced");
        let argument = unpinned(id).to_string();
        let mut answer =
            self.send("block/rm", &[("arg", &argument), ("force", "true")], None).await?;
        while let Some(line) = answer.line::<Removed>().await? {
            if !line.error.is_empty() {
                return Err(of_message(self.at(), &line.error));
            }
        }
        Ok(())
    }
}
