//! Mounting as root without a helper, as `fuse.cairn`: what `df -T`, findmnt and
//! mount(8)'s remount go by. (`fuser` mounts as plain `fuse`, and mount(8) then
//! takes the source for a program to run.)

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::MountFlags;

use super::MountOptions;

/// Name of the type in /proc/mounts.
const TYPE: &str = "fuse.cairn";

fn flags(options: &MountOptions) -> MountFlags {
    let mut flags = MountFlags::empty();
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    for word in &options.kernel_options {
        flags |= match word.as_str() {
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "nosymfollow" => MountFlags::NOSYMFOLLOW,
            "sync" => MountFlags::SYNCHRONOUS,
            "dirsync" => MountFlags::DIRSYNC,
            _ => MountFlags::empty(),
        };
    }
    flags
}

/// Mounts and gives the open device; requests wait there. The data is that of
/// the kernel's Documentation/filesystems/fuse.rst.
///
/// # Errors
/// Of the device and of mount(2).
pub(super) fn mount(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions",
        device.as_raw_fd()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data)?;
    let source = if options.source.is_empty() { "cairn" } else { options.source.as_str() };
    rustix::mount::mount(source, mountpoint, TYPE, flags(options), data.as_c_str())?;
    Ok(device)
}

/// Lets the kernel read ahead further than its 128 KiB, so that a sequential
/// reader has several requests under way. FUSE's own negotiation can only lower
/// that figure (`process_init_reply` in fs/fuse/inode.c); this is the way of
/// Documentation/ABI/testing/sysfs-class-bdi. Only root may: others read slower.
pub(super) fn read_ahead(mountpoint: &Path, kib: u32) -> io::Result<()> {
    // The mount itself is not asked; see `session::mount`.
    let (flags, nothing) = (AtFlags::STATX_DONT_SYNC, StatxFlags::empty());
    let found = rustix::fs::statx(rustix::fs::CWD, mountpoint, flags, nothing)?;
    let (major, minor) = (found.stx_dev_major, found.stx_dev_minor);
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
}

/// Changes the flags of a mount (`mount -o remount,ro`).
///
/// # Errors
/// EPERM for other users than root, EINVAL when nothing is mounted there, EBUSY
/// for read-only while files are open for writing.
pub fn remount(mountpoint: &Path, options: &MountOptions) -> io::Result<()> {
    rustix::mount::mount_remount(mountpoint, flags(options), "")?;
    Ok(())
}
