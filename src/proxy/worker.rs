//! What the flows of one worker thread share.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::live::Inquiries;
use super::proof::{self, Proofs};
use super::relay::Relay;
use crate::peek::tcp::Limits;
use crate::policy::bindings::Bindings;
use crate::policy::snapshot::Snapshot;
use crate::sys::ending::Ender;
use crate::telemetry::Telemetry;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Flows at once in all workers; a new one past it is reset. Default 100,000, and never more than the
    /// descriptors allow.
    pub flows: usize,
    /// How much of a flow is held while its name is looked for, and what is told of it.
    pub peek: Limits,
    pub dial_from: DialFrom,
    pub proof: proof::Settings,
}

/// From which address servers are dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialFrom {
    /// The client's own, so that servers see who asks. Needs CAP_NET_ADMIN or CAP_NET_RAW.
    Client,
    /// This host's.
    Host,
}

/// One worker: a thread with a runtime, listeners and a relay of its own.
#[derive(Debug)]
pub struct Worker {
    pub settings: Settings,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub telemetry: Telemetry,
    pub relay: Rc<Relay>,
    pub census: Arc<Census>,
    pub bindings: Arc<Bindings>,
    pub proofs: Proofs,
    pub ender: Rc<RefCell<Ender>>,
    /// Where octets stand between the socket and the flow that holds them.
    pub scratch: RefCell<Box<[u8]>>,
}

impl Worker {
    pub fn new(
        settings: Settings,
        snapshot: Arc<ArcSwap<Snapshot>>,
        telemetry: Telemetry,
        relay: Rc<Relay>,
        census: Arc<Census>,
        bindings: Arc<Bindings>,
        ender: Rc<RefCell<Ender>>,
    ) -> Self {
        let proofs = Proofs::new(settings.proof.clone());
        let scratch = RefCell::new(vec![0; settings.peek.held].into());
        Self { settings, snapshot, telemetry, relay, census, bindings, proofs, ender, scratch }
    }
}

/// Counts the flows of all workers.
#[derive(Debug, Default)]
pub struct Census {
    live: Arc<AtomicUsize>,
    last_id: AtomicU64,
    /// Asks all workers for their flows.
    pub inquiries: Inquiries,
}

/// A flow's place among the limited number; free again when dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Census {
    /// A place for one more flow, unless `limit` are taken.
    pub fn enter(&self, limit: usize) -> Option<Place> {
        if self.live.fetch_add(1, Ordering::Relaxed) >= limit {
            self.live.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place(self.live.clone()))
    }

    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
