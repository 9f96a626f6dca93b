//! How requests reach a store: our own client under the library.
//!
//! It sees what the library does not hand on: the status with the store's code, the
//! time to wait, and why a connection did not come about. A request that got no answer
//! on a connection that broke is sent once more. Answers are taken into memory, up to a
//! bound.

use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use opendal::{Buffer, HttpBody, HttpTransport, HttpTransporter, OperationContext, Operator};
use reqwest::{Client, Method, Url};
use tokio::sync::Semaphore;

use super::failure::{Failure, What};
use crate::backends::web::{self, Cut};

/// Requests under way at a time, of one backend.
const REQUESTS: usize = 32;
/// The longest answer: the largest block has 2 MiB, a page of a listing less.
const ANSWER_MAX: usize = 4 << 20;
/// What is read of an answer that says no.
const REFUSAL_MAX: usize = 64 << 10;

/// A client with a bounded number of requests under way.
#[derive(Clone)]
pub(super) struct Transport {
    client: Client,
    turns: Arc<Semaphore>,
}

impl Transport {
    /// # Errors
    /// With what is wrong about the certificates.
    pub fn open(ca: Option<&Path>, is_loopback: bool) -> Result<Self, String> {
        let client = web::client(ca, is_loopback)?;
        Ok(Self { client, turns: Arc::new(Semaphore::new(REQUESTS)) })
    }

    /// The operator, with this client under it.
    pub fn serve(&self, operator: Operator) -> Operator {
        let transporter = HttpTransporter::new(self.clone());
        operator.with_context(OperationContext::new().with_http_transport(transporter))
    }

    async fn answer(
        &self,
        request: http::Request<Buffer>,
    ) -> Result<http::Response<Bytes>, Failure> {
        let (parts, body) = request.into_parts();
        let unsent = |text: String| Failure::new(What::NoAnswer(Cut::Unsent), &text);
        let url = Url::parse(&parts.uri.to_string()).map_err(|error| unsent(error.to_string()))?;
        let is_head = parts.method == Method::HEAD;
        let body = body.to_bytes();
        let send = || {
            let sent = self.client.request(parts.method.clone(), url.clone());
            let sent = sent.headers(parts.headers.clone());
            if body.is_empty() { sent.send() } else { sent.body(body.clone()).send() }
        };
        let _turn = self.turns.acquire().await.map_err(|error| unsent(error.to_string()))?;
        let mut answer = send().await.map_err(Failure::of_sending);
        if answer.as_ref().is_err_and(|failure| failure.what == What::NoAnswer(Cut::Broken)) {
            // Who hangs up after an answer without a word (s3s-fs does, when it says no before
            // it has read all) does not hear the next request. All ours may be done twice.
            answer = send().await.map_err(Failure::of_sending);
        }
        let answer = answer?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let refused = status.is_client_error()
            || status.is_server_error()
            || (status.is_redirection() && status != http::StatusCode::NOT_MODIFIED);
        if refused {
            // What it says is for people; without it the status has to do.
            let said = read(answer, REFUSAL_MAX).await.unwrap_or_default();
            return Err(Failure::of_status(status.as_u16(), &said, &headers));
        }
        let data = if is_head { Bytes::new() } else { read(answer, ANSWER_MAX).await? };
        let mut response = http::Response::new(data);
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        Ok(response)
    }
}

/// The whole body, at most so many bytes of it.
async fn read(mut answer: reqwest::Response, most: usize) -> Result<Bytes, Failure> {
    let too_long =
        || Failure::new(What::TooLong, &format!("the answer is longer than {most} bytes"));
    let said = answer.content_length();
    if said.is_some_and(|said| said > most as u64) {
        return Err(too_long());
    }
    let mut data = BytesMut::new();
    loop {
        let chunk = answer.chunk().await.map_err(Failure::of_reading)?;
        let Some(chunk) = chunk else { return Ok(data.freeze()) };
        if data.is_empty() && said == Some(chunk.len() as u64) {
            return Ok(chunk);
        }
        if data.len() + chunk.len() > most {
            return Err(too_long());
        }
        if data.is_empty() {
            data.reserve(said.unwrap_or(0) as usize);
        }
        data.extend_from_slice(&chunk);
    }
}

