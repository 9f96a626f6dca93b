use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::exit;

/// A filesystem that is content-addressed, replicated and recoverable.
///
/// Every file gets the CID that IPFS gives it, is written through to the
/// volume's backends under a policy, and comes back from any of them.
#[derive(Debug, Parser)]
#[command(name = "cairn", version, propagate_version = true, after_help = exit::TABLE, after_long_help = exit::TABLE)]
pub(super) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub(super) struct Global {
    /// Print JSON on standard output; errors too, on standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// Log to standard error: error, warn, info, debug, trace, or a filter [default: warn; daemon: the volume's `log.level`].
    #[arg(long, global = true, value_name = "LEVEL", env = "CAIRN_LOG_LEVEL")]
    pub log_level: Option<String>,
    /// How log lines look.
    #[arg(long, global = true, value_name = "FORMAT", env = "CAIRN_LOG_FORMAT")]
    pub log_format: Option<LogFormatArg>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormatArg {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a volume.
    #[command(after_help = "Examples:
  cairn init --volume ~/vol --backend /mnt/disk-b/cairn --backend /mnt/disk-c/cairn
  cairn init --volume ~/vol --policy min=1,target=2,max=3")]
    Init(Init),
    /// Mount a volume, making it first if there is none.
    #[command(after_help = "Examples:
  cairn mount ~/files --volume ~/vol
  cairn mount ~/files --volume ~/vol -o level=ALL,wait_on=fsync,noatime
  cairn mount ~/files --volume ~/vol --read-only --foreground
As root, with cairn linked to /sbin/mount.cairn:
  mount -t cairn /srv/vol /srv/files -o level=QUORUM
In /etc/fstab:
  /srv/vol /srv/files cairn defaults,noatime,_netdev 0 0")]
    Mount(Mount),
    /// Drain what is pending and unmount.
    #[command(after_help = "Examples:
  cairn umount ~/files
  cairn umount --volume ~/vol --timeout 10s
  cairn umount ~/files --force        # says what stays pending; the next mount goes on with it")]
    Umount(Umount),
    /// Show a volume's state. Its cost does not grow with the number of files.
    #[command(after_help = "Examples:
  cairn status ~/files
  cairn status --volume ~/vol --json
Exits with 4 when the state is degraded or at_risk and --check is given.")]
    Status(Status),
    /// Show a file's CID, size, blocks, policy and copies.
    #[command(after_help = "Examples:
  cairn info ~/files/report.pdf
  cairn info --volume ~/vol report.pdf --json")]
    Info(PathArgs),
    /// Print CIDs of files and directories, in a mount or anywhere.
    #[command(after_help = "Examples:
  cairn cid ~/files/report.pdf
  cairn cid --profile unixfs-v0-2015 photo.jpg     # what `ipfs add` says by default up to Kubo 0.44
  cairn cid --no-hidden project/                   # what `ipfs add -r` says: it leaves hidden files out
Without --no-hidden a directory's CID covers every name, as `ipfs add -r -H` and
the mount have it. Devices, pipes and sockets are not part of a CID.")]
    Cid(Cid),
    /// Wait until the policy's level holds below a path.
    #[command(after_help = "Examples:
  cairn sync ~/files/project
  cairn sync --volume ~/vol")]
    Sync(OptionalPath),
    /// Add, list, show, remove or test backends.
    #[command(subcommand)]
    Backend(BackendVerb),
    /// Show or set how many copies are wanted.
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// Write a file or tree as a CAR archive.
    #[command(after_help = "Examples:
  cairn export ~/files/project -o project.car
  cairn export ~/files/project -o - --car-version 2 | ssh host 'cat > project.car'
  cairn export ~/files -o all.car --metadata      # modes, owners, times, xattrs and hard links too")]
    Export(Export),
    /// Bring the tree of a CAR archive into a mount.
    #[command(after_help = "Examples:
  cairn import project.car ~/files/project
  ipfs dag export bafy... | cairn import - ~/files/from-ipfs
Nothing appears at DEST before the whole archive was checked.")]
    Import(Import),
    /// List or verify a CAR archive.
    #[command(subcommand)]
    Car(CarVerb),
    /// Show the last metadata checkpoint, or write one.
    #[command(after_help = "Examples:
  cairn checkpoint
  cairn checkpoint ~/files --now
  cairn checkpoint --volume ~/vol --now --base")]
    Checkpoint(Checkpoint),
    /// Make a volume from what a backend holds.
    #[command(after_help = "Examples:
  cairn recover --from /mnt/disk-b/cairn --volume ~/vol
  cairn recover --from file:///mnt/disk-b/cairn --volume ~/vol --full
Then: cairn mount ~/files --volume ~/vol")]
    Recover(Recover),
    /// Check the volume: names, counters, blocks, copies, checkpoints.
    #[command(after_help = "Examples:
  cairn fsck --volume ~/vol
  cairn fsck --volume ~/vol --deep --repair
Exits with 6 when damage remains.")]
    Fsck(Fsck),
    /// Show the settings in force, or where their file is.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print metrics as Prometheus text.
    #[command(after_help = "Examples:
  cairn stats ~/files")]
    Stats(VolumeTarget),
    /// Print a shell's completions.
    #[command(after_help = "Examples:
  cairn completions bash > /etc/bash_completion.d/cairn")]
    Completions(Completions),
    /// Write man pages into a directory.
    #[command(after_help = "Examples:
  cairn man /usr/local/share/man/man1")]
    Man(Man),
}

/// `--volume`.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct VolumeFlag {
    /// The volume's folder [default: $CAIRN_VOLUME, else ~/.local/share/cairn/default].
    #[arg(long, value_name = "DIR")]
    pub volume: Option<PathBuf>,
}

