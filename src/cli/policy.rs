//! `cairn policy`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::arguments::PolicyVerb;
use super::client::Target;
use super::output::Output;
use crate::api::{Command, ErrorCode, Failure};
use crate::replication::check_name;
use crate::types::printable;

pub(super) fn policy(verb: PolicyVerb, output: &Output) -> Result<(), Failure> {
    match verb {
        PolicyVerb::Show { of, volume } => show(of, volume, output),
        PolicyVerb::Set { text, path, volume } => set(text, path, volume, output),
        PolicyVerb::Define { name, text, volume } => {
            let command = Command::PolicyDefine { name, text };
            let value = Target::of_volume(volume)?.send(&command, output)?;
            output.text(&value, "policy");
            note_unknown(&value, output);
            Ok(())
        }
        PolicyVerb::Ls { volume } => {
            let value = Target::of_volume(volume)?.send(&Command::PolicyList, output)?;
            let rows = value["policies"].as_array().map_or(&[][..], Vec::as_slice);
            let lines = rows
                .iter()
                .map(|row| format!("{:16} {}", text_of(&row["name"]), text_of(&row["text"])));
            output.lines(&value, &lines.collect::<Vec<_>>());
            for name in value["undefined"].as_array().into_iter().flatten() {
                output.note(&format!(
                    "`{}` is used and not defined: what is inherited holds",
                    text_of(name)
                ));
            }
            if rows.is_empty() {
                output.note("there is no named policy; `cairn policy define NAME TEXT` makes one");
            }
            Ok(())
        }
        PolicyVerb::Rm { name, volume } => {
            let value = Target::of_volume(volume)?.send(&Command::PolicyRemove { name }, output)?;
            output.fields(&value, &["name"]);
            Ok(())
        }
        PolicyVerb::Explain { path } => {
            let (target, path) = Target::of_path(&path)?;
            let value = target.send(&Command::PolicyExplain { path }, output)?;
            output.lines(&value, &explained(&value));
            Ok(())
        }
    }
}

fn show(of: Option<PathBuf>, volume: Option<PathBuf>, output: &Output) -> Result<(), Failure> {
    let name = of.as_deref().and_then(Path::to_str).filter(|text| check_name(text).is_ok());
    let (target, command) = match (&of, name) {
        // What is there is a path, `./archive` always.
        (Some(path), None) => of_path(path)?,
        (Some(path), Some(_)) if path.exists() => of_path(path)?,
        (_, Some(name)) => {
            let command = Command::PolicyShow { path: None, name: Some(name.to_owned()) };
            (Target::of_volume(volume)?, command)
        }
        (None, None) => {
            (Target::of_volume(volume)?, Command::PolicyShow { path: None, name: None })
        }
    };
    let value = target.send(&command, output)?;
    output.text(&value, "policy");
    Ok(())
}

fn of_path(path: &Path) -> Result<(Target, Command), Failure> {
    let (target, path) = Target::of_path(path)?;
    Ok((target, Command::PolicyShow { path: Some(path), name: None }))
}

/// TEXT PATH, or PATH TEXT where the first is a path and the second is none.
fn in_order(text: OsString, path: Option<OsString>) -> (OsString, Option<PathBuf>) {
    match path {
        Some(path) if Path::new(&text).exists() && !Path::new(&path).exists() => {
            (path, Some(text.into()))
        }
        path => (text, path.map(PathBuf::from)),
    }
}

fn set(
    text: OsString,
    path: Option<OsString>,
    volume: Option<PathBuf>,
    output: &Output,
) -> Result<(), Failure> {
    let (text, path) = in_order(text, path);
    let text = text.into_string().map_err(|text| {
        Failure::new(ErrorCode::Usage, format!("{} is no policy", text.display()))
    })?;
    let (target, path) = match path {
        Some(path) => {
            let (target, path) = Target::of_path(&path)?;
            (target, Some(path))
        }
        None => (Target::of_volume(volume)?, None),
    };
    let value = target.send(&Command::PolicySet { path, text }, output)?;
    output.text(&value, "policy");
    note_unknown(&value, output);
    Ok(())
}

