//! `cairn serve`: a store of blocks, for other Cairns; `cairn gateway`: a volume's contents.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use url::Url;

use super::arguments::MountOrVolume;
use super::client::Target;
use super::output::Output;
use crate::api::{Command, ErrorCode, Failure};
use crate::backends::peer::PORT;
use crate::backends::{BackendError, BackendSpec, ErrorKind, open_in, wrap};
use crate::node::{Serve, serve};

/// A call of the store that takes longer has failed.
const DEADLINE: Duration = Duration::from_mins(1);

/// `cairn serve`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn serve --store /mnt/disk/cairn --tokens ~/tokens\n  cairn serve --store /mnt/disk/cairn --listen 0.0.0.0:7180 --tokens ~/tokens --cert cert.pem --key key.pem\n  cairn backend add 'cairn+https://nas.lan:7180?auth=file:/home/me/token' --volume ~/volume\n\nThe file of tokens has lines `ROLE TOKEN` and mode 0600. read: blocks, listings, names; write: puts\nthem, too, and takes nothing away; admin: deletes. SIGHUP reads tokens and certificates anew."
)]
pub(super) struct ServeArguments {
    /// A directory, which is made where it is not, <car:///path> or <parquet:///path>.
    #[arg(long, value_name = "DIR|URL")]
    store: String,
    /// Where it listens.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], PORT)))]
    listen: SocketAddr,
    #[command(flatten)]
    door: Door,
}

/// Who is let in, and how.
#[derive(Debug, Args)]
struct Door {
    /// A file of lines `ROLE TOKEN`. Without it everybody who reaches it is let in.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Certificates of this machine, in PEM form.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Their key.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Listen beyond this machine without certificates or tokens.
    #[arg(long)]
    insecure: bool,
}

/// `cairn gateway`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cairn gateway ~/data\n  curl -r 0-99 http://127.0.0.1:7181/files/notes/today.txt\n  ipfs dag import <(curl 'http://127.0.0.1:7181/ipfs/CID?format=car')\n\n/files/PATH is the tree as it is now: what others may read (o+r). /ipfs/CID[/PATH] is whatever the\nvolume has, as blocks, CARs or plain. It serves until it is interrupted or the volume is unmounted."
)]
pub(super) struct GatewayArguments {
    #[command(flatten)]
    target: MountOrVolume,
    /// Where it listens.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], PORT + 1)))]
    listen: SocketAddr,
    #[command(flatten)]
    door: Door,
    /// Also files that others may not read.
    #[arg(long)]
    all: bool,
}

fn failed(error: BackendError) -> Failure {
    let code = match error.kind {
        ErrorKind::Invalid | ErrorKind::Unsupported => ErrorCode::Usage,
        _ => ErrorCode::Failed,
    };
    Failure::new(code, error.message)
}

/// Serves until it is told to end.
pub(super) fn run(arguments: ServeArguments, output: &Output) -> Result<(), Failure> {
    let usage = |text: String| Failure::new(ErrorCode::Usage, text);
    let url = if arguments.store.contains("://") {
        arguments.store
    } else {
        let path = std::path::absolute(&arguments.store).map_err(super::failed)?;
        let url = Url::from_file_path(&path);
        url.map_err(|()| usage(format!("{} is no path", path.display())))?.into()
    };
    let spec = BackendSpec::parse(&url, &[]).map_err(|error| usage(error.to_string()))?;
    let store = open_in(&spec, true, None).map_err(failed)?;
    let store = wrap::standard(store, DEADLINE, &spec.settings());
    let Door { tokens, cert, key, insecure } = arguments.door;
    let tls = cert.zip(key);
    let scheme = if tls.is_some() { "cairn+https" } else { "cairn" };
    let options = Serve { listen: arguments.listen, tls, tokens, insecure };
    let open = options.tokens.is_none();
    serve(store, &options, |address| {
        let said = json!({ "url": format!("{scheme}://{address}"), "store": spec.url });
        output.fields(&said, &["url", "store"]);
        if open {
            output.note("who reaches it may write and delete there; --tokens FILE says who may");
        }
    })
    .map_err(failed)
}

/// Serves a volume's contents until it is interrupted.
pub(super) fn gateway(arguments: GatewayArguments, output: &Output) -> Result<(), Failure> {
    let Door { tokens, cert, key, insecure } = arguments.door;
    // The daemon has a folder of its own.
    let absolute = |path: PathBuf| std::path::absolute(path).map_err(super::failed);
    let command = Command::Gateway {
        listen: arguments.listen.to_string(),
        tokens: tokens.map(absolute).transpose()?,
        tls: match cert.zip(key) {
            Some((cert, key)) => Some((absolute(cert)?, absolute(key)?)),
            None => None,
        },
        insecure,
        all: arguments.all,
    };
    let target = arguments.target;
    let target = Target::of_volume_or_path(target.mountpoint, target.volume)?;
    let mut serves = false;
    let ended = target.stream(&command, &mut |said| {
        output.fields(&said, &["url", "files", "blocks"]);
        serves = true;
        true
    });
    match ended {
        // A daemon that ends as it should takes its socket away first.
        Err(_) if serves && !target.volume().join("control.sock").exists() => {
            output.note("the volume was unmounted");
        }
        Err(failure) => return Err(failure),
        Ok(ended) => ended["ended"].as_str().into_iter().for_each(|why| output.note(why)),
    }
    Ok(())
}
