//! One packet of a datagram, as far as it can be read without keys (RFC 8999; RFC 9000, section 17).

use super::Version;
use crate::wire::Malformed;
use crate::wire::reader::Reader;

/// A connection ID: 0 to 20 octets (RFC 9000, section 17.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    octets: [u8; MAX_CONNECTION_ID],
    length: u8,
}

impl ConnectionId {
    /// `None` for more than 20 octets.
    pub fn new(octets: &[u8]) -> Option<Self> {
        let mut own = [0; MAX_CONNECTION_ID];
        own.get_mut(..octets.len())?.copy_from_slice(octets);
        Some(Self { octets: own, length: u8::try_from(octets.len()).ok()? })
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.octets.get(..usize::from(self.length)).unwrap_or_default()
    }
}

impl std::fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_bytes().iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// The kinds of long-header packet (RFC 9000, section 17.2; RFC 9369, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Initial,
    ZeroRtt,
    Handshake,
    Retry,
}

/// A packet with a long header of a version that can be read.
#[derive(Clone, Copy, Debug)]
pub struct LongHeader<'a> {
    pub version: Version,
    pub kind: Kind,
    pub destination: ConnectionId,
    /// Where the protected packet number begins in [`Self::whole`].
    pub number_at: usize,
    /// The packet from its first octet to its last.
    pub whole: &'a [u8],
    /// What follows it in the datagram: coalesced packets (RFC 9000, section 12.2).
    pub rest: &'a [u8],
}

/// What the first octets of a packet say that it is.
#[derive(Clone, Copy, Debug)]
pub enum Packet<'a> {
    Long(LongHeader<'a>),
    /// The invariants of a QUIC long header with a version that nobody here reads (RFC 8999, section 5.1).
    UnknownVersion,
    /// It could be a packet with a short header, which takes the rest of the datagram (RFC 9000, section 17.3).
    Short,
    /// No packet of QUIC.
    Foreign,
}

/// Reads the packet that begins at the first octet.
///
/// The fixed bit is not asked of a known version, since clients may grease it (RFC 9287). It is of an unknown one:
/// RTP and the like, which share ports with QUIC (RFC 9443), have the high bit set and the next one clear.
pub fn packet(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let Some(first) = reader.u8() else { return Ok(Packet::Foreign) };
    if first & LONG == 0 {
        let short = first & FIXED != 0 && bytes.len() >= LEAST_SHORT && !is_text(bytes);
        return Ok(if short { Packet::Short } else { Packet::Foreign });
    }
    let Some(number) = reader.u32() else { return Ok(Packet::Foreign) };
    let Some(version) = Version::from_wire(number) else {
        let quic = first & FIXED != 0 && number != 0 && has_connection_ids(reader);
        return Ok(if quic { Packet::UnknownVersion } else { Packet::Foreign });
    };
    long(version, first, bytes, reader).map(Packet::Long)
}

fn long<'a>(version: Version, first: u8, bytes: &'a [u8], mut reader: Reader<'a>) -> Result<LongHeader<'a>, Malformed> {
    let destination = connection_id(&mut reader).ok_or(bad("Destination Connection ID"))?;
    connection_id(&mut reader).ok_or(bad("Source Connection ID"))?;
    let kind = kind(version, first);
    if kind == Kind::Retry {
        // It has no length; only servers send it.
        let number_at = bytes.len() - reader.rest().len();
        return Ok(LongHeader { version, kind, destination, number_at, whole: bytes, rest: &[] });
    }
    if kind == Kind::Initial {
        reader.vec_varint().ok_or(bad("Token"))?;
    }
    let length = reader.varint().and_then(|length| usize::try_from(length).ok()).ok_or(bad("Length"))?;
    let number_at = bytes.len() - reader.rest().len();
    let end = number_at.checked_add(length).ok_or(bad("Length"))?;
    let (whole, rest) = bytes.split_at_checked(end).ok_or(bad("Length"))?;
    Ok(LongHeader { version, kind, destination, number_at, whole, rest })
}

