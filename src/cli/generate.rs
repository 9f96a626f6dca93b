//! Shell completions and man pages, from the same definitions as `--help`.

use clap::CommandFactory;

use super::args::{Cli, Completions, Man};
use super::error::CliError;
use super::exit::Code;
use super::output::{Output, shown};

pub(super) fn completions(args: &Completions) -> Result<Code, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cairn", &mut script);
    Output::print(&script)?;
    Ok(Code::Done)
}

pub(super) fn man(args: &Man) -> Result<Code, CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", shown(&args.dir)));
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(failed)?;
    Ok(Code::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_of_all_verbs_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_leaf_verb_shows_an_example() {
        fn check(command: &clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands().filter(|sub| sub.get_name() != "help").for_each(check);
            } else {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Examples:\n  ") , "{}", command.get_name());
            }
        }
        check(&Cli::command());
    }
}
