//! `cairn export`, `import` and `car`.

use std::fs::File;
use std::io::{BufReader, IsTerminal, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::arguments::CarVerb;
use super::client::Target;
use super::output::Output;
use crate::api::{Command, ErrorCode, Failure};
use crate::archive::{Archive, ArchiveError};
use crate::content::car::CarReader;

fn failure(path: &Path, error: std::io::Error) -> Failure {
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let code = if missing { ErrorCode::NotFound } else { ErrorCode::Failed };
    Failure::new(code, format!("{}: {error}", path.display()))
}

fn of_archive(path: &Path, error: &ArchiveError) -> Failure {
    let code = if error.is_damage() { ErrorCode::Damaged } else { ErrorCode::Failed };
    Failure::new(code, format!("{}: {error}", path.display()))
}

/// Writes to a temporary name beside the archive; a cut export leaves nothing.
pub(super) fn export(
    path: &Path,
    file: &Path,
    version: u8,
    metadata: bool,
    output: &Output,
) -> Result<(), Failure> {
    let (target, inner) = Target::of_path(path)?;
    if file == Path::new("-") {
        // The archive itself is the output.
        return to_stdout(
            &target,
            |fd| Command::Export { path: inner, fd, version, metadata },
            output,
        );
    }
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".partial");
    let temporary = PathBuf::from(temporary);
    let out = File::create(&temporary).map_err(|e| failure(&temporary, e))?;
    let command = Command::Export { path: inner, fd: out.as_raw_fd(), version, metadata };
    match target.send(&command, output) {
        Ok(value) => {
            std::fs::rename(&temporary, file).map_err(|e| failure(file, e))?;
            output.fields(&value, &["path", "cid", "blocks", "bytes"]);
            Ok(())
        }
        Err(error) => {
            std::fs::remove_file(&temporary).map_err(|e| failure(&temporary, e))?;
            Err(error)
        }
    }
}

/// Through a pipe of our own: the daemon opens descriptors anew, which would
/// lose the place in a file that standard output or input is (`>> all.car`).
fn to_stdout(
    target: &Target,
    command: impl FnOnce(i32) -> Command,
    output: &Output,
) -> Result<(), Failure> {
    if std::io::stdout().is_terminal() {
        let text = "an archive is not for a terminal: name a file with -o, or pipe it";
        return Err(Failure::new(ErrorCode::Usage, text));
    }
    let (mut from, to) = std::io::pipe().map_err(super::failed)?;
    let copy = std::thread::spawn(move || {
        let mut out = std::io::stdout().lock();
        std::io::copy(&mut from, &mut out).and_then(|_| out.flush())
    });
    let sent = target.send(&command(to.as_raw_fd()), output);
    drop(to);
    let copied =
        copy.join().map_err(|_| super::failed("the thread that writes standard output ended"))?;
    sent?;
    copied.map_err(|e| super::failed(format!("standard output: {e}")))
}

pub(super) fn import(file: &Path, dest: &Path, output: &Output) -> Result<(), Failure> {
    let (target, inner) = Target::of_path(dest)?;
    let value = if file == Path::new("-") {
        let (from, mut to) = std::io::pipe().map_err(super::failed)?;
        // Not joined: it ends with its input, or with this process.
        std::thread::spawn(move || std::io::copy(&mut std::io::stdin().lock(), &mut to));
        target.send(&Command::Import { path: inner, fd: from.as_raw_fd() }, output)?
    } else {
        let input = File::open(file).map_err(|e| failure(file, e))?;
        target.send(&Command::Import { path: inner, fd: input.as_raw_fd() }, output)?
    };
    output.fields(&value, &["path", "cid", "nodes", "blocks"]);
    Ok(())
}

fn open(file: &Path) -> Result<Box<dyn Read>, Failure> {
    if file == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    Ok(Box::new(BufReader::with_capacity(1 << 20, File::open(file).map_err(|e| failure(file, e))?)))
}

pub(super) fn car(verb: &CarVerb, output: &Output) -> Result<(), Failure> {
    match verb {
        CarVerb::Ls { file } => {
            let mut reader =
                CarReader::new(open(file)?).map_err(|e| of_archive(file, &e.into()))?;
            let (mut rows, mut lines) = (Vec::new(), Vec::new());
            while let Some(section) =
                reader.next_section().map_err(|e| of_archive(file, &e.into()))?
            {
                lines.push(format!(
                    "{} {:>12} {:>9}",
                    section.cid,
                    section.offset,
                    section.data.len()
                ));
                rows.push(json!({ "cid": section.cid.to_string(), "offset": section.offset, "bytes": section.data.len() }));
            }
            output.lines(&json!(rows), &lines);
        }
        CarVerb::Verify { file } => {
            let spool = tempfile::tempdir().map_err(super::failed)?;
            let mut bar = output.progress();
            let archive = Archive::read(&mut open(file)?, spool.path(), &mut |done| {
                bar.show(&crate::api::ProgressReport { what: "blocks".into(), done, total: None });
            })
            .map_err(|e| of_archive(file, &e))?;
            bar.clear();
            let value = json!({
                "version": archive.header().version, "blocks": archive.blocks(),
                "roots": archive.roots().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "duplicates": archive.duplicates, "indexed": archive.indexed,
                "extra": archive.extra.iter().map(ToString::to_string).collect::<Vec<_>>(),
            });
            output
                .fields(&value, &["version", "blocks", "roots", "duplicates", "extra", "indexed"]);
        }
    }
    Ok(())
}
