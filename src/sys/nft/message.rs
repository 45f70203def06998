//! Netlink messages for nf_tables: attributes, nests and the batch around them, as bytes.

use std::io;

use crate::firewall::TABLE;

pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
pub(super) const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
pub(super) const DELETE_CHAIN: u16 = 5;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
pub(super) const DELETE_RULE: u16 = 8;
pub(super) const NEW_SET: u16 = 9;
pub(super) const GET_SET: u16 = 10;
pub(super) const DELETE_SET: u16 = 11;
pub(super) const NEW_ELEMENT: u16 = 12;
pub(super) const GET_ELEMENT: u16 = 13;
pub(super) const DELETE_ELEMENT: u16 = 14;
pub(super) const DESTROY_ELEMENT: u16 = 30;
pub(super) const GET_GENERATION: u16 = 16;
pub(super) const NEW_OBJECT: u16 = 18;
pub(super) const GET_OBJECT_RESET: u16 = 21;

pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const CREATE: u16 = 0x400;
/// All objects of a kind.
pub(super) const DUMP: u16 = 0x300;
pub(super) const APPEND: u16 = 0x800;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_BATCH_BEGIN: u16 = 0x10;
const NFNL_BATCH_END: u16 = 0x11;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NESTED: u16 = 0x8000;

/// Bytes before the first attribute: the netlink header and the netfilter one.
const HEADERS: usize = 20;

/// One netlink message, complete but for its sequence number.
#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
    /// What it is about, for errors.
    pub(super) object: String,
}

impl Message {
    /// `kind` is one of the constants above.
    pub(super) fn new(kind: u16, flags: u16, object: impl Into<String>) -> Self {
        Self::with_header((NFNL_SUBSYS_NFTABLES << 8) | kind, REQUEST | flags, NFPROTO_INET, 0, object.into())
    }

    /// Every message about something inside our table begins so.
    pub(super) fn in_table(kind: u16, flags: u16, table_attribute: u16, object: impl Into<String>) -> Self {
        let mut message = Self::new(kind, flags, object);
        message.text(table_attribute, TABLE);
        message
    }

    pub(super) fn batch_begin() -> Self {
        Self::with_header(NFNL_BATCH_BEGIN, REQUEST, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, "the transaction".to_owned())
    }

    pub(super) fn batch_end() -> Self {
        Self::with_header(NFNL_BATCH_END, REQUEST, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, "the transaction".to_owned())
    }

    fn with_header(kind: u16, flags: u16, family: u8, resource: u16, object: String) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        debug_assert_eq!(bytes.len(), HEADERS);
        Self { bytes, object }
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.header(kind, value.len());
        self.bytes.extend(value);
        self.pad();
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// With the closing zero that the kernel wants.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.header(kind, value.len() + 1);
        self.bytes.extend(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// An attribute that holds attributes. It may hold 65,531 bytes: callers split what can grow beyond.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let begin = self.bytes.len();
        self.header(kind | NESTED, 0);
        fill(self);
        let length = u16::try_from(self.bytes.len() - begin).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(begin..begin + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn ask_for_ack(&mut self) {
        if let Some([low, high]) = self.bytes.get_mut(6..8) {
            [*low, *high] = (u16::from_ne_bytes([*low, *high]) | ACK).to_ne_bytes();
        }
    }

    /// Appends itself to a batch.
    pub(super) fn write(mut self, sequence: u32, to: &mut Vec<u8>) {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        for (at, value) in [(0, length), (8, sequence)] {
            if let Some(place) = self.bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
        to.append(&mut self.bytes);
    }

    fn header(&mut self, kind: u16, length: usize) {
        let length = u16::try_from(length + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Shows the bodies of the messages in a datagram that answer the question of this number; true at the end of the answer.
pub(super) fn answers_of(mut datagram: &[u8], sequence: u32, found: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    const NETLINK_HEADER: usize = 16;
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    while let Some(&[l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3]) = datagram.first_chunk::<12>() {
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        let body = datagram.get(NETLINK_HEADER..length).ok_or_else(damaged)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        if u32::from_ne_bytes([s0, s1, s2, s3]) != sequence {
            continue;
        }
        match u16::from_ne_bytes([k0, k1]) {
            DONE => return Ok(true),
            ERROR => {
                let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(code.wrapping_neg())) };
            }
            _ => found(body.get(HEADERS - NETLINK_HEADER..).unwrap_or_default()),
        }
    }
    Ok(false)
}
