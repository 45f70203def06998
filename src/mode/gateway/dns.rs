//! The gateway's DNS: its sockets for each worker, opened before the rules name their ports.

use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::task::JoinSet;

use crate::dns::Service;
use crate::dns::{tcp as over_tcp, udp as over_udp};
use crate::firewall::Listener;
use crate::sys::udp::Outbox;

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

impl Sockets {
    /// Serves them within the worker's runtime: UDP as one of `datagrams`, TCP as further ones of `accepting`.
    pub fn serve(self, service: &Rc<Service>, datagrams: &mut Tasks, accepting: &mut Tasks) -> io::Result<()> {
        if !self.udp.is_empty() {
            let udp = over_udp::Udp::new(service.clone(), self.udp, self.outbox)?;
            datagrams.spawn_local(udp.run());
        }
        for listener in self.tcp {
            accepting.spawn_local(over_tcp::serve(service.clone(), listener));
        }
        Ok(())
    }
}

type Tasks = JoinSet<io::Result<()>>;

/// Connections that may wait to be accepted.
pub(super) const BACKLOG: i32 = 1024;
