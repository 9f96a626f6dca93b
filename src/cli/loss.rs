//! `cairn simulate-loss`.

use std::time::Duration;

use serde_json::Value;

use super::arguments::SimulateLoss;
use super::client::Target;
use super::output::Output;
use crate::api::{Command, Failure};
use crate::types::{ByteSize, printable};

fn counted(value: &Value) -> String {
    let bytes = ByteSize(value["bytes"].as_u64().unwrap_or(0));
    format!("{} contents ({bytes})", value["contents"])
}

pub(super) fn simulate(request: SimulateLoss, output: &Output) -> Result<(), Failure> {
    let target = Target::of_volume(request.volume)?;
    let value = target.send(&Command::SimulateLoss { ids: request.backends }, output)?;
    output.lines(&value, &lines(&value));
    Ok(())
}

fn lines(value: &Value) -> Vec<String> {
    let heal = &value["heal"];
    let bytes = |value: &Value| ByteSize(value.as_u64().unwrap_or(0)).to_string();
    let mut lines = vec![
        format!("lost          {}", counted(&value["lost"])),
        format!(
            "uncertain     {}, what is left of them is not proven",
            counted(&value["uncertain"])
        ),
        format!("below min     {}", counted(&value["below_min"])),
        format!("below target  {}", counted(&value["below_target"])),
        format!("to heal       {} copies, {}", heal["copies"], bytes(&heal["bytes"])),
    ];
    for one in heal["backends"].as_array().into_iter().flatten() {
        lines.push(format!(
            "              {} copies, {} to {}",
            one["copies"],
            bytes(&one["bytes"]),
            one["id"].as_str().unwrap_or_default()
        ));
    }
    let unmeasured: Vec<&str> =
        heal["not_measured"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    lines.push(match heal["seconds"].as_u64() {
        Some(seconds) => {
            format!("time          {}", humantime::format_duration(Duration::from_secs(seconds)))
        }
        None => format!(
            "time          not known: nothing was sent to {} since the mount; bandwidth= in its URL is a bound",
            unmeasured.join(", ")
        ),
    });
    let cost = &value["cost"];
    lines.push(format!(
        "cost          {} once, {} a month",
        cost["once"].as_str().unwrap_or_default(),
        cost["per_month"].as_str().unwrap_or_default()
    ));
    if heal["unplaced_copies"].as_u64().unwrap_or(0) > 0 {
        lines.push(format!(
            "no place      for {} copies, {}: add a backend, or set a lower target",
            heal["unplaced_copies"],
            bytes(&heal["unplaced_bytes"])
        ));
        for one in heal["unplaced_because"].as_array().into_iter().flatten() {
            lines.push(format!(
                "              {}: {} ({} times)",
                one["id"].as_str().unwrap_or_default(),
                one["reason"].as_str().unwrap_or_default(),
                one["times"]
            ));
        }
    }
    for one in value["paths"].as_array().into_iter().flatten() {
        lines.push(format!(
            "{:13} {}",
            one["harm"].as_str().unwrap_or_default(),
            printable(one["path"].as_str().unwrap_or_default())
        ));
    }
    if value["paths_of_all_files"] == false {
        lines.push("Not all files were looked at for paths.".into());
    }
    lines
}
