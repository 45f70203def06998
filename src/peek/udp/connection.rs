//! One QUIC connection of a flow: its keys, its hello, and what was decided of it.

use std::time::Instant;

use super::Budget;
use crate::peek::{Carrier, Discovery, Outcome, Unreadable};
use crate::wire::Malformed;
use crate::wire::quic::{ConnectionId, CryptoStream, InitialKeys, LongHeader, Opened, Refused, Version, frames};
use crate::wire::tls::CLIENT_HELLO;

/// A connection that began with an Initial packet under the keys of its own destination.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) number: u32,
    /// The destination of its first packet, which its keys come from for good.
    pub(super) first: ConnectionId,
    pub(super) used: Instant,
    /// One for each version that it was spoken to in (RFC 9368, section 2.3).
    keys: Vec<(Version, InitialKeys)>,
    largest: Option<u64>,
    stream: CryptoStream,
    /// Where the next hello would begin: a server may ask for a second one (RFC 8446, section 4.1.4).
    read: usize,
    hello: Option<Outcome>,
    fault: Option<Unreadable>,
    verdict: Option<bool>,
}

/// What a datagram made known of a connection.
#[derive(Debug)]
pub(super) enum Finding {
    Hello(Box<Discovery>),
    Fault(Unreadable),
}

impl Connection {
    /// `None`: the packet does not open with the keys of its own destination.
    pub(super) fn begin(
        number: u32,
        long: &LongHeader<'_>,
        now: Instant,
        budget: &Budget,
        scratch: &mut Vec<u8>,
    ) -> Option<(Self, Option<Finding>)> {
        let mut connection = Self {
            number,
            first: long.destination,
            used: now,
            keys: Vec::with_capacity(1),
            largest: None,
            stream: CryptoStream::default(),
            read: 0,
            hello: None,
            fault: None,
            verdict: None,
        };
        let finding = connection.initial(long, now, budget, scratch)?;
        Some((connection, finding))
    }

    /// Reads an Initial packet. `None`: it is not of this connection.
    pub(super) fn initial(
        &mut self,
        long: &LongHeader<'_>,
        now: Instant,
        budget: &Budget,
        scratch: &mut Vec<u8>,
    ) -> Option<Option<Finding>> {
        let known = self.keys.iter().position(|(version, _)| *version == long.version);
        let made = match known {
            Some(_) => None,
            None => Some(InitialKeys::of_client(long.version, &self.first)?),
        };
        let keys = match known {
            Some(index) => self.keys.get(index).map(|(_, keys)| keys),
            None => made.as_ref(),
        };
        let Opened { number, frames } = keys?.open(long, self.largest, scratch)?;
        self.used = now;
        self.largest = self.largest.max(Some(number));
        let finding = match self.is_broken() {
            true => Ok(None),
            false => self.take_in(frames).and_then(|()| self.read_hellos(budget)),
        };
        if let Some(made) = made {
            self.keys.push((long.version, made));
        }
        Some(match finding {
            Ok(discovery) => discovery.map(|discovery| Finding::Hello(Box::new(discovery))),
            Err(fault) => self.fail(fault),
        })
    }

    /// The connection cannot be read. What was judged so is not judged again; what was judged before is, and nothing
    /// passes until then.
    pub(super) fn fail(&mut self, fault: Unreadable) -> Option<Finding> {
        if self.fault.is_some() {
            return None;
        }
        self.fault = Some(fault);
        if self.verdict == Some(true) {
            self.verdict = None;
        }
        if self.is_broken() {
            self.stream = CryptoStream::default();
            self.read = 0;
        }
        Some(Finding::Fault(fault))
    }

    /// It is judged by its fault for good. A hello that only came too late is read all the same.
    fn is_broken(&self) -> bool {
        self.fault.is_some_and(|fault| fault != Unreadable::TimedOut)
    }

    fn take_in(&mut self, payload: &[u8]) -> Result<(), Unreadable> {
        for frame in frames(payload) {
            self.stream.insert(frame.map_err(Unreadable::Malformed)?).map_err(|refused| match refused {
                Refused::Conflict => Unreadable::Contradiction(CRYPTO),
                Refused::TooLong => Unreadable::TooLong,
            })?;
        }
        Ok(())
    }

    /// Reads the hellos that have come whole. A second one must name the same host as the first.
    fn read_hellos(&mut self, budget: &Budget) -> Result<Option<Discovery>, Unreadable> {
        let mut found = None;
        loop {
            let ahead = self.stream.from(self.read);
            let Some(length) = hello_length(&ahead)? else { return Ok(found) };
            let Some(message) = ahead.get(..length) else { return Ok(found) };
            let discovery = Discovery::of_hello(message, Carrier::Quic, budget.fingerprints);
            if let Outcome::Unreadable(why) = discovery.outcome {
                return Err(why);
            }
            match &self.hello {
                Some(first) if *first == discovery.outcome => {}
                Some(_) => return Err(Unreadable::Contradiction(SECOND)),
                None => {
                    self.hello = Some(discovery.outcome.clone());
                    found = Some(discovery);
                }
            }
            self.read += length;
        }
    }

    /// A hello whose verdict took its time does not undo that on a fault which was found in the meantime.
    pub(super) fn settle(&mut self, pass: bool) {
        if !self.is_broken() || self.verdict != Some(false) {
            self.verdict = Some(pass);
        }
    }

    /// Whether its packets pass; `None` while that is open.
    pub(super) fn passed(&self) -> Option<bool> {
        match self.verdict {
            Some(true) if self.fault.is_none() && self.is_incomplete() => None,
            verdict => verdict,
        }
    }

    /// It was blocked for its hello, which was judged before anything passed.
    pub(super) fn was_kept_out(&self) -> bool {
        self.verdict == Some(false) && self.fault.is_none()
    }

    pub(super) fn is_pending(&self) -> bool {
        self.passed().is_none()
    }

    /// The waiting is over, for good: why it has no readable hello.
    pub(super) fn give_up(&mut self, why: Unreadable) -> Unreadable {
        self.fail(why);
        self.fault.unwrap_or(why)
    }

    /// Whether a packet number that was cut short can only be read in one way, however many packets the server missed
    /// (RFC 9000, appendix A.3).
    pub(super) fn numbers_are_plain(&self) -> bool {
        self.largest.is_none_or(|largest| largest < 128)
    }

    pub(super) fn weight(&self) -> usize {
        self.stream.weight() + size_of::<Self>() + self.keys.capacity() * size_of::<(Version, InitialKeys)>()
    }

    fn is_incomplete(&self) -> bool {
        self.stream.end() > self.read
    }
}

/// The length of the handshake message that begins here, its header included (RFC 8446, section 4).
fn hello_length(ahead: &[u8]) -> Result<Option<usize>, Unreadable> {
    match ahead {
        [] => Ok(None),
        [kind, rest @ ..] if *kind == CLIENT_HELLO => {
            let Some(&[high, middle, low]) = rest.first_chunk() else { return Ok(None) };
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if length > MAX_HELLO { Err(Unreadable::TooLong) } else { Ok(Some(length + 4)) }
        }
        _ => Err(Unreadable::Malformed(NOT_A_HELLO)),
    }
}

const MAX_HELLO: usize = 64 << 10;
const CRYPTO: Malformed = Malformed { field: "CRYPTO frames that disagree", section: "RFC 9000, 19.6" };
const SECOND: Malformed = Malformed { field: "a second hello with another name", section: "RFC 8446, 4.1.4" };
const NOT_A_HELLO: Malformed = Malformed { field: "handshake type", section: "RFC 8446, 4" };
