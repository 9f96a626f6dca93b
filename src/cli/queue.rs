//! `cairn queue`.

use clap::Subcommand;
use serde_json::Value;

use super::arguments::MountOrVolume;
use super::client::Target;
use super::output::Output;
use super::pins::{Named, NamedSome, add, copies, requests, whats};
use crate::api::{Command, Failure, QueueCommand};
use crate::types::printable;

const NOTHING: &str = "nothing is paused";

#[derive(Debug, Subcommand)]
pub(super) enum QueueVerb {
    /// List what waits for copies, riskiest first: why, since when, until when.
    #[command(
        after_help = "Examples:\n  cairn queue ls ~/data\n  cairn --json queue ls ~/data --limit 1000 --after CURSOR\n\nRiskiest is: fewest verified copies first, then the oldest wish; what lacks no copy comes last. It is the order in which the work is done. An ETA is the time until the next try, and the bytes before it and its own over what the backend's workers moved lately; `unknown` says which backends it waits for."
    )]
    Ls {
        #[command(flatten)]
        target: MountOrVolume,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Go on after the page that ended with this.
        #[arg(long, value_name = "CURSOR")]
        after: Option<String>,
    },
    /// Send nothing more, to any backend or to one, until `cairn queue resume`.
    #[command(
        after_help = "Examples:\n  cairn queue pause ~/data\n  cairn queue pause --backend disk-b --volume ~/volume\n\nIt lasts over restarts. What is being sent is finished. Who waits for copies gets what `on_degraded` says, as if the backend were away; reads go on, and so does the metadata."
    )]
    Pause {
        #[command(flatten)]
        target: MountOrVolume,
        /// Only there.
        #[arg(long, value_name = "ID")]
        backend: Option<String>,
    },
    /// Go on.
    Resume {
        #[command(flatten)]
        target: MountOrVolume,
        /// Only there; without it, what holds the whole queue ends.
        #[arg(long, value_name = "ID")]
        backend: Option<String>,
    },
    /// Try again now what waits for the end of a pause, or was cancelled.
    #[command(
        after_help = "Examples:\n  cairn queue retry --volume ~/volume     (all)\n  cairn queue retry ~/data/thesis"
    )]
    Retry {
        #[command(flatten)]
        named: Named,
    },
    /// Leave what these lack alone for a day, or until `cairn queue retry`.
    #[command(
        after_help = "Example:\n  cairn queue cancel ~/data/huge.iso\n\nTheir pins stay below their targets and say so; copies that are there stay."
    )]
    Cancel {
        #[command(flatten)]
        named: NamedSome,
    },
}

pub(super) fn queue(verb: QueueVerb, output: &Output) -> Result<(), Failure> {
    let send = |target: &Target, queue| target.send(&Command::Queue { queue }, output);
    let of = |target: MountOrVolume| Target::of_volume_or_path(target.mountpoint, target.volume);
    match verb {
        QueueVerb::Ls { target, limit, after } => {
            let (target, mut after) = (of(target)?, after);
            let (mut items, mut left) = (Vec::new(), limit);
            let mut value = loop {
                let command = QueueCommand::List { limit: left, after: after.clone() };
                let mut value = send(&target, command)?;
                let page = value["items"].as_array().cloned().unwrap_or_default();
                left = left.saturating_sub(u16::try_from(page.len()).unwrap_or(u16::MAX));
                items.extend(page);
                after = value["next"].as_str().map(str::to_owned);
                if left == 0 || after.is_none() {
                    break value.take();
                }
            };
            let mut lines: Vec<String> = items.iter().map(line).collect();
            value["items"] = items.into();
            let held = held(&value);
            if held != NOTHING {
                lines.insert(0, held);
            }
            output.lines(&value, &lines);
            if let Some(next) = value["next"].as_str() {
                output.note(&format!("there are more: --after {next}"));
            }
            Ok(())
        }
        QueueVerb::Pause { target, backend } => {
            let value = send(&of(target)?, QueueCommand::Pause { backend })?;
            output.lines(&value, &[held(&value)]);
            Ok(())
        }
        QueueVerb::Resume { target, backend } => {
            let value = send(&of(target)?, QueueCommand::Resume { backend })?;
            output.lines(&value, &[held(&value)]);
            Ok(())
        }
        QueueVerb::Retry { named } => {
            let (target, all) = whats(&named.of, named.volume)?;
            let mut sum = Value::Null;
            for of in requests(all) {
                add(&mut sum, send(&target, QueueCommand::Retry { of })?);
            }
            output.fields(&sum, &["contents"]);
            Ok(())
        }
        QueueVerb::Cancel { named } => {
            let (target, all) = whats(&named.of, named.volume)?;
            let mut sum = Value::Null;
            for of in requests(all) {
                add(&mut sum, send(&target, QueueCommand::Cancel { of })?);
            }
            output.fields(&sum, &["contents", "cancelled"]);
            Ok(())
        }
    }
}

/// What is paused, in words.
fn held(value: &Value) -> String {
    let paused = &value["paused"];
    let ids = paused["backends"].as_array().into_iter().flatten();
    let ids: Vec<&str> = ids.filter_map(Value::as_str).collect();
    match (paused["all"] == true, ids.as_slice()) {
        (true, _) => "the whole queue is paused".to_owned(),
        (false, []) => NOTHING.to_owned(),
        (false, ids) => format!("paused: {}", ids.join(", ")),
    }
}

/// When an item should be done and what it waits for, in words.
pub(super) fn eta(row: &Value) -> String {
    let waits = printable(row["waits"].as_str().unwrap_or("-"));
    row["eta_s"].as_u64().map_or_else(|| format!("unknown: {waits}"), |s| format!("{s} s: {waits}"))
}

fn line(item: &Value) -> String {
    let row = &item["queue"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let reason = text(&row["reason"]);
    format!(
        "{:12} {:>2}/{} {}  {} attempts, next {}, eta {}  {}{}",
        text(&item["pin"]),
        item["have"],
        item["target"],
        text(&item["cid"]),
        row["attempts"],
        row["next_try"].as_str().unwrap_or("now"),
        eta(row),
        copies(item),
        if reason.is_empty() { String::new() } else { format!("  {}", printable(&reason)) },
    )
}
