//! Looks at a copy without reading all of it.

use std::cell::RefCell;
use std::sync::Arc;

use super::ReplicationError;
use super::calls::Calls;
use super::send::{Found, Met, children, stopped};
use crate::backends::{Backend, BackendError, ErrorKind, Presence};
use crate::content::{ContentError, parse_node, walk_post_order};
use crate::types::{Cid, cid};

/// Leaves of a content that one audit reads. Of a content of which one leaf in ten is
/// bad, 16 find that in 81 of 100 audits.
const LEAVES: usize = 16;

/// A few of many, each with the same chance (reservoir sampling, Vitter's algorithm R).
struct Sample {
    leaves: Vec<Cid>,
    met: usize,
}

impl Sample {
    fn add(&mut self, leaf: Cid, random: &mut fastrand::Rng) {
        self.met += 1;
        if self.leaves.len() < LEAVES {
            self.leaves.push(leaf);
        } else if let Some(slot) = self.leaves.get_mut(random.usize(..self.met)) {
            *slot = leaf;
        }
    }
}

/// Reads every node of a content at a backend, asks for every leaf, with its length, and
/// reads some leaves, chosen at random. `Good` when these were all of them, `Sound` when
/// not. The second part of the answer is the number of bytes read.
pub(super) fn audit(
    backend: &Arc<dyn Backend>,
    calls: &Calls,
    root: &Cid,
    random: &mut fastrand::Rng,
) -> Result<(Found, u64), ReplicationError> {
    let failure = RefCell::new(None);
    let fail = |error| {
        *failure.borrow_mut() = Some(error);
        stopped()
    };
    let bytes = RefCell::new(0);
    let read = |id: &Cid| match calls.wait(backend.get(id, None)) {
        Ok(data) if cid::verify(id, &data) == cid::Verdict::Match => {
            *bytes.borrow_mut() += data.len() as u64;
            Ok(data)
        }
        Ok(_) => Err(ContentError::Mismatch(*id)),
        Err(ReplicationError::Backend(e)) if e.kind == ErrorKind::Corrupt => {
            Err(ContentError::Mismatch(*id))
        }
        Err(ReplicationError::Backend(e)) if e.kind == ErrorKind::NotFound => {
            Err(ContentError::Missing(*id))
        }
        Err(error) => Err(fail(error)),
    };
    let (mut met, mut sample) = (Met::default(), Sample { leaves: Vec::new(), met: 0 });
    let mut walk = || -> Result<(), ContentError> {
        walk_post_order(
            root,
            &mut |id| Ok(id == root || (id.codec() != cid::RAW && met.first(id))),
            &mut |id| {
                let data = read(id)?;
                if id.codec() != cid::RAW {
                    let below = children(&parse_node(id, &data)?);
                    let below = below.into_iter().filter(|(id, _)| id.codec() == cid::RAW);
                    let leaves: Vec<_> = below.collect();
                    let ids: Vec<Cid> = leaves.iter().map(|(id, _)| *id).collect();
                    let found = calls.wait(backend.presence(&ids)).map_err(fail)?;
                    for ((leaf, len), presence) in leaves.iter().zip(found) {
                        match presence {
                            Presence::Present(there) if len.is_none_or(|len| len == there) => {}
                            Presence::Present(_) => return Err(ContentError::Mismatch(*leaf)),
                            Presence::Absent => return Err(ContentError::Missing(*leaf)),
                            Presence::Unknown => {
                                let unknown = "it does not say whether a block is there";
                                let error = BackendError::new(ErrorKind::Unavailable, unknown);
                                return Err(fail(error.into()));
                            }
                        }
                        sample.add(*leaf, random);
                    }
                }
                Ok(data)
            },
            &mut |_, _| Ok(()),
        )?;
        sample.leaves.iter().try_for_each(|leaf| read(leaf).map(drop))
    };
    let looked = walk();
    let all = sample.met <= LEAVES;
    let bytes = bytes.into_inner();
    match (failure.into_inner(), looked) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok((if all { Found::Good } else { Found::Sound }, bytes)),
        (None, Err(ContentError::Mismatch(_))) => Ok((Found::Wrong, bytes)),
        (None, Err(ContentError::Missing(_))) => Ok((Found::Missing, bytes)),
        (None, Err(error)) => Err(ReplicationError::Io(std::io::Error::other(error))),
    }
}
