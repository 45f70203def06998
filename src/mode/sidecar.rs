//! Beside one application, in its network namespace: its own flows are taken where they leave its sockets.
//!
//! ```text
//! application --- output hook, marked --- lo --- TPROXY --- tidegate --- own sockets, own user --- out
//! ```
//!
//! The flows are dialled from the namespace's own address, as the application would have done. What tells the two apart
//! is the user id, so that the application must not be able to become tidegate's user, nor to send past sockets:
//! CAP_SETUID, CAP_NET_RAW and CAP_NET_ADMIN walk past. What of this can be seen is told at start.
//!
//! Fails closed: the rules outlive the process, and without listeners they drop what they capture.

pub mod neighbours;
pub mod probe;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use caps::Capability;

use super::gateway::{self, Crew, Listeners};
use crate::policy::network::Network;
use crate::policy::snapshot::Snapshot;
use crate::proxy::worker::DialFrom;
use crate::sys::privileges;

/// Who tidegate is beside an application.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub user: u32,
    pub group: u32,
    /// Whether the rules may be changed once they stand: at a reload, by a list that became another, by a repair. It
    /// takes CAP_NET_ADMIN.
    pub may_change_rules: bool,
}

impl Settings {
    /// Becomes the user, with what opening sockets and installing rules takes. Before any thread, and before any socket:
    /// the kernel knows a socket by who opened it.
    pub fn become_user(&self) -> io::Result<()> {
        let needed = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];
        privileges::become_user(self.user, self.group, &needed)
    }

    /// Gives up what only the start needed.
    pub fn settle(&self) -> io::Result<()> {
        privileges::keep_only(if self.may_change_rules { &[Capability::CAP_NET_ADMIN] } else { &[] })
    }

    /// A gateway's settings for flows of this host's own.
    pub fn adapt(&self, mut settings: gateway::Settings) -> gateway::Settings {
        settings.worker.dial_from = DialFrom::Host;
        settings.dns.from_client = false;
        // Each holds a descriptor.
        settings.udp.flows = settings.udp.flows.min(UDP_FLOWS);
        settings.udp.memory = UDP_IDLE;
        // One application, whatever addresses it has.
        settings.bindings.of_each = false;
        settings.kernel_names = self.may_change_rules;
        settings
    }
}

/// The listeners of every worker.
pub fn open(crew: &Crew) -> io::Result<Listeners> {
    Listeners::open(crew)?.relaying()
}

/// What judges captured flows: all of them are outbound, also where a Network protects every address there is.
pub fn outbound_alone(snapshot: &Snapshot) -> Snapshot {
    let alone = |network: &Arc<Network>| Arc::new(Network { inbound: None, ..(**network).clone() });
    let networks = snapshot.networks().iter().map(alone).collect();
    Snapshot::new(snapshot.enforcer.clone(), snapshot.generation, networks)
}

const UDP_FLOWS: usize = 4096;
const UDP_IDLE: Duration = Duration::from_secs(180);
