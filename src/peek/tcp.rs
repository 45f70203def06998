//! The first bytes of a TCP flow, held until they name the host or show that they will not.
//!
//! The protocol is told by its bytes, whatever the port. Each look costs what is new, so that a hello sent octet by
//! octet is no dearer than one that came whole; nothing is copied but a hello that is split over records, once.
//!
//! Fails closed: what began as TLS or HTTP ends as a name, as a well-formed hello or request without one, or as
//! unreadable. Bytes that may still become one of them (`GE`, an empty line) may be waited for no longer than the
//! budget; then they are no name, and [`super::watch`] goes on looking at what follows them.
//!
//! A hello in the form of SSL 2 (RFC 5246, appendix E.2) has no extensions: like any other bytes of no protocol that
//! we know, it names nobody.

use super::{Carrier, Discovery, Unreadable, Via};
use crate::wire::http::begin::{Begin, Beginning};
use crate::wire::http::{HeadEnd, Request};
use crate::wire::http2::{Next, Requests};
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
        let step = self.step(held);
        match step {
            Step::NeedMore { .. } if held.len() >= self.limits.held => {
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
        if matches!(self.began, Began::Open(_)) && may_be_tls(held) {
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
            Begin::Other => {
                self.began = Began::Other;
                return Step::Found(Discovery::no_name(None));
            }
            Begin::Malformed => return unreadable(Via::Http, REQUEST_LINE.into()),
            Begin::Http1 => self.began = Began::Http(HeadEnd::from(beginning.line())),
            Begin::Http2 => self.began = Began::Http2(Box::default(), 0),
            Begin::Simple(end) => return self.simple(held, end),
        }
        self.step(held)
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
        if !may_be_tls(held) || is_odd && (followed.is_err() || !records.may_be_hello()) {
            self.began = Began::Other;
            return Step::Found(Discovery::no_name(None));
        }
        match followed {
            Err(what) => unreadable(Via::Tls, what.into()),
            Ok(Followed::ApplicationData) => unreadable(Via::Tls, FIRST_RECORD.into()),
            Ok(_) if records.length().is_some_and(|length| length > self.limits.held) => {
                Step::Found(Discovery::unreadable(Via::Tls, Unreadable::TooLong))
            }
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
    match held {
        [CHANGE_CIPHER_SPEC..=HEARTBEAT] | [CHANGE_CIPHER_SPEC..=HEARTBEAT, TLS_MAJOR, ..] => true,
        [HANDSHAKE | ALERT, ..=ODD_MAJOR, ..] => true,
        _ => false,
    }
}

fn unreadable(via: Via, fault: Fault) -> Step {
    Step::Found(Discovery::unreadable(via, fault.into()))
}

const TLS_MAJOR: u8 = 3;
const ODD_MAJOR: u8 = 15;
/// RFC 6520, section 2: servers that still have it answer it in the midst of a handshake.
const HEARTBEAT: u8 = 24;
const REQUEST_LINE: Malformed = Malformed { field: "request line", section: "RFC 9112, 3" };
const FIRST_RECORD: Malformed = Malformed { field: "record type", section: "RFC 8446, 5.1" };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peek::Outcome;

    pub(crate) fn hello(name: &[u8]) -> Vec<u8> {
        let entry = [&[0][..], &length16(name)].concat();
        let extension = [&[0, 0][..], &length16(&length16(&entry))].concat();
        let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &length16(&extension)].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    fn length16(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn record(kind: u8, bytes: &[u8]) -> Vec<u8> {
        [&[kind, 3, 1][..], &length16(bytes)].concat()
    }

    fn found(bytes: &[u8]) -> Option<Discovery> {
        match TcpPeek::new(Limits::default()).look(bytes, false) {
            Step::Found(discovery) => Some(discovery),
            Step::NeedMore { .. } => None,
        }
    }

    fn outcome(bytes: &[u8]) -> String {
        match found(bytes).map(|d| d.outcome) {
            Some(Outcome::Name(name)) => name.to_string(),
            Some(Outcome::NoName) => "-".into(),
            Some(Outcome::Unreadable(_)) => "unreadable".into(),
            None => "more".into(),
        }
    }

    #[test]
    fn a_hello_is_read_over_any_split_in_records() {
        let hello = hello(b"Blocked.Example.");
        for size in [1, 2, 3, 4, 7, 50, 1000] {
            let bytes: Vec<u8> = hello.chunks(size).flat_map(|piece| record(22, piece)).collect();
            assert_eq!(outcome(&bytes), "blocked.example", "{size}");
            for cut in 0..bytes.len() {
                assert_eq!(outcome(&bytes[..cut]), "more", "{size} {cut}");
            }
        }
        let strange = [record(22, &[]), record(20, &[1]), record(21, &[1, 0]), record(22, &hello)].concat();
        assert_eq!(outcome(&strange), "blocked.example");
    }

    #[test]
    fn requests_and_other_protocols_are_told_apart() {
        assert_eq!(outcome(b"GET / HTTP/1.1\r\nHost: Blocked.example:80\r\n\r\n"), "blocked.example");
        assert_eq!(outcome(b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n"), "unreadable");
        assert_eq!(outcome(b"EHLO mail.example\r\n"), "-");
        assert_eq!(outcome(b"SSH-2.0-OpenSSH_9\r\n"), "-");
        assert_eq!(outcome(b"\x00\x01"), "-");
        assert_eq!(outcome(b"\x16\x99"), "-");
        assert_eq!(outcome(b"GET /\r\n"), "-");
    }
}
