//! CIDs of files and directories: of a mount from its daemon, of anything else
//! by reading it.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::Cid as Args;
use super::error::CliError;
use super::exit::Code;
use super::locate;
use super::output::{Output, Progress, shown};
use crate::content::{DirectoryEntry, Link, Profile, build_directory, escape_name, import_file, symlink};
use crate::types::Cid;

/// Longest CID that the daemon answers with.
const XATTR_BYTES: usize = 256;

pub(super) fn run(args: &Args, output: &Output) -> Result<Code, CliError> {
    let asked: Option<Profile> = args.profile.as_deref().map(str::parse).transpose().map_err(CliError::usage)?;
    let mut rows = Vec::new();
    let mut worst = Code::Done;
    for path in &args.paths {
        match one(path, asked, args.no_hidden, output) {
            Ok(cid) => rows.push((path, cid)),
            // The others are still answered, as `sha256sum` does.
            Err(error) => worst = output.fail(&error),
        }
    }
    let value = rows.iter().map(|(path, cid)| json!({ "path": path.to_string_lossy(), "cid": cid.to_string() }));
    output.result(&value.collect(), |text| {
        for (path, cid) in &rows {
            text.push_str(&format!("{cid}  {}\n", shown(path)));
        }
    })?;
    Ok(worst)
}

fn one(path: &Path, asked: Option<Profile>, no_hidden: bool, output: &Output) -> Result<Cid, CliError> {
    if asked.is_none()
        && !no_hidden
        && let Some((_, inside)) = locate::mount_of(path)?
        && let Some(cid) = of_mount(&inside)?
    {
        return Ok(cid);
    }
    let mut reader = Reader {
        profile: asked.unwrap_or(Profile::UNIXFS_V1_2025),
        no_hidden,
        read: 0,
        progress: output.progress(),
        output,
    };
    Ok(reader.tree(path)?.cid)
}

/// What the mount says; `None` for links, of which the kernel asks no `user.` attribute.
fn of_mount(path: &Path) -> Result<Option<Cid>, CliError> {
    let mut value = [0; XATTR_BYTES];
    match rustix::fs::lgetxattr(path, "user.cairn.cid", &mut value) {
        Ok(len) => {
            let text = std::str::from_utf8(&value[..len]).unwrap_or_default();
            text.parse().map(Some).map_err(|e| CliError::failed(format!("{}: the mount's CID: {e}", shown(path))))
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(failed(path, error.into())),
    }
}

fn failed(path: &Path, error: std::io::Error) -> CliError {
    let code = if error.kind() == std::io::ErrorKind::NotFound { Code::NotFound } else { Code::Failed };
    CliError::new(code, format!("{}: {error}", shown(path)))
}

struct Reader<'o> {
    profile: Profile,
    no_hidden: bool,
    read: u64,
    progress: Progress,
    output: &'o Output,
}

/// A directory that is being read; trees may be deeper than a thread's stack.
struct Frame {
    path: PathBuf,
    name: String,
    waiting: std::vec::IntoIter<Vec<u8>>,
    built: Vec<DirectoryEntry>,
}

impl Reader<'_> {
    /// The link of a file, link or directory; nothing of it stays in memory but
    /// one chunk, and the names of the directories on the way down.
    fn tree(&mut self, path: &Path) -> Result<Link, CliError> {
        let meta = std::fs::symlink_metadata(path).map_err(|e| failed(path, e))?;
        if !meta.is_dir() {
            return self.leaf(path, &meta)?.ok_or_else(|| {
                CliError::usage(format!("{} is a device, pipe or socket: it has no content and no CID", shown(path)))
            });
        }
        let mut stack = vec![self.frame(path.to_owned(), String::new())?];
        while let Some(frame) = stack.last_mut() {
            if let Some(name) = frame.waiting.next() {
                let path = frame.path.join(std::ffi::OsString::from_vec(name.clone()));
                let meta = std::fs::symlink_metadata(&path).map_err(|e| failed(&path, e))?;
                let name = escape_name(&name);
                if meta.is_dir() {
                    let below = self.frame(path, name)?;
                    stack.push(below);
                } else if let Some(link) = self.leaf(&path, &meta)? {
                    frame.built.push(DirectoryEntry { name, link });
                } else {
                    self.output.note(&format!("cairn: {} is left out: a device, pipe or socket", shown(&path)));
                }
                continue;
            }
            let Some(done) = stack.pop() else { break };
            let link = build_directory(&self.profile, done.built, &mut |_, _| Ok(()))
                .map_err(|e| CliError::failed(format!("{}: {e}", shown(&done.path))))?;
            match stack.last_mut() {
                Some(parent) => parent.built.push(DirectoryEntry { name: done.name, link }),
                None => return Ok(link),
            }
        }
        Err(CliError::failed("the directory walk ended early"))
    }

    fn frame(&self, path: PathBuf, name: String) -> Result<Frame, CliError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(|e| failed(&path, e))? {
            let name = entry.map_err(|e| failed(&path, e))?.file_name();
            if !(self.no_hidden && name.as_bytes().starts_with(b".")) {
                names.push(name.into_vec());
            }
        }
        names.sort_unstable();
        Ok(Frame { path, name, waiting: names.into_iter(), built: Vec::new() })
    }

    fn leaf(&mut self, path: &Path, meta: &std::fs::Metadata) -> Result<Option<Link>, CliError> {
        let kind = meta.file_type();
        if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(|e| failed(path, e))?;
            return Ok(Some(symlink(&self.profile, target.as_os_str().as_bytes()).0));
        }
        if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
            return Ok(None);
        }
        // A file that grows while it is read ends where it ended now.
        let file = File::open(path).map_err(|e| failed(path, e))?;
        let mut counted = Counted { inner: file.take(meta.size().max(1)), reader: self };
        let profile = counted.reader.profile;
        import_file(&profile, &mut counted, &mut |_, _| Ok(()))
            .map(Some)
            .map_err(|e| CliError::failed(format!("{}: {e}", shown(path))))
    }
}

struct Counted<'r, 'o> {
    inner: std::io::Take<File>,
    reader: &'r mut Reader<'o>,
}

impl Read for Counted<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = self.inner.read(buf)?;
        self.reader.read += len as u64;
        self.reader.progress.show("bytes read", self.reader.read, None);
        Ok(len)
    }
}
