//! What the datagrams of a UDP flow say about its name: QUIC, something like QUIC, or neither.
//!
//! One flow may carry several QUIC connections, and each is judged by its own hello: a [`Connection`] begins with
//! an Initial packet that opens with the keys of its own destination connection ID, and keeps those keys when the
//! client turns to the ID that the server chose. What follows a Retry is a connection of its own.
//!
//! Every datagram depends on a [`Subject`], and passes once that subject has been judged to pass. The hello is kept
//! after the verdict: whoever says something else later in its place gets no further than here.
//!
//! Fails closed. A datagram with an Initial packet that cannot be opened passes only where the server cannot open it
//! either; a version that nobody here reads, and short headers where no connection was seen to begin, are
//! [`Outcome::Unreadable`]. Given up: an unknown version whose first packet also clears the fixed bit (RFC 9287) is
//! taken for no QUIC, since RTP looks the same.

mod connection;

use std::time::{Duration, Instant};

use connection::{Connection, Finding};

use super::{Discovery, Outcome, Unreadable, Via};
use crate::wire::Malformed;
use crate::wire::quic::{ConnectionId, Kind, LongHeader, Packet, packet};

/// Limits of a flow's peek.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// After so many datagrams in which no hello begins, the flow is judged without one (SPEC I4).
    pub packets: u32,
    /// QUIC connections of one flow that are remembered at a time.
    pub connections: usize,
}

/// What a datagram's passage depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// That anything of the flow has passed.
    Flow,
    /// That what cannot be read may pass.
    Unreadable,
    /// A QUIC connection, by its number in the flow.
    Connection(u32),
    /// No room was left to remember its connection.
    Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Pending,
    Pass,
    Block,
}

/// What became of a datagram.
#[derive(Debug)]
pub struct Reading {
    /// Ask [`UdpPeek::status`] of it, now and after each judgement.
    pub depends_on: Subject,
    /// To be judged, and the outcome given to [`UdpPeek::settle`].
    pub judge: Option<(Subject, Discovery)>,
}

/// The peek at one UDP flow.
#[derive(Debug, Default)]
pub struct UdpPeek {
    connections: Vec<Connection>,
    begun: u32,
    /// Datagrams in which no hello begins.
    aimless: u32,
    /// It looks like QUIC, and this is why it could not be read.
    suspicion: Option<Unreadable>,
    unreadable: Option<bool>,
    open: bool,
}

/// The Initial packets of one datagram.
#[derive(Default)]
struct Initials {
    /// The connection that they belong to.
    of: Option<u32>,
    /// More than one connection, or more packets than anybody coalesces.
    mixed: bool,
    full: bool,
    /// The destinations of those that did not open.
    sealed: [Option<ConnectionId>; MAX_SEALED],
    finding: Option<Finding>,
}

/// What a datagram is by its first packet.
enum Look {
    Foreign,
    Short,
    UnknownVersion,
    Malformed(Malformed),
    /// Long headers, none of them Initial.
    Later,
    Initials(Initials),
}

impl UdpPeek {
    /// Reads a datagram of the client. `scratch` is memory to open packets in.
    pub fn datagram(&mut self, bytes: &[u8], now: Instant, budget: &Budget, scratch: &mut Vec<u8>) -> Reading {
        match self.look(bytes, now, budget, scratch) {
            Look::Foreign => self.aimless(Subject::Flow, None, budget),
            Look::Short => self.aimless(Subject::Flow, Some(SHORT), budget),
            Look::Malformed(malformed) => self.aimless(Subject::Unreadable, Some(malformed), budget),
            Look::UnknownVersion => Reading {
                depends_on: Subject::Unreadable,
                judge: self.unreadable.is_none().then(|| (Subject::Unreadable, unreadable(malformed(VERSION)))),
            },
            Look::Later => {
                self.suspicion.get_or_insert(malformed(NO_HELLO));
                Reading { depends_on: Subject::Flow, judge: None }
            }
            Look::Initials(initials) => self.initials(initials, budget),
        }
    }

