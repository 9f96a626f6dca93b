//! Policies, as commands set, show and explain them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::handler::{event, of_vfs, resolve};
use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure, ProgressReport};
use crate::config::Config;
use crate::metadata::EventKind;
use crate::replication::{InvalidPolicy, Policy, check_definition, split_rule};
use crate::types::cid::sha256;
use crate::types::{FileKind, Ino, printable_path};
use crate::vfs::VfsError;

/// Paths that a refusal names.
const SHOWN: usize = 10;

type Progress<'p> = &'p mut dyn FnMut(ProgressReport);

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Usage, error.to_string())
}

fn of_rule(error: VfsError, what: &str) -> Failure {
    match error {
        VfsError::InvalidPolicy(text) => usage(text),
        error => of_vfs(error, what),
    }
}

fn counted(progress: Progress<'_>) -> impl FnMut(u64) {
    |done| progress(ProgressReport { what: "contents".into(), done, total: None })
}

/// Of the settings that contents follow: another one when they change.
pub(super) fn mark(policy: &Policy, definitions: &BTreeMap<String, String>) -> u64 {
    let mut text = policy.to_string();
    for (name, definition) in definitions {
        text.extend(["\n", name, "=", definition]);
    }
    let hash = sha256(text.as_bytes());
    hash.iter().take(8).fold(0, |mark, byte| mark << 8 | u64::from(*byte))
}

/// What of a mount's options says how many copies and where.
pub(super) fn mount_rule(options: &str) -> String {
    let waits = ["level", "wait_on", "on_degraded"];
    let parts = options
        .split(',')
        .map(str::trim)
        .filter(|part| part.split_once('=').is_some_and(|(key, _)| !waits.contains(&key)));
    parts.collect::<Vec<_>>().join(",")
}

fn texts(volume: &Volume) -> BTreeMap<String, String> {
    let known = volume.replicator.policies().definitions();
    known.into_iter().map(|(name, definition)| (name, definition.text)).collect()
}

/// The settings are these from now on, for new and for old contents; how many.
fn take(
    volume: &Volume,
    policy: &Policy,
    definitions: &BTreeMap<String, String>,
) -> Result<(), InvalidPolicy> {
    volume.replicator.policies().define(policy, definitions)?;
    volume.checkpointer.set_policies(policy.clone(), definitions.clone());
    Ok(())
}

/// All contents have what the settings say.
fn followed(volume: &Volume, policy: &Policy) -> Result<(), Failure> {
    volume.namespace.note_policies(mark(policy, &texts(volume))).map_err(failed)
}

/// Sets parts of the volume's policy.
pub(super) fn set_volume(
    volume: &Volume,
    text: &str,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    if let (Some(name), _) = split_rule(text) {
        let text = format!(
            "`{name}` is not key=value; a named policy is for a path: `cairn policy set {name} PATH` (the mount's root for all of it)"
        );
        return Err(usage(text));
    }
    let policy = volume.policy.read().overridden_by(text).map_err(usage)?;
    let mounted = policy.overridden_by(&volume.policy_override).map_err(usage)?;
    let definitions = texts(volume);
    for (name, text) in &definitions {
        check_definition(&policy, name, text).map_err(|error| {
            usage(format!("the policy `{name}` would not hold over it: {error}"))
        })?;
    }
    Config::set_policy(&volume.dir, &policy).map_err(failed)?;
    take(volume, &policy, &definitions).map_err(usage)?;
    volume.policy.write().clone_from(&policy);
    volume.vfs.set_policy(mounted);
    let contents = volume.vfs.converge(Ino::ROOT, &mut counted(progress)).map_err(failed)?;
    // Of what no file refers to any more, too.
    volume.replicator.replan().map_err(failed)?;
    followed(volume, &policy)?;
    event(volume, EventKind::PolicySet, "volume", &policy.to_string());
    Ok(json!({ "policy": policy.to_string(), "contents": contents }))
}

/// Sets the policy of a file or of all below a directory; empty inherits again.
pub(super) fn set_path(
    volume: &Volume,
    path: &[u8],
    text: &str,
    progress: Progress<'_>,
) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    let text = text.trim();
    let policy = volume.vfs.check_rule(ino, text).map_err(|e| of_rule(e, &what))?;
    let contents = volume.vfs.set_policy_now(ino, text, &mut counted(progress));
    let contents = contents.map_err(|e| of_rule(e, &what))?;
    event(volume, EventKind::PolicySet, &what, text);
    let unknown = unknown(volume, &policy);
    Ok(json!({
        "path": what, "policy": policy.to_string(), "set": text, "contents": contents,
        "unknown_backends": unknown,
    }))
}

