//! A backend of one's own: here over memory, with a log of what is stored. It
//! passes the suite that every backend passes.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cairnfs::backends::{
    Backend, BackendError, Capabilities, ListPage, MemoryBackend, Presence, Usage, conformance,
};
use cairnfs::types::{Block, Cid};

struct Logged(MemoryBackend);

#[async_trait]
impl Backend for Logged {
    fn kind(&self) -> &'static str {
        "logged"
    }
    fn location(&self) -> String {
        self.0.location()
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        println!("put {} ({} bytes)", block.cid, block.data.len());
        self.0.put(block).await
    }
    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        self.0.get(cid, range).await
    }
    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        self.0.presence(cids).await
    }
    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.0.delete(cid).await
    }
    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        self.0.list(from, limit).await
    }
    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.0.put_name(name, cid).await
    }
    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        self.0.names(prefix).await
    }
    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.0.delete_name(name).await
    }
    async fn usage(&self) -> Result<Usage, BackendError> {
        self.0.usage().await
    }
    async fn probe(&self) -> Result<(), BackendError> {
        self.0.probe().await
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let empty = || async { Arc::new(Logged(MemoryBackend::new("example"))) as Arc<dyn Backend> };
    conformance::run(empty).await.map_err(anyhow::Error::msg)?;
    println!("the suite passes");
    Ok(())
}
