use std::process::ExitCode;

/// Exit codes, as `--help` shows them.
pub(super) const TABLE: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong use: unknown flag, bad value, refused combination
  3  not found: no such path, backend or volume; not a volume
  4  degraded: fewer copies than asked for, or work left pending
  5  busy: the volume or the mount is in use
  6  damage was found and remains";

/// How a verb ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Degraded = 4,
    Busy = 5,
    Damaged = 6,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}
