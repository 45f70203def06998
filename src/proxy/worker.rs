//! What the flows of one worker thread share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

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
    /// Of those, flows of one client address. Default 25,000.
    pub flows_of_one: usize,
    /// Octets of TCP flows that are held at once in all workers, a quarter of them of one client. A flow whose beginning
    /// finds no room is reset; one whose receiver is slow is read in small pieces. Default 512 MiB.
    pub held: usize,
    /// How much of a flow is held while its name is looked for, and what is told of it.
    pub peek: Limits,
    pub dial_from: DialFrom,
    pub proof: proof::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            flows: 100_000,
            flows_of_one: 25_000,
            held: 512 << 20,
            peek: Limits::default(),
            dial_from: DialFrom::Client,
            proof: proof::Settings::new(Vec::new()),
        }
    }
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
    /// The last policy that live flows are to be judged again by.
    pub rechecks: Rechecks,
    /// Another process takes what comes from now on; this one serves what it has.
    pub leaving: watch::Receiver<bool>,
    /// Where octets stand between the socket and the flow that holds them.
    pub scratch: RefCell<Box<[u8]>>,
}

impl Worker {
    #[expect(clippy::too_many_arguments, reason = "each is a part of the worker, and there is one caller")]
    pub fn new(
        settings: Settings,
        snapshot: Arc<ArcSwap<Snapshot>>,
        telemetry: Telemetry,
        relay: Rc<Relay>,
        census: Arc<Census>,
        bindings: Arc<Bindings>,
        ender: Rc<RefCell<Ender>>,
        rechecks: Rechecks,
        leaving: watch::Receiver<bool>,
    ) -> Self {
        let proofs = Proofs::new(settings.proof.clone());
        let scratch = RefCell::new(vec![0; settings.peek.held].into());
        Self { settings, snapshot, telemetry, relay, census, bindings, proofs, ender, rechecks, leaving, scratch }
    }
}

pub type Rechecks = watch::Receiver<Option<Arc<Snapshot>>>;

/// Waits for the next policy that live flows are to be judged again by.
pub async fn next_policy(rechecks: &mut Rechecks) -> Arc<Snapshot> {
    loop {
        if rechecks.changed().await.is_err() {
            // Nobody is left to tell of one.
            return std::future::pending().await;
        }
        if let Some(policy) = &*rechecks.borrow_and_update() {
            return policy.clone();
        }
    }
}

/// Counts the flows of all workers, and what is held of them.
#[derive(Debug, Default)]
pub struct Census {
    live: AtomicUsize,
    held: AtomicUsize,
    last_id: AtomicU64,
    /// Asks all workers for their flows.
    pub inquiries: Inquiries,
    /// By client.
    of: [Mutex<HashMap<IpAddr, Own>>; SHARDS],
}

/// What there is of one client.
#[derive(Debug, Default)]
struct Own {
    flows: usize,
    held: usize,
}

/// A flow's place among the limited number, with the octets that are held of it; free again when dropped.
#[derive(Debug)]
pub struct Place {
    census: Arc<Census>,
    client: IpAddr,
    held: usize,
    /// Of all flows together.
    most_held: usize,
}

