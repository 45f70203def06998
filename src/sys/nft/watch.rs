//! Whether what we put into the kernel is still there: handles and counts, which nobody can change and leave alike.
//!
//! The kernel gives every table, chain, rule and set a handle that it never gives again. What is not looked at: the
//! elements of dynamic sets, which come and go. Those of lists, which may be millions, are looked at in [`entries`].
//!
//! [`entries`]: super::entries

use std::hash::{DefaultHasher, Hash, Hasher};

use super::encode::{Shape, Standing};
use super::message::{
    DUMP, GET_CHAIN, GET_ELEMENT, GET_OBJECT_RESET, GET_RULE, GET_SET, GET_TABLE, Message, answers_of,
};
use super::{NftError, NftSocket};
use crate::firewall::{Ruleset, TABLE};
use crate::sys::attributes::Attributes;

/// What stood at some time. Equal to another one if nothing was changed in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

/// A kind of object: how to ask for all of them, and the attributes that make each what it is.
struct Kind {
    get: u16,
    what: &'static str,
    table: u16,
    /// Handle, name, flags.
    told: &'static [u16],
}

const KINDS: [Kind; 4] = [
    Kind { get: GET_TABLE, what: "tables", table: 1, told: &[1, 2, 4] },
    Kind { get: GET_CHAIN, what: "chains", table: 1, told: &[2, 3, 5] },
    Kind { get: GET_RULE, what: "rules", table: 1, told: &[2, 3] },
    Kind { get: GET_SET, what: "sets", table: 1, told: &[2, 3, 16] },
];

/// Set elements are counted, not read.
const ELEMENTS: u16 = 3;

impl NftSocket {
    /// What stands of a ruleset now.
    pub fn fingerprint(&mut self, ruleset: &Ruleset) -> Result<Fingerprint, NftError> {
        let mut hash = DefaultHasher::new();
        for kind in KINDS {
            let ask = Message::in_table(kind.get, DUMP, kind.table, kind.what);
            for body in self.query(ask)? {
                let ours = |(own, value): (u16, &[u8])| own == kind.table && text(value) == TABLE.as_bytes();
                if Attributes(&body).any(ours) {
                    kind.get.hash(&mut hash);
                    Attributes(&body).filter(|(own, _)| kind.told.contains(own)).for_each(|told| told.hash(&mut hash));
                }
            }
        }
        for set in ruleset.sets.iter().filter(|set| !set.kind.comes_and_goes()) {
            let mut ask = Message::in_table(GET_ELEMENT, DUMP, 1, format!("elements of set {}", set.name));
            ask.text(2, &set.name);
            let answers = self.query(ask);
            // A set that is gone has told so already.
            let elements = answers.iter().flatten().flat_map(|body| Attributes(body));
            let lists = elements.filter(|(own, _)| *own == ELEMENTS).map(|(_, list)| list);
            (&set.name, lists.map(|list| Attributes(list).count()).sum::<usize>()).hash(&mut hash);
        }
        Ok(Fingerprint(hash.finish()))
    }

    /// The sets and chains of our table, whoever made it.
    pub(super) fn standing(&mut self) -> Result<Standing, NftError> {
        let mut standing = Standing::default();
        for (get, what) in [(GET_SET, "sets"), (GET_CHAIN, "chains")] {
            for body in self.query(Message::in_table(get, DUMP, 1, what))? {
                let value = |wanted: u16| Attributes(&body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
                if value(1).is_none_or(|table| text(table) != TABLE.as_bytes()) {
                    continue;
                }
                let name = |kind| value(kind).and_then(|name| String::from_utf8(text(name).to_vec()).ok());
                let number = |kind| value(kind).and_then(word).unwrap_or_default();
                if get == GET_CHAIN {
                    standing.chains.extend(name(3));
                } else if let Some(name) = name(2) {
                    let size = value(9).and_then(|about| Attributes(about).find(|(kind, _)| *kind == 1));
                    let timeout = value(11).and_then(|timeout| timeout.try_into().ok()).map_or(0, u64::from_be_bytes);
                    let size = size.and_then(|(_, size)| word(size)).unwrap_or_default();
                    let shape = Shape { flags: number(3), types: number(4), width: number(5), size, timeout };
                    standing.sets.push((name, shape));
                }
            }
        }
        Ok(standing)
    }

    /// The packets that a counter of the table has counted since this was asked last.
    pub fn take_count(&mut self, counter: &str) -> Result<u64, NftError> {
        const COUNTER: u32 = 1;
        const DATA: u16 = 4;
        const PACKETS: u16 = 2;
        let mut ask = Message::in_table(GET_OBJECT_RESET, 0, 1, format!("counter {counter}"));
        ask.text(2, counter);
        ask.u32(3, COUNTER);
        let answers = self.query(ask)?;
        let data = answers.iter().flat_map(|body| Attributes(body)).filter(|(kind, _)| *kind == DATA);
        let packets = data.flat_map(|(_, data)| Attributes(data)).filter(|(kind, _)| *kind == PACKETS);
        Ok(packets.filter_map(|(_, count)| Some(u64::from_be_bytes(count.try_into().ok()?))).sum())
    }

    /// The bodies of the answers to one question, behind their netfilter headers.
    pub(super) fn query(&mut self, message: Message) -> Result<Vec<Vec<u8>>, NftError> {
        let mut found = Vec::new();
        self.query_each(message, |body| found.push(body.to_vec()))?;
        Ok(found)
    }

    /// The same, one by one.
    pub(super) fn query_each(&mut self, message: Message, mut found: impl FnMut(&[u8])) -> Result<(), NftError> {
        let object = message.object.clone();
        let failed = |source| NftError { object: object.clone(), source, detail: None };
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        message.write(self.sequence, &mut bytes);
        self.socket.send(&bytes, 0).map_err(failed)?;
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                // The answer to a question for one object has no end of its own.
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(failed(e)),
            }
            if answers_of(&buffer, self.sequence, &mut found).map_err(failed)? {
                return Ok(());
            }
        }
    }
}

fn word(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

fn text(value: &[u8]) -> &[u8] {
    value.strip_suffix(&[0]).unwrap_or(value)
}
