//! Strings in HPACK's Huffman code (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: the lengths of its codes give the codes, since those of one length are numbered in the order
//! of their symbols.

use super::COMPRESSION;
use crate::wire::Malformed;

/// Appends what `coded` spells to `text`, which must not grow past `limit` octets.
pub(super) fn decode(coded: &[u8], text: &mut Vec<u8>, limit: usize) -> Result<(), Malformed> {
    let (mut code, mut length) = (0_u32, 0_usize);
    for octet in coded {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(octet >> bit & 1);
            length += 1;
            if let Some(symbol) = symbol(code, length)? {
                if text.len() >= limit {
                    return Err(COMPRESSION);
                }
                text.push(symbol);
                (code, length) = (0, 0);
            }
        }
    }
    // What is left is padding: fewer than eight bits, all ones.
    let is_padding = length < 8 && code == (1 << length) - 1;
    if is_padding { Ok(()) } else { Err(COMPRESSION) }
}

/// The symbol of a code; `None` if no code of that length is this one.
fn symbol(code: u32, length: usize) -> Result<Option<u8>, Malformed> {
    let Some(row) = ROWS.get(length) else { return Err(COMPRESSION) };
    let Some(place) = code.checked_sub(row.first_code).filter(|place| *place < row.count) else { return Ok(None) };
    let place = usize::try_from(place).map_err(|_| COMPRESSION)?;
    let symbol = SYMBOLS.get(row.first_symbol + place).copied().ok_or(COMPRESSION)?;
    // The end-of-string symbol may not be spelled out.
    u8::try_from(symbol).map(Some).map_err(|_| COMPRESSION)
}

/// The codes of one length.
#[derive(Clone, Copy)]
struct Row {
    first_code: u32,
    count: u32,
    /// Where the symbols of this length begin in `SYMBOLS`.
    first_symbol: usize,
}

/// The symbols, by the length of their codes and then by value.
const SYMBOLS: [u16; 257] = {
    let mut symbols = [0; 257];
    let (mut filled, mut length) = (0, 1);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                symbols[filled] = symbol as u16;
                filled += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
};

const ROWS: [Row; LONGEST + 1] = {
    let mut rows = [Row { first_code: 0, count: 0, first_symbol: 0 }; LONGEST + 1];
    let mut symbol = 0;
    while symbol < 257 {
        rows[LENGTHS[symbol] as usize].count += 1;
        symbol += 1;
    }
    let mut length = 1;
    while length <= LONGEST {
        let above = rows[length - 1];
        rows[length].first_code = (above.first_code + above.count) << 1;
        rows[length].first_symbol = above.first_symbol + above.count as usize;
        length += 1;
    }
    rows
};

const LONGEST: usize = 30;

/// The length of the code of each octet, and of the end of a string.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strings_of_the_rfc_are_read() {
        // RFC 7541, C.4.1 and C.6.1.
        let read = |coded: &[u8]| {
            let mut text = Vec::new();
            decode(coded, &mut text, 100).map(|()| String::from_utf8(text).unwrap())
        };
        let host = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(read(&host).unwrap(), "www.example.com");
        assert_eq!(read(&[0xae, 0xc3, 0x77, 0x1a, 0x4b]).unwrap(), "private");
        assert_eq!(read(&[0x64, 0x02]).unwrap(), "302");
        assert!(read(&[0xff, 0xff, 0xff, 0xff]).is_err(), "end of string");
        assert!(read(&[0x64, 0x02, 0xff]).is_err(), "a whole octet of padding");
        assert!(read(&[0x60]).is_err(), "padding of zeros");
    }
}
