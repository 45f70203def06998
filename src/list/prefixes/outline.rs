//! What two runs of ranges differ in, without a look at what they share.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::LazyLock;

use super::ranges::{Address, Ranges};

/// A run of ranges in pieces, each with its digest. Where a piece ends, the ranges there tell and not their number: one
/// that comes or goes changes a piece or two.
#[derive(Debug)]
pub(super) struct Outline(Vec<Piece>);

#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Of its ranges, under a key that nobody outside knows.
    digest: u64,
    /// Its first range.
    start: usize,
}

impl Outline {
    pub(super) fn of<A: Address + Hash>(ranges: &Ranges<A>) -> Self {
        let mut pieces = Vec::new();
        let mut piece = Piece { digest: 0, start: 0 };
        for (index, range) in ranges.iter().enumerate() {
            let own = KEY.hash_one(range);
            piece.digest = KEY.hash_one((piece.digest, own));
            if own % LENGTH == 0 {
                pieces.push(piece);
                piece = Piece { digest: 0, start: index + 1 };
            }
        }
        if piece.start < ranges.len() {
            pieces.push(piece);
        }
        Self(pieces)
    }

    /// The pieces that `other` lacks, in order: the first range of each, and the one after its last if there is one.
    pub(super) fn unlike(&self, other: &Self) -> impl Iterator<Item = (usize, Option<usize>)> {
        let known: HashSet<u64> = other.0.iter().map(|piece| piece.digest).collect();
        let ends = self.0.iter().skip(1).map(|next| Some(next.start)).chain([None]);
        let pieces = self.0.iter().zip(ends).filter(move |(piece, _)| !known.contains(&piece.digest));
        pieces.map(|(piece, end)| (piece.start, end))
    }
}

static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
/// Ranges of a piece, in the mean.
const LENGTH: u64 = 256;
