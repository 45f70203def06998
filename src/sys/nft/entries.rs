//! Whether the entries of lists still stand in the kernel: a few of each set, in microseconds, or all of them.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use super::encode::get_element;
use super::message::{DUMP, GET_ELEMENT, GET_GENERATION, Message};
use super::{NftError, NftSocket};
use crate::firewall::{Class, Datum, Element, Entry, ListSets};
use crate::sys::attributes::Attributes;

/// A few entries of each set of some lists, drawn by lot.
#[derive(Debug)]
pub struct Sample(Vec<(String, Entry)>);

/// What a set should hold, or does.
#[derive(Debug, Default, PartialEq, Eq)]
struct Contents {
    count: u64,
    /// Of the hashes of its entries.
    sum: u64,
}

impl Sample {
    pub fn of(lists: &[ListSets]) -> Self {
        let lots = RandomState::new();
        let mut drawn = Vec::new();
        for list in lists {
            let mut classes: BTreeMap<Class, (u64, Vec<Entry>)> = BTreeMap::new();
            for entry in list.entries() {
                let (seen, kept) = classes.entry(entry.class()).or_default();
                *seen += 1;
                match usize::try_from(lots.hash_one(*seen) % *seen) {
                    _ if kept.len() < DRAWN => kept.push(entry),
                    Ok(place) => kept.iter_mut().skip(place).take(1).for_each(|own| *own = entry),
                    Err(_) => {}
                }
            }
            let of = |(class, (_, kept)): (Class, (u64, Vec<Entry>))| {
                let set = list.set_name(class);
                kept.into_iter().map(move |entry| (set.clone(), entry))
            };
            drawn.extend(classes.into_iter().flat_map(of));
        }
        Self(drawn)
    }
}

impl NftSocket {
    /// Another one after every transaction of anybody in this network namespace.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        const ID: u16 = 1;
        let answers = self.query(Message::new(GET_GENERATION, 0, "the generation of the rules"))?;
        let ids = answers.iter().flat_map(|body| Attributes(body)).filter(|(kind, _)| *kind == ID);
        Ok(ids.filter_map(|(_, id)| Some(u32::from_be_bytes(id.try_into().ok()?))).next().unwrap_or_default())
    }

    /// Whether all of the sample stands.
    pub fn has(&mut self, sample: &Sample, now: SystemTime) -> Result<bool, NftError> {
        for (set, entry) in sample.0.iter().filter(|(_, entry)| lasts(entry, now + SOON)) {
            match self.query(get_element(set, &Element::exactly(vec![entry.datum()]))) {
                Ok(_) => {}
                Err(error) if error.source.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether these lists stand, entry by entry. Entries that end are counted alone, since some end meanwhile.
    pub fn has_all(&mut self, lists: &[ListSets], now: SystemTime) -> Result<bool, NftError> {
        let hash = RandomState::new();
        for list in lists {
            let mut expected: BTreeMap<Class, (Contents, u64)> = BTreeMap::new();
            for entry in list.entries().filter(|entry| lasts(entry, now)) {
                let (certain, possible) = expected.entry(entry.class()).or_default();
                *possible += 1;
                if lasts(&entry, now + SOON) {
                    certain.add(hash_of(&hash, entry.datum()));
                }
            }
            for class in list.classes() {
                let (certain, possible) = expected.remove(&class).unwrap_or_default();
                let found = self.contents(&list.set_name(class), &hash)?;
                let stands = match class.ending {
                    false => found == certain,
                    true => (certain.count..=possible).contains(&found.count),
                };
                if !stands {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn contents(&mut self, set: &str, hash: &RandomState) -> Result<Contents, NftError> {
        let mut found = Contents::default();
        self.each_key(set, |key| found.add(hash.hash_one(key)))?;
        Ok(found)
    }

    /// Tells the key of each element of a set.
    pub(super) fn each_key(&mut self, set: &str, mut tell: impl FnMut(&[u8])) -> Result<(), NftError> {
        const ELEMENTS: u16 = 3;
        let mut ask = Message::in_table(GET_ELEMENT, DUMP, 1, format!("entries of set {set}"));
        ask.text(2, set);
        self.query_each(ask, |body| {
            // The list has elements, each of them a key, and that a value.
            let elements = inside(ELEMENTS, body).flat_map(|list| inside(1, list));
            let values = elements.flat_map(|element| inside(1, element)).flat_map(|key| inside(1, key));
            values.for_each(&mut tell);
        })
    }
}

impl Contents {
    fn add(&mut self, hash: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash);
    }
}

fn hash_of(hash: &RandomState, datum: Datum) -> u64 {
    match datum {
        Datum::Ipv4(address) => hash.hash_one(&address.octets()[..]),
        Datum::Ipv6(address) => hash.hash_one(&address.octets()[..]),
        Datum::Protocol(number) => hash.hash_one(&[number][..]),
        Datum::Service(port) => hash.hash_one(&port.to_be_bytes()[..]),
    }
}

/// The attributes of this kind.
fn inside(kind: u16, list: &[u8]) -> impl Iterator<Item = &[u8]> {
    Attributes(list).filter(move |(own, _)| *own == kind).map(|(_, value)| value)
}

fn lasts(entry: &Entry, until: SystemTime) -> bool {
    entry.expires.is_none_or(|end| end > until)
}

/// Entries of each set.
const DRAWN: usize = 4;
/// An entry that ends so soon may be gone by the time that it is looked for: far more than looking takes.
const SOON: Duration = Duration::from_secs(60);
