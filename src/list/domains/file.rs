//! The file of a compiled set: header, six tables, checksum.
//!
//! ```text
//! 0    "tdgnames"
//! 8    version u32, then 0 or 1: how exceptions count u32
//! 16   key, 16 octets
//! 32   stamp of the source, 32 octets
//! 64   for each table: names u64, bits u64, expiring u64, label counts u64
//! 256  tables, see the module `table`
//! end  checksum u64 of all before it
//! ```
//! All numbers are little-endian.

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use siphasher::sip::SipHasher13;

use super::table::{Place, Table, read_u64};
use crate::list::entry::{Reach, Sense};
use crate::list::prefixes::Exceptions;

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

/// Where everything lies in a file that was checked.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub key: Key,
    pub stamp: Stamp,
    pub exceptions: Exceptions,
    pub tables: [(Place, LabelCounts); TABLES.len()],
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
        let layout = Self::lay_out(body)?;
        let mut sum = Checksum::default();
        sum.add(body);
        if sum.finish() != u64::from_le_bytes(*checksum) {
            return Err(Damaged::Checksum);
        }
        Ok(layout)
    }

    fn lay_out(body: &[u8]) -> Result<Self, Damaged> {
        let header: &[u8; HEADER] = body.first_chunk().ok_or(Damaged::Length)?;
        let mut tables: [(Place, LabelCounts); TABLES.len()] = Default::default();
        let mut at = HEADER;
        for (table, descriptor) in tables.iter_mut().zip(header[64..].chunks_exact(32)) {
            let [names, bits, expiring, labels] = [0, 8, 16, 24].map(|offset| read_u64(descriptor, offset));
            let bits = u32::try_from(bits).map_err(|_| Damaged::Length)?;
            let (place, end) = Place::at(at, names, bits, expiring).ok_or(Damaged::Length)?;
            *table = (place, LabelCounts(labels));
            at = end;
        }
        if at != body.len() {
            return Err(Damaged::Length);
        }
        let exceptions = if header[12] == 0 { Exceptions::Always } else { Exceptions::MostSpecific };
        let (mut key, mut stamp) = ([0; 16], [0; 32]);
        key.copy_from_slice(&header[16..32]);
        stamp.copy_from_slice(&header[32..64]);
        Ok(Self { key: Key(key), stamp, exceptions, tables })
    }

    /// The header that [`Self::lay_out`] reads.
    pub(super) fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12] = u8::from(self.exceptions == Exceptions::MostSpecific);
        header[16..32].copy_from_slice(&self.key.0);
        header[32..64].copy_from_slice(&self.stamp);
        for ((place, labels), descriptor) in self.tables.iter().zip(header[64..].chunks_exact_mut(32)) {
            let numbers = [place.names, place.bits.into(), place.expiring, labels.0];
            for (number, octets) in numbers.into_iter().zip(descriptor.chunks_exact_mut(8)) {
                octets.copy_from_slice(&number.to_le_bytes());
            }
        }
        header
    }

    pub(super) fn names(&self) -> u64 {
        self.tables.iter().map(|(place, _)| place.names).sum()
    }

    pub(super) fn has_exceptions(&self) -> bool {
        self.tables.iter().zip(TABLES).any(|((place, _), (sense, _))| sense == Sense::Exception && place.names > 0)
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

/// Against accidents, not against an adversary who may write the file. Each octet changes one of eight lanes, and no
/// two states of a lane become one, so a single change is always seen. Reads 64 octets in a few cycles.
#[derive(Default)]
pub(super) struct Checksum {
    lanes: [u64; 8],
    length: u64,
    held: Vec<u8>,
}

impl Checksum {
    pub(super) fn add(&mut self, octets: &[u8]) {
        self.length = self.length.wrapping_add(octets.len() as u64);
        let mut octets = octets;
        if !self.held.is_empty() {
            let (front, rest) = octets.split_at(octets.len().min(BLOCK - self.held.len()));
            self.held.extend_from_slice(front);
            octets = rest;
            if self.held.len() < BLOCK {
                return;
            }
            let held = std::mem::take(&mut self.held);
            self.blocks(&held);
        }
        let rest = self.blocks(octets);
        self.held.extend_from_slice(rest);
    }

    /// What is left after the last whole block.
    fn blocks<'a>(&mut self, octets: &'a [u8]) -> &'a [u8] {
        let (blocks, rest) = octets.as_chunks::<BLOCK>();
        let mut lanes = self.lanes;
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(ODD).rotate_left(29);
            }
        }
        self.lanes = lanes;
        rest
    }

    pub(super) fn finish(mut self) -> u64 {
        let mut last = std::mem::take(&mut self.held);
        last.resize(BLOCK, 0);
        self.blocks(&last);
        self.lanes.iter().fold(self.length, |sum, lane| (sum ^ lane).wrapping_mul(ODD).rotate_left(31))
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
pub(super) const HEADER: usize = 64 + 32 * TABLES.len();
const BLOCK: usize = 64;
/// 2^64 divided by the golden ratio, odd, so that multiplying by it loses nothing.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
