use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pins::{PinCommand, QueueCommand};
use crate::metadata::EventQuery;
use crate::types::AccessTimes;

/// Version of the messages.
const VERSION: u32 = 1;
/// Connections at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 32;
/// Longest request line, in bytes.
const MAX_REQUEST: u64 = 1 << 20;
/// A client that sends nothing for this long is closed.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// A client that takes nothing for this long is closed.
const WRITE_DEADLINE: Duration = Duration::from_mins(1);

/// What a client asks for. Paths are the bytes from the volume's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The volume's state.
    Status,
    /// A file or directory.
    Info {
        /// Path.
        path: Vec<u8>,
    },
    /// Its CID.
    Cid {
        /// Path.
        path: Vec<u8>,
    },
    /// Wait until the policy's level holds.
    Sync {
        /// Path.
        path: Vec<u8>,
    },
    /// Adds a backend.
    BackendAdd {
        /// Its URL.
        url: String,
    },
    /// Lists backends.
    BackendList,
    /// Moves all copies away from a backend.
    BackendDrain {
        /// Its id.
        id: String,
        /// Ends it: the backend is used again.
        stop: bool,
        /// Answers when nothing is left there, or nothing more can be moved.
        wait: bool,
    },
    /// Removes a backend.
    BackendRemove {
        /// Its id.
        id: String,
        /// Also when it holds last copies.
        force: bool,
    },
    /// Lets nothing be written at a backend.
    BackendReadOnly {
        /// Its id.
        id: String,
        /// Ends that.
        off: bool,
    },
    /// Asks a backend now, forgets its past, and proves its copies.
    BackendRecover {
        /// Its id.
        id: String,
        /// Answers when they are proven.
        wait: bool,
    },
    /// Makes missing copies now.
    Heal {
        /// Only of contents with a copy there.
        backend: Option<String>,
        /// Only below it.
        path: Option<Vec<u8>>,
        /// Answers when all is done.
        wait: bool,
    },
    /// Adopts what lies at a backend already.
    BackendImport {
        /// Its id.
        id: String,
        /// A folder of files that are named by their CID; what it has is put there.
        folder: Option<Vec<u8>>,
        /// Only says what would be adopted.
        dry_run: bool,
    },
    /// A backend takes another one's place.
    BackendReplace {
        /// The id of the one that leaves.
        old: String,
        /// Where the new one is; none goes on with what is under way.
        url: Option<String>,
        /// Answers when the old one is gone.
        wait: bool,
        /// Ends it.
        stop: bool,
    },
    /// Copies move from fuller places to emptier ones.
    BackendRebalance {
        /// Answers when nothing is left to move.
        wait: bool,
        /// Only says what would move.
        dry_run: bool,
        /// Ends it.
        stop: bool,
    },
    /// Copies move from one backend to another.
    Migrate {
        /// From.
        from: String,
        /// To.
        to: String,
        /// Only of what is below.
        path: Option<Vec<u8>>,
        /// Answers when nothing is left to move.
        wait: bool,
        /// Only says what would move.
        dry_run: bool,
        /// Ends it.
        stop: bool,
    },
    /// What the loss of places would mean.
    SimulateLoss {
        /// Their ids; `local` is the volume's own store.
        ids: Vec<String>,
    },
    /// The policy of a path, a named one, or the volume's.
    PolicyShow {
        /// Path.
        path: Option<Vec<u8>>,
        /// Name.
        name: Option<String>,
    },
    /// Makes or changes a named policy.
    PolicyDefine {
        /// Name.
        name: String,
        /// Text form.
        text: String,
    },
    /// The named policies.
    PolicyList,
    /// Removes one.
    PolicyRemove {
        /// Name.
        name: String,
    },
    /// Which rule comes from where, and what became of them.
    PolicyExplain {
        /// Path.
        path: Vec<u8>,
    },
    /// Sets it.
    PolicySet {
        /// Path.
        path: Option<Vec<u8>>,
        /// Text form; for paths also a name with parts after it, and empty inherits.
        text: String,
    },
    /// About pins.
    Pin {
        /// What.
        pin: PinCommand,
    },
    /// About the queue.
    Queue {
        /// What.
        queue: QueueCommand,
    },
    /// Sets limits of a directory.
    QuotaSet {
        /// Path.
        path: Vec<u8>,
        /// Most bytes; 0 is no limit, none keeps what is set.
        bytes: Option<u64>,
        /// Most inodes; likewise.
        inodes: Option<u64>,
    },
    /// The quotas that hold at a path.
    QuotaShow {
        /// Path.
        path: Vec<u8>,
    },
    /// The quotas at and below a path.
    QuotaList {
        /// Path.
        path: Vec<u8>,
    },
    /// Removes a directory's quota.
    QuotaRemove {
        /// Path.
        path: Vec<u8>,
    },
    /// Writes a CAR archive.
    Export {
        /// Path.
        path: Vec<u8>,
        /// The client's descriptor to write to.
        fd: i32,
        /// 1 or 2.
        version: u8,
        /// With a second root that holds Parquet.
        metadata: bool,
    },
    /// Reads a CAR archive.
    Import {
        /// Where the tree goes; must not exist.
        path: Vec<u8>,
        /// The client's descriptor to read from.
        fd: i32,
    },
    /// Writes a checkpoint.
    Checkpoint {
        /// A new base.
        base: bool,
        /// At once, not with the interval.
        now: bool,
    },
    /// Checks everything.
    Fsck {
        /// Repair what can be.
        repair: bool,
        /// Re-hash every block.
        deep: bool,
    },
    /// What nothing needs any more, here and on the backends.
    Gc {
        /// Only there (`local` is the local store).
        id: Option<String>,
        /// Deletes; else it looks only.
        run: bool,
        /// Without the grace period.
        no_grace: bool,
    },
    /// Contents that nobody has any more and that can come back.
    TrashList {
        /// The last one of the page before.
        after: Option<String>,
        /// At most.
        limit: usize,
    },
    /// Makes a file of one.
    TrashRestore {
        /// Its CID.
        cid: String,
        /// A path that does not exist.
        path: Vec<u8>,
    },
    /// A page of events; or, streamed, all that come.
    Events {
        /// Which.
        query: EventQuery,
        /// Go on with those that are to come.
        follow: bool,
    },
    /// Serves the contents over HTTP while the client is there; streamed.
    Gateway {
        /// `ADDRESS:PORT`.
        listen: String,
        /// A file of lines `ROLE TOKEN`.
        tokens: Option<PathBuf>,
        /// Certificates and their key.
        tls: Option<(PathBuf, PathBuf)>,
        /// Beyond this machine without those.
        insecure: bool,
        /// Also files that others may not read.
        all: bool,
    },
    /// Tells every hook of an alarm that is none.
    HooksTest,
    /// Metrics.
    Stats,
    /// Brings all contents into the local store.
    Fetch,
    /// What mount(8) says at a remount.
    Remount {
        /// No changes.
        read_only: bool,
        /// Of what a read moves the time of access.
        access_times: AccessTimes,
    },
    /// Drains and unmounts.
    Umount {
        /// Leave what is pending.
        force: bool,
        /// Seconds to drain.
        timeout_s: Option<u64>,
    },
}

