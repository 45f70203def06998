//! The ClientHello, from one complete handshake message (RFC 8446, section 4.1.2).
//!
//! The walk is our own and not tls-parser's: that one stops without a word at the first extension that it dislikes
//! and so hides a later server name, and it takes a hello that is split over records for an error. Here an extension
//! that has nothing to do with the name is never opened on the way to it, so its form cannot hide anything.
//! The code points are tls-parser's, and the tests hold the two walks against each other.
//!
//! Fails closed: a hello whose fields do not fill it exactly, with two server names in whatever form, or with one that
//! is no host name, is a [`Fault`]. Lengths that RFC 8446 forbids but that some server takes (a session id of 40
//! octets) are read, since all readers agree on where the next field begins.
//!
//! Encrypted ClientHello (RFC 9849): the outer hello is what is read. Whether its `encrypted_client_hello` carries an
//! inner hello or is GREASE (section 6.2) cannot be told by anyone without the server's key: presence is all that is
//! reported.

pub mod records;
pub mod server_hello;

use tls_parser::TlsExtensionType as Type;

use super::reader::Reader;
use super::{Fault, Malformed, server_name};
use crate::name::DomainName;

/// A ClientHello, borrowed from the handshake message.
#[derive(Clone, Copy, Debug)]
pub struct ClientHello<'a> {
    /// `legacy_version`: what the highest version is in a hello without `supported_versions`.
    pub version: u16,
    /// The cipher suites, two octets each.
    pub ciphers: &'a [u8],
    /// The bodies of the extensions that we read. An absent one is `None`, and so is none at all.
    pub read: Extensions<'a>,
    /// All extensions, type and body, as they stand.
    all: &'a [u8],
}

/// The bodies of those extensions that a name, a verdict or a fingerprint depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extensions<'a> {
    /// `server_name` (RFC 6066, section 3).
    pub server_name: Option<&'a [u8]>,
    /// `supported_groups` (RFC 8446, section 4.2.7).
    pub groups: Option<&'a [u8]>,
    /// `ec_point_formats` (RFC 8422, section 5.1.2).
    pub formats: Option<&'a [u8]>,
    /// `signature_algorithms` (RFC 8446, section 4.2.3).
    pub signatures: Option<&'a [u8]>,
    /// `application_layer_protocol_negotiation` (RFC 7301, section 3.1).
    pub alpn: Option<&'a [u8]>,
    /// `supported_versions` (RFC 8446, section 4.2.1).
    pub versions: Option<&'a [u8]>,
    /// `early_data` (RFC 8446, section 4.2.10).
    pub early_data: Option<&'a [u8]>,
    /// `encrypted_client_hello`, or its drafts and ESNI before it.
    pub encrypted_hello: Option<&'a [u8]>,
}

impl<'a> ClientHello<'a> {
    /// Reads one complete handshake message, its header of four octets included, and nothing after it.
    pub fn parse(handshake: &'a [u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(handshake);
        if reader.u8() != Some(CLIENT_HELLO) {
            return Err(malformed("handshake type", "RFC 8446, 4").into());
        }
        let length = reader.u24().ok_or(malformed("handshake length", "RFC 8446, 4"))?;
        if usize::try_from(length) != Ok(reader.rest().len()) {
            return Err(malformed("handshake length", "RFC 8446, 4").into());
        }
        Self::parse_body(reader)
    }

    fn parse_body(mut reader: Reader<'a>) -> Result<Self, Fault> {
        let version = reader.u16().ok_or(hello("legacy_version"))?;
        reader.take(RANDOM).ok_or(hello("random"))?;
        reader.vec8().ok_or(hello("legacy_session_id"))?;
        let ciphers = reader.vec16().filter(|list| list.len() % 2 == 0).ok_or(hello("cipher_suites"))?;
        reader.vec8().ok_or(hello("legacy_compression_methods"))?;
        // A hello may end before its extensions (RFC 5246, 7.4.1.2).
        let all = if reader.is_empty() { &[][..] } else { reader.vec16().ok_or(hello("extensions"))? };
        if !reader.is_empty() {
            return Err(hello("extensions").into());
        }
        Ok(Self { version, ciphers, read: Extensions::parse(all)?, all })
    }

