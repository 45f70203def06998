//! The formats of lists (SPEC V4), each with the meaning it has elsewhere.
//!
//! | format | a name means | exceptions |
//! |---|---|---|
//! | plain | `name` itself, `*.name` what is below, `.name` both | none |
//! | cidr | (addresses and prefixes, on lines or joined by commas) | none |
//! | hosts | itself | none |
//! | adblock | `\|\|name^` both, `\|name^` and a bare name itself | `@@\|\|name^`, beats every entry |
//! | dnsmasq | `address=/name/` (also `/#`), `local=/name/`, `server=/name/`: both | `server=/name/#`, the longer name wins |
//! | rpz | the owner itself, `*.owner` what is below | `CNAME rpz-passthru.`, the longer name wins |
//! | csv | as in plain, until its date | none |
//! | json | (addresses by host; the host is not an entry) | none |

mod adblock;
mod csv;
mod detect;
mod dnsmasq;
mod hosts;
pub(super) mod json;
mod plain;
mod rpz;

use std::fmt;

pub use detect::detect;

use super::entry::{Bad, Entry};
use super::prefixes::Exceptions;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Plain,
    Hosts,
    Adblock,
    Dnsmasq,
    Rpz,
    Cidr,
    Csv,
    Json,
}

/// What becomes of a line that is not bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Its entries were handed on.
    Taken,
    /// A blank, a comment or a header.
    Empty,
    /// Lawful, and about something that no list of names and addresses is about, such as the look of a page.
    Ignored,
}

/// Where entries go.
pub type Emit<'e> = dyn FnMut(Entry<'_>) + 'e;

/// Reads a source line by line. JSON has no lines: see [`json`].
#[derive(Debug)]
pub(super) enum Parser {
    Plain { subdomains: bool },
    Hosts,
    Adblock,
    Dnsmasq,
    Rpz(rpz::Zone),
    Csv(csv::Table),
}

impl Format {
    pub const ALL: [Self; 8] =
        [Self::Plain, Self::Hosts, Self::Adblock, Self::Dnsmasq, Self::Rpz, Self::Cidr, Self::Csv, Self::Json];

    /// The word for it in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hosts => "hosts",
            Self::Adblock => "adblock",
            Self::Dnsmasq => "dnsmasq",
            Self::Rpz => "rpz",
            Self::Cidr => "cidr",
            Self::Csv => "csv",
            Self::Json => "json",
        }
    }

    pub fn exceptions(self) -> Exceptions {
        match self {
            Self::Dnsmasq | Self::Rpz => Exceptions::MostSpecific,
            _ => Exceptions::Always,
        }
    }

    /// `None` for JSON. `subdomains` is for the formats that have no meaning of their own.
    pub(super) fn parser(self, subdomains: bool) -> Option<Parser> {
        Some(match self {
            Self::Plain | Self::Cidr => Parser::Plain { subdomains },
            Self::Hosts => Parser::Hosts,
            Self::Adblock => Parser::Adblock,
            Self::Dnsmasq => Parser::Dnsmasq,
            Self::Rpz => Parser::Rpz(rpz::Zone::default()),
            Self::Csv => Parser::Csv(csv::Table::new(subdomains)),
            Self::Json => return None,
        })
    }
}

impl Parser {
    /// One line without its end.
    pub(super) fn line(&mut self, line: &str, emit: &mut Emit<'_>) -> Result<Line, Bad> {
        match self {
            Self::Plain { subdomains } => plain::line(line, *subdomains, emit),
            Self::Hosts => hosts::line(line, emit),
            Self::Adblock => adblock::line(line, emit),
            Self::Dnsmasq => dnsmasq::line(line, emit),
            Self::Rpz(zone) => zone.line(line, emit),
            Self::Csv(table) => table.line(line, emit),
        }
    }

