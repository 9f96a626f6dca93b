//! Walks of the tree by its rows, for verbs.

use std::ops::ControlFlow;

use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure};
use crate::types::{Cid, Ino};

/// Visits the files at or below an inode that have a content.
pub(super) fn each_file(
    volume: &Volume,
    top: Ino,
    visit: &mut dyn FnMut(Ino, Cid) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    let mut outcome = Ok(());
    let walked = volume.namespace.each_file(top, &mut |ino, root| {
        if volume.shutdown.is_triggered() {
            outcome = Err(Failure::new(ErrorCode::Busy, "the volume is being unmounted"));
            return ControlFlow::Break(());
        }
        visit(ino, *root).unwrap_or_else(|failure| {
            outcome = Err(failure);
            ControlFlow::Break(())
        })
    });
    walked.map_err(failed)?;
    outcome
}
