//! UDP flows, from their capture to the kernel's hands.
//!
//! ```text
//! first datagrams are held -> peek -> judge -> pass:  sent on from the client's own address, in order, then the kernel
//!                                                     forwards the flow; long headers keep coming here
//!                                           -> block: ICMP or silence at once, and the kernel answers the rest
//! ```
//!
//! Long headers are not all that keeps coming: so do packets in which the kernel carries several datagrams as one (UDP
//! segmentation offload, over veth and virtio), since it sees no more than the first of them. The others are read here.
//!
//! No task, socket or timer belongs to a single flow: a listener's datagrams are read, judged and sent in batches.
//!
//! Fails closed: what finds no room, in the table, in memory or in time, is dropped and counted; nothing reaches the
//! remote before the verdict. Where the kernel does not take over an allowed flow, its datagrams are sent on from here.

mod accounts;
mod association;
mod hands;
mod relay;
mod table;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use self::association::Association;
use self::hands::Hands;
use self::table::Table;
use super::flow::Flow;
use super::worker::{Worker, next_policy};
use crate::firewall::FlowKey;
use crate::policy::{ClientAddr, OrigDst, Transport};
use crate::sys::readable::readable;
use crate::sys::udp::{self, Datagram, Inbox, Outbox};

/// Limits of one listener; a worker has one for each address family.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Flows that are remembered; past it the longest settled ones are forgotten, and new ones are dropped while none is
    /// settled. Default 65,536.
    pub flows: usize,
    /// Flows of one client address that await a verdict; more are dropped. Default 1,024.
    pub per_client: usize,
    /// Octets of all flows that are held before their verdicts; a datagram past it is dropped. Default 32 MiB.
    pub held: usize,
    /// The same of one client address. Default 8 MiB.
    pub held_of_client: usize,
    /// Octets of one flow that are held; one past it is unreadable. Default 128 KiB.
    pub held_of_flow: usize,
    /// Octets of hellos of all flows that are kept for comparison as long as their flows are; a connection past it is
    /// unreadable. Default 256 MiB.
    pub remembered: usize,
    /// The same of one client address. Default 32 MiB.
    pub remembered_of_client: usize,
    /// QUIC connections of one flow that are remembered; a new one past it is dropped. Default 8.
    pub connections: usize,
    /// Allowed flows whose octets the kernel counts at a time; one past it gets no `end` record. Default 65,536.
    pub counted: usize,
    /// How long a flow is remembered here after its last captured datagram. Default 60 s.
    pub memory: Duration,
    /// How long the kernel forwards a flow that has sent nothing more yet. Default 30 s.
    pub forwarded: Duration,
    /// How long a blocked flow is blocked without being looked at again. Default 10 s.
    pub blocked: Duration,
    /// The same of a flow that passed and that a later policy has ended: longer than a QUIC connection goes on asking.
    /// Default 5 min.
    pub ended: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            flows: 65_536,
            per_client: 1_024,
            held: 32 << 20,
            held_of_client: 8 << 20,
            held_of_flow: 128 << 10,
            remembered: 256 << 20,
            remembered_of_client: 32 << 20,
            connections: 8,
            counted: 65_536,
            memory: Duration::from_secs(60),
            forwarded: Duration::from_secs(30),
            blocked: Duration::from_secs(10),
            ended: ENDED,
        }
    }
}

/// For so long a flow is blocked that passed and that a later policy has ended.
pub const ENDED: Duration = Duration::from_secs(300);

/// How allowed flows go on.
#[derive(Debug)]
pub enum Way {
    /// Sent on from the client's own address, then forwarded by the kernel.
    Kernel,
    /// By sockets of this host, and answered by way of an outbox of the client's namespace.
    Relay(Outbox),
}

/// A listener and its flows.
#[derive(Debug)]
struct Service {
    worker: Rc<Worker>,
    own: SocketAddr,
    table: Table,
    hands: Hands,
}

