//! Whether a server goes on with the client's first hello (RFC 8446, section 4.1.3).

use crate::wire::reader::Reader;

/// Whether a complete handshake message is a ServerHello, and not a HelloRetryRequest, which has the same type.
pub fn goes_on(message: &[u8]) -> bool {
    let mut reader = Reader::new(message);
    let random = (|| {
        let kind = reader.u8()?;
        let _length = reader.u24()?;
        let _version = reader.u16()?;
        reader.take(RETRY.len()).filter(|_| kind == SERVER_HELLO)
    })();
    random.is_some_and(|random| random != RETRY)
}

const SERVER_HELLO: u8 = 2;
/// The SHA-256 of `HelloRetryRequest`.
const RETRY: &[u8; 32] = b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91\
\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c";
