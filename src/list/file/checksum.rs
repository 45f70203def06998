//! The checksum of a compiled file.

/// Against accidents, not against an adversary who may write the file. Each octet changes one of eight lanes, and no
/// two states of a lane become one, so a single change is always seen. Reads 64 octets in a few cycles.
#[derive(Default)]
pub(in crate::list) struct Checksum {
    lanes: [u64; 8],
    length: u64,
    held: Vec<u8>,
}

impl Checksum {
    pub(in crate::list) fn add(&mut self, octets: &[u8]) {
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

    pub(in crate::list) fn finish(mut self) -> u64 {
        let mut last = std::mem::take(&mut self.held);
        last.resize(BLOCK, 0);
        self.blocks(&last);
        self.lanes.iter().fold(self.length, |sum, lane| (sum ^ lane).wrapping_mul(ODD).rotate_left(31))
    }
}

const BLOCK: usize = 64;
/// 2^64 divided by the golden ratio, odd, so that multiplying by it loses nothing.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(octets: &[u8]) -> u64 {
        let mut sum = Checksum::default();
        sum.add(octets);
        sum.finish()
    }

    proptest! {
        #[test]
        fn pieces_have_the_sum_of_the_whole(octets in prop::collection::vec(any::<u8>(), 0..500), cuts in prop::collection::vec(0usize..500, 0..5)) {
            let mut pieces = Checksum::default();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(octets.len())).chain([0, octets.len()]).collect();
            cuts.sort_unstable();
            cuts.windows(2).for_each(|pair| pieces.add(&octets[pair[0]..pair[1]]));
            prop_assert_eq!(pieces.finish(), sum(&octets));
        }

        #[test]
        fn another_octet_or_length_has_another_sum(octets in prop::collection::vec(any::<u8>(), 1..300), at in any::<usize>(), change in 1u8..) {
            let mut other = octets.clone();
            other[at % octets.len()] ^= change;
            prop_assert_ne!(sum(&other), sum(&octets));
            other = octets.clone();
            other.push(0);
            prop_assert_ne!(sum(&other), sum(&octets));
        }
    }
}
