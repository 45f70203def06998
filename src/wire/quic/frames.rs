//! The frames that an Initial packet may hold (RFC 9000, section 12.4): PADDING, PING, ACK, CRYPTO, CONNECTION_CLOSE.

use crate::wire::Malformed;
use crate::wire::reader::Reader;

/// A CRYPTO frame (RFC 9000, section 19.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crypto<'a> {
    pub offset: u64,
    pub data: &'a [u8],
}

/// The CRYPTO frames among `payload`, in their order on the wire. An error ends them.
pub fn frames(payload: &[u8]) -> impl Iterator<Item = Result<Crypto<'_>, Malformed>> {
    let mut reader = Reader::new(payload);
    std::iter::from_fn(move || {
        let next = next_crypto(&mut reader);
        if matches!(next, Some(Err(_))) {
            reader = Reader::new(&[]);
        }
        next
    })
}

fn next_crypto<'a>(reader: &mut Reader<'a>) -> Option<Result<Crypto<'a>, Malformed>> {
    loop {
        // Padding is most of a packet: skip it many octets at a time.
        let padding = reader.rest().iter().take_while(|octet| **octet == 0).count();
        reader.take(padding)?;
        if reader.is_empty() {
            return None;
        }
        let Some(kind) = reader.varint() else { return Some(Err(bad("Frame Type", "RFC 9000, 12.4"))) };
        let skipped = match kind {
            0 | 1 => Some(()),
            2 => acknowledgement(reader),
            3 => acknowledgement(reader).and_then(|()| varints(reader, 3)),
            6 => return Some(crypto(reader).ok_or(bad("CRYPTO", "RFC 9000, 19.6"))),
            0x1c => connection_close(reader),
            _ => None,
        };
        if skipped.is_none() {
            return Some(Err(bad("Frame", "RFC 9000, 12.4")));
        }
    }
}

fn crypto<'a>(reader: &mut Reader<'a>) -> Option<Crypto<'a>> {
    Some(Crypto { offset: reader.varint()?, data: reader.vec_varint()? })
}

/// RFC 9000, section 19.3. Each range takes two octets or more, so their number ends with the packet.
fn acknowledgement(reader: &mut Reader<'_>) -> Option<()> {
    varints(reader, 2)?;
    let ranges = reader.varint()?;
    varints(reader, ranges.checked_mul(2)?.checked_add(1)?)
}

/// RFC 9000, section 19.19.
fn connection_close(reader: &mut Reader<'_>) -> Option<()> {
    varints(reader, 2)?;
    reader.vec_varint().map(|_| ())
}

fn varints(reader: &mut Reader<'_>, count: u64) -> Option<()> {
    (0..count).try_for_each(|_| reader.varint().map(|_| ()))
}

fn bad(field: &'static str, section: &'static str) -> Malformed {
    Malformed { field, section }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(payload: &[u8]) -> Vec<Result<Crypto<'_>, &'static str>> {
        frames(payload).map(|frame| frame.map_err(|malformed| malformed.field)).collect()
    }

    #[test]
    fn crypto_frames_are_found_among_the_others() {
        let payload = [&[0, 0, 1, 6, 0x40, 5, 2, 7, 8][..], &[2, 9, 0, 1, 0, 1, 1], &[3, 0, 0, 0, 0, 1, 1, 1]];
        let payload = [&payload.concat()[..], &[0x1c, 0, 0, 2, 1, 1, 6, 0, 1, 9, 0, 0]].concat();
        assert_eq!(read(&payload), [Ok(Crypto { offset: 5, data: &[7, 8] }), Ok(Crypto { offset: 0, data: &[9] })]);
    }

    #[test]
    fn a_frame_that_an_initial_packet_may_not_hold_ends_the_reading() {
        assert_eq!(read(&[6, 0, 1, 9, 8, 0, 6, 0, 1, 9]), [Ok(Crypto { offset: 0, data: &[9] }), Err("Frame")]);
    }

    #[test]
    fn frames_that_are_cut_short_are_malformed() {
        assert_eq!(read(&[6, 0, 3, 1, 2]), [Err("CRYPTO")]);
        assert_eq!(read(&[2, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]), [Err("Frame")]);
        assert_eq!(read(&[0x40]), [Err("Frame Type")]);
    }
}
