//! Everything that judges, as one value that is swapped whole. A flow keeps the one it began with.

use std::net::IpAddr;
use std::sync::Arc;

use super::network::{Mode, Network};

#[derive(Debug)]
pub struct Snapshot {
    /// This enforcer's name.
    pub enforcer: Arc<str>,
    /// Counts the configurations that have been in force since start, from 1.
    pub generation: u64,
    /// Those that name this enforcer; Networks that are off are not here.
    networks: Vec<Arc<Network>>,
}

impl Snapshot {
    pub fn new(enforcer: Arc<str>, generation: u64, networks: Vec<Arc<Network>>) -> Self {
        let networks = networks.into_iter().filter(|network| network.mode != Mode::Off).collect();
        Self { enforcer, generation, networks }
    }

    pub fn networks(&self) -> &[Arc<Network>] {
        &self.networks
    }

    /// The Network that judges a packet with this end protected: the longest prefix whose Port covers the packet
    /// (SPEC N4). `port` is the destination port, for protocols that have one.
    pub fn network_of(&self, protected: IpAddr, protocol: u8, port: Option<u16>) -> Option<&Arc<Network>> {
        let covering = self.networks.iter().flat_map(|network| {
            let longest = network
                .ips
                .iter()
                .filter(|ip| ip.prefix.contains(&protected))
                .filter(|ip| ip.port.as_ref().is_none_or(|own| own.covers(protocol, port)))
                .map(|ip| ip.prefix.prefix_len())
                .max()?;
            Some((longest, network))
        });
        covering.max_by_key(|(length, _)| *length).map(|(_, network)| network)
    }
}
