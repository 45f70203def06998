//! Real servers: HTTP on port 80, and the same over TLS on port 443, at every address of the lab's server.
//!
//! Each request is answered with who asked and who was asked, as the server's own socket saw it: the client learns
//! whether its address survived the gateway.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;

use super::lab::Lab;

pub const TLS_PORT: u16 = 443;
pub const HTTP_PORT: u16 = 80;

/// The servers; they end when this does.
#[derive(Debug)]
pub struct Origins {
    certificate: CertificateDer<'static>,
    listeners: Vec<TcpListener>,
}

impl Origins {
    /// Starts both in the lab's server namespace, with one certificate for all of `names`.
    pub fn start(lab: &Lab, names: &[&str]) -> io::Result<Self> {
        let (certificate, config) = identity(names).map_err(io::Error::other)?;
        let mut listeners = Vec::new();
        for (port, tls) in [(TLS_PORT, Some(config)), (HTTP_PORT, None)] {
            let listener = lab.server.run(|| TcpListener::bind(("::", port)))??;
            listeners.push(listener.try_clone()?);
            thread::Builder::new().name(format!("origin-{port}")).spawn(move || accept(&listener, tls.as_ref()))?;
        }
        Ok(Self { certificate, listeners })
    }

    /// What a client must trust to believe these servers.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }
}

impl Drop for Origins {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Wakes the thread in accept(2), which then ends.
            let _ = SockRef::from(listener).shutdown(Shutdown::Both);
        }
    }
}

pub(super) fn identity(
    names: &[&str],
) -> Result<(CertificateDer<'static>, Arc<ServerConfig>), Box<dyn std::error::Error + Send + Sync>> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names)?;
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())?;
    Ok((cert.der().clone(), Arc::new(config)))
}

fn accept(listener: &TcpListener, tls: Option<&Arc<ServerConfig>>) {
    while let Ok((stream, client)) = listener.accept() {
        let tls = tls.cloned();
        // A client that goes away, or a thread that cannot start, is that one client's loss.
        let _ = thread::Builder::new().name("origin".to_owned()).spawn(move || serve(stream, client, tls));
    }
}

fn serve(stream: TcpStream, client: SocketAddr, tls: Option<Arc<ServerConfig>>) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    let own = stream.local_addr()?;
    let answer = format!("{} asked {}\n", client.ip().to_canonical(), plain(own));
    match tls {
        None => converse(stream, &answer),
        Some(config) => {
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            converse(StreamOwned::new(connection, stream), &answer)
        }
    }
}

/// Answers every request head that comes until the client ends.
fn converse(mut stream: impl Read + Write, answer: &str) -> io::Result<()> {
    let mut head = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let length = stream.read(&mut bytes)?;
        if length == 0 || head.len() > LONGEST_HEAD {
            return Ok(());
        }
        head.extend_from_slice(bytes.get(..length).unwrap_or_default());
        while let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            head.drain(..end + 4);
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len())?;
            stream.flush()?;
        }
    }
}

/// An IPv4 address of a socket for both families, as IPv4.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

const IDLE: Duration = Duration::from_secs(60);
const LONGEST_HEAD: usize = 256 << 10;
