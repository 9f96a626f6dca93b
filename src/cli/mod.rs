//! The command line: parsing, and what each verb prints.
//!
//! Verbs about a mounted path or a running volume go through its control
//! socket; on a volume that nobody holds they open it themselves. Exit codes: 0
//! done, 1 failed, 2 wrong use, 3 not found, 4 degraded (fewer copies than asked
//! for), 5 busy, 6 damage.

mod allocator;
mod arguments;
mod backend;
mod car;
mod cid;
mod client;
mod events;
mod gc;
mod local;
mod loss;
mod mount;
mod output;
mod pins;
mod policy;
mod queue;
mod quota;
mod serve;
mod setup;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::arguments::{Arguments, ConfigVerb, HooksVerb, Verb};
use self::client::Target;
use self::output::Output;
use crate::api::{Command, ErrorCode, Failure};
use crate::telemetry::init_logging;

/// Runs `cairn` or `mount.cairn`.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let called = words.first().map(std::path::Path::new).and_then(|path| path.file_name());
    let words = match called.and_then(|name| name.to_str()) {
        Some("mount.cairn" | "mount.fuse.cairn") => match mount::helper_arguments(&words[1..]) {
            Ok(words) => words,
            Err(failure) => return finish(&failure),
        },
        _ => words,
    };
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => finish(&failure),
    }
}

fn exit_code(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::Failed => 1,
        ErrorCode::Usage => 2,
        ErrorCode::NotFound => 3,
        ErrorCode::Degraded => 4,
        ErrorCode::Busy => 5,
        ErrorCode::Damaged => 6,
    }
}

fn finish(failure: &Failure) -> ExitCode {
    eprintln!("cairn: {failure}");
    ExitCode::from(exit_code(failure.code))
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Failed, error.to_string())
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let level = arguments.log_level.as_deref();
    let usage = |text: String| Failure::new(ErrorCode::Usage, text);
    if !matches!(arguments.verb, Verb::Mount(_)) {
        let usual = if matches!(arguments.verb, Verb::Serve(_)) { "info" } else { "warn" };
        init_logging(level.unwrap_or(usual), arguments.log_format.unwrap_or_default())
            .map_err(usage)?;
    }
    let output = Output::new(arguments.json);
    match arguments.verb {
        Verb::Init(init) => setup::init(&init, &output),
        Verb::Mount(request) => mount::mount(&request, level, arguments.log_format, &output),
        Verb::Umount { target, timeout, force, volume } => {
            mount::umount(target, volume, timeout, force, &output)
        }
        Verb::Status { target } => {
            let target = Target::of_volume_or_path(target.mountpoint, target.volume)?;
            let value = target.send(&Command::Status, &output)?;
            output.status(&value);
            Ok(())
        }
        Verb::Info { path } => {
            let (target, path) = Target::of_path(&path)?;
            let value = target.send(&Command::Info { path }, &output)?;
            output.info(&value);
            Ok(())
        }
        Verb::Cid { paths, profile, no_hidden } => {
            cid::cid(&paths, profile.as_deref(), no_hidden, &output)
        }
        Verb::Sync { path, volume } => {
            let (target, path) = match (path, volume) {
                (Some(path), _) => Target::of_path(&path)?,
                (None, volume) => (Target::of_volume(volume)?, Vec::new()),
            };
            let value = target.send(&Command::Sync { path }, &output)?;
            output.fields(&value, &["path", "result"]);
            match value["waits"].as_str() {
                Some(text) => Err(Failure::new(ErrorCode::Degraded, text)),
                None => Ok(()),
            }
        }
        Verb::Backend { verb } => backend::backend(verb, &output),
        Verb::Heal(request) => backend::heal(request, &output),
        Verb::Migrate(request) => backend::migrate(request, &output),
        Verb::SimulateLoss(request) => loss::simulate(request, &output),
        Verb::Policy { verb } => policy::policy(verb, &output),
        Verb::Pin { verb } => pins::pin(verb, &output),
        Verb::Queue { verb } => queue::queue(verb, &output),
        Verb::Quota { verb } => quota::quota(verb, &output),
        Verb::Export { path, output: file, car_version, metadata } => {
            car::export(&path, &file, car_version, metadata, &output)
        }
        Verb::Import { file, dest } => car::import(&file, &dest, &output),
        Verb::Car { verb } => car::car(&verb, &output),
        Verb::Checkpoint { now, base, target } => {
            let target = Target::of_volume_or_path(target.mountpoint, target.volume)?;
            let value = target.send(&Command::Checkpoint { base, now }, &output)?;
            output.fields(&value, &["sequence", "cid", "copies"]);
            Ok(())
        }
        Verb::Recover(request) => setup::recover(&request, &output),
        Verb::Fsck { volume, repair, deep } => {
            let value =
                Target::of_volume(volume)?.send(&Command::Fsck { repair, deep }, &output)?;
            output.fields(
                &value,
                &["problems", "repaired", "remaining", "deep", "reclaimable_bytes"],
            );
            Ok(())
        }
        Verb::Config { verb, volume } => match verb {
            ConfigVerb::Show => setup::config_show(volume, &output),
            ConfigVerb::Path => setup::config_path(volume, &output),
        },
        Verb::Gc(arguments) => gc::gc(arguments, &output),
        Verb::Serve(arguments) => serve::run(arguments, &output),
        Verb::Gateway(arguments) => serve::gateway(arguments, &output),
        Verb::Trash { verb } => gc::trash(verb, &output),
        Verb::Events(arguments) => events::events(arguments, &output),
        Verb::Hooks { verb: HooksVerb::Test { volume } } => events::test_hooks(volume, &output),
        Verb::Stats { volume } => {
            let value = Target::of_volume(volume)?.send(&Command::Stats, &output)?;
            output.text(&value, "text");
            Ok(())
        }
        Verb::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Arguments::command(),
                "cairn",
                &mut std::io::stdout(),
            );
            Ok(())
        }
        Verb::Man { dir } => {
            std::fs::create_dir_all(&dir).map_err(failed)?;
            clap_mangen::generate_to(Arguments::command(), &dir).map_err(failed)
        }
    }
}
