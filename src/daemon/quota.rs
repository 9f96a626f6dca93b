//! Quotas, as commands set and show them.

use serde_json::{Value, json};

use super::handler::{event, of_vfs, resolve};
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure};
use crate::metadata::{EventKind, MetadataError, QuotaLimits, QuotaUsage};
use crate::types::printable_path;
use crate::vfs::VfsError;

/// Part of a limit in percent, rounded up: 100 is reached at the limit only.
fn percent(used: u64, limit: Option<u64>) -> Option<u64> {
    let (used, limit) = (u128::from(used), u128::from(limit?));
    let percent = if limit == 0 { 100 } else { (used * 100).div_ceil(limit) };
    let percent = if used < limit { percent.min(99) } else { percent };
    Some(u64::try_from(percent).unwrap_or(u64::MAX))
}

fn show_one(volume: &Volume, quota: &QuotaUsage) -> Result<Value, Failure> {
    let QuotaUsage { ino, limits, bytes, inodes } = *quota;
    let path = volume.namespace.path_of(ino).map_err(failed)?.unwrap_or_default();
    Ok(json!({
        "path": printable_path(&path), "inode": ino,
        "used_bytes": bytes, "limit_bytes": limits.bytes, "bytes_percent": percent(bytes, limits.bytes),
        "used_inodes": inodes, "limit_inodes": limits.inodes,
        "inodes_percent": percent(inodes, limits.inodes),
    }))
}

/// Sets limits of a directory: those that are given; 0 lifts one.
pub(super) fn set(
    volume: &Volume,
    path: &[u8],
    bytes: Option<u64>,
    inodes: Option<u64>,
) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    let all = volume.namespace.quotas_at(ino).map_err(|e| of_vfs(e.into(), &what))?;
    let known = all.iter().find(|quota| quota.ino == ino).map(|quota| quota.limits);
    let known = known.unwrap_or_default();
    let limit = |given: Option<u64>, known| given.map_or(known, |n| Some(n).filter(|n| *n > 0));
    let limits =
        QuotaLimits { bytes: limit(bytes, known.bytes), inodes: limit(inodes, known.inodes) };
    if limits == QuotaLimits::default() {
        let text = format!(
            "{what}: no limit would be left; give --size or --inodes, or use `cairn quota remove`"
        );
        return Err(Failure::new(ErrorCode::Usage, text));
    }
    let set = volume.vfs.set_quota(ino, limits).map_err(|e| of_vfs(e, &what))?;
    event(volume, EventKind::QuotaSet, &what, &limits.to_string());
    show_one(volume, &set)
}

/// The quotas that hold at a path, the nearest first.
pub(super) fn show(volume: &Volume, path: &[u8]) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    let all = volume.namespace.quotas_at(ino).map_err(|e| of_vfs(e.into(), &what))?;
    let quotas: Result<Vec<Value>, Failure> = all.iter().map(|q| show_one(volume, q)).collect();
    Ok(json!({ "path": what, "quotas": quotas? }))
}

/// The quotas at and below a path.
pub(super) fn list(volume: &Volume, path: &[u8]) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    let all = volume.namespace.quotas_below(ino).map_err(|e| of_vfs(e.into(), &what))?;
    let quotas: Result<Vec<Value>, Failure> = all.iter().map(|q| show_one(volume, q)).collect();
    Ok(json!({ "path": what, "quotas": quotas? }))
}

/// Removes a directory's own quota.
pub(super) fn remove(volume: &Volume, path: &[u8]) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    volume.vfs.remove_quota(ino).map_err(|error| match error {
        VfsError::Metadata(MetadataError::NoAttribute) => {
            let text = format!("{what} has no quota of its own; `cairn quota ls` lists them");
            Failure::new(ErrorCode::NotFound, text)
        }
        other => of_vfs(other, &what),
    })?;
    event(volume, EventKind::QuotaRemoved, &what, "");
    Ok(json!({ "path": what }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_percent_is_the_limit_and_no_less() {
        assert_eq!(percent(0, Some(10)), Some(0));
        assert_eq!(percent(999_999, Some(1_000_000)), Some(99));
        assert_eq!(percent(10, Some(10)), Some(100));
        assert_eq!(percent(25, Some(10)), Some(250));
        assert_eq!(percent(u64::MAX, Some(1)), Some(u64::MAX));
        assert_eq!(percent(5, None), None);
    }
}
