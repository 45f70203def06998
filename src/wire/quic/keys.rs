//! The keys of Initial packets (RFC 9001, sections 5.2 to 5.4; RFC 9369, section 3.3).

use std::sync::LazyLock;

use ring::aead::quic::{AES_128, HeaderProtectionKey};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

use super::Version;
use super::packet::{ConnectionId, LongHeader};

/// What opens the Initial packets that a client sends on a connection.
pub struct InitialKeys {
    payload: LessSafeKey,
    iv: [u8; NONCE_LEN],
    header: HeaderProtectionKey,
}

/// An Initial packet without its protection.
#[derive(Debug)]
pub struct Opened<'a> {
    pub number: u64,
    pub frames: &'a [u8],
}

impl InitialKeys {
    /// `first` is the destination connection ID of the client's first Initial packet, or after a Retry that of the
    /// first one which follows it. `None` only if the cryptography library refuses.
    pub fn of_client(version: Version, first: &ConnectionId) -> Option<Self> {
        let names = names(version);
        let initial = names.salt.extract(first.as_bytes());
        let mut secret = [0; 32];
        expand(&initial, b"client in", &mut secret)?;
        let client = Prk::new_less_safe(HKDF_SHA256, &secret);
        let (mut key, mut iv, mut header) = ([0; 16], [0; NONCE_LEN], [0; 16]);
        expand(&client, names.key, &mut key)?;
        expand(&client, names.iv, &mut iv)?;
        expand(&client, names.header, &mut header)?;
        Some(Self {
            payload: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).ok()?),
            iv,
            header: HeaderProtectionKey::new(&AES_128, &header).ok()?,
        })
    }

    /// Opens an Initial packet into `scratch`. `None`: it is not sealed with these keys.
    ///
    /// `largest` is the largest packet number seen so far on the connection. The number on the wire is cut short, and
    /// means what is nearest to the largest that the *server* has seen, which may be less: both readings are tried.
    pub fn open<'s>(
        &self,
        packet: &LongHeader<'_>,
        largest: Option<u64>,
        scratch: &'s mut Vec<u8>,
    ) -> Option<Opened<'s>> {
        let protected = packet.whole.get(packet.number_at..)?;
        let mask = self.header.new_mask(protected.get(4..4 + SAMPLE)?).ok()?;
        let first = packet.whole.first()? ^ (mask[0] & 0x0f);
        let length = usize::from(first & 3) + 1;
        let number_end = packet.number_at + length;
        let mut cut = 0u64;
        let mut header = [0u8; MAX_HEADER];
        let mut long_header = Vec::new();
        let header = match header.get_mut(..number_end) {
            Some(header) => header,
            None => {
                long_header.resize(number_end, 0);
                long_header.as_mut_slice()
            }
        };
        header.copy_from_slice(packet.whole.get(..number_end)?);
        *header.first_mut()? = first;
        for (octet, mask) in header.get_mut(packet.number_at..)?.iter_mut().zip(mask.get(1..)?) {
            *octet ^= mask;
            cut = cut << 8 | u64::from(*octet);
        }
        let sealed = packet.whole.get(number_end..)?;
        let near = nearest(cut, length, largest);
        let number = [near, cut].into_iter().take(if near == cut { 1 } else { 2 }).find(|number| {
            scratch.clear();
            scratch.extend_from_slice(sealed);
            self.payload.open_in_place(self.nonce(*number), Aad::from(&*header), scratch).is_ok()
        })?;
        let frames = scratch.get(..scratch.len().checked_sub(AES_128_GCM.tag_len())?)?;
        Some(Opened { number, frames })
    }

    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.iv;
        for (octet, number) in nonce.iter_mut().rev().zip(number.to_le_bytes()) {
            *octet ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

impl std::fmt::Debug for InitialKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InitialKeys")
    }
}

/// The packet number that a cut one of `length` octets stands for (RFC 9000, appendix A.3).
fn nearest(cut: u64, length: usize, largest: Option<u64>) -> u64 {
    let expected = largest.map_or(0, |largest| largest.saturating_add(1));
    let window = 1u64 << (length * 8);
    let candidate = (expected & !(window - 1)) | cut;
    if candidate + window / 2 <= expected && candidate < (1 << 62) - window {
        candidate + window
    } else if candidate > expected + window / 2 && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

/// What a version derives its keys with.
struct Names {
    salt: Salt,
    key: &'static [u8],
    iv: &'static [u8],
    header: &'static [u8],
}

fn names(version: Version) -> &'static Names {
    match version {
        Version::Draft23 => &DRAFT_23,
        Version::Draft29 => &DRAFT_29,
        Version::V1 => &V1,
        Version::V2 => &V2,
    }
}

