//! Fingerprints of a ClientHello: JA3 and JA4.
//!
//! Both leave GREASE out (RFC 8701), so that the same client keeps its fingerprint. They describe what was sent, and
//! anyone can send anything: a fingerprint tells programs apart, it proves nothing.
//!
//! Fails closed: a list in the hello that cannot be read counts as far as it can, and so gives another fingerprint
//! than the one that a policy demands.

use md5::Md5;
use sha2::{Digest, Sha256};

use super::reader::Reader;
use super::tls::{ClientHello, is_grease, u16s};

/// The fingerprints of a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// `771,4865-4866,0-11-10,29-23,0`: JA3 before hashing, GREASE left out.
    pub ja3_full: String,
    /// The MD5 of `ja3_full`, 32 hexadecimal digits.
    pub ja3: String,
    /// `t13d1516h2_8daaf6152771_b186095e22b6`.
    pub ja4: String,
}

/// What carried the hello: the first letter of a JA4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Tcp,
    Quic,
}

impl Fingerprint {
    pub fn of(hello: &ClientHello<'_>, carrier: Carrier) -> Self {
        let ja3_full = ja3_full(hello);
        let ja3 = hex(&Md5::digest(ja3_full.as_bytes()), 32);
        Self { ja3_full, ja3, ja4: ja4(hello, carrier) }
    }
}

/// Version, cipher suites, extensions, groups and point formats, in the order sent and in decimal.
fn ja3_full(hello: &ClientHello<'_>) -> String {
    let mut text = String::with_capacity(256);
    push_decimal(&mut text, hello.version);
    text.push(',');
    push_list(&mut text, u16s(hello.ciphers));
    text.push(',');
    push_list(&mut text, hello.extension_types());
    text.push(',');
    let groups = hello.read.groups.and_then(|body| Reader::new(body).vec16());
    push_list(&mut text, u16s(groups.unwrap_or_default()));
    text.push(',');
    let formats = hello.read.formats.and_then(|body| Reader::new(body).vec8());
    push_list(&mut text, formats.unwrap_or_default().iter().map(|format| u16::from(*format)));
    text
}

fn push_list(text: &mut String, values: impl Iterator<Item = u16>) {
    let mut is_first = true;
    for value in values.filter(|value| !is_grease(*value)) {
        if !is_first {
            text.push('-');
        }
        is_first = false;
        push_decimal(text, value);
    }
}

fn push_decimal(text: &mut String, value: u16) {
    let mut divisor = 10_000;
    while divisor > 1 && value < divisor {
        divisor /= 10;
    }
    while divisor > 0 {
        push_digit(text, (value / divisor) % 10);
        divisor /= 10;
    }
}

fn push_digit(text: &mut String, digit: u16) {
    text.push(DIGITS.get(usize::from(digit)).copied().map_or('?', char::from));
}

/// `t13d1516h2`, then the sorted cipher suites and the sorted extensions with the signature algorithms, both hashed.
fn ja4(hello: &ClientHello<'_>, carrier: Carrier) -> String {
    let mut ciphers: Vec<u16> = u16s(hello.ciphers).filter(|value| !is_grease(*value)).collect();
    let mut extensions: Vec<u16> = hello.extension_types().filter(|kind| !is_grease(*kind)).collect();
    let extension_count = extensions.len();
    extensions.retain(|kind| !matches!(*kind, SERVER_NAME | ALPN));
    ciphers.sort_unstable();
    extensions.sort_unstable();

    let mut text = String::with_capacity(36);
    text.push(match carrier {
        Carrier::Tcp => 't',
        Carrier::Quic => 'q',
    });
    text.push_str(ja4_version(hello));
    text.push(if hello.read.server_name.is_some() { 'd' } else { 'i' });
    push_count(&mut text, ciphers.len());
    push_count(&mut text, extension_count);
    push_alpn(&mut text, hello.first_alpn());
    text.push('_');
    text.push_str(&hash_of_lists(&ciphers, None));
    text.push('_');
    text.push_str(&hash_of_lists(&extensions, signatures(hello)));
    text
}

fn ja4_version(hello: &ClientHello<'_>) -> &'static str {
    match hello.versions().filter(|version| !is_grease(*version)).max().unwrap_or(hello.version) {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        _ => "00",
    }
}

fn push_count(text: &mut String, count: usize) {
    let count = u16::try_from(count).unwrap_or(u16::MAX).min(99);
    push_digit(text, count / 10);
    push_digit(text, count % 10);
}

/// The first and the last character of the first protocol; of its hexadecimal form when either is neither letter nor
/// digit.
fn push_alpn(text: &mut String, alpn: Option<&[u8]>) {
    let (Some(first), Some(last)) = (alpn.and_then(<[u8]>::first), alpn.and_then(<[u8]>::last)) else {
        return text.push_str("00");
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        text.push(char::from(*first));
        text.push(char::from(*last));
    } else {
        push_digit(text, u16::from(first >> 4));
        push_digit(text, u16::from(last & 0x0f));
    }
}

fn signatures<'a>(hello: &ClientHello<'a>) -> Option<&'a [u8]> {
    hello.read.signatures.and_then(|body| Reader::new(body).vec16()).filter(|list| !list.is_empty())
}

