//! Reading a source from its beginning to its end in bounded memory, however long it or a line of it is.
//!
//! Fails safe: what is no list, was cut short, or holds nothing is [`Refused`] as a whole; a bad line is reported
//! with its number and reason, and skipped.

mod lines;

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, Read};

use super::entry::{Bad, Entry, Sense};
use super::format::{Format, Line, detect, json};
use lines::Lines;

/// How a source is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `None`: detected from the beginning.
    pub format: Option<Format>,
    /// Names of formats that leave it open mean everything below them too (SPEC V3).
    pub subdomains: bool,
    pub limits: Limits,
}

/// What one source may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Octets of text. Default 16 GiB.
    pub octets: u64,
    /// Entries. Default 200 million: while they are compiled, each costs 8 octets of memory.
    pub entries: u64,
    /// Bad lines that are reported one by one; the others are counted. Default 100.
    pub reported: usize,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub format: Format,
    pub octets: u64,
    pub lines: u64,
    /// Entries, exceptions among them.
    pub taken: u64,
    pub excepted: u64,
    /// Lawful lines that a list has no use for.
    pub ignored: u64,
    /// Lines that were skipped.
    pub bad: u64,
    pub first_bad: Vec<BadLine>,
    /// The last line has its end. A source that used to have it and has it no more was cut short.
    pub ends_with_newline: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// From 1; 0 in JSON, which is not read by lines.
    pub number: u64,
    pub why: Bad,
    /// Its beginning.
    pub text: String,
}

/// Why a whole source is not used.
#[derive(Debug)]
pub enum Refused {
    Io(io::Error),
    /// UTF-16, compressed, or something else that is no text.
    Encoding(&'static str),
    /// What a server sends instead of a list when it has none.
    WebPage,
    /// It ended in the midst of something.
    CutShort,
    /// JSON that is none, or of another shape.
    Json(serde_json::Error),
    /// Not one entry in so many bad lines.
    Nothing {
        bad: u64,
    },
    /// So many exceptions, and nothing that they except from.
    Exceptions(u64),
    /// More octets than the limit.
    TooLarge(u64),
    /// More entries than the limit.
    TooMany(u64),
}

impl Default for Limits {
    fn default() -> Self {
        Self { octets: 16 << 30, entries: 200_000_000, reported: 100 }
    }
}

/// Hands every entry to `emit`, with the number of its line.
pub fn read(source: impl Read, options: &Options, emit: &mut dyn FnMut(u64, Entry<'_>)) -> Result<Report, Refused> {
    let limits = options.limits;
    let mut source = BufReader::with_capacity(CHUNK, source.take(limits.octets.saturating_add(1)));
    let beginning = beginning_of(&mut source)?;
    let text = check_encoding(&beginning)?;
    let format = options.format.unwrap_or_else(|| detect(text));
    // A byte order mark is not part of the first line.
    let skipped = if beginning.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    let mut whole = Cursor::new(&beginning);
    whole.consume(skipped);
    let mut gathered = Gathered { report: Report::new(format), limits, emit };
    gathered.report.octets = skipped as u64;
    match format.parser(options.subdomains) {
        Some(parser) => gathered.read_lines(Lines::new(whole.chain(source), format == Format::Cidr), parser)?,
        None => gathered.read_json(whole.chain(source))?,
    }
    match gathered.report {
        Report { taken: 0, bad, .. } => Err(Refused::Nothing { bad }),
        report if report.held() == 0 => Err(Refused::Exceptions(report.excepted)),
        report => Ok(report),
    }
}

/// At most [`CHUNK`] octets, fewer only at the end of the source.
fn beginning_of(source: &mut impl Read) -> Result<Vec<u8>, Refused> {
    let mut beginning = Vec::with_capacity(CHUNK);
    source.take(CHUNK as u64).read_to_end(&mut beginning).map_err(Refused::Io)?;
    Ok(beginning)
}

/// The beginning as text, without a byte order mark and as far as it is UTF-8.
fn check_encoding(octets: &[u8]) -> Result<&str, Refused> {
    match octets {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(Refused::Encoding("UTF-16; write it as UTF-8")),
        [0x1f, 0x8b, ..] => return Err(Refused::Encoding("compressed by gzip; unpack it first")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(Refused::Encoding("compressed by zstd; unpack it first")),
        [b'P', b'K', 3, 4, ..] => return Err(Refused::Encoding("a zip archive; unpack it first")),
        [b't', b'd', b'g', b'n', b'a', b'm', b'e', b's', ..] => {
            return Err(Refused::Encoding("a compiled list; name its source"));
        }
        _ if octets.contains(&0) => return Err(Refused::Encoding("not text: it holds NUL octets")),
        _ => {}
    }
    let octets = octets.strip_prefix(BYTE_ORDER_MARK).unwrap_or(octets);
    let text = octets.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    let start = text.trim_start().as_bytes();
    let begins = |tag: &[u8]| start.get(..tag.len()).is_some_and(|own| own.eq_ignore_ascii_case(tag));
    if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") {
        return Err(Refused::WebPage);
    }
    Ok(text)
}

/// What was read so far, and where entries go.
struct Gathered<'e> {
    report: Report,
    limits: Limits,
    emit: &'e mut dyn FnMut(u64, Entry<'_>),
}

