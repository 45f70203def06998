//! The handshake bytes of a connection, put together from CRYPTO frames in any order.
//!
//! Holds no more than it was sent: an offset alone never makes it allocate.

use std::borrow::Cow;

use super::frames::Crypto;

/// Handshake bytes, perhaps with gaps.
#[derive(Clone, Debug, Default)]
pub struct CryptoStream {
    /// Every octet that came, once, in the order of arrival.
    arrived: Vec<u8>,
    /// Where its pieces belong, sorted by offset; they do not overlap.
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    offset: usize,
    length: usize,
    /// Where it stands in `arrived`.
    at: usize,
}

/// Why a CRYPTO frame was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It says something else of octets that came before.
    Conflict,
    /// It passes the limit of length or of pieces.
    TooLong,
}

impl CryptoStream {
    /// Takes in a frame. What came before it stays as it was, whatever the outcome.
    pub fn insert(&mut self, frame: Crypto<'_>) -> Result<(), Refused> {
        let mut offset = usize::try_from(frame.offset).map_err(|_| Refused::TooLong)?;
        let mut data = frame.data;
        if offset.checked_add(data.len()).is_none_or(|end| end > MAX_LENGTH) {
            return Err(Refused::TooLong);
        }
        let mut index = self.pieces.partition_point(|piece| piece.end() <= offset);
        while !data.is_empty() {
            let next = self.pieces.get(index).copied();
            let free = next.map_or(data.len(), |next| next.offset.saturating_sub(offset).min(data.len()));
            let (new, rest) = data.split_at_checked(free).ok_or(Refused::TooLong)?;
            if !new.is_empty() {
                index += self.add(index, offset, new)?;
            }
            offset += free;
            data = rest;
            if let (Some(known), false) = (next, data.is_empty()) {
                let same = known.end().saturating_sub(offset).min(data.len());
                let (again, rest) = data.split_at_checked(same).ok_or(Refused::TooLong)?;
                if self.octets(known).get(offset - known.offset..).is_none_or(|own| !own.starts_with(again)) {
                    return Err(Refused::Conflict);
                }
                offset += same;
                data = rest;
                index += 1;
            }
        }
        Ok(())
    }

    /// Adds a piece before `index`, joined to the one before it where that can be, and says how many were added.
    fn add(&mut self, index: usize, offset: usize, new: &[u8]) -> Result<usize, Refused> {
        let at = self.arrived.len();
        let before = index.checked_sub(1).and_then(|before| self.pieces.get_mut(before));
        let joined = match before {
            Some(before) if before.end() == offset && before.at + before.length == at => {
                before.length += new.len();
                true
            }
            _ => false,
        };
        if !joined {
            if self.pieces.len() >= MAX_PIECES {
                return Err(Refused::TooLong);
            }
            self.pieces.insert(index, Piece { offset, length: new.len(), at });
        }
        self.arrived.extend_from_slice(new);
        Ok(usize::from(!joined))
    }

    /// The octets from `start` on, up to the first gap.
    pub fn from(&self, start: usize) -> Cow<'_, [u8]> {
        let index = self.pieces.partition_point(|piece| piece.end() <= start);
        let mut joined = Cow::Borrowed(&[][..]);
        let mut next = start;
        for piece in self.pieces.iter().skip(index) {
            let Some(skip) = next.checked_sub(piece.offset) else { break };
            let octets = self.octets(*piece).get(skip..).unwrap_or_default();
            if joined.is_empty() {
                joined = Cow::Borrowed(octets);
            } else {
                joined.to_mut().extend_from_slice(octets);
            }
            next = piece.end();
        }
        joined
    }

    /// Where the last octet that came ends.
    pub fn end(&self) -> usize {
        self.pieces.last().map_or(0, Piece::end)
    }

    /// Octets of memory in use.
    pub fn weight(&self) -> usize {
        self.arrived.capacity() + self.pieces.capacity() * size_of::<Piece>()
    }

    fn octets(&self, piece: Piece) -> &[u8] {
        self.arrived.get(piece.at..piece.at + piece.length).unwrap_or_default()
    }
}

impl Piece {
    fn end(&self) -> usize {
        self.offset + self.length
    }
}

/// SPEC I4: a hello past 64 KiB is unreadable.
const MAX_LENGTH: usize = 64 << 10;
/// A hello sent octet by octet, twice over.
const MAX_PIECES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(stream: &mut CryptoStream, offset: u64, data: &[u8]) -> Result<(), Refused> {
        stream.insert(Crypto { offset, data })
    }

    #[test]
    fn overlaps_that_agree_are_joined_and_those_that_do_not_are_refused() {
        let mut stream = CryptoStream::default();
        put(&mut stream, 4, b"efgh").unwrap();
        assert_eq!(stream.from(0).as_ref(), b"");
        put(&mut stream, 2, b"cdefghij").unwrap();
        put(&mut stream, 0, b"abc").unwrap();
        assert_eq!(stream.from(0).as_ref(), b"abcdefghij");
        assert_eq!(stream.from(3).as_ref(), b"defghij");
        assert_eq!(put(&mut stream, 5, b"fX"), Err(Refused::Conflict));
        assert_eq!(put(&mut stream, 9, b"Xk"), Err(Refused::Conflict));
        assert_eq!(stream.from(0).as_ref(), b"abcdefghij");
    }

    #[test]
    fn an_offset_alone_allocates_nothing() {
        let mut stream = CryptoStream::default();
        put(&mut stream, 65_535, b"z").unwrap();
        assert!(stream.weight() < 1024);
        assert_eq!(put(&mut stream, 65_535, b"zz"), Err(Refused::TooLong));
        assert_eq!(put(&mut stream, u64::MAX, b"z"), Err(Refused::TooLong));
    }

    #[test]
    fn pieces_are_bounded() {
        let mut stream = CryptoStream::default();
        let refused = (0..32_000u64).find_map(|n| put(&mut stream, n * 2, b"x").err());
        assert_eq!(refused, Some(Refused::TooLong));
        assert!(stream.weight() < 256 << 10);
    }

    proptest! {
        #[test]
        fn any_cut_in_any_order_gives_the_whole(
            length in 1usize..600,
            cuts in prop::collection::vec((0usize..600, 1usize..80), 0..60),
            order in any::<u64>(),
        ) {
            let whole: Vec<u8> = (0..length).map(|n| (n * 31 % 251) as u8).collect();
            let mut frames: Vec<(usize, usize)> =
                cuts.into_iter().map(|(at, size)| (at.min(length), (at + size).min(length))).collect();
            frames.extend((0..length).step_by(7).map(|at| (at, (at + 7).min(length))));
            let count = frames.len();
            let mut stream = CryptoStream::default();
            for n in 0..count {
                // A walk that reaches every frame, whatever the seed.
                let step = (order as usize % count) | 1;
                let (start, end) = frames[(n * step) % count];
                put(&mut stream, start as u64, &whole[start..end]).unwrap();
            }
            for (start, end) in frames {
                put(&mut stream, start as u64, &whole[start..end]).unwrap();
            }
            prop_assert_eq!(stream.from(0).into_owned(), whole);
        }
    }
}
