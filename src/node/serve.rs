//! What listens: addresses, certificates, signals.

use std::future::IntoFuture as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::door::Door;
use super::tokens::Tokens;
use super::{Gateway, Node, gateway, router};
use crate::backends::{Backend, BackendError, ErrorKind};
use crate::runtime::SecretSource;

/// Who opens a connection asks for something in this time.
const FIRST_REQUEST: Duration = Duration::from_secs(15);
/// What is under way at the end may take so long.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// A gateway looks so often whether it goes on.
const LOOK: Duration = Duration::from_millis(200);
/// Threads that wait for files and blocks.
const BLOCKING: usize = 32;

/// How a node is served.
#[derive(Debug, Clone)]
pub struct Serve {
    /// Where it listens; port 0: any.
    pub listen: SocketAddr,
    /// A file of certificates and one of their key, in PEM form.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// A file of lines `ROLE TOKEN`, of mode 0600. Without one everybody may do everything.
    pub tokens: Option<PathBuf>,
    /// Bytes and tokens go unencrypted, or everybody may ask, beyond this machine.
    pub insecure: bool,
}

fn invalid(message: String) -> BackendError {
    BackendError::new(ErrorKind::Invalid, message)
}

impl Serve {
    /// `may`: what strangers could do.
    ///
    /// # Errors
    /// `Invalid` with what is missing before others can be let in.
    fn check(&self, may: &str) -> Result<(), BackendError> {
        if self.listen.ip().is_loopback() || self.insecure {
            return Ok(());
        }
        let missing = match (&self.tls, &self.tokens) {
            (_, None) => format!("everybody who reaches it could {may}: --tokens FILE"),
            (None, _) => "tokens and bytes would go unencrypted: --cert FILE --key FILE".to_owned(),
            (Some(_), Some(_)) => return Ok(()),
        };
        Err(invalid(format!(
            "{} is not this machine alone. {missing} (or --insecure)",
            self.listen
        )))
    }

    /// Blocks while it reads the file.
    fn read_tokens(&self) -> Result<Option<Tokens>, BackendError> {
        let Some(path) = &self.tokens else { return Ok(None) };
        let text = SecretSource::File(path.clone()).read().map_err(invalid)?;
        let tokens = Tokens::parse(text.expose());
        tokens.map(Some).map_err(|why| invalid(format!("{}: {why}", path.display())))
    }
}

/// Serves a store until SIGINT or SIGTERM; SIGHUP reads tokens and certificates anew.
/// `ready` is told the address when it listens.
///
/// # Errors
/// `Invalid` for bad settings, `Unsupported` for a store that cannot be served, else of the
/// network.
pub fn serve(
    backend: Arc<dyn Backend>,
    options: &Serve,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), BackendError> {
    options.check("write and delete")?;
    let node = Node::new(backend)?;
    let door = Door::of_store(node.store, options.read_tokens()?);
    let app = door.before(router(node));
    let end = |tls| hear(Arc::clone(&door), options.clone(), tls);
    runtime()?.block_on(listen(options, app, ready, end))
}

/// Serves a volume's contents while `goes_on` says so, which is asked every now and then.
///
/// # Errors
/// As [`serve`].
pub fn serve_gateway(
    gateway: Gateway,
    options: &Serve,
    ready: impl FnOnce(SocketAddr),
    mut goes_on: impl FnMut() -> bool,
) -> Result<(), BackendError> {
    options.check("read all of it")?;
    let app = Door::of_gateway(options.read_tokens()?).before(gateway::router(gateway));
    let end = |_| async move {
        let mut look = tokio::time::interval(LOOK);
        while goes_on() {
            look.tick().await;
        }
        Ok(())
    };
    runtime()?.block_on(listen(options, app, ready, end))
}

fn fail(what: String) -> impl FnOnce(io::Error) -> BackendError {
    move |error| BackendError::new(ErrorKind::Other, format!("{what}: {error}")).caused_by(error)
}

fn runtime() -> Result<Runtime, BackendError> {
    // Set once in a process; who comes second finds the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("cairn-http")
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build();
    runtime.map_err(fail("no threads".to_owned()))
}

/// Listens, and serves until `end` has come to its end.
async fn listen<E: Future<Output = io::Result<()>>>(
    options: &Serve,
    app: Router,
    ready: impl FnOnce(SocketAddr),
    end: impl FnOnce(Option<RustlsConfig>) -> E,
) -> Result<(), BackendError> {
    let listener = TcpListener::bind(options.listen);
    let listener = listener.map_err(fail(format!("cannot listen at {}", options.listen)))?;
    let address = listener.local_addr().map_err(fail("cannot listen".to_owned()))?;
    let tls = match &options.tls {
        Some((cert, key)) => {
            let config = RustlsConfig::from_pem_file(cert, key).await;
            let what = format!("certificates of {} and {}", cert.display(), key.display());
            Some(config.map_err(fail(what))?)
        }
        None => None,
    };
    let handle = Handle::new();
    let end = end(tls.clone());
    let app = app.into_make_service();
    let broken = || fail("cannot serve".to_owned());
    let serving: BoxFuture<'_, io::Result<()>> = if let Some(config) = tls {
        let server = axum_server::from_tcp_rustls(listener, config).map_err(broken())?;
        let server = server.handle(handle.clone()).http1_only();
        server.first_request_timeout(FIRST_REQUEST).serve(app).into_future().boxed()
    } else {
        let server = axum_server::from_tcp(listener).map_err(broken())?;
        let server = server.handle(handle.clone()).http1_only();
        server.first_request_timeout(FIRST_REQUEST).serve(app).into_future().boxed()
    };
    ready(address);
    let mut serving = serving;
    let ended = tokio::select! {
        served = &mut serving => return served.map_err(broken()),
        ended = end => ended,
    };
    ended.map_err(broken())?;
    handle.graceful_shutdown(Some(LAST_REQUESTS));
    serving.await.map_err(broken())
}

/// Comes to its end with a signal, or reads secrets anew when it is told to.
async fn hear(door: Arc<Door>, options: Serve, tls: Option<RustlsConfig>) -> io::Result<()> {
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = hang_up.recv() => again(&door, &options, tls.as_ref()).await,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("the node ends");
    Ok(())
}

async fn again(door: &Door, options: &Serve, tls: Option<&RustlsConfig>) {
    let read = options.clone();
    match tokio::task::spawn_blocking(move || read.read_tokens()).await {
        Ok(Ok(tokens)) => {
            *door.tokens.write() = tokens;
            tracing::info!("tokens were read anew");
        }
        Ok(Err(error)) => tracing::error!(%error, "the old tokens hold"),
        Err(error) => tracing::error!(%error, "the old tokens hold"),
    }
    if let (Some(config), Some((cert, key))) = (tls, &options.tls) {
        match config.reload_from_pem_file(cert, key).await {
            Ok(()) => tracing::info!("certificates were read anew"),
            Err(error) => tracing::error!(%error, "the old certificates hold"),
        }
    }
}
