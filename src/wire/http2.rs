//! The requests of an HTTP/2 connection with prior knowledge, as an onlooker sees them (RFC 9113).
//!
//! Only the client's frames are followed. A request is a field block with pseudo-fields; one without is trailers.
//! Not h2's server on an in-memory pipe: an onlooker does not share the settings that the real server sends, and would
//! break off over flow control, acknowledgements and table sizes that are fine between the two ends.
//!
//! Fails closed: a frame out of place, a block that does not decode, pseudo-fields that RFC 9113, section 8.3
//! forbids, and a Host that differs from `:authority` are [`Fault`]s. What tunnels hold (CONNECT, WebSockets in DATA)
//! is not looked into: their `:authority` was judged.

use std::borrow::Cow;

use super::hpack::Decoder;
use super::http::{authority, is_field_value, is_token};
use super::reader::Reader;
use super::{Fault, Malformed};
use crate::name::DomainName;

/// Follows the client's side of a connection.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    stage: Stage,
    decoder: Decoder,
    /// There is nothing to say before so many octets are there.
    needs: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Preface,
    /// The first frame must be SETTINGS (RFC 9113, section 3.4).
    Settings,
    Frame,
    /// So many octets are left of a frame that names nobody.
    Payload(usize),
}

/// What the next bytes of the client are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is nothing more to say before so many octets are there.
    Needs(usize),
    /// So many octets name nobody and are done with.
    Pass(usize),
    /// A request whose frames take so many octets.
    Request { name: Option<DomainName>, length: usize },
}

impl Requests {
    /// Looks at bytes that begin with the first one not yet passed over.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Next, Fault> {
        if bytes.len() < self.needs {
            return Ok(Next::Needs(self.needs));
        }
        let next = match self.stage {
            Stage::Preface => self.preface(bytes)?,
            Stage::Payload(left) => self.payload(bytes, left),
            Stage::Settings | Stage::Frame => self.frame(bytes)?,
        };
        self.needs = if let Next::Needs(needs) = next { needs } else { 0 };
        Ok(next)
    }

    /// Whether the preface and the client's settings have come, and no frame is in progress.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.stage, Stage::Frame) && self.needs <= FRAME_HEADER
    }

    /// Octets that the fields remembered take.
    pub fn kept(&self) -> usize {
        self.decoder.kept()
    }

    fn preface(&mut self, bytes: &[u8]) -> Result<Next, Fault> {
        if bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes) {
            return Ok(Next::Needs(PREFACE.len()));
        }
        if !bytes.starts_with(PREFACE) {
            return Err(Malformed { field: "connection preface", section: "RFC 9113, 3.4" }.into());
        }
        self.stage = Stage::Settings;
        Ok(Next::Pass(PREFACE.len()))
    }

    fn payload(&mut self, bytes: &[u8], left: usize) -> Next {
        let there = bytes.len().min(left);
        if there == 0 {
            return Next::Needs(1);
        }
        self.stage = if there == left { Stage::Frame } else { Stage::Payload(left - there) };
        Next::Pass(there)
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<Next, Fault> {
        let mut reader = Reader::new(bytes);
        let Some(frame) = Frame::read(&mut reader) else { return Ok(Next::Needs(FRAME_HEADER)) };
        if matches!(self.stage, Stage::Settings) && (frame.kind != SETTINGS || frame.flags & ACK != 0) {
            return Err(FRAME.into());
        }
        match frame.kind {
            HEADERS => self.request(bytes),
            CONTINUATION | PUSH_PROMISE => Err(FRAME.into()),
            _ => {
                self.stage = if frame.length == 0 { Stage::Frame } else { Stage::Payload(frame.length) };
                Ok(Next::Pass(FRAME_HEADER))
            }
        }
    }

    fn request(&mut self, bytes: &[u8]) -> Result<Next, Fault> {
        let mut reader = Reader::new(bytes);
        let block = match join_block(&mut reader)? {
            Ok(block) => block,
            Err(needs) => return Ok(Next::Needs(needs)),
        };
        let length = bytes.len() - reader.rest().len();
        let mut fields = Fields::default();
        self.decoder.decode(&block, |name, value| fields.add(name, value))?;
        if fields.pseudo == 0 && !fields.has_host {
            return Ok(Next::Pass(length));
        }
        Ok(Next::Request { name: fields.name()?, length })
    }
}

/// The field block that begins with the HEADERS frame at the reader, or how many octets it takes to have more of it.
fn join_block<'a>(reader: &mut Reader<'a>) -> Result<Result<Cow<'a, [u8]>, usize>, Fault> {
    let whole = reader.rest().len();
    let mut joined: Option<Cow<'a, [u8]>> = None;
    let mut stream = None;
    loop {
        let at = whole - reader.rest().len();
        let Some(frame) = Frame::read(reader) else { return Ok(Err(at + FRAME_HEADER)) };
        let kind = if joined.is_none() { HEADERS } else { CONTINUATION };
        if frame.kind != kind || frame.stream % 2 == 0 || *stream.get_or_insert(frame.stream) != frame.stream {
            return Err(FRAME.into());
        }
        let Some(payload) = reader.take(frame.length) else { return Ok(Err(at + FRAME_HEADER + frame.length)) };
        joined = Some(match joined {
            None => Cow::Borrowed(without_padding(payload, frame.flags).ok_or(FRAME)?),
            Some(mut block) => {
                block.to_mut().extend_from_slice(payload);
                block
            }
        });
        if let Some(block) = joined.take_if(|_| frame.flags & END_HEADERS != 0) {
            return Ok(Ok(block));
        }
    }
}