    /// The host that the hello names, if it names one.
    pub fn name(&self) -> Result<Option<DomainName>, Fault> {
        let Some(body) = self.read.server_name else { return Ok(None) };
        let mut outer = Reader::new(body);
        let list = outer.vec16().filter(|_| outer.is_empty()).ok_or(SERVER_NAME)?;
        let mut list = Reader::new(list);
        // RFC 6066 leaves room for other types of names; no client sends one, and servers differ in skipping them.
        let host = match list.u8() {
            Some(HOST_NAME) => list.vec16().ok_or(SERVER_NAME)?,
            _ => return Err(SERVER_NAME.into()),
        };
        if !list.is_empty() {
            return Err(Fault::Contradiction(SERVER_NAME));
        }
        server_name(host, SERVER_NAME)
    }

    /// Whether the hello carries an encrypted one, or GREASE in its place.
    pub fn has_encrypted_hello(&self) -> bool {
        self.read.encrypted_hello.is_some()
    }

    /// The versions that the client offers, GREASE among them.
    pub fn versions(&self) -> impl Iterator<Item = u16> {
        let list = self.read.versions.and_then(|body| Reader::new(body).vec8());
        u16s(list.unwrap_or_default())
    }

    /// The types of all extensions, in their order, GREASE among them.
    pub fn extension_types(&self) -> impl Iterator<Item = u16> {
        each_extension(self.all).filter_map(|extension| extension.ok().map(|(kind, _)| kind))
    }

    /// The protocol that the client likes best.
    pub fn first_alpn(&self) -> Option<&'a [u8]> {
        let list = Reader::new(self.read.alpn?).vec16()?;
        Reader::new(list).vec8()
    }
}

impl<'a> Extensions<'a> {
    fn parse(all: &'a [u8]) -> Result<Self, Fault> {
        let mut read = Self::default();
        for extension in each_extension(all) {
            let (kind, body) = extension?;
            let Some(place) = read.place(kind) else { continue };
            if place.replace(body).is_some() {
                let twice = malformed("an extension that comes twice", "RFC 8446, 4.2");
                let names = Type(kind) == Type::ServerName;
                return Err(if names { Fault::Contradiction(SERVER_NAME) } else { twice.into() });
            }
        }
        Ok(read)
    }

    fn place(&mut self, kind: u16) -> Option<&mut Option<&'a [u8]>> {
        Some(match Type(kind) {
            Type::ServerName => &mut self.server_name,
            Type::SupportedGroups => &mut self.groups,
            Type::EcPointFormats => &mut self.formats,
            Type::SignatureAlgorithms => &mut self.signatures,
            Type::ApplicationLayerProtocolNegotiation => &mut self.alpn,
            Type::SupportedVersions => &mut self.versions,
            Type::EarlyData => &mut self.early_data,
            Type(ECH | ECH_DRAFTS_FIRST..=ECH_DRAFTS_LAST | ESNI) => &mut self.encrypted_hello,
            _ => return None,
        })
    }
}

/// Type and body of each extension; an error ends the walk.
fn each_extension(all: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Fault>> {
    let mut reader = Reader::new(all);
    std::iter::from_fn(move || {
        if reader.is_empty() {
            return None;
        }
        let extension = reader.u16().and_then(|kind| Some((kind, reader.vec16()?)));
        if extension.is_none() {
            reader = Reader::new(&[]);
        }
        Some(extension.ok_or(hello("extensions").into()))
    })
}

/// The whole numbers of two octets in a list; an odd octet at its end is left out.
pub fn u16s(list: &[u8]) -> impl Iterator<Item = u16> {
    list.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair))
}

/// Whether a cipher suite, group, version or extension is one of those reserved for GREASE (RFC 8701, section 2).
pub fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

const fn hello(field: &'static str) -> Malformed {
    malformed(field, "RFC 8446, 4.1.2")
}

const fn malformed(field: &'static str, section: &'static str) -> Malformed {
    Malformed { field, section }
}

const SERVER_NAME: Malformed = malformed("server_name", "RFC 6066, 3");

