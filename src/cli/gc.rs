//! `cairn gc` and `cairn trash`.

use serde_json::Value;

use super::arguments::{GcArguments, TrashVerb};
use super::client::Target;
use super::output::Output;
use crate::api::{Command, Failure};
use crate::types::{ByteSize, Timestamp};

fn blocks(place: &Value, what: &str) -> String {
    let number = |name: String| place[name.as_str()].as_u64().unwrap_or(0);
    let bytes = ByteSize(number(format!("{what}_bytes")));
    format!("{} blocks, {bytes}", number(format!("{what}_blocks")))
}

fn describe(place: &Value, run: bool) -> String {
    let id = place["backend"].as_str().unwrap_or_default();
    if let Some(error) = place["error"].as_str() {
        return format!("{id}: {error}");
    }
    let mut parts = vec![format!("{id}: {} are dead", blocks(place, "dead"))];
    let (verb, what) = if run { ("deleted", "deleted") } else { ("due now", "due") };
    parts.push(format!("{verb} {}", blocks(place, what)));
    if run
        && place["deleted_blocks"].as_u64() < place["due_blocks"].as_u64()
        && let Some(why) = place["stays"].as_str()
    {
        parts.push(why.to_owned());
    }
    let copies = |name: &str| place[name].as_u64().filter(|count| *count > 0);
    if let Some(count) = copies("released_copies") {
        let went = if run { "went" } else { "can go" };
        parts.push(format!("{count} copies that were given up {went}"));
    }
    if let Some(count) = copies("waiting_copies") {
        let why = "stay until others are proven again";
        parts.push(format!("{count} copies that were given up {why}"));
    }
    if let Some(at) = place["next_due_s"].as_i64() {
        let at = Timestamp { seconds: at, nanoseconds: 0 };
        let at = humantime::format_rfc3339_seconds(at.to_system());
        parts.push(format!("the next are due at {at}"));
    }
    parts.join("; ")
}

pub(super) fn gc(arguments: GcArguments, output: &Output) -> Result<(), Failure> {
    let GcArguments { target, backend, run, no_grace } = arguments;
    let target = Target::of_volume_or_path(target.mountpoint, target.volume)?;
    let value = target.send(&Command::Gc { id: backend, run, no_grace }, output)?;
    let places = value["places"].as_array().map_or(&[][..], Vec::as_slice);
    let lines: Vec<String> = places.iter().map(|place| describe(place, run)).collect();
    output.lines(&value, &lines);
    let due = |place: &Value| place["due_blocks"].as_u64().unwrap_or(0) > 0;
    if !run && places.iter().any(due) {
        output.note("nothing was deleted; `cairn gc --run` deletes what is due");
    }
    Ok(())
}

pub(super) fn trash(verb: TrashVerb, output: &Output) -> Result<(), Failure> {
    match verb {
        TrashVerb::Ls { target, limit, after } => {
            let target = Target::of_volume_or_path(target.mountpoint, target.volume)?;
            let command = Command::TrashList { after, limit: limit.into() };
            let value = target.send(&command, output)?;
            let contents = value["contents"].as_array().map_or(&[][..], Vec::as_slice);
            let line = |content: &Value| {
                let at: Vec<&str> = content["copies"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                format!(
                    "{}  {}  {}",
                    content["cid"].as_str().unwrap_or_default(),
                    ByteSize(content["size"].as_u64().unwrap_or(0)),
                    at.join(","),
                )
            };
            let lines: Vec<String> = contents.iter().map(line).collect();
            output.lines(&value, &lines);
            if let Some(next) = value["next"].as_str() {
                output.note(&format!("there may be more: --after {next}"));
            }
        }
        TrashVerb::Restore { cid, path } => {
            let (target, path) = Target::of_path(&path)?;
            let value = target.send(&Command::TrashRestore { cid, path }, output)?;
            output.fields(&value, &["path", "cid", "size", "copies_elsewhere"]);
        }
    }
    Ok(())
}