/// Takes datagrams from a listener for as long as the worker lives.
pub async fn serve(worker: Rc<Worker>, listener: UdpSocket, settings: Settings, way: Way) -> io::Result<()> {
    let own = listener.local_addr()?;
    let hands = Hands::new(worker.clone(), settings.clone(), way)?;
    let mut service = Service { worker, own, table: Table::new(settings), hands };
    let listener = readable(OwnedFd::from(listener))?;
    let mut inbox = Inbox::new(udp::MAX_BATCH, MAX_DATAGRAM);
    let mut hearing = service.worker.census.inquiries.hear();
    let mut rechecks = service.worker.rechecks.clone();
    let mut leaving = service.worker.leaving.clone();
    loop {
        let wake = [service.table.next_wake(), service.hands.next_wake()].into_iter().flatten().min();
        let wake = tokio::time::Instant::from_std(wake.unwrap_or_else(|| Instant::now() + IDLE));
        tokio::select! {
            ready = listener.readable(), if !*service.worker.leaving.borrow() => {
                let mut ready = ready?;
                if service.receive(&listener.get_ref().0, &mut inbox) {
                    ready.clear_ready();
                }
            }
            answered = service.hands.answered() => {
                answered?;
                service.hands.carry_answers();
            }
            inquiry = hearing.next() => {
                let flows = service.hands.live(inquiry.most);
                inquiry.answer(flows);
            }
            policy = next_policy(&mut rechecks) => {
                service.table.recheck(&policy, Instant::now(), &mut service.hands);
            }
            _ = leaving.wait_for(|leaving| *leaving), if !*service.worker.leaving.borrow() => {}
            () = tokio::time::sleep_until(wake) => {}
        }
        let now = Instant::now();
        service.table.expire(now, &mut service.hands);
        service.hands.conclude_ended(now);
        service.hands.flush();
        service.hands.hand_over();
        // Other flows of this worker have their turn.
        tokio::task::yield_now().await;
    }
}

impl Service {
    /// Takes in a few batches; true if nothing is left.
    fn receive(&mut self, listener: &OwnedFd, inbox: &mut Inbox) -> bool {
        for _ in 0..BATCHES {
            let count = match inbox.receive(listener) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // No memory, say: the next datagram may find some.
                Err(_) => {
                    self.worker.telemetry.count(|c| &c.datagrams_dropped);
                    return true;
                }
            };
            let now = Instant::now();
            for datagram in inbox.datagrams() {
                self.datagram(&datagram, now);
            }
            self.hands.flush();
            if count < udp::MAX_BATCH {
                return true;
            }
        }
        false
    }

    fn datagram(&mut self, datagram: &Datagram<'_>, now: Instant) {
        // What was sent to the listener itself was captured by nobody.
        let Some(to) = datagram.to.filter(|to| *to != self.own && !datagram.truncated) else {
            return self.worker.telemetry.count(|c| &c.ended_before_verdict);
        };
        let key = FlowKey { transport: Transport::Udp, client: datagram.from, remote: to };
        let worker = &self.worker;
        let new = || {
            worker.telemetry.count(|c| &c.flows);
            let flow = Flow::new(
                worker.census.next_id(),
                Transport::Udp,
                ClientAddr(key.client),
                OrigDst(key.remote),
                worker.snapshot.load_full(),
                worker.bindings.clone(),
            );
            flow.record_hold(&worker.telemetry);
            Association::new(flow, key)
        };
        let taken = self.table.with(&key, now, &mut self.hands, new, |association, hands| {
            association.datagram(datagram.bytes, now, hands);
        });
        if taken.is_err() {
            self.worker.telemetry.count(|c| &c.refused_by_limit);
        }
    }
}

/// The longest payload of UDP over IPv4 without options, and more than anybody sends.
const MAX_DATAGRAM: usize = 65_535;
/// Batches between two looks at other flows of the worker.
const BATCHES: usize = 4;
/// How long to sleep when no flow waits for anything.
const IDLE: Duration = Duration::from_secs(3600);
