//! A web server of which a test says what it answers, octet by octet.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Answers each request with what the test put last.
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    /// What it shows to clients, as PEM, if it speaks TLS.
    pub(crate) certificate: Option<String>,
    shared: Arc<Mutex<Shared>>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ends: bool,
    answer: Answer,
    /// Answered before that, each once.
    first: VecDeque<Answer>,
    requests: Vec<String>,
}

/// What is written, and what comes then.
#[derive(Clone, Default)]
pub(crate) struct Answer {
    octets: Vec<u8>,
    then: Then,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Then {
    #[default]
    Close,
    /// Nothing, for as long as the test runs.
    Silence,
}

impl Web {
    pub(crate) fn start() -> Self {
        Self::serve(None, |stream| Box::new(stream))
    }

    /// Over TLS, as 127.0.0.1.
    pub(crate) fn start_tls() -> Self {
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        let config = Arc::new(config);
        Self::serve(Some(own.cert.pem()), move |stream| {
            Box::new(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream))
        })
    }

    fn serve(certificate: Option<String>, speak: impl Fn(TcpStream) -> Box<dyn Stream> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let own = shared.clone();
        let serving = std::thread::spawn(move || {
            let mut silent = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if own.lock().unwrap().ends {
                    return;
                }
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let mut stream = speak(stream);
                let Some(request) = request(&mut stream) else { continue };
                let answer = {
                    let mut shared = own.lock().unwrap();
                    shared.requests.push(request);
                    shared.first.pop_front().unwrap_or_else(|| shared.answer.clone())
                };
                // Whoever asked may have gone.
                _ = stream.write_all(&answer.octets).and_then(|()| stream.flush());
                if answer.then == Then::Silence {
                    silent.push(stream);
                }
            }
        });
        Self { address, certificate, shared, serving: Some(serving) }
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/feed.txt?key=secret", self.address)
    }

    /// From now on.
    pub(crate) fn answer(&self, answer: Answer) {
        self.shared.lock().unwrap().answer = answer;
    }

    /// Once, before anything else.
    pub(crate) fn answer_once(&self, answer: Answer) {
        self.shared.lock().unwrap().first.push_back(answer);
    }

    /// The heads of all requests so far, in lower case.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.lock().unwrap().requests.clone()
    }
}

/// Afterwards nobody listens there. In the server's own namespace.
impl Drop for Web {
    fn drop(&mut self) {
        self.shared.lock().unwrap().ends = true;
        if TcpStream::connect(self.address).is_ok() {
            self.serving.take().map(JoinHandle::join);
        }
    }
}

trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

fn request(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut octet = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut octet).ok()?;
        head.extend(octet);
    }
    Some(String::from_utf8(head).unwrap().to_lowercase())
}

impl Answer {
    /// As it is.
    pub(crate) fn raw(text: &str) -> Self {
        Self { octets: text.as_bytes().to_vec(), then: Then::Close }
    }

    pub(crate) fn file(body: &str) -> Self {
        Self::with("200 OK", "", body)
    }

    /// `fields`: header lines, each with its end.
    pub(crate) fn with(status: &str, fields: &str, body: &str) -> Self {
        let length = body.len();
        let connection = "connection: close\r\n";
        Self::raw(&format!("HTTP/1.1 {status}\r\n{connection}{fields}content-length: {length}\r\n\r\n{body}"))
    }

    /// Without its last octets.
    pub(crate) fn cut(mut self, octets: usize) -> Self {
        self.octets.truncate(self.octets.len() - octets);
        self
    }

    /// Then nothing, where the connection would be closed.
    pub(crate) fn stalls(self) -> Self {
        Self { then: Then::Silence, ..self }
    }
}
