//! `cairn backend` and `cairn heal`.

use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde_json::Value;

use super::arguments::{BackendVerb, Heal, Manner, Migrate};
use super::client::Target;
use super::output::Output;
use super::setup;
use crate::api::{Command, ErrorCode, Failure};

const SHOWN: [&str; 12] = [
    "id",
    "kind",
    "url",
    "state",
    "read_only",
    "domain",
    "copies",
    "used_bytes",
    "capacity_bytes",
    "cost_per_month",
    "spent_this_month",
    "last_error",
];

pub(super) fn backend(verb: BackendVerb, output: &Output) -> Result<(), Failure> {
    match verb {
        BackendVerb::Add { url, volume } => {
            let url = absolute(url)?;
            let value = Target::of_volume(volume)?.send(&Command::BackendAdd { url }, output)?;
            output.fields(&value, &["id", "url", "contents_considered"]);
            note_twin(&value, output);
        }
        BackendVerb::List { volume } => {
            let value = Target::of_volume(volume)?.send(&Command::BackendList, output)?;
            output.backends(&value);
        }
        BackendVerb::Show { id, volume } => {
            let value = Target::of_volume(volume)?.send(&Command::BackendList, output)?;
            let one =
                value.as_array().into_iter().flatten().find(|backend| backend["id"] == id.clone());
            let one = one.ok_or_else(|| {
                Failure::new(
                    ErrorCode::NotFound,
                    format!("there is no backend `{id}`; `cairn backend list` shows them"),
                )
            })?;
            output.fields(one, &SHOWN);
        }
        BackendVerb::Remove { id, force, volume } => {
            let value =
                Target::of_volume(volume)?.send(&Command::BackendRemove { id, force }, output)?;
            output.fields(&value, &["id", "last_copies_given_up"]);
            for path in value["given_up_paths"].as_array().into_iter().flatten() {
                output.note(&format!("given up: {}", path.as_str().unwrap_or_default()));
            }
        }
        BackendVerb::Drain { id, stop, wait, volume } => {
            let command = Command::BackendDrain { id, stop, wait };
            let value = Target::of_volume(volume)?.send(&command, output)?;
            output.fields(&value, &["id", "draining", "copies_left"]);
        }
        BackendVerb::Import { id, from, dry_run, volume } => {
            let folder = from.map(std::path::absolute).transpose().map_err(super::failed)?;
            let folder = folder.map(|path| path.into_os_string().into_vec());
            let command = Command::BackendImport { id, folder, dry_run };
            let value = Target::of_volume(volume)?.send(&command, output)?;
            let shown =
                ["id", "looked", "known", "adopted", "adopted_bytes", "incomplete", "archives"];
            output.fields(&value, &shown);
            for damage in value["archives_damaged"].as_array().into_iter().flatten() {
                output.note(&format!(
                    "not all of an archive was read: {}",
                    damage.as_str().unwrap_or_default()
                ));
            }
        }
        BackendVerb::Replace { old, url, wait, stop, volume } => {
            let url = url.map(absolute).transpose()?;
            let command = Command::BackendReplace { old, url, wait, stop };
            moved(&Target::of_volume(volume)?.send(&command, output)?, output);
        }
        BackendVerb::Rebalance { manner: Manner { wait, dry_run, stop }, volume } => {
            let command = Command::BackendRebalance { wait, dry_run, stop };
            moved(&Target::of_volume(volume)?.send(&command, output)?, output);
        }
        BackendVerb::ReadOnly { id, off, volume } => {
            let command = Command::BackendReadOnly { id, off };
            let value = Target::of_volume(volume)?.send(&command, output)?;
            output.fields(&value, &["id", "read_only", "state"]);
        }
        BackendVerb::Recover { id, wait, volume } => {
            let command = Command::BackendRecover { id, wait };
            let value = Target::of_volume(volume)?.send(&command, output)?;
            output.fields(&value, &["id", "state", "proven", "waiting", "bad"]);
        }
        BackendVerb::Test { url } => setup::backend_test(&url, output)?,
    }
    Ok(())
}

/// A relative path is the caller's, not the daemon's.
fn absolute(url: String) -> Result<String, Failure> {
    let spec = crate::backends::BackendSpec::parse(&url, &[])
        .map_err(|e| Failure::new(ErrorCode::Usage, e.to_string()))?;
    Ok(if url.contains("id=") || url.contains(':') { url } else { spec.url })
}

fn note_twin(value: &Value, output: &Output) {
    if let Some(twin) = value["same_place_as"].as_str() {
        output.note(&format!(
            "it is on the same device as `{twin}`: copies on both count as one. Use another disk, or say with ?domain=NAME that they fail apart"
        ));
    }
}

fn moved(value: &Value, output: &Output) {
    output.fields(value, &["what", "moved", "moved_bytes", "left", "left_bytes"]);
    for id in value["room_not_known"].as_array().into_iter().flatten() {
        output.note(&format!(
            "{} does not say how much room it has, and takes no part",
            id.as_str().unwrap_or_default()
        ));
    }
    for (kind, word) in [("stays", "stay"), ("waits", "wait")] {
        for (why, count) in value[kind].as_object().into_iter().flatten() {
            output.note(&format!("{count} contents {word}: {why}"));
        }
    }
}

pub(super) fn migrate(request: Migrate, output: &Output) -> Result<(), Failure> {
    let (target, path) = match (request.path, request.volume) {
        (Some(path), None) => {
            let (target, path) = Target::of_path(&path)?;
            (target, Some(path))
        }
        (Some(path), volume) => {
            (Target::of_volume(volume)?, Some(path.as_os_str().as_bytes().to_vec()))
        }
        (None, volume) => (Target::of_volume(volume)?, None),
    };
    let Manner { wait, dry_run, stop } = request.manner;
    let (from, to) = (request.from, request.to);
    let command = Command::Migrate { from, to, path, wait, dry_run, stop };
    moved(&target.send(&command, output)?, output);
    Ok(())
}

pub(super) fn heal(request: Heal, output: &Output) -> Result<(), Failure> {
    let (target, path) = match (request.path, request.volume) {
        (Some(path), None) => {
            let (target, path) = Target::of_path(&path)?;
            (target, Some(path))
        }
        (Some(path), volume) => {
            (Target::of_volume(volume)?, Some(path.as_os_str().as_bytes().to_vec()))
        }
        (None, volume) => (Target::of_volume_or_path(request.mountpoint, volume)?, None),
    };
    let command = Command::Heal { backend: request.backend, path, wait: request.wait };
    let value = target.send(&command, output)?;
    output.fields(&value, &["scope", "due", "due_bytes", "healed", "left", "eta_s"]);
    for cannot in value["cannot"].as_array().into_iter().flatten() {
        output.note(&format!(
            "{} contents stay as they are: {}",
            cannot["contents"],
            cannot["reason"].as_str().unwrap_or_default()
        ));
    }
    Ok(())
}
