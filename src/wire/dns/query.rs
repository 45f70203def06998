//! Questions of clients, read strictly; and the answers that are made here.
//!
//! Fails closed: a query that breaks the rules is ignored or refused here, and never reaches a resolver.

use std::net::IpAddr;

use super::{HEADER, Header, IN, Question, flag, kind, rcode, read_records, read_u16};

/// A query with exactly one question and nothing that a query must not have.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    pub octets: &'a [u8],
    pub header: Header,
    pub question: Question<'a>,
    pub edns: Option<Edns<'a>>,
}

/// The OPT record (RFC 6891, section 6.1).
#[derive(Clone, Copy, Debug)]
pub struct Edns<'a> {
    /// How large a datagram the sender takes, in octets: never below 512.
    pub size: u16,
    pub version: u8,
    /// DO: DNSSEC records are wanted (RFC 3225).
    pub dnssec: bool,
    pub options: &'a [u8],
}

/// Why a message is no query that can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// An answer, or too short to answer.
    Ignore,
    /// To be answered with this response code and, for want of a readable one, no question.
    Answer(u16),
}

impl<'a> Query<'a> {
    pub fn read(octets: &'a [u8]) -> Result<Self, Refused> {
        let header = Header::read(octets).map_err(|_| Refused::Ignore)?;
        if header.is_answer() {
            return Err(Refused::Ignore);
        }
        if header.flags & flag::OPCODE != 0 {
            return Err(Refused::Answer(rcode::NOTIMP));
        }
        let malformed = |_| Refused::Answer(rcode::FORMERR);
        if header.questions != 1 || header.answers != 0 {
            return Err(Refused::Answer(rcode::FORMERR));
        }
        let question = Question::read(octets).map_err(malformed)?;
        let edns = if octets.len() == question.end() && header.authorities == 0 && header.additionals == 0 {
            None
        } else {
            // Only an incremental zone transfer says something in its authority section (RFC 1995, section 3).
            if header.authorities != 0 && question.kind != kind::IXFR {
                return Err(Refused::Answer(rcode::FORMERR));
            }
            read_edns(octets, &header, question.end())?
        };
        if edns.is_some_and(|edns| edns.version != 0) {
            return Err(Refused::Answer(rcode::BADVERS));
        }
        Ok(Self { octets, header, question, edns })
    }

    pub fn dnssec(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec)
    }

    /// Whether its answer is the same for all who ask it: it says nothing but its question, the bits that make it another
    /// one, and what EDNS always says. A cookie makes no difference, for it stops here.
    pub fn is_common(&self) -> bool {
        let has_opt_alone = self.header.authorities == 0 && self.header.additionals == u16::from(self.edns.is_some());
        let has_usual_flags = self.header.flags & !(flag::RD | flag::CD | flag::AD) == 0;
        let mut codes = self.edns.iter().flat_map(Edns::option_codes);
        // No longer one needs to be, and those who wait hold theirs.
        has_opt_alone
            && has_usual_flags
            && self.octets.len() <= usize::from(LEAST_DATAGRAM)
            && codes.all(|code| code == Some(COOKIE))
    }

    /// What is sent to a resolver for it, on behalf of all who ask it, or of its client alone. Up to the end of the
    /// question it is the same.
    pub fn to_forward(&self, is_common: bool, into: &mut Vec<u8>) {
        // Cookies are between two neighbours (RFC 7873, section 5): they stop here, and the rest is the same for all.
        if !is_common || without_options(self, into).is_none() {
            into.clear();
            into.extend_from_slice(self.octets);
        }
    }

    /// How large an answer this client takes in a datagram, in octets.
    pub fn datagram_limit(&self) -> usize {
        self.edns.map_or(LEAST_DATAGRAM, |edns| edns.size).into()
    }
}

impl<'a> Edns<'a> {
    /// The options' codes; `None` where they are malformed.
    pub fn option_codes(&self) -> impl Iterator<Item = Option<u16>> + 'a {
        let mut rest = self.options;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let code = read_u16(rest, 0);
            let next = read_u16(rest, 2).and_then(|length| rest.get(4 + usize::from(length)..));
            rest = next.unwrap_or_default();
            Some(next.and(code))
        })
    }
}

