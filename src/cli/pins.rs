//! `cairn pin`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::Target;
use super::output::Output;
use crate::api::{Command, ErrorCode, Failure, PinCommand, What};
use crate::types::{ByteSize, Cid, printable};

/// Rows that one list looks at, at most: then it says where it goes on.
const LOOKED_AT: u64 = 1_000_000;
/// Bytes of paths that one request holds.
const REQUEST: usize = 64 << 10;

/// Files, directories and CIDs.
#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// Paths in a mount, or CIDs.
    #[arg(value_name = "PATH|CID")]
    pub of: Vec<OsString>,
    /// The volume's folder (for CIDs, and for one that is not mounted).
    #[arg(long)]
    pub volume: Option<PathBuf>,
}

/// Files, directories and CIDs, at least one.
#[derive(Debug, clap::Args)]
pub(super) struct NamedSome {
    /// Paths in a mount, or CIDs.
    #[arg(value_name = "PATH|CID", required = true)]
    pub of: Vec<OsString>,
    /// The volume's folder (for CIDs, and for one that is not mounted).
    #[arg(long)]
    pub volume: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum PinVerb {
    /// List pins: contents of files, with their copies.
    #[command(
        after_help = "Examples:\n  cairn pin ls ~/data --state below_min\n  cairn pin ls ~/data --backend disk-b --state corrupt\n  cairn pin ls --prefix ~/data/thesis\n  cairn --json pin ls ~/data --limit 1000 --after CURSOR     (`next` of the page before)\n\nStates of a pin: below_min, below_target, at_target, over_max. Of a copy: wanted, queued, sending, claimed, verified, stale, corrupt, lost, draining, blocked."
    )]
    Ls {
        #[command(flatten)]
        target: super::arguments::MountOrVolume,
        /// Of a pin, or of one of its copies.
        #[arg(long)]
        state: Option<String>,
        /// With a copy there; with a copy's state, in that state there.
        #[arg(long, value_name = "ID")]
        backend: Option<String>,
        /// Files below a path, or the beginning of CIDs.
        #[arg(long, value_name = "PATH|CID")]
        prefix: Option<OsString>,
        /// At least so large.
        #[arg(long, value_name = "SIZE")]
        min_size: Option<ByteSize>,
        /// At most so large.
        #[arg(long, value_name = "SIZE")]
        max_size: Option<ByteSize>,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Go on after the page that ended with this.
        #[arg(long, value_name = "CURSOR")]
        after: Option<String>,
    },
    /// Count pins and copies; or show each copy of some, and what is missing and why.
    #[command(
        after_help = "Examples:\n  cairn pin status --volume ~/volume     (counters: the same cost whatever the number)\n  cairn pin status ~/data/thesis/chapter-1.tex"
    )]
    Status {
        #[command(flatten)]
        named: Named,
    },
    /// Read copies back and hash them, now; bad ones are repaired.
    #[command(
        after_help = "Examples:\n  cairn pin verify ~/data/thesis --wait\n  cairn pin verify ~/data/thesis --backend disk-b --wait\n  cairn pin verify ~/data --audit --wait\n  cairn pin verify ~/data --older-than 12h --wait     (goes on with what was cut off in that time)\n\nAn unmount or a kill ends it; what was read is recorded. Exit codes with --wait: 6 when a copy is bad and cannot be repaired, 4 when one could not be read."
    )]
    Verify {
        #[command(flatten)]
        named: NamedSome,
        /// Only the copies there.
        #[arg(long, value_name = "ID")]
        backend: Option<String>,
        /// Ask a backend for the presence of every block and read some of them, chosen at
        /// random; copies here are read whole. It is no proof that lets another copy go.
        #[arg(long)]
        audit: bool,
        /// Only copies that were not found good in this time (2h, 7d): what was cut off goes
        /// on where it was.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        older_than: Option<std::time::Duration>,
        /// Return when all were read.
        #[arg(long)]
        wait: bool,
    },
    /// Make the copies that are missing, without waiting for the end of pauses.
    #[command(
        after_help = "Example:\n  cairn pin replicate ~/data/thesis --wait     (exit code 4 when nothing more can be done now)"
    )]
    Replicate {
        #[command(flatten)]
        named: NamedSome,
        /// Return when the target holds, or nothing can be done.
        #[arg(long)]
        wait: bool,
    },
    /// End the wish for copies elsewhere: one proven copy stays.
    #[command(
        after_help = "Examples:\n  cairn pin unpin ~/data/cache --dry-run\n  cairn pin unpin ~/data/cache\n  cairn pin unpin bafk... --files --volume ~/volume --dry-run     (which files have it)\n\nIt is a policy of the path's own (min=1,target=1,max=1); `cairn policy set '' PATH` ends it. What another file asks for stays."
    )]
    Unpin {
        #[command(flatten)]
        named: NamedSome,
        /// A CID stands for every file that has it; without this, a CID that files have is
        /// refused, and some of them are named.
        #[arg(long)]
        files: bool,
        /// Only say what would become of them.
        #[arg(long)]
        dry_run: bool,
    },
}

