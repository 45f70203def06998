//! Whether the first bytes of a connection are those of HTTP.
//!
//! Whatever some server could take for a request line is HTTP, be it well-formed or not; a line of another protocol
//! (`EHLO host`, `SSH-2.0-x`, `GET key` to a store) is not.
//!
//! Some servers pass over control octets that no client sends: before the line (Netty), between its words (Python) and
//! within the target (both). What has such is [odd](Beginning::is_odd), and still no other protocol before its line ends.
//!
//! Fails closed: bytes that could still become a request are [`Begin::Open`], and never settled before their line ends.
//! A PROXY header, in which a client speaks for another one, would stand before whatever names the host: it is refused.

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// They may yet become a request, or something else.
    Open,
    /// They are the beginning of a request whose first line has not ended.
    Request,
    /// HTTP/1, with a version in the first line.
    Http1,
    /// HTTP/0.9: `GET /path` and no more (RFC 9112, appendix C.1). The first line ends at this place.
    Simple(usize),
    /// The preface of HTTP/2 (RFC 9113, section 3.4).
    Http2,
    /// A request, but not in a form that all servers read alike.
    Malformed,
    /// Another protocol.
    Other,
}

/// Looks at each octet of a first line once, in a buffer that grows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beginning {
    at: usize,
    stage: Stage,
    /// Where the line begins, and its target.
    line: usize,
    target: usize,
    is_odd: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Empty lines, spaces and control octets before the line.
    #[default]
    Blank,
    Method,
    /// Spaces after the method.
    Gap,
    Target,
    /// Nothing but its end can settle it.
    Line,
    /// A method and the beginning of a target that only HTTP has.
    Request,
}

impl Beginning {
    pub fn look(&mut self, bytes: &[u8]) -> Begin {
        while let Some(octet) = bytes.get(self.at) {
            let octet = *octet;
            if octet == b'\n' && !matches!(self.stage, Stage::Blank) {
                return self.settle(bytes);
            }
            match self.stage {
                Stage::Blank if bytes.starts_with(PROXY_2) => return Begin::Malformed,
                Stage::Method if is_control(octet) || octet >= 0x80 && !is_space(octet) => return Begin::Other,
                Stage::Request if is_control(octet) => return Begin::Malformed,
                Stage::Blank => self.is_odd |= is_control(octet) || is_upper_control(octet),
                _ => self.is_odd |= is_control(octet),
            }
            self.stage = self.step(bytes, octet);
            self.at += 1;
        }
        if self.stage == Stage::Request { Begin::Request } else { Begin::Open }
    }

    /// Whether no octet has been looked at.
    pub fn is_untouched(&self) -> bool {
        self.at == 0
    }

    /// Whether there were control octets that some server passes over, and no client of HTTP sends.
    pub fn is_odd(&self) -> bool {
        self.is_odd
    }

    /// Whether the bytes are surely a request, though their first line has not ended.
    pub fn is_request(&self) -> bool {
        self.stage == Stage::Request
    }

    /// How much of the bytes is passed over: all before the first octet of the first line.
    pub fn passed_over(&self) -> usize {
        if self.stage == Stage::Blank { self.at } else { self.line }
    }

    /// Where the first line begins: behind empty lines.
    pub fn line(&self) -> usize {
        self.line
    }

    fn step(&mut self, bytes: &[u8], octet: u8) -> Stage {
        match self.stage {
            Stage::Blank if is_space(octet) || is_control(octet) || is_upper_control(octet) => Stage::Blank,
            Stage::Blank => {
                self.line = self.at;
                Stage::Method
            }
            Stage::Method if is_space(octet) => Stage::Gap,
            Stage::Gap if is_space(octet) => Stage::Gap,
            Stage::Gap => {
                self.target = self.at;
                let is_connect = bytes.get(self.line..).is_some_and(|line| line.starts_with(b"CONNECT "));
                if octet == b'/' || is_connect { Stage::Request } else { Stage::Target }
            }
            Stage::Target if octet == b'/' && self.ends_scheme(bytes) => Stage::Request,
            // No look ahead: what comes later must not tell more of what came before.
            Stage::Target if octet == b' ' && bytes.get(self.line..self.at) == Some(b"PRI *") => Stage::Request,
            Stage::Target if is_space(octet) => Stage::Line,
            stage => stage,
        }
    }

    /// Whether the octet now looked at is the last of `scheme://`.
    fn ends_scheme(&self, bytes: &[u8]) -> bool {
        bytes.get(self.target..self.at).is_some_and(|target| target.ends_with(b":/"))
    }

