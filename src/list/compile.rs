//! Compiling the entries of a source. Holds 8 octets a name while it works and 24 for one that ends.

use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use super::domains::DomainSet;
use super::entry::{Entry, Reach, Sense, What};
use super::file::{Checksum, HEADER, Key, LabelCounts, Layout, Stamp, TABLES, table_of};
use super::prefixes::{Exceptions, PrefixBuilder, PrefixSet, seconds};
use super::reader::{self, Options, Refused, Report};
use super::table::{PADDING, Place, REMAINDER, bits_for, bucket_of, remainder_of};

/// Reads a source and compiles what it says.
pub fn compile(source: impl Read, options: &Options) -> Result<(Compiled, Report), Refused> {
    // Which format it is, and so how its exceptions count, is known only when it was read.
    let mut builder = Builder::new(Exceptions::Always);
    let report = reader::read(source, options, &mut |_, entry| builder.add(&entry))?;
    builder.set_exceptions(report.format.exceptions());
    Ok((builder.finish(), report))
}

/// Gathers the entries of one source.
#[derive(Debug)]
pub struct Builder {
    key: Key,
    exceptions: Exceptions,
    tables: [Gathered; TABLES.len()],
    prefixes: PrefixBuilder,
}

#[derive(Debug, Default)]
struct Gathered {
    hashes: Vec<u64>,
    /// Hash and end, in seconds since 1970.
    ending: Vec<(u64, u64)>,
    labels: LabelCounts,
}

/// Entries ready to be asked, or to be written.
#[derive(Debug)]
pub struct Compiled {
    key: Key,
    exceptions: Exceptions,
    tables: [Gathered; TABLES.len()],
    prefixes: PrefixSet,
    /// How many of the entries that were added were there already.
    pub doubled: u64,
}

impl Builder {
    pub fn new(exceptions: Exceptions) -> Self {
        Self { key: Key::random(), exceptions, tables: Default::default(), prefixes: PrefixBuilder::new(exceptions) }
    }

    fn set_exceptions(&mut self, exceptions: Exceptions) {
        self.exceptions = exceptions;
        self.prefixes.set_exceptions(exceptions);
    }

    pub fn add(&mut self, entry: &Entry<'_>) {
        match &entry.what {
            What::Name(reach, name) => self.add_name(*reach, name, entry.sense, entry.expires),
            What::Prefix(prefix) => self.prefixes.add(*prefix, entry.sense, entry.expires),
        }
    }

    /// `name` is normalised. More than 2^32 - 1 names of one kind cannot be written.
    fn add_name(&mut self, reach: Reach, name: &str, sense: Sense, expires: Option<SystemTime>) {
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
        let doubled_names: u64 = self.tables.iter_mut().map(Gathered::sort).sum();
        let (prefixes, doubled) = self.prefixes.finish();
        let doubled = doubled + doubled_names;
        Compiled { key: self.key, exceptions: self.exceptions, tables: self.tables, prefixes, doubled }
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

    /// The octets of the table, as `table` lays them out.
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
    /// How many different names there are, each reach and exceptions counted apart.
    pub fn names(&self) -> u64 {
        self.tables.iter().map(|table| table.hashes.len() as u64).sum()
    }

    /// How many ranges the addresses take.
    pub fn ranges(&self) -> u64 {
        self.prefixes.len() as u64
    }

    /// Writes what [`open`](super::file::open) reads. The caller buffers, syncs, and renames into place.
    pub fn write_to(&self, stamp: Stamp, out: impl Write) -> io::Result<()> {
        let layout = self.layout(stamp).ok_or_else(|| io::Error::other("too many names"))?;
        let mut out = BufWriter::with_capacity(PIECE, Summed { out, sum: Checksum::default() });
        out.write_all(&layout.header())?;
        for (table, (place, _)) in self.tables.iter().zip(&layout.tables) {
            if place.names > 0 {
                table.write(place.bits, &mut out)?;
            }
        }
        self.prefixes.write(&mut out)?;
        let Summed { mut out, sum } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        out.write_all(&sum.finish().to_le_bytes())?;
        out.flush()
    }

    /// The sets in memory. Fails only for more than 2^32 - 1 names of one kind.
    pub fn into_sets(mut self) -> io::Result<(DomainSet, PrefixSet)> {
        let prefixes = std::mem::take(&mut self.prefixes);
        if self.names() == 0 {
            return Ok((DomainSet::default(), prefixes));
        }
        let mut octets = Vec::new();
        self.write_to(Stamp::default(), &mut octets)?;
        octets.shrink_to_fit();
        let layout = self.layout(Stamp::default()).ok_or_else(|| io::Error::other("too many names"))?;
        Ok((DomainSet::part(Arc::new(octets), layout), prefixes))
    }

    fn layout(&self, stamp: Stamp) -> Option<Layout> {
        let mut tables: [(Place, LabelCounts); TABLES.len()] = Default::default();
        let mut at = HEADER;
        for (own, (place, labels)) in self.tables.iter().zip(&mut tables) {
            let (names, ending) = (own.hashes.len(), own.ending.len());
            (*place, at) = Place::at(at, names as u64, bits_for(names), ending as u64)?;
            *labels = own.labels;
        }
        let (key, exceptions, shapes) = (self.key, self.exceptions, self.prefixes.shapes());
        Some(Layout { key, stamp, exceptions, tables, ranges_at: at, shapes })
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
