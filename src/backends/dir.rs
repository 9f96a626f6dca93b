/// A directory: blocks sharded by CID.
pub struct DirBackend {}