/// Backends that a policy names and the volume does not have.
fn unknown(volume: &Volume, policy: &Policy) -> Vec<String> {
    let known = volume.registry.specs();
    let named = policy.prefer.iter().chain(&policy.exclude).chain(policy.weights.keys());
    let unknown = named.filter(|id| !id.is_local() && !known.iter().any(|spec| spec.id == **id));
    unknown.map(ToString::to_string).collect()
}

/// Makes or changes a named policy; what uses it follows.
pub(super) fn define(volume: &Volume, name: &str, text: &str) -> Result<Value, Failure> {
    let policy = volume.policy.read().clone();
    let checked = check_definition(&policy, name, text).map_err(usage)?;
    let mut definitions = texts(volume);
    let known = definitions.insert(name.to_owned(), text.trim().to_owned()).is_some();
    Config::set_definition(&volume.dir, name, Some(text.trim())).map_err(failed)?;
    take(volume, &policy, &definitions).map_err(usage)?;
    volume.vfs.definitions_changed();
    let contents = volume.replicator.replan().map_err(failed)?;
    followed(volume, &policy)?;
    event(volume, EventKind::PolicySet, &format!("[policies] {name}"), text);
    Ok(json!({
        "name": name, "text": text.trim(), "policy": checked.to_string(), "changed": known,
        "contents_considered": contents, "unknown_backends": unknown(volume, &checked),
    }))
}

/// The named policies.
pub(super) fn list(volume: &Volume) -> Value {
    let known = volume.replicator.policies().definitions();
    let rows = known.into_iter().map(|(name, definition)| {
        json!({ "name": name, "text": definition.text, "policy": definition.policy.to_string() })
    });
    json!({
        "volume": volume.policy.read().to_string(), "policies": rows.collect::<Vec<_>>(),
        "undefined": volume.vfs.undefined_policies(),
    })
}

/// One of them.
pub(super) fn show(volume: &Volume, name: &str) -> Result<Value, Failure> {
    let known = volume.replicator.policies().definitions();
    let definition = known.get(name).ok_or_else(|| not_defined(name, known.keys()))?;
    Ok(json!({
        "name": name, "text": definition.text, "policy": definition.policy.to_string(),
        "values": definition.policy,
    }))
}

fn not_defined<'n>(name: &str, known: impl Iterator<Item = &'n String>) -> Failure {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let known = if known.is_empty() { "none is".into() } else { known.join(", ") + " are" };
    Failure::new(ErrorCode::NotFound, format!("policy `{name}` is not defined; {known}"))
}

/// Removes a named policy that nothing uses.
pub(super) fn remove(volume: &Volume, name: &str) -> Result<Value, Failure> {
    let policy = volume.policy.read().clone();
    let before = texts(volume);
    let mut definitions = before.clone();
    definitions.remove(name).ok_or_else(|| not_defined(name, before.keys()))?;
    // First of all, so that nobody begins to use it.
    take(volume, &policy, &definitions).map_err(usage)?;
    let removed = (|| {
        let used = users(volume, name)?;
        if used.is_empty() {
            return Config::set_definition(&volume.dir, name, None).map_err(failed);
        }
        let text = format!(
            "policy `{name}` is used by {}; set another one there first (`cairn policy set`)",
            used.join(", ")
        );
        Err(Failure::new(ErrorCode::Busy, text))
    })();
    if let Err(failure) = removed {
        take(volume, &policy, &before).map_err(usage)?;
        return Err(failure);
    }
    volume.vfs.definitions_changed();
    followed(volume, &policy)?;
    event(volume, EventKind::PolicyRemoved, &format!("[policies] {name}"), "");
    Ok(json!({ "name": name }))
}

/// Where a name is set: some paths, and how many more there are.
fn users(volume: &Volume, name: &str) -> Result<Vec<String>, Failure> {
    let (mut inos, mut more) = (Vec::new(), 0u64);
    let seen = volume.namespace.each_policy(&mut |ino, text| {
        if split_rule(text).0 == Some(name) {
            if inos.len() < SHOWN { inos.push(ino) } else { more += 1 }
        }
        ControlFlow::Continue(())
    });
    seen.map_err(failed)?;
    let mut used = Vec::new();
    for ino in inos {
        let path = volume.namespace.path_of(ino).map_err(failed)?;
        let text = |path: Vec<u8>| printable_path(&path);
        used.push(path.map_or_else(|| format!("inode {ino}, which is open without a name"), text));
    }
    if more > 0 {
        used.push(format!("{more} more"));
    }
    Ok(used)
}