/// The one OPT record of a message, if there is one. Two, or one that is not the root's, are an error.
fn read_edns<'a>(octets: &'a [u8], header: &Header, at: usize) -> Result<Option<Edns<'a>>, Refused> {
    let malformed = Refused::Answer(rcode::FORMERR);
    let records = read_records(octets, header, at).map_err(|_| malformed)?;
    let mut options = records.iter().filter(|record| record.kind == kind::OPT);
    let Some(opt) = options.next() else { return Ok(None) };
    if options.next().is_some() || octets.get(opt.owner) != Some(&0) {
        return Err(malformed);
    }
    let edns = Edns {
        size: opt.class.max(LEAST_DATAGRAM),
        version: (opt.ttl >> 16 & 0xff) as u8,
        dnssec: opt.ttl & DO != 0,
        options: octets.get(opt.data.clone()).unwrap_or_default(),
    };
    if edns.option_codes().any(|code| code.is_none()) { Err(malformed) } else { Ok(Some(edns)) }
}

/// What an answer made here says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local<'a> {
    pub rcode: u16,
    /// Those of the asked family are the answer.
    pub addresses: &'a [IpAddr],
    /// Of the addresses, and of the SOA that a negative answer carries. Seconds.
    pub ttl: u32,
    /// An Extended DNS Error (RFC 8914, section 4), for clients that speak EDNS.
    pub error: Option<u16>,
}

/// Answers `query` with addresses, or with nothing and an SOA (RFC 2308, section 3).
///
/// The question is echoed byte for byte, EDNS is spoken if the query spoke it, with its DO. At most 512 octets long
/// with four addresses, so that it needs no truncation.
pub fn answer(query: &Query<'_>, local: &Local<'_>, into: &mut Vec<u8>) {
    let addresses = local.addresses.iter().filter(|ip| {
        query.question.class == IN
            && query.question.kind == if ip.is_ipv4() { kind::A } else { kind::AAAA }
            && local.rcode == rcode::NO_ERROR
    });
    let count = u16::try_from(addresses.clone().count()).unwrap_or(u16::MAX);
    let negative = count == 0 && matches!(local.rcode, rcode::NO_ERROR | rcode::NXDOMAIN);
    let header = Header {
        id: query.header.id,
        flags: answer_flags(query.header.flags, local.rcode),
        questions: 1,
        answers: count,
        authorities: negative.into(),
        additionals: query.edns.is_some().into(),
    };
    into.clear();
    write_header(&header, into);
    into.extend_from_slice(query.question.octets);
    for ip in addresses.take(count.into()) {
        match ip {
            IpAddr::V4(ip) => write_record(kind::A, query.question.class, local.ttl, &ip.octets(), into),
            IpAddr::V6(ip) => write_record(kind::AAAA, query.question.class, local.ttl, &ip.octets(), into),
        }
    }
    if negative {
        write_record(kind::SOA, query.question.class, local.ttl, &soa(local.ttl), into);
    }
    if let Some(edns) = query.edns {
        write_opt(OWN_SIZE, local.rcode, edns.dnssec, local.error, into);
    }
}

/// Answers a message whose question could not be read: a header alone, and OPT where the version is what failed.
pub fn refuse(message: &[u8], code: u16, into: &mut Vec<u8>) {
    into.clear();
    let Ok(header) = Header::read(message) else { return };
    let versions = code == rcode::BADVERS;
    let flags = flag::QR | header.flags & (flag::OPCODE | flag::RD) | code & flag::RCODE;
    let header = Header { flags, questions: 0, answers: 0, authorities: 0, additionals: versions.into(), ..header };
    write_header(&header, into);
    if versions {
        write_opt(OWN_SIZE, code, false, None, into);
    }
}

/// The answer without its records and with TC, for a client whose datagrams are too small for it (RFC 2181, section 9).
pub fn truncate(query: &Query<'_>, flags: u16, into: &mut Vec<u8>) {
    let header = Header {
        id: query.header.id,
        flags: flags | flag::TC,
        questions: 1,
        answers: 0,
        authorities: 0,
        additionals: query.edns.is_some().into(),
    };
    into.clear();
    write_header(&header, into);
    into.extend_from_slice(query.question.octets);
    if let Some(edns) = query.edns {
        write_opt(OWN_SIZE, rcode::NO_ERROR, edns.dnssec, None, into);
    }
}

/// `query` without its EDNS options, which are between a client and its own resolver (RFC 7873, section 5), or
/// `None` if records other than OPT stand in it.
pub fn without_options(query: &Query<'_>, into: &mut Vec<u8>) -> Option<()> {
    let edns = query.edns?;
    if query.header.additionals != 1 || query.header.authorities != 0 {
        return None;
    }
    into.clear();
    into.extend_from_slice(query.octets.get(..query.question.end())?);
    write_opt(edns.size, 0, edns.dnssec, None, into);
    Some(())
}