fn kind(version: Version, first: u8) -> Kind {
    let kinds = match version {
        Version::V2 => [Kind::Retry, Kind::Initial, Kind::ZeroRtt, Kind::Handshake],
        _ => [Kind::Initial, Kind::ZeroRtt, Kind::Handshake, Kind::Retry],
    };
    let [zero, one, two, three] = kinds;
    match first >> 4 & 3 {
        0 => zero,
        1 => one,
        2 => two,
        _ => three,
    }
}

fn connection_id(reader: &mut Reader<'_>) -> Option<ConnectionId> {
    ConnectionId::new(reader.vec8()?)
}

/// Whether two connection IDs follow, of lengths that a client's first packet has in every version so far.
fn has_connection_ids(mut reader: Reader<'_>) -> bool {
    let destination = connection_id(&mut reader);
    let source = connection_id(&mut reader);
    source.is_some() && destination.is_some_and(|id| id.as_bytes().len() >= LEAST_FIRST_DESTINATION)
}

/// Sealed octets are never all text: 21 of them are with a chance below one in a thousand million.
fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|octet| matches!(octet, 0 | b'\t' | b'\r' | b'\n' | b' '..=b'~'))
}

fn bad(field: &'static str) -> Malformed {
    Malformed { field, section: "RFC 9000, 17.2" }
}

const LONG: u8 = 0x80;
const FIXED: u8 = 0x40;
const MAX_CONNECTION_ID: usize = 20;
/// RFC 9000, section 7.2.
const LEAST_FIRST_DESTINATION: usize = 8;
/// First octet, packet number and the sample of header protection (RFC 9001, section 5.4.2).
const LEAST_SHORT: usize = 1 + 4 + 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(bytes: &[u8]) -> bool {
        matches!(packet(bytes), Ok(Packet::Foreign))
    }

    #[test]
    fn what_is_not_quic_is_foreign() {
        assert!(foreign(b""));
        assert!(foreign(b"ping"));
        assert!(foreign(b"a line of text that is longer than twenty octets\n"));
        // STUN, DTLS, RTP.
        assert!(foreign(&[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]));
        assert!(foreign(&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x90, 1, 0, 0, 0x84]));
        assert!(foreign(&[0x80, 96, 0x12, 0x34, 8, 8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]));
        // Version Negotiation is what a server sends.
        assert!(foreign(&[0xc0, 0, 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn a_short_header_is_known_by_its_fixed_bit_and_its_length() {
        let mut bytes = [0x9a; 40];
        bytes[0] = 0x43;
        assert!(matches!(packet(&bytes), Ok(Packet::Short)));
        assert!(foreign(&bytes[..20]));
        bytes[0] = 0x03;
        assert!(foreign(&bytes));
    }

    #[test]
    fn a_version_that_nobody_reads_is_told_apart_by_the_invariants() {
        let mut bytes = [0x55; 60];
        bytes[..6].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8]);
        bytes[14] = 0;
        assert!(matches!(packet(&bytes), Ok(Packet::UnknownVersion)));
        bytes[14] = 200;
        assert!(foreign(&bytes));
    }

    #[test]
    fn version_2_numbers_its_kinds_differently() {
        assert_eq!(kind(Version::V1, 0xc0), Kind::Initial);
        assert_eq!(kind(Version::V2, 0xc0), Kind::Retry);
        assert_eq!(kind(Version::V2, 0xd0), Kind::Initial);
        assert_eq!(kind(Version::V2, 0xf0), Kind::Handshake);
    }

    #[test]
    fn lengths_that_point_outside_are_malformed() {
        let good = [0xc0, 0, 0, 0, 1, 1, 7, 0, 0, 3, 1, 2, 3];
        assert!(matches!(packet(&good), Ok(Packet::Long(long)) if long.rest.is_empty() && long.number_at == 10));
        for end in 5..good.len() {
            assert!(packet(&good[..end]).is_err(), "{end}");
        }
        let mut long_id = [0; 60];
        long_id[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 21]);
        assert_eq!(packet(&long_id).unwrap_err().field, "Destination Connection ID");
        let huge = [0xc0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(packet(&huge).unwrap_err().field, "Length");
    }
}
