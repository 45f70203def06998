//! Initial packets and hellos made to measure, for tests.

use rustls::Side;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::Keys;

use super::Version;

/// An Initial packet under the keys of `first`, sealed by rustls, in a datagram of `size` octets or more.
pub(crate) struct Initial<'a> {
    pub(crate) version: Version,
    pub(crate) first: &'a [u8],
    pub(crate) destination: &'a [u8],
    pub(crate) token: &'a [u8],
    pub(crate) number: u64,
    pub(crate) number_length: usize,
    pub(crate) size: usize,
    /// Clear where a client greases it (RFC 9287).
    pub(crate) fixed_bit: bool,
    /// The reserved bits of the first octet.
    pub(crate) reserved: u8,
}

impl Initial<'static> {
    pub(crate) const USUAL: Self = Self {
        version: Version::V1,
        first: b"first-id",
        destination: b"first-id",
        token: b"",
        number: 0,
        number_length: 4,
        size: 1200,
        fixed_bit: true,
        reserved: 0,
    };
}

impl Initial<'_> {
    pub(crate) fn seal(&self, frames: &[u8]) -> Vec<u8> {
        let (version, number, kind) = match self.version {
            Version::V1 => (rustls::quic::Version::V1, 1u32, 0),
            Version::V2 => (rustls::quic::Version::V2, 0x6b33_43cf, 1),
            Version::Draft29 => (rustls::quic::Version::V1Draft, 0xff00_001d, 0),
            Version::Draft23 => unimplemented!("rustls has no keys for it"),
        };
        let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap();
        let keys = Keys::initial(version, suite, suite.quic.unwrap(), self.first, Side::Client).local;
        let fixed = if self.fixed_bit { 0x40 } else { 0 };
        let mut header = vec![0x80 | fixed | kind << 4 | self.reserved | (self.number_length - 1) as u8];
        header.extend(number.to_be_bytes());
        for id in [self.destination, b"own"] {
            header.push(id.len() as u8);
            header.extend(id);
        }
        header.extend(varint(self.token.len()));
        header.extend(self.token);
        let mut payload = frames.to_vec();
        let rest = self.size.saturating_sub(header.len() + 4 + self.number_length + TAG);
        payload.resize(payload.len().max(rest).max(4), 0);
        header.extend(((self.number_length + payload.len() + TAG) as u32 | 0x8000_0000).to_be_bytes());
        let number_at = header.len();
        header.extend(&self.number.to_be_bytes()[8 - self.number_length..]);
        let tag = keys.packet.encrypt_in_place(self.number, &header, &mut payload).unwrap();
        payload.extend(tag.as_ref());
        let sample = payload[4 - self.number_length..][..16].to_vec();
        let (first, number) = header.split_at_mut(number_at);
        keys.header.encrypt_in_place(&sample, &mut first[0], number).unwrap();
        header.extend(payload);
        header
    }
}

pub(crate) fn crypto(offset: usize, data: &[u8]) -> Vec<u8> {
    [&[6][..], &varint(offset), &varint(data.len()), data].concat()
}

fn varint(value: usize) -> [u8; 4] {
    (value as u32 | 0x8000_0000).to_be_bytes()
}

/// A ClientHello with this server name, and `padding` octets of an extension that means nothing.
pub(crate) fn hello(name: &str, padding: usize) -> Vec<u8> {
    let list = [&[0][..], &length(name.len()), name.as_bytes()].concat();
    let names = [&length(list.len())[..], &list].concat();
    let mut extensions = [&[0, 0][..], &length(names.len()), &names].concat();
    extensions.extend([&[0x1a, 0x1a][..], &length(padding), &vec![7; padding]].concat());
    let body =
        [&[3, 3][..], &[5; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &length(extensions.len()), &extensions].concat();
    [&(body.len() as u32 | 1 << 24).to_be_bytes()[..], &body].concat()
}

fn length(value: usize) -> [u8; 2] {
    (value as u16).to_be_bytes()
}

const TAG: usize = 16;
