use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use super::{World, skip, wait_until};

/// What speaks TLS before a server that does not, as a proxy in front of it would: stunnel.
pub struct TlsFront {
    port: u16,
    child: Child,
}

impl TlsFront {
    /// In front of a server on this port of loopback. `None` where stunnel is not installed
    /// (an error in CI).
    pub fn start(world: &World, test: &str, server: u16, cert: &Path, key: &Path) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let conf = world.path(&format!("stunnel-{port}.conf"));
        let (cert, key, log) = (cert.display(), key.display(), conf.with_extension("log"));
        let text = format!(
            "foreground = yes\npid =\nsyslog = no\noutput = {}\n[front]\ncert = {cert}\n\
             key = {key}\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{server}\n",
            log.display()
        );
        fs::write(&conf, text).unwrap();
        let mut command = world.command("stunnel");
        command.arg(&conf).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            skip(test, "stunnel is not in the PATH (apt-get install stunnel4)");
            return None;
        };
        let front = Self { port, child };
        wait_until("stunnel is up", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(front)
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait().map(drop)).unwrap_or_default();
    }
}