fn note_unknown(value: &Value, output: &Output) {
    for id in value["unknown_backends"].as_array().into_iter().flatten() {
        output.note(&format!(
            "the volume has no backend `{}` (`cairn backend list` shows them)",
            text_of(id)
        ));
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

/// `cairn policy explain` for people.
fn explained(value: &Value) -> Vec<String> {
    let array = |key: &str| value[key].as_array().cloned().unwrap_or_default();
    let mut lines = vec![format!("path      {}", text_of(&value["path"]))];
    for rule in array("rules") {
        let (from, text) = (text_of(&rule["from"]), text_of(&rule["text"]));
        lines.push(format!("rule      {text}  (from {from})"));
        if let Some(definition) = rule["definition"].as_str() {
            lines.push(format!("            {} is {definition}", text_of(&rule["name"])));
        }
        if let Some(problem) = rule["problem"].as_str() {
            lines.push(format!("            {problem}"));
        }
    }
    lines.push(format!("policy    {}", text_of(&value["policy"])));
    for part in array("parts") {
        if part["from"] != "built in" {
            lines.push(format!(
                "            {}={}  (from {})",
                text_of(&part["part"]),
                text_of(&part["value"]),
                text_of(&part["from"])
            ));
        }
    }
    lines.push(format!("fsync     {}", text_of(&value["wait"]["text"])));
    let content = &value["content"];
    if content.is_object() {
        lines.push(format!("content   {}", text_of(&content["cid"])));
        let asked = content["asked_by"].as_array().cloned().unwrap_or_default();
        if asked.len() > 1 || content["files"].as_u64() > Some(1) {
            lines.push(format!(
                "            in {} files, so that it has",
                text_of(&content["files"])
            ));
            lines.push(format!("            {}", text_of(&content["policy"])));
        }
        lines.push(format!("status    {}", text_of(&value["status"])));
    }
    for place in array("places") {
        let mut words = Vec::new();
        for flag in ["preferred", "excluded"] {
            if place[flag] == true {
                words.push(flag.to_owned());
            }
        }
        let copy = &place["copy"];
        if copy.is_object() {
            let time = |key: &str| copy["at"][key].as_i64().unwrap_or_default();
            let at = crate::types::Timestamp { seconds: time("seconds"), nanoseconds: 0 };
            let at = humantime::format_rfc3339_seconds(at.to_system());
            words.push(format!("{} {at} ({})", text_of(&copy["state"]), text_of(&copy["method"])));
        } else if place["chosen"] == true {
            words.push("chosen".into());
        }
        for step in place["steps"].as_array().into_iter().flatten() {
            let what = match step["job"].as_str() {
                Some("send") => "gets a copy",
                Some("repair") => "is repaired",
                Some("verify") => "is read back",
                Some("audit") => "is audited",
                _ => "gives its copy up",
            };
            let round = step["round"].as_u64().unwrap_or_default();
            words.push(if round == 0 {
                format!("{what} now")
            } else {
                format!("{what} in round {}", round + 1)
            });
        }
        if let Some(why) = place["why_not"].as_str().filter(|why| !why.is_empty()) {
            words.push(format!("no copy: {why}"));
        }
        lines.push(format!("place     {:16} {}", text_of(&place["id"]), words.join(", ")));
    }
    let cost = &value["cost"];
    let ceiling = cost["ceiling"].as_str();
    if ceiling.is_some() || cost["per_month"] != "0" || cost["volume_forecast"] != "0" {
        lines.push(format!(
            "cost      {} a month, {} once; the volume {} this month{}{}",
            text_of(&cost["per_month"]),
            text_of(&cost["once"]),
            text_of(&cost["volume_forecast"]),
            ceiling.map(|ceiling| format!(" of {ceiling}")).unwrap_or_default(),
            if cost["above"] == true { ": above it, cheaper places come first" } else { "" },
        ));
    }
    for id in array("unknown") {
        lines.push(format!("            the policy names `{}`, which is no backend", text_of(&id)));
    }
    if let Some(missing) = value["missing"].as_str().filter(|missing| !missing.is_empty()) {
        lines.push(format!("missing   {missing}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_path_are_told_apart_in_either_order() {
        let dir = tempfile::tempdir().unwrap();
        let (there, other) = (dir.path().join("archive"), dir.path().join("data"));
        std::fs::create_dir(&there).unwrap();
        std::fs::create_dir(&other).unwrap();
        let order = |a: &Path, b: &Path| {
            let (text, path) = in_order(a.as_os_str().to_owned(), Some(b.as_os_str().to_owned()));
            (PathBuf::from(text), path.unwrap())
        };
        let (text, none, gone) = (Path::new("min=3"), Path::new(""), dir.path().join("gone"));
        let wanted = |text: &Path, path: &Path| (text.to_owned(), path.to_owned());
        assert_eq!(order(text, &other), wanted(text, &other));
        assert_eq!(order(&other, text), wanted(text, &other));
        assert_eq!(order(&other, none), wanted(none, &other));
        assert_eq!(order(none, &other), wanted(none, &other));
        // Both are there: as it is documented.
        assert_eq!(order(&there, &other), wanted(&there, &other));
        assert_eq!(order(text, &gone), wanted(text, &gone));
    }
}
