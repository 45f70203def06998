//! HTTP/1 requests, read the way the strictest server would and refused where two servers could differ
//! (RFC 9112, RFC 9110).
//!
//! The grammar is our own line walk, not httparse's: that one takes bare LF, several Hosts and a Host that disagrees
//! with the target, and has a fixed number of fields. The tests hold the two against each other: whatever is read here
//! httparse reads to the same fields.
//!
//! Fails closed: obs-fold, a space before the colon, bare CR or LF, control octets, a second Host, a Host that differs
//! from the target, and any doubt about where the body ends are [`Fault`]s. A request that names nobody (no Host, an
//! empty one, an IP literal) is well-formed and has no name.

pub mod begin;
pub mod body;
pub mod response;

use memchr::memchr;

use super::{Fault, Malformed, server_name};
use crate::name::DomainName;
use body::Body;

/// What a request head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The host that the target or the Host field names.
    pub name: Option<DomainName>,
    /// What follows the head.
    pub body: Body,
    /// Whether the client asks for another protocol on the connection.
    pub asks_for: AsksFor,
}

/// The protocol that a client asks the connection to be turned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsksFor {
    /// HTTP/1 goes on after this request.
    Nothing,
    /// A tunnel, if the server answers 2xx (RFC 9110, section 9.3.6).
    Tunnel,
    /// Another protocol, if the server answers 101 (RFC 9110, section 7.8).
    Upgrade,
}

impl Request {
    /// Reads a head from its request line to the empty line that ends it; empty lines before it are passed over.
    pub fn parse(head: &[u8]) -> Result<Self, Fault> {
        let mut lines = Lines(skip_empty_lines(head));
        let line = lines.next().ok_or(REQUEST_LINE)??;
        let line = RequestLine::parse(line)?;
        let mut fields = Fields::default();
        loop {
            match lines.next().ok_or(FIELD)?? {
                [] if lines.0.is_empty() => break,
                [] => return Err(FIELD.into()),
                field => fields.add(field)?,
            }
        }
        let name = line.name(fields.host)?;
        let asks_for = match (line.method, fields.upgrades) {
            (b"CONNECT", _) => AsksFor::Tunnel,
            (_, true) => AsksFor::Upgrade,
            (_, false) => AsksFor::Nothing,
        };
        let body = Body::of(fields.transfer_encoding, fields.content_length, line.is_http_11)?;
        if asks_for == AsksFor::Tunnel && body != Body::Nothing {
            return Err(body::AMBIGUOUS.into());
        }
        Ok(Self { name, body, asks_for })
    }

    /// Reads an HTTP/0.9 request, which is one line (`GET /path`) and has no fields.
    pub fn parse_simple(line: &[u8]) -> Result<Self, Fault> {
        let line = skip_empty_lines(line).strip_suffix(b"\r\n").ok_or(REQUEST_LINE)?;
        let target = line.strip_prefix(b"GET ").filter(|target| target.iter().all(u8::is_ascii_graphic));
        let line = RequestLine { method: b"GET", target: target.ok_or(REQUEST_LINE)?, is_http_11: false };
        Ok(Self { name: line.name(None)?, body: Body::Nothing, asks_for: AsksFor::Nothing })
    }
}

/// `method SP request-target SP HTTP-version` (RFC 9112, section 3).
struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    is_http_11: bool,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, Malformed> {
        let mut words = line.split(|octet| *octet == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(REQUEST_LINE);
        };
        let is_http_11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            _ => return Err(REQUEST_LINE),
        };
        if !is_token(method) || target.is_empty() || !is_visible(target) {
            return Err(REQUEST_LINE);
        }
        Ok(Self { method, target, is_http_11 })
    }

    /// The name in the target, or else in the Host field (RFC 9112, section 3.3).
    fn name(&self, host: Option<&[u8]>) -> Result<Option<DomainName>, Fault> {
        let from_host = host.map(|value| authority(value, HOST)).transpose()?;
        let Some(target) = self.target_authority()? else { return Ok(from_host.flatten()) };
        if target.is_empty() {
            return Err(TARGET.into());
        }
        let from_target = authority(target, TARGET)?;
        if from_host.is_some_and(|from_host| from_host != from_target) {
            return Err(Fault::Contradiction(HOST));
        }
        Ok(from_target)
    }

    /// The authority of a target in absolute or authority form; `None` in origin and asterisk form
    /// (RFC 9112, section 3.2).
    fn target_authority(&self) -> Result<Option<&'a [u8]>, Malformed> {
        if self.method == b"CONNECT" {
            return Ok(Some(self.target));
        }
        if self.target.starts_with(b"/") || (self.target == b"*" && self.method == b"OPTIONS") {
            return Ok(None);
        }
        let after = after_scheme(self.target).ok_or(TARGET)?;
        let end = after.iter().position(|octet| matches!(octet, b'/' | b'?' | b'#')).unwrap_or(after.len());
        Ok(after.get(..end))
    }
}