/// Which rule comes from where, and what became of them.
pub(super) fn explain(volume: &Volume, path: &[u8]) -> Result<Value, Failure> {
    let (ino, what) = resolve(volume, path)?;
    let info = volume.vfs.info(ino).map_err(|e| of_vfs(e, &what))?;
    let set = volume.vfs.rules_at(ino).map_err(|e| of_vfs(e, &what))?;
    let book = volume.replicator.policies();
    let own = volume.policy.read().clone();
    let base = own.overridden_by(&volume.policy_override).map_err(failed)?;
    let rules: Vec<String> = set.iter().map(|(_, rule)| rule.clone()).collect();
    let resolved = book.resolve(&base, &rules);
    let mut steps = vec![(json!({ "from": "cairn.toml", "text": own.to_string() }), own)];
    if !volume.policy_override.is_empty() {
        let step = json!({ "from": "options of this mount", "text": volume.policy_override });
        steps.push((step, base));
    }
    let definitions = book.definitions();
    for ((at, rule), (policy, problem)) in set.iter().zip(&resolved.steps) {
        let path = volume.namespace.path_of(*at).map_err(failed)?.unwrap_or_default();
        let path = printable_path(&path);
        let name = split_rule(rule).0;
        let definition = name.and_then(|name| definitions.get(name)).map(|d| d.text.clone());
        let step = json!({
            "from": path, "text": rule, "name": name, "definition": definition, "problem": problem,
        });
        steps.push((step, policy.clone()));
    }
    let parts = origins(&steps);
    let explained = volume
        .replicator
        .explain(info.content.as_ref().map(|record| (&info.link.cid, record)), &resolved.policy)
        .map_err(failed)?;
    let content = info.content.as_ref().map(|record| {
        let numbers = if record.policies.is_empty() { &[0][..] } else { &record.policies };
        let asked: Vec<Value> = numbers
            .iter()
            .map(|number| json!({ "number": number, "rules": book.expression_of(*number) }))
            .collect();
        json!({
            "cid": info.link.cid.to_string(), "files": record.refs, "asked_by": asked,
            "policy": book.of(&record.policies).to_string(), "pin": record.pin,
        })
    });
    let rules: Vec<Value> = steps.into_iter().map(|(step, _)| step).collect();
    let mut value = json!({
        "path": what, "kind": info.inode.kind, "policy": resolved.policy.to_string(),
        "values": resolved.policy, "rules": rules, "parts": parts, "content": content,
        "empty": info.inode.kind == FileKind::File && info.content.is_none(),
    });
    let explained = serde_json::to_value(explained).map_err(failed)?;
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), explained) {
        value.extend(more);
    }
    Ok(value)
}

/// For each part of a policy, the last rule that made it what it is.
fn origins(steps: &[(Value, Policy)]) -> Vec<Value> {
    let mut before =
        Policy::default().parts().map(|(key, value)| (key, value, "built in".to_owned()));
    for (step, policy) in steps {
        let reset = step["definition"].is_string();
        let from = step["from"].as_str().unwrap_or_default();
        for (known, (_, value)) in before.iter_mut().zip(policy.parts()) {
            let named = step["text"].as_str().is_some_and(|text| names(text, known.0));
            if known.1 != value || named || reset {
                (known.1, known.2) = (value, from.to_owned());
            }
        }
    }
    before
        .into_iter()
        .map(|(key, value, from)| json!({ "part": key, "value": value, "from": from }))
        .collect()
}

fn names(text: &str, key: &str) -> bool {
    text.split(',').filter_map(|part| part.split_once('=')).any(|(name, _)| name.trim() == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_mounts_options_only_those_about_copies_are_a_rule() {
        let options = "level=ALL, min=1,wait_on=fsync,prefer=a/b,on_degraded=fail";
        assert_eq!(mount_rule(options), "min=1,prefer=a/b");
        assert_eq!(mount_rule("level=ALL"), "");
    }

    #[test]
    fn a_mark_tells_settings_apart() {
        let of = |name: &str, text: &str| {
            mark(&Policy::default(), &[(name.to_owned(), text.to_owned())].into())
        };
        let none = mark(&Policy::default(), &BTreeMap::new());
        assert_ne!(none, of("a", "min=1"));
        assert_ne!(of("a", "min=1"), of("a", "min=2"));
        assert_eq!(of("a", "min=1"), of("a", "min=1"));
        assert_ne!(none, mark(&"min=1".parse().unwrap(), &BTreeMap::new()));
    }
}
