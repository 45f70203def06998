//! The first bytes of a TCP flow, held until they name the host or show that they will not.
//!
//! The protocol is told by its bytes, whatever the port. Each look costs what is new, so that a hello sent octet by
//! octet is no dearer than one that came whole; nothing is copied but a hello that is split over records, once.
//!
//! Fails closed: what began as TLS or HTTP ends as a name, as a well-formed hello or request without one, or as
//! unreadable. Bytes that may still become one of them (`GE`, an empty line) may be waited for no longer than the
//! budget; then they are no name, and [`super::watch`] goes on looking at what follows them. Those with which no client
//! would begin, but which some server passes over, are [waited for in vain](TcpPeek::waits_in_vain).
//!
//! A hello in the form of SSL 2 (RFC 5246, appendix E.2) has no extensions: like any other bytes of no protocol that
//! we know, it names nobody.

use super::{Carrier, Discovery, Unreadable, Via};
use crate::wire::http::begin::{Begin, Beginning};
use crate::wire::http::{HeadEnd, Request};
use crate::wire::http2::{Next, Requests};
use crate::wire::tls::CLIENT_HELLO;
use crate::wire::tls::records::{ALERT, CHANGE_CIPHER_SPEC, Followed, HANDSHAKE, Records};
use crate::wire::{Fault, Malformed};

/// The budget of a peek in octets, and what it shall tell.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most octets that are held for one flow. Default 65,536.
    pub held: usize,
    /// Whether the fingerprints of a hello are wanted: they cost three times the name.
    pub fingerprints: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { held: 64 * 1024, fingerprints: true }
    }
}

/// What a look at the held bytes came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is nothing more to say before so many octets are held in all. A hint: looking sooner is cheap.
    NeedMore {
        at_least: usize,
    },
    Found(Discovery),
}

/// Why nothing more is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// The client sent as many packets as are waited for (SPEC I4: `packets`). Does not end a hello in progress.
    Packets,
    /// The deadline has come (SPEC I4: `timeout`).
    Deadline,
    /// The client closed its side.
    Ended,
}

/// The state of peeking at one flow.
#[derive(Clone, Debug)]
pub struct TcpPeek {
    pub(super) limits: Limits,
    pub(super) began: Began,
}

/// What the bytes began as.
#[derive(Clone, Debug)]
pub(super) enum Began {
    Open(Beginning),
    Tls(Records),
    /// HTTP/1, whose first head is sought.
    Http(HeadEnd),
    /// HTTP/1, whose first head was read.
    Request(FirstRequest),
    /// HTTP/2, followed to this place.
    Http2(Box<Requests>, usize),
    Other,
}

/// The first request of a connection, and where its head ends.
#[derive(Clone, Debug)]
pub(super) struct FirstRequest {
    pub(super) request: Request,
    pub(super) end: usize,
    /// HTTP/0.9: nothing may follow.
    pub(super) is_simple: bool,
}

impl TcpPeek {
    pub fn new(limits: Limits) -> Self {
        Self { limits, began: Began::Open(Beginning::default()) }
    }

    /// Looks at all bytes held so far. `ended`: the client will send no more.
    pub fn look(&mut self, held: &[u8], ended: bool) -> Step {
        let held = held.get(..self.limits.held).unwrap_or(held);
        let step = self.step(held);
        match step {
            // No server that would pass such octets over reads so long a line, and protocols of octets have no lines.
            Step::NeedMore { .. } if held.len() >= LONGEST_LINE && self.waits_in_vain() && self.passed_over() == 0 => {
                self.other()
            }
            Step::NeedMore { .. } if held.len() >= self.limits.held && self.needs_all() => {
                Step::Found(Discovery::unreadable(self.via(), Unreadable::TooLong))
            }
            Step::NeedMore { .. } if ended => self.give_up(Budget::Ended).map_or(step, Step::Found),
            step => step,
        }
    }

