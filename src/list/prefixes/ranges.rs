//! Sorted ranges of addresses that do not overlap, each with the time at which it ends.

use std::cmp::Reverse;
use std::io::{self, Write};

use super::Exceptions;

/// The expiry of what never ends.
pub(super) const NEVER: u64 = u64::MAX;

/// A prefix before flattening.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<A> {
    pub start: A,
    pub end: A,
    /// Seconds since 1970 or [`NEVER`]; `None`: an exception.
    pub holds_until: Option<u64>,
}

/// How ranges are written: starts, ends and, where they expire, the times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::list) struct Shape {
    pub ranges: u64,
    pub expiring: bool,
}

impl Shape {
    /// `None`: more than any file has.
    pub(super) fn octets<A>(self) -> Option<usize> {
        let each = 2 * size_of::<A>() + if self.expiring { size_of::<u64>() } else { 0 };
        usize::try_from(self.ranges).ok()?.checked_mul(each)
    }
}

/// An IPv4 or IPv6 address as a number.
pub(super) trait Address: Copy + Ord + std::fmt::Debug {
    const ZERO: Self;
    fn next(self) -> Option<Self>;
    fn before(self) -> Option<Self>;
    fn write(self, out: &mut impl Write) -> io::Result<()>;
    /// Little-endian, and exactly as long.
    fn read(octets: &[u8]) -> Option<Self>;
}

macro_rules! address {
    ($($number:ty),+) => {$(
        impl Address for $number {
            const ZERO: Self = 0;
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
            fn before(self) -> Option<Self> {
                self.checked_sub(1)
            }
            fn write(self, out: &mut impl Write) -> io::Result<()> {
                out.write_all(&self.to_le_bytes())
            }
            fn read(octets: &[u8]) -> Option<Self> {
                octets.try_into().ok().map(Self::from_le_bytes)
            }
        }
    )+};
}

address!(u32, u128);

#[derive(Debug)]
pub(super) struct Ranges<A> {
    starts: Vec<A>,
    ends: Vec<A>,
    /// Empty while no range ends.
    expires: Vec<u64>,
}

impl<A> Default for Ranges<A> {
    fn default() -> Self {
        Self { starts: Vec::new(), ends: Vec::new(), expires: Vec::new() }
    }
}

/// What holds inside a prefix: its own say and that of the prefixes around it.
#[derive(Clone, Copy)]
struct Inside {
    holds_until: Option<u64>,
    excepted: bool,
}

impl Inside {
    const NOTHING: Self = Self { holds_until: None, excepted: false };

    fn enter(self, holds_until: Option<u64>, rule: Exceptions) -> Self {
        match holds_until {
            None => Self { holds_until: None, excepted: true },
            Some(_) if self.excepted && rule == Exceptions::Always => self,
            // Of prefixes around each other the longest-lived counts; `None` is less than any time.
            Some(_) => Self { holds_until: self.holds_until.max(holds_until), excepted: self.excepted },
        }
    }
}

impl<A: Address> Ranges<A> {
    /// From prefixes: any two are apart, equal, or one inside the other. Also says how many were there already.
    pub(super) fn flatten(mut spans: Vec<Span<A>>, rule: Exceptions) -> (Self, u64) {
        spans
            .sort_unstable_by_key(|span| (span.start, Reverse(span.end), span.holds_until.is_none(), span.holds_until));
        let is_double = |a: &Span<A>, b: &Span<A>| {
            (a.start, a.end, a.holds_until.is_none()) == (b.start, b.end, b.holds_until.is_none())
        };
        let doubled = spans.windows(2).filter(|pair| matches!(pair, [a, b] if is_double(a, b))).count();
        let mut ranges = Self::default();
        let mut around: Vec<(A, Inside)> = Vec::new();
        // The first address that no range has been made of; `None` past the last one.
        let mut next = Some(A::ZERO);
        for span in spans {
            while let Some(&(end, inside)) = around.last().filter(|(end, _)| *end < span.start) {
                ranges.push(next, Some(end), inside);
                next = end.next();
                around.pop();
            }
            let outer = around.last().map_or(Inside::NOTHING, |(_, inside)| *inside);
            ranges.push(next, span.start.before(), outer);
            next = Some(span.start);
            around.push((span.end, outer.enter(span.holds_until, rule)));
        }
        while let Some((end, inside)) = around.pop() {
            ranges.push(next, Some(end), inside);
            next = end.next();
        }
        ranges.shrink();
        (ranges, doubled as u64)
    }