/// A path that is there, else a CID; where it lies. With `volume`, `./PATH` is from its root.
fn what(text: &OsString, volume: bool, begins: bool) -> Result<(Option<Target>, What), Failure> {
    let path = Path::new(text);
    if let Some(inner) = path.strip_prefix("./").ok().filter(|_| volume) {
        return Ok((None, What::Path(inner.as_os_str().as_bytes().to_vec())));
    }
    let cid = text.to_str().filter(|text| Cid::try_from(*text).is_ok());
    let there = path.symlink_metadata().is_ok();
    if let Some(cid) = cid.filter(|_| !there) {
        return Ok((None, What::Cid(cid.to_owned())));
    }
    if let Some((target, inner)) = Target::try_of_path(path)? {
        return Ok((Some(target), What::Path(inner)));
    }
    if let Some(text) = text.to_str().filter(|text| begins && !there && !text.contains('/')) {
        return Ok((None, What::Cid(text.to_owned())));
    }
    let text = format!(
        "{} is neither in a cairn mount nor a CID; with --volume, give a path from the volume's root as ./PATH",
        path.display()
    );
    Err(Failure::new(ErrorCode::NotFound, text))
}

/// Where all of these lie, and what they are.
pub(super) fn whats(
    of: &[OsString],
    volume: Option<PathBuf>,
) -> Result<(Target, Vec<What>), Failure> {
    let mut found: Option<Target> = None;
    let mut all = Vec::with_capacity(of.len());
    for text in of {
        let (target, what) = what(text, volume.is_some(), false)?;
        if let Some(target) = target {
            if found.as_ref().is_some_and(|found| found.volume() != target.volume()) {
                let text = "these lie in several volumes: name those of one at a time";
                return Err(Failure::new(ErrorCode::Usage, text));
            }
            found = Some(target);
        }
        all.push(what);
    }
    let target = match (found, volume) {
        (Some(target), None) => target,
        (_, volume) => Target::of_volume(volume)?,
    };
    Ok((target, all))
}

/// As many in a request as fit.
pub(super) fn requests(all: Vec<What>) -> Vec<Vec<What>> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for what in all {
        bytes += match &what {
            What::Path(path) => path.len(),
            What::Cid(text) => text.len(),
        };
        part.push(what);
        if bytes >= REQUEST {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
    }
    parts.push(part);
    parts
}

