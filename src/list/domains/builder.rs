//! Compiling names into the file of a set. Holds 8 octets a name while it works, 16 more for one that ends.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::SystemTime;

use super::file::{Checksum, Key, LabelCounts, Layout, Stamp, TABLES, table_of};
use super::table::{PADDING, Place, REMAINDER, bits_for, bucket_of, remainder_of};
use super::{DomainSet, Part};
use crate::list::entry::{Reach, Sense};
use crate::list::prefixes::{Exceptions, seconds};

/// Gathers names for a [`DomainSet`].
#[derive(Debug)]
pub struct DomainBuilder {
    key: Key,
    exceptions: Exceptions,
    tables: [Gathered; TABLES.len()],
}

#[derive(Debug, Default)]
struct Gathered {
    hashes: Vec<u64>,
    /// Hash and end, in seconds since 1970.
    ending: Vec<(u64, u64)>,
    labels: LabelCounts,
}

/// Names ready to be written.
#[derive(Debug)]
pub struct Compiled {
    key: Key,
    exceptions: Exceptions,
    tables: [Gathered; TABLES.len()],
    /// How many of the names that were added were there already.
    pub doubled: u64,
}

impl DomainBuilder {
    pub fn new(key: Key, exceptions: Exceptions) -> Self {
        Self { key, exceptions, tables: Default::default() }
    }

    /// `name` is normalised. More than 2^32 - 1 names of one kind cannot be written.
    pub fn add(&mut self, reach: Reach, name: &str, sense: Sense, expires: Option<SystemTime>) {
        let hash = self.key.hash(name);
        let Some(table) = self.tables.get_mut(table_of(sense, reach)) else { return };
        table.labels.add(name.bytes().filter(|b| *b == b'.').count() + 1);
        match expires {
            None => table.hashes.push(hash),
            Some(end) => table.ending.push((hash, seconds(end))),
        }
    }

    /// Sorts, and joins what is there twice: of the same name with two ends the later one counts.
    pub fn finish(mut self) -> Compiled {
        let doubled = self.tables.iter_mut().map(Gathered::sort).sum();
        Compiled { key: self.key, exceptions: self.exceptions, tables: self.tables, doubled }
    }
}

impl Gathered {
    /// Afterwards `hashes` has every name once, and `ending` those that end. Says how many were there already.
    fn sort(&mut self) -> u64 {
        let added = self.hashes.len() + self.ending.len();
        self.hashes.sort_unstable();
        self.hashes.dedup();
        self.ending.sort_unstable_by_key(|(hash, end)| (*hash, std::cmp::Reverse(*end)));
        self.ending.dedup_by_key(|(hash, _)| *hash);
        let for_ever = &self.hashes;
        self.ending.retain(|(hash, _)| for_ever.binary_search(hash).is_err());
        if !self.ending.is_empty() {
            self.hashes.extend(self.ending.iter().map(|(hash, _)| *hash));
            self.hashes.sort_unstable();
        }
        (added - self.hashes.len()) as u64
    }

    /// The octets of the table, as the module `table` lays them out.
    fn write(&self, bits: u32, out: &mut impl Write) -> io::Result<()> {
        let mut begins = self.hashes.iter().map(|hash| bucket_of(*hash, bits)).enumerate().peekable();
        let mut place = 0_u32;
        for bucket in 0..=1_usize << bits {
            while let Some((at, _)) = begins.next_if(|(_, own)| *own < bucket) {
                place = u32::try_from(at + 1).map_err(io::Error::other)?;
            }
            out.write_all(&place.to_le_bytes())?;
        }
        for hash in &self.hashes {
            let octets = remainder_of(*hash, bits).to_le_bytes();
            out.write_all(octets.get(..REMAINDER).unwrap_or_default())?;
        }
        out.write_all(&[0; PADDING])?;
        for (hash, end) in &self.ending {
            out.write_all(&hash.to_le_bytes())?;
            out.write_all(&end.to_le_bytes())?;
        }
        Ok(())
    }
}

impl Compiled {
    /// How many different patterns there are.
    pub fn names(&self) -> u64 {
        self.tables.iter().map(|table| table.hashes.len() as u64).sum()
    }

    /// Writes what [`DomainSet::open`] reads. The caller buffers, syncs, and renames into place.
    pub fn write_to(&self, stamp: Stamp, out: impl Write) -> io::Result<()> {
        let layout = self.layout(stamp).ok_or_else(|| io::Error::other("too many names"))?;
        let mut out = BufWriter::with_capacity(PIECE, Summed { out, sum: Checksum::default() });
        out.write_all(&layout.header())?;
        for (table, (place, _)) in self.tables.iter().zip(&layout.tables) {
            if place.names > 0 {
                table.write(place.bits, &mut out)?;
            }
        }
        let Summed { mut out, sum } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        out.write_all(&sum.finish().to_le_bytes())?;
        out.flush()
    }

    /// The set in memory. Fails only for names beyond 2^32 - 1 of one kind.
    pub fn into_set(self, stamp: Stamp) -> io::Result<DomainSet> {
        let mut octets = Vec::new();
        self.write_to(stamp, &mut octets)?;
        octets.shrink_to_fit();
        let layout = self.layout(stamp).ok_or_else(|| io::Error::other("too many names"))?;
        Ok(DomainSet { parts: vec![Part { octets: Arc::new(octets), layout: Arc::new(layout) }] })
    }

    fn layout(&self, stamp: Stamp) -> Option<Layout> {
        let mut tables: [(Place, LabelCounts); TABLES.len()] = Default::default();
        let mut at = super::file::HEADER;
        for (own, (place, labels)) in self.tables.iter().zip(&mut tables) {
            let (names, ending) = (own.hashes.len(), own.ending.len());
            (*place, at) = Place::at(at, names as u64, bits_for(names), ending as u64)?;
            *labels = own.labels;
        }
        Some(Layout { key: self.key, stamp, exceptions: self.exceptions, tables })
    }
}

/// Sums what passes through in pieces of some size.
struct Summed<W> {
    out: W,
    sum: Checksum,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let written = self.out.write(octets)?;
        self.sum.add(octets.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

const PIECE: usize = 1 << 16;
