/// The UnixFS form of a file name. UTF-8 names without the escape's own mark
/// are unchanged; see `src/docs/format.md`, "Names in UnixFS".
#[must_use]
pub fn escape_name(name: &[u8]) -> String {
    let _ = name;
    todo!()
}

/// The reverse of [`escape_name`].
#[must_use]
pub fn unescape_name(name: &str) -> Vec<u8> {
    let _ = name;
    todo!()
}
