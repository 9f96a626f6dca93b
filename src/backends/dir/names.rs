use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::place::{Place, entries, make_dir, open_dir};
use crate::backends::{BackendError, ErrorKind, check};
use crate::runtime::failpoint;
use crate::types::Cid;

/// A name's file holds one CID; more bytes are not ours.
const FILE_MAX: u64 = 4096;
/// Folders below each other; a name of 200 bytes has at most 100 parts.
const DEPTH_MAX: usize = 100;

/// Points `name` at `cid`: a file `names/NAME` with the CID and a newline. One
/// name may not be the folder of another (`a` and `a/b`).
pub(super) fn put(place: &Place, name: &str, cid: &Cid) -> Result<(), BackendError> {
    check::name(name)?;
    let fail = |errno| place.fail(&format!("write the name `{name}` in"), errno);
    let file = place.write_temporary(format!("{cid}\n").as_bytes())?;
    place.sync.files(&[file.as_fd()]).map_err(fail)?;
    failpoint::reach("backend.name.written");
    let mut dir = place
        .names
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| place.fail("open the folder `names` of", super::errno::errno_of(&e)))?;
    let (parents, leaf) =
        name.rsplit_once('/').map_or(("", name), |(parents, leaf)| (parents, leaf));
    for part in parents.split('/').filter(|part| !part.is_empty()) {
        make_dir(&dir, part).map_err(fail)?;
        // Also when it was there: its maker may not have synced it yet.
        place.sync.dir(&dir).map_err(fail)?;
        dir = open_dir(&dir, part).map_err(fail)?;
    }
    file.move_to(dir.as_fd(), leaf).map_err(fail)?;
    failpoint::reach("backend.name.shown");
    place.sync.dir(&dir).map_err(fail)
}

/// Names that begin with `prefix`, sorted. A file that holds no CID is an error
/// and not left out: a collector would take its content for unreferenced.
pub(super) fn list(place: &Place, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
    let mut found = Vec::new();
    walk(place, "", prefix, 0, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk(
    place: &Place,
    folder: &str,
    prefix: &str,
    depth: usize,
    found: &mut Vec<(String, Cid)>,
) -> Result<(), BackendError> {
    let fail = |errno| place.fail("list the names of", errno);
    let dir = match open_dir(&place.names, if folder.is_empty() { "." } else { folder }) {
        // Taken away meanwhile.
        Err(Errno::NOENT) if depth > 0 => return Ok(()),
        other => other.map_err(fail)?,
    };
    for entry in entries(&dir).map_err(fail)? {
        let name = if folder.is_empty() { entry } else { format!("{folder}/{entry}") };
        // Neither in what is asked for nor on the way to it.
        if !name.starts_with(prefix) && !prefix.starts_with(&format!("{name}/")) {
            continue;
        }
        if check::name(&name).is_err() {
            tracing::warn!(name, "a file in `names` that is not a name is ignored");
            continue;
        }
        let stat = match rustix::fs::statat(&place.names, &name, AtFlags::empty()) {
            Err(Errno::NOENT) => continue,
            other => other.map_err(fail)?,
        };
        match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::Directory if depth < DEPTH_MAX => {
                walk(place, &name, prefix, depth + 1, found)?;
            }
            rustix::fs::FileType::RegularFile if name.starts_with(prefix) => {
                found.extend(read(place, &name)?.map(|cid| (name, cid)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn read(place: &Place, name: &str) -> Result<Option<Cid>, BackendError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = match rustix::fs::openat(&place.names, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.map_err(|errno| place.fail(&format!("read the name `{name}` of"), errno))?,
    };
    let mut text = Vec::new();
    File::from(fd).take(FILE_MAX).read_to_end(&mut text).map_err(|error| {
        place.fail(&format!("read the name `{name}` of"), super::errno::errno_of(&error))
    })?;
    let cid = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().parse().ok());
    cid.map(Some).ok_or_else(|| {
        let path = place.path.join("names").join(name);
        let message = format!("{} does not hold a CID: restore it or remove it", path.display());
        BackendError::new(ErrorKind::Corrupt, message)
    })
}

/// Removes a name; its folders stay.
pub(super) fn delete(place: &Place, name: &str) -> Result<(), BackendError> {
    check::name(name)?;
    let fail = |errno| place.fail(&format!("remove the name `{name}` of"), errno);
    let (parents, leaf) = name.rsplit_once('/').unwrap_or((".", name));
    let dir = match open_dir(&place.names, parents) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other.map_err(fail)?,
    };
    match rustix::fs::unlinkat(&dir, leaf, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => place.sync.dir(&dir).map_err(fail),
        Err(errno) => Err(fail(errno)),
    }
}