pub(super) fn pin(verb: PinVerb, output: &Output) -> Result<(), Failure> {
    let send = |target: &Target, pin| target.send(&Command::Pin { pin }, output);
    match verb {
        PinVerb::Ls { target, state, backend, prefix, min_size, max_size, limit, after } => {
            // A path in the mount is what is meant; the mount itself is all.
            let at = target.mountpoint.as_ref().filter(|_| target.volume.is_none());
            let prefix = match (prefix, at) {
                (Some(text), _) => Some(what(&text, target.volume.is_some(), true)?),
                (None, Some(path)) => match Target::of_path(path)? {
                    (target, inner) if !inner.is_empty() => Some((Some(target), What::Path(inner))),
                    _ => None,
                },
                (None, None) => None,
            };
            let (of_prefix, prefix) = match prefix {
                Some((target, what)) => (target, Some(what)),
                None => (None, None),
            };
            let target = match of_prefix {
                Some(target) => target,
                None => Target::of_volume_or_path(target.mountpoint, target.volume)?,
            };
            let list = PinCommand::List {
                state,
                backend,
                prefix,
                min_size: min_size.map(|size| size.0),
                max_size: max_size.map(|size| size.0),
                limit,
                after,
            };
            let value = pages(list, &mut |list| send(&target, list))?;
            output.lines(&value, &listed(&value));
            let looked_at = value["examined"].as_u64().filter(|rows| *rows >= LOOKED_AT);
            if let (Some(rows), Some(next)) = (looked_at, value["next"].as_str()) {
                output.note(&format!(
                    "{rows} pins were looked at, and there are more: --after {next}"
                ));
            } else if let Some(next) = value["next"].as_str() {
                output.note(&format!("there are more: --after {next}"));
            }
            Ok(())
        }
        PinVerb::Status { named } => {
            let (target, all) = whats(&named.of, named.volume)?;
            if all.is_empty() {
                let value = send(&target, PinCommand::Status { of: all })?;
                output.lines(&value, &totals(&value));
                return Ok(());
            }
            let mut pins = Vec::new();
            for of in requests(all) {
                let value = send(&target, PinCommand::Status { of })?;
                pins.extend(value["pins"].as_array().cloned().unwrap_or_default());
            }
            let value = json!({ "pins": pins });
            let lines: Vec<String> = pins.iter().flat_map(status).collect();
            output.lines(&value, &lines);
            Ok(())
        }
        PinVerb::Verify { named, backend, audit, older_than, wait } => {
            let (target, all) = whats(&named.of, named.volume)?;
            let mut sum = Value::Null;
            for of in requests(all) {
                let older_s = older_than.map(|time| time.as_secs());
                let backend = backend.clone();
                let command = PinCommand::Verify { of, backend, audit, older_s, wait };
                add(&mut sum, send(&target, command)?);
            }
            let fields: &[&str] = match (wait, audit) {
                (false, _) => &["contents"],
                (true, false) => &["contents", "verified", "repaired"],
                (true, true) => &["contents", "verified", "audited", "repaired"],
            };
            output.fields(&sum, fields);
            if sum["waited"] == false {
                output.note("they are read in the background; what an unmount or a kill cuts off is not gone on with by itself: ask again (--older-than leaves out what was read)");
            }
            Ok(())
        }
        PinVerb::Replicate { named, wait } => {
            let (target, all) = whats(&named.of, named.volume)?;
            let mut sum = Value::Null;
            for of in requests(all) {
                add(&mut sum, send(&target, PinCommand::Replicate { of, wait })?);
            }
            let fields: &[&str] = if wait { &["contents", "complete"] } else { &["contents"] };
            output.fields(&sum, fields);
            Ok(())
        }
        PinVerb::Unpin { named, files, dry_run } => {
            let (target, all) = whats(&named.of, named.volume)?;
            let mut rows = Vec::new();
            for of in requests(all) {
                let value = send(&target, PinCommand::Unpin { of, files, dry_run })?;
                rows.extend(value["unpinned"].as_array().cloned().unwrap_or_default());
            }
            let lines: Vec<String> = rows.iter().map(unpinned).collect();
            output.lines(&json!({ "dry_run": dry_run, "unpinned": rows }), &lines);
            if dry_run {
                output.note("this was a dry run: nothing was changed");
            }
            Ok(())
        }
    }
}

/// Adds numbers; the rest stays as it was first.
pub(super) fn add(sum: &mut Value, more: Value) {
    let (Some(fields), Some(new)) = (sum.as_object_mut(), more.as_object()) else {
        *sum = more;
        return;
    };
    for (name, value) in new {
        let before = fields.get(name).and_then(Value::as_u64);
        if let (Some(before), Some(value)) = (before, value.as_u64()) {
            fields.insert(name.clone(), (before + value).into());
        }
    }
}

/// Asks until the limit is reached, nothing is left, or very many rows were looked at: each
/// answer looks at a bounded number of them, and may be empty.
fn pages(
    mut command: PinCommand,
    send: &mut dyn FnMut(PinCommand) -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let (mut pins, mut examined) = (Vec::new(), 0);
    loop {
        let value = send(command.clone())?;
        examined += value["examined"].as_u64().unwrap_or(0);
        let page = value["pins"].as_array().cloned().unwrap_or_default();
        let count = u16::try_from(page.len()).unwrap_or(u16::MAX);
        pins.extend(page);
        let next = value["next"].as_str().map(str::to_owned);
        let PinCommand::List { limit, after, .. } = &mut command else { return Ok(value) };
        *limit = limit.saturating_sub(count);
        if *limit == 0 || next.is_none() || examined >= LOOKED_AT {
            return Ok(json!({ "pins": pins, "examined": examined, "next": next }));
        }
        *after = next;
    }
}