/// A volume by mountpoint, folder or flag.
#[derive(Debug, Clone, Args)]
pub(super) struct VolumeTarget {
    /// A mountpoint, a path below one, or a volume's folder.
    #[arg(value_name = "MOUNTPOINT", conflicts_with = "volume")]
    pub target: Option<PathBuf>,
    #[command(flatten)]
    pub flag: VolumeFlag,
}

/// A path in a volume.
#[derive(Debug, Clone, Args)]
pub(super) struct PathArgs {
    /// A path in a mount; with --volume, a path from the volume's root.
    pub path: PathBuf,
    #[command(flatten)]
    pub flag: VolumeFlag,
}

/// A path in a volume, or a volume.
#[derive(Debug, Clone, Args)]
pub(super) struct OptionalPath {
    /// A path in a mount; with --volume, a path from the volume's root.
    pub path: Option<PathBuf>,
    #[command(flatten)]
    pub flag: VolumeFlag,
}

#[derive(Debug, Args)]
pub(super) struct Init {
    #[command(flatten)]
    pub flag: VolumeFlag,
    /// A backend: a directory, or a URL as file:///path?domain=NAME&capacity=SIZE. Repeatable.
    #[arg(long = "backend", value_name = "URL")]
    pub backends: Vec<String>,
    /// Parts of the policy: min, target, max, level, wait_on, on_degraded.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub policy: String,
    /// How CIDs are made; fixed for the volume's life.
    #[arg(long, default_value = "unixfs-v1-2025")]
    pub profile: String,
}

