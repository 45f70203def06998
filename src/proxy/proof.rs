//! One fresh look-up for a flow whose name could earn an Allow, and for which DNS gave its client no such address
//! (SPEC V11).
//!
//! Fails closed: with no resolver, no room or no answer in time the name stays unbound, and earns nothing.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_local};

use super::flow::Flow;
use crate::dns::lookup::addresses;
use crate::peek::Discovery;
use crate::policy::network::Network;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Asked for Networks that name neither `upstream` nor `authorized_resolvers`: this host's own, the first alone.
    pub resolvers: Vec<SocketAddr>,
    /// Look-ups of one worker at once; a flow past it goes without. Default 256.
    pub at_once: usize,
    /// How long a flow waits for one. Default 1 s.
    pub patience: Duration,
}

/// The look-ups of one worker.
#[derive(Debug)]
pub struct Proofs {
    settings: Settings,
    running: Rc<Cell<usize>>,
}

/// A place among the look-ups, free again when dropped.
struct Running(Rc<Cell<usize>>);

impl Settings {
    pub fn new(resolvers: Vec<SocketAddr>) -> Self {
        Self { resolvers, at_once: 256, patience: Duration::from_secs(1) }
    }
}

impl Proofs {
    pub fn new(settings: Settings) -> Self {
        Self { settings, running: Rc::default() }
    }

    /// Begins the look-up that a flow needs before it is judged by this discovery; `None` if it needs none. It ends
    /// within [`Settings::patience`], and what it found is among the bindings by then.
    pub fn begin(&self, flow: &Flow, discovery: &Discovery) -> Option<JoinHandle<()>> {
        let (name, network) = flow.unbound_name(discovery)?;
        let resolver = self.resolver(network)?;
        if self.running.get() >= self.settings.at_once {
            return None;
        }
        self.running.set(self.running.get() + 1);
        let place = Running(self.running.clone());
        let (name, patience) = (name.clone(), self.settings.patience);
        let bind = flow.binder();
        Some(spawn_local(async move {
            let _place = place;
            if let Ok(found) = addresses(&name, bind.remote(), resolver, patience).await {
                bind.bind(&name, &found);
            }
        }))
    }

    fn resolver(&self, network: &Network) -> Option<SocketAddr> {
        network.dns.trusted_resolvers().first().or(self.settings.resolvers.first()).copied()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
