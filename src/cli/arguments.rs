use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::local::Local;
use super::pins::PinVerb;
use super::queue::QueueVerb;
use super::serve::{GatewayArguments, ServeArguments};
use crate::metadata::Severity;
use crate::telemetry::LogFormat;
use crate::types::ByteSize;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong use
  3  not found: no such path, backend, volume or checkpoint
  4  degraded: fewer copies than asked for
  5  busy: in use, or unsafe now
  6  damage that remains

Examples:
  cairn mount ~/data --volume ~/volume --backend /mnt/disk-b/cairn
  cairn status ~/data
  cairn recover --from /mnt/disk-b/cairn --volume ~/volume-again";

/// A filesystem with transparent replication: mount a directory, every file gets
/// an IPFS CID and copies on several backends.
#[derive(Debug, Parser)]
#[command(name = "cairn", version, after_help = EXIT_CODES)]
pub(super) struct Arguments {
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// error, warn, info, debug, trace, or a filter as in `RUST_LOG`.
    #[arg(long, global = true, env = "CAIRN_LOG_LEVEL")]
    pub log_level: Option<String>,
    /// text or json.
    #[arg(long, global = true, env = "CAIRN_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    #[command(subcommand)]
    pub verb: Verb,
}

/// A mountpoint, or a volume's folder.
#[derive(Debug, Args)]
pub(super) struct MountOrVolume {
    /// A mountpoint, or any path in it.
    pub mountpoint: Option<PathBuf>,
    /// The volume's folder (default: $`CAIRN_VOLUME`, else ~/.local/share/cairn/default).
    #[arg(long)]
    pub volume: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn init --volume ~/volume --backend /mnt/b/cairn --backend 'file:///mnt/c/cairn?domain=attic'\n  cairn init --volume ~/volume --policy min=1,target=2\n  cairn init --volume ~/volume --backend /mnt/b/cairn --backend /mnt/c/cairn --local-role cache --cache-size 20GiB"
)]
pub(super) struct Init {
    /// The volume's folder (default: $`CAIRN_VOLUME`, else ~/.local/share/cairn/default).
    #[arg(long)]
    pub volume: Option<PathBuf>,
    /// A backend besides the local store: a path, <file:///path?id=NAME&domain=NAME&capacity=SIZE&read_only=1>,
    /// <s3://BUCKET/PREFIX?endpoint=URL&region=NAME&auth=file:PATH>, <ipfs://HOST:5001/FOLDER?auth=file:PATH>,
    /// <ipfs-cluster://HOST:9094/FOLDER?auth=file:PATH>,
    /// <pinning+https://HOST/ROOT?gateway=URL&auth=file:PATH>, <pinata://FOLDER?gateway=URL&auth=file:PATH>,
    /// <car:///PATH>, <parquet:///PATH>, <sftp://USER@HOST/PATH>,
    /// <azblob://CONTAINER/PREFIX?account=NAME>, <gcs://BUCKET/PREFIX> or <cairn://HOST:7180?auth=file:PATH>.
    #[arg(long = "backend", value_name = "URL")]
    pub backends: Vec<String>,
    /// Copies: `min=2,target=3,max=5,level=QUORUM,wait_on=close,on_degraded=queue`; any part.
    #[arg(long, default_value = "")]
    pub policy: String,
    /// How CIDs are made: unixfs-v1-2025 or unixfs-v0-2015.
    #[arg(long, default_value = "unixfs-v1-2025")]
    pub profile: String,
    #[command(flatten)]
    pub local: Local,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn mount ~/data --volume ~/volume --backend /mnt/b/cairn\n  cairn mount ~/data -o level=LOCAL_DURABILITY,wait_on=fsync\n  mount -t cairn /srv/volume /srv/data -o noatime\n  /srv/volume /srv/data cairn defaults,_netdev 0 0     (a line of fstab)\n\nOptions of -o: level=, wait_on=, on_degraded=, min=, target=, max= (this mount only), volume=, ro, rw, allow_other, noatime, nodiratime, nosuid, nodev, noexec, nosymfollow, sync, dirsync; what fstab has for others (defaults, auto, user, nofail, _netdev, x-*) is passed over."
)]
pub(super) struct Mount {
    /// Where.
    pub mountpoint: PathBuf,
    /// The volume's folder; made if there is none.
    #[arg(long)]
    pub volume: Option<PathBuf>,
    /// A backend, as in `cairn init`; added when the volume does not have it.
    #[arg(long = "backend", value_name = "URL")]
    pub backends: Vec<String>,
    #[command(flatten)]
    pub local: Local,
    /// Stay in the foreground.
    #[arg(long, short = 'f')]
    pub foreground: bool,
    /// Allow no changes.
    #[arg(long)]
    pub read_only: bool,
    /// Mount options, as fstab passes them.
    #[arg(short = 'o', value_name = "OPTS")]
    pub options: Vec<String>,
    /// Say nothing when it is mounted, as mount(8) does.
    #[arg(long, short)]
    pub quiet: bool,
    /// Told when the mount answers (used between cairn's own processes).
    #[arg(long, hide = true)]
    pub ready: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn recover --from /mnt/disk-b/cairn --volume ~/volume\n  cairn recover --from /mnt/disk-b/cairn --volume ~/volume --full"
)]
pub(super) struct Recover {
    /// The backend that has everything.
    #[arg(long, value_name = "URL")]
    pub from: String,
    /// The new volume's folder.
    #[arg(long)]
    pub volume: Option<PathBuf>,
    /// Which volume, when several lie there.
    #[arg(long)]
    pub volume_id: Option<String>,
    /// Bring all contents too, not only when they are read.
    #[arg(long)]
    pub full: bool,
    #[command(flatten)]
    pub local: Local,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn events ~/data --since 2h --severity warning\n  cairn events ~/data --follow --kind backend_down,backend_back\n  cairn --json events ~/data --after 1041     (the next ones; numbers only rise)\n\nOf many copies in one second, one event has the number and the first CIDs. Kept for events.keep_days and events.keep_bytes (cairn.toml)."
)]
pub(super) struct EventsArguments {
    #[command(flatten)]
    pub target: MountOrVolume,
    /// Go on with those that are to come, until it is interrupted.
    #[arg(long, short)]
    pub follow: bool,
    /// Not before: 2h (ago), or 2026-11-22T08:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Not after.
    #[arg(long, value_name = "TIME", conflicts_with = "follow")]
    pub until: Option<String>,
    /// Only of these kinds.
    #[arg(long = "kind", value_name = "KIND,...", value_delimiter = ',')]
    pub kinds: Vec<String>,
    /// At least: info, notice, warning, alarm.
    #[arg(long, value_parser = severity)]
    pub severity: Option<Severity>,
    /// Only about this backend.
    #[arg(long, value_name = "ID")]
    pub backend: Option<String>,
    /// Only about what begins so: a CID, a path, a backend.
    #[arg(long, value_name = "CID")]
    pub subject: Option<String>,
    /// At most so many, the last ones (with --after: the first ones).
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub limit: u16,
    /// The events after this number.
    #[arg(long, value_name = "NUMBER")]
    pub after: Option<u64>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn heal ~/data --wait\n  cairn heal --volume ~/volume --backend disk-b\n  cairn heal --path ~/data/thesis --wait\n\nExit code 4 when contents stay below their min; the message says why."
)]
pub(super) struct Heal {
    /// A mountpoint, or any path in it.
    pub mountpoint: Option<PathBuf>,
    /// Only what has, or had, a copy at this backend.
    #[arg(long, value_name = "ID", conflicts_with = "path")]
    pub backend: Option<String>,
    /// Only what is below this path of a mount (with --volume, from its root).
    #[arg(long, value_name = "PATH", conflicts_with = "mountpoint")]
    pub path: Option<PathBuf>,
    /// Return when all is healed, or nothing more can be.
    #[arg(long)]
    pub wait: bool,
    /// The volume's folder.
    #[arg(long)]
    pub volume: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn simulate-loss disk-b --volume ~/volume\n  cairn simulate-loss local disk-b --json     (this machine and that disk at once)\n\nNothing is changed. lost: no copy is left; uncertain: none that was read back."
)]
pub(super) struct SimulateLoss {
    /// Backends that are lost at once; `local` is the volume's own store.
    #[arg(required = true, value_name = "BACKEND")]
    pub backends: Vec<String>,
    /// The volume's folder.
    #[arg(long)]
    pub volume: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn migrate disk-b disk-c --dry-run --volume ~/volume\n  cairn migrate disk-b disk-c --path ~/data/old --wait\n  cairn migrate disk-b disk-c --stop --volume ~/volume\n\nEach content gets its new copy first, which is read back; then the old one is given up.\nWhat its policy keeps where it is stays."
)]
pub(super) struct Migrate {
    /// The backend that copies leave.
    pub from: String,
    /// The one that they go to.
    pub to: String,
    /// Only of files below this path of a mount (with --volume, from its root).
    #[arg(long)]
    pub path: Option<PathBuf>,
    #[command(flatten)]
    pub manner: Manner,
    /// The volume's folder.
    #[arg(long)]
    pub volume: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Manner {
    /// Return when nothing is left to move (exit code 4: it does not get on).
    #[arg(long)]
    pub wait: bool,
    /// Only say how many copies and bytes would move.
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// End it; what has moved stays where it is.
    #[arg(long, conflicts_with_all = ["wait", "dry_run"])]
    pub stop: bool,
}

fn severity(text: &str) -> Result<Severity, String> {
    Severity::from_name(text).ok_or_else(|| {
        let names = Severity::ALL.map(Severity::as_str).join(", ");
        format!("there are: {names}")
    })
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a volume.
    Init(Init),
    /// Mount a volume; returns when the mount answers.
    Mount(Mount),
    /// Wait for what is pending, and unmount.
    #[command(
        after_help = "Examples:\n  cairn umount ~/data\n  cairn umount --volume ~/volume --timeout 60\n  cairn umount ~/data --force     (says what stays pending; the next mount goes on with it)"
    )]
    Umount {
        /// The mountpoint.
        target: Option<PathBuf>,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
        /// Seconds to wait for copies.
        #[arg(long)]
        timeout: Option<u64>,
        /// Do not wait for copies, and detach a busy mount.
        #[arg(long)]
        force: bool,
    },
    /// Show the volume's state; costs the same whatever the number of files.
    #[command(
        after_help = "Examples:\n  cairn status ~/data\n  cairn status --volume ~/volume --json"
    )]
    Status {
        #[command(flatten)]
        target: MountOrVolume,
    },
    /// Show a file's CID, size, blocks and copies.
    #[command(after_help = "Example:\n  cairn info ~/data/thesis.pdf")]
    Info {
        /// A path in a mount.
        path: PathBuf,
    },
    /// Print CIDs of files and directories, also outside a mount: what `ipfs add` would say.
    #[command(
        after_help = "Examples:\n  cairn cid ~/data/photos\n  cairn cid --profile unixfs-v0-2015 file\n\nOutside a mount hidden files are included, as in the mount; --no-hidden leaves them out, as plain `ipfs add -r` does."
    )]
    Cid {
        /// Paths.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// How CIDs are made; in a mount too, by reading what is there [default: the volume's, else unixfs-v1-2025].
        #[arg(long)]
        profile: Option<String>,
        /// Leave hidden files out of directories, by reading them.
        #[arg(long)]
        no_hidden: bool,
    },
    /// Wait until the policy's level holds.
    #[command(
        after_help = "Examples:\n  cairn sync ~/data/results\n  cairn sync --volume ~/volume"
    )]
    Sync {
        /// A path in a mount.
        path: Option<PathBuf>,
        /// The whole volume.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Backends of a volume.
    Backend {
        #[command(subcommand)]
        verb: BackendVerb,
    },
    /// Make missing copies now: pauses end, places that are away are asked.
    Heal(Heal),
    /// Say what the loss of backends would mean: what is gone, what is to be copied, how
    /// long that takes and what it costs.
    SimulateLoss(SimulateLoss),
    /// Move copies from one backend to another.
    Migrate(Migrate),
    /// Policies of a volume, directory or file.
    Policy {
        #[command(subcommand)]
        verb: PolicyVerb,
    },
    /// Contents and their copies: list, count, verify, replicate, unpin.
    Pin {
        #[command(subcommand)]
        verb: PinVerb,
    },
    /// What waits for copies: list, pause, resume, retry, cancel.
    Queue {
        #[command(subcommand)]
        verb: QueueVerb,
    },
    /// Limits on the bytes and inodes of the volume and of directories.
    Quota {
        #[command(subcommand)]
        verb: QuotaVerb,
    },
    /// Write a file or directory into a CAR archive.
    #[command(
        after_help = "Examples:\n  cairn export ~/data/set -o set.car\n  cairn export ~/data/set -o - --car-version 1 | ssh host 'ipfs dag import'\n  cairn export ~/data/set -o set.car --metadata     (modes, owners, times, xattrs, hard links too)"
    )]
    Export {
        /// A path in a mount.
        path: PathBuf,
        /// The archive; `-` is stdout.
        #[arg(short, long)]
        output: PathBuf,
        /// 1 or 2 (with an index).
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
        car_version: u8,
        /// Add a second root with Parquet tables.
        #[arg(long)]
        metadata: bool,
    },
    /// Read a CAR archive into a new path; all or nothing.
    #[command(
        after_help = "Examples:\n  cairn import set.car ~/data/set\n  ipfs dag export CID | cairn import - ~/data/set"
    )]
    Import {
        /// The archive; `-` is stdin.
        file: PathBuf,
        /// A path in a mount that does not exist.
        dest: PathBuf,
    },
    /// Look into CAR archives.
    Car {
        #[command(subcommand)]
        verb: CarVerb,
    },
    /// Wait for the next checkpoint of the metadata, or write it now.
    ///
    /// Returns once a checkpoint has every change made before the call: the one
    /// that the interval (`checkpoint.delta_interval_s`) writes, or with --now one
    /// that is written at once and brought to the backends in reach. A volume that
    /// is not mounted has no interval: it is always written at once.
    #[command(
        after_help = "Examples:\n  cairn checkpoint --now ~/data\n  cairn checkpoint --now --volume ~/volume"
    )]
    Checkpoint {
        /// Do not wait for the interval: write it at once.
        #[arg(long)]
        now: bool,
        /// Write a new base, not a delta; at once.
        #[arg(long)]
        base: bool,
        #[command(flatten)]
        target: MountOrVolume,
    },
    /// Make a volume from what a backend holds.
    Recover(Recover),
    /// Check metadata, blocks, contents, checkpoints and events.
    #[command(
        after_help = "Examples:\n  cairn fsck --volume ~/volume\n  cairn fsck --volume ~/volume --deep     (re-hashes every block)\n  cairn fsck --volume ~/volume --repair   (not mounted)"
    )]
    Fsck {
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
        /// Repair what another copy allows.
        #[arg(long)]
        repair: bool,
        /// Re-hash every block.
        #[arg(long)]
        deep: bool,
    },
    /// Show what nothing needs any more, here and on the backends, and delete it.
    Gc(GcArguments),
    /// Contents that no file has any more, as long as they lie on a backend.
    Trash {
        #[command(subcommand)]
        verb: TrashVerb,
    },
    /// Serve a store of blocks to other Cairns (`cairn://HOST:7180`).
    Serve(ServeArguments),
    /// Serve a volume's contents over HTTP, by path and by CID.
    Gateway(GatewayArguments),
    /// Settings of a volume.
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
        /// The volume's folder.
        #[arg(long, global = true)]
        volume: Option<PathBuf>,
    },
    /// Show what happened: policies, copies, backends, alarms.
    Events(EventsArguments),
    /// Try who is told of alarms.
    Hooks {
        #[command(subcommand)]
        verb: HooksVerb,
    },
    /// Print metrics in Prometheus' text format.
    Stats {
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Print shell completions.
    #[command(after_help = "Example:\n  cairn completions bash > /etc/bash_completion.d/cairn")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write man pages into a directory.
    #[command(after_help = "Example:\n  cairn man /usr/local/share/man/man1")]
    Man {
        /// The directory.
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum BackendVerb {
    /// Add a backend; what is missing there is copied.
    #[command(
        after_help = "Examples:\n  cairn backend add /mnt/b/cairn --volume ~/volume\n  cairn backend add 's3://backups/cairn?region=eu-central-1&profile=work' --volume ~/volume\n  cairn backend add 's3://backups/cairn?endpoint=http://nas:9000&auth=file:/home/me/keys'\n  cairn backend add ipfs://127.0.0.1:5001\n  cairn backend add sftp://me@nas/srv/cairn\n\nKeys are never in a URL: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, profile=, or auth=file:PATH (of mode 0600, with the two). The bucket must exist. All settings: src/docs/backends.md, kubo.md, cluster.md, pinning.md and pinata.md."
    )]
    Add {
        /// Its URL.
        url: String,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// List backends.
    #[command(visible_alias = "ls")]
    List {
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Show one backend.
    Show {
        /// Its id.
        id: String,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Move all copies away from a backend, to others that the policies allow.
    #[command(
        after_help = "Examples:\n  cairn backend drain disk-b --wait --volume ~/volume\n  cairn backend drain disk-b --stop     (it is used again)"
    )]
    Drain {
        /// Its id.
        id: String,
        /// Use it again.
        #[arg(long, conflicts_with = "wait")]
        stop: bool,
        /// Return when nothing is left there, or nothing more can be moved (exit code 4).
        #[arg(long)]
        wait: bool,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Remove a backend; refused while it holds last verified copies.
    Remove {
        /// Its id.
        id: String,
        /// Give up what only it holds.
        #[arg(long)]
        force: bool,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Adopt what lies at a backend already: contents that are whole there become copies,
    /// which are read back, and nothing is sent.
    #[command(
        after_help = "Examples:\n  cairn backend import disk-b --dry-run --volume ~/volume\n  cairn backend import disk-b --from /mnt/old/blocks     (files that are named by their CID)\n\nOnly contents of this volume are looked for: `cairn import` makes files of an archive."
    )]
    Import {
        /// Its id.
        id: String,
        /// A folder of files that are named by their CID (flat, or as a backend has them),
        /// or of CAR archives (`*.car`): what is there is checked and copied to the
        /// backend, without the network.
        #[arg(long, value_name = "FOLDER")]
        from: Option<PathBuf>,
        /// Only say what would be adopted.
        #[arg(long)]
        dry_run: bool,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Put a new backend in the place of another, which leaves when others have all.
    #[command(
        after_help = "Examples:\n  cairn backend replace disk-b /mnt/new/cairn --wait --volume ~/volume\n  cairn backend replace disk-b --wait     (goes on with it)\n  cairn backend replace disk-b --stop     (disk-b is used again)"
    )]
    Replace {
        /// The id of the one that leaves.
        old: String,
        /// The URL of the new one.
        url: Option<String>,
        /// Return when the old one is gone (exit code 4: it does not get on).
        #[arg(long)]
        wait: bool,
        /// End it; the new backend stays, too.
        #[arg(long, conflicts_with = "wait")]
        stop: bool,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Move copies from fuller backends to emptier ones of the same tier.
    #[command(
        after_help = "Examples:\n  cairn backend rebalance --dry-run --volume ~/volume\n  cairn backend rebalance --wait\n\nPlaces are even when none has 5 percent of its room more than its share."
    )]
    Rebalance {
        #[command(flatten)]
        manner: Manner,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Let nothing be written or deleted at a backend; it is read, and its copies count.
    #[command(
        after_help = "Examples:\n  cairn backend read-only disk-b --volume ~/volume\n  cairn backend read-only disk-b --off"
    )]
    ReadOnly {
        /// Its id.
        id: String,
        /// It takes writes again.
        #[arg(long)]
        off: bool,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// A backend is well again: ask it now, forget its failures, prove its copies.
    #[command(after_help = "Example:\n  cairn backend recover disk-b --wait --volume ~/volume")]
    Recover {
        /// Its id.
        id: String,
        /// Return when each copy there was read back.
        #[arg(long)]
        wait: bool,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Write, read, list and delete there, with times.
    Test {
        /// Its URL.
        url: String,
    },
}

const POLICY_PARTS: &str = "\
Parts of a TEXT, with commas between them; what is left out is inherited:
  min=2,target=3,max=5        copies: fewer is an alarm, the aim, more are trimmed
  level=QUORUM                what fsync waits for: LOCAL_DURABILITY, SINGLE, QUORUM, ALL, TIERED, PROGRESSIVE
  wait_on=close               close or fsync
  on_degraded=queue           queue or fail, with too few places in reach
  distinct=device             device, host, site or provider: what two copies must not share
  strategy=balanced           balanced, performance, cost, priority, size, custom
  weights=a:3/b:1             with strategy=custom
  prefer=a/b  exclude=c       backends; an empty list clears what is inherited
  tiers=ssd:1:until=30d/disk:2/archive:1:after=90d:by=access";

#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    /// Show the policy in force.
    #[command(
        after_help = "Examples:\n  cairn policy show ~/data/thesis\n  cairn policy show archive --volume ~/volume     (a named one; ./archive is a path)"
    )]
    Show {
        /// A path in a mount, or the name of a policy (default: the volume's own).
        of: Option<PathBuf>,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Set the policy of a path, or parts of the volume's.
    #[command(
        after_long_help = POLICY_PARTS,
        after_help = "Examples:\n  cairn policy set min=2,target=3 --volume ~/volume\n  cairn policy set min=3,target=4 ~/data/thesis\n  cairn policy set archive ~/data/old            (a named policy)\n  cairn policy set archive,min=3 ~/data/old/tax  (and parts over it)\n  cairn policy set '' ~/data/thesis              (inherits again)\n--help lists the parts."
    )]
    Set {
        /// A text, or the NAME of a policy with parts after it; empty inherits.
        #[arg(value_name = "TEXT|NAME")]
        text: OsString,
        /// A path in a mount (default: the volume's own). PATH TEXT is taken, too, when the
        /// first is a path and the second is none.
        path: Option<OsString>,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Make or change a named policy; what uses it follows.
    #[command(
        after_long_help = POLICY_PARTS,
        after_help = "Example:\n  cairn policy define archive min=3,target=3,distinct=site --volume ~/volume\n\nWhat the text leaves out is as in the volume's own policy. --help lists the parts."
    )]
    Define {
        /// Of a-z, 0-9, `-`, `_`, `.`, a letter first.
        name: String,
        /// Its parts.
        text: String,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// List the named policies.
    Ls {
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Remove a named policy; refused while it is used.
    Rm {
        /// Its name.
        name: String,
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
    /// Say which rule comes from where, where copies are, and what is missing and why.
    #[command(after_help = "Example:\n  cairn policy explain ~/data/thesis/chapter-1.tex")]
    Explain {
        /// A path in a mount.
        path: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct QuotaPath {
    /// A path in a mount; with --volume, from the volume's root.
    pub path: PathBuf,
    /// The volume's folder: for one that is not mounted.
    #[arg(long)]
    pub volume: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum QuotaVerb {
    /// Set limits of a directory; of the mount's root, they hold for the volume.
    #[command(
        after_help = "Examples:\n  cairn quota set ~/data/home/ann --size 10GiB --inodes 1000000\n  cairn quota set ~/data --size 1TiB     (the whole volume)\n  cairn quota set ~/data/home/ann --inodes 0     (lifts this limit)\n\nBytes are the lengths of the files below. What would go over fails with EDQUOT, for the whole volume with ENOSPC."
    )]
    Set {
        #[command(flatten)]
        target: QuotaPath,
        /// Most bytes, such as 10GiB; 0 lifts the limit.
        #[arg(long)]
        size: Option<ByteSize>,
        /// Most files, directories and others; 0 lifts the limit.
        #[arg(long)]
        inodes: Option<u64>,
    },
    /// Show the quotas that hold at a path, the nearest first.
    Show {
        #[command(flatten)]
        target: QuotaPath,
    },
    /// List the quotas at and below a path.
    Ls {
        #[command(flatten)]
        target: QuotaPath,
    },
    /// Remove a directory's quota.
    Remove {
        #[command(flatten)]
        target: QuotaPath,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CarVerb {
    /// List blocks: CID, offset, length.
    Ls {
        /// The archive; `-` is stdin.
        file: PathBuf,
    },
    /// Check hashes, the index, and that no block is missing.
    Verify {
        /// The archive; `-` is stdin.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum HooksVerb {
    /// Tell every hook of cairn.toml of a test, and say what came back.
    #[command(
        after_help = "Example:\n  cairn hooks test --volume ~/volume     (exit code 1 when one failed)"
    )]
    Test {
        /// The volume's folder.
        #[arg(long)]
        volume: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Effective values with their origins.
    Show,
    /// Where the file is.
    Path,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn gc ~/data\n  cairn gc ~/data --run\n  cairn gc --volume ~/volume --backend disk-b --run --no-grace\n\nWithout --run nothing is deleted. On a backend a block goes when two looks found it dead, replication.collect_grace_s apart (cairn.toml); a mounted volume looks each replication.collect_interval_s by itself. `cairn trash` brings a content back until then."
)]
pub(super) struct GcArguments {
    #[command(flatten)]
    pub target: MountOrVolume,
    /// Only there; `local` is the local store.
    #[arg(long, value_name = "ID")]
    pub backend: Option<String>,
    /// Delete what is due; else it is a dry run.
    #[arg(long)]
    pub run: bool,
    /// Do not wait for the grace period: nothing can be brought back.
    #[arg(long, requires = "run")]
    pub no_grace: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum TrashVerb {
    /// List them, in the order of CIDs.
    #[command(
        after_help = "Example:\n  cairn trash ls ~/data\n\nA CID in it is that of `cairn cid` and `cairn info`. Names are not kept."
    )]
    Ls {
        #[command(flatten)]
        target: MountOrVolume,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        limit: u16,
        /// Go on after this one (`next` of the page before).
        #[arg(long, value_name = "CID")]
        after: Option<String>,
    },
    /// Make a file with one of these contents.
    #[command(
        after_help = "Example:\n  cairn trash restore bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi ~/data/thesis.pdf"
    )]
    Restore {
        /// Its CID.
        cid: String,
        /// A path in a mount that does not exist.
        path: PathBuf,
    },
}
