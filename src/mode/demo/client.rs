//! Real clients: one request over TLS or plain HTTP, and what came of it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Protocol, Socket, Type};

/// What a client saw of its flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saw {
    /// The body of the server's answer.
    Answer(String),
    /// ECONNRESET or ECONNREFUSED.
    Reset,
    /// EHOSTUNREACH, ENETUNREACH or, for IPv6 prohibitions, EACCES.
    Unreachable,
    /// An end of the stream before any answer.
    Closed,
    /// Nothing at all for as long as the client had patience.
    Silence,
    Other(String),
}

impl fmt::Display for Saw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(_) => f.write_str("answer"),
            Self::Reset => f.write_str("reset"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Closed => f.write_str("closed"),
            Self::Silence => f.write_str("silence"),
            Self::Other(what) => write!(f, "error: {what}"),
        }
    }
}

impl From<io::Error> for Saw {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::*;
        match error.kind() {
            ConnectionReset | ConnectionRefused | BrokenPipe => Self::Reset,
            HostUnreachable | NetworkUnreachable | PermissionDenied => Self::Unreachable,
            TimedOut | WouldBlock => Self::Silence,
            UnexpectedEof => Self::Closed,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// One request to make.
#[derive(Clone, Debug)]
pub struct Request {
    pub source: IpAddr,
    pub destination: SocketAddr,
    /// The server's name in SNI or Host; `None` sends neither.
    pub name: Option<String>,
    /// How long to wait for the connection, and again for each part of the answer.
    pub patience: Duration,
}

/// What came of a request, and from which address it went out (`None` where no connection was made).
#[derive(Clone, Debug)]
pub struct Outcome {
    pub saw: Saw,
    pub source: Option<SocketAddr>,
}

/// Makes TLS clients that trust one certificate.
#[derive(Clone, Debug)]
pub struct Trust {
    with_sni: Arc<ClientConfig>,
    without_sni: Arc<ClientConfig>,
    /// A name that the certificate is for: what a client without SNI verifies.
    name: String,
}

impl Trust {
    pub fn new(certificate: &CertificateDer<'static>, name: &str) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let with_sni = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut without_sni = with_sni.clone();
        without_sni.enable_sni = false;
        Ok(Self { with_sni: Arc::new(with_sni), without_sni: Arc::new(without_sni), name: name.to_owned() })
    }

    /// The client's side of a TLS connection with `name` in its hello, or with no name there.
    pub fn connection(&self, name: Option<&str>) -> io::Result<ClientConnection> {
        let own = ServerName::try_from(self.name(name).to_owned()).map_err(io::Error::other)?;
        ClientConnection::new(self.config(name), own).map_err(io::Error::other)
    }

    /// How a client behaves that shows `name`, or none.
    pub(super) fn config(&self, name: Option<&str>) -> Arc<ClientConfig> {
        Arc::clone(if name.is_some() { &self.with_sni } else { &self.without_sni })
    }

    /// The name that is verified.
    pub(super) fn name<'a>(&'a self, shown: Option<&'a str>) -> &'a str {
        shown.unwrap_or(&self.name)
    }
}

/// Asks over TLS, on the calling thread and in its namespace.
pub fn ask_tls(request: &Request, trust: &Trust) -> Outcome {
    ask(request, |stream| {
        let connection = trust.connection(request.name.as_deref())?;
        converse(StreamOwned::new(connection, stream), request)
    })
}

/// Asks over plain HTTP, on the calling thread and in its namespace.
pub fn ask_http(request: &Request) -> Outcome {
    ask(request, |stream| converse(stream, request))
}

fn ask(request: &Request, talk: impl FnOnce(TcpStream) -> io::Result<String>) -> Outcome {
    let stream = match connect(request) {
        Ok(stream) => stream,
        Err(e) => return Outcome { saw: e.into(), source: None },
    };
    let source = stream.local_addr().ok();
    let saw = talk(stream).map_or_else(Saw::from, Saw::Answer);
    Outcome { saw, source }
}

/// Connects from the request's own source address.
pub fn connect(request: &Request) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(request.destination), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(request.source, 0).into())?;
    socket.connect_timeout(&request.destination.into(), request.patience)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(request.patience))?;
    stream.set_write_timeout(Some(request.patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends one request and reads one answer's body. Without a name it is a request of HTTP/1.0, which needs no Host.
fn converse(mut stream: impl Read + Write, request: &Request) -> io::Result<String> {
    match &request.name {
        Some(name) => write!(stream, "GET / HTTP/1.1\r\nhost: {name}\r\n\r\n")?,
        None => write!(stream, "GET / HTTP/1.0\r\n\r\n")?,
    }
    stream.flush()?;
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        if let Some(body) = body_of(&answer) {
            return Ok(body);
        }
        match stream.read(&mut bytes)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => answer.extend_from_slice(bytes.get(..length).unwrap_or_default()),
        }
    }
}

/// The body, once all of it is there; a lab's server always gives its length.
fn body_of(answer: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    body.get(..length).map(str::to_owned)
}