    /// What the line is, now that its LF has come.
    fn settle(&self, bytes: &[u8]) -> Begin {
        let line = bytes.get(self.line..self.at).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut words = line.split(|octet| is_space(*octet)).filter(|word| !word.is_empty());
        let (method, target, third) = (words.next(), words.next(), words.next());
        let last = words.next_back().or(third).or(target).unwrap_or_default();
        if last.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/")) {
            let is_preface = line == b"PRI * HTTP/2.0" && self.line == 0;
            return if is_preface { Begin::Http2 } else { Begin::Http1 };
        }
        if line.starts_with(PROXY_1) && matches!(target, Some(b"TCP4" | b"TCP6" | b"UNKNOWN")) {
            return Begin::Malformed;
        }
        if self.stage != Stage::Request {
            return Begin::Other;
        }
        match (method, third) {
            (Some(b"GET"), None) => Begin::Simple(self.at + 1),
            (_, Some(version)) if is_cousin(target.unwrap_or_default(), version) => Begin::Other,
            _ => Begin::Malformed,
        }
    }
}

/// RTSP, SIP and ICAP have HTTP's request line, with schemes and versions of their own.
fn is_cousin(target: &[u8], version: &[u8]) -> bool {
    COUSINS.iter().any(|(scheme, own)| target.starts_with(scheme) && version.starts_with(own))
}

/// What some server takes for a space: Python's also takes the separators of ASCII and the spaces of Latin-1.
fn is_space(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c | 0x1c..=0x1f | 0x85 | 0xa0)
}

fn is_control(octet: u8) -> bool {
    octet < b' ' && !is_space(octet) || octet == 0x7f
}

/// The other control octets of Latin-1.
fn is_upper_control(octet: u8) -> bool {
    matches!(octet, 0x80..=0x9f)
}

/// How headers of the PROXY protocol begin, in versions 1 and 2.
const PROXY_1: &[u8] = b"PROXY ";
const PROXY_2: &[u8] = b"\r\n\r\n\0";

const COUSINS: &[(&[u8], &[u8])] = &[
    (b"rtsp://", b"RTSP/"),
    (b"rtsps://", b"RTSP/"),
    (b"rtspu://", b"RTSP/"),
    (b"sip:", b"SIP/"),
    (b"sips:", b"SIP/"),
    (b"icap://", b"ICAP/"),
    (b"icaps://", b"ICAP/"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(text: &str) -> Begin {
        Beginning::default().look(text.as_bytes())
    }

    #[test]
    fn a_line_is_told_as_soon_as_its_octets_allow() {
        for open in
            ["", "\r\n", " ", "G", "GET", "GET ", "FOO a:", "FOO http:/", "NICK someone", "CONNECT", "{\"a\": 1"]
        {
            assert_eq!(begin(open), Begin::Open, "{open:?}");
        }
        for request in ["GET /", "x /a", "FOO http://", "CONNECT a", "PRI * ", "\r\nGET  /", "GET\t/"] {
            assert_eq!(begin(request), Begin::Request, "{request:?}");
        }
        for odd in ["\x01", "\0\x05 \x7f", "\x01GET", "GET \x01", "GET a\0b", "a b \x1b"] {
            let mut beginning = Beginning::default();
            assert_eq!(beginning.look(odd.as_bytes()), Begin::Open, "{odd:?}");
            assert!(beginning.is_odd(), "{odd:?}");
        }
        for request in ["\0GET /", "GET\x1c/", "\x1f CONNECT a"] {
            assert_eq!(begin(request), Begin::Request, "{request:?}");
        }
        for other in
            ["GE\x01", "\0a\0", "a b\0\n", "G\u{e9}", "GET key\r\n", "PING\r\n", "EHLO a.example\n", "SSH-2.0-x\r\n"]
        {
            assert_eq!(begin(other), Begin::Other, "{other:?}");
        }
        for http in
            ["GET / HTTP/1.1\r\n", "a b c HTTP/9\n", "GET http/1.0\r\n", "\r\nPRI * HTTP/2.0\r\n", "GET a\0 HTTP/1.1\n"]
        {
            assert_eq!(begin(http), Begin::Http1, "{http:?}");
        }
        assert_eq!(begin("PRI * HTTP/2.0\r\n"), Begin::Http2);
        assert_eq!(begin("GET /x\r\nmore"), Begin::Simple(8));
        for begun in ["PRI * a\0", "CONNECT a\0", "GET /\0", "a http://\0", " PRI * \0", "PRI  * \0", "PRI *\t\0"] {
            let mut slow = Beginning::default();
            let slowly = (1..=begun.len()).map(|end| slow.look(&begun.as_bytes()[..end])).last();
            assert_eq!(slowly, Some(begin(begun)), "{begun:?}");
        }
        for malformed in ["POST /x\r\n", "GET / FOO\r\n", "GET /\0", "FOO http://a b c\r\n"] {
            assert_eq!(begin(malformed), Begin::Malformed, "{malformed:?}");
        }
    }
}