impl Gathered<'_> {
    fn read_lines<R: BufRead>(
        &mut self,
        mut lines: Lines<R>,
        mut parser: super::format::Parser,
    ) -> Result<(), Refused> {
        while let Some(piece) = lines.next().map_err(Refused::Io)? {
            let number = piece.number;
            let text = piece.text.map(|octets| str::from_utf8(octets).map_err(|_| Bad::NotUtf8));
            let mut taken = 0;
            let outcome = text.unwrap_or(Err(Bad::TooLong)).and_then(|text| {
                parser.line(text, &mut |entry| {
                    taken += 1;
                    self.report.excepted += u64::from(entry.sense == Sense::Exception);
                    (self.emit)(number, entry);
                })
            });
            match outcome {
                Ok(Line::Taken | Line::Empty) => {}
                Ok(Line::Ignored) => self.report.ignored += 1,
                Err(why) => {
                    self.report.note(number, why, &String::from_utf8_lossy(piece.beginning), self.limits.reported)
                }
            }
            self.take(taken)?;
        }
        self.report.lines = lines.count();
        self.report.octets += lines.octets();
        self.report.ends_with_newline = lines.ended();
        if self.report.octets > self.limits.octets {
            return Err(Refused::TooLarge(self.limits.octets));
        }
        if parser.is_open() { Err(Refused::CutShort) } else { Ok(()) }
    }

    fn read_json(&mut self, source: impl Read) -> Result<(), Refused> {
        let (emit, report, limits) = (&mut self.emit, &mut self.report, self.limits);
        let mut counted = Counted { source, octets: 0 };
        let mut taken = 0;
        let line = Cell::new(0);
        let outcome = json::read(
            CountedLines {
                source: BufReader::new(&mut counted),
                begun: &line,
                at_end: true,
                string: Strings::default(),
            },
            &mut |entry| {
                taken += 1;
                emit(line.get(), entry);
            },
            &mut |text, why| report.note(line.get(), why, text, limits.reported),
        );
        report.lines = line.get();
        report.octets += counted.octets;
        report.ends_with_newline = true;
        if report.octets > limits.octets {
            return Err(Refused::TooLarge(limits.octets));
        }
        outcome.map_err(|error| if error.is_eof() { Refused::CutShort } else { Refused::Json(error) })?;
        self.take(taken)
    }

    fn take(&mut self, taken: u64) -> Result<(), Refused> {
        self.report.taken += taken;
        if self.report.taken > self.limits.entries {
            return Err(Refused::TooMany(self.limits.entries));
        }
        Ok(())
    }
}

impl Report {
    fn new(format: Format) -> Self {
        let (octets, lines, taken, excepted, ignored, bad) = (0, 0, 0, 0, 0, 0);
        Self { format, octets, lines, taken, excepted, ignored, bad, first_bad: Vec::new(), ends_with_newline: false }
    }

    /// Entries that put something on the list.
    pub fn held(&self) -> u64 {
        self.taken - self.excepted
    }

    fn note(&mut self, number: u64, why: Bad, text: &str, reported: usize) {
        self.bad += 1;
        if self.first_bad.len() < reported {
            let text = text.trim().chars().take(SHOWN).collect();
            self.first_bad.push(BadLine { number, why, text });
        }
    }
}