/// The type of a ClientHello among handshake messages (RFC 8446, section 4).
pub const CLIENT_HELLO: u8 = 1;
/// `host_name` among the types of names (RFC 6066, section 3).
const HOST_NAME: u8 = 0;
const RANDOM: usize = 32;
/// `encrypted_client_hello` (RFC 9849, section 5), its drafts 8 to 12, and `encrypted_server_name` before them.
const ECH: u16 = 0xfe0d;
const ECH_DRAFTS_FIRST: u16 = 0xfe08;
const ECH_DRAFTS_LAST: u16 = 0xfe0c;
const ESNI: u16 = 0xffce;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(extensions: &[u8]) -> Vec<u8> {
        let length = u16::try_from(extensions.len()).unwrap().to_be_bytes();
        let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &length, extensions].concat();
        [&[1, 0][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), &body].concat()
    }

    #[test]
    fn our_walk_and_that_of_tls_parser_agree_on_what_clients_send() {
        let table = include_str!("../../tests/data/flights/tls.tsv");
        let mut compared = 0;
        for row in table.lines().filter(|row| !row.contains("\tmalformed\t")) {
            let hex = row.rsplit('\t').next().unwrap();
            let octets =
                hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
            let bytes: Vec<u8> = octets.collect();
            let mut records = records::Records::default();
            if records.follow(&bytes) != Ok(records::Followed::Message) {
                continue;
            }
            let message = records.message(&bytes);
            let Ok((_, theirs)) = tls_parser::parse_tls_message_handshake(&message) else { continue };
            let tls_parser::TlsMessage::Handshake(tls_parser::TlsMessageHandshake::ClientHello(theirs)) = theirs else {
                panic!("not a hello")
            };
            let parsed = tls_parser::parse_tls_client_hello_extensions(theirs.ext.unwrap_or_default());
            let Ok(([], extensions)) = parsed else { continue };
            let ours = ClientHello::parse(&message).unwrap();
            let ciphers: Vec<u16> = theirs.ciphers.iter().map(|cipher| cipher.0).collect();
            assert_eq!(u16s(ours.ciphers).collect::<Vec<_>>(), ciphers, "{row}");
            let types: Vec<u16> = extensions.iter().map(|extension| Type::from(extension).0).collect();
            let known = ours.extension_types().filter(|kind| !is_grease(*kind)).collect::<Vec<_>>();
            assert_eq!(known, types.into_iter().filter(|kind| !is_grease(*kind)).collect::<Vec<_>>(), "{row}");
            let name = extensions.iter().find_map(|extension| match extension {
                tls_parser::TlsExtension::SNI(names) => names.first().map(|name| name.1.to_ascii_lowercase()),
                _ => None,
            });
            if let Ok(Some(own)) = ours.name() {
                assert_eq!(own.as_str().as_bytes(), name.unwrap(), "{row}");
            }
            compared += 1;
        }
        assert!(compared > 500, "{compared}");
    }

    #[test]
    fn a_hello_that_its_fields_do_not_fill_is_malformed() {
        let whole = message(b"\0\x10\0\x05\0\x03\x02h2");
        assert_eq!(ClientHello::parse(&whole).unwrap().first_alpn(), Some(&b"h2"[..]));
        for cut in 0..whole.len() {
            assert!(ClientHello::parse(&whole[..cut]).is_err(), "{cut}");
            // The same with a length that agrees: the fields inside break off. Without extensions it is well-formed.
            let mut short = whole[..cut].to_vec();
            if cut >= 4 {
                short[3] = u8::try_from(cut - 4).unwrap();
                let ends_before_extensions = cut == 4 + 2 + 32 + 1 + 4 + 2;
                assert_eq!(ClientHello::parse(&short).is_ok(), ends_before_extensions, "{cut}");
            }
        }
        assert!(ClientHello::parse(&[&whole[..], &[0]].concat()).is_err());
    }

    #[test]
    fn lists_of_versions_and_encrypted_hellos_are_seen() {
        let hello = message(b"\0\x2b\0\x05\x04\x0a\x0a\x03\x04\xfe\x0d\0\x01\0");
        let hello = ClientHello::parse(&hello).unwrap();
        assert_eq!(hello.versions().collect::<Vec<_>>(), [0x0a0a, 0x0304]);
        assert!(hello.has_encrypted_hello());
        for kind in [0xfe0a_u16, 0xffce] {
            let hello = message(&[&kind.to_be_bytes()[..], &[0, 0]].concat());
            assert!(ClientHello::parse(&hello).unwrap().has_encrypted_hello());
        }
    }
}
