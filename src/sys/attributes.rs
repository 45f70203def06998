//! Attributes of netlink messages, as the kernel sends them.

/// Walks attributes: kind without its flags, and value. Ends at the first that is not whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const KIND: u16 = 0x3fff;
        let [l0, l1, k0, k1] = *self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & KIND, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attribute_is_found_and_a_damaged_one_ends_the_walk() {
        let mut octets = Vec::new();
        for (kind, value) in [(1_u16, &b"abc"[..]), (0x8002, b""), (3, b"12345678")] {
            octets.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            octets.extend(kind.to_ne_bytes());
            octets.extend(value);
            octets.resize(octets.len().next_multiple_of(4), 0);
        }
        let all: Vec<_> = Attributes(&octets).collect();
        assert_eq!(all, [(1, &b"abc"[..]), (2, b""), (3, b"12345678")]);
        assert_eq!(Attributes(&octets[..octets.len() - 1]).count(), 2);
        assert_eq!(Attributes(&[3, 0, 1, 0]).count(), 0, "shorter than its own header");
    }
}