/// The JSON reader takes one octet after the other, so that its line is known whenever it has come to an end of something.
/// It holds a string whole, so there is none of any length.
struct CountedLines<'n, R> {
    source: R,
    begun: &'n Cell<u64>,
    /// Of a line: the next octet begins another.
    at_end: bool,
    string: Strings,
}

/// How far into a string of JSON a source is.
#[derive(Debug, Default)]
struct Strings {
    /// `None`: not in one.
    length: Option<usize>,
    escaped: bool,
}

impl Strings {
    /// The length of the string that `octet` is in.
    fn take(&mut self, octet: u8) -> usize {
        let is_escaped = std::mem::take(&mut self.escaped);
        self.length = match self.length {
            None => (octet == b'"').then_some(0),
            Some(_) if octet == b'"' && !is_escaped => None,
            Some(length) => {
                self.escaped = octet == b'\\' && !is_escaped;
                Some(length.saturating_add(1))
            }
        };
        self.length.unwrap_or_default()
    }
}

impl<R: Read> Read for CountedLines<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        for octet in buffer.iter().take(length) {
            self.begun.set(self.begun.get() + u64::from(self.at_end));
            self.at_end = *octet == b'\n';
            if self.string.take(*octet) > MAX_STRING {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a string without an end"));
            }
        }
        Ok(length)
    }
}

struct Counted<R> {
    source: R,
    octets: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.octets += read as u64;
        Ok(read)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "it cannot be read: {error}"),
            Self::Encoding(what) => write!(f, "it is {what}"),
            Self::WebPage => f.write_str("it is a web page"),
            Self::CutShort => f.write_str("it was cut short"),
            Self::Json(error) => write!(f, "it is not the JSON of a list: {error}"),
            Self::Nothing { bad: 0 } => f.write_str("it holds no entry"),
            Self::Nothing { bad } => write!(f, "it holds no entry, and {bad} bad lines"),
            Self::Exceptions(count) => write!(f, "it holds no entry, but {count} exceptions"),
            Self::TooLarge(limit) => write!(f, "it is larger than {limit} octets"),
            Self::TooMany(limit) => write!(f, "it holds more than {limit} entries"),
        }
    }
}

impl std::error::Error for Refused {}

