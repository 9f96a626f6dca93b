//! Which policies a content has, as files come and go.

use std::collections::HashMap;
use std::sync::Arc;

use super::{PolicyBook, ReplicationError, Replicator};
use crate::metadata::merge_policies;
use crate::types::Cid;

/// What a content's policies are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Numbers of the policies; none is the volume's own.
    pub numbers: Vec<u32>,
    /// These are all. Otherwise a content that several files have keeps what it has,
    /// too: who else asks for it is not known.
    pub whole: bool,
}

impl Replicator {
    /// The volume's policies by name and number.
    pub fn policies(&self) -> &Arc<PolicyBook> {
        &self.core.policies
    }

    /// The number of an expression, kept before it is used.
    ///
    /// # Errors
    /// `TooManyPolicies`; of the metadata.
    pub fn policy_number(&self, expression: &str) -> Result<u32, ReplicationError> {
        self.core.policies.number_of(expression, |number, text| {
            Ok(self.core.namespace.keep_policy(number, text)?)
        })
    }

    /// Gives contents their policies, judges them and queues what is missing, in one
    /// transaction; returns those that several files have.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn assign(&self, batch: &HashMap<Cid, Assignment>) -> Result<Vec<Cid>, ReplicationError> {
        let (core, roots) = (&self.core, batch.keys().copied().collect::<Vec<Cid>>());
        let places = core.registry.places();
        let moment = core.machine.moment(&places);
        let mut shared = Vec::new();
        core.namespace.update_contents(&roots, &mut |root, record, row| {
            let Some(Assignment { numbers, whole }) = batch.get(root) else { return };
            if record.refs > 1 {
                shared.push(*root);
            }
            if *whole || record.refs <= 1 {
                record.policies.clone_from(numbers);
            } else {
                merge_policies(&mut record.policies, numbers);
            }
            core.policies.keep_strictest(&mut record.policies);
            core.machine.settle(root, record, row, &moment, None);
        })?;
        core.submit(&roots);
        core.waiters.notify(&roots);
        Ok(shared)
    }
}
