//! A proxy of HTTP that does harm, in turn, to one request of some, and who waits it out.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use cairnfs::backends::wrap::{Around, Attempt, Timeout, Wrapped};
use cairnfs::backends::{Backend, BackendError, BackendSpec, Operation, open};

/// One request of so many is harmed, and nothing that is asked is harmed twice: a call of
/// many requests comes through when it is made again often enough.
const EACH: u64 = 13;
/// One answer of so many has another bit.
const EACH_FLIPPED: u64 = 5;
/// One harm of so many is silence, which takes all of a deadline, and another one is an
/// answer that does not come to its end within it.
const SILENT: u64 = 100;
const DRIPPING: u64 = 20;
/// Between two bytes of that.
const DRIP: Duration = Duration::from_millis(500);
/// Of a call: many times what the slowest takes on a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(10);
/// Nobody waits for longer.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is done to a request.
#[derive(Debug, Clone, Copy)]
enum Harm {
    /// The connection ends before anything is handed on.
    Reset,
    /// It is carried out, and the connection ends without a word.
    Swallowed,
    /// It is carried out, and the answer breaks off in its middle.
    Half,
    /// An answer of the proxy's own, which the server knows nothing of.
    Status(u16),
    /// Nobody answers, for as long as anybody waits.
    Silence,
    /// It is carried out, and the answer comes byte by byte, for as long as anybody waits.
    Drip,
    /// One bit of what is answered is another one.
    Flip,
}

impl Harm {
    const QUICK: [Self; 6] = [
        Self::Reset,
        Self::Swallowed,
        Self::Status(503),
        Self::Half,
        Self::Status(500),
        Self::Status(429),
    ];
}

/// What was asked, and what was harmed.
#[derive(Default)]
struct Counts {
    asked: u64,
    harmed: BTreeSet<u64>,
    /// Requests by method.
    methods: BTreeMap<String, u64>,
    way: Way,
}

/// What a proxy does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Way {
    /// Each [`Harm`] in turn.
    #[default]
    Harm,
    /// It counts, and nothing else.
    Count,
    /// It changes a bit of some answers.
    Flip,
}

impl Counts {
    fn harm(&mut self, request: &Request) -> Option<Harm> {
        self.asked += 1;
        *self.methods.entry(request.method.clone()).or_default() += 1;
        let due = match self.way {
            Way::Harm => self.asked.is_multiple_of(EACH),
            Way::Count => false,
            Way::Flip => self.asked.is_multiple_of(EACH_FLIPPED),
        };
        if !due || !self.harmed.insert(request.print) {
            return None;
        }
        if self.way == Way::Flip {
            return Some(Harm::Flip);
        }
        let number = self.harmed.len() as u64;
        let quick = Harm::QUICK[(number % Harm::QUICK.len() as u64) as usize];
        Some(match number % SILENT {
            0 => Harm::Silence,
            DRIPPING => Harm::Drip,
            _ => quick,
        })
    }
}

/// A running proxy; it ends with its test.
pub struct Proxy {
    port: u16,
    counts: Arc<Mutex<Counts>>,
    ended: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    /// In front of a server on this port of loopback.
    pub fn start(server: u16) -> Self {
        Self::start_with(server, Way::Harm)
    }

    /// One that does no harm and counts.
    pub fn counting(server: u16) -> Self {
        Self::start_with(server, Way::Count)
    }

    /// From now on it changes bits, or does not any more.
    pub fn flip(&self, flips: bool) {
        self.counts.lock().unwrap().way = if flips { Way::Flip } else { Way::Count };
    }

    /// Requests so far, by method.
    pub fn methods(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap().methods.clone()
    }

    fn start_with(server: u16, way: Way) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let (counts, ended) = (Arc::<Mutex<Counts>>::default(), Arc::<AtomicBool>::default());
        counts.lock().unwrap().way = way;
        let (seen, end) = (Arc::clone(&counts), Arc::clone(&ended));
        let listen = move || {
            for client in socket.incoming().map_while(Result::ok) {
                if end.load(Ordering::Acquire) {
                    return;
                }
                let seen = Arc::clone(&seen);
                // Whoever hangs up in the middle is served no further.
                std::thread::spawn(move || serve(client, server, &seen).unwrap_or_default());
            }
        };
        let listener = Some(std::thread::spawn(listen));
        Self { port, counts, ended, listener }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Requests that were harmed.
    pub fn harmed(&self) -> usize {
        self.counts.lock().unwrap().harmed.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // It waits for a connection.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(listener) = self.listener.take() {
            listener.join().unwrap();
        }
    }
}

/// Asks again as long as a queue would; so often it has to be enough.
struct Patient;

