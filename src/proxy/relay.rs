//! Allowed flows: octets from one socket to the other until both sides have ended.
//!
//! One relay serves all flows of a worker over one epoll instance. An idle flow holds its two descriptors and some
//! 300 octets; pipes and buffers are lent to it for a turn. A reset on one side resets the other.

mod flow;
pub mod half;
mod live;
mod table;
pub mod watched;

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use self::flow::{Flow, connection};
use self::half::{Half, Turn};
use self::table::Table;
use self::watched::Watched;
use super::flow::Closing;
use super::worker::Place;
use crate::policy::DropAction;
use crate::policy::snapshot::Snapshot;
use crate::sys::epoll::{Epoll, URGENT};
use crate::sys::readable::{Raw, readable};
use crate::sys::tcp;
use crate::telemetry::Telemetry;

#[derive(Clone, Debug)]
pub struct Settings {
    /// A flow on which nothing moves for so long is reset. Default 5 min.
    pub idle: Duration,
    /// A server that has not answered for so long is unreachable. Default 15 s.
    pub connect: Duration,
}

/// How a relayed flow came to its end: the word for `closed_by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// Both sides ended in order, the client first.
    Client,
    /// Both sides ended in order, the server first.
    Server,
    ClientReset,
    ServerReset,
    /// The server refused the connection.
    Refused,
    /// No route, no answer in time, or no socket to ask with.
    Unreachable,
    Idle,
    /// A later request or a new policy forbids the flow.
    Policy,
    /// There is no room to hold more of what it asks for later.
    Limit,
    /// tidegate is ending.
    Shutdown,
}

/// Why a flow is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Closed(ClosedBy),
    /// A later request is forbidden: the client sees the Network's drop action.
    Refused(DropAction),
}

/// Ends a client's connection with a drop action.
pub type Refuse = Box<dyn Fn(OwnedFd, DropAction)>;

/// What the relay needs to take over a judged flow.
#[derive(Debug)]
pub struct Handover {
    pub client: OwnedFd,
    pub server: OwnedFd,
    /// What was read from the client while it was judged, and may go.
    pub held: Box<[u8]>,
    /// What is still looked at; then `held` is empty, and the watch has what was read.
    pub watched: Option<Box<Watched>>,
    pub closing: Box<Closing>,
    pub place: Place,
}

