//! From the bytes of a TLS connection to its handshake messages, over any split in records (RFC 8446, section 5.1).
//!
//! Servers differ in what they take before and between the pieces of a hello, so what any of them passes over is
//! passed over here: empty handshake records, alerts, and change_cipher_spec (OpenSSL and Go go on after a warning; a
//! fatal alert ends the connection anyway). The version of a record is not looked at: Go takes anything below 0x1000.
//!
//! Fails closed: any other type of record inside a message, and a record over the longest that a version allows, is
//! [`Malformed`].
//!
//! A [`Records`] keeps no bytes. It is shown the same growing buffer again and again, looks at each octet once, and
//! names what it found by position, so that a hello sent octet by octet costs no more than one that came whole.

use std::borrow::Cow;

use crate::wire::Malformed;

/// How far the records of one direction have been followed.
#[derive(Clone, Debug, Default)]
pub struct Records {
    place: Place,
    /// Whether the record at `place` holds handshake messages.
    is_handshake: bool,
    /// The first octets of the message in progress.
    start: [u8; MESSAGE_HEADER],
    /// Octets of the message in progress that were seen, its header included.
    have: usize,
    /// Where the first octet of the message in progress stands.
    message: Place,
    /// Whether application data between messages is passed over: early data that the server will not take.
    pub passes_application_data: bool,
}

/// The place of an octet, and how much its record still holds from there.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    at: usize,
    left: usize,
}

/// What following the records came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// There is nothing more to say before the buffer holds at least so many octets.
    Needs(usize),
    /// A handshake message is complete.
    Message,
    /// A record of application data begins where the records were followed to.
    ApplicationData,
}

impl Records {
    /// Follows the records through `bytes`, which begin as they did the last time and may have grown.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<Followed, Malformed> {
        loop {
            if self.missing() == 0 {
                return Ok(Followed::Message);
            }
            let there = bytes.get(self.place.at..).unwrap_or_default();
            if self.place.left == 0 {
                let Some(header) = there.first_chunk() else { return Ok(Followed::Needs(self.place.at + HEADER)) };
                if self.begins_application_data(header) {
                    return Ok(Followed::ApplicationData);
                }
                self.enter(header)?;
                continue;
            }
            if there.is_empty() {
                return Ok(Followed::Needs(self.needs()));
            }
            self.take(there.get(..self.place.left).unwrap_or(there));
        }
    }

    fn begins_application_data(&self, header: &[u8; HEADER]) -> bool {
        header[0] == APPLICATION_DATA && self.have == 0 && !self.passes_application_data
    }

    fn enter(&mut self, header: &[u8; HEADER]) -> Result<(), Malformed> {
        let [kind, _, _, high, low] = *header;
        self.is_handshake = match kind {
            HANDSHAKE => true,
            CHANGE_CIPHER_SPEC | ALERT => false,
            APPLICATION_DATA if self.passes_application_data && self.have == 0 => false,
            _ => return Err(Malformed { field: "record type", section: "RFC 8446, 5.1" }),
        };
        let left = usize::from(u16::from_be_bytes([high, low]));
        if left > LONGEST {
            return Err(Malformed { field: "record length", section: "RFC 8446, 5.1" });
        }
        self.place = Place { at: self.place.at + HEADER, left };
        Ok(())
    }

    /// Moves over a piece of the current record, but not past the message in progress.
    fn take(&mut self, piece: &[u8]) {
        if !self.is_handshake {
            return self.place.advance(piece.len());
        }
        if self.have == 0 {
            self.message = self.place;
        }
        let piece = piece.get(..self.missing()).unwrap_or(piece);
        for (octet, known) in piece.iter().zip(self.start.iter_mut().skip(self.have)) {
            *known = *octet;
        }
        self.have += piece.len();
        self.place.advance(piece.len());
    }

    /// What the message in progress still lacks, as far as that is known.
    fn missing(&self) -> usize {
        self.length().unwrap_or(MESSAGE_HEADER).saturating_sub(self.have)
    }

    fn needs(&self) -> usize {
        let more = if self.is_handshake { self.missing() } else { self.place.left };
        self.place.at + more.max(1)
    }

    /// The length of the message in progress, its header included, once it is known.
    pub fn length(&self) -> Option<usize> {
        let [_, a, b, c] = self.start;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        (self.have >= MESSAGE_HEADER).then_some(MESSAGE_HEADER + length)
    }

    /// The type of the message in progress, once it is known.
    pub fn message_type(&self) -> Option<u8> {
        (self.have > 0).then_some(self.start[0])
    }

    /// The message that [`Records::follow`] found complete in `bytes`, its header included.
    pub fn message<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let first = bytes.get(self.message.at..).unwrap_or_default();
        if self.have <= self.message.left {
            return Cow::Borrowed(first.get(..self.have).unwrap_or(first));
        }
        let mut again = Self { place: self.message, is_handshake: true, ..Self::default() };
        let mut joined = Vec::with_capacity(self.have);
        while joined.len() < self.have && again.place.at < bytes.len() {
            let there = bytes.get(again.place.at..).unwrap_or_default();
            if again.place.left == 0 {
                let entered = there.first_chunk().map(|header| again.enter(header));
                if !matches!(entered, Some(Ok(()))) {
                    break;
                }
                continue;
            }
            let piece = there.get(..again.place.left).unwrap_or(there);
            if again.is_handshake {
                joined.extend_from_slice(piece.get(..self.have - joined.len()).unwrap_or(piece));
            }
            again.place.advance(piece.len());
        }
        Cow::Owned(joined)
    }

    /// Turns to the message after the one that was complete.
    pub fn next_message(&mut self) {
        self.have = 0;
    }

    /// The type of the record that begins next, between messages, if it is there.
    pub fn next_record(&self, bytes: &[u8]) -> Option<u8> {
        let is_between = self.have == 0 && self.place.left == 0;
        bytes.get(self.place.at).copied().filter(|_| is_between)
    }

    /// Where the message in progress begins, or else where the records were followed to: all before it is settled.
    pub fn settled(&self) -> usize {
        if self.have == 0 { self.place.at } else { self.message.at }
    }

    /// The first `count` octets of the buffer are gone.
    pub fn let_go(&mut self, count: usize) {
        self.place.at = self.place.at.saturating_sub(count);
        self.message.at = self.message.at.saturating_sub(count);
    }
}

impl Place {
    fn advance(&mut self, count: usize) {
        self.at += count;
        self.left = self.left.saturating_sub(count);
    }
}

pub const CHANGE_CIPHER_SPEC: u8 = 20;
pub const ALERT: u8 = 21;
pub const HANDSHAKE: u8 = 22;
pub const APPLICATION_DATA: u8 = 23;

/// Octets in the header of a record: type, version, length.
const HEADER: usize = 5;
/// Octets in the header of a handshake message: type, length (RFC 8446, section 4).
const MESSAGE_HEADER: usize = 4;
/// 2^14 octets and the expansion that TLS 1.2 allows (RFC 5246, section 6.2.3).
const LONGEST: usize = (1 << 14) + 2048;
