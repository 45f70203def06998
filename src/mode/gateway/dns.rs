//! The gateway's DNS: its sockets for each worker, opened before the rules name their ports.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::task::JoinSet;

use crate::dns::Service;
use crate::dns::{tcp as over_tcp, udp as over_udp};
use crate::firewall::Listener;
use crate::sys::udp::Outbox;
use crate::sys::{tcp, udp};

/// The listeners of every worker, and the ports that the kernel's rules must name.
#[derive(Debug)]
pub struct Listeners {
    pub udp: Listener,
    pub tcp: Listener,
    pub workers: Vec<Sockets>,
}

/// One worker's.
#[derive(Debug)]
pub struct Sockets {
    pub(in crate::mode) udp: Vec<UdpSocket>,
    pub(in crate::mode) tcp: Vec<OwnedFd>,
    pub(in crate::mode) outbox: Outbox,
}

impl Listeners {
    /// As for the gateway's other listeners: a host without one of the families gets none for it.
    pub fn open(workers: usize) -> io::Result<Self> {
        let sockets = || Ok::<_, io::Error>(Sockets { udp: Vec::new(), tcp: Vec::new(), outbox: Outbox::new(None)? });
        let mut workers = (0..workers).map(|_| sockets()).collect::<Result<Vec<_>, _>>()?;
        let none = Listener { v4: None, v6: None };
        let (mut on_udp, mut on_tcp) = (none, none);
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let udp = open_each(&mut workers, address, |worker, at| {
                let socket = udp::listener(at)?;
                let port = socket.local_addr()?.port();
                worker.udp.push(socket);
                Ok(port)
            })?;
            let tcp = open_each(&mut workers, address, |worker, at| {
                let socket = tcp::listen(at, BACKLOG)?;
                let port = tcp::local_address(&socket)?.port();
                worker.tcp.push(socket);
                Ok(port)
            })?;
            match address {
                IpAddr::V4(_) => (on_udp.v4, on_tcp.v4) = (udp, tcp),
                IpAddr::V6(_) => (on_udp.v6, on_tcp.v6) = (udp, tcp),
            }
        }
        Ok(Self { udp: on_udp, tcp: on_tcp, workers })
    }
}

/// One socket for each worker, all at the port that the kernel gave the first.
fn open_each(
    workers: &mut [Sockets],
    address: IpAddr,
    open: impl Fn(&mut Sockets, SocketAddr) -> io::Result<u16>,
) -> io::Result<Option<u16>> {
    let mut port = 0;
    for worker in workers {
        port = match open(worker, SocketAddr::new(address, port)) {
            Err(error) if port == 0 && super::lacks_family(&error) => return Ok(None),
            result => result?,
        };
    }
    Ok(Some(port))
}

impl Sockets {
    /// Serves them within the worker's runtime: UDP as one of `datagrams`, TCP as further ones of `accepting`.
    pub fn serve(self, service: &Rc<Service>, datagrams: &mut Tasks, accepting: &mut Tasks) -> io::Result<()> {
        let udp = over_udp::Udp::new(service.clone(), self.udp, self.outbox)?;
        datagrams.spawn_local(udp.run());
        for listener in self.tcp {
            accepting.spawn_local(over_tcp::serve(service.clone(), listener));
        }
        Ok(())
    }
}

type Tasks = JoinSet<io::Result<()>>;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