pub struct Relay {
    epoll: AsyncFd<Raw<Epoll>>,
    table: std::cell::RefCell<Table>,
    settings: Settings,
    telemetry: Telemetry,
    refuse: Refuse,
    started: Instant,
    /// The last policy that live flows were judged again by.
    policy: std::cell::RefCell<Option<Arc<Snapshot>>>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Relay {
    pub fn new(settings: Settings, telemetry: Telemetry, refuse: Refuse) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            epoll: readable(Epoll::new()?)?,
            table: std::cell::RefCell::default(),
            settings,
            telemetry,
            refuse,
            started: Instant::now(),
            policy: std::cell::RefCell::default(),
        }))
    }

    /// Takes over a flow whose server is being dialled.
    pub fn begin(&self, handover: Handover) {
        let Handover { client, server, held, watched, closing, place } = handover;
        let flow = Flow {
            client,
            server,
            connected: false,
            up: Half::holding(held),
            down: Half::default(),
            first_end: None,
            last_moved: self.seconds(),
            closing,
            watched,
            place,
        };
        let mut table = self.table.borrow_mut();
        let slot = table.insert(flow);
        let Some(flow) = table.flows.get(slot).and_then(Option::as_ref) else { return };
        let epoll = &self.epoll.get_ref().0;
        let watched = epoll
            .watch(&flow.server, key(slot, Side::Server))
            .and_then(|()| epoll.watch(&flow.client, key(slot, Side::Client)));
        if watched.is_err() {
            return self.end(&mut table, slot, ClosedBy::Unreachable);
        }
        // It may have been let in by a policy that another has replaced since.
        if let Some(policy) = self.policy.borrow().as_ref() {
            self.judge_again(&mut table, slot, policy);
        }
    }

    /// Ends the flows that a policy forbids; the others are under it from now on, in all that they still ask for.
    pub fn recheck(&self, policy: &Arc<Snapshot>) {
        let mut table = self.table.borrow_mut();
        for slot in 0..table.flows.len() {
            self.judge_again(&mut table, slot, policy);
        }
        self.policy.replace(Some(policy.clone()));
    }

    fn judge_again(&self, table: &mut Table, slot: usize, policy: &Arc<Snapshot>) {
        let Some(flow) = table.flows.get_mut(slot).and_then(Option::as_mut) else { return };
        if let Some(action) = flow.closing.judge_again(policy) {
            return self.refuse(table, slot, action);
        }
        if let Some(watched) = &mut flow.watched {
            watched.flow.adopt(policy);
        }
    }

    /// Serves the flows for as long as the worker lives.
    pub async fn run(self: Rc<Self>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut keys = Vec::new();
        loop {
            if self.table.borrow().again.is_empty() {
                tokio::select! {
                    biased;
                    ready = self.epoll.readable() => {
                        let Ok(mut ready) = ready else { return };
                        if !self.serve(&mut keys) {
                            ready.clear_ready();
                        }
                    }
                    _ = sweep.tick() => self.sweep(),
                }
            } else {
                self.serve_again();
                self.serve(&mut keys);
            }
            // Bulk must not starve new flows on this worker.
            tokio::task::yield_now().await;
        }
    }

    /// Ends every flow.
    pub fn end_all(&self, why: ClosedBy) {
        let mut table = self.table.borrow_mut();
        (0..table.flows.len()).for_each(|slot| self.end(&mut table, slot, why));
    }

    pub fn is_empty(&self) -> bool {
        self.table.borrow().is_empty()
    }

    /// Serves one batch of ready sockets; false if there was none.
    fn serve(&self, keys: &mut Vec<u64>) -> bool {
        if self.epoll.get_ref().0.ready(keys).is_err() || keys.is_empty() {
            return false;
        }
        let mut table = self.table.borrow_mut();
        for key in keys.iter() {
            let (slot, side) = (((key & !URGENT) >> 1) as usize, side_of(*key));
            if key & URGENT != 0
                && let Some(flow) = table.flows.get_mut(slot).and_then(Option::as_mut)
            {
                flow.half_from(side).copies = true;
            }
            self.turn(&mut table, slot, Some(side));
        }
        true
    }

    fn serve_again(&self) {
        let mut table = self.table.borrow_mut();
        for slot in std::mem::take(&mut table.again) {
            self.turn(&mut table, slot, None);
        }
    }

    fn turn(&self, table: &mut Table, slot: usize, event: Option<Side>) {
        let now = self.seconds();
        let Table { flows, pool, scratch, again, .. } = &mut *table;
        let Some(flow) = flows.get_mut(slot).and_then(Option::as_mut) else { return };
        if !flow.connected {
            if event != Some(Side::Server) {
                return;
            }
            if let Err(why) = connection(flow) {
                return self.end(table, slot, why);
            }
            flow.connected = true;
        }
        match flow.turn(pool, scratch, now, &self.telemetry) {
            Ok(Turn::Waiting) => {}
            Ok(Turn::Again) => again.push(slot),
            Ok(Turn::Finished) => {
                let why = flow.first_end.unwrap_or(ClosedBy::Client);
                self.end(table, slot, why);
            }
            Err(Over::Closed(why)) => self.end(table, slot, why),
            Err(Over::Refused(action)) => self.refuse(table, slot, action),
        }
    }

    fn refuse(&self, table: &mut Table, slot: usize, action: DropAction) {
        let Some(flow) = self.forget(table, slot, ClosedBy::Policy) else { return };
        tcp::reset(flow.server);
        (self.refuse)(flow.client, action);
    }

    fn sweep(&self) {
        let now = self.seconds();
        let mut table = self.table.borrow_mut();
        for slot in 0..table.flows.len() {
            let Some(Some(flow)) = table.flows.get(slot) else { continue };
            let still = Duration::from_secs(now.saturating_sub(flow.last_moved).into());
            if !flow.connected && still > self.settings.connect {
                self.end(&mut table, slot, ClosedBy::Unreachable);
            } else if flow.connected && still > self.settings.idle {
                self.end(&mut table, slot, ClosedBy::Idle);
            }
        }
    }

    fn end(&self, table: &mut Table, slot: usize, why: ClosedBy) {
        let Some(flow) = self.forget(table, slot, why) else { return };
        if !matches!(why, ClosedBy::Client | ClosedBy::Server) {
            tcp::reset(flow.client);
            tcp::reset(flow.server);
        }
    }

    /// Takes a flow out and records its end. Its sockets are the caller's to close.
    fn forget(&self, table: &mut Table, slot: usize, why: ClosedBy) -> Option<Sockets> {
        let flow = *table.remove(slot)?;
        self.record_end(&flow.closing, flow.up.moved, flow.down.moved, why);
        Some(Sockets { client: flow.client, server: flow.server })
    }

    /// Records an allowed flow for which not even a socket to dial with could be had.
    pub fn end_undialled(&self, closing: &Closing) {
        self.record_end(closing, 0, 0, ClosedBy::Unreachable);
    }

    fn record_end(&self, closing: &Closing, bytes_out: u64, bytes_in: u64, why: ClosedBy) {
        if matches!(why, ClosedBy::Refused | ClosedBy::Unreachable) {
            self.telemetry.count(|c| &c.unreachable);
        }
        self.telemetry.record(closing.record(bytes_out, bytes_in, why.as_str()));
    }

    /// Seconds since the relay began: a coarse clock that costs four octets a flow.
    fn seconds(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

/// The sockets of a flow that is out of the table.
struct Sockets {
    client: OwnedFd,
    server: OwnedFd,
}

impl ClosedBy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::ClientReset => "client-reset",
            Self::ServerReset => "server-reset",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Idle => "idle",
            Self::Policy => "policy",
            Self::Limit => "limit",
            Self::Shutdown => "shutdown",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

fn key(slot: usize, side: Side) -> u64 {
    (slot as u64) << 1 | u64::from(side == Side::Server)
}

fn side_of(key: u64) -> Side {
    if key & 1 == 1 { Side::Server } else { Side::Client }
}

/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{ClientAddr, OrigDst, Transport};
    use crate::proxy::worker::{self, Census};
    use crate::telemetry::Queue;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    /// Relays `flow`s between two programs, each on a thread of its own, and returns the records of their ends.
    fn relay(settings: Settings, flows: Vec<(&[u8], Program, Program)>) -> Vec<serde_json::Value> {
        let (queue, writer) = Queue::new(1000);
        let telemetry = Telemetry::new(queue.clone());
        let census = Arc::new(Census::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut programs = Vec::new();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let relay = Relay::new(settings, telemetry, Box::new(|client, _| tcp::reset(client))).unwrap();
            let running = tokio::task::spawn_local(relay.clone().run());
            for (held, client, server) in flows {
                let (client_end, client_socket) = connected();
                let (server_socket, server_end) = connected();
                client_socket.set_nonblocking(true).unwrap();
                server_socket.set_nonblocking(true).unwrap();
                for socket in [&client_socket, &server_socket] {
                    socket2::SockRef::from(socket).set_out_of_band_inline(true).unwrap();
                }
                programs.push(std::thread::spawn(move || client(client_end)));
                programs.push(std::thread::spawn(move || server(server_end)));
                relay.begin(Handover {
                    client: client_socket.into(),
                    server: server_socket.into(),
                    held: held.into(),
                    watched: None,
                    closing: closing(),
                    place: census.enter([127, 0, 0, 1].into(), &worker::Settings::default()).unwrap(),
                });
            }
            while !relay.is_empty() {
                tokio::task::yield_now().await;
            }
            assert_eq!(census.live(), 0);
            assert!(!running.is_finished());
        });
        programs.into_iter().for_each(|program| program.join().unwrap());
        queue.close();
        let mut text = Vec::new();
        writer.run(&mut text);
        String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    type Program = Box<dyn FnOnce(TcpStream) + Send>;

    fn program(run: impl FnOnce(TcpStream) + Send + 'static) -> Program {
        Box::new(run)
    }

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        }
        (near, far)
    }

    fn closing() -> Box<Closing> {
        let nowhere = ([192, 0, 2, 1], 1).into();
        let snapshot = Arc::new(Snapshot::new("e".into(), 1, Vec::new()));
        let (client, orig_dst) = (ClientAddr(nowhere), OrigDst(nowhere));
        let flow = super::super::flow::Flow::new(1, Transport::Tcp, client, orig_dst, snapshot, Arc::default());
        flow.judge(None, &Telemetry::new(Queue::new(1).0)).closing
    }

    fn settings() -> Settings {
        Settings { idle: Duration::from_secs(60), connect: Duration::from_secs(60) }
    }

    fn read_all(mut socket: &TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        all
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn held_octets_come_first_and_each_half_ends_on_its_own() {
        let records = relay(
            settings(),
            vec![(
                b"hello ".as_slice(),
                program(|mut socket| {
                    socket.write_all(b"world").unwrap();
                    socket.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(read_all(&socket), b"HELLO WORLD");
                }),
                program(|mut socket| {
                    let said = read_all(&socket);
                    socket.write_all(&said.to_ascii_uppercase()).unwrap();
                }),
            )],
        );
        assert_eq!(records[0]["bytes_out"], 11);
        assert_eq!(records[0]["bytes_in"], 11);
        assert_eq!(records[0]["closed_by"], "client");
    }

    #[test]
    fn bulk_with_urgent_octets_in_it_arrives_whole() {
        const PIECE: usize = 3_000_000;
        let flows = (1..=4).map(|seed| {
            let client = program(move |mut socket| {
                for piece in 0..3 {
                    socket.write_all(&noise(PIECE, seed + piece)).unwrap();
                    assert_eq!(socket2::SockRef::from(&socket).send_out_of_band(b"!").unwrap(), 1);
                }
                socket.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_all(&socket), b"all of it");
            });
            let server = program(move |mut socket| {
                let expected = (0..3).flat_map(|piece| [noise(PIECE, seed + piece), b"!".to_vec()].concat());
                assert!(read_all(&socket) == expected.collect::<Vec<_>>(), "the octets differ");
                socket.write_all(b"all of it").unwrap();
            });
            (&[][..], client, server)
        });
        relay(settings(), flows.collect());
    }

    #[test]
    fn bulk_arrives_whole_both_ways_at_once_through_many_flows() {
        let flows = (1..=8)
            .map(|seed| {
                let exchange = move |own: u64, theirs: u64| {
                    program(move |socket| {
                        let sender = socket.try_clone().unwrap();
                        let sending = std::thread::spawn(move || {
                            (&sender).write_all(&noise(6_000_001, own)).unwrap();
                            sender.shutdown(Shutdown::Write).unwrap();
                        });
                        assert!(read_all(&socket) == noise(6_000_001, theirs), "the octets differ");
                        sending.join().unwrap();
                    })
                };
                (&[][..], exchange(seed, seed + 100), exchange(seed + 100, seed))
            })
            .collect();
        let records = relay(settings(), flows);
        assert_eq!(records.len(), 8);
        assert!(records.iter().all(|r| r["bytes_out"] == 6_000_001 && r["bytes_in"] == 6_000_001));
    }

    #[test]
    fn a_reset_on_one_side_resets_the_other() {
        let reset = |socket: TcpStream| {
            // Waits for the first octet so that the flow is up, then resets.
            let _ = (&socket).read(&mut [0; 1]).unwrap();
            socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        };
        let is_reset = |mut socket: TcpStream| {
            socket.write_all(b"x").unwrap();
            let error = socket.read(&mut [0; 16]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        };
        let records = relay(
            settings(),
            vec![(&[][..], program(is_reset), program(reset)), (&[][..], program(reset), program(is_reset))],
        );
        let mut closed: Vec<_> = records.iter().map(|r| r["closed_by"].as_str().unwrap()).collect();
        closed.sort_unstable();
        assert_eq!(closed, ["client-reset", "server-reset"]);
    }

    #[test]
    fn an_idle_flow_is_reset_and_its_record_says_so() {
        let sees_reset = || program(|mut socket| assert!(socket.read(&mut [0; 1]).is_err()));
        let records = relay(
            Settings { idle: Duration::ZERO, connect: Duration::from_secs(60) },
            vec![(&[][..], sees_reset(), sees_reset())],
        );
        assert_eq!(records[0]["closed_by"], "idle");
    }

    #[test]
    fn an_idle_flow_costs_little_memory() {
        let octets = size_of::<Flow>() + size_of::<Closing>();
        assert!(octets <= 384, "{octets} octets");
    }
}