/// What stands behind `scheme://`.
fn after_scheme(target: &[u8]) -> Option<&[u8]> {
    let colon = target.iter().position(|octet| *octet == b':')?;
    let (scheme, rest) = target.split_at_checked(colon)?;
    let is_scheme = scheme.first()?.is_ascii_alphabetic()
        && scheme.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'+' | b'-' | b'.'));
    rest.strip_prefix(b"://").filter(|_| is_scheme)
}

/// The name in `host [ ":" port ]`; an empty host names nobody (RFC 9110, section 7.2).
pub(super) fn authority(value: &[u8], fault: Malformed) -> Result<Option<DomainName>, Fault> {
    let host_end = match value {
        [] => return Ok(None),
        [b'[', ..] => value.iter().position(|octet| *octet == b']').ok_or(fault)? + 1,
        _ => value.iter().position(|octet| *octet == b':').unwrap_or(value.len()),
    };
    let (host, port) = value.split_at_checked(host_end).ok_or(fault)?;
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !is_port {
        return Err(fault.into());
    }
    server_name(host, fault)
}

/// The fields that a name or the end of a body depends on.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    upgrades: bool,
}

impl<'a> Fields<'a> {
    fn add(&mut self, line: &'a [u8]) -> Result<(), Fault> {
        let (name, value) = field(line)?;
        let (place, twice) = match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => (&mut self.host, Fault::Contradiction(HOST)),
            14 if name.eq_ignore_ascii_case(b"content-length") => (&mut self.content_length, body::AMBIGUOUS.into()),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                (&mut self.transfer_encoding, body::AMBIGUOUS.into())
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrades = true;
                return Ok(());
            }
            // Servers that take odd expectations differ in whether they wait for the body (RFC 9110, 10.1.1).
            6 if name.eq_ignore_ascii_case(b"expect") && !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(body::AMBIGUOUS.into());
            }
            _ => return Ok(()),
        };
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(twice),
        }
    }
}

/// `field-name ":" OWS field-value OWS` (RFC 9112, section 5).
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let colon = memchr(b':', line).ok_or(FIELD)?;
    let (name, value) = line.split_at_checked(colon).ok_or(FIELD)?;
    let value = value.strip_prefix(b":").unwrap_or(value);
    if !is_token(name) || !is_field_value(value) {
        return Err(FIELD);
    }
    Ok((name, trim(value)))
}

/// Without spaces and tabs around it.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Lines that end in CRLF, without it (RFC 9112, section 2.2).
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = memchr(b'\n', self.0)?;
        let (line, rest) = self.0.split_at_checked(end + 1)?;
        self.0 = rest;
        Some(line.strip_suffix(b"\r\n").ok_or(LINE_END))
    }
}

/// Finds the end of a head in a buffer that grows, looking at each octet once.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadEnd {
    /// Where the next octet that has not been looked at stands.
    at: usize,
    /// Where the line began that it belongs to.
    line: usize,
}

impl HeadEnd {
    /// Begins to look at a line that begins at `at`.
    pub fn from(at: usize) -> Self {
        Self { at, line: at }
    }

    /// The length of the head with all before it, once its empty line has come.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        while let Some(end) = self.find_line(bytes)? {
            if end.is_empty {
                return Ok(Some(end.at));
            }
        }
        Ok(None)
    }

    /// The end of the line in progress, once it has come.
    pub fn find_line(&mut self, bytes: &[u8]) -> Result<Option<LineEnd>, Malformed> {
        let new = bytes.get(self.at..).unwrap_or_default();
        let Some(feed) = memchr(b'\n', new) else {
            self.at = bytes.len().max(self.at);
            return Ok(None);
        };
        let end = self.at + feed + 1;
        let line = bytes.get(self.line..end).unwrap_or_default();
        *self = Self::from(end);
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(Some(LineEnd { at: end, is_empty: line.is_empty() })),
            None => Err(LINE_END),
        }
    }
}

/// The end of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineEnd {
    /// The place behind its CRLF.
    pub at: usize,
    pub is_empty: bool,
}

fn skip_empty_lines(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    bytes
}

/// A method or a field name (RFC 9110, section 5.6.2).
pub(super) fn is_token(octets: &[u8]) -> bool {
    !octets.is_empty() && octets.iter().all(|octet| IS_TOKEN.get(usize::from(*octet)) == Some(&true))
}

/// Visible ASCII and whatever lies above it. Folded without a way out, so that it is done many octets at a time.
fn is_visible(octets: &[u8]) -> bool {
    octets.iter().fold(true, |all, octet| all & (*octet > b' ') & (*octet != 0x7f))
}

/// Visible octets, spaces and tabs (RFC 9110, section 5.5).
pub(super) fn is_field_value(octets: &[u8]) -> bool {
    octets.iter().fold(true, |all, octet| all & ((*octet >= b' ') & (*octet != 0x7f) | (*octet == b'\t')))
}

