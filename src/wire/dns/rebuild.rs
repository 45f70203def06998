//! A message written anew with some of its records changed or gone.
//!
//! Names that may be compressed (RFC 3597, section 4) are taken apart and written again, since the octets they
//! pointed to may have moved. All other data passes byte for byte.

use std::collections::HashMap;

use super::name::Name;
use super::query::write_header;
use super::{DATA, Header, Message, Record, Section, flag, kind};
use crate::wire::Malformed;

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Keep,
    Remove,
    /// Other data, which holds no compressed name.
    Data(Vec<u8>),
}

/// Writes `message` with its records changed. It is authentic no more, so AD is cleared.
pub fn rebuild(
    message: &Message<'_>,
    mut change: impl FnMut(&Record) -> Change,
    into: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let mut writer = Writer { into, names: HashMap::new() };
    writer.into.clear();
    write_header(&message.header, writer.into);
    writer.name(&message.question.name);
    let class_and_kind = message.question.octets.last_chunk::<4>().copied().unwrap_or_default();
    writer.into.extend_from_slice(&class_and_kind);
    let mut counts = [0u16; 3];
    for record in &message.records {
        let change = change(record);
        if change == Change::Remove {
            continue;
        }
        let count = match record.section {
            Section::Answer => &mut counts[0],
            Section::Authority => &mut counts[1],
            Section::Additional => &mut counts[2],
        };
        *count += 1;
        writer.record(message, record, change)?;
    }
    let [answers, authorities, additionals] = counts;
    let flags = message.header.flags & !flag::AD;
    let mut header = Vec::with_capacity(super::HEADER);
    write_header(&Header { flags, answers, authorities, additionals, ..message.header }, &mut header);
    if let Some(place) = into.get_mut(..super::HEADER) {
        place.copy_from_slice(&header);
    }
    if into.len() > usize::from(u16::MAX) { Err(TOO_LONG) } else { Ok(()) }
}

struct Writer<'a> {
    into: &'a mut Vec<u8>,
    /// Where each name already stands, by its octets in lower case.
    names: HashMap<Vec<u8>, u16>,
}

impl Writer<'_> {
    fn record(&mut self, message: &Message<'_>, record: &Record, change: Change) -> Result<(), Malformed> {
        self.name(&message.owner(record)?);
        // Type, class and TTL.
        self.into.extend_from_slice(message.octets.get(record.ttl_at - 4..record.ttl_at + 4).ok_or(DATA)?);
        let length_at = self.into.len();
        self.into.extend_from_slice(&[0, 0]);
        match change {
            Change::Data(data) => self.into.extend_from_slice(&data),
            _ => self.data(message, record)?,
        }
        let length = u16::try_from(self.into.len() - length_at - 2).map_err(|_| TOO_LONG)?;
        if let Some(place) = self.into.get_mut(length_at..length_at + 2) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }

    fn data(&mut self, message: &Message<'_>, record: &Record) -> Result<(), Malformed> {
        let mut at = record.data.start;
        for part in parts(record.kind) {
            let end = match part {
                Part::Octets(count) => at + count,
                Part::Text => at + 1 + usize::from(*message.octets.get(at).ok_or(DATA)?),
                Part::Name { compress } => {
                    let (name, end) = Name::read(message.octets, at)?;
                    if *compress {
                        self.name(&name)
                    } else {
                        self.into.extend_from_slice(name.octets())
                    }
                    at = end;
                    end
                }
            };
            if end > record.data.end {
                return Err(DATA);
            }
            self.into.extend_from_slice(message.octets.get(at..end).ok_or(DATA)?);
            at = end;
        }
        self.into.extend_from_slice(message.octets.get(at..record.data.end).ok_or(DATA)?);
        Ok(())
    }

    /// Writes a name, with a pointer to the longest part of it that stands already.
    fn name(&mut self, name: &Name) {
        let mut rest = name.octets();
        while rest.len() > 1 {
            let key = rest.to_ascii_lowercase();
            if let Some(at) = self.names.get(&key) {
                self.into.extend_from_slice(&(0xc000 | at).to_be_bytes());
                return;
            }
            // Pointers have 14 bits.
            if let Some(at) = u16::try_from(self.into.len()).ok().filter(|at| *at < 0x4000) {
                self.names.insert(key, at);
            }
            let label = 1 + rest.first().map_or(0, |length| usize::from(*length));
            let (label, next) = rest.split_at_checked(label).unwrap_or((rest, &[]));
            self.into.extend_from_slice(label);
            rest = next;
        }
        self.into.push(0);
    }
}

enum Part {
    Octets(usize),
    /// A character string (RFC 1035, section 3.3).
    Text,
    /// Only the types of RFC 1035 may be sent compressed.
    Name {
        compress: bool,
    },
}

const OLD: Part = Part::Name { compress: true };
const NEW: Part = Part::Name { compress: false };

/// The beginning of the data of types in which names may come compressed.
fn parts(record: u16) -> &'static [Part] {
    match record {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR
        kind::NS | 3 | 4 | kind::CNAME | 7..=9 | kind::PTR => &[OLD],
        // SOA, MINFO
        kind::SOA | 14 => &[OLD, OLD],
        kind::MX => &[Part::Octets(2), OLD],
        // RP
        17 => &[NEW, NEW],
        // AFSDB, RT, KX
        18 | 21 | 36 => &[Part::Octets(2), NEW],
        // SIG
        24 => &[Part::Octets(18), NEW],
        // PX
        26 => &[Part::Octets(2), NEW, NEW],
        // NXT, DNAME
        30 | kind::DNAME => &[NEW],
        // SRV
        33 => &[Part::Octets(6), NEW],
        // NAPTR
        35 => &[Part::Octets(4), Part::Text, Part::Text, Part::Text, NEW],
        _ => &[],
    }
}

