/// Blocks in memory, for tests.
pub struct MemoryBackend {}