/// A HEADERS payload without padding and priority (RFC 9113, section 6.2).
fn without_padding(payload: &[u8], flags: u8) -> Option<&[u8]> {
    let mut reader = Reader::new(payload);
    let padding = if flags & PADDED != 0 { usize::from(reader.u8()?) } else { 0 };
    if flags & PRIORITY != 0 {
        reader.take(5)?;
    }
    let block = reader.rest();
    block.get(..block.len().checked_sub(padding)?)
}

/// The header of a frame (RFC 9113, section 4.1).
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut ahead = *reader;
        let length = usize::try_from(ahead.u24()?).ok()?;
        let frame = Self { length, kind: ahead.u8()?, flags: ahead.u8()?, stream: ahead.u32()? & 0x7fff_ffff };
        *reader = ahead;
        Some(frame)
    }
}

/// The fields of a block that tell whom it is for.
#[derive(Debug, Default)]
struct Fields {
    authority: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
    has_host: bool,
    pseudo: u8,
    has_regular: bool,
}

impl Fields {
    fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        if !is_field_value(value) {
            return Err(FIELDS.into());
        }
        let Some(pseudo) = name.strip_prefix(b":") else { return self.add_regular(name, value) };
        let bit = match pseudo {
            b"method" => METHOD,
            b"scheme" => 2,
            b"path" if value.starts_with(b"/") || value == b"*" => PATH,
            b"authority" => 8,
            b"protocol" => 16,
            _ => return Err(FIELDS.into()),
        };
        if self.has_regular {
            return Err(FIELDS.into());
        }
        if self.pseudo & bit != 0 {
            return Err(Fault::Contradiction(FIELDS));
        }
        self.pseudo |= bit;
        if pseudo == b"authority" {
            self.authority = Some(value.to_vec());
        }
        Ok(())
    }

    fn add_regular(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        self.has_regular = true;
        if !is_token(name) || name.iter().any(u8::is_ascii_uppercase) {
            return Err(FIELDS.into());
        }
        if name == b"host" {
            self.has_host = true;
            if self.host.replace(value.to_vec()).is_some() {
                return Err(Fault::Contradiction(FIELDS));
            }
        }
        Ok(())
    }

    /// The name in `:authority`, or else in the Host field (RFC 9113, section 8.3.1).
    fn name(&self) -> Result<Option<DomainName>, Fault> {
        if self.pseudo & METHOD == 0 {
            return Err(FIELDS.into());
        }
        let own = self.authority.as_deref().map(|value| authority(value, FIELDS)).transpose()?;
        let host = self.host.as_deref().map(|value| authority(value, FIELDS)).transpose()?;
        match (own, host) {
            (Some(own), Some(host)) if own != host => Err(Fault::Contradiction(FIELDS)),
            (own, host) => Ok(own.or(host).flatten()),
        }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// Types of frames (RFC 9113, section 6).
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
/// Flags of frames.
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Bits of the pseudo-fields that a block had.
const METHOD: u8 = 1;
const PATH: u8 = 4;

const FRAME: Malformed = Malformed { field: "frame", section: "RFC 9113, 6" };
const FIELDS: Malformed = Malformed { field: "request fields", section: "RFC 9113, 8.3" };

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What h2's client sends for these requests before it hears from the server.
    fn bytes_of_h2(authorities: &[String], fields: usize) -> Vec<u8> {
        use tokio::io::AsyncReadExt;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let (mut client, connection) = h2::client::handshake(near).await.unwrap();
            let connection = tokio::spawn(connection);
            for authority in authorities {
                let mut request = http::Request::post(format!("http://{authority}/x"));
                for number in 0..fields {
                    request = request.header(format!("x-field-{number}"), format!("{authority}{number}"));
                }
                let (_, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
                body.send_data(vec![7_u8; 100].into(), true).unwrap();
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
            connection.abort();
            let _ = connection.await;
            drop(client);
            let mut bytes = Vec::new();
            far.read_to_end(&mut bytes).await.unwrap();
            bytes
        })
    }

    /// The names asked for, by an onlooker who is shown the bytes in steps of this size.
    fn names(bytes: &[u8], step: usize) -> Result<Vec<String>, Fault> {
        let (mut requests, mut at, mut end, mut names) = (Requests::default(), 0, 0, Vec::new());
        loop {
            match requests.next(&bytes[at..end])? {
                Next::Needs(_) if end == bytes.len() => return Ok(names),
                Next::Needs(_) => end = bytes.len().min(end + step),
                Next::Pass(length) => at += length,
                Next::Request { name, length } => {
                    names.push(name.map_or("-".into(), |name| name.to_string()));
                    at += length;
                }
            }
            assert!(at <= end);
        }
    }

    #[test]
    fn the_requests_of_a_real_client_are_read_over_any_split() {
        let authorities: Vec<String> = ["a.example", "b.example:80", "a.example", "c-3.example"].map(Into::into).into();
        for fields in [0, 3, 40] {
            let bytes = bytes_of_h2(&authorities, fields);
            for step in [1, 2, 9, 1000, 1 << 20] {
                assert_eq!(names(&bytes, step).unwrap(), ["a.example", "b.example", "a.example", "c-3.example"]);
            }
        }
    }

    #[test]
    fn a_block_over_several_frames_is_joined() {
        let bytes = bytes_of_h2(&["a.example".into()], 2000);
        assert!(bytes.windows(9).any(|w| w[3] == CONTINUATION && w[4] == END_HEADERS && w[8] == 1), "h2 splits it");
        assert_eq!(names(&bytes, 1000).unwrap(), ["a.example"]);
    }

    /// Type, flags, stream, payload.
    type Row<'a> = (u8, u8, u8, &'a [u8]);

    /// A connection whose frames after the settings are these.
    fn connection(frames: &[Row<'_>]) -> Vec<u8> {
        let mut bytes = [PREFACE, &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]].concat();
        for (kind, flags, stream, payload) in frames {
            bytes.extend([0, 0, u8::try_from(payload.len()).unwrap(), *kind, *flags, 0, 0, 0, *stream]);
            bytes.extend(*payload);
        }
        bytes
    }

    const GET: &[u8] = b"\x82\x86\x84\x01\x01a";

    #[test]
    fn frames_and_fields_out_of_place_are_refused() {
        let refused: &[&[Row<'_>]] = &[
            &[(HEADERS, END_HEADERS, 0, GET)],
            &[(HEADERS, END_HEADERS, 2, GET)],
            &[(HEADERS, END_HEADERS | PADDED, 1, b"\xff\x82")],
            &[(HEADERS, 0, 1, GET), (0, 0, 1, b"x")],
            &[(HEADERS, 0, 1, GET), (CONTINUATION, END_HEADERS, 3, b"")],
            &[(CONTINUATION, END_HEADERS, 1, GET)],
            &[(PUSH_PROMISE, END_HEADERS, 1, GET)],
            &[(HEADERS, END_HEADERS, 1, b"\x86\x84\x01\x01a")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x86\x84\x0f\x17\x01b\x01\x01a")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x82\x86\x84\x01\x01a")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x86\x84\x88")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x86\x84\x01\x03a\0b")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x86\x84\0\x04Host\x01b")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x86\x84\0\x05host \x01b")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x86\x84\0\x04:foo\x01b")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x86\x04\x08http://b\x01\x01a")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x86\x84\x0f\x17\x01b\x0f\x17\x01b")],
            &[(HEADERS, END_HEADERS, 1, b"\x82\x86\x84\x01\x0fa.example@b.test")],
            &[(HEADERS, END_HEADERS, 1, b"\x0f\x17\x01b")],
        ];
        for frames in refused {
            assert!(names(&connection(frames), 1000).is_err(), "{frames:?}");
        }
    }

    #[test]
    fn padding_priority_trailers_and_unknown_frames_are_passed_over() {
        let padded = [&[2, 0, 0, 0, 0, 9][..], GET, &[0, 0]].concat();
        let bytes = connection(&[
            (0xaa, 0xff, 7, b"unknown"),
            (HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &padded),
            (0, 0, 1, b"\0\0\x06\x01\x04\0\0\0\x03not a frame"),
            (HEADERS, END_HEADERS | 1, 1, b"\0\x05x-sum\x011"),
            (HEADERS, 0, 3, b"\x82\x86"),
            (CONTINUATION, 0, 3, b""),
            (CONTINUATION, END_HEADERS, 3, b"\x84\x0f\x17\x01b"),
            (HEADERS, END_HEADERS, 5, b"\x82\x86\x84"),
        ]);
        for step in [1, 1000] {
            assert_eq!(names(&bytes, step).unwrap(), ["a", "b", "-"]);
        }
    }

    proptest! {
        #[test]
        fn any_octets_behind_the_preface_are_read_alike_in_all_splits(
            frames in proptest::collection::vec((0u8..11, any::<u8>(), 0u8..4, proptest::collection::vec(any::<u8>(), 0..30)), 0..6),
            step in 1usize..60,
        ) {
            let frames: Vec<_> = frames.iter().map(|(kind, flags, stream, payload)| (*kind, *flags, *stream, &payload[..])).collect();
            let bytes = connection(&frames);
            prop_assert_eq!(names(&bytes, step), names(&bytes, 1 << 20));
        }
    }
}
