//! What the C library's allocator is told, for the daemon to keep to its budget.
//!
//! It reads it from the environment when a program starts, so the daemon is started
//! with it; see decision 0008 for what each saves.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Few arenas: each keeps what it once had. Large buffers are mapped each on its
/// own, and unmapped; a threshold that is set does not grow.
const SETTINGS: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_MMAP_THRESHOLD_", "262144"),
    ("MALLOC_TRIM_THRESHOLD_", "1048576"),
];

/// The settings that the environment leaves open.
pub(super) fn settings() -> impl Iterator<Item = (&'static str, &'static str)> {
    SETTINGS.into_iter().filter(|(name, _)| std::env::var_os(name).is_none())
}

/// Begins this program again, once, when it began without the settings. It does
/// without them where it cannot.
pub(super) fn settle() {
    let mut words = std::env::args_os();
    let (Some(name), Ok(program)) = (words.next(), std::env::current_exe()) else { return };
    if settings().next().is_some() {
        let error = Command::new(program).arg0(name).args(words).envs(settings()).exec();
        eprintln!("cairn: more memory than needed may stay in use: {error}");
    }
}
