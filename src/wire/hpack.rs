//! Fields from HPACK (RFC 7541), as an onlooker between client and server.
//!
//! Own, because the decoders to be had panic on random bytes or cannot follow a connection whose settings another
//! party sends: the size of the table is whatever the client says it is, up to a limit of ours.
//!
//! Fails closed: what the RFC calls a decoding error is [`Malformed`], and so is a table over [`MOST_TABLE`].

mod huffman;

use std::collections::VecDeque;

use super::{Fault, Malformed};

/// The state that the field blocks of one direction share.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// The dynamic table, newest first (RFC 7541, section 2.3.2).
    entries: VecDeque<Entry>,
    /// Octets in the table as RFC 7541 counts them (section 4.1).
    size: usize,
    capacity: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    name: Box<[u8]>,
    value: Box<[u8]>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, capacity: FIRST_CAPACITY }
    }
}

impl Decoder {
    /// Tells `sink` of each field of a complete field block, in order.
    pub fn decode(
        &mut self,
        block: &[u8],
        mut sink: impl FnMut(&[u8], &[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut input = Input(block);
        let mut may_resize = true;
        let mut room = LARGEST_LIST;
        let mut count = |name: &[u8], value: &[u8]| {
            room = room.checked_sub(name.len() + value.len() + OVERHEAD).ok_or(COMPRESSION)?;
            sink(name, value)
        };
        while let Some(first) = input.0.first().copied() {
            if first & 0xe0 == 0x20 {
                self.resize(input.number(5)?, may_resize)?;
                continue;
            }
            may_resize = false;
            if first & 0x80 != 0 {
                let (name, value) = self.indexed(input.number(7)?)?;
                count(name, value)?;
                continue;
            }
            let is_kept = first & 0x40 != 0;
            let index = input.number(if is_kept { 6 } else { 4 })?;
            let name = if index == 0 { input.string()? } else { self.indexed(index)?.0.to_vec() };
            let value = input.string()?;
            count(&name, &value)?;
            if is_kept {
                self.insert(name, value);
            }
        }
        Ok(())
    }

    /// Octets that the table takes, with what it takes to keep them.
    pub fn kept(&self) -> usize {
        self.size + self.entries.len() * OVERHEAD
    }

    fn resize(&mut self, capacity: usize, is_in_place: bool) -> Result<(), Malformed> {
        if !is_in_place || capacity > MOST_TABLE {
            return Err(COMPRESSION);
        }
        self.capacity = capacity;
        self.shrink_to(capacity);
        Ok(())
    }

    fn indexed(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        let place = index.checked_sub(1).ok_or(COMPRESSION)?;
        if let Some((name, value)) = STATIC.get(place) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = place.checked_sub(STATIC.len()).and_then(|place| self.entries.get(place)).ok_or(COMPRESSION)?;
        Ok((&entry.name, &entry.value))
    }

    fn insert(&mut self, name: Vec<u8>, value: Vec<u8>) {
        let size = name.len() + value.len() + OVERHEAD;
        self.shrink_to(self.capacity.saturating_sub(size));
        if size <= self.capacity {
            self.size += size;
            self.entries.push_front(Entry { name: name.into(), value: value.into() });
        }
    }

    fn shrink_to(&mut self, size: usize) {
        while self.size > size {
            let Some(oldest) = self.entries.pop_back() else { return self.size = 0 };
            self.size = self.size.saturating_sub(oldest.name.len() + oldest.value.len() + OVERHEAD);
        }
    }
}

/// What is left of a field block.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn octet(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(COMPRESSION)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A number behind a prefix of some bits (RFC 7541, section 5.1).
    fn number(&mut self, prefix: u32) -> Result<usize, Malformed> {
        let most = (1_usize << prefix) - 1;
        let mut value = usize::from(self.octet()?) & most;
        if value < most {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let octet = self.octet()?;
            value += usize::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(COMPRESSION)
    }

    /// A string, plain or in Huffman code (RFC 7541, section 5.2).
    fn string(&mut self) -> Result<Vec<u8>, Malformed> {
        let is_coded = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.number(7)?;
        let (octets, rest) = self.0.split_at_checked(length).ok_or(COMPRESSION)?;
        self.0 = rest;
        if !is_coded {
            return Ok(octets.to_vec());
        }
        let mut text = Vec::with_capacity(octets.len());
        huffman::decode(octets, &mut text, LONGEST_STRING)?;
        Ok(text)
    }
}

/// The size of a dynamic table before anyone changes it (RFC 9113, section 6.5.2).
const FIRST_CAPACITY: usize = 4096;
/// The largest dynamic table that is followed for one connection.
pub const MOST_TABLE: usize = 64 * 1024;
const LONGEST_STRING: usize = 128 * 1024;
/// The most that the fields of one block may come to, counted as in a table: a few octets can call up a large entry
/// again and again.
const LARGEST_LIST: usize = 256 * 1024;
/// What an entry counts beside its octets (RFC 7541, section 4.1).
const OVERHEAD: usize = 32;

const COMPRESSION: Malformed = Malformed { field: "field block", section: "RFC 7541, 3" };

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Fault> {
        let mut fields = Vec::new();
        decoder.decode(block, |name, value| {
            fields.push((String::from_utf8_lossy(name).into(), String::from_utf8_lossy(value).into()));
            Ok(())
        })?;
        Ok(fields)
    }

    fn unhex(text: &str) -> Vec<u8> {
        text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn the_requests_of_the_rfc_are_read_with_the_table_that_they_share() {
        // RFC 7541, C.3 and C.4.
        let plain = [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ];
        let coded = [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::default();
            let read = blocks.map(|block| fields(&mut decoder, &unhex(block)).unwrap());
            let authority = (":authority".to_owned(), "www.example.com".to_owned());
            assert!(read.iter().all(|fields| fields[3] == authority), "{read:?}");
            assert_eq!(read[1][4], ("cache-control".into(), "no-cache".into()));
            assert_eq!(read[2][1], (":scheme".into(), "https".into()));
            assert_eq!(read[2][4], ("custom-key".into(), "custom-value".into()));
            assert_eq!(decoder.size, 164);
        }
    }

    #[test]
    fn what_the_rfc_calls_an_error_is_malformed() {
        let cases = ["80", "be", "ff", "ffffffffff0f", "418cf1e3", "0085ffffffff", "3fe1ffffff7f", "823f00", "40"];
        for block in cases {
            assert!(fields(&mut Decoder::default(), &unhex(block)).is_err(), "{block}");
        }
        // A table of 64 KiB is followed, a larger one is not.
        assert!(fields(&mut Decoder::default(), &unhex("3fe1ff03")).is_ok());
        assert!(fields(&mut Decoder::default(), &unhex("3fe2ff03")).is_err());
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut decoder = Decoder::default();
        fields(&mut decoder, &unhex("410161")).unwrap();
        assert!(fields(&mut decoder, &unhex("be")).is_ok());
        let large = [&[0x41, 0x7f, 0xa2, 0x1f][..], &[b'a'; 4129]].concat();
        fields(&mut decoder, &large).unwrap();
        assert!(fields(&mut decoder, &unhex("be")).is_err());
        assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
    }

    #[test]
    fn a_block_that_calls_up_a_large_entry_again_and_again_is_refused() {
        let mut decoder = Decoder::default();
        let mut block = [&[0x41, 0x7f, 0x81, 0x1e][..], &[b'a'; 3968]].concat();
        block.extend([0xbe; 1000]);
        assert!(fields(&mut decoder, &block).is_err());
    }

    proptest! {
        #[test]
        fn any_blocks_are_read_without_a_panic_and_within_the_limits(
            blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..6),
        ) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _ = fields(&mut decoder, &block);
                prop_assert!(decoder.size <= MOST_TABLE);
                let counted: usize = decoder.entries.iter().map(|e| e.name.len() + e.value.len() + OVERHEAD).sum();
                prop_assert_eq!(counted, decoder.size);
            }
        }
    }
}