const TOO_LONG: Malformed = Malformed { field: "message of more than 65,535 octets", section: "RFC 1035, 4.2.2" };

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message as Theirs, OpCode, Query};
    use hickory_proto::rr::rdata::{A, CNAME, MX, NS, NULL, SOA, SRV, TXT};
    use hickory_proto::rr::{Name as TheirName, RData, Record as TheirRecord, RecordType};
    use proptest::prelude::*;

    fn name(text: &str) -> TheirName {
        TheirName::from_ascii(text).unwrap()
    }

    fn mixed() -> Vec<u8> {
        let mut message = Theirs::response(7, OpCode::Query);
        message.add_query(Query::query(name("Www.example.com."), RecordType::A));
        message.metadata.authentic_data = true;
        let unknown = RData::Unknown { code: RecordType::Unknown(65_280), rdata: NULL::with(vec![0xc0, 0x0c, 3, 4]) };
        let soa = SOA::new(name("ns.example.com."), name("h.example.com."), 1, 2, 3, 4, 5);
        let answers = [
            ("www.example.com.", RData::CNAME(CNAME(name("edge.cdn.example.net.")))),
            ("edge.cdn.example.net.", RData::A(A::new(192, 0, 2, 1))),
            ("edge.cdn.example.net.", RData::A(A::new(10, 0, 0, 1))),
            ("example.com.", RData::MX(MX::new(10, name("mail.example.com.")))),
            ("_x._tcp.example.com.", RData::SRV(SRV::new(1, 2, 3, name("srv.example.com.")))),
            ("example.com.", RData::TXT(TXT::new(vec!["a text".into()]))),
            ("odd.example.com.", unknown),
        ];
        for (owner, data) in answers {
            message.add_answer(TheirRecord::from_rdata(name(owner), 300, data));
        }
        message.add_authority(TheirRecord::from_rdata(name("example.com."), 9, RData::NS(NS(name("ns.example.com.")))));
        message.add_authority(TheirRecord::from_rdata(name("example.com."), 9, RData::SOA(soa)));
        message.add_additional(TheirRecord::from_rdata(name("ns.example.com."), 9, RData::A(A::new(192, 0, 2, 53))));
        message.to_vec().unwrap()
    }

    fn rebuilt(octets: &[u8], change: impl FnMut(&Record) -> Change) -> Vec<u8> {
        let mut made = Vec::new();
        rebuild(&Message::read(octets).unwrap(), change, &mut made).unwrap();
        Message::read(&made).unwrap();
        made
    }

    #[test]
    fn a_message_without_changes_says_the_same_and_is_no_longer() {
        let before = mixed();
        let made = rebuilt(&before, |_| Change::Keep);
        let (one, other) = (Theirs::from_vec(&before).unwrap(), Theirs::from_vec(&made).unwrap());
        assert_eq!(one.answers, other.answers);
        assert_eq!(one.authorities, other.authorities);
        assert_eq!(one.additionals, other.additionals);
        assert_eq!(one.queries, other.queries);
        assert!(!other.metadata.authentic_data);
        assert!(made.len() <= before.len(), "{} from {}", made.len(), before.len());
        assert_eq!(made[12..16], before[12..16]);
    }

    #[test]
    fn a_removed_record_takes_none_with_it() {
        let before = mixed();
        for gone in 0..9 {
            let mut n = 0;
            let made = rebuilt(&before, |_| {
                n += 1;
                if n == gone + 1 { Change::Remove } else { Change::Keep }
            });
            let all = |message: &[u8]| {
                let message = Theirs::from_vec(message).unwrap();
                [message.answers, message.authorities, message.additionals].concat()
            };
            let mut expected = all(&before);
            expected.remove(gone);
            assert_eq!(all(&made), expected, "{gone}");
        }
    }

    #[test]
    fn changed_data_replaces_the_old() {
        let made = rebuilt(&mixed(), |record| match record.kind {
            kind::A => Change::Data(vec![198, 51, 100, 1]),
            _ => Change::Keep,
        });
        let made = Theirs::from_vec(&made).unwrap();
        assert_eq!(made.answers[1].data, RData::A(A::new(198, 51, 100, 1)));
        assert_eq!(made.answers[2].data, RData::A(A::new(198, 51, 100, 1)));
        assert_eq!(made.answers[3].data, RData::MX(MX::new(10, name("mail.example.com."))));
    }

    #[test]
    fn names_past_the_reach_of_pointers_are_written_in_full() {
        let mut message = Theirs::response(7, OpCode::Query);
        message.add_query(Query::query(name("example.com."), RecordType::TXT));
        for n in 0..90 {
            let text = RData::TXT(TXT::new(vec!["x".repeat(250)]));
            message.add_answer(TheirRecord::from_rdata(name(&format!("a{n}.b{n}.example.com.")), 1, text));
        }
        let before = message.to_vec().unwrap();
        let made = rebuilt(&before, |_| Change::Keep);
        assert!(made.len() > 0x4000);
        assert_eq!(Theirs::from_vec(&made).unwrap().answers, Theirs::from_vec(&before).unwrap().answers);
    }

    proptest! {
        #[test]
        fn no_message_makes_rebuilding_panic(at in 0usize..400, octet in any::<u8>(), cut in 0usize..20) {
            let mut octets = mixed();
            if at < octets.len() {
                octets[at] = octet;
            }
            octets.truncate(octets.len() - cut);
            if let Ok(message) = Message::read(&octets) {
                let mut made = Vec::new();
                if rebuild(&message, |_| Change::Keep, &mut made).is_ok() {
                    prop_assert!(Message::read(&made).is_ok());
                }
            }
        }
    }
}