    /// Whether what depends on `subject` may pass.
    pub fn status(&self, subject: Subject) -> Status {
        let passed = match subject {
            Subject::Flow => self.open.then_some(true),
            Subject::Unreadable if self.open => Some(self.unreadable == Some(true)),
            Subject::Unreadable => self.unreadable,
            Subject::Limit => Some(false),
            Subject::Connection(number) => match self.connection(number) {
                Some(connection) => connection.passed(),
                None => Some(false),
            },
        };
        match passed {
            None => Status::Pending,
            Some(true) => Status::Pass,
            Some(false) => Status::Block,
        }
    }

    /// The outcome of a judgement. Once anything has passed the flow is open, and only new connections are judged.
    pub fn settle(&mut self, subject: Subject, pass: bool) {
        match subject {
            Subject::Flow | Subject::Limit => {}
            Subject::Unreadable => self.unreadable = Some(pass),
            Subject::Connection(number) => {
                if let Some(connection) = self.connections.iter_mut().find(|own| own.number == number) {
                    connection.settle(pass);
                }
            }
        }
        self.open |= pass;
    }

    /// Something of the flow has passed.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Something waits for more datagrams.
    pub fn is_waiting(&self) -> bool {
        !self.open || self.connections.iter().any(Connection::is_pending)
    }

    /// The time to wait is over: what is to be judged as it stands.
    pub fn expire(&mut self) -> Vec<(Subject, Discovery)> {
        let pending: Vec<_> = self
            .connections
            .iter()
            .filter(|connection| connection.is_pending())
            .map(|connection| (Subject::Connection(connection.number), unreadable(connection.why_pending())))
            .collect();
        if pending.is_empty() && !self.open { vec![self.without_hello()] } else { pending }
    }

    /// More than may be held came before a verdict.
    pub fn overflow(&mut self) -> (Subject, Discovery) {
        match self.connections.iter().find(|connection| connection.is_pending()) {
            Some(connection) => (Subject::Connection(connection.number), unreadable(Unreadable::TooLong)),
            None => self.without_hello(),
        }
    }

    /// Octets of memory in use, beside a fixed part.
    pub fn weight(&self) -> usize {
        self.connections.iter().map(Connection::weight).sum()
    }

    fn aimless(&mut self, depends_on: Subject, why: Option<Malformed>, budget: &Budget) -> Reading {
        if !self.open {
            self.aimless += 1;
            if let Some(why) = why {
                self.suspicion.get_or_insert(malformed(why));
            }
        }
        let decide = !self.open && self.aimless >= budget.packets && self.connections.is_empty();
        Reading { depends_on, judge: decide.then(|| self.without_hello()) }
    }

    fn without_hello(&self) -> (Subject, Discovery) {
        match self.suspicion {
            Some(why) => (Subject::Unreadable, unreadable(why)),
            None => (Subject::Flow, Discovery::no_name(None)),
        }
    }

    fn initials(&mut self, initials: Initials, budget: &Budget) -> Reading {
        let sealed = initials.sealed.iter().flatten().any(|destination| !self.is_closed_to(destination));
        let Some(number) = initials.of else {
            if initials.full {
                return Reading { depends_on: Subject::Limit, judge: None };
            }
            return self.aimless(if sealed { Subject::Unreadable } else { Subject::Flow }, Some(SEALED), budget);
        };
        let subject = Subject::Connection(number);
        let depends_on = if sealed || initials.full { Subject::Unreadable } else { subject };
        let judge = match (initials.mixed, initials.finding) {
            (true, _) => Some((subject, unreadable(malformed(MIXED)))),
            (false, Some(Finding::Hello(discovery))) => Some((subject, *discovery)),
            (false, Some(Finding::Fault(why))) => Some((subject, unreadable(why))),
            (false, None) => None,
        };
        Reading { depends_on, judge }
    }

