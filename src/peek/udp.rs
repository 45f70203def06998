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
//! [`Outcome::Unreadable`](super::Outcome). Given up: an unknown version whose first packet also clears the fixed bit (RFC 9287) is
//! taken for no QUIC, since RTP looks the same.

mod connection;

use std::time::{Duration, Instant};

use connection::{Connection, Finding};

use super::{Discovery, Unreadable, Via};
use crate::wire::Malformed;
use crate::wire::quic::{ConnectionId, Kind, LongHeader, Packet, packet};

/// Limits of a flow's peek.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// After so many datagrams in which no hello begins, the flow is judged without one (SPEC I4).
    pub packets: u32,
    /// QUIC connections of one flow that are remembered at a time.
    pub connections: usize,
    /// Fingerprints are wanted; they cost more than the name.
    pub fingerprints: bool,
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
    /// To be judged, each, and the outcome given to [`UdpPeek::settle`].
    pub judge: Vec<(Subject, Discovery)>,
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
    full: bool,
    /// The destinations of those that did not open.
    sealed: [Option<ConnectionId>; MAX_SEALED],
    /// There is more that a server could read and we cannot.
    obscure: bool,
    /// What they made known of each connection.
    findings: Vec<(u32, Finding)>,
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
                judge: match self.unreadable {
                    None => vec![(Subject::Unreadable, unreadable(malformed(VERSION)))],
                    Some(_) => Vec::new(),
                },
            },
            Look::Later => {
                self.suspicion.get_or_insert(malformed(NO_HELLO));
                Reading { depends_on: Subject::Flow, judge: Vec::new() }
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

    /// Connections that have begun until now.
    pub fn begun(&self) -> u32 {
        self.begun
    }

    /// What was blocked, and nothing passed of, is judged anew when it comes again.
    pub fn forget_blocked(&mut self) {
        self.connections.retain(|connection| !connection.was_kept_out());
        self.unreadable = self.unreadable.filter(|pass| *pass);
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
            .iter_mut()
            .filter(|connection| connection.is_pending())
            .map(|connection| {
                (Subject::Connection(connection.number), unreadable(connection.give_up(Unreadable::TimedOut)))
            })
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

    /// There is no memory for all that was said: the connection that takes the most is unreadable.
    pub fn forget(&mut self) -> Option<(Subject, Discovery)> {
        let connection = self.connections.iter_mut().max_by_key(|connection| connection.weight())?;
        Some((Subject::Connection(connection.number), unreadable(connection.give_up(Unreadable::TooLong))))
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
        Reading { depends_on, judge: if decide { vec![self.without_hello()] } else { Vec::new() } }
    }

    fn without_hello(&self) -> (Subject, Discovery) {
        match self.suspicion {
            Some(why) => (Subject::Unreadable, unreadable(why)),
            None => (Subject::Flow, Discovery::no_name(None)),
        }
    }

    fn initials(&mut self, initials: Initials, budget: &Budget) -> Reading {
        let sealed = initials.sealed.iter().flatten().any(|destination| !self.is_closed_to(destination));
        let obscure = sealed || initials.obscure;
        let Some(number) = initials.of else {
            if initials.full {
                return Reading { depends_on: Subject::Limit, judge: Vec::new() };
            }
            return self.aimless(if obscure { Subject::Unreadable } else { Subject::Flow }, Some(SEALED), budget);
        };
        let subject = Subject::Connection(number);
        let depends_on = if obscure || initials.full { Subject::Unreadable } else { subject };
        let judge = initials.findings.into_iter().map(|(number, finding)| match finding {
            Finding::Hello(discovery) => (Subject::Connection(number), *discovery),
            Finding::Fault(why) => (Subject::Connection(number), unreadable(why)),
        });
        Reading { depends_on, judge: judge.collect() }
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
                    initials.obscure = true;
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
        if any || initials.obscure { Look::Initials(initials) } else { Look::Later }
    }

    fn initial(
        &mut self,
        long: &LongHeader<'_>,
        initials: &mut Initials,
        now: Instant,
        budget: &Budget,
        scratch: &mut Vec<u8>,
    ) {
        let Some((number, finding)) = self.open_initial(long, initials, now, budget, scratch) else {
            match initials.sealed.iter_mut().find(|slot| slot.is_none()) {
                Some(slot) => *slot = Some(long.destination),
                None => initials.obscure = true,
            }
            return;
        };
        initials.note(number, finding);
        if let Some(other) = initials.of.replace(number).filter(|other| *other != number) {
            for connection in self.connections.iter_mut().filter(|own| [number, other].contains(&own.number)) {
                initials.note(connection.number, connection.fail(malformed(MIXED)));
            }
        }
    }

    /// Opens an Initial packet with the keys of the connection that it belongs to, or begins that connection.
    fn open_initial(
        &mut self,
        long: &LongHeader<'_>,
        initials: &mut Initials,
        now: Instant,
        budget: &Budget,
        scratch: &mut Vec<u8>,
    ) -> Option<(u32, Option<Finding>)> {
        let begun = self.connections.iter().position(|connection| connection.first == long.destination);
        for connection in self.connections.iter_mut().skip(begun.unwrap_or(0)) {
            if let Some(finding) = connection.initial(long, now, budget, scratch) {
                return Some((connection.number, finding));
            }
            if begun.is_some() {
                return None;
            }
        }
        let (connection, finding) = Connection::begin(self.begun, long, now, budget, scratch)?;
        if self.connections.len() >= budget.connections {
            self.connections.retain(|old| old.is_pending() || now.saturating_duration_since(old.used) < REMEMBERED);
        }
        if self.connections.len() >= budget.connections {
            initials.full = true;
            return None;
        }
        self.begun = self.begun.wrapping_add(1);
        let number = connection.number;
        self.connections.push(connection);
        Some((number, finding))
    }

    /// Whether a server would give the packet to a connection that we know, and fail to open it as we did.
    fn is_closed_to(&self, destination: &ConnectionId) -> bool {
        self.connections.iter().any(|own| own.first == *destination && own.numbers_are_plain())
    }

    fn connection(&self, number: u32) -> Option<&Connection> {
        self.connections.iter().find(|own| own.number == number)
    }
}

impl Initials {
    /// A fault outweighs a hello of the same connection, whichever came first.
    fn note(&mut self, number: u32, finding: Option<Finding>) {
        let Some(finding) = finding else { return };
        match self.findings.iter_mut().find(|(of, _)| *of == number) {
            None => self.findings.push((number, finding)),
            Some((_, noted)) if matches!(finding, Finding::Fault(_)) => *noted = finding,
            Some(_) => {}
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::peek::Outcome;
    use crate::wire::quic::Version;
    use crate::wire::quic::forge::{Initial, crypto, hello};

    const BUDGET: Budget = Budget { packets: 5, connections: 8, fingerprints: true };

    /// A peek, and the judge that lets `good.example` pass and nothing else.
    struct Flow {
        peek: UdpPeek,
        judged: Vec<(Subject, Discovery)>,
        now: Instant,
    }

    impl Flow {
        fn new() -> Self {
            Self { peek: UdpPeek::default(), judged: Vec::new(), now: Instant::now() }
        }

        fn put(&mut self, datagram: &[u8]) -> Status {
            let reading = self.peek.datagram(datagram, self.now, &BUDGET, &mut Vec::new());
            for (subject, discovery) in reading.judge {
                self.judge(subject, discovery);
            }
            self.peek.status(reading.depends_on)
        }

        fn judge(&mut self, subject: Subject, discovery: Discovery) {
            let good = matches!(&discovery.outcome, Outcome::Name(name) if name.as_str() == "good.example");
            self.peek.settle(subject, good);
            self.judged.push((subject, discovery));
        }

        fn outcomes(&self) -> Vec<String> {
            self.judged.iter().map(|(_, discovery)| outcome(discovery)).collect()
        }
    }

    fn outcome(discovery: &Discovery) -> String {
        match &discovery.outcome {
            Outcome::Name(name) => name.to_string(),
            Outcome::NoName => "-".to_owned(),
            Outcome::Unreadable(Unreadable::Malformed(what)) => format!("malformed {}", what.field),
            Outcome::Unreadable(Unreadable::Contradiction(what)) => format!("contradiction {}", what.field),
            Outcome::Unreadable(why) => format!("{why:?}"),
        }
    }

    /// The first hello that a flow of these datagrams shows, and after how many of them.
    fn found(datagrams: &[Vec<u8>]) -> Option<(usize, Discovery)> {
        let mut peek = UdpPeek::default();
        datagrams.iter().enumerate().find_map(|(index, datagram)| {
            let reading = peek.datagram(datagram, Instant::now(), &BUDGET, &mut Vec::new());
            Some((index + 1, reading.judge.into_iter().next()?.1))
        })
    }

    struct Flight {
        want: String,
        ja3: String,
        ja4: String,
        datagrams: Vec<Vec<u8>>,
    }

    fn flights() -> Vec<Flight> {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/quic-flights.txt"));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let flight = |line: &str| {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap().to_owned();
            let (want, ja3, ja4) = (word(), word(), word());
            Flight { want, ja3, ja4, datagrams: words.map(octets).collect() }
        };
        lines.map(flight).collect()
    }

    fn octets(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn captured_flights_show_their_names_and_fingerprints_in_any_order() {
        for Flight { want, ja3, ja4, mut datagrams } in flights() {
            for reversed in [false, true] {
                if reversed {
                    datagrams.reverse();
                }
                let found = found(&datagrams);
                match want.as_str() {
                    "?" | "!" => assert!(found.is_none(), "{found:?}"),
                    _ => {
                        let (_, discovery) = found.unwrap_or_else(|| panic!("{want} was not found"));
                        assert_eq!(outcome(&discovery), want);
                        assert_eq!(discovery.via, Some(Via::Quic));
                        let fingerprint = discovery.fingerprint.unwrap();
                        assert!(ja3 == "." || fingerprint.ja3 == ja3, "{want}: {fingerprint:?}, not {ja3}");
                        assert!(ja4 == "." || fingerprint.ja4 == ja4, "{want}: {fingerprint:?}, not {ja4}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_never_becomes_a_hello_is_unreadable_if_it_looked_like_quic_and_nameless_if_not() {
        for Flight { want, datagrams, .. } in
            flights().into_iter().filter(|flight| flight.want == "!" || flight.want == "?")
        {
            let mut flow = Flow::new();
            for datagram in &datagrams {
                assert_eq!(flow.put(datagram), Status::Pending);
            }
            let (_, discovery) = flow.peek.expire().remove(0);
            let quic = want == "?" || matches!(packet(&datagrams[0]), Ok(Packet::Short));
            assert_eq!(matches!(discovery.outcome, Outcome::Unreadable(_)), quic, "{discovery:?}");
        }
    }

    #[test]
    fn a_hello_is_found_octet_by_octet_backwards_over_ten_datagrams() {
        let hello = hello("good.example", 600);
        for version in [Version::V1, Version::V2, Version::Draft29] {
            let frames: Vec<Vec<u8>> = (0..hello.len()).rev().map(|at| crypto(at, &hello[at..=at])).collect();
            let datagrams: Vec<Vec<u8>> = frames
                .chunks(hello.len().div_ceil(10))
                .zip(0..)
                .map(|(frames, number)| Initial { version, number, ..Initial::USUAL }.seal(&frames.concat()))
                .collect();
            assert_eq!(datagrams.len(), 10);
            let (needed, discovery) = found(&datagrams).unwrap();
            assert_eq!((needed, outcome(&discovery).as_str()), (10, "good.example"));
        }
    }

    #[test]
    fn junk_before_and_between_does_not_hide_a_hello() {
        let hello = hello("bad.example", 900);
        let (start, end) = hello.split_at(500);
        let mut sealed = Initial { number: 9, ..Initial::USUAL }.seal(&[1]);
        *sealed.last_mut().unwrap() ^= 1;
        let other = Initial { first: b"another!", destination: b"nobody's", ..Initial::USUAL }.seal(&[1]);
        let short = [&[0x55; 1][..], &[0x9c; 60]].concat();
        let datagrams = [
            b"ping".to_vec(),
            short.clone(),
            other.clone(),
            [sealed.clone(), Initial::USUAL.seal(&crypto(0, start))].concat(),
            short.clone(),
            b"ping".to_vec(),
            other.clone(),
            [other, Initial { number: 1, ..Initial::USUAL }.seal(&crypto(500, end)), sealed, short].concat(),
        ];
        let (needed, discovery) = found(&datagrams).unwrap();
        assert_eq!((needed, outcome(&discovery).as_str()), (8, "bad.example"));
    }

    #[test]
    fn each_connection_of_a_flow_is_judged_by_its_own_hello() {
        let mut flow = Flow::new();
        let first = Initial::USUAL.seal(&crypto(0, &hello("good.example", 0)));
        assert_eq!(flow.put(&first), Status::Pass);
        let second = |name| {
            let initial = Initial { first: b"second-id", destination: b"second-id", ..Initial::USUAL };
            let hello = hello(name, 900);
            let (start, end) = hello.split_at(400);
            [initial.seal(&crypto(0, start)), initial.seal(&crypto(400, end))]
        };
        let [start, end] = second("bad.example");
        assert_eq!(flow.put(&start), Status::Pending);
        assert_eq!(flow.put(&end), Status::Block);
        assert_eq!(flow.put(&start), Status::Block);
        assert_eq!(flow.put(&first), Status::Pass);
        assert_eq!(flow.outcomes(), ["good.example", "bad.example"]);
    }

    #[test]
    fn a_new_destination_keeps_the_first_keys_and_after_a_retry_has_its_own() {
        let mut flow = Flow::new();
        let hello = hello("good.example", 0);
        assert_eq!(flow.put(&Initial::USUAL.seal(&crypto(0, &hello))), Status::Pass);
        let acknowledged = Initial { destination: b"server's", number: 1, ..Initial::USUAL };
        assert_eq!(flow.put(&acknowledged.seal(&[2, 0, 0, 0, 0])), Status::Pass);
        // Compatible version negotiation: the other version's keys, of the same connection ID (RFC 9368, section 2.3).
        let negotiated = Initial { version: Version::V2, number: 2, ..acknowledged };
        assert_eq!(flow.put(&negotiated.seal(&[2, 0, 0, 0, 0])), Status::Pass);
        assert_eq!(flow.judged.len(), 1);
        let retried = Initial { first: b"retry-id", destination: b"retry-id", token: b"token", ..Initial::USUAL };
        assert_eq!(flow.put(&retried.seal(&crypto(0, &hello))), Status::Pass);
        assert_eq!(flow.outcomes(), ["good.example", "good.example"]);
    }

    #[test]
    fn a_hello_cannot_be_changed_after_its_verdict() {
        let good = hello("good.example", 700);
        let bad = hello("evil.example", 700);
        let mut flow = Flow::new();
        assert_eq!(flow.put(&Initial::USUAL.seal(&crypto(0, &good))), Status::Pass);
        let other = Initial { destination: b"server's", number: 1, ..Initial::USUAL }.seal(&crypto(0, &bad));
        assert_eq!(flow.put(&other), Status::Block);
        assert_eq!(flow.outcomes(), ["good.example", "contradiction CRYPTO frames that disagree"]);
        // In one datagram, the fault outweighs the name.
        let mut flow = Flow::new();
        let both = [Initial::USUAL.seal(&crypto(0, &good)), Initial::USUAL.seal(&crypto(0, &bad))].concat();
        assert_eq!(flow.put(&both), Status::Block);
    }

    #[test]
    fn a_fault_of_one_connection_is_not_put_down_to_another() {
        let (good, evil) = (hello("good.example", 0), hello("evil.example", 0));
        let mut flow = Flow::new();
        // Too small for any server to look at (RFC 9000, section 14.1).
        assert_eq!(flow.put(&Initial { size: 0, ..Initial::USUAL }.seal(&crypto(0, &good))), Status::Pass);
        let bad = Initial { number: 1, ..Initial::USUAL }.seal(&crypto(0, &evil));
        let other = Initial { first: b"second-id", destination: b"second-id", ..Initial::USUAL }.seal(&[1]);
        assert_eq!(flow.put(&[bad.clone(), other].concat()), Status::Block);
        assert_eq!(flow.put(&bad), Status::Block, "the other hello in the first connection's place");
    }

    #[test]
    fn a_verdict_that_took_its_time_does_not_undo_that_on_a_fault() {
        let (good, evil) = (hello("good.example", 0), hello("evil.example", 0));
        let mut flow = Flow::new();
        assert_eq!(flow.put(&Initial::USUAL.seal(&crypto(0, &good))), Status::Pass);
        let second = Initial { first: b"second-id", destination: b"second-id", ..Initial::USUAL };
        // Its name is being looked up.
        let reading = flow.peek.datagram(&second.seal(&crypto(0, &good)), flow.now, &BUDGET, &mut Vec::new());
        let (subject, discovery) = reading.judge.into_iter().next().unwrap();
        assert_eq!(flow.put(&second.seal(&crypto(0, &evil))), Status::Block);
        flow.judge(subject, discovery);
        assert_eq!(flow.put(&second.seal(&crypto(0, &evil))), Status::Block);
    }

    #[test]
    fn reserved_bits_hide_no_hello() {
        let mut flow = Flow::new();
        assert_eq!(
            flow.put(&Initial { size: 0, ..Initial::USUAL }.seal(&crypto(0, &hello("good.example", 0)))),
            Status::Pass
        );
        let evil = Initial { number: 1, reserved: 0x0c, ..Initial::USUAL }.seal(&crypto(0, &hello("evil.example", 0)));
        assert_eq!(flow.put(&evil), Status::Block);
    }

    #[test]
    fn a_second_hello_must_name_the_same_host() {
        let first = hello("good.example", 0);
        for (name, last, judged) in [("good.example", Status::Pass, 1), ("evil.example", Status::Block, 2)] {
            let mut flow = Flow::new();
            assert_eq!(flow.put(&Initial::USUAL.seal(&crypto(0, &first))), Status::Pass);
            let second = hello(name, 500);
            let (start, end) = second.split_at(100);
            let next = Initial { number: 1, ..Initial::USUAL };
            assert_eq!(flow.put(&next.seal(&crypto(first.len(), start))), Status::Pending);
            assert_eq!(flow.put(&next.seal(&crypto(first.len() + 100, end))), last);
            assert_eq!(flow.judged.len(), judged);
        }
    }

    #[test]
    fn an_initial_that_only_the_server_could_open_does_not_pass() {
        let mut flow = Flow::new();
        let first = Initial::USUAL.seal(&crypto(0, &hello("good.example", 0)));
        let foreign = Initial { first: b"elsewhere", destination: b"server's", ..Initial::USUAL }.seal(&[1]);
        assert_eq!(flow.put(&[foreign.clone(), first.clone()].concat()), Status::Block);
        assert_eq!(flow.put(&foreign), Status::Block);
        assert_eq!(flow.put(&first), Status::Pass);
        let mut broken = first.clone();
        *broken.last_mut().unwrap() ^= 1;
        assert_eq!(flow.put(&[broken, first].concat()), Status::Pass);
    }

    #[test]
    fn packets_of_an_unknown_version_are_unreadable_in_an_open_flow_too() {
        let mut unknown = Initial::USUAL.seal(&[1]);
        unknown[1..5].copy_from_slice(&[0xfa, 0xce, 0xb0, 0x02]);
        let mut flow = Flow::new();
        assert_eq!(flow.put(&unknown), Status::Block);
        assert_eq!(flow.outcomes(), ["malformed Version"]);
        let mut flow = Flow::new();
        let first = Initial::USUAL.seal(&crypto(0, &hello("good.example", 0)));
        assert_eq!(flow.put(&first), Status::Pass);
        assert_eq!(flow.put(&unknown), Status::Block);
        assert_eq!(flow.put(&[first.clone(), unknown].concat()), Status::Block);
        assert_eq!(flow.put(&first), Status::Pass);
    }

    #[test]
    fn five_datagrams_end_the_wait_for_a_hello_but_not_a_hello_in_progress() {
        let mut flow = Flow::new();
        for _ in 0..5 {
            assert!(flow.judged.is_empty());
            flow.put(b"ping");
        }
        assert_eq!(flow.judged, [(Subject::Flow, Discovery::no_name(None))]);
        let mut flow = Flow::new();
        for _ in 0..5 {
            flow.put(&[0x6f; 1].iter().chain(&[0xf0; 40]).copied().collect::<Vec<_>>());
        }
        assert_eq!(flow.outcomes(), ["malformed a short header before any hello"]);
        let mut flow = Flow::new();
        let hello = hello("good.example", 0);
        for at in 0..20 {
            assert_eq!(flow.put(&Initial::USUAL.seal(&crypto(at, &hello[at..=at]))), Status::Pending);
            assert_eq!(flow.put(b"ping"), Status::Pending);
        }
        assert_eq!(flow.put(&Initial::USUAL.seal(&crypto(20, &hello[20..]))), Status::Pass);
        assert_eq!(flow.peek.status(Subject::Flow), Status::Pass);
    }

    #[test]
    fn a_greased_fixed_bit_hides_nothing() {
        let greased = Initial { fixed_bit: false, ..Initial::USUAL };
        let mut flow = Flow::new();
        assert_eq!(flow.put(&greased.seal(&crypto(0, &hello("good.example", 0)))), Status::Pass);
        let second = Initial { first: b"second-id", destination: b"second-id", ..greased };
        assert_eq!(flow.put(&second.seal(&crypto(0, &hello("bad.example", 0)))), Status::Block);
        assert_eq!(flow.outcomes(), ["good.example", "bad.example"]);
    }

    #[test]
    fn the_number_of_connections_is_bounded() {
        let mut flow = Flow::new();
        for n in 0..20u64 {
            let id = n.to_be_bytes();
            let datagram =
                Initial { first: &id, destination: &id, ..Initial::USUAL }.seal(&crypto(0, &hello("good.example", 0)));
            let status = if n < 8 { Status::Pass } else { Status::Block };
            assert_eq!(flow.put(&datagram), status);
        }
        assert_eq!(flow.judged.len(), 8);
        flow.now += REMEMBERED;
        let late = Initial { first: b"the-late", destination: b"the-late", ..Initial::USUAL };
        assert_eq!(flow.put(&late.seal(&crypto(0, &hello("good.example", 0)))), Status::Pass);
        assert_eq!(flow.peek.connections.len(), 1);
    }

    proptest! {
        #[test]
        fn any_octets_are_read_without_panic(
            datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..10),
            version in prop::sample::select(vec![1u32, 0x6b33_43cf, 0xff00_001d, 0x1a2a_3a4a]),
        ) {
            let mut flow = Flow::new();
            for mut datagram in datagrams {
                flow.put(&datagram);
                if let Some(place) = datagram.get_mut(1..5) {
                    place.copy_from_slice(&version.to_be_bytes());
                    datagram[0] |= 0x80;
                }
                flow.put(&datagram);
            }
            flow.peek.expire();
        }

        #[test]
        fn any_frames_are_read_without_panic(payload in prop::collection::vec(prop_oneof![3 => 0u8..8, 1 => any::<u8>()], 0..200)) {
            let mut flow = Flow::new();
            flow.put(&Initial::USUAL.seal(&payload));
        }

        #[test]
        fn every_prefix_of_a_flight_shows_its_name_or_none(flight in 0usize..90, cut in any::<prop::sample::Index>()) {
            let flights = flights();
            let Flight { want, datagrams, .. } = &flights[flight % flights.len()];
            let joined = datagrams.concat();
            let cut = cut.index(joined.len() + 1);
            if let Some((_, discovery)) = found(&[joined[..cut].to_vec()]) {
                prop_assert!(outcome(&discovery) == *want || matches!(discovery.outcome, Outcome::Unreadable(_)), "{discovery:?}");
            }
        }
    }
}
