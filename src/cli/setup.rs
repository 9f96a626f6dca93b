//! `cairn init`, `recover`, `config` and `backend test`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;

use super::arguments::{Init, Recover};
use super::client::Target;
use super::output::Output;
use crate::api::{Command, ErrorCode, Failure};
use crate::backends::{Backend, BackendError, BackendSpec, Presence, open};
use crate::config::{Config, LocalChange, LocalRole};
use crate::content::Profile;
use crate::daemon::{CreateOptions, Identity, RecoverOptions, Volume, default_volume, hook_name};
use crate::replication::Policy;
use crate::runtime::Bridge;
use crate::types::{Block, cid};

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Usage, error.to_string())
}

pub(super) fn volume_dir(volume: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    std::path::absolute(volume.cloned().unwrap_or_else(default_volume)).map_err(super::failed)
}

pub(super) fn create_options(
    backends: &[String],
    policy: &str,
    profile: &str,
    local: LocalChange,
) -> Result<CreateOptions, Failure> {
    let policy: Policy = policy.parse().map_err(usage)?;
    let profile: Profile = profile.parse().map_err(usage)?;
    Ok(CreateOptions { backends: backends.to_vec(), policy, profile, local })
}

pub(super) fn init(request: &Init, output: &Output) -> Result<(), Failure> {
    let dir = volume_dir(request.volume.as_ref())?;
    let local = request.local.change();
    let options = create_options(&request.backends, &request.policy, &request.profile, local)?;
    let identity = Volume::create(&dir, &options)?;
    let value = json!({ "volume": identity.id, "dir": dir.display().to_string(), "profile": identity.profile });
    output.fields(&value, &["volume", "dir", "profile"]);
    let (min, backends) = (usize::from(options.policy.min), options.backends.len());
    if local.role == Some(LocalRole::Cache) && backends < min {
        output.note(&format!(
            "The policy asks for at least {min} copies, and a cache is none: with {backends} backends nothing reaches that, and nothing leaves the cache. Add backends (`cairn backend add`), or set a lower min (`cairn policy set`)."
        ));
    }
    Ok(())
}

pub(super) fn recover(request: &Recover, output: &Output) -> Result<(), Failure> {
    let dir = volume_dir(request.volume.as_ref())?;
    let volume_id = request.volume_id.as_deref().map(str::parse).transpose().map_err(usage)?;
    let local = request.local.change();
    if request.full && local.role == Some(LocalRole::Cache) {
        return Err(usage(
            "--full brings all contents here, which a cache does not keep: leave one of the two out",
        ));
    }
    let options = RecoverOptions { from: request.from.clone(), volume_id, local };
    let recovered = Volume::recover(&dir, &options)?;
    for skipped in &recovered.skipped {
        eprintln!("cairn: passed over an incomplete checkpoint: {skipped}");
    }
    let mut value = json!({
        "volume": recovered.manifest.volume, "dir": dir.display().to_string(), "checkpoint": recovered.manifest.sequence,
        "cid": recovered.cid.to_string(), "rows": recovered.rows, "files": recovered.manifest.files,
        "bytes": recovered.manifest.bytes, "skipped": recovered.skipped,
    });
    if request.full {
        let fetched = Target::of_volume(Some(dir))?.send(&Command::Fetch, output)?;
        value["fetched"] = fetched;
    }
    output.fields(&value, &["volume", "dir", "checkpoint", "cid", "rows", "files", "bytes"]);
    Ok(())
}

pub(super) fn config_path(volume: Option<PathBuf>, output: &Output) -> Result<(), Failure> {
    let dir = volume_dir(volume.as_ref())?;
    Identity::load(&dir)?;
    let path = Config::path(&dir).display().to_string();
    output.text(&json!({ "path": path }), "path");
    Ok(())
}

