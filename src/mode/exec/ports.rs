//! Loopback ports that pass between the host and the command, by name alone: `--host-port` lets the command reach one of
//! the host's, `--expose` lets the host reach one of the command's.
//!
//! Fails closed: only loopback addresses, and only the ports that were named. These flows are not judged.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::net::{TcpSocket, TcpStream};
use tokio::task::LocalSet;

use crate::sys::channel::Channel;

/// The listeners of both kinds, and the way to sockets inside.
#[derive(Debug)]
pub(super) struct Ports {
    /// Inside, of the host's ports.
    host_ports: Vec<TcpListener>,
    /// On the host, of the command's ports.
    exposed: Vec<TcpListener>,
    sockets: Channel,
}

/// The host's listeners for the command's ports.
pub(super) fn open_exposed(ports: &[u16]) -> io::Result<Vec<TcpListener>> {
    let mut opened = Vec::new();
    for port in ports {
        opened.push(TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?);
        // A host without IPv6 has none.
        opened.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, *port)));
    }
    Ok(opened)
}

impl Ports {
    pub(super) fn new(host_ports: Vec<TcpListener>, exposed: Vec<TcpListener>, sockets: Channel) -> Self {
        Self { host_ports, exposed, sockets }
    }

    /// Serves them on a thread of its own, until the program ends. No ports, no thread; the way to sockets stays open
    /// with the value that is returned.
    pub(super) fn serve(self) -> io::Result<Option<Self>> {
        if self.host_ports.is_empty() && self.exposed.is_empty() {
            return Ok(Some(self));
        }
        std::thread::Builder::new().name("ports".into()).spawn(move || self.run())?;
        Ok(None)
    }

    fn run(self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sockets = Rc::new(self.sockets);
        LocalSet::new().block_on(&runtime, async {
            for listener in self.host_ports {
                tokio::task::spawn_local(accept(listener, None));
            }
            for listener in self.exposed {
                tokio::task::spawn_local(accept(listener, Some(sockets.clone())));
            }
            std::future::pending().await
        })
    }
}

/// `inside`: who makes the sockets of the other side; `None` for the host's own.
async fn accept(listener: TcpListener, inside: Option<Rc<Channel>>) -> io::Result<()> {
    let to = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            Ok((near, _)) => {
                let inside = inside.clone();
                tokio::task::spawn_local(async move { carry(near, to, inside.as_deref()).await });
            }
            // No descriptor, most likely: the connection waits.
            Err(_) => tokio::time::sleep(BREATH).await,
        }
    }
}

async fn carry(mut near: TcpStream, to: SocketAddr, inside: Option<&Channel>) -> io::Result<()> {
    let socket = match (inside, to.ip()) {
        (Some(inside), family) => socket_from(inside, family)?,
        (None, IpAddr::V4(_)) => TcpSocket::new_v4()?,
        (None, IpAddr::V6(_)) => TcpSocket::new_v6()?,
    };
    let mut far = socket.connect(to).await?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

/// A socket of the command's namespace, made by init.
fn socket_from(inside: &Channel, family: IpAddr) -> io::Result<TcpSocket> {
    inside.send(if family.is_ipv4() { b"4" } else { b"6" }, &[])?;
    let message = inside.receive()?.ok_or(io::ErrorKind::BrokenPipe)?;
    let socket: OwnedFd = message.descriptors.into_iter().next().ok_or(io::ErrorKind::OutOfMemory)?;
    let socket = std::net::TcpStream::from(socket);
    socket.set_nonblocking(true)?;
    Ok(TcpSocket::from_std_stream(socket))
}

/// How long accepting rests after an error.
const BREATH: std::time::Duration = std::time::Duration::from_millis(20);
