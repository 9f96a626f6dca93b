//! The process's limit of file descriptors, and who may take how many of them.
//!
//! | who | part |
//! |---|---|
//! | files that are being written (`store`) | a quarter, 16 to 4096 |
//! | segments and packs that are read (`store`) | an eighth, 16 to 256 |
//! | tables of the metadata engine | an eighth, 16 to 128 |
//! | a batch that a directory backend writes | a thirty-second, 16 to 128 |

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The least of a share: with fewer nothing works.
const LEAST: usize = 16;

/// A part of the limit, between a least number and `most`.
#[must_use]
pub fn descriptor_share(part: usize, most: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    (limit / part).clamp(LEAST, most)
}

/// Raises the limit as far as an ordinary process may. Where it may not, the
/// shares are smaller.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of descriptors stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_its_bounds() {
        assert_eq!(descriptor_share(usize::MAX, 100), LEAST);
        assert_eq!(descriptor_share(1, 20), 20);
    }
}