/// Octets of a line, or in a list of addresses of one between commas.
pub const MAX_LINE: usize = 16 << 10;
const CHUNK: usize = 64 << 10;
/// Octets of a string in JSON: an address has 43, and what else such a file says is not kept.
const MAX_STRING: usize = 256 << 10;
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Characters of a bad line that are shown.
const SHOWN: usize = 80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A source that gives `step` octets at a time, as a network does.
    struct Slow<'a> {
        octets: &'a [u8],
        step: usize,
    }

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let step = self.step.min(buffer.len());
            (&mut self.octets).take(step as u64).read(buffer)
        }
    }

    type Read1 = (Result<Report, Refused>, Vec<(u64, String)>);

    fn read_by(octets: &[u8], options: &Options, step: usize) -> Read1 {
        let mut entries = Vec::new();
        let report = read(Slow { octets, step }, options, &mut |line, entry| entries.push((line, entry.to_string())));
        (report, entries)
    }

    fn read_all(octets: &[u8]) -> Read1 {
        read_by(octets, &Options::default(), usize::MAX)
    }

    fn entries(octets: &[u8]) -> Vec<String> {
        let (report, entries) = read_all(octets);
        assert!(report.is_ok(), "{report:?}");
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    fn refused(octets: &[u8]) -> String {
        read_all(octets).0.unwrap_err().to_string()
    }

    #[test]
    fn a_bad_line_is_reported_with_its_number_and_reason_and_the_others_are_taken() {
        let (report, entries) = read_all(b"# head\na.example\n\nba d\nb.example\n999.999.999.999\n");
        let report = report.unwrap();
        assert_eq!(entries, [(2, "a.example".to_owned()), (5, "b.example".to_owned())]);
        assert_eq!((report.lines, report.taken, report.bad, report.octets), (6, 2, 2, 49));
        let bad: Vec<_> =
            report.first_bad.iter().map(|bad| (bad.number, bad.text.as_str(), bad.why.to_string())).collect();
        assert_eq!(bad[0], (4, "ba d", "not one entry a line".to_owned()));
        assert_eq!((bad[1].0, bad[1].1), (6, "999.999.999.999"));
    }

    #[test]
    fn bad_lines_beyond_the_limit_are_only_counted() {
        let limits = Limits { reported: 3, ..Limits::default() };
        let text = format!("a.example\n{}", "b a d\n".repeat(10));
        let report = read_by(text.as_bytes(), &Options { limits, ..Options::default() }, 7).0.unwrap();
        assert_eq!((report.bad, report.first_bad.len()), (10, 3));
    }

    #[test]
    fn byte_order_marks_line_ends_and_a_missing_last_one_change_no_entry() {
        let wanted = ["a.example", "b.example"];
        for text in [
            &b"a.example\nb.example\n"[..],
            b"a.example\nb.example",
            b"a.example\r\nb.example\r\n",
            b"\xef\xbb\xbfa.example\r\nb.example",
            b"\r\n\n  a.example  \n\t\nb.example\n\n",
        ] {
            assert_eq!(entries(text), wanted, "{:?}", String::from_utf8_lossy(text));
        }
        assert!(!read_all(b"a.example\nb.exam").0.unwrap().ends_with_newline);
        assert!(read_all(b"a.example\n").0.unwrap().ends_with_newline);
    }

    #[test]
    fn a_line_of_megabytes_is_one_bad_line() {
        let text = [b"a.example\n", "x".repeat(3 << 20).as_bytes(), b"\nb.example\n"].concat();
        let (report, entries) = read_all(&text);
        let report = report.unwrap();
        assert_eq!(entries, [(1, "a.example".to_owned()), (3, "b.example".to_owned())]);
        assert_eq!((report.first_bad[0].number, report.first_bad[0].why), (2, Bad::TooLong));
        assert!(report.first_bad[0].text.len() <= SHOWN);
    }

    #[test]
    fn addresses_joined_by_commas_are_read_however_long_their_line() {
        let joined: Vec<_> =
            (0..200_000_u32).map(|i| format!("10.{}.{}.{}/32", i >> 16, i >> 8 & 255, i & 255)).collect();
        let text = format!("{}\n192.0.2.0/24, b@d , 2001:db8::/32 # rest, of it\n198.51.100.1\n", joined.join(","));
        assert!(text.len() > 2 << 20);
        let (report, entries) = read_all(text.as_bytes());
        let report = report.unwrap();
        assert_eq!((report.format, report.taken, report.bad), (Format::Cidr, 200_003, 1));
        assert_eq!(
            entries[200_000..],
            [(2, "192.0.2.0/24".to_owned()), (2, "2001:db8::/32".to_owned()), (3, "198.51.100.1/32".to_owned())]
        );
        assert_eq!((report.first_bad[0].number, report.lines), (2, 3));
    }

    #[test]
    fn json_gives_the_current_addresses_of_every_host() {
        let text = br#"{"a.example": {"previous": ["192.0.2.9"], "current": ["192.0.2.1", "2001:db8::/32", "x"]},
                        "b.example": {"current": []}, "c.example": {"current": ["192.0.2.2",
                        "y"]}}
"#;
        let (report, entries) = read_all(text);
        let entries: Vec<_> = entries.iter().map(|(line, entry)| (*line, entry.as_str())).collect();
        assert_eq!(entries, [(1, "192.0.2.1/32"), (1, "2001:db8::/32"), (2, "192.0.2.2/32")]);
        let report = report.unwrap();
        assert_eq!(report.first_bad.iter().map(|bad| bad.number).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(report.lines, 3);
    }

    #[test]
    fn a_source_cut_short_is_refused_wherever_its_format_shows_it() {
        let json = br#"{"a.example": {"current": ["192.0.2.1", "192.0.2.2"]}}"#;
        for length in 1..json.len() {
            assert!(read_all(&json[..length]).0.is_err(), "{length}");
        }
        assert_eq!(refused(&json[..40]), "it was cut short");
        assert_eq!(refused(b"$TTL 60\na.example CNAME .\n@ SOA a. b. ( 1 2\n"), "it was cut short");
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_reason() {
        for (octets, why) in [
            (&b"\xff\xfea\0.\0b\0"[..], "UTF-16"),
            (b"\xfe\xff\0a\0.\0b", "UTF-16"),
            (b"a\0.\0b\0", "NUL"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"<!DOCTYPE html><p>Not found", "web page"),
            (b"\n <html>", "web page"),
            (b"tdgnames\x01", "compiled"),
            (b"", "no entry"),
            (b"# nothing\n", "no entry"),
            (b"@@||a.example^\n@@|b.example^\n", "no entry, but 2 exceptions"),
            (b"$TTL 60\na.example CNAME rpz-passthru.\n", "no entry, but 1 exceptions"),
            (b"b a d\n", "1 bad"),
            (b"{\"a\": [1]}", "JSON"),
            (b"{\"a\": {\"other\": [\"192.0.2.1\"]}}", "current"),
        ] {
            let own = refused(octets);
            assert!(own.contains(why), "{own} for {octets:?}");
        }
    }

    #[test]
    fn a_source_larger_than_its_limits_is_refused() {
        let with = |octets, entries| Options { limits: Limits { octets, entries, reported: 1 }, ..Options::default() };
        let text = b"a.example\nb.example\nc.example\n";
        assert!(read_by(text, &with(30, 3), 4).0.is_ok());
        assert!(matches!(read_by(text, &with(29, 3), 4).0, Err(Refused::TooLarge(29))));
        assert!(matches!(read_by(text, &with(30, 2), 4).0, Err(Refused::TooMany(2))));
        let json = br#"{"a": {"current": ["192.0.2.1"]}}   "#;
        assert!(matches!(read_by(json, &with(34, 3), 4).0, Err(Refused::TooLarge(34))));
    }

    /// Of JSON that says nothing for so long, that is: it is read into memory string by string.
    #[test]
    fn json_with_a_string_without_end_is_refused_before_it_is_held() {
        struct Endless<'a>(&'a [u8], u64);
        impl Read for Endless<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if !self.0.is_empty() {
                    return self.0.read(buffer);
                }
                self.1 += buffer.len() as u64;
                buffer.fill(b'a');
                Ok(buffer.len())
            }
        }
        for beginning in ["{\"a\": {\"current\": [\"", "{\"a\": {\"", "{\"a\": {\"current\": [\"\\\"", "{\"a"] {
            let mut source = Endless(beginning.as_bytes(), 0);
            let limits = Limits { octets: 64 << 20, ..Limits::default() };
            let outcome = read(&mut source, &Options { limits, ..Options::default() }, &mut |_, _| ());
            assert!(matches!(outcome, Err(Refused::Json(_))), "{beginning}: {outcome:?}");
            assert!(source.1 < 1 << 20, "{beginning}: {} octets", source.1);
        }
        let long = format!("{{\"a\": {{\"why\": \"{}\", \"current\": [\"192.0.2.1\"]}}}}", "\\\"".repeat(MAX_LINE / 4));
        assert_eq!(entries(long.as_bytes()), ["192.0.2.1/32"]);
    }

    #[test]
    fn a_line_that_is_not_utf8_is_bad_and_its_neighbours_are_not() {
        let (report, entries) = read_all(b"a.example\nb\xff.example\nc.example\n");
        assert_eq!(entries.len(), 2);
        assert_eq!(report.unwrap().first_bad[0].why, Bad::NotUtf8);
    }

    #[test]
    fn a_named_format_is_not_detected() {
        let options = Options { format: Some(Format::Plain), ..Options::default() };
        assert!(matches!(read_by(b"0.0.0.0 a.example\n", &options, 99).0, Err(Refused::Nothing { bad: 1 })));
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic_and_their_pieces_do_not_matter(
            octets in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b','), Just(b'.'), b'a'..=b'f', Just(b'#'), any::<u8>()], 0..400),
            format in prop::option::of(0..8usize), step in 1usize..50,
        ) {
            let options = Options { format: format.map(|at| Format::ALL[at]), ..Options::default() };
            let (whole, pieces) = (read_by(&octets, &options, usize::MAX), read_by(&octets, &options, step));
            prop_assert_eq!(whole.1, pieces.1);
            prop_assert_eq!(whole.0.ok(), pieces.0.ok());
        }
    }
}
