//! The file of a compiled source: header, six tables of names, ranges of addresses, checksum.
//!
//! Fails closed: a file that is damaged, cut short or of another version is [`Damaged`] and never asked.
//!
//! ```text
//! 0    "tdgnames"
//! 8    version u32, then 0 or 1: how exceptions count u32
//! 16   key, 16 octets
//! 32   stamp of the source, 32 octets
//! 64   for each table: names u64, bits u64, expiring u64, label counts u64
//! 256  for the ranges of each family: ranges u64, whether they have ends u64
//! 288  tables, see `table`; ranges: starts, ends, and where they expire, seconds since 1970 u64
//! end  checksum u64 of all before it
//! ```
//! All numbers are little-endian.

mod checksum;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::domains::DomainSet;
use super::entry::{Reach, Sense};
use super::prefixes::{Exceptions, PrefixSet, Shape};
use super::table::{Place, Table, read_u64};
pub(super) use checksum::Checksum;

/// The secret of a file, without which nobody can tell which names share a fingerprint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub(super) [u8; 16]);

/// What identifies the state of a source: the caller's own choice, say a SHA-256.
pub type Stamp = [u8; 32];

/// Why a compiled file is not used. It is to be built again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damaged {
    NotCompiled,
    OtherVersion(u32),
    /// Shorter or longer than its header says.
    Length,
    Checksum,
}

/// The octets of a compiled file: in memory, or mapped.
pub type Octets = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Opens the octets that [`Compiled`](super::compile::Compiled) wrote. Reads all of them once, to check them.
pub fn open(octets: Octets) -> Result<(DomainSet, PrefixSet), Damaged> {
    let layout = Layout::read((*octets).as_ref())?;
    let ranges = (*octets).as_ref().get(layout.ranges_at..).ok_or(Damaged::Length)?;
    let prefixes = PrefixSet::read(&layout.shapes, ranges).ok_or(Damaged::Length)?;
    Ok((DomainSet::part(octets, layout), prefixes))
}

/// Whether a file, which need not be checked yet, was compiled from a source in this state.
pub fn has_stamp(octets: &[u8], stamp: Stamp) -> bool {
    octets.get(STAMP_AT..TABLES_AT) == Some(&stamp[..])
}

/// Where everything lies in a file that was checked.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub key: Key,
    pub stamp: Stamp,
    pub exceptions: Exceptions,
    pub tables: [(Place, LabelCounts); TABLES.len()],
    pub ranges_at: usize,
    /// Of the IPv4 and of the IPv6 ranges.
    pub shapes: [Shape; 2],
}

/// A file that was checked, to be asked.
pub(super) struct Image<'a> {
    pub octets: &'a [u8],
    pub layout: &'a Layout,
}

/// The tables, in the order of the file.
pub(super) const TABLES: [(Sense, Reach); 6] = [
    (Sense::Holds, Reach::Exact),
    (Sense::Holds, Reach::Below),
    (Sense::Holds, Reach::Tree),
    (Sense::Exception, Reach::Exact),
    (Sense::Exception, Reach::Below),
    (Sense::Exception, Reach::Tree),
];

pub(super) fn table_of(sense: Sense, reach: Reach) -> usize {
    sense as usize * 3 + reach as usize
}

/// How many labels the names of a table have: a set of the numbers 1 to 63, where 63 is also every larger one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LabelCounts(pub u64);

impl LabelCounts {
    pub(super) fn add(&mut self, labels: usize) {
        self.0 |= 1 << labels.min(63);
    }

    pub(super) fn contains(self, labels: usize) -> bool {
        self.0 >> labels.min(63) & 1 == 1
    }
}

impl Key {
    /// From the operating system's randomness.
    pub fn random() -> Self {
        let random = RandomState::new();
        let mut key = [0; 16];
        for (at, half) in key.chunks_exact_mut(8).enumerate() {
            half.copy_from_slice(&random.hash_one(at).to_le_bytes());
        }
        Self(key)
    }

    pub(super) fn hash(&self, name: &str) -> u64 {
        SipHasher13::new_with_key(&self.0).hash(name.as_bytes())
    }
}