#[derive(Debug, Args)]
pub(super) struct Mount {
    /// An existing directory.
    pub mountpoint: PathBuf,
    #[command(flatten)]
    pub flag: VolumeFlag,
    /// A backend to add when the volume does not have it. Repeatable.
    #[arg(long = "backend", value_name = "URL")]
    pub backends: Vec<String>,
    /// Stay in the foreground and log to standard error.
    #[arg(long, short = 'f')]
    pub foreground: bool,
    /// Allow no changes.
    #[arg(long, short = 'r')]
    pub read_only: bool,
    /// Options, separated by commas: what fstab passes, and level=, wait_on=, on_degraded=, min=, target=, max=. Repeatable.
    #[arg(short = 'o', value_name = "OPTS")]
    pub options: Vec<String>,
    /// Where the daemon tells its parent how the mount went.
    #[arg(long, hide = true, value_name = "FILE")]
    pub ready: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Umount {
    #[command(flatten)]
    pub target: VolumeTarget,
    /// Wait at most this long for copies that are pending, as 30s or 5m; the mount stays when it passes.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<std::time::Duration>,
    /// Unmount with copies pending, and say which.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    pub target: VolumeTarget,
    /// Exit with 4 unless the state is ok.
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Args)]
pub(super) struct Cid {
    /// Files and directories.
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// Compute under this profile, also in a mount [default: the mount's, else unixfs-v1-2025].
    #[arg(long)]
    pub profile: Option<String>,
    /// Leave out names that begin with a dot, below the given paths.
    #[arg(long)]
    pub no_hidden: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum BackendVerb {
    /// Add a backend; an empty or new directory becomes its place.
    #[command(after_help = "Examples:
  cairn backend add /mnt/disk-b/cairn
  cairn backend add 'file:///mnt/disk-c/cairn?id=c&capacity=100GiB' --volume ~/vol")]
    Add(BackendAdd),
    /// List backends.
    #[command(after_help = "Examples:
  cairn backend list --volume ~/vol")]
    List(VolumeTarget),
    /// Show one backend.
    #[command(after_help = "Examples:
  cairn backend show disk-b --volume ~/vol")]
    Show(BackendId),
    /// Forget a backend; what it stores stays there.
    #[command(after_help = "Examples:
  cairn backend remove disk-b --volume ~/vol
Refused while it holds the last verified copy of something.")]
    Remove(BackendRemove),
    /// Try every operation of a backend, with timings.
    #[command(after_help = "Examples:
  cairn backend test /mnt/disk-b/cairn
A directory that is not there yet is made.")]
    Test(BackendTest),
}

#[derive(Debug, Args)]
pub(super) struct BackendAdd {
    /// A directory, or a URL as file:///path?id=NAME&domain=NAME&capacity=SIZE.
    pub url: String,
    #[command(flatten)]
    pub target: VolumeTargetFlag,
}

#[derive(Debug, Args)]
pub(super) struct BackendId {
    /// The backend's id.
    pub id: String,
    #[command(flatten)]
    pub target: VolumeTargetFlag,
}

#[derive(Debug, Args)]
pub(super) struct BackendRemove {
    /// The backend's id.
    pub id: String,
    #[command(flatten)]
    pub target: VolumeTargetFlag,
    /// Also when it holds the last verified copy of something.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub(super) struct BackendTest {
    /// A directory or URL.
    pub url: String,
}

/// A volume by flag only: the positional place is taken.
#[derive(Debug, Clone, Args)]
pub(super) struct VolumeTargetFlag {
    /// The volume's folder, its mountpoint, or a path below [default: $CAIRN_VOLUME, else ~/.local/share/cairn/default].
    #[arg(long, value_name = "DIR")]
    pub volume: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    /// Show the policy of the volume or of a path.
    #[command(after_help = "Examples:
  cairn policy show --volume ~/vol
  cairn policy show ~/files/precious")]
    Show(OptionalPath),
    /// Set parts of the policy, for the volume or below a path.
    #[command(after_help = "Examples:
  cairn policy set min=2,target=3,max=5 --volume ~/vol
  cairn policy set level=ALL ~/files/precious
  cairn policy set '' ~/files/precious      # inherit again")]
    Set(PolicySet),
}

#[derive(Debug, Args)]
pub(super) struct PolicySet {
    /// Parts: min, target, max, level, wait_on, on_degraded.
    pub text: String,
    /// A path in a mount; with --volume, a path from the volume's root.
    pub path: Option<PathBuf>,
    #[command(flatten)]
    pub flag: VolumeFlag,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// A path in a mount; with --volume, a path from the volume's root.
    pub path: PathBuf,
    #[command(flatten)]
    pub flag: VolumeFlag,
    /// The archive; `-` is standard output.
    #[arg(short, long, value_name = "FILE.car")]
    pub output: PathBuf,
    /// 1, or 2 with an index.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub car_version: u8,
    /// Add a second root with modes, owners, times, xattrs and hard links.
    #[arg(long)]
    pub metadata: bool,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The archive; `-` is standard input.
    #[arg(value_name = "FILE.car")]
    pub file: PathBuf,
    /// A new name in a mount; with --volume, a path from the volume's root.
    pub dest: PathBuf,
    #[command(flatten)]
    pub flag: VolumeFlag,
}

#[derive(Debug, Subcommand)]
pub(super) enum CarVerb {
    /// List what an archive holds.
    #[command(after_help = "Examples:
  cairn car ls project.car")]
    Ls(CarFile),
    /// Check an archive: framing, hashes, and that the DAG is complete.
    #[command(after_help = "Examples:
  cairn car verify project.car
Exits with 6 when blocks are missing or damaged.")]
    Verify(CarFile),
}

#[derive(Debug, Args)]
pub(super) struct CarFile {
    /// The archive; `-` is standard input.
    #[arg(value_name = "FILE.car")]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Checkpoint {
    #[command(flatten)]
    pub target: VolumeTarget,
    /// Write one, and wait for the backends in reach.
    #[arg(long)]
    pub now: bool,
    /// Write a new base instead of a delta.
    #[arg(long, requires = "now")]
    pub base: bool,
}

#[derive(Debug, Args)]
pub(super) struct Recover {
    /// The backend that has everything.
    #[arg(long, value_name = "URL")]
    pub from: String,
    /// A new or empty folder.
    #[arg(long, value_name = "DIR")]
    pub volume: PathBuf,
    /// Bring all contents, not only the metadata.
    #[arg(long)]
    pub full: bool,
    /// Which volume, when several lie there.
    #[arg(long, value_name = "ID")]
    pub volume_id: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Fsck {
    #[command(flatten)]
    pub target: VolumeTarget,
    /// Repair what can be; of a mounted volume blocks only.
    #[arg(long)]
    pub repair: bool,
    /// Read and hash every block.
    #[arg(long)]
    pub deep: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Show every setting with its value and where it comes from.
    #[command(after_help = "Examples:
  cairn config show --volume ~/vol
Flags go over CAIRN_<SECTION>_<KEY> variables, these over the file, it over defaults.")]
    Show(VolumeTarget),
    /// Print the path of the settings' file.
    #[command(after_help = "Examples:
  $EDITOR \"$(cairn config path --volume ~/vol)\"")]
    Path(VolumeTarget),
}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where the pages go; made if it is not there.
    pub dir: PathBuf,
}
