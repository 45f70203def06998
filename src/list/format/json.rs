//! Addresses by host: `{"host": {"current": ["192.0.2.1", ...], ...}, ...}`.
//!
//! Read as it streams by, so its size costs no memory. Only addresses and prefixes under `current` are entries;
//! the hosts are not, since such a file says where a host was, not that its name is judged.

use std::fmt;
use std::io::Read;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Emit;
use crate::list::entry::{Bad, Entry, parse_prefix};

/// Hands on every address. `bad` gets what is in the place of one and is none.
pub(in crate::list) fn read(
    source: impl Read,
    emit: &mut Emit<'_>,
    bad: &mut dyn FnMut(&str, Bad),
) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_reader(source);
    let mut sink = Sink { emit, bad };
    json.deserialize_map(Hosts(&mut sink))?;
    json.end()
}

struct Sink<'s, 'e> {
    emit: &'s mut Emit<'e>,
    bad: &'s mut dyn FnMut(&str, Bad),
}

struct Hosts<'a, 's, 'e>(&'a mut Sink<'s, 'e>);

impl<'de> Visitor<'de> for Hosts<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of hosts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(Host(self.0))?;
        }
        Ok(())
    }
}

struct Host<'a, 's, 'e>(&'a mut Sink<'s, 'e>);

impl<'de> DeserializeSeed<'de> for Host<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, host: D) -> Result<(), D::Error> {
        host.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Host<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with \"current\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut has_current = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "current" {
                has_current = true;
                map.next_value_seed(Addresses(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if has_current { Ok(()) } else { Err(A::Error::missing_field("current")) }
    }
}

struct Addresses<'a, 's, 'e>(&'a mut Sink<'s, 'e>);

impl<'de> DeserializeSeed<'de> for Addresses<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, list: D) -> Result<(), D::Error> {
        list.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Addresses<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of addresses")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(text) = list.next_element::<String>()? {
            match parse_prefix(text.trim()) {
                Ok(Some(prefix)) => (self.0.emit)(Entry::prefix(prefix)),
                Ok(None) => (self.0.bad)(&text, Bad::Form("an address or a prefix")),
                Err(why) => (self.0.bad)(&text, why),
            }
        }
        Ok(())
    }
}