/// What kind of failure; the command line's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Anything else (1).
    Failed,
    /// Wrong use (2).
    Usage,
    /// No such path, backend or volume (3).
    NotFound,
    /// Fewer copies than asked for (4).
    Degraded,
    /// In use (5).
    Busy,
    /// Damage that remains (6).
    Damaged,
}

/// A failure with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Kind.
    pub code: ErrorCode,
    /// What happened, and what to do next.
    pub message: String,
}

impl Failure {
    /// A failure of a kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// How far long work is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressReport {
    /// What is counted.
    pub what: String,
    /// Done.
    pub done: u64,
    /// In all, when known.
    pub total: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Request {
    version: u32,
    request: Command,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Progress(ProgressReport),
    Item(Value),
    Ok(Value),
    Error(Failure),
}

/// Carries out commands.
pub trait Handler: Send + Sync + 'static {
    /// One command; `client` is the process that asks (its descriptors are
    /// reached through /proc).
    ///
    /// # Errors
    /// [`Failure`].
    fn handle(
        &self,
        command: Command,
        client: i32,
        progress: &mut dyn FnMut(ProgressReport),
    ) -> Result<Value, Failure>;

    /// A command that is answered by a stream: `item` takes what there is (`None`:
    /// nothing for now) and says whether anybody still listens. `None` for any other
    /// command.
    fn stream(
        &self,
        command: &Command,
        item: &mut dyn FnMut(Option<Value>) -> bool,
    ) -> Option<Result<Value, Failure>> {
        let (_, _) = (command, item);
        None
    }
}

/// The socket's path through an open directory: a socket address holds 107
/// bytes, a volume's path may be longer.
fn short_path(volume: &Path) -> std::io::Result<(File, PathBuf)> {
    use std::os::fd::AsRawFd;
    let dir = File::open(volume)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd()));
    Ok((dir, path))
}

/// Serves commands until the listener's file is removed and the process ends.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(volume: &Path, handler: Arc<dyn Handler>) -> std::io::Result<()> {
    let socket = volume.join("control.sock");
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_dir, path) = short_path(volume)?;
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
    let open = Arc::new(AtomicUsize::new(0));
    std::thread::Builder::new().name("cairn-control".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            if open.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
                open.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let (handler, open) = (Arc::clone(&handler), Arc::clone(&open));
            let counted = Arc::clone(&open);
            let started =
                std::thread::Builder::new().name("cairn-command".into()).spawn(move || {
                    if let Err(error) = answer(&stream, handler.as_ref()) {
                        tracing::debug!(%error, "a client went away");
                    }
                    counted.fetch_sub(1, Ordering::AcqRel);
                });
            if started.is_err() {
                open.fetch_sub(1, Ordering::AcqRel);
            }
        }
    })?;
    Ok(())
}

