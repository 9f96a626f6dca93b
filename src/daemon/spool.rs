//! Folders for what an export or an import needs on its way.
//!
//! An import makes its tree below a hidden name and renames it when it is whole.
//! Where that is stands in its folder before the first name is made; what a death
//! left goes at the next opening, the tree first.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::handler::of_vfs;
use super::volume::{Volume, failed};
use crate::api::Failure;
use crate::metadata::MetadataError;
use crate::types::{FileKind, Ino, Name};
use crate::vfs::VfsError;

/// The newest format of `place.json`.
const FORMAT: u32 = 1;

/// `place.json`: where an import makes its tree.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    format: u32,
    parent: u64,
    name: String,
}

/// One folder, removed when it is dropped.
pub(super) struct Spool(TempDir);

fn folder_of(volume: &Path) -> PathBuf {
    volume.join("spool")
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Spool {
    pub fn new(volume: &Path) -> io::Result<Self> {
        let folder = folder_of(volume);
        match fs::create_dir(&folder) {
            Ok(()) => sync_dir(volume)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(Self(tempfile::tempdir_in(folder)?))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Before `name` is made in `parent`.
    pub fn record(&self, parent: Ino, name: &str) -> io::Result<()> {
        let place = Place { format: FORMAT, parent: parent.0, name: name.to_owned() };
        let mut file = File::create_new(self.path().join("place.json"))?;
        file.write_all(&serde_json::to_vec(&place)?)?;
        file.sync_all()?;
        sync_dir(self.path())?;
        self.path().parent().map_or(Ok(()), sync_dir)
    }

    /// The next opening looks after it.
    pub fn leave(self) {
        tracing::warn!(path = %self.0.keep().display(), "a part of an import is left; the next mount removes it");
    }
}

impl Volume {
    /// Removes what ended exports and imports have left.
    pub(super) fn clear_spool(&self) -> Result<(), Failure> {
        let entries = match fs::read_dir(folder_of(&self.dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if let Some(place) = recorded(&path)? {
                tracing::info!(
                    name = place.name,
                    "the part of an import that ended early is removed"
                );
                let name = Name::new(place.name.into_bytes()).map_err(failed)?;
                self.remove_import(Ino(place.parent), &name)?;
            }
            fs::remove_dir_all(&path).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes what an import that failed has made. After it, no power cut brings
    /// a part of it back.
    pub(super) fn remove_import(&self, parent: Ino, name: &Name) -> Result<(), Failure> {
        self.remove_tree(parent, name)?;
        self.vfs.names_changed_behind(parent);
        self.namespace.engine().persist().map_err(failed)
    }

    fn remove_tree(&self, parent: Ino, name: &Name) -> Result<(), Failure> {
        let fs_error = |e| of_vfs(e, "clean-up of an import");
        let (top, row) = match self.vfs.lookup(parent, name) {
            Err(VfsError::Metadata(MetadataError::NotFound)) => return Ok(()),
            found => found.map_err(fs_error)?,
        };
        if row.kind != FileKind::Directory {
            return self.vfs.unlink(parent, name).map_err(fs_error);
        }
        let mut stack = vec![(parent, name.clone(), top)];
        while let Some((above, name, ino)) = stack.pop() {
            let page = self.namespace.read_directory(ino, 0, 1024).map_err(failed)?;
            if page.entries.is_empty() {
                self.vfs.remove_directory(above, &name).map_err(fs_error)?;
                continue;
            }
            stack.push((above, name, ino));
            for (child, dentry) in page.entries {
                if dentry.kind == FileKind::Directory {
                    stack.push((ino, child, dentry.ino));
                } else {
                    self.vfs.unlink(ino, &child).map_err(fs_error)?;
                }
            }
        }
        Ok(())
    }
}

/// `None`: no name was made yet. It was synced before, so a cut one says so, too.
fn recorded(folder: &Path) -> Result<Option<Place>, Failure> {
    let path = folder.join("place.json");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Of a folder that is no folder: nothing of ours is in it.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        text => text.map_err(failed)?,
    };
    match serde_json::from_slice::<Place>(&text) {
        Ok(place) if place.format <= FORMAT => Ok(Some(place)),
        Ok(place) => Err(failed(format!(
            "{} has format {}; this Cairn knows {FORMAT}: use a newer one",
            path.display(),
            place.format
        ))),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "an import ended before it made a name");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_back_and_what_is_cut_or_missing_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path()).unwrap();
        assert_eq!(recorded(spool.path()).unwrap(), None);
        spool.record(Ino(7), ".cairn-import-x").unwrap();
        let place = Place { format: 1, parent: 7, name: ".cairn-import-x".into() };
        assert_eq!(recorded(spool.path()).unwrap(), Some(place));
        let file = spool.path().join("place.json");
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            r#"{"format":1,"parent":7,"name":".cairn-import-x"}"#
        );
        fs::write(&file, r#"{"format":1,"par"#).unwrap();
        assert_eq!(recorded(spool.path()).unwrap(), None);
        fs::write(&file, r#"{"format":2,"parent":7,"name":"x"}"#).unwrap();
        assert!(recorded(spool.path()).is_err());
    }
}