    /// Whether the source ended in the midst of something.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Rpz(zone) if zone.is_open())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What stands before the first of `marks`, without blanks.
fn before_comment<'a>(line: &'a str, marks: &[char]) -> &'a str {
    line.find(marks).and_then(|at| line.get(..at)).unwrap_or(line).trim()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_line_of_every_format_says_what_the_table_says() {
        let mut parser = None;
        let mut cases = 0;
        for (number, line) in include_str!("../../tests/data/list-formats.txt").lines().enumerate() {
            if let Some(header) = line.strip_prefix('[').filter(|_| !line.contains("->")) {
                parser = Some(parser_of(header.trim_end_matches(']')));
            } else if let (Some((line, wanted)), Some(parser)) = (line.split_once("-> "), &mut parser) {
                assert_eq!(said(parser, line.trim_end()), wanted, "line {}", number + 1);
                cases += 1;
            }
        }
        assert!(cases > 120, "{cases}");
    }

    fn parser_of(header: &str) -> Parser {
        let (word, subdomains) = header.split_once(' ').unwrap_or((header, ""));
        let format = Format::ALL.into_iter().find(|format| format.as_str() == word).unwrap();
        format.parser(subdomains == "subdomains").unwrap()
    }

    fn said(parser: &mut Parser, line: &str) -> String {
        let mut entries = Vec::new();
        let outcome = parser.line(line, &mut |entry| {
            let end = entry.expires.map(|end| end.duration_since(UNIX_EPOCH).unwrap().as_secs());
            entries.push(end.map_or(entry.to_string(), |end| format!("{entry} until {end}")));
        });
        match outcome {
            Ok(Line::Taken) => entries.join(", "),
            Ok(Line::Empty) => "-".to_owned(),
            Ok(Line::Ignored) => "ignored".to_owned(),
            Err(why) => {
                assert!(entries.is_empty(), "a bad line hands on nothing");
                format!("bad: {why}")
            }
        }
    }

    #[test]
    fn the_format_is_told_from_the_beginning() {
        for (beginning, format) in [
            ("", Format::Plain),
            ("# only\n# comments\n", Format::Plain),
            ("a.example\nb.example\n", Format::Plain),
            (".a.example\n*.b.example\n198.51.100.7\n", Format::Plain),
            ("# hosts\n127.0.0.1 localhost\n::1 localhost\n0.0.0.0 a.example\n", Format::Hosts),
            ("0.0.0.0\ta.example # 1\n", Format::Hosts),
            ("[Adblock Plus]\na.example\n", Format::Adblock),
            ("! Title\n||a.example^\n@@||b.example^\n", Format::Adblock),
            ("# made by a tool\nlocal=/a.example/\n", Format::Dnsmasq),
            ("address=/a.example/0.0.0.0\n", Format::Dnsmasq),
            ("$TTL 60\n@ IN SOA a. b. 1 2 3 4 5\na.example CNAME .\n", Format::Rpz),
            ("; zone\na.example 60 IN CNAME .\n*.a.example 60 IN CNAME .\n", Format::Rpz),
            ("198.51.100.0/24\n2001:db8::/32\n", Format::Cidr),
            ("198.51.100.0/24 ; SBL1\n198.51.101.0/24 ; SBL2\n", Format::Cidr),
            ("198.51.100.0/24,198.51.101.0/24,2001:db8::/32", Format::Cidr),
            ("ip/maskbit,expiredate\n198.51.100.7,0\n", Format::Csv),
            ("# feed\ndomain,expiredate\na.example,0\n", Format::Csv),
            ("  {\"a.example\": {\"current\": []}}", Format::Json),
        ] {
            assert_eq!(detect(beginning), format, "{beginning}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(
            lines in prop::collection::vec("[ -~\\t]{0,40}|[|@^$.#=/,;()*a-z0-9:-]{0,30}|\\PC{0,20}", 1..20), subdomains in any::<bool>(),
        ) {
            for mut parser in Format::ALL.into_iter().filter_map(|format| format.parser(subdomains)) {
                for line in &lines {
                    said(&mut parser, line);
                }
            }
            detect(&lines.join("\n"));
        }
    }
}