fn answer_flags(query: u16, code: u16) -> u16 {
    flag::QR | flag::RA | query & (flag::RD | flag::CD) | code & flag::RCODE
}

pub(crate) fn write_header(header: &Header, into: &mut Vec<u8>) {
    let Header { id, flags, questions, answers, authorities, additionals } = *header;
    for field in [id, flags, questions, answers, authorities, additionals] {
        into.extend_from_slice(&field.to_be_bytes());
    }
}

/// A record of the name that was asked.
fn write_record(kind: u16, class: u16, ttl: u32, data: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(&QUESTION_NAME.to_be_bytes());
    into.extend_from_slice(&kind.to_be_bytes());
    into.extend_from_slice(&class.to_be_bytes());
    into.extend_from_slice(&ttl.to_be_bytes());
    into.extend_from_slice(&(data.len() as u16).to_be_bytes());
    into.extend_from_slice(data);
}

fn write_opt(size: u16, code: u16, dnssec: bool, error: Option<u16>, into: &mut Vec<u8>) {
    into.push(0);
    into.extend_from_slice(&kind::OPT.to_be_bytes());
    into.extend_from_slice(&size.to_be_bytes());
    let ttl = u32::from(code >> 4) << 24 | if dnssec { DO } else { 0 };
    into.extend_from_slice(&ttl.to_be_bytes());
    match error {
        None => into.extend_from_slice(&[0, 0]),
        Some(error) => {
            into.extend_from_slice(&[0, 6]);
            into.extend_from_slice(&EXTENDED_ERROR.to_be_bytes());
            into.extend_from_slice(&[0, 2]);
            into.extend_from_slice(&error.to_be_bytes());
        }
    }
}

/// MNAME and RNAME in a zone that nobody can have (RFC 6761, section 6.4), serial, refresh, retry, expire, minimum.
fn soa(ttl: u32) -> Vec<u8> {
    let mut data = b"\x08tidegate\x07invalid\0\x0ahostmaster\x08tidegate\x07invalid\0".to_vec();
    for number in [1, 3600, 600, 86_400, ttl] {
        data.extend_from_slice(&number.to_be_bytes());
    }
    data
}

/// The datagram that everybody takes (RFC 1035, section 2.3.4).
const LEAST_DATAGRAM: u16 = 512;
/// What tidegate says it takes itself: what passes everywhere unfragmented (DNS flag day 2020).
const OWN_SIZE: u16 = 1232;
const DO: u32 = 0x8000;
/// A pointer to the name behind the header.
const QUESTION_NAME: u16 = 0xc000 | HEADER as u16;
const EXTENDED_ERROR: u16 = 15;
/// The EDNS option COOKIE (RFC 7873).
const COOKIE: u16 = 10;

/// Extended DNS Errors (RFC 8914, section 4).
pub mod error {
    /// The operator of the server blocks it.
    pub const BLOCKED: u16 = 15;
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
}

#[cfg(test)]
mod tests {
    use super::super::Message;
    use super::*;
    use hickory_proto::op::{Edns as TheirEdns, Message as Theirs, OpCode, Query as TheirQuery, ResponseCode};
    use hickory_proto::rr::{Name, RData, RecordType};
    use proptest::prelude::*;

