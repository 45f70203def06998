//! Real QUIC: a server at every address of the lab's server, and a client that asks it one thing.
//!
//! It is QUIC and no HTTP/3: the client opens a stream, and the server answers on it with who asked and who was asked.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime, VarInt};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, Runtime};

use super::client::{Outcome, Request, Saw, Trust};
use super::lab::Lab;
use super::origin::{self, TLS_PORT};

/// The server; it ends when this does.
#[derive(Debug)]
pub struct QuicOrigin {
    certificate: CertificateDer<'static>,
    _runtime: Runtime,
}

impl QuicOrigin {
    /// Starts it in the lab's server namespace, with one certificate for all of `names`.
    pub fn start(lab: &Lab, names: &[&str]) -> io::Result<Self> {
        let (certificate, tls) = origin::identity(names).map_err(io::Error::other)?;
        let tls = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
        let config = ServerConfig::with_crypto(Arc::new(tls));
        let socket = lab.server.run(listener)??;
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("origin-quic").enable_all().build()?;
        let endpoint = {
            let _inside = runtime.enter();
            Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))?
        };
        runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(answer(incoming));
            }
        });
        Ok(Self { certificate, _runtime: runtime })
    }

    /// What a client must trust to believe this server.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }
}

/// A socket that may answer from any address: those of the lab's server are whole networks.
fn listener() -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.set_freebind_v4(true)?;
    socket.set_freebind_v6(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, TLS_PORT)).into())?;
    Ok(socket.into())
}

async fn answer(incoming: Incoming) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let client = incoming.remote_address().ip().to_canonical();
    let own = incoming.local_ip().ok_or("the kernel did not tell which address was asked")?.to_canonical();
    let connection = incoming.await?;
    let (mut stream, _) = connection.accept_bi().await?;
    stream.write_all(format!("{client} asked {}\n", SocketAddr::new(own, TLS_PORT)).as_bytes()).await?;
    stream.finish()?;
    connection.closed().await;
    Ok(())
}

/// Asks over QUIC, on the calling thread and in its namespace. A refusal by ICMP is silence to a QUIC client.
pub fn ask_quic(request: &Request, trust: &Trust) -> Outcome {
    let mut source = None;
    let asked = Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        runtime.block_on(async {
            let mut endpoint = Endpoint::client(SocketAddr::new(request.source, 0))?;
            source = endpoint.local_addr().ok();
            let tls = QuicClientConfig::try_from(trust.config(request.name.as_deref())).map_err(io::Error::other)?;
            endpoint.set_default_client_config(ClientConfig::new(Arc::new(tls)));
            match tokio::time::timeout(request.patience, converse(&endpoint, request, trust)).await {
                Ok(answer) => answer.map(Saw::Answer).map_err(io::Error::other),
                Err(_) => Ok(Saw::Silence),
            }
        })
    });
    Outcome { saw: asked.unwrap_or_else(Saw::from), source }
}

async fn converse(
    endpoint: &Endpoint,
    request: &Request,
    trust: &Trust,
) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let connection = endpoint.connect(request.destination, trust.name(request.name.as_deref()))?.await?;
    let (mut question, mut stream) = connection.open_bi().await?;
    question.write_all(b"who am I?\n").await?;
    question.finish()?;
    let answer = stream.read_to_end(LONGEST_ANSWER).await?;
    connection.close(VarInt::from_u32(0), b"");
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

const LONGEST_ANSWER: usize = 4096;
