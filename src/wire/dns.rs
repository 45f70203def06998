//! DNS messages (RFC 1035): headers, names, questions and records, read where they lie.
//!
//! Fails closed: a message is read to its last octet or it is [`Malformed`]; a compression pointer that does not
//! lead backwards, a name over 255 octets, a record that ends elsewhere than its length says and anything behind the
//! last record are all refused.

pub mod name;
pub mod query;
pub mod rebuild;
pub mod svcb;

use std::ops::Range;

use self::name::Name;
use super::Malformed;

/// The fixed twelve octets of a message (RFC 1035, section 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub id: u16,
    pub flags: u16,
    pub questions: u16,
    pub answers: u16,
    pub authorities: u16,
    pub additionals: u16,
}

/// Bits of [`Header::flags`].
pub mod flag {
    /// This is an answer.
    pub const QR: u16 = 0x8000;
    pub const OPCODE: u16 = 0x7800;
    /// The answer is authoritative.
    pub const AA: u16 = 0x0400;
    /// The answer was cut.
    pub const TC: u16 = 0x0200;
    /// Recursion is desired.
    pub const RD: u16 = 0x0100;
    /// Recursion is available.
    pub const RA: u16 = 0x0080;
    /// Reserved: zero.
    pub const Z: u16 = 0x0040;
    /// The answer is authentic (RFC 4035, section 3.2.3).
    pub const AD: u16 = 0x0020;
    /// Checking is disabled (RFC 4035, section 3.2.2).
    pub const CD: u16 = 0x0010;
    pub const RCODE: u16 = 0x000f;
}

/// Response codes (RFC 1035, section 4.1.1; RFC 6891, section 9).
pub mod rcode {
    pub const NO_ERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    /// Goes beyond the header into the OPT record.
    pub const BADVERS: u16 = 16;
}

/// Types of records and questions.
pub mod kind {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const MX: u16 = 15;
    pub const AAAA: u16 = 28;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const SVCB: u16 = 64;
    pub const HTTPS: u16 = 65;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
}

/// The Internet's class.
pub const IN: u16 = 1;
pub const HEADER: usize = 12;

impl Header {
    pub fn read(message: &[u8]) -> Result<Self, Malformed> {
        let mut fields = message.get(..HEADER).ok_or(SHORT_HEADER)?.as_chunks::<2>().0.iter();
        let mut next = || fields.next().map_or(0, |octets| u16::from_be_bytes(*octets));
        Ok(Self {
            id: next(),
            flags: next(),
            questions: next(),
            answers: next(),
            authorities: next(),
            additionals: next(),
        })
    }

    pub fn is_answer(&self) -> bool {
        self.flags & flag::QR != 0
    }

    pub fn rcode(&self) -> u16 {
        self.flags & flag::RCODE
    }
}

/// What is asked (RFC 1035, section 4.1.2).
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub name: Name,
    pub kind: u16,
    pub class: u16,
    /// The whole question as it came, in its own case.
    pub octets: &'a [u8],
}

impl<'a> Question<'a> {
    /// The question behind the header. A first name has nothing to point back to, so it is never compressed.
    fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let (name, end) = Name::read(message, HEADER)?;
        if end - HEADER != name.octets().len() {
            return Err(POINTER);
        }
        Ok(Self {
            name,
            kind: read_u16(message, end).ok_or(SHORT_QUESTION)?,
            class: read_u16(message, end + 2).ok_or(SHORT_QUESTION)?,
            octets: message.get(HEADER..end + 4).ok_or(SHORT_QUESTION)?,
        })
    }

    /// Where the question ends in its message.
    pub fn end(&self) -> usize {
        HEADER + self.octets.len()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Answer,
    Authority,
    Additional,
}

/// A record, by where its parts lie in the message (RFC 1035, section 4.1.3).
#[derive(Clone, Debug)]
pub struct Record {
    pub section: Section,
    /// Where its owner's name begins.
    pub owner: usize,
    pub kind: u16,
    pub class: u16,
    /// Seconds. For OPT, flags.
    pub ttl: u32,
    /// Where the TTL lies.
    pub ttl_at: usize,
    pub data: Range<usize>,
}