    /// What to conclude when a budget has run out; `None` if the wait goes on all the same.
    pub fn give_up(&mut self, budget: Budget) -> Option<Discovery> {
        let why = match budget {
            _ if !self.has_begun() => return Some(Discovery::no_name(None)),
            Budget::Packets => return None,
            _ if self.is_named_later() => return Some(Discovery::no_name(Some(Via::Http))),
            Budget::Deadline => Unreadable::TimedOut,
            Budget::Ended => Unreadable::Ended,
        };
        Some(Discovery::unreadable(self.via(), why))
    }

    /// Whether the bytes are such as no client of TLS or HTTP sends, so that there is no use in holding them; what
    /// follows them may be a request all the same to some server.
    pub fn waits_in_vain(&self) -> bool {
        matches!(&self.began, Began::Open(beginning) if beginning.is_odd() && !beginning.is_request())
    }

    /// How much of the bytes, from the first, cannot be part of what they may yet become.
    pub fn passed_over(&self) -> usize {
        if let Began::Open(beginning) = &self.began { beginning.passed_over() } else { 0 }
    }

    /// Whether none of the bytes can be let go of while the wait goes on.
    fn needs_all(&self) -> bool {
        !self.waits_in_vain() || self.passed_over() == 0
    }

    /// Whether the bytes are surely the beginning of TLS or HTTP.
    pub fn has_begun(&self) -> bool {
        match &self.began {
            Began::Open(beginning) => beginning.is_request(),
            Began::Other => false,
            Began::Tls(_) | Began::Http(_) | Began::Request(_) | Began::Http2(..) => true,
        }
    }

    /// Whether the client has begun HTTP/2 and asks for nothing before the server answers, as some do: the requests
    /// that will name the host are judged as they come.
    pub fn is_named_later(&self) -> bool {
        matches!(&self.began, Began::Http2(requests, _) if requests.is_between_frames())
    }

    fn via(&self) -> Via {
        if matches!(self.began, Began::Tls(_)) { Via::Tls } else { Via::Http }
    }

    fn step(&mut self, held: &[u8]) -> Step {
        if matches!(&self.began, Began::Open(beginning) if beginning.is_untouched()) && may_be_tls(held) {
            self.began = Began::Tls(Records::default());
        }
        match &mut self.began {
            Began::Open(_) => self.begin(held),
            Began::Tls(_) => self.hello(held),
            Began::Http(_) => self.head(held),
            Began::Request(first) => Step::Found(Discovery::of_request(first.request.name.clone())),
            Began::Http2(..) => self.http2(held),
            Began::Other => Step::Found(Discovery::no_name(None)),
        }
    }

    fn begin(&mut self, held: &[u8]) -> Step {
        let Began::Open(beginning) = &mut self.began else { return self.step(held) };
        match beginning.look(held) {
            Begin::Open | Begin::Request => return Step::NeedMore { at_least: held.len() + 1 },
            Begin::Other => return self.other(),
            Begin::Malformed => return unreadable(Via::Http, REQUEST_LINE.into()),
            Begin::Http1 => self.began = Began::Http(HeadEnd::from(beginning.line())),
            Begin::Http2 => self.began = Began::Http2(Box::default(), 0),
            Begin::Simple(end) => return self.simple(held, end),
        }
        self.step(held)
    }

    fn other(&mut self) -> Step {
        self.began = Began::Other;
        Step::Found(Discovery::no_name(None))
    }

    fn simple(&mut self, held: &[u8], end: usize) -> Step {
        match Request::parse_simple(held.get(..end).unwrap_or(held)) {
            Ok(request) => self.found(FirstRequest { request, end, is_simple: true }),
            Err(fault) => unreadable(Via::Http, fault),
        }
    }

    fn head(&mut self, held: &[u8]) -> Step {
        let Began::Http(head_end) = &mut self.began else { return self.step(held) };
        let end = match head_end.find(held) {
            Ok(Some(end)) => end,
            Ok(None) => return Step::NeedMore { at_least: held.len() + 1 },
            Err(what) => return unreadable(Via::Http, what.into()),
        };
        match Request::parse(held.get(..end).unwrap_or(held)) {
            Ok(request) => self.found(FirstRequest { request, end, is_simple: false }),
            Err(fault) => unreadable(Via::Http, fault),
        }
    }