/// A call ends at its first failure, and each of its requests may be harmed once: of
/// hundreds of them in one call, as many tries are needed at the worst.
const TRIES: usize = 1000;

#[async_trait]
impl Around for Patient {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        let mut tries = 1;
        loop {
            match attempt().await {
                Err(error) if error.is_temporary() && tries < TRIES => {
                    eprintln!("{}: {error}", operation.as_str());
                }
                other => return other,
            }
            tries += 1;
        }
    }
}

/// A backend with a deadline of its own, whose failures that may pass are waited out.
pub fn patient(spec: &BackendSpec) -> Arc<dyn Backend> {
    let mut opened = open(spec, true);
    for _ in 1..TRIES {
        match opened {
            Err(error) if error.is_temporary() => opened = open(spec, true),
            other => {
                opened = other;
                break;
            }
        }
    }
    let timed = Wrapped::new(opened.unwrap(), Timeout::new(DEADLINE));
    Arc::new(Wrapped::new(Arc::new(timed), Patient))
}

/// One request a connection: the server is asked to end it after its answer.
fn serve(mut client: TcpStream, server: u16, counts: &Mutex<Counts>) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let request = Request::read(&mut client)?;
    let harm = counts.lock().unwrap().harm(&request);
    match harm {
        Some(Harm::Reset) => return Ok(()),
        Some(Harm::Silence) => {
            // Until it hangs up.
            return client.read(&mut [0]).map(drop);
        }
        Some(Harm::Status(status)) => {
            return client.write_all(
                format!("HTTP/1.1 {status} no\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                    .as_bytes(),
            );
        }
        Some(Harm::Swallowed | Harm::Half | Harm::Drip | Harm::Flip) | None => {}
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", server))?;
    upstream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    // A server may say no and hang up before it has read all.
    let sent = upstream.write_all(&request.data);
    match upstream.read_to_end(&mut answer) {
        Err(error) if answer.is_empty() => return Err(error),
        _ => {}
    }
    if answer.is_empty() {
        return sent;
    }
    match harm {
        Some(Harm::Swallowed) => Ok(()),
        Some(Harm::Half) => client.write_all(&answer[..answer.len() / 2]),
        Some(Harm::Drip) => {
            client.set_read_timeout(Some(DRIP))?;
            for byte in answer {
                client.write_all(&[byte])?;
                // It says nothing more, until it hangs up.
                match client.read(&mut [0]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other.map(drop),
                }
            }
            Ok(())
        }
        Some(Harm::Flip) => {
            let head = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap_or(0) + 4;
            let at = head + (request.print % (answer.len() - head).max(1) as u64) as usize;
            if let Some(byte) = answer.get_mut(at) {
                *byte ^= 1 << (request.print % 8);
            }
            client.write_all(&answer)
        }
        _ => client.write_all(&answer),
    }
}

/// A whole request, with the wish that the connection ends after it.
struct Request {
    data: Vec<u8>,
    method: String,
    /// Of what is asked: its first line and its body; headers have the time in them.
    print: u64,
}

impl Request {
    fn read(client: &mut TcpStream) -> io::Result<Self> {
        let mut data = Vec::new();
        let mut more = |data: &mut Vec<u8>| {
            let mut part = vec![0; 64 << 10];
            let len = client.read(&mut part)?;
            data.extend_from_slice(&part[..len]);
            if len == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok::<_, io::Error>(()) }
        };
        let find =
            |data: &[u8], what: &[u8]| data.windows(what.len()).position(|part| part == what);
        let head = loop {
            if let Some(end) = find(&data, b"\r\n\r\n") {
                break end;
            }
            more(&mut data)?;
        };
        let text = String::from_utf8_lossy(&data[..head]).to_ascii_lowercase();
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
        };
        if let Some(len) = field("content-length:") {
            let len: usize =
                len.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            while data.len() < head + 4 + len {
                more(&mut data)?;
            }
        } else if field("transfer-encoding:").is_some() {
            let mut at = head + 4;
            loop {
                let Some(line) = find(&data[at..], b"\r\n") else {
                    more(&mut data)?;
                    continue;
                };
                let size = String::from_utf8_lossy(&data[at..at + line]).into_owned();
                let size = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
                let next = at + line + 2 + size + 2;
                while data.len() < next {
                    more(&mut data)?;
                }
                at = next;
                if size == 0 {
                    break;
                }
            }
        }
        let line = find(&data, b"\r\n").unwrap_or_default();
        let mut print = DefaultHasher::new();
        (&data[..line], &data[head..]).hash(&mut print);
        let method = text.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        data.splice(line..line, b"\r\nConnection: close".iter().copied());
        Ok(Self { data, method, print: print.finish() })
    }
}
