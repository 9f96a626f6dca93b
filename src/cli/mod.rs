//! The command line: one file a verb, over the daemon's commands.
//!
//! A verb finds its volume from a path (the mount table) or from `--volume`,
//! asks the running daemon through its socket, or opens the volume itself under
//! its lock when nothing has it mounted. Errors are one line of what happened
//! and what to do; exit codes say the kind (see [`exit::TABLE`]).

mod args;
mod cid;
mod error;
mod exit;
mod generate;
mod locate;
mod mount_options;
mod output;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Cli, Verb};
use self::error::CliError;
use self::output::Output;

/// Runs `cairn`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.json);
    match run(cli, &output) {
        Ok(code) => code.into(),
        Err(error) => output.fail(&error).into(),
    }
}

fn run(cli: Cli, output: &Output) -> Result<exit::Code, CliError> {
    match cli.verb {
        Verb::Cid(args) => cid::run(&args, output),
        Verb::Completions(args) => generate::completions(&args),
        Verb::Man(args) => generate::man(&args),
        _ => Err(CliError::failed("this verb needs the daemon, which is not built in yet")),
    }
}