impl Census {
    /// A place for one more flow of a client, unless all are taken, or those of this client.
    pub fn enter(self: &Arc<Self>, client: IpAddr, settings: &Settings) -> Option<Place> {
        if self.live.fetch_add(1, Ordering::Relaxed) >= settings.flows {
            self.live.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let client = client.to_canonical();
        // From here on the place gives back what was taken.
        let place = Place { census: self.clone(), client, held: 0, most_held: settings.held };
        let mut of = self.shard(client);
        let own = of.entry(client).or_default();
        own.flows += 1;
        let is_free = own.flows <= settings.flows_of_one;
        drop(of);
        is_free.then_some(place)
    }

    fn shard(&self, client: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, Own>> {
        let last = match client {
            IpAddr::V4(client) => client.octets()[3],
            IpAddr::V6(client) => client.octets()[15],
        };
        let [first, ..] = &self.of;
        // A count that a panic left behind is still the count.
        self.of.get(usize::from(last) % SHARDS).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Octets of flows that wait for a verdict, or for their receiver.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Place {
    /// So many octets of the flow are held now; false if there is no room for more than were.
    pub fn hold(&mut self, octets: usize) -> bool {
        if octets == self.held {
            return true;
        }
        let mut of = self.census.shard(self.client);
        // There since the flow has its place.
        let own = of.entry(self.client).or_default();
        if octets > self.held {
            let more = octets - self.held;
            let all = self.census.held.fetch_add(more, Ordering::Relaxed) + more;
            if all > self.most_held || own.held + more > self.most_held / SHARES {
                self.census.held.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
            own.held += more;
        } else {
            let less = self.held - octets;
            self.census.held.fetch_sub(less, Ordering::Relaxed);
            own.held -= less;
        }
        drop(of);
        self.held = octets;
        true
    }

    /// Holds up to `most` octets more, as far as there is room: so many. For what the receiver may not take at once, and
    /// from half the room alone: slow receivers must not cost the beginnings of flows theirs.
    pub fn lend(&mut self, most: usize) -> usize {
        let mut of = self.census.shard(self.client);
        let own = of.entry(self.client).or_default();
        let half = self.most_held / 2;
        let free = half.saturating_sub(self.census.held.load(Ordering::Relaxed));
        let more = most.min(free).min((half / SHARES).saturating_sub(own.held));
        self.census.held.fetch_add(more, Ordering::Relaxed);
        own.held += more;
        drop(of);
        self.held += more;
        more
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hold(0);
        self.census.live.fetch_sub(1, Ordering::Relaxed);
        if let Entry::Occupied(mut own) = self.census.shard(self.client).entry(self.client) {
            own.get_mut().flows -= 1;
            if own.get().flows == 0 {
                own.remove();
            }
        }
    }
}

const SHARDS: usize = 16;
/// Of so many shares of what may be held one client has no more than one.
const SHARES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flows: usize, flows_of_one: usize, held: usize) -> Settings {
        Settings { flows, flows_of_one, held, ..Settings::default() }
    }

    #[test]
    fn neither_one_client_nor_all_together_have_more_held_than_there_is_room_for() {
        let census = Arc::new(Census::default());
        let settings = settings(100, 100, 400);
        let clients: Vec<IpAddr> = (1..6).map(|n| IpAddr::from([10, 1, 0, n])).collect();
        let enter = |client: usize| census.enter(clients[client], &settings).unwrap();
        let (mut one, mut two) = (enter(0), enter(0));
        assert!(one.hold(60) && two.hold(40) && !two.hold(41) && one.hold(50) && two.hold(50));
        assert_eq!(census.held(), 100);
        let mut others: Vec<_> = (1..4).map(enter).collect();
        assert!(others.iter_mut().all(|other| other.hold(100)));
        assert!(!enter(4).hold(1), "all together");
        drop(one);
        assert!(enter(4).hold(50));
        drop((two, others));
        assert_eq!((census.held(), census.live()), (0, 0));
        assert!(census.of.iter().all(|of| of.lock().unwrap().is_empty()));
    }

    #[test]
    fn half_of_the_room_is_lent_and_the_other_half_left_for_beginnings() {
        let census = Arc::new(Census::default());
        let settings = settings(100, 100, 800);
        let clients: Vec<IpAddr> = (1..7).map(|n| IpAddr::from([10, 1, 0, n])).collect();
        let mut places: Vec<_> = clients.iter().map(|client| census.enter(*client, &settings).unwrap()).collect();
        let lent: Vec<_> = places.iter_mut().map(|place| (place.lend(60), place.lend(60), place.lend(60))).collect();
        assert_eq!(lent[..4], [(60, 40, 0); 4], "half of a client's share");
        assert_eq!(lent[4..], [(0, 0, 0); 2], "half of it all");
        assert!(places[0].hold(200) && !places[0].hold(201) && places[4].hold(200), "of the other half");
        assert!(places[0].hold(30));
        drop(places);
        assert_eq!(census.held(), 0);
    }

    #[test]
    fn neither_one_client_nor_all_together_have_more_places_than_there_are() {
        let census = Arc::new(Census::default());
        let clients = ["10.1.0.2", "fd00:1::2", "10.1.0.18"].map(|client| client.parse::<IpAddr>().unwrap());
        let settings = settings(3, 2, 0);
        let enter = |client: usize| census.enter(clients[client], &settings);
        let mapped = "::ffff:10.1.0.2".parse().unwrap();
        let (first, second) = (enter(0).unwrap(), census.enter(mapped, &settings).unwrap());
        assert!(enter(0).is_none() && enter(0).is_none(), "a refusal takes nothing");
        let third = enter(1).unwrap();
        assert!(enter(2).is_none());
        drop(first);
        assert!(enter(0).is_some());
        drop((second, third));
        assert_eq!(census.live(), 0);
        assert!(census.of.iter().all(|of| of.lock().unwrap().is_empty()));
    }
}
