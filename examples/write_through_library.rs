//! Writes files through the library, without a mount, and reads them back.
//! Usage: `write_through_library DIR`

use cairnfs::config::LocalChange;
use cairnfs::content::Profile;
use cairnfs::daemon::{CreateOptions, Volume, VolumeMode};
use cairnfs::replication::Policy;
use cairnfs::types::{FileKind, Ino, Name};
use cairnfs::vfs::OpenOptions;

fn main() -> anyhow::Result<()> {
    let dir =
        std::path::PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "example".into()));
    let volume_dir = dir.join("volume");
    let backend =
        format!("file://{}?domain=second", std::path::absolute(dir.join("backend"))?.display());
    let policy: Policy = "min=1,target=2".parse()?;
    Volume::create(
        &std::path::absolute(&volume_dir)?,
        &CreateOptions {
            backends: vec![backend],
            policy,
            profile: Profile::UNIXFS_V1_2025,
            local: LocalChange::default(),
        },
    )?;
    let volume = Volume::open(&std::path::absolute(&volume_dir)?, &VolumeMode::default())?;
    let vfs = volume.vfs();
    for i in 0..100 {
        let name = Name::new(format!("file-{i}"))?;
        let made = vfs.make(Ino::ROOT, &name, FileKind::File, (0o644, 0), (0, 0), b"")?;
        let handle =
            vfs.open_file(made.ino, OpenOptions { write: true, ..OpenOptions::default() })?;
        vfs.write(handle, 0, format!("number {i}").as_bytes())?;
        vfs.fsync(handle)?;
        vfs.release(handle)?;
    }
    let ino = vfs.resolve(&[Name::new("file-42")?])?;
    let handle = vfs.open_file(ino, OpenOptions::default())?;
    let mut buffer = [0; 64];
    let n = vfs.read(handle, 0, &mut buffer)?;
    vfs.release(handle)?;
    println!("{} is {:?}", vfs.link_of(ino)?.cid, String::from_utf8_lossy(&buffer[..n]));
    println!("the tree is {}", vfs.link_of(Ino::ROOT)?.cid);
    volume.close()?;
    Ok(())
}