    fn asked(name: &str, kind: RecordType, edns: bool) -> Vec<u8> {
        let mut message = Theirs::query();
        message.add_query(TheirQuery::query(Name::from_ascii(name).unwrap(), kind));
        message.metadata.recursion_desired = true;
        if edns {
            let mut edns = TheirEdns::new();
            edns.set_max_payload(1232);
            edns.set_dnssec_ok(true);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn addresses() -> Vec<IpAddr> {
        ["10.9.8.7", "10.9.8.6", "2001:db8::7", "2001:db8::8"].map(|ip| ip.parse().unwrap()).to_vec()
    }

    fn block(query: &[u8], addresses: &[IpAddr], code: u16) -> (Vec<u8>, Theirs) {
        let local = Local { rcode: code, addresses, ttl: 60, error: Some(error::BLOCKED) };
        let mut made = Vec::new();
        answer(&Query::read(query).unwrap(), &local, &mut made);
        let theirs = Theirs::from_vec(&made).unwrap();
        Message::read(&made).unwrap();
        assert!(made.len() <= 512);
        (made, theirs)
    }

    #[test]
    fn addresses_of_the_asked_family_are_the_answer() {
        for (kind, expected) in [(RecordType::A, &addresses()[..2]), (RecordType::AAAA, &addresses()[2..])] {
            let (_, answer) = block(&asked("Ads.Example.", kind, true), &addresses(), rcode::NO_ERROR);
            let got: Vec<IpAddr> = answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
            assert_eq!(got, expected);
            assert!(answer.answers.iter().all(|record| record.ttl == 60));
            assert!(answer.answers.iter().all(|record| record.name.to_string() == "Ads.Example."), "{answer}");
            assert!(answer.authorities.is_empty());
        }
    }

    #[test]
    fn other_families_and_types_have_no_data_and_an_soa() {
        let only_v4 = &addresses()[..1];
        for kind in [RecordType::AAAA, RecordType::TXT, RecordType::HTTPS, RecordType::MX, RecordType::ANY] {
            let (_, answer) = block(&asked("ads.example.", kind, false), only_v4, rcode::NO_ERROR);
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert!(answer.answers.is_empty());
            assert!(matches!(&answer.authorities[0].data, RData::SOA(soa) if soa.minimum == 60));
        }
    }

    #[test]
    fn without_addresses_the_name_does_not_exist_and_an_soa_says_for_how_long() {
        let (_, answer) = block(&asked("ads.example.", RecordType::A, false), &[], rcode::NXDOMAIN);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities[0].ttl, 60);
        assert!(answer.edns.is_none());
    }

    #[test]
    fn the_question_its_case_and_the_bits_of_the_query_are_echoed() {
        let mut query = asked("aDs.ExAmPlE.", RecordType::A, true);
        query[3] |= 0x10;
        let (made, answer) = block(&query, &[], rcode::NXDOMAIN);
        let end = Query::read(&query).unwrap().question.end();
        assert_eq!(made[12..end], query[12..end]);
        assert_eq!(made[..2], query[..2]);
        assert_eq!((made[2], made[3]), (0x81, 0x93));
        let edns = answer.edns.unwrap();
        assert!(edns.flags().dnssec_ok);
        assert_eq!(edns.max_payload(), 1232);
    }

    #[test]
    fn the_longest_name_with_four_addresses_needs_no_truncation() {
        let name = format!("{0}.{0}.{0}.{1}.", "a".repeat(63), "b".repeat(61));
        let many = vec!["2001:db8::7".parse().unwrap(); 4];
        let (made, answer) = block(&asked(&name, RecordType::AAAA, true), &many, rcode::NO_ERROR);
        assert_eq!(answer.answers.len(), 4);
        assert!(made.len() <= 512, "{}", made.len());
    }

    fn refused(query: &[u8]) -> Refused {
        Query::read(query).map(|_| ()).unwrap_err()
    }

    #[test]
    fn broken_queries_are_refused_as_the_standards_say() {
        let good = asked("www.example.", RecordType::A, true);
        let plain = asked("www.example.", RecordType::A, false);
        let with = |at: usize, octet: u8| {
            let mut query = good.clone();
            query[at] = octet;
            query
        };
        let formerr = Refused::Answer(rcode::FORMERR);
        let opt = &good[plain.len()..];
        let two_opts = {
            let mut query = [&good[..], opt].concat();
            query[11] = 2;
            query
        };
        let cases = [
            ("an answer", with(2, 0x81), Refused::Ignore),
            ("an update", with(2, 0x28), Refused::Answer(rcode::NOTIMP)),
            ("a notification", with(2, 0x20), Refused::Answer(rcode::NOTIMP)),
            ("no question", with(5, 0), formerr),
            ("two questions", with(5, 2), formerr),
            ("an answer in a query", with(7, 1), formerr),
            ("an authority in a query", with(9, 1), formerr),
            ("a record that is not there", with(11, 2), formerr),
            ("a label that is longer than the message", with(12, 63), formerr),
            ("a compressed question", with(12, 0xc0), formerr),
            ("an option that is longer than OPT", [&good[..], &[0]].concat(), formerr),
            ("trailing octets", [&plain[..], &[0]].concat(), formerr),
            ("two OPTs", two_opts, formerr),
            ("EDNS version 1", with(plain.len() + 6, 1), Refused::Answer(rcode::BADVERS)),
        ];
        for (what, query, expected) in cases {
            assert_eq!(refused(&query), expected, "{what}");
        }
    }

    #[test]
    fn two_well_formed_questions_are_refused() {
        let mut message = Theirs::query();
        for name in ["good.example.", "bad.example."] {
            message.add_query(TheirQuery::query(Name::from_ascii(name).unwrap(), RecordType::A));
        }
        assert_eq!(refused(&message.to_vec().unwrap()), Refused::Answer(rcode::FORMERR));
    }

    #[test]
    fn every_prefix_of_a_query_is_refused() {
        let query = asked("www.example.", RecordType::A, true);
        for end in 0..query.len() {
            let expected = if end < HEADER { Refused::Ignore } else { Refused::Answer(rcode::FORMERR) };
            assert_eq!(refused(&query[..end]), expected, "{end}");
        }
        assert!(Query::read(&query).is_ok());
    }

    #[test]
    fn a_refusal_carries_the_id_and_opcode_of_the_query() {
        let mut query = asked("www.example.", RecordType::A, true);
        query[2] = 0x29;
        let mut made = Vec::new();
        refuse(&query, rcode::NOTIMP, &mut made);
        let answer = Theirs::from_vec(&made).unwrap();
        assert_eq!(made[..2], query[..2]);
        assert_eq!(answer.metadata.op_code, OpCode::Update);
        assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
        refuse(&query, rcode::BADVERS, &mut made);
        assert_eq!(u16::from(Theirs::from_vec(&made).unwrap().metadata.response_code), rcode::BADVERS);
    }

    #[test]
    fn options_are_left_out_and_the_rest_is_kept() {
        let mut query = asked("Www.example.", RecordType::A, true);
        let end = query.len();
        query[end - 1] = 12;
        query.extend([0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let read = Query::read(&query).unwrap();
        assert_eq!(read.edns.unwrap().option_codes().collect::<Vec<_>>(), [Some(10)]);
        let mut bare = Vec::new();
        without_options(&read, &mut bare).unwrap();
        assert_eq!(bare, asked_as(&query, end));
        assert!(Query::read(&bare).unwrap().dnssec());
    }

    #[test]
    fn only_a_question_with_nothing_else_but_a_cookie_is_common() {
        let plain = asked("www.example.", RecordType::A, false);
        let edns = asked("www.example.", RecordType::A, true);
        let with_option = |code: u8, length: u16| {
            let mut query = edns[..edns.len() - 2].to_vec();
            query.extend((length + 4).to_be_bytes());
            query.extend([0, code]);
            query.extend(length.to_be_bytes());
            query.resize(query.len() + usize::from(length), 7);
            query
        };
        let with_record = |query: &[u8], count_at: usize| {
            let mut query = [query, &[0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 3, 1, 2, 3]].concat();
            query[count_at] += 1;
            query
        };
        // A zone transfer may have an authority section.
        let ixfr = asked("www.example.", RecordType::IXFR, false);
        let with_flag = |at: usize, bit: u8| {
            let mut query = plain.clone();
            query[at] |= bit;
            query
        };
        let cases = [
            (plain.clone(), true),
            (with_flag(3, 0x30), true),
            (with_flag(3, 0x40), false),
            (with_flag(2, 0x02), false),
            (edns.clone(), true),
            (with_option(10, 8), true),
            (with_option(10, 600), false),
            (with_option(8, 8), false),
            (with_record(&plain, 11), false),
            (with_record(&edns, 11), false),
            (with_record(&ixfr, 9), false),
        ];
        for (octets, is_common) in cases {
            let query = Query::read(&octets).unwrap();
            assert_eq!(query.is_common(), is_common, "{octets:?}");
            let expected = if octets == with_option(10, 8) { &edns } else { &octets };
            let mut sent = vec![7];
            query.to_forward(is_common, &mut sent);
            assert_eq!(&sent, expected);
        }
    }

    fn asked_as(query: &[u8], end: usize) -> Vec<u8> {
        let mut bare = query[..end].to_vec();
        bare[end - 1] = 0;
        bare
    }

    proptest! {
        #[test]
        fn no_octets_make_reading_a_query_panic(octets in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(query) = Query::read(&octets) {
                let mut made = Vec::new();
                answer(&query, &Local { rcode: 0, addresses: &addresses(), ttl: 1, error: None }, &mut made);
                prop_assert!(Message::read(&made).is_ok());
            }
            refuse(&octets, rcode::FORMERR, &mut Vec::new());
        }

        #[test]
        fn a_changed_query_is_read_as_hickory_reads_it_or_refused(at in 0usize..40, octet in any::<u8>()) {
            let mut query = asked("www.example.", RecordType::A, true);
            if at < query.len() {
                query[at] = octet;
            }
            if let (Ok(read), Ok(theirs)) = (Query::read(&query), Theirs::from_vec(&query)) {
                prop_assert_eq!(theirs.queries.len(), 1);
                prop_assert_eq!(u16::from(theirs.queries[0].query_type()), read.question.kind);
                prop_assert_eq!(theirs.edns.is_some(), read.edns.is_some());
            }
        }
    }
}