/// Twelve digits of the SHA-256 of `002f,0035` or `002f,0035_0403,0804`; zeros for lists that are empty.
fn hash_of_lists(values: &[u16], after: Option<&[u8]>) -> String {
    if values.is_empty() && after.is_none() {
        return "0".repeat(JA4_HASH);
    }
    let mut text = Vec::with_capacity(values.len() * 5 + after.map_or(0, |list| list.len() * 3));
    push_hex_list(&mut text, values.iter().copied());
    if let Some(list) = after {
        text.push(b'_');
        push_hex_list(&mut text, u16s(list).filter(|value| !is_grease(*value)));
    }
    hex(&Sha256::digest(&text), JA4_HASH)
}

fn push_hex_list(text: &mut Vec<u8>, values: impl Iterator<Item = u16>) {
    for (place, value) in values.enumerate() {
        if place > 0 {
            text.push(b',');
        }
        text.extend(value.to_be_bytes().iter().flat_map(|octet| hex_digits(*octet)));
    }
}

fn hex(octets: &[u8], digits: usize) -> String {
    octets.iter().flat_map(|octet| hex_digits(*octet)).take(digits).map(char::from).collect()
}

fn hex_digits(octet: u8) -> [u8; 2] {
    [octet >> 4, octet & 0x0f].map(|digit| DIGITS.get(usize::from(digit)).copied().unwrap_or(b'?'))
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const JA4_HASH: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    /// A hello with these cipher suites and extensions.
    fn hello(ciphers: &[u16], extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let vec16 = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
        let ciphers: Vec<u8> = ciphers.iter().flat_map(|c| c.to_be_bytes()).collect();
        let extensions: Vec<u8> =
            extensions.iter().flat_map(|(kind, body)| [&kind.to_be_bytes()[..], &vec16(body)].concat()).collect();
        let body = [&[3, 3][..], &[7; 32], &[0], &vec16(&ciphers), &[1, 0], &vec16(&extensions)].concat();
        [&[1, 0][..], &vec16(&body)].concat()
    }

    const SNI: &[u8] = b"\0\x04\0\0\x01a";

    #[test]
    fn the_published_fingerprint_of_a_policy_is_the_md5_of_its_full_string() {
        let ciphers = [
            49195, 49199, 49196, 49200, 52393, 52392, 49161, 49171, 49162, 49172, 156, 157, 47, 53, 49170, 10, 4865,
            4866, 4867,
        ];
        let groups = [0, 8, 0, 29, 0, 23, 0, 24, 0, 25];
        let extensions: [(u16, &[u8]); 10] = [
            (0, SNI),
            (5, &[1, 0, 0, 0, 0]),
            (10, &groups),
            (11, &[1, 0]),
            (13, &[0, 2, 4, 3]),
            (65281, &[0]),
            (16, &[0, 3, 2, b'h', b'2']),
            (18, &[]),
            (43, &[2, 3, 4]),
            (51, &[0, 0]),
        ];
        let hello = hello(&ciphers, &extensions);
        let own = Fingerprint::of(&ClientHello::parse(&hello).unwrap(), Carrier::Tcp);
        assert_eq!(
            own.ja3_full,
            "771,49195-49199-49196-49200-52393-52392-49161-49171-49162-49172-156-157-47-53-49170-10-4865-4866-4867,\
             0-5-10-11-13-65281-16-18-43-51,29-23-24-25,0"
        );
        assert_eq!(own.ja3, "3fed133de60c35724739b913924b6c24");
        assert_eq!(&own.ja4[..10], "t13d1910h2");
        assert_eq!(&Fingerprint::of(&ClientHello::parse(&hello).unwrap(), Carrier::Quic).ja4[..10], "q13d1910h2");
    }

    #[test]
    fn grease_changes_no_fingerprint() {
        let plain: [(u16, &[u8]); 4] = [(0, SNI), (10, &[0, 2, 0, 29]), (13, &[0, 2, 4, 3]), (43, &[2, 3, 4])];
        let greased: [(u16, &[u8]); 6] = [
            (0x2a2a, &[]),
            (0, SNI),
            (10, &[0, 4, 0x1a, 0x1a, 0, 29]),
            (13, &[0, 4, 0xaa, 0xaa, 4, 3]),
            (43, &[4, 0xfa, 0xfa, 3, 4]),
            (0x6a6a, &[0]),
        ];
        let of = |hello: &[u8]| Fingerprint::of(&ClientHello::parse(hello).unwrap(), Carrier::Tcp);
        assert_eq!(of(&hello(&[4865, 10], &plain)), of(&hello(&[0x0a0a, 4865, 10, 0xfafa], &greased)));
        assert_ne!(of(&hello(&[4865, 10], &plain)), of(&hello(&[4865, 11], &plain)));
    }

    #[test]
    fn an_empty_hello_has_the_fingerprint_of_nothing() {
        let own = Fingerprint::of(&ClientHello::parse(&hello(&[], &[])).unwrap(), Carrier::Tcp);
        assert_eq!(own.ja3_full, "771,,,,");
        assert_eq!(own.ja4, "t12i000000_000000000000_000000000000");
    }

    #[test]
    fn the_protocol_of_a_ja4_is_in_letters_or_in_hexadecimal() {
        for (alpn, expected) in
            [(&b"h2"[..], "h2"), (b"http/1.1", "h1"), (b"x", "xx"), (b"\xab\xcd", "ad"), (b"h\x01", "61")]
        {
            let mut text = String::new();
            push_alpn(&mut text, Some(alpn));
            assert_eq!(text, expected);
        }
    }
}
