//! Hashes in buckets: the form in which names are kept and searched.
//!
//! The hashes are sorted. Their top `bits` choose a bucket, of 8 to 16 names on average; the next 40 are kept, 5 octets
//! each, in the order of the buckets. An index says where each bucket begins. Entries that end stand once more, with
//! their whole hash and their end, in a list of their own that is asked only after a hit.
//!
//! ```text
//! index      (2^bits + 1) x u32, place of each bucket's first remainder
//! remainders names x 5 octets, then 8 of padding
//! expiring   expiring x (hash u64, seconds since 1970 u64), sorted
//! ```

use std::ops::Range;

/// Where a table lies in its file, in octets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub names: u64,
    pub bits: u32,
    pub expiring: u64,
    index: Range<usize>,
    remainders: Range<usize>,
    ends: Range<usize>,
}

/// A table to be asked.
pub(super) struct Table<'a> {
    bits: u32,
    index: &'a [u8],
    remainders: &'a [u8],
    ends: &'a [u8],
}

impl Place {
    /// The place of a table that begins at `start`, and the octet after it; `None` if no file is so large.
    pub(super) fn at(start: usize, names: u64, bits: u32, expiring: u64) -> Option<(Self, usize)> {
        if names == 0 {
            return Some((Self::default(), start));
        }
        let buckets = if bits <= MAX_BITS { 1_usize << bits } else { return None };
        let index_end = start.checked_add((buckets + 1).checked_mul(INDEX)?)?;
        let names_end = usize::try_from(names).ok()?.checked_mul(REMAINDER)?.checked_add(PADDING)?;
        let remainders_end = index_end.checked_add(names_end)?;
        let ends_end = remainders_end.checked_add(usize::try_from(expiring).ok()?.checked_mul(END)?)?;
        let place = Self {
            names,
            bits,
            expiring,
            index: start..index_end,
            remainders: index_end..remainders_end,
            ends: remainders_end..ends_end,
        };
        Some((place, ends_end))
    }

    pub(super) fn table<'a>(&self, octets: &'a [u8]) -> Table<'a> {
        let part = |range: &Range<usize>| octets.get(range.clone()).unwrap_or_default();
        Table { bits: self.bits, index: part(&self.index), remainders: part(&self.remainders), ends: part(&self.ends) }
    }
}

/// A bucket that was begun to be read, and the hash that is looked for in it.
pub(super) struct Probe<'a> {
    hash: u64,
    wanted: u64,
    /// Its remainders, and [`PADDING`].
    bucket: &'a [u8],
    edges: [u64; 2],
    ends: &'a [u8],
}

impl<'a> Table<'a> {
    /// Finds the bucket and reads its first and last name, so that the memory of several buckets is waited for at once.
    pub(super) fn probe(&self, hash: u64) -> Option<Probe<'a>> {
        let bucket = bucket_of(hash, self.bits);
        let (first, last) = (self.begin_of(bucket)?, self.begin_of(bucket + 1)?);
        if first >= last {
            return None;
        }
        let bucket = self.remainders.get(first * REMAINDER..last * REMAINDER + PADDING)?;
        let wanted = remainder_of(hash, self.bits);
        let last = bucket.len().checked_sub(REMAINDER + PADDING).and_then(|at| bucket.get(at..))?;
        let edges = [read_remainder(bucket), read_remainder(last)];
        Some(Probe { hash, wanted, bucket, edges, ends: self.ends })
    }

    fn begin_of(&self, bucket: usize) -> Option<usize> {
        let octets = self.index.get(bucket * INDEX..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*octets)).ok()
    }
}

impl Probe<'_> {
    /// `now` in seconds since 1970.
    pub(super) fn holds(&self, now: u64) -> bool {
        // Eight octets are read for five, so the last name needs the padding. A window more is the padding itself.
        let names = self.bucket.len().saturating_sub(PADDING) / REMAINDER;
        let mut others = self.bucket.windows(8).step_by(REMAINDER).take(names).skip(1);
        let found = self.edges.contains(&self.wanted) || others.any(|octets| read_remainder(octets) == self.wanted);
        found && self.end().is_none_or(|end| now < end)
    }

    /// When the name ends, in seconds since 1970. One that is not in the list of ends has none.
    pub(super) fn end(&self) -> Option<u64> {
        let (ends, _) = self.ends.as_chunks::<END>();
        let found = ends.binary_search_by_key(&self.hash, |octets| read_u64(octets, 0));
        found.ok().and_then(|at| ends.get(at)).map(|octets| read_u64(octets, 8))
    }
}

/// The remainder that `octets` begin with.
fn read_remainder(octets: &[u8]) -> u64 {
    octets.first_chunk().map_or(u64::MAX, |octets| u64::from_le_bytes(*octets) & REMAINDER_MASK)
}

/// The bits that choose among buckets, for so many names.
pub(super) fn bits_for(names: usize) -> u32 {
    (names / LEAST_A_BUCKET).checked_ilog2().unwrap_or(0).min(MAX_BITS)
}

pub(super) fn bucket_of(hash: u64, bits: u32) -> usize {
    usize::try_from(hash.checked_shr(u64::BITS - bits).unwrap_or(0)).unwrap_or(usize::MAX)
}

pub(super) fn remainder_of(hash: u64, bits: u32) -> u64 {
    (hash << bits) >> (u64::BITS - REMAINDER_BITS)
}

pub(super) fn read_u64(octets: &[u8], at: usize) -> u64 {
    octets.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |octets| u64::from_le_bytes(*octets))
}

/// Octets of an index entry.
pub(super) const INDEX: usize = 4;
/// Octets kept of a name.
pub(super) const REMAINDER: usize = 5;
const REMAINDER_BITS: u32 = 40;
const REMAINDER_MASK: u64 = (1 << REMAINDER_BITS) - 1;
/// Octets after the last remainder.
pub(super) const PADDING: usize = 8;
/// Octets of an entry in the list of ends.
pub(super) const END: usize = 16;
const LEAST_A_BUCKET: usize = 8;
/// So that the 40 bits that follow are bits of the hash.
const MAX_BITS: u32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_remainders_are_the_top_of_the_hash() {
        let hash = 0x0123_4567_89ab_cdef;
        assert_eq!((bucket_of(hash, 0), remainder_of(hash, 0)), (0, 0x01_2345_6789));
        assert_eq!((bucket_of(hash, 8), remainder_of(hash, 8)), (1, 0x23_4567_89ab));
        assert_eq!((bucket_of(hash, 24), remainder_of(hash, 24)), (0x01_2345, 0x67_89ab_cdef));
    }

    #[test]
    fn a_bucket_keeps_8_to_16_names_on_average_until_the_widest_index() {
        for (names, bits) in [(0, 0), (1, 0), (15, 0), (16, 1), (10_000_000, 20), (150_000_000, 24), (1 << 31, 24)] {
            assert_eq!(bits_for(names), bits, "{names}");
        }
    }

    #[test]
    fn a_table_of_an_impossible_size_has_no_place() {
        assert_eq!(Place::at(0, 1, 25, 0), None);
        assert_eq!(Place::at(0, u64::MAX, 0, 0), None);
        assert_eq!(Place::at(0, 1, 0, u64::MAX), None);
    }
}