impl Layout {
    /// Checks the whole file.
    pub(super) fn read(octets: &[u8]) -> Result<Self, Damaged> {
        if octets.first_chunk() != Some(MAGIC) {
            return Err(Damaged::NotCompiled);
        }
        let version = read_u64(octets, 8) as u32;
        if version != VERSION {
            return Err(Damaged::OtherVersion(version));
        }
        let (body, checksum) = octets.split_last_chunk::<8>().ok_or(Damaged::Length)?;
        let layout = Self::of_header(body)?;
        let mut sum = Checksum::default();
        sum.add(body);
        if sum.finish() != u64::from_le_bytes(*checksum) {
            return Err(Damaged::Checksum);
        }
        Ok(layout)
    }

    fn of_header(body: &[u8]) -> Result<Self, Damaged> {
        let header: &[u8; HEADER] = body.first_chunk().ok_or(Damaged::Length)?;
        let mut tables: [(Place, LabelCounts); TABLES.len()] = Default::default();
        let mut at = HEADER;
        for (table, descriptor) in tables.iter_mut().zip(header[TABLES_AT..SHAPES_AT].chunks_exact(32)) {
            let [names, bits, expiring, labels] = [0, 8, 16, 24].map(|offset| read_u64(descriptor, offset));
            let bits = u32::try_from(bits).map_err(|_| Damaged::Length)?;
            let (place, end) = Place::at(at, names, bits, expiring).ok_or(Damaged::Length)?;
            *table = (place, LabelCounts(labels));
            at = end;
        }
        let shapes = [0, 16].map(|offset| Shape {
            ranges: read_u64(header, SHAPES_AT + offset),
            expiring: read_u64(header, SHAPES_AT + offset + 8) != 0,
        });
        let ranges = PrefixSet::octets_of(&shapes).ok_or(Damaged::Length)?;
        if at.checked_add(ranges) != Some(body.len()) {
            return Err(Damaged::Length);
        }
        let exceptions = if header[12] == 0 { Exceptions::Always } else { Exceptions::MostSpecific };
        let (mut key, mut stamp) = ([0; 16], [0; 32]);
        key.copy_from_slice(&header[16..32]);
        stamp.copy_from_slice(&header[STAMP_AT..TABLES_AT]);
        Ok(Self { key: Key(key), stamp, exceptions, tables, ranges_at: at, shapes })
    }

    /// The header that [`Self::of_header`] reads.
    pub(super) fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12] = u8::from(self.exceptions == Exceptions::MostSpecific);
        header[16..32].copy_from_slice(&self.key.0);
        header[STAMP_AT..TABLES_AT].copy_from_slice(&self.stamp);
        let tables =
            self.tables.iter().flat_map(|(place, labels)| [place.names, place.bits.into(), place.expiring, labels.0]);
        let shapes = self.shapes.iter().flat_map(|shape| [shape.ranges, shape.expiring.into()]);
        for (number, octets) in tables.chain(shapes).zip(header[TABLES_AT..].chunks_exact_mut(8)) {
            octets.copy_from_slice(&number.to_le_bytes());
        }
        header
    }

    pub(super) fn names(&self) -> u64 {
        self.tables.iter().map(|(place, _)| place.names).sum()
    }

    /// Names that are no exceptions.
    pub(super) fn held(&self) -> u64 {
        let held = self.tables.iter().zip(TABLES).filter(|(_, (sense, _))| *sense == Sense::Holds);
        held.map(|((place, _), _)| place.names).sum()
    }

    pub(super) fn has_exceptions(&self) -> bool {
        self.names() > self.held()
    }

    pub(super) fn labels(&self, of: Sense) -> LabelCounts {
        let own = self.tables.iter().zip(TABLES).filter(|(_, (sense, _))| *sense == of);
        LabelCounts(own.fold(0, |all, ((_, labels), _)| all | labels.0))
    }
}

impl<'a> Image<'a> {
    pub(super) fn table(&self, sense: Sense, reach: Reach) -> Table<'a> {
        let place = self.layout.tables.get(table_of(sense, reach));
        place.map_or_else(|| Place::default().table(&[]), |(place, _)| place.table(self.octets))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCompiled => f.write_str("it is not a compiled list"),
            Self::OtherVersion(version) => write!(f, "it is of version {version}, this program reads {VERSION}"),
            Self::Length => f.write_str("it is not as long as its header says"),
            Self::Checksum => f.write_str("its checksum is wrong"),
        }
    }
}

impl std::error::Error for Damaged {}