pub(super) fn config_show(volume: Option<PathBuf>, output: &Output) -> Result<(), Failure> {
    let dir = volume_dir(volume.as_ref())?;
    Identity::load(&dir)?;
    let (config, origins) = Config::load(&dir).map_err(usage)?;
    let values = serde_json::to_value(&config).map_err(super::failed)?;
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for (key, origin) in &origins {
        let value = key
            .split_once('.')
            .map(|(section, key)| values[section][key].clone())
            .unwrap_or_default();
        lines.push(format!("{key} = {value}  # {origin}"));
        rows.push(json!({ "key": key, "value": value, "origin": origin }));
    }
    let mut from_file = |line: &str, key: String, value: serde_json::Value| {
        lines.push(format!("{line}  # file"));
        rows.push(json!({ "key": key, "value": value, "origin": "file" }));
    };
    for (name, text) in &config.policies {
        from_file(
            &format!("policies.{name} = \"{text}\""),
            format!("policies.{name}"),
            json!(text),
        );
    }
    for (number, hook) in (1..).zip(&config.hooks) {
        // The URL's path and the headers may be secrets: its name has neither.
        let (name, on) = (hook_name(hook), &hook.on);
        let alarms: Vec<&str> = on.iter().map(|kind| kind.as_str()).collect();
        let value = json!({
            "name": name, "on": on, "interval_s": hook.interval_s, "deadline_s": hook.deadline_s,
        });
        let line = format!("hook {number} = {name}, on {}", alarms.join(", "));
        from_file(&line, format!("hooks.{number}"), value);
    }
    for backend in &config.backends {
        let line = format!("backend {} = \"{}\"", backend.id, backend.url);
        from_file(&line, format!("backends.{}", backend.id), json!(backend.url));
    }
    output.lines(&json!(rows), &lines);
    Ok(())
}

/// One step of a test, with its time.
struct Steps {
    bridge: Bridge,
    rows: Vec<serde_json::Value>,
    lines: Vec<String>,
}

impl Steps {
    fn step<T>(
        &mut self,
        name: &str,
        future: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        let result = match self.bridge.wait(Duration::from_mins(1), future) {
            Ok(result) => {
                result.map_err(|e| Failure::new(ErrorCode::Failed, format!("{name} failed: {e}")))
            }
            Err(e) => Err(Failure::new(ErrorCode::Failed, format!("{name}: {e}"))),
        };
        #[expect(clippy::cast_precision_loss, reason = "printed with three digits")]
        let ms = start.elapsed().as_micros() as f64 / 1000.0;
        let value = result?;
        self.lines.push(format!("{name:10} ok  {ms:9.3} ms"));
        self.rows.push(json!({ "step": name, "ok": true, "ms": ms }));
        Ok(value)
    }
}

pub(super) fn backend_test(url: &str, output: &Output) -> Result<(), Failure> {
    let spec = BackendSpec::parse(url, &[]).map_err(usage)?;
    let backend = open(&spec, false).map_err(|e| {
        Failure::new(ErrorCode::Failed, format!("{e}\nNothing was written: a test does not make a new place; `cairn backend add` or `cairn init` does."))
    })?;
    let bridge = Bridge::start(1).map_err(super::failed)?;
    let mut steps = Steps { bridge, rows: Vec::new(), lines: Vec::new() };
    run_test(backend.as_ref(), &mut steps)?;
    output.lines(&json!({ "url": spec.url, "steps": steps.rows }), &steps.lines);
    Ok(())
}

fn run_test(backend: &dyn Backend, steps: &mut Steps) -> Result<(), Failure> {
    let wrong =
        |text: &str| Failure::new(ErrorCode::Damaged, format!("{}: {text}", backend.location()));
    let mut data = b"cairn backend test ".to_vec();
    data.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
    data.resize(1 << 20, 7);
    let block = Block::raw(Bytes::from(data));
    steps.step("probe", backend.probe())?;
    steps.step("put", backend.put(&block))?;
    let read = steps.step("get", backend.get(&block.cid, None))?;
    if cid::verify(&block.cid, &read) != cid::Verdict::Match {
        return Err(wrong("the bytes that came back are not those that were written"));
    }
    let part = steps.step("range", backend.get(&block.cid, Some(100..200)))?;
    if part != block.data[100..200] {
        return Err(wrong("a range came back wrong"));
    }
    let presence = steps.step("presence", backend.presence(&[block.cid]))?;
    if presence != [Presence::Present(block.data.len() as u64)] {
        return Err(wrong("a block that was written is not reported"));
    }
    steps.step("list", backend.list(None, 100))?;
    let name = format!("tests/{}", uuid::Uuid::new_v4());
    steps.step("name", backend.put_name(&name, &block.cid))?;
    steps.step("names", backend.names("tests/"))?;
    steps.step("unname", backend.delete_name(&name))?;
    steps.step("delete", backend.delete(&block.cid))?;
    steps.step("usage", backend.usage())?;
    Ok(())
}