fn send(mut stream: &UnixStream, answer: &Answer) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn answer(stream: &UnixStream, handler: &dyn Handler) -> std::io::Result<()> {
    stream.set_read_timeout(Some(READ_DEADLINE))?;
    stream.set_write_timeout(Some(WRITE_DEADLINE))?;
    let mut line = String::new();
    std::io::Read::take(BufReader::new(stream), MAX_REQUEST).read_line_into(&mut line)?;
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            let failure =
                Failure::new(ErrorCode::Usage, format!("the request does not decode: {error}"));
            return send(stream, &Answer::Error(failure));
        }
    };
    if request.version != VERSION {
        let text = format!(
            "the daemon speaks version {VERSION}, the client {}: use one cairn for both",
            request.version
        );
        return send(stream, &Answer::Error(Failure::new(ErrorCode::Usage, text)));
    }
    let streamed = handler.stream(&request.request, &mut |value| match value {
        Some(value) => send(stream, &Answer::Item(value)).is_ok(),
        None => has_reader(stream),
    });
    match streamed {
        Some(Ok(value)) => return send(stream, &Answer::Ok(value)),
        Some(Err(failure)) => return send(stream, &Answer::Error(failure)),
        None => {}
    }
    let client = rustix::net::sockopt::socket_peercred(stream)
        .map_or(0, |peer| peer.pid.as_raw_nonzero().get());
    let mut last = std::time::Instant::now();
    let result = handler.handle(request.request, client, &mut |report| {
        // A slow terminal must not slow the work: five lines a second.
        if last.elapsed() >= Duration::from_millis(200) {
            last = std::time::Instant::now();
            if let Err(error) = send(stream, &Answer::Progress(report)) {
                tracing::trace!(%error, "progress has no reader");
            }
        }
    });
    match result {
        Ok(value) => send(stream, &Answer::Ok(value)),
        Err(failure) => send(stream, &Answer::Error(failure)),
    }
}

/// Whether the client has not closed its end.
fn has_reader(stream: &UnixStream) -> bool {
    use rustix::net::RecvFlags;
    let mut byte = [0u8; 1];
    let peeked = rustix::net::recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
    !matches!(peeked, Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::PIPE))
}

trait ReadLineInto {
    fn read_line_into(self, line: &mut String) -> std::io::Result<usize>;
}

impl<R: BufRead> ReadLineInto for std::io::Take<R> {
    fn read_line_into(mut self, line: &mut String) -> std::io::Result<usize> {
        self.read_line(line)
    }
}

/// Sends a command to a running volume; `None` when none is running there.
///
/// # Errors
/// The daemon's failure, or that of the connection.
pub fn connect(
    volume: &Path,
    command: &Command,
    progress: &mut dyn FnMut(ProgressReport),
) -> Option<Result<Value, Failure>> {
    let (_dir, path) = short_path(volume).ok()?;
    let stream = UnixStream::connect(path).ok()?;
    Some(converse(&stream, command, progress, &mut |_| true))
}

/// Sends a command that is answered by a stream; `item` ends it by saying false.
/// `None` when no daemon is running there.
///
/// # Errors
/// As [`connect`].
pub fn connect_stream(
    volume: &Path,
    command: &Command,
    item: &mut dyn FnMut(Value) -> bool,
) -> Option<Result<Value, Failure>> {
    let (_dir, path) = short_path(volume).ok()?;
    let stream = UnixStream::connect(path).ok()?;
    Some(converse(&stream, command, &mut |_| {}, item))
}

fn converse(
    mut stream: &UnixStream,
    command: &Command,
    progress: &mut dyn FnMut(ProgressReport),
    item: &mut dyn FnMut(Value) -> bool,
) -> Result<Value, Failure> {
    let broken = |error: std::io::Error| {
        Failure::new(
            ErrorCode::Failed,
            format!("the daemon went away ({error}); see daemon.log in the volume"),
        )
    };
    let mut line = serde_json::to_vec(&Request { version: VERSION, request: command.clone() })
        .map_err(|e| Failure::new(ErrorCode::Failed, e.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(broken)?;
    for line in BufReader::new(stream).lines() {
        let answer: Answer = serde_json::from_str(&line.map_err(broken)?).map_err(|e| {
            Failure::new(ErrorCode::Failed, format!("the daemon's answer does not decode: {e}"))
        })?;
        match answer {
            Answer::Progress(report) => progress(report),
            Answer::Item(value) => {
                if !item(value) {
                    return Ok(Value::Null);
                }
            }
            Answer::Ok(value) => return Ok(value),
            Answer::Error(failure) => return Err(failure),
        }
    }
    Err(broken(std::io::ErrorKind::UnexpectedEof.into()))
}
