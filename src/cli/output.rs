//! What people and programs see.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::api::ProgressReport;
use crate::types::{ByteSize, printable};

/// Prints answers as text or as JSON.
pub(super) struct Output {
    json: bool,
}

/// Progress on a terminal; elsewhere only what is waited for.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    waits_for: String,
}

impl Progress {
    /// Shows how far the work is.
    pub fn show(&mut self, report: &ProgressReport) {
        if report.what.starts_with("waiting: ") && report.what != self.waits_for {
            self.waits_for.clone_from(&report.what);
            let tell = || eprintln!("cairn: {}", report.what);
            self.bar.as_ref().map_or_else(tell, |bar| bar.suspend(tell));
        }
        let Some(bar) = &self.bar else { return };
        match report.total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
        bar.set_position(report.done);
        bar.set_message(report.what.clone());
    }

    /// Removes the line.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Prints a line; a reader that has gone away is no error.
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}") {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => eprintln!("cairn: cannot print: {error}"),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

/// Of a long list the beginning; `--json` has all of it.
fn clipped(text: &str) -> String {
    const MOST: usize = 160;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}... (--json shows all)", &text[..end]),
        None => text.to_owned(),
    }
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".into(), |bytes| ByteSize(bytes).to_string())
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn progress(&self) -> Progress {
        let visible = !self.json && std::io::stderr().is_terminal();
        let style = ProgressStyle::with_template("{spinner} {pos}/{len} {msg} {elapsed} {eta}");
        let bar = visible.then(ProgressBar::no_length).map(|bar| match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        });
        Progress { bar, waits_for: String::new() }
    }

    /// JSON when that was asked for. True when it was.
    fn printed_json(&self, value: &Value) -> bool {
        if self.json {
            line(&value.to_string());
        }
        self.json
    }

    /// Some fields, a line each.
    pub fn fields(&self, value: &Value, names: &[&str]) {
        if self.printed_json(value) {
            return;
        }
        let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
        for name in names {
            line(&format!("{name:width$}  {}", plain(&value[*name])));
        }
    }

    /// Advice for people, on standard error.
    pub fn note(&self, text: &str) {
        if !self.json {
            eprintln!("cairn: {text}");
        }
    }

    /// One field, as it is.
    pub fn text(&self, value: &Value, name: &str) {
        if !self.printed_json(value) {
            line(value[name].as_str().unwrap_or_default().trim_end());
        }
    }

    /// Lines with JSON beside them.
    pub fn lines(&self, value: &Value, lines: &[String]) {
        if !self.printed_json(value) {
            for text in lines {
                line(text);
            }
        }
    }

    /// `cairn status`.
    pub fn status(&self, value: &Value) {
        if self.printed_json(value) {
            return;
        }
        let (pins, queue, checkpoint) = (&value["pins"], &value["queue"], &value["checkpoint"]);
        line(&format!("volume      {}", plain(&value["volume"])));
        line(&format!("state       {}", plain(&value["state"])));
        line(&format!("files       {} ({})", plain(&value["files"]), size(&value["bytes"])));
        line(&format!("policy      {}", plain(&value["policy"])));
        for name in value["undefined_policies"].as_array().into_iter().flatten() {
            line(&format!(
                "Files use the policy {}, which is not defined: what they inherit holds (`cairn policy define`).",
                plain(name)
            ));
        }
        line(&format!(
            "pins        {} total: {} at target, {} below target, {} below min, {} over max, {} unverified",
            pins["total"],
            pins["at_target"],
            pins["below_target"],
            pins["below_min"],
            pins["over_max"],
            pins["unverified"],
        ));
        let paused = if queue["paused"] == true { ", PAUSED (`cairn queue resume`)" } else { "" };
        line(&format!(
            "queue       {} pending, {} failed{paused}",
            queue["pending"], queue["failed"]
        ));
        line(&format!(
            "checkpoint  {} ({} s old, {} copies) {}",
            checkpoint["sequence"],
            checkpoint["age_s"],
            checkpoint["copies"],
            plain(&checkpoint["cid"])
        ));
        let memory = &value["memory"];
        line(&format!(
            "memory      {} of {}, at most {} so far",
            size(&memory["resident_bytes"]),
            size(&memory["budget_bytes"]),
            size(&memory["most_resident_bytes"]),
        ));
        self.backends(&value["backends"]);
        for one in value["moves"].as_array().into_iter().flatten() {
            line(&format!(
                "moving      {}: {} contents ({}) moved, {} left",
                plain(&one["what"]),
                one["moved"],
                size(&one["moved_bytes"]),
                one["left"],
            ));
        }
        for alarm in value["alarms"].as_array().into_iter().flatten() {
            line(&format!(
                "ALARM       {} {} since {}: {}. {}",
                plain(&alarm["alarm"]),
                plain(&alarm["subject"]),
                plain(&alarm["since"]),
                plain(&alarm["detail"]),
                plain(&alarm["advice"]),
            ));
        }
        if value["places"].as_u64() < value["wanted_places"].as_u64() {
            line(&format!(
                "Places that fail apart: {}, and the policy wants {}: add a backend on another disk (`cairn backend add`), or set the policy.",
                value["places"], value["wanted_places"]
            ));
        }
    }

    /// A table of backends.
    pub fn backends(&self, value: &Value) {
        if self.printed_json(value) {
            return;
        }
        line(&format!(
            "{:16} {:7} {:10} {:>8} {:>11} {:>11}  {}",
            "backend", "kind", "state", "copies", "used", "capacity", "url"
        ));
        for backend in value.as_array().into_iter().flatten() {
            line(&format!(
                "{:16} {:7} {:10} {:>8} {:>11} {:>11}  {}",
                plain(&backend["id"]),
                plain(&backend["kind"]),
                match (&backend["draining"], &backend["read_only"], &backend["paused"]) {
                    (Value::Bool(true), ..) => "draining".to_owned(),
                    (_, Value::Bool(true), _) if backend["state"] != "down" =>
                        "read_only".to_owned(),
                    (.., Value::Bool(true)) => "paused".to_owned(),
                    _ if backend["role"] == "cache" => "cache".to_owned(),
                    _ => plain(&backend["state"]),
                },
                backend["copies"],
                size(&backend["used_bytes"]),
                size(&backend["capacity_bytes"]),
                plain(&backend["url"]),
            ));
            if let Some(error) = backend["last_error"].as_str().filter(|error| !error.is_empty()) {
                line(&format!("{:16} {}", "", printable(error)));
            }
            if backend["stopped"] == true {
                let text = "at its stop= threshold: it takes no new copies";
                line(&format!("{:16} {text}", ""));
            }
            let cache = &backend["cache"];
            if cache.is_object() {
                line(&format!(
                    "{:16} up to {}: {} may go, {} wait for copies, {} for a proof",
                    "",
                    size(&cache["budget_bytes"]),
                    size(&cache["evictable_bytes"]),
                    size(&cache["waits_for_copies_bytes"]),
                    size(&cache["waits_for_proof_bytes"]),
                ));
            }
            if let Some(text) = cache["above_budget"].as_str() {
                line(&format!("{:16} {text}; writes go on", ""));
            }
            if backend["copies_count"] == false {
                let text = "away for too long: copies there do not count, others are made";
                line(&format!("{:16} {text}", ""));
            }
        }
    }

    /// One event, a line; as JSON, one object.
    pub fn event(&self, event: &Value) {
        if self.printed_json(event) {
            return;
        }
        let count = event["count"].as_u64().filter(|count| *count != 1);
        line(&format!(
            "{:>7} {:27} {:8} {:17} {:10} {}{} {}",
            event["number"],
            plain(&event["time"]),
            plain(&event["severity"]),
            plain(&event["kind"]),
            plain(&event["backend"]),
            plain(&event["subject"]),
            count.map(|count| format!(" ({count} of them)")).unwrap_or_default(),
            clipped(&plain(&event["detail"])),
        ));
    }

    /// A table of quotas.
    pub fn quotas(&self, value: &Value, quotas: &[Value]) {
        if self.printed_json(value) {
            return;
        }
        if !quotas.is_empty() {
            line(&format!(
                "{:>11} {:>11} {:>5}  {:>11} {:>11} {:>5}  {}",
                "used", "limit", "%", "inodes", "limit", "%", "path"
            ));
        }
        for quota in quotas {
            line(&format!(
                "{:>11} {:>11} {:>5}  {:>11} {:>11} {:>5}  {}",
                size(&quota["used_bytes"]),
                size(&quota["limit_bytes"]),
                plain(&quota["bytes_percent"]),
                plain(&quota["used_inodes"]),
                plain(&quota["limit_inodes"]),
                plain(&quota["inodes_percent"]),
                quota["path"].as_str().unwrap_or_default(),
            ));
        }
    }

    /// `cairn info`.
    pub fn info(&self, value: &Value) {
        if self.printed_json(value) {
            return;
        }
        self.fields(value, &["path", "kind", "cid", "size", "blocks", "pin", "policy"]);
        for copy in value["copies"].as_array().into_iter().flatten() {
            line(&format!(
                "copy    {:16} {:9} {} {}",
                plain(&copy["backend"]),
                plain(&copy["state"]),
                plain(&copy["time"]),
                plain(&copy["method"])
            ));
        }
    }
}
