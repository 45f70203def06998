//! The headers of an IP packet, as far as they tell who speaks to whom.
//!
//! Fails closed: what cannot be read is `None`, and no part of it is guessed. Fragments but for the first have no ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::reader::Reader;

/// Who speaks to whom, by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Headers {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The protocol behind IPv6's extension headers.
    pub protocol: u8,
    /// Of TCP and UDP: source port, destination port.
    pub ports: Option<(u16, u16)>,
}

impl Headers {
    /// Reads a packet that begins with its IP header; it may be cut off behind its ports.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => parse_v4(Reader::new(packet)),
            6 => parse_v6(Reader::new(packet)),
            _ => None,
        }
    }
}

/// RFC 791, section 3.1.
fn parse_v4(mut reader: Reader<'_>) -> Option<Headers> {
    const FRAGMENT_OFFSET: u16 = 0x1fff;
    let options = (usize::from(reader.u8()? & 0xf) * 4).checked_sub(20)?;
    reader.take(5)?;
    let offset = reader.u16()? & FRAGMENT_OFFSET;
    reader.u8()?;
    let protocol = reader.u8()?;
    reader.u16()?;
    let (source, destination) = (Ipv4Addr::from(reader.u32()?), Ipv4Addr::from(reader.u32()?));
    reader.take(options)?;
    let ports = if offset == 0 { ports(protocol, reader)? } else { None };
    Some(Headers { source: source.into(), destination: destination.into(), protocol, ports })
}

/// RFC 8200, sections 3 and 4.
fn parse_v6(mut reader: Reader<'_>) -> Option<Headers> {
    reader.take(6)?;
    let mut next = reader.u8()?;
    reader.u8()?;
    let (source, destination) = (address_v6(&mut reader)?, address_v6(&mut reader)?);
    let mut offset = 0;
    while let Some(kind) = Extension::of(next) {
        next = reader.u8()?;
        let length = usize::from(reader.u8()?);
        match kind {
            Extension::Options => reader.take(length * 8 + 6)?,
            Extension::Authentication => reader.take(length * 4 + 6)?,
            Extension::Fragment => {
                offset = reader.u16()? >> 3;
                reader.take(4)?
            }
        };
        if offset > 0 {
            break;
        }
    }
    let ports = if offset == 0 { ports(next, reader)? } else { None };
    Some(Headers { source: source.into(), destination: destination.into(), protocol: next, ports })
}

enum Extension {
    /// Hop-by-hop, routing, destination options.
    Options,
    Fragment,
    /// RFC 4302, section 2.2: counted in units of four octets.
    Authentication,
}

impl Extension {
    fn of(next: u8) -> Option<Self> {
        match next {
            0 | 43 | 60 => Some(Self::Options),
            44 => Some(Self::Fragment),
            51 => Some(Self::Authentication),
            _ => None,
        }
    }
}

fn address_v6(reader: &mut Reader<'_>) -> Option<Ipv6Addr> {
    Some(<[u8; 16]>::try_from(reader.take(16)?).ok()?.into())
}

/// `None`: they should be there and are not.
#[expect(clippy::option_option, reason = "a protocol without ports is no fault")]
fn ports(protocol: u8, mut reader: Reader<'_>) -> Option<Option<(u16, u16)>> {
    match protocol {
        6 | 17 => Some(Some((reader.u16()?, reader.u16()?))),
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(options: &[u8], offset: u16, protocol: u8, body: &[u8]) -> Vec<u8> {
        let first = 0x45 + u8::try_from(options.len() / 4).unwrap();
        let mut packet = vec![first, 0, 0, 0, 0, 0];
        packet.extend(offset.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 10, 1, 0, 2, 203, 0, 113, 7]);
        [&packet, options, body].concat()
    }

    fn v6(next: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend("fd00:1::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        [&packet, body].concat()
    }

    fn read(packet: &[u8]) -> Option<(u8, Option<(u16, u16)>)> {
        Headers::parse(packet).map(|found| (found.protocol, found.ports))
    }

    const PORTS: [u8; 4] = [0x10, 0x92, 0x01, 0xbb];

    #[test]
    fn ports_stand_behind_options_and_extensions_of_every_kind() {
        let both = Some((4242, 443));
        assert_eq!(read(&v4(&[], 0, 6, &PORTS)), Some((6, both)));
        assert_eq!(read(&v4(&[1; 8], 0, 17, &PORTS)), Some((17, both)));
        assert_eq!(read(&v4(&[], 0, 50, &PORTS)), Some((50, None)));
        assert_eq!(read(&v6(17, &PORTS)), Some((17, both)));
        let hop_by_hop = [60, 0, 0, 0, 0, 0, 0, 0];
        let options = [44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let first_fragment = [51, 0, 0, 1, 0, 0, 0, 0];
        let authentication = [6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let body = [&hop_by_hop[..], &options, &first_fragment, &authentication, &PORTS].concat();
        assert_eq!(read(&v6(0, &body)), Some((6, both)));
        let found = Headers::parse(&v4(&[], 0, 6, &PORTS)).unwrap();
        assert_eq!(found.source.to_string(), "10.1.0.2");
        assert_eq!(found.destination.to_string(), "203.0.113.7");
    }

    #[test]
    fn later_fragments_have_no_ports() {
        assert_eq!(read(&v4(&[], 0x2001, 17, &PORTS)), Some((17, None)));
        assert_eq!(read(&v6(44, &[17, 0, 0, 8, 0, 0, 0, 0, 1, 2, 3, 4])), Some((17, None)));
    }

    #[test]
    fn what_is_cut_off_before_its_ports_is_nothing() {
        for packet in [v4(&[1; 4], 0, 6, &PORTS), v6(0, &[17, 0, 0, 0, 0, 0, 0, 0, 0x10, 0x92, 0x01, 0xbb])] {
            for length in 0..packet.len() {
                assert_eq!(read(&packet[..length]), None, "{length} octets");
            }
        }
        assert_eq!(read(&[0x44; 64]), None, "a header of 16 octets");
        assert_eq!(read(&[0x55; 64]), None);
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(version in 3u8..8, octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut octets = octets;
            if let Some(first) = octets.first_mut() {
                *first = (*first & 0xf) | version << 4;
            }
            _ = Headers::parse(&octets);
        }
    }
}
