//! Names as DNS messages carry them: labels of any octets, with compression (RFC 1035, sections 3.1 and 4.1.4).

use std::fmt;

use crate::name::DomainName;
use crate::wire::Malformed;

/// A name taken out of its message: uncompressed, in its own case, compared without regard to case.
#[derive(Clone, Copy)]
pub struct Name {
    length: u8,
    octets: [u8; MAX_NAME],
}

impl Name {
    /// The root.
    pub const ROOT: Self = Self { length: 1, octets: [0; MAX_NAME] };

    /// The name at `at`, and where it ends there.
    pub fn read(message: &[u8], at: usize) -> Result<(Self, usize), Malformed> {
        let mut name = Self { length: 0, octets: [0; MAX_NAME] };
        let end = walk(message, at, |label| name.push(label))?;
        name.push(&[])?;
        Ok((name, end))
    }

    /// Appends a label, by its octets without their length.
    fn push(&mut self, label: &[u8]) -> Result<(), Malformed> {
        let start = usize::from(self.length);
        let end = start + 1 + label.len();
        let room = self.octets.get_mut(start..end).ok_or(TOO_LONG)?;
        if let Some((length, octets)) = room.split_first_mut() {
            *length = u8::try_from(label.len()).map_err(|_| LABEL)?;
            octets.copy_from_slice(label);
        }
        self.length = u8::try_from(end).map_err(|_| TOO_LONG)?;
        Ok(())
    }

    /// Uncompressed, with the root's zero at the end.
    pub fn octets(&self) -> &[u8] {
        self.octets.get(..usize::from(self.length)).unwrap_or_default()
    }

    pub fn is_root(&self) -> bool {
        self.length == 1
    }

    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.octets();
        std::iter::from_fn(move || {
            let (length, octets) = rest.split_first()?;
            let (label, next) = octets.split_at_checked(usize::from(*length))?;
            rest = next;
            (!label.is_empty()).then_some(label)
        })
    }

    /// The name by which policies know this one; `None` for the root and for what no list can hold.
    ///
    /// DNS allows any octet in a label, host names do not. Octets that they do not allow become underscores, so that a
    /// name below a listed one is known to be below it, whatever its own labels are.
    pub fn to_domain(&self) -> Option<DomainName> {
        let mut text = [0u8; MAX_NAME];
        let mut length = 0;
        for label in self.labels() {
            let end = length + label.len();
            let place = text.get_mut(length..=end)?;
            for (place, octet) in place.iter_mut().zip(label) {
                *place = AS_IN_HOST_NAMES[usize::from(*octet)];
            }
            *place.last_mut()? = b'.';
            length = end + 1;
        }
        let text = text.get_mut(..length)?;
        DomainName::parse(text).or_else(|_| DomainName::parse(without_a_labels(text))).ok()
    }
}

const AS_IN_HOST_NAMES: [u8; 256] = {
    let mut table = [b'_'; 256];
    let mut octet = 0;
    while octet < 128 {
        let own = octet as u8;
        if own.is_ascii_alphanumeric() || own == b'-' {
            table[octet] = own.to_ascii_lowercase();
        }
        octet += 1;
    }
    table
};

/// Spoils the prefix of labels that claim to be A-labels: one of them is none (RFC 5891, section 5.4).
fn without_a_labels(text: &mut [u8]) -> &[u8] {
    for label in text.split_mut(|octet| *octet == b'.') {
        if let Some(prefix) = label.first_chunk_mut::<4>().filter(|prefix| **prefix == *b"xn--") {
            *prefix = *b"xn__";
        }
    }
    text
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        // Lengths of labels are below 64, where case changes nothing.
        self.octets().eq_ignore_ascii_case(other.octets())
    }
}

impl Eq for Name {}