    fn look(&mut self, bytes: &[u8], now: Instant, budget: &Budget, scratch: &mut Vec<u8>) -> Look {
        let mut initials = Initials::default();
        let mut any = false;
        let mut rest = bytes;
        let mut first = true;
        while !rest.is_empty() {
            let long = match packet(rest) {
                Ok(Packet::Long(long)) => long,
                Ok(Packet::Foreign) if first => return Look::Foreign,
                Ok(Packet::Short) if first => return Look::Short,
                Ok(Packet::UnknownVersion) if first => return Look::UnknownVersion,
                Err(malformed) if first => return Look::Malformed(malformed),
                // A server that knows the version would read on.
                Ok(Packet::UnknownVersion) => {
                    initials.mixed = true;
                    break;
                }
                // Whoever receives it stops here too.
                Ok(Packet::Foreign | Packet::Short) | Err(_) => break,
            };
            if long.kind == Kind::Initial {
                any = true;
                self.initial(&long, &mut initials, now, budget, scratch);
            }
            first = false;
            rest = long.rest;
        }
        if any || initials.mixed { Look::Initials(initials) } else { Look::Later }
    }

    fn initial(
        &mut self,
        long: &LongHeader<'_>,
        initials: &mut Initials,
        now: Instant,
        budget: &Budget,
        scratch: &mut Vec<u8>,
    ) {
        let Some(number) = self.open_initial(long, initials, now, budget, scratch) else {
            match initials.sealed.iter_mut().find(|slot| slot.is_none()) {
                Some(slot) => *slot = Some(long.destination),
                None => initials.mixed = true,
            }
            return;
        };
        if initials.of.is_some_and(|other| other != number) {
            initials.mixed = true;
        }
        initials.of = Some(number);
    }

    /// Opens an Initial packet with the keys of the connection that it belongs to, or begins that connection.
    fn open_initial(
        &mut self,
        long: &LongHeader<'_>,
        initials: &mut Initials,
        now: Instant,
        budget: &Budget,
        scratch: &mut Vec<u8>,
    ) -> Option<u32> {
        let begun = self.connections.iter().position(|connection| connection.first == long.destination);
        for connection in self.connections.iter_mut().skip(begun.unwrap_or(0)) {
            if let Some(finding) = connection.initial(long, now, scratch) {
                initials.finding = initials.finding.take().or(finding);
                return Some(connection.number);
            }
            if begun.is_some() {
                return None;
            }
        }
        let (mut connection, finding) = Connection::begin(self.begun, long, now, scratch)?;
        if self.connections.len() >= budget.connections {
            self.connections.retain(|old| old.is_pending() || now.saturating_duration_since(old.used) < REMEMBERED);
        }
        if self.connections.len() >= budget.connections {
            initials.full = true;
            return None;
        }
        initials.finding = initials.finding.take().or(finding);
        connection.number = self.begun;
        self.begun = self.begun.wrapping_add(1);
        self.connections.push(connection);
        self.connections.last().map(|connection| connection.number)
    }

    /// Whether a server would give the packet to a connection that we know, and fail to open it as we did.
    fn is_closed_to(&self, destination: &ConnectionId) -> bool {
        self.connections.iter().any(|own| own.first == *destination && own.numbers_are_plain())
    }

    fn connection(&self, number: u32) -> Option<&Connection> {
        self.connections.iter().find(|own| own.number == number)
    }
}

fn unreadable(why: Unreadable) -> Discovery {
    Discovery::unreadable(Via::Quic, why)
}

fn malformed(what: Malformed) -> Unreadable {
    Unreadable::Malformed(what)
}

/// Nothing that ends in a handshake goes on for so long after its last Initial packet.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Packets that nobody can open, in one datagram.
const MAX_SEALED: usize = 8;

const SHORT: Malformed = Malformed { field: "a short header before any hello", section: "RFC 9000, 17.3" };
const SEALED: Malformed = Malformed { field: "an Initial packet that does not open", section: "RFC 9001, 5.2" };
const NO_HELLO: Malformed = Malformed { field: "no Initial packet", section: "RFC 9000, 7" };
const VERSION: Malformed = Malformed { field: "Version", section: "RFC 8999, 5.1" };
const MIXED: Malformed = Malformed { field: "coalesced packets", section: "RFC 9000, 12.2" };
