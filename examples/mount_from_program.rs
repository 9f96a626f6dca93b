//! Mounts a volume from a program and serves it until it is unmounted.
//! Usage: `mount_from_program VOLUME MOUNTPOINT`

use cairnfs::daemon::{MountRequest, VolumeMode, run_mount};
use cairnfs::fuse::MountOptions;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(volume), Some(mountpoint)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!(
            "usage: mount_from_program VOLUME MOUNTPOINT (make the volume with `cairn init`)"
        );
    };
    run_mount(&MountRequest {
        volume: std::path::absolute(volume)?,
        mountpoint: std::path::absolute(mountpoint)?,
        mode: VolumeMode::default(),
        options: MountOptions { threads: 2, ..MountOptions::default() },
        ready: None,
    })?;
    Ok(())
}