impl fmt::Display for Name {
    /// As in zone files, without the last dot (RFC 1035, section 5.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for (n, label) in self.labels().enumerate() {
            if n > 0 {
                f.write_str(".")?;
            }
            for octet in label {
                match octet {
                    b'.' | b'\\' | b'"' | b';' | b'@' | b'$' | b'(' | b')' => write!(f, "\\{}", char::from(*octet))?,
                    0x21..=0x7e => write!(f, "{}", char::from(*octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where the name at `at` ends, if it is one.
pub fn skip(message: &[u8], at: usize) -> Result<usize, Malformed> {
    let mut length = 1;
    walk(message, at, |label| {
        length += 1 + label.len();
        if length > MAX_NAME { Err(TOO_LONG) } else { Ok(()) }
    })
}

/// Gives each label of the name at `start` to `label`, and returns where the name ends there.
fn walk(
    message: &[u8],
    start: usize,
    mut label: impl FnMut(&[u8]) -> Result<(), Malformed>,
) -> Result<usize, Malformed> {
    let mut at = start;
    let mut end = None;
    // Each pointer must lead before where the last one led, so that none can loop.
    let mut before = start;
    loop {
        let length = usize::from(*message.get(at).ok_or(SHORT)?);
        match length >> 6 {
            0 if length == 0 => return Ok(end.unwrap_or(at + 1)),
            0 => {
                label(message.get(at + 1..at + 1 + length).ok_or(SHORT)?)?;
                at += 1 + length;
            }
            3 => {
                let low = usize::from(*message.get(at + 1).ok_or(SHORT)?);
                let target = (length & 0x3f) << 8 | low;
                if target >= before {
                    return Err(LOOP);
                }
                end = end.or(Some(at + 2));
                before = target;
                at = target;
            }
            _ => return Err(LABEL),
        }
    }
}

/// RFC 1035, section 2.3.4.
pub const MAX_NAME: usize = 255;

const SHORT: Malformed = Malformed { field: "name", section: "RFC 1035, 3.1" };
const TOO_LONG: Malformed = Malformed { field: "name of more than 255 octets", section: "RFC 1035, 2.3.4" };
const LABEL: Malformed = Malformed { field: "label type", section: "RFC 6891, 5" };
const LOOP: Malformed = Malformed { field: "compression pointer", section: "RFC 1035, 4.1.4" };

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(wire: &[u8]) -> Name {
        Name::read(wire, 0).unwrap().0
    }

    #[test]
    fn compressed_names_are_followed_backwards() {
        let message = b"\x03www\x07example\x03com\0\x04mail\xc0\x04\x01a\xc0\x11";
        assert_eq!(name(message).to_string(), "www.example.com");
        let (mail, end) = Name::read(message, 17).unwrap();
        assert_eq!((mail.to_string().as_str(), end), ("mail.example.com", 24));
        assert_eq!(Name::read(message, 24).unwrap().0.to_string(), "a.mail.example.com");
        assert_eq!(skip(message, 24), Ok(28));
    }

    #[test]
    fn pointers_that_do_not_lead_backwards_are_refused() {
        let cases: &[(&[u8], usize)] = &[
            (b"\xc0\x00", 0),
            (b"\x01a\xc0\x00", 0),
            (b"\xc0\x02\x01a\0", 0),
            (b"\x01a\xc0\x04\xc0\x00", 4),
            (b"\x01a\xc0\x00", 2),
        ];
        for (wire, at) in cases {
            assert_eq!(Name::read(wire, *at), Err(LOOP), "{wire:?}");
            assert_eq!(skip(wire, *at), Err(LOOP), "{wire:?}");
        }
    }

    #[test]
    fn a_name_has_at_most_255_octets() {
        let mut wire = Vec::new();
        for _ in 0..3 {
            wire.push(63);
            wire.extend([b'a'; 63]);
        }
        let longest = [&wire[..], &[61], &[b'b'; 61], &[0]].concat();
        assert_eq!(name(&longest).octets(), longest);
        let over = [&wire[..], &[62], &[b'b'; 62], &[0]].concat();
        assert_eq!(Name::read(&over, 0).unwrap_err(), TOO_LONG);
        assert_eq!(skip(&over, 0).unwrap_err(), TOO_LONG);
    }

    #[test]
    fn extended_label_types_are_refused() {
        for first in [0x40, 0x41, 0x80, 0xbf] {
            assert_eq!(Name::read(&[first, 0, 0], 0), Err(LABEL));
        }
    }

    #[test]
    fn names_are_equal_whatever_their_case() {
        assert_eq!(name(b"\x03WwW\x02aB\0"), name(b"\x03wWw\x02Ab\0"));
        assert_ne!(name(b"\x03www\x02ab\0"), name(b"\x03www\x02ac\0"));
        assert_ne!(name(b"\x01a\x01b\0"), name(b"\x03a.b\0"));
    }

    #[test]
    fn odd_labels_do_not_hide_the_name_that_they_are_below() {
        let cases: &[(&[u8], Option<&str>)] = &[
            (b"\x03WWW\x07Example\x03com\0", Some("www.example.com")),
            (b"\x03a b\x07example\x03com\0", Some("a_b.example.com")),
            (b"\x03a.b\x07example\x03com\0", Some("a_b.example.com")),
            (b"\x01*\x07example\x03com\0", Some("_.example.com")),
            (b"\x02\xff\0\x07example\x03com\0", Some("__.example.com")),
            (b"\x08xn--zzzz\x07example\x03com\0", Some("xn--zzzz.example.com")),
            (b"\x041234\0", None),
            (b"\0", None),
        ];
        for (wire, expected) in cases {
            assert_eq!(name(wire).to_domain().as_ref().map(DomainName::as_str), *expected, "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn no_octets_make_reading_a_name_panic_or_disagree(
            wire in prop::collection::vec(prop_oneof![0u8..5, Just(0xc0u8), any::<u8>()], 0..80),
            at in 0usize..90,
        ) {
            match (Name::read(&wire, at), skip(&wire, at)) {
                (Ok((name, end)), Ok(skipped)) => {
                    prop_assert_eq!(end, skipped);
                    prop_assert!(end <= wire.len() && end > at);
                    let (again, length) = Name::read(name.octets(), 0).unwrap();
                    prop_assert_eq!(again.octets(), name.octets());
                    prop_assert_eq!(length, name.octets().len());
                    let _ = (name.to_domain(), name.to_string());
                }
                (Err(one), Err(other)) => prop_assert_eq!(one, other),
                (one, other) => prop_assert!(false, "{:?} but {:?}", one, other),
            }
        }
    }
}