// The salt's half of the extraction is the same for every connection, so it is prepared once.
static DRAFT_23: LazyLock<Names> =
    LazyLock::new(|| first_names(0xc3ee_f712_c72e_bb5a_11a7_d243_2bb4_6365, 0xbef9_f502));
static DRAFT_29: LazyLock<Names> =
    LazyLock::new(|| first_names(0xafbf_ec28_9993_d24c_9e97_86f1_9c61_11e0, 0x4390_a899));
static V1: LazyLock<Names> = LazyLock::new(|| first_names(0x3876_2cf7_f559_34b3_4d17_9ae6_a4c8_0cad, 0xccbb_7f0a));
static V2: LazyLock<Names> = LazyLock::new(|| Names {
    salt: salt(0x0ded_e3de_f700_a6db_8193_81be_6e26_9dcb, 0xf9bd_2ed9),
    key: b"quicv2 key",
    iv: b"quicv2 iv",
    header: b"quicv2 hp",
});

fn first_names(high: u128, low: u32) -> Names {
    Names { salt: salt(high, low), key: b"quic key", iv: b"quic iv", header: b"quic hp" }
}

fn salt(high: u128, low: u32) -> Salt {
    let mut octets = [0; 20];
    octets[..16].copy_from_slice(&high.to_be_bytes());
    octets[16..].copy_from_slice(&low.to_be_bytes());
    Salt::new(HKDF_SHA256, &octets)
}

/// HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
fn expand<const N: usize>(secret: &Prk, label: &[u8], out: &mut [u8; N]) -> Option<()> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let length = u16::try_from(N).ok()?.to_be_bytes();
    let label_length = [u8::try_from(PREFIX.len() + label.len()).ok()?];
    let info = [&length[..], &label_length, PREFIX, label, &[0]];
    secret.expand(&info, Length(N)).ok()?.fill(out).ok()
}

const PREFIX: &[u8] = b"tls13 ";
const SAMPLE: usize = 16;
/// Room for a header without a long token; others go to the heap.
const MAX_HEADER: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::quic::forge::Initial;
    use crate::wire::quic::{Packet, packet};

    #[test]
    fn cut_packet_numbers_are_read_as_in_rfc_9000_appendix_a_3() {
        assert_eq!(nearest(0x9b32, 2, Some(0xa82f_30ea)), 0xa82f_9b32);
        assert_eq!(nearest(200, 1, None), 200);
        assert_eq!(nearest(200, 1, Some(0)), 200);
        assert_eq!(nearest(44, 1, Some(200)), 300);
        assert_eq!(nearest(0xffff_fffe, 4, Some(3)), 0xffff_fffe);
    }

    #[test]
    fn what_another_implementation_seals_is_opened() {
        for version in [Version::V1, Version::V2, Version::Draft29] {
            for number_length in 1..=4 {
                for token in [&b""[..], &[9; 300]] {
                    let sealed =
                        Initial { version, number: 77, number_length, token, ..Initial::USUAL }.seal(b"\x01\x01\x01");
                    let Ok(Packet::Long(long)) = packet(&sealed) else { panic!("no long header") };
                    let keys = InitialKeys::of_client(version, &long.destination).unwrap();
                    let mut scratch = Vec::new();
                    let opened = keys.open(&long, None, &mut scratch).unwrap();
                    assert_eq!(opened.number, 77);
                    assert!(opened.frames.starts_with(&[1, 1, 1, 0]));
                    let other = InitialKeys::of_client(version, &ConnectionId::new(b"other-id").unwrap()).unwrap();
                    assert!(other.open(&long, None, &mut scratch).is_none());
                }
            }
        }
    }

    #[test]
    fn a_cut_number_is_read_both_ways() {
        let sealed = Initial { number: 44, number_length: 1, ..Initial::USUAL }.seal(b"\x01");
        let Ok(Packet::Long(long)) = packet(&sealed) else { panic!("no long header") };
        let keys = InitialKeys::of_client(Version::V1, &long.destination).unwrap();
        for largest in [None, Some(0), Some(200)] {
            assert_eq!(keys.open(&long, largest, &mut Vec::new()).unwrap().number, 44);
        }
    }
}