    fn found(&mut self, first: FirstRequest) -> Step {
        let discovery = Discovery::of_request(first.request.name.clone());
        self.began = Began::Request(first);
        Step::Found(discovery)
    }

    /// Follows the frames up to the first request, which stays for [`super::watch`] to pass over.
    fn http2(&mut self, held: &[u8]) -> Step {
        let Began::Http2(requests, at) = &mut self.began else { return self.step(held) };
        loop {
            match requests.next(held.get(*at..).unwrap_or_default()) {
                Ok(Next::Needs(more)) => return Step::NeedMore { at_least: *at + more },
                Ok(Next::Pass(length)) => *at += length,
                Ok(Next::Request { name, length }) => {
                    *at += length;
                    return Step::Found(Discovery::of_request(name));
                }
                Err(fault) => return unreadable(Via::Http, fault),
            }
        }
    }

    fn hello(&mut self, held: &[u8]) -> Step {
        let Began::Tls(records) = &mut self.began else { return self.step(held) };
        let followed = records.follow(held);
        let is_odd = held.get(1).is_some_and(|major| *major != TLS_MAJOR);
        // Known before anything that follows the length: else what comes at once would be told apart from what comes slowly.
        let is_too_long = records.length().is_some_and(|length| length > self.limits.held);
        if !may_be_tls(held) || is_odd && (followed.is_err() && !is_too_long || !may_be_hello(records)) {
            // Some servers of HTTP pass such octets over.
            self.began = Began::Open(Beginning::default());
            return self.begin(held);
        }
        match followed {
            _ if is_too_long => Step::Found(Discovery::unreadable(Via::Tls, Unreadable::TooLong)),
            Err(what) => unreadable(Via::Tls, what.into()),
            Ok(Followed::ApplicationData) => unreadable(Via::Tls, FIRST_RECORD.into()),
            Ok(Followed::Needs(_)) if is_odd || held.len() < 2 => Step::NeedMore { at_least: held.len() + 1 },
            Ok(Followed::Needs(at_least)) => Step::NeedMore { at_least },
            Ok(Followed::Message) => {
                let message = records.message(held);
                Step::Found(Discovery::of_hello(&message, Carrier::Tcp, self.limits.fingerprints))
            }
        }
    }
}

/// Whether bytes begin as TLS records do.
///
/// Go's server takes first records of any version below 0x1000 for handshakes and alerts; with a version that is not
/// 3.x it is the message inside that tells.
fn may_be_tls(held: &[u8]) -> bool {
    matches!(
        held,
        [CHANGE_CIPHER_SPEC..=HEARTBEAT]
            | [CHANGE_CIPHER_SPEC..=HEARTBEAT, TLS_MAJOR, ..]
            | [HANDSHAKE | ALERT, ..=ODD_MAJOR, ..]
    )
}

/// Whether the message in progress may be a ClientHello of a length that some server takes.
fn may_be_hello(records: &Records) -> bool {
    records.message_type().is_none_or(|kind| kind == CLIENT_HELLO)
        && records.length().is_none_or(|length| length < LONGEST_HELLO)
}

fn unreadable(via: Via, fault: Fault) -> Step {
    Step::Found(Discovery::unreadable(via, fault.into()))
}

const TLS_MAJOR: u8 = 3;
const ODD_MAJOR: u8 = 15;
/// OpenSSL takes hellos of 131,396 octets, the longest of the known ones.
const LONGEST_HELLO: usize = 0x03_00_00;
/// RFC 6520, section 2: servers that still have it answer it in the midst of a handshake.
const HEARTBEAT: u8 = 24;
const REQUEST_LINE: Malformed = Malformed { field: "request line", section: "RFC 9112, 3" };
const FIRST_RECORD: Malformed = Malformed { field: "record type", section: "RFC 8446, 5.1" };