const MAGIC: &[u8; 8] = b"tdgnames";
const VERSION: u32 = 1;
const STAMP_AT: usize = 32;
const TABLES_AT: usize = 64;
const SHAPES_AT: usize = TABLES_AT + 32 * TABLES.len();
pub(super) const HEADER: usize = SHAPES_AT + 32;

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;
    use crate::list::compile::Builder;
    use crate::list::entry::Entry;
    use crate::name::DomainName;

    fn octets_of(entries: &[&str], ends: Option<SystemTime>) -> Vec<u8> {
        let mut builder = Builder::new(Exceptions::Always);
        entries.iter().for_each(|text| builder.add(&Entry::parse(text).unwrap().with_expiry(ends)));
        let mut octets = Vec::new();
        builder.finish().write_to([7; 32], &mut octets).unwrap();
        octets
    }

    const MIXED: [&str; 7] =
        ["a.example", "b.example", "*.c.example", ".d.example", "192.0.2.0/24", "198.51.100.7", "2001:db8::/32"];

    fn opened(octets: &[u8]) -> Result<(DomainSet, PrefixSet), Damaged> {
        open(Arc::new(octets.to_vec()))
    }

    #[test]
    fn what_was_written_is_what_is_opened() {
        let end = UNIX_EPOCH + Duration::from_secs(100);
        for (ends, later) in [(None, true), (Some(end), false)] {
            let (names, prefixes) = opened(&octets_of(&MIXED, ends)).unwrap();
            for (now, held) in [(end - Duration::from_secs(1), true), (end, later)] {
                for name in ["a.example", "b.example", "x.c.example", "d.example", "x.d.example"] {
                    assert_eq!(names.holds(&DomainName::parse(name.as_bytes()).unwrap(), now), held, "{name}");
                }
                for address in ["192.0.2.255", "198.51.100.7", "2001:db8::9"] {
                    assert_eq!(prefixes.holds(address.parse().unwrap(), now), held, "{address}");
                }
                assert!(!names.holds(&DomainName::parse(b"c.example").unwrap(), now));
                assert!(!prefixes.holds("198.51.100.8".parse().unwrap(), now));
            }
            assert_eq!((names.len(), prefixes.iter().count()), (4, 3));
        }
    }

    #[test]
    fn a_file_with_any_octet_changed_is_refused() {
        let octets = octets_of(&MIXED, Some(UNIX_EPOCH));
        assert!(opened(&octets).is_ok());
        for at in 0..octets.len() {
            for change in [1, 0x80, 0xff] {
                let mut damaged = octets.clone();
                damaged[at] ^= change;
                assert!(opened(&damaged).is_err(), "octet {at} changed by {change}");
            }
        }
    }

    #[test]
    fn a_file_cut_short_anywhere_or_longer_is_refused() {
        let octets = octets_of(&MIXED, Some(UNIX_EPOCH));
        for length in 0..octets.len() {
            assert!(opened(&octets[..length]).is_err(), "{length} octets");
        }
        assert_eq!(opened(&[&octets[..], &[0]].concat()).unwrap_err(), Damaged::Length);
    }

    #[test]
    fn a_file_of_another_version_or_kind_is_refused_by_name() {
        let mut octets = octets_of(&MIXED, None);
        octets[8] = 2;
        assert_eq!(opened(&octets).unwrap_err(), Damaged::OtherVersion(2));
        assert_eq!(opened(b"").unwrap_err(), Damaged::NotCompiled);
        assert_eq!(opened(b"a.example\n").unwrap_err(), Damaged::NotCompiled);
    }

    proptest! {
        #[test]
        fn no_octets_make_opening_panic(tail in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = opened(&[b"tdgnames\x01\0\0\0\0\0\0\0", &tail[..]].concat());
        }

        #[test]
        fn no_header_makes_opening_panic_even_with_the_right_checksum(
            at in 8usize..HEADER, change in any::<[u8; 8]>(), length in 0usize..900,
        ) {
            let mut octets = octets_of(&MIXED, None);
            octets.resize(length.max(HEADER), 0);
            octets.iter_mut().skip(at).zip(change).for_each(|(own, change)| *own = change);
            let mut sum = Checksum::default();
            sum.add(&octets);
            octets.extend(sum.finish().to_le_bytes());
            if let Ok((names, prefixes)) = opened(&octets) {
                names.holds(&DomainName::parse(b"a.c.example").unwrap(), UNIX_EPOCH);
                prefixes.holds("192.0.2.1".parse().unwrap(), UNIX_EPOCH);
            }
        }
    }
}