const IS_TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut octet = 0;
    while octet < 128 {
        let alone = octet as u8;
        table[octet] = alone.is_ascii_alphanumeric()
            || matches!(
                alone,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        octet += 1;
    }
    table
};

const REQUEST_LINE: Malformed = Malformed { field: "request line", section: "RFC 9112, 3" };
const TARGET: Malformed = Malformed { field: "request target", section: "RFC 9112, 3.2" };
const HOST: Malformed = Malformed { field: "Host", section: "RFC 9112, 3.2" };
const FIELD: Malformed = Malformed { field: "field line", section: "RFC 9112, 5" };
const LINE_END: Malformed = Malformed { field: "line end", section: "RFC 9112, 2.2" };

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_body_and_the_wish_for_another_protocol_are_read() {
        let read =
            |head: &str| Request::parse(head.as_bytes()).map(|request| (request.body, request.asks_for)).unwrap();
        assert_eq!(read("GET / HTTP/1.1\r\n\r\n"), (Body::Nothing, AsksFor::Nothing));
        assert_eq!(read("PUT / HTTP/1.0\r\nContent-Length: 007\r\n\r\n"), (Body::Length(7), AsksFor::Nothing));
        assert_eq!(read("PUT / HTTP/1.1\r\nTransfer-Encoding:chunked\r\n\r\n"), (Body::Chunked, AsksFor::Nothing));
        assert_eq!(read("GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n"), (Body::Nothing, AsksFor::Upgrade));
        assert_eq!(read("CONNECT a:1 HTTP/1.1\r\n\r\n"), (Body::Nothing, AsksFor::Tunnel));
        assert!(Request::parse(b"CONNECT a:1 HTTP/1.1\r\nContent-Length: 4\r\n\r\n").is_err());
    }

    #[test]
    fn a_head_is_read_whole_or_not_at_all() {
        let head = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
        for cut in 0..head.len() {
            assert!(Request::parse(&head[..cut]).is_err(), "{cut}");
            assert_eq!(HeadEnd::default().find(&head[..cut]), Ok(None));
        }
        assert_eq!(HeadEnd::default().find(&[&head[..], b"more"].concat()), Ok(Some(head.len())));
    }

    /// Heads that are well-formed but for what chance puts into them.
    fn head() -> impl Strategy<Value = Vec<u8>> {
        let odd = prop_oneof![
            20 => Just(""), 1 => Just(" "), 1 => Just("\t"), 1 => Just("\r"), 1 => Just("\n"), 1 => Just("\0"), 1 => Just(":"),
            1 => Just("\r\n"), 1 => Just("@"),
        ];
        let field = prop_oneof![
            Just("Host: a.example"),
            Just("Host:b.example:80"),
            Just("X: 1"),
            Just("Content-Length: 3"),
            Just("Transfer-Encoding: chunked"),
            Just("Expect: 100-continue"),
            Just("Upgrade: h2c"),
        ];
        let line = prop_oneof![
            Just("GET / HTTP/1.1"),
            Just("GET http://a.example/x HTTP/1.1"),
            Just("POST /x HTTP/1.0"),
            Just("OPTIONS * HTTP/1.1"),
        ];
        (line, proptest::collection::vec((field, odd.clone(), odd), 0..5)).prop_map(|(line, fields)| {
            let fields = fields.iter().map(|(field, before, after)| format!("{before}{field}{after}\r\n"));
            [line, "\r\n", &fields.collect::<String>(), "\r\n"].concat().into_bytes()
        })
    }

    proptest! {
        #[test]
        fn what_is_read_here_httparse_reads_to_the_same_host(head in head()) {
            if let Ok(ours) = Request::parse(&head) {
                let mut fields = [httparse::EMPTY_HEADER; 16];
                let mut theirs = httparse::Request::new(&mut fields);
                prop_assert_eq!(theirs.parse(&head), Ok(httparse::Status::Complete(head.len())));
                let hosts: Vec<_> = theirs.headers.iter().filter(|f| f.name.eq_ignore_ascii_case("host")).collect();
                prop_assert!(hosts.len() < 2);
                if let Some(host) = hosts.first() {
                    prop_assert_eq!(authority(host.value, HOST), Ok(ours.name));
                }
            }
        }

        #[test]
        fn a_name_is_the_same_wherever_a_request_bears_it(name in "[a-zA-Z0-9_-]{1,12}(\\.[a-zA-Z0-9-]{1,9}){0,3}\\.?", port in "(:[0-9]{0,5})?") {
            let read = |head: String| Request::parse(head.as_bytes()).map(|request| request.name);
            let host = read(format!("GET / HTTP/1.1\r\nHost: {name}{port}\r\n\r\n"));
            prop_assert_eq!(&read(format!("GET http://{name}{port}/ HTTP/1.1\r\n\r\n")), &host.map_err(|_| Fault::Malformed(TARGET)));
        }

        #[test]
        fn any_octets_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::parse(&bytes);
            let _ = Request::parse_simple(&bytes);
        }
    }
}