/// Octets of a request line: Python's server reads as many, others fewer.
const LONGEST_LINE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::peek::Outcome;
    use crate::peek::samples::{Flight, hello, hostile, http_flights, outcome, records, tls_flights};

    fn found(bytes: &[u8]) -> Option<Discovery> {
        match TcpPeek::new(Limits::default()).look(bytes, false) {
            Step::Found(discovery) => Some(discovery),
            Step::NeedMore { .. } => None,
        }
    }

    fn seen(bytes: &[u8]) -> String {
        let mut peek = TcpPeek::new(Limits::default());
        match peek.look(bytes, false) {
            Step::Found(discovery) => outcome(&discovery),
            Step::NeedMore { .. } => waiting(&peek),
        }
    }

    /// What is said of bytes that tell nothing yet.
    fn waiting(peek: &TcpPeek) -> String {
        if peek.waits_in_vain() { "-".into() } else { "more".into() }
    }

    /// What one peek says that sees the bytes grow by these steps.
    fn seen_in_steps(bytes: &[u8], steps: impl Iterator<Item = usize>) -> (String, usize) {
        let mut peek = TcpPeek::new(Limits::default());
        let mut least = 0;
        for end in steps {
            match peek.look(&bytes[..end], false) {
                Step::Found(discovery) => {
                    assert!(end >= least, "found at {end}, though it asked for {least}");
                    return (outcome(&discovery), end);
                }
                Step::NeedMore { at_least } => {
                    assert!(at_least > end);
                    least = at_least;
                }
            }
        }
        (waiting(&peek), bytes.len())
    }

    /// What a flight's row says, by our rules.
    fn expected(flight: &Flight) -> String {
        let host = flight.name.rsplit_once(':').map_or(flight.name.as_str(), |(host, _)| host);
        match host {
            // The authority of CONNECT names a host, though no Host field does.
            "-" if flight.bytes.starts_with(b"CONNECT ts01-b.cloudsink.net") => "ts01-b.cloudsink.net".into(),
            "-" if flight.bytes.starts_with(b"GET /Hello Arkime ") => "unreadable".into(),
            // One gnutella client folds its fields.
            _ if flight.bytes.windows(3).any(|octets| octets == b"\r\n\t") => "unreadable".into(),
            _ if flight.is_malformed => "unreadable".into(),
            _ if host.parse::<std::net::IpAddr>().is_ok() => "-".into(),
            _ => host.to_ascii_lowercase(),
        }
    }

    /// Flights whose octets were changed at random on purpose, and which name nobody.
    fn is_fuzzed(flight: &Flight) -> bool {
        (flight.id.contains("fuzz-") || flight.id.contains("__error")) && !expected(flight).contains('.')
    }

    fn flights() -> impl Iterator<Item = Flight> {
        tls_flights().into_iter().chain(http_flights()).filter(|flight| !is_fuzzed(flight))
    }

    #[test]
    fn every_name_of_the_captures_is_found_whole_and_octet_by_octet() {
        for flight in flights() {
            let expected = expected(&flight);
            assert_eq!(seen(&flight.bytes), expected, "{}", flight.id);
            let (name, at) = seen_in_steps(&flight.bytes, 1..=flight.bytes.len());
            assert_eq!(name, expected, "{}", flight.id);
            // Some captures hold several hellos in their first record.
            assert!(at <= flight.need, "{} at {at}", flight.id);
        }
    }

    #[test]
    fn every_name_of_the_captures_is_found_split_at_every_octet() {
        for flight in flights() {
            let expected = expected(&flight);
            for cut in 0..flight.need {
                let (name, _) = seen_in_steps(&flight.bytes, [cut, flight.bytes.len()].into_iter());
                assert_eq!(name, expected, "{} cut at {cut}", flight.id);
            }
        }
    }

    #[test]
    fn the_fingerprints_of_the_captures_are_found() {
        for flight in tls_flights().iter().filter(|flight| !flight.is_malformed) {
            let fingerprint = found(&flight.bytes).and_then(|d| d.fingerprint).unwrap();
            assert_eq!(fingerprint.ja3, flight.ja3, "{}", flight.id);
            assert_eq!(fingerprint.ja4, flight.ja4, "{}", flight.id);
        }
    }

    #[test]
    fn encrypted_hellos_of_the_captures_are_seen() {
        for flight in tls_flights() {
            let has_one = flight.flags.iter().any(|flag| flag == "ech" || flag == "esni");
            assert_eq!(found(&flight.bytes).is_some_and(|d| d.ech), has_one, "{}", flight.id);
        }
    }

    #[test]
    fn hostile_forms_come_out_as_their_table_says() {
        for case in hostile() {
            assert_eq!(seen(&case.bytes), case.expected, "{}", case.what);
            let (name, _) = seen_in_steps(&case.bytes, 1..=case.bytes.len());
            assert_eq!(name, case.expected, "{} octet by octet", case.what);
        }
    }

    #[test]
    fn a_hello_in_progress_outlives_the_packet_budget_and_not_the_deadline() {
        let bytes = records(&hello(b"a.example"), 5);
        let mut peek = TcpPeek::new(Limits::default());
        for end in 1..40 {
            assert!(matches!(peek.look(&bytes[..end], false), Step::NeedMore { .. }));
            assert_eq!(peek.give_up(Budget::Packets), None, "{end}");
        }
        let timed_out = Discovery::unreadable(Via::Tls, Unreadable::TimedOut);
        assert_eq!(peek.give_up(Budget::Deadline), Some(timed_out));
        let ended = Discovery::unreadable(Via::Tls, Unreadable::Ended);
        assert_eq!(peek.look(&bytes[..40], true), Step::Found(ended));
    }

    #[test]
    fn a_request_in_progress_is_unreadable_at_the_deadline() {
        for start in ["GET /", "GET / HTTP/1.1\r\nHost: a.ex", "FOO /x", "\r\nGET http://", "CONNECT a"] {
            let mut peek = TcpPeek::new(Limits::default());
            assert!(matches!(peek.look(start.as_bytes(), false), Step::NeedMore { .. }), "{start}");
            assert_eq!(peek.give_up(Budget::Packets), None, "{start}");
            let discovery = peek.give_up(Budget::Deadline).unwrap();
            assert_eq!(discovery.outcome, Outcome::Unreadable(Unreadable::TimedOut), "{start}");
        }
    }

    #[test]
    fn silence_and_too_little_to_tell_are_no_name_when_a_budget_runs_out() {
        for start in ["", "GE", "hello", "\r\n", "NICK x"] {
            for budget in [Budget::Packets, Budget::Deadline, Budget::Ended] {
                let mut peek = TcpPeek::new(Limits::default());
                assert!(matches!(peek.look(start.as_bytes(), false), Step::NeedMore { .. }), "{start}");
                assert_eq!(peek.give_up(budget), Some(Discovery::no_name(None)), "{start}");
            }
        }
    }

    #[test]
    fn a_beginning_that_never_ends_is_too_long() {
        let long = hello(&[b'a'; 60]);
        let mut tls = records(&long, 16);
        let whole = tls.len();
        tls[8] = 0xff;
        let text = [&b"GET / HTTP/1.1\r\n"[..], &b"a: b\r\n".repeat(100)].concat();
        for (bytes, limit) in [(tls, whole), (text, 200), (vec![b'a'; 300], 300)] {
            let mut peek = TcpPeek::new(Limits { held: limit, fingerprints: false });
            let Step::Found(discovery) = peek.look(&bytes, false) else { panic!("waits on") };
            assert_eq!(discovery.outcome, Outcome::Unreadable(Unreadable::TooLong));
        }
    }

    #[test]
    fn a_hello_that_says_it_is_longer_than_the_limit_is_not_waited_for() {
        let mut bytes = records(&hello(b"a.example"), 1000);
        bytes[6] = 1;
        assert_eq!(seen(&bytes), "unreadable");
        // Whatever follows, and whatever the version of its records, as nobody would have waited for it.
        for major in [3, 5] {
            let too_long = [22, major, 1, 0, 4, 1, 2, 0, 0];
            let and_more = [&too_long[..], &[255, 3, 1, 0, 1, 0]].concat();
            assert_eq!((seen(&too_long), seen(&and_more)), ("unreadable".into(), "unreadable".into()), "{major}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_a_panic_and_alike_in_all_splits(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                "(GET|CONNECT|PRI|x) [ -~\r\n]{0,60}".prop_map(String::into_bytes),
                "[ \r\n]{0,2}(GET /|CONNECT |PRI \\* |x http://|x )[ -~\r\n]{0,20}[\0é\n]?".prop_map(String::into_bytes),
                (proptest::collection::vec(any::<u8>(), 0..80), 20u8..25).prop_map(|(mut rest, kind)| {
                    let mut bytes = vec![kind, 3, 1, 0];
                    bytes.append(&mut rest);
                    bytes
                }),
            ],
            cut in 0usize..200,
        ) {
            let whole = seen(&bytes);
            let cut = cut.min(bytes.len());
            let (parts, _) = seen_in_steps(&bytes, [cut, bytes.len()].into_iter());
            // What is settled before all has come is settled for the whole.
            prop_assert_eq!(&parts, &whole);
            let (octets, _) = seen_in_steps(&bytes, 1..=bytes.len());
            prop_assert_eq!(octets, if bytes.is_empty() { "more".into() } else { whole });
        }

        #[test]
        fn a_damaged_hello_is_told_alike_whole_and_octet_by_octet(
            size in 1usize..60,
            damage in proptest::collection::vec((prop_oneof![0usize..10, 0usize..300], any::<u8>()), 1..5),
        ) {
            let mut bytes = records(&hello(b"a.example"), size);
            for (at, octet) in damage {
                let at = at % bytes.len();
                bytes[at] = octet;
            }
            let mut peek = TcpPeek::new(Limits::default());
            let found_slowly = (1..=bytes.len()).find_map(|end| match peek.look(&bytes[..end], false) {
                Step::Found(discovery) => Some(discovery),
                Step::NeedMore { .. } => None,
            });
            prop_assert_eq!(found_slowly, found(&bytes));
        }

        #[test]
        fn the_same_name_comes_out_alike_of_every_protocol(
            name in prop_oneof![
                "[a-zA-Z0-9_-]{1,12}(\\.[a-zA-Z0-9_-]{1,9}){0,3}\\.{0,2}",
                "[a-z0-9.*_~!$ü-]{1,30}",
                "([0-9]{1,3}\\.){3}[0-9]{1,3}",
                "(xn--|b\u{fc}cher|BÜCHER)[a-z0-9-]{0,6}\\.example",
            ],
        ) {
            let expected = match crate::name::DomainName::parse(name.as_bytes()) {
                Ok(name) => name.to_string(),
                Err(crate::name::NotAName::IpLiteral) => "-".into(),
                Err(_) => "unreadable".into(),
            };
            let hello = hello(name.as_bytes());
            prop_assert_eq!(&seen(&records(&hello, 1000)), &expected);
            prop_assert_eq!(&outcome(&Discovery::of_hello(&hello, Carrier::Quic, true)), &expected);
            prop_assert_eq!(&seen(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes()), &expected);
            prop_assert_eq!(&seen(format!("GET http://{name}/ HTTP/1.1\r\n\r\n").as_bytes()), &expected);
            prop_assert_eq!(&seen(format!("CONNECT {name}:443 HTTP/1.1\r\n\r\n").as_bytes()), &expected);
            let length = u8::try_from(name.len()).unwrap();
            let mut http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
            http2.extend([0, 0, length + 5, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x01, length]);
            prop_assert_eq!(&seen(&[&http2, name.as_bytes()].concat()), &expected);
        }

        #[test]
        fn a_changed_octet_never_panics(at in 0usize..600, to: u8, which in 0usize..547) {
            let flight = &tls_flights()[which];
            let mut bytes = flight.bytes.clone();
            if let Some(octet) = bytes.get_mut(at) {
                *octet = to;
            }
            seen(&bytes);
        }
    }
}