impl HttpTransport for Transport {
    async fn fetch(
        &self,
        request: http::Request<Buffer>,
    ) -> opendal::Result<http::Response<HttpBody>> {
        let is_head = request.method() == Method::HEAD;
        let uri = request.uri().clone();
        let answer = self.answer(request).await.map_err(Failure::into_library)?;
        let (mut parts, data) = answer.into_parts();
        // The library looks there for where an answer came from.
        parts.extensions.insert(uri);
        let size = (!is_head).then_some(data.len() as u64);
        let body = HttpBody::new(stream::iter([Ok(Buffer::from(data))]), size);
        Ok(http::Response::from_parts(parts, body))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers the requests with these bytes, one a connection; `abort`: by a reset.
    async fn each(answers: Vec<&'static [u8]>, abort: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                assert_ne!(stream.read(&mut request).await.unwrap(), 0);
                stream.write_all(answer).await.unwrap();
                stream.flush().await.unwrap();
                if abort {
                    stream.set_zero_linger().unwrap();
                }
            }
        });
        format!("http://{address}/b/key")
    }

    /// The same to both tries.
    async fn once(answer: &'static [u8], abort: bool) -> String {
        each(vec![answer, answer], abort).await
    }

    async fn ask(url: &str) -> Result<Bytes, Failure> {
        let transport = Transport::open(None, true).unwrap();
        let request = http::Request::get(url).body(Buffer::new()).unwrap();
        transport.answer(request).await.map(http::Response::into_body)
    }

    async fn fails(url: &str) -> What {
        ask(url).await.unwrap_err().what
    }

    #[tokio::test]
    async fn answers_come_whole_or_say_how_they_did_not() {
        let whole = once(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole", false).await;
        assert_eq!(ask(&whole).await.unwrap(), "whole");
        let chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nch\r\n4\r\nunks\r\n0\r\n\r\n";
        assert_eq!(ask(&once(chunks, false).await).await.unwrap(), "chunks");
        let short = once(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort", false).await;
        assert_eq!(fails(&short).await, What::Short);
        let reset = once(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort", true).await;
        assert_eq!(fails(&reset).await, What::Short);
        let long = once(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", false).await;
        assert_eq!(fails(&long).await, What::TooLong);
        assert_eq!(fails(&once(b"", false).await).await, What::NoAnswer(Cut::Broken));
        assert_eq!(
            fails(&once(b"SSH-2.0-OpenSSH\r\n", false).await).await,
            What::NoAnswer(Cut::Broken)
        );
    }

    #[tokio::test]
    async fn a_request_that_nobody_heard_is_sent_once_more() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole".as_slice();
        assert_eq!(ask(&each(vec![b"", whole], false).await).await.unwrap(), "whole");
        let never = each(vec![b"", b"", whole], false).await;
        assert_eq!(fails(&never).await, What::NoAnswer(Cut::Broken));
    }

    #[tokio::test]
    async fn a_refusal_has_its_status_its_word_and_its_time() {
        let said = b"HTTP/1.1 503 no\r\nretry-after: 2\r\ncontent-length: 79\r\n\r\n\
            <Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>";
        let failure = ask(&once(said, false).await).await.unwrap_err();
        assert_eq!(failure.what, What::Status(503, "SlowDown".into()));
        assert_eq!(failure.retry_after_ms, Some(2_000));
        assert_eq!(failure.text, "Reduce your request rate");
        // A redirect is not followed: the signature would go elsewhere.
        let moved = b"HTTP/1.1 307 no\r\nlocation: http://127.0.0.1:1/\r\nx-amz-bucket-region: r\r\ncontent-length: 0\r\n\r\n";
        let failure = ask(&once(moved, false).await).await.unwrap_err();
        assert_eq!(failure.what, What::Status(307, String::new()));
        assert!(failure.text.contains("region r"), "{failure}");
        // What it says breaks off: the status is enough.
        let cut = b"HTTP/1.1 403 no\r\ncontent-length: 100\r\n\r\n<Error>";
        let failure = ask(&once(cut, false).await).await.unwrap_err();
        assert_eq!(failure.what, What::Status(403, String::new()));
    }

    #[tokio::test]
    async fn a_connection_that_does_not_come_about_says_why() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = free.local_addr().unwrap();
        drop(free);
        assert_eq!(fails(&format!("http://{nobody}/b")).await, What::NoAnswer(Cut::Refused));
        assert_eq!(fails("http://no-such-host.invalid/b").await, What::NoAnswer(Cut::Name));
        let plain = once(b"HTTP/1.1 400 no\r\ncontent-length: 0\r\n\r\n", false).await;
        assert_eq!(fails(&plain.replace("http:", "https:")).await, What::NoAnswer(Cut::Plain));
    }
}
