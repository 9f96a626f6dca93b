//! `cairn events`.

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::Value;

use super::arguments::EventsArguments;
use super::client::Target;
use super::output::Output;
use crate::api::{Command, ErrorCode, Failure};
use crate::metadata::EventQuery;
use crate::types::{Timestamp, printable};

/// `2h` (ago) or a time of RFC 3339.
fn time(flag: &str, text: &str) -> Result<Timestamp, Failure> {
    if let Ok(ago) = humantime::parse_duration(text) {
        let at = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
        return Ok(Timestamp::from_system(at));
    }
    humantime::parse_rfc3339_weak(text).map(Timestamp::from_system).map_err(|_| {
        let text = format!(
            "--{flag} `{text}` is no time: write how long ago it is (30m, 2h, 7d) or a time such as 2026-11-22T08:00:00Z"
        );
        Failure::new(ErrorCode::Usage, text)
    })
}

pub(super) fn events(arguments: EventsArguments, output: &Output) -> Result<(), Failure> {
    let EventsArguments {
        target,
        follow,
        since,
        until,
        kinds,
        severity,
        backend,
        subject,
        limit,
        after,
    } = arguments;
    let query = EventQuery {
        after,
        since: since.map(|text| time("since", &text)).transpose()?,
        until: until.map(|text| time("until", &text)).transpose()?,
        kinds,
        severity,
        backend,
        subject,
        limit: limit.into(),
    };
    let target = Target::of_volume_or_path(target.mountpoint, target.volume)?;
    if follow {
        let ended = target.follow(&Command::Events { query, follow }, &mut |event| {
            output.event(&event);
            true
        })?;
        if let Some(why) = ended["ended"].as_str() {
            output.note(why);
        }
        return Ok(());
    }
    let from_start = query.after.is_some();
    let value = target.send(&Command::Events { query, follow }, output)?;
    let events = value["events"].as_array().map_or(&[][..], Vec::as_slice);
    events.iter().for_each(|event| output.event(event));
    if value["more"] == true {
        let text = if from_start {
            format!("more follow: --after {}", value["next"])
        } else {
            "earlier ones are left out: --limit, or --after 0 for the first".to_owned()
        };
        output.note(&text);
    }
    Ok(())
}

/// `cairn hooks test`.
pub(super) fn test_hooks(volume: Option<PathBuf>, output: &Output) -> Result<(), Failure> {
    let value = Target::of_volume(volume)?.send(&Command::HooksTest, output)?;
    let hooks = value["hooks"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |hook: &Value, key: &str| hook[key].as_str().unwrap_or_default().to_owned();
    let lines: Vec<String> = hooks
        .iter()
        .map(|hook| {
            let answer = printable(&text(hook, "answer"));
            let (outcome, name) = (text(hook, "outcome"), text(hook, "hook"));
            format!("{outcome:8} {name} ({} ms): {answer}", hook["took_ms"])
        })
        .collect();
    output.lines(&value, &lines);
    if hooks.is_empty() {
        output.note("there are no hooks: write [[hooks]] into cairn.toml (`cairn config path`)");
    }
    let failed = hooks.iter().filter(|hook| hook["outcome"] != "ok").count();
    if failed > 0 {
        let text = format!(
            "{failed} of {} hooks failed; put it right in cairn.toml, mount again, and try again",
            hooks.len()
        );
        return Err(Failure::new(ErrorCode::Failed, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_how_long_ago_or_rfc_3339() {
        let now = Timestamp::from_system(SystemTime::now()).seconds;
        let ago = now - time("since", "2h").unwrap().seconds;
        assert!((7199..=7201).contains(&ago), "{ago}");
        assert_eq!(time("until", "1970-01-01T00:01:00Z").unwrap().seconds, 60);
        assert_eq!(time("until", "1970-01-01 00:01:00").unwrap().seconds, 60);
        let error = time("since", "yesterday").unwrap_err();
        assert!(error.message.contains("--since `yesterday`") && error.message.contains("2h"));
    }
}
