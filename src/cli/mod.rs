//! The command line.

/// Runs `cairn` or `mount.cairn`.
#[must_use]
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
