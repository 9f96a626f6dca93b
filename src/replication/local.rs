/// The local store as a backend.
pub struct LocalBackend {}