fn of(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".into(), |bytes| ByteSize(bytes).to_string())
}

pub(super) fn copies(pin: &Value) -> String {
    let copies = pin["copies"].as_array().map_or(&[][..], Vec::as_slice);
    let one = |copy: &Value| match copy["backend"].as_str() {
        Some(id) => format!("{id}:{}", of(&copy["state"])),
        None => of(&copy["state"]),
    };
    copies.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn listed(value: &Value) -> Vec<String> {
    let pins = value["pins"].as_array().map_or(&[][..], Vec::as_slice);
    let line = |pin: &Value| {
        let path = pin["path"].as_str().map(|path| format!("  {path}")).unwrap_or_default();
        format!(
            "{:12} {:>10} {:>2}/{} {}  {}{path}",
            of(&pin["pin"]),
            size(&pin["size"]),
            pin["have"],
            pin["target"],
            of(&pin["cid"]),
            copies(pin),
        )
    };
    pins.iter().map(line).collect()
}

fn status(pin: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    if pin["path"].is_string() {
        lines.push(format!("path     {}", of(&pin["path"])));
    }
    if pin["cid"].is_null() {
        lines.push("content  none: there is nothing to copy".to_owned());
        return lines;
    }
    lines.push(format!(
        "content  {} ({}, in {} files)",
        of(&pin["cid"]),
        size(&pin["size"]),
        pin["files"]
    ));
    lines.push(format!(
        "pin      {}, {} of {} copies ({})",
        of(&pin["pin"]),
        pin["have"],
        pin["target"],
        of(&pin["status"])
    ));
    for copy in pin["copies"].as_array().into_iter().flatten() {
        let reason = copy["reason"].as_str().filter(|reason| !reason.is_empty());
        lines.push(format!(
            "copy     {:16} {:9} {} {}{}",
            of(&copy["backend"]),
            of(&copy["state"]),
            of(&copy["at"]),
            of(&copy["method"]),
            reason.map(|reason| format!("  {}", printable(reason))).unwrap_or_default()
        ));
    }
    if let Some(missing) = pin["missing"].as_str().filter(|missing| !missing.is_empty()) {
        lines.push(format!("missing  {}", printable(missing)));
    }
    if pin["queue"].is_object() {
        let row = &pin["queue"];
        lines.push(format!(
            "queue    since {}, {} attempts, next {}",
            of(&row["since"]),
            row["attempts"],
            row["next_try"].as_str().unwrap_or("now")
        ));
        lines.push(format!("eta      {}", super::queue::eta(row)));
    }
    lines
}

fn totals(value: &Value) -> Vec<String> {
    let (pins, copies, queue) = (&value["pins"], &value["copies"], &value["queue"]);
    let mut lines = vec![
        format!(
            "pins      {}: {} at target, {} below target, {} below min, {} over max",
            pins["total"],
            pins["at_target"],
            pins["below_target"],
            pins["below_min"],
            pins["over_max"]
        ),
        format!(
            "copies    {} verified, {} claimed, {} stale, {} draining; {} pins with a corrupt one, {} with a lost one",
            copies["verified"],
            copies["claimed"],
            copies["stale"],
            copies["draining"],
            pins["corrupt"],
            pins["lost"]
        ),
    ];
    for backend in value["backends"].as_array().into_iter().flatten() {
        lines.push(format!(
            "backend   {:16} {:>10} copies {:>11}",
            of(&backend["id"]),
            of(&backend["copies"]),
            size(&backend["bytes"])
        ));
    }
    let paused = if queue["paused"] == true { ", PAUSED" } else { "" };
    lines.push(format!(
        "queue     {} pending, {} failed{paused}",
        queue["pending"], queue["failed"]
    ));
    lines
}

fn unpinned(row: &Value) -> String {
    let shared = match row["shared"].as_u64() {
        Some(0) | None => String::new(),
        Some(shared) => format!(", {shared} of them in other files, too: what those ask for stays"),
    };
    format!(
        "{}: {} contents with {} copies elsewhere, which go when another is proven{shared} (undo: {})",
        of(&row["path"]),
        row["contents"],
        row["copies_elsewhere"],
        of(&row["undo"])
    )
}
