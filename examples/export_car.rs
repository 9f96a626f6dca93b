//! Builds a `UnixFS` tree from files on the disk and writes it into a CAR.
//! Usage: `export_car DIR`: makes DIR/tree and DIR/tree.car

use std::collections::HashMap;
use std::fs::File;

use cairnfs::archive::export;
use cairnfs::content::{ContentError, DirectoryEntry, Profile, build_directory, import_file};

fn main() -> anyhow::Result<()> {
    let dir =
        std::path::PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "example".into()));
    let tree = dir.join("tree");
    std::fs::create_dir_all(&tree)?;
    for i in 0..20usize {
        std::fs::write(
            tree.join(format!("file-{i:02}")),
            format!("line {i}\n").repeat(1 + i * 9000),
        )?;
    }
    let profile = Profile::UNIXFS_V1_2025;
    let mut blocks = HashMap::new();
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(&tree)? {
        let entry = entry?;
        let link = import_file(&profile, &mut File::open(entry.path())?, &mut |cid, data| {
            blocks.insert(cid, data);
            Ok(())
        })?;
        let name = entry.file_name().to_string_lossy().into_owned();
        entries.push(DirectoryEntry { name, link });
    }
    let root = build_directory(&profile, entries, &mut |cid, data| {
        blocks.insert(cid, data);
        Ok(())
    })?;
    let mut out = File::create(dir.join("tree.car"))?;
    let load = &mut |cid: &_| blocks.get(cid).cloned().ok_or(ContentError::Missing(*cid));
    let report = export(&mut out, 1, &[root.cid], load, &mut |_, _| {})?;
    println!("{}: {} blocks, {} bytes", root.cid, report.blocks, report.bytes);
    Ok(())
}
