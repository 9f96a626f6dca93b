//! Changes of the policy, and what they mean for what is stored already.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::handler::{event, of_vfs, resolve};
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::config::Config;
use crate::replication::Policy;
use crate::types::{Cid, FileKind, Ino};

/// Contents of one transaction.
const BATCH: usize = 512;

type Progress<'p> = &'p mut dyn FnMut(ProgressReport);
/// Least, aimed for, at most.
type Limits = (u8, u8, u8);

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Usage, error.to_string())
}

/// Sets parts of the volume's policy.
pub(super) fn set_volume(
    volume: &Volume,
    text: &str,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let policy = volume.policy.read().overridden_by(text).map_err(usage)?;
    let mounted = policy.overridden_by(&volume.policy_override).map_err(usage)?;
    Config::set_policy(&volume.dir, &policy).map_err(failed)?;
    volume.policy.write().clone_from(&policy);
    volume.vfs.set_policy(mounted);
    volume.checkpointer.set_policy(policy.clone());
    let contents = apply(volume, Ino::ROOT, &stored(volume, Ino::ROOT)?, progress)?;
    event(volume, "policy_set", "volume", &policy.to_string())?;
    Ok(json!({ "policy": policy.to_string(), "contents": contents }))
}

/// Sets the policy of a file or of all below a directory; empty inherits again.
pub(super) fn set_path(
    volume: &Volume,
    path: &[u8],
    text: &str,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    let here = volume.vfs.policy_of(ino).map_err(|e| of_vfs(e, &what))?;
    here.overridden_by(text).map_err(usage)?;
    let set = volume.vfs.set_xattr(ino, b"user.cairn.policy", text.as_bytes(), (false, false));
    set.map_err(|e| of_vfs(e, &what))?;
    let policy = stored(volume, ino)?;
    let contents = apply(volume, ino, &policy, progress)?;
    event(volume, "policy_set", &what, text)?;
    Ok(json!({ "path": what, "policy": policy.to_string(), "set": text, "contents": contents }))
}

/// What holds at an inode without this mount's options.
fn stored(volume: &Volume, ino: Ino) -> Result<Policy, Failure> {
    let (mut texts, mut at) = (Vec::new(), ino);
    loop {
        let inode = volume.namespace.inode(at).map_err(failed)?;
        texts.push(inode.policy);
        if at == Ino::ROOT {
            break;
        }
        at = inode.parent;
    }
    let mut policy = volume.policy.read().clone();
    for text in texts.iter().rev() {
        policy = narrowed(policy, text);
    }
    Ok(policy)
}

/// A stored text that does not parse any more (of a newer version) inherits.
fn narrowed(policy: Policy, text: &str) -> Policy {
    policy.overridden_by(text).unwrap_or(policy)
}

/// Gives every content below `top` the limits that hold where it is used, and
/// queues what is missing now. A content that several files share gets the
/// highest of theirs; where some of them are outside of `top`, it is never
/// lowered. Memory: eight bytes a content.
fn apply(
    volume: &Volume,
    top: Ino,
    policy: &Policy,
    progress: Progress<'_>,
) -> Result<u64, Failure> {
    volume.vfs.commit_all().map_err(failed)?;
    let whole = top == Ino::ROOT;
    let mut seen: HashSet<u64> = HashSet::new();
    let mut batch: HashMap<Cid, (Limits, bool)> = HashMap::new();
    let (mut stack, mut count) = (vec![(top, policy.clone())], 0);
    while let Some((ino, policy)) = stack.pop() {
        let inode = volume.namespace.inode(ino).map_err(failed)?;
        if inode.kind == FileKind::Directory {
            children(volume, ino, &policy, &mut stack)?;
            continue;
        }
        let Some(root) = inode.content else { continue };
        let limits = (policy.min, policy.target, policy.max);
        let first = seen.insert(short(&root));
        let entry = batch.entry(root).or_insert((limits, first));
        entry.0 = highest(entry.0, limits);
        count += u64::from(first);
        if batch.len() == BATCH {
            write(volume, &std::mem::take(&mut batch), whole)?;
            progress(ProgressReport { what: "contents".into(), done: count, total: None });
        }
    }
    write(volume, &batch, whole)?;
    volume.replicator.replan().map_err(failed)?;
    Ok(count)
}

fn children(
    volume: &Volume,
    ino: Ino,
    policy: &Policy,
    stack: &mut Vec<(Ino, Policy)>,
) -> Result<(), Failure> {
    let mut after = 0;
    loop {
        let page = volume.namespace.read_directory(ino, after, 1024).map_err(failed)?;
        after = page.entries.last().map_or(after, |(_, dentry)| dentry.cookie);
        for (_, dentry) in &page.entries {
            let text = volume.namespace.inode(dentry.ino).map_err(failed)?.policy;
            let below =
                if text.is_empty() { policy.clone() } else { narrowed(policy.clone(), &text) };
            stack.push((dentry.ino, below));
        }
        if page.last {
            return Ok(());
        }
    }
}

/// Digests are uniform: their first bytes tell contents apart. A clash would
/// keep a limit too high, never too low.
fn short(root: &Cid) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(root.hash().digest()) {
        *to = *from;
    }
    u64::from_be_bytes(bytes)
}

fn highest(a: Limits, b: Limits) -> Limits {
    (a.0.max(b.0), a.1.max(b.1), a.2.max(b.2))
}

fn write(
    volume: &Volume,
    batch: &HashMap<Cid, (Limits, bool)>,
    whole: bool,
) -> Result<(), Failure> {
    let roots: Vec<Cid> = batch.keys().copied().collect();
    volume
        .namespace
        .update_contents(&roots, &mut |root, record, _| {
            let Some((limits, first)) = batch.get(root) else { return };
            let alone = record.refs <= 1 || (whole && *first);
            let held = (record.min, record.target, record.max);
            (record.min, record.target, record.max) =
                if alone { *limits } else { highest(held, *limits) };
        })
        .map_err(failed)
}