impl Record {
    /// Its TTL in seconds; one with its highest bit set is zero (RFC 2181, section 8).
    pub fn lifetime(&self) -> u32 {
        if self.ttl >> 31 == 0 { self.ttl } else { 0 }
    }
}

/// A message with one question, as answers have.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    pub octets: &'a [u8],
    pub header: Header,
    pub question: Question<'a>,
    pub records: Vec<Record>,
}

impl<'a> Message<'a> {
    /// Reads a message to its last octet.
    pub fn read(octets: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::read(octets)?;
        if header.questions != 1 {
            return Err(QUESTIONS);
        }
        let question = Question::read(octets)?;
        let records = read_records(octets, &header, question.end())?;
        Ok(Self { octets, header, question, records })
    }

    pub fn data(&self, record: &Record) -> &'a [u8] {
        self.octets.get(record.data.clone()).unwrap_or_default()
    }

    pub fn owner(&self, record: &Record) -> Result<Name, Malformed> {
        Name::read(self.octets, record.owner).map(|(name, _)| name)
    }

    /// The name that `record`'s data begins with, `skip` octets in, such as a CNAME's target.
    pub fn name_in(&self, record: &Record, skip: usize) -> Result<Name, Malformed> {
        let (name, end) = Name::read(self.octets, record.data.start + skip)?;
        if end > record.data.end { Err(DATA) } else { Ok(name) }
    }
}

/// All records of a message whose question ends at `at`.
fn read_records(octets: &[u8], header: &Header, mut at: usize) -> Result<Vec<Record>, Malformed> {
    let counts = [
        (Section::Answer, header.answers),
        (Section::Authority, header.authorities),
        (Section::Additional, header.additionals),
    ];
    // A record takes 11 octets at least: a count beyond that is a lie, and reserves nothing.
    let total: usize = counts.iter().map(|(_, count)| usize::from(*count)).sum();
    let mut records = Vec::with_capacity(total.min(octets.len() / LEAST_RECORD));
    for (section, count) in counts {
        for _ in 0..count {
            let record = read_record(octets, section, at)?;
            at = record.data.end;
            records.push(record);
        }
    }
    if at == octets.len() { Ok(records) } else { Err(TRAILING) }
}

fn read_record(octets: &[u8], section: Section, at: usize) -> Result<Record, Malformed> {
    let end = name::skip(octets, at)?;
    let length = usize::from(read_u16(octets, end + 8).ok_or(SHORT_RECORD)?);
    let data = end + 10..end + 10 + length;
    if data.end > octets.len() {
        return Err(DATA);
    }
    Ok(Record {
        section,
        owner: at,
        kind: read_u16(octets, end).ok_or(SHORT_RECORD)?,
        class: read_u16(octets, end + 2).ok_or(SHORT_RECORD)?,
        ttl: read_u32(octets, end + 4).ok_or(SHORT_RECORD)?,
        ttl_at: end + 4,
        data,
    })
}

pub(crate) fn read_u16(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..)?.first_chunk().map(|octets| u16::from_be_bytes(*octets))
}

pub(crate) fn read_u32(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..)?.first_chunk().map(|octets| u32::from_be_bytes(*octets))
}

const LEAST_RECORD: usize = 11;

const SHORT_HEADER: Malformed = Malformed { field: "header", section: "RFC 1035, 4.1.1" };
const QUESTIONS: Malformed = Malformed { field: "QDCOUNT", section: "RFC 9619, 2" };
const SHORT_QUESTION: Malformed = Malformed { field: "question", section: "RFC 1035, 4.1.2" };
const POINTER: Malformed = Malformed { field: "compression", section: "RFC 1035, 4.1.4" };
const SHORT_RECORD: Malformed = Malformed { field: "resource record", section: "RFC 1035, 4.1.3" };
const DATA: Malformed = Malformed { field: "RDATA", section: "RFC 1035, 4.1.3" };
const TRAILING: Malformed = Malformed { field: "octets behind the last record", section: "RFC 1035, 4.1" };