    /// Adds `start..=end`, joined to the last range if they touch and end together.
    fn push(&mut self, start: Option<A>, end: Option<A>, inside: Inside) {
        let (Some(start), Some(end), Some(expires)) = (start, end, inside.holds_until) else { return };
        if start > end {
            return;
        }
        let last_expires = self.expires.last().copied().unwrap_or(NEVER);
        if let Some(last) = self.ends.last_mut().filter(|last| last.next() == Some(start) && last_expires == expires) {
            *last = end;
            return;
        }
        if expires != NEVER && self.expires.is_empty() {
            self.expires = vec![NEVER; self.starts.len()];
        }
        if expires != NEVER || !self.expires.is_empty() {
            self.expires.push(expires);
        }
        self.starts.push(start);
        self.ends.push(end);
    }

    /// When the range that holds `address` ends, if one does.
    pub(super) fn expiry_of(&self, address: A) -> Option<u64> {
        let index = self.starts.partition_point(|start| *start <= address).checked_sub(1)?;
        let held = self.ends.get(index).is_some_and(|end| address <= *end);
        held.then(|| self.expires.get(index).copied().unwrap_or(NEVER))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (A, A, u64)> {
        self.between(0, None)
    }

    /// Those from the one at `first` to the one before `end`, or to the last.
    pub(super) fn between(&self, first: usize, end: Option<usize>) -> impl Iterator<Item = (A, A, u64)> {
        let count = end.unwrap_or(self.len()).saturating_sub(first);
        let ranges = self.starts.iter().zip(&self.ends).enumerate().skip(first).take(count);
        ranges.map(|(index, (start, end))| (*start, *end, self.expires.get(index).copied().unwrap_or(NEVER)))
    }

    /// What either holds, each address until the later of its two ends.
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut edges: Vec<A> = Vec::with_capacity(2 * (self.len() + other.len()));
        for (start, end, _) in self.iter().chain(other.iter()) {
            edges.push(start);
            edges.extend(end.next());
        }
        edges.sort_unstable();
        edges.dedup();
        let mut both = Self::default();
        for (index, start) in edges.iter().enumerate() {
            let end = match edges.get(index + 1) {
                Some(next) => next.before(),
                None => self.ends.last().max(other.ends.last()).copied(),
            };
            let holds_until = self.expiry_of(*start).max(other.expiry_of(*start));
            both.push(Some(*start), end, Inside { holds_until, excepted: false });
        }
        both.shrink();
        both
    }

    pub(super) fn shape(&self) -> Shape {
        Shape { ranges: self.starts.len() as u64, expiring: !self.expires.is_empty() }
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        self.starts.iter().chain(&self.ends).try_for_each(|address| address.write(out))?;
        self.expires.iter().try_for_each(|expires| out.write_all(&expires.to_le_bytes()))
    }

    /// `octets` are as many as the shape takes.
    pub(super) fn read(shape: Shape, octets: &[u8]) -> Option<Self> {
        let addresses = usize::try_from(shape.ranges).ok()?.checked_mul(size_of::<A>())?;
        let (starts, rest) = octets.split_at_checked(addresses)?;
        let (ends, expires) = rest.split_at_checked(addresses)?;
        let numbers = |octets: &[u8]| octets.chunks_exact(size_of::<A>()).map(A::read).collect::<Option<Vec<A>>>();
        let (expires, _) = expires.as_chunks::<8>();
        let expires = expires.iter().map(|octets| u64::from_le_bytes(*octets)).collect();
        Some(Self { starts: numbers(starts)?, ends: numbers(ends)?, expires })
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(super) fn footprint(&self) -> usize {
        (self.starts.capacity() + self.ends.capacity()) * size_of::<A>() + self.expires.capacity() * size_of::<u64>()
    }

    fn shrink(&mut self) {
        self.starts.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.expires.shrink_to_fit();
    }
}
