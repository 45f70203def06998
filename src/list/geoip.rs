//! Databases that tell the country or the autonomous system of an address, in MaxMind's file format (MMDB).
//!
//! A file is walked once and flattened into sorted ranges; nothing of it is kept. IPv4 lies in the tree under `::/96`,
//! and the prefixes that only lead there once more (`::ffff:0:0/96`, `2001::/32`, `2002::/16`) are left out: their
//! addresses have no code, as no entry of a list for the IPv4 address would hold them.
//!
//! Fails closed: a file of which any part that matters cannot be read is no database. No file takes more steps than it
//! has nodes, whatever its nodes point to.

mod country;
#[cfg(test)]
#[path = "../../tests/it/mmdb.rs"]
pub(crate) mod mmdb;
mod tree;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use maxminddb::{Reader, path};

use super::PrefixSet;
pub use country::Country;
use tree::{Leaf, Tree};

/// What a database tells of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Country,
    Asn,
}

/// A country, or the number of an autonomous system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    Country(Country),
    Asn(u32),
}

/// The code of every address that has one.
#[derive(Debug)]
pub struct Database {
    kind: Kind,
    v4: Vec<Range<u32>>,
    v6: Vec<Range<u128>>,
    codes: BTreeSet<Code>,
}

/// Why a file is no database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged(String);

#[derive(Clone, Copy, Debug)]
struct Range<A> {
    start: A,
    end: A,
    code: Code,
}

impl Database {
    /// `octets`: a whole file.
    pub fn read(octets: &[u8], kind: Kind) -> Result<Self, Damaged> {
        let reader = Reader::from_source(octets).map_err(damaged)?;
        let mut found = Self { kind, v4: Vec::new(), v6: Vec::new(), codes: BTreeSet::new() };
        // Many leaves share a record.
        let mut known: HashMap<u32, Option<Code>> = HashMap::new();
        Tree::of(octets, reader.metadata())?.walk(|Leaf { prefix, record }| {
            let code = match known.get(&record) {
                Some(code) => *code,
                None => {
                    let code = code_of(&reader, prefix.addr(), kind)?;
                    known.insert(record, code);
                    code
                }
            };
            code.into_iter().for_each(|code| found.add(prefix, code));
            Ok(())
        })?;
        if found.codes.is_empty() {
            let of = &reader.metadata().database_type;
            return Err(Damaged(format!(
                "it tells no {} of any address: it is a database of type `{of}`",
                kind.word()
            )));
        }
        Ok(found)
    }

    /// Leaves come in the order of their addresses.
    fn add(&mut self, prefix: IpNet, code: Code) {
        self.codes.insert(code);
        match prefix {
            IpNet::V4(net) => {
                let (start, end) = (net.network().to_bits(), net.broadcast().to_bits());
                append(&mut self.v4, Range { start, end, code }, start.checked_sub(1));
            }
            IpNet::V6(net) => {
                let (start, end) = (net.network().to_bits(), net.broadcast().to_bits());
                append(&mut self.v6, Range { start, end, code }, start.checked_sub(1));
            }
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Ranges that touch and have one code are one.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any address has it.
    pub fn has(&self, code: Code) -> bool {
        self.codes.contains(&code)
    }

    pub fn code_of(&self, address: IpAddr) -> Option<Code> {
        match address.to_canonical() {
            IpAddr::V4(address) => find(&self.v4, address.to_bits()),
            IpAddr::V6(address) => find(&self.v6, address.to_bits()),
        }
    }

    /// The addresses that have one of these codes.
    pub fn prefixes_of(&self, codes: &BTreeSet<Code>) -> PrefixSet {
        let v4 = self.v4.iter().filter(|range| codes.contains(&range.code));
        let v4 = v4.flat_map(|range| Ipv4Subnets::new(range.start.into(), range.end.into(), 0).map(IpNet::V4));
        let v6 = self.v6.iter().filter(|range| codes.contains(&range.code));
        let v6 = v6.flat_map(|range| Ipv6Subnets::new(range.start.into(), range.end.into(), 0).map(IpNet::V6));
        v4.chain(v6).map(|prefix| (prefix, None)).collect()
    }
}

/// `before`: the address before the range.
fn append<A: PartialEq>(ranges: &mut Vec<Range<A>>, new: Range<A>, before: Option<A>) {
    let touches = |last: &&mut Range<A>| last.code == new.code && before.as_ref() == Some(&last.end);
    match ranges.last_mut().filter(touches) {
        Some(last) => last.end = new.end,
        None => ranges.push(new),
    }
}

fn find<A: Copy + Ord>(ranges: &[Range<A>], address: A) -> Option<Code> {
    let index = ranges.partition_point(|range| range.start <= address).checked_sub(1)?;
    ranges.get(index).filter(|range| address <= range.end).map(|range| range.code)
}

/// What the record of this address says, in the words of the databases that are in use.
fn code_of(reader: &Reader<&[u8]>, address: IpAddr, kind: Kind) -> Result<Option<Code>, Damaged> {
    let record = reader.lookup(address).map_err(damaged)?;
    let text = |path: &[maxminddb::PathElement<'_>]| record.decode_path::<&str>(path);
    match kind {
        Kind::Country => {
            let nested = text(&path!["country", "iso_code"]);
            // Others have it as the country itself.
            let own = nested.or_else(|nested| text(&path!["country"]).map_err(|_| nested)).map_err(damaged)?;
            let code = match own {
                Some(code) => Some(code),
                None => text(&path!["country_code"]).map_err(damaged)?,
            };
            // Where an address is used in no one country, it still belongs to somebody who registered it in one.
            let code = match code {
                Some(code) => Some(code),
                None => text(&path!["registered_country", "iso_code"]).map_err(damaged)?,
            };
            Ok(code.and_then(Country::of).map(Code::Country))
        }
        Kind::Asn => {
            let number: Option<u32> = record.decode_path(&path!["autonomous_system_number"]).map_err(damaged)?;
            let number = match number {
                Some(number) => Some(number),
                None => text(&path!["asn"]).map_err(damaged)?.and_then(|text| text.strip_prefix("AS")?.parse().ok()),
            };
            Ok(number.map(Code::Asn))
        }
    }
}

fn damaged(error: maxminddb::MaxMindDbError) -> Damaged {
    Damaged(error.to_string())
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Country => "country",
            Self::Asn => "ASN",
        }
    }
}

impl Code {
    pub fn kind(self) -> Kind {
        match self {
            Self::Country(_) => Kind::Country,
            Self::Asn(_) => Kind::Asn,
        }
    }
}

/// As records show it: `country:KP`, `asn:64500`.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Country(country) => write!(f, "country:{country}"),
            Self::Asn(number) => write!(f, "asn:{number}"),
        }
    }
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Damaged {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::mmdb::{Mmdb, Record};
    use super::*;

    fn country(text: &str) -> Code {
        Code::Country(Country::of(text).unwrap())
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn sample(records: u8, aliases: bool) -> Mmdb {
        let networks = [
            ("198.51.100.0/24", "KP"),
            ("198.51.101.0/24", "KP"),
            ("198.51.101.128/25", "DE"),
            ("203.0.113.0/24", "DE"),
            ("2001:db8::/32", "KP"),
            ("2001:db8:1::/48", "DE"),
        ];
        let networks = networks.map(|(prefix, code)| (net(prefix), Record::Country(code.into())));
        Mmdb { record_size: records, aliases, ..Mmdb::new("Test-Country", networks) }
    }

    #[test]
    fn both_families_are_told_in_every_size_of_record_and_aliases_are_not_doubled() {
        let mut sizes = Vec::new();
        for (records, aliases) in [(24, false), (28, true), (32, true)] {
            let database = Database::read(&sample(records, aliases).octets(), Kind::Country).unwrap();
            for (address, code) in [
                ("198.51.99.255", None),
                ("198.51.100.0", Some("KP")),
                ("198.51.101.127", Some("KP")),
                ("198.51.101.128", Some("DE")),
                ("198.51.102.0", None),
                ("::ffff:198.51.100.7", Some("KP")),
                ("2002:c633:6407::1", None),
                ("::198.51.100.7", None),
                ("2001:db8::1", Some("KP")),
                ("2001:db8:1:ffff::", Some("DE")),
                ("2001:db9::", None),
            ] {
                let own = database.code_of(address.parse().unwrap());
                assert_eq!(own, code.map(country), "{address}, {records} bits");
            }
            sizes.push(database.len());
        }
        assert_eq!(sizes, [6, 6, 6], "three ranges of IPv4, and a hole in one of IPv6");
    }

    #[test]
    fn the_prefixes_of_codes_hold_their_addresses_and_no_other() {
        let database = Database::read(&sample(28, true).octets(), Kind::Country).unwrap();
        let prefixes = database.prefixes_of(&[country("KP"), country("US")].into());
        let shown: Vec<_> = prefixes.iter().map(|(prefix, _)| prefix.to_string()).take(3).collect();
        assert_eq!(shown, ["198.51.100.0/24", "198.51.101.0/25", "2001:db8::/48"]);
        assert!(!database.has(country("US")) && database.has(country("DE")));
    }

    #[test]
    fn the_words_of_other_makers_are_understood() {
        let cases = [
            (Kind::Country, Record::Registered("KP".into()), "country:KP"),
            (Kind::Country, Record::Text("country", "KP".into()), "country:KP"),
            (Kind::Country, Record::Text("country_code", "KP".into()), "country:KP"),
            (Kind::Asn, Record::Asn(64_500), "asn:64500"),
            (Kind::Asn, Record::Text("asn", "AS64500".into()), "asn:64500"),
        ];
        for (kind, record, code) in cases {
            let octets = Mmdb::new("Test", [(net("0.0.0.0/1"), record)]).octets();
            let own = Database::read(&octets, kind).unwrap().code_of([10, 0, 0, 1].into());
            assert_eq!(own.unwrap().to_string(), code);
        }
    }

    #[test]
    fn a_database_of_something_else_and_what_is_none_are_refused() {
        let asn = Mmdb::new("Test-ASN", [(net("10.0.0.0/8"), Record::Asn(64_500))]).octets();
        let why = Database::read(&asn, Kind::Country).unwrap_err().to_string();
        assert_eq!(why, "it tells no country of any address: it is a database of type `Test-ASN`");
        for octets in [&b""[..], b"no database", &asn[..asn.len() / 2], &asn[asn.len() / 2..]] {
            assert!(Database::read(octets, Kind::Asn).is_err());
        }
    }

    /// Nodes that lead back, and nodes that many ways lead to: 2^32 leaves of 32 nodes.
    #[test]
    fn a_tree_without_an_end_is_refused_at_once() {
        let record = || Record::Country("KP".into());
        let own = Mmdb { ip_version: 4, ..Mmdb::new("Test", [(net("10.0.0.0/8"), record())]) };
        assert!(Database::read(&own.octets(), Kind::Country).is_ok());
        let last = 7_u32;
        for (node, side, to) in [(last, 0, 0), (last, 1, last), (0, 1, 1), (3, 1, 4)] {
            let mut octets = own.octets();
            let at = usize::try_from(node * 6 + side * 3).unwrap();
            octets[at..at + 3].copy_from_slice(&u32::to_be_bytes(to)[1..]);
            let why = Database::read(&octets, Kind::Country).unwrap_err().to_string();
            assert!(why.contains("its tree"), "{why}");
        }
    }

    fn networks() -> impl Strategy<Value = Vec<(IpNet, u8)>> {
        let network = (any::<u16>(), 1u8..=32, any::<bool>(), 0u8..4).prop_map(|(bits, length, six, code)| {
            let v4 = std::net::Ipv4Addr::from(u32::from(bits & 0xf0f) << 20 | u32::from(bits & 0xf3));
            let text = if six { format!("2a00::{v4}/{}", 96 + length) } else { format!("{v4}/{length}") };
            (net(&text).trunc(), code)
        });
        prop::collection::vec(network, 1..30)
    }

    const CODES: [&str; 4] = ["KP", "DE", "US", "CH"];

    proptest! {
        #[test]
        fn it_answers_as_a_scan_of_every_network_does(
            networks in networks(), records in prop::sample::select(vec![24u8, 28, 32]), aliases in any::<bool>(),
            probes in prop::collection::vec((any::<u16>(), any::<bool>()), 1..40),
        ) {
            let record = |code: u8| Record::Country(CODES[usize::from(code)].into());
            let written = networks.iter().map(|(prefix, code)| (*prefix, record(*code)));
            let own = Mmdb { record_size: records, aliases, ..Mmdb::new("Test", written) };
            let database = Database::read(&own.octets(), Kind::Country).unwrap();
            let wanted = [country("KP"), country("CH")];
            let prefixes = database.prefixes_of(&wanted.into());
            let edges = networks.iter().flat_map(|(net, _)| [net.network(), net.broadcast()]);
            let inside = probes.iter().map(|(bits, six)| {
                let v4 = std::net::Ipv4Addr::from(u32::from(bits & 0xf0f) << 20 | u32::from(bits & 0xf3));
                if *six { format!("2a00::{v4}").parse().unwrap() } else { IpAddr::V4(v4) }
            });
            for address in edges.chain(inside) {
                // What was written last stands.
                let expected = networks.iter().rfind(|(net, _)| net.contains(&address));
                let expected = expected.map(|(_, code)| country(CODES[usize::from(*code)]));
                prop_assert_eq!(database.code_of(address), expected, "{}", address);
                let held = prefixes.holds(address, std::time::UNIX_EPOCH);
                prop_assert_eq!(held, expected.is_some_and(|code| wanted.contains(&code)), "{}", address);
            }
        }

        #[test]
        fn damage_is_survived(
            networks in networks(), records in prop::sample::select(vec![24u8, 28, 32]), aliases in any::<bool>(),
            damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..8), cut in prop::option::weighted(0.2, any::<Index>()),
        ) {
            let record = |code: u8| if code == 0 { Record::Asn(7) } else { Record::Country(CODES[usize::from(code)].into()) };
            let written = networks.iter().map(|(prefix, code)| (*prefix, record(*code)));
            let mut octets = Mmdb { record_size: records, aliases, ..Mmdb::new("Test", written) }.octets();
            for (at, to) in damage {
                let at = at.index(octets.len());
                octets[at] = to;
            }
            cut.into_iter().for_each(|cut| octets.truncate(cut.index(octets.len())));
            for kind in [Kind::Country, Kind::Asn] {
                if let Ok(database) = Database::read(&octets, kind) {
                    prop_assert!(database.v4.is_sorted_by_key(|range| range.start));
                    prop_assert!(database.v6.is_sorted_by_key(|range| range.start));
                    database.prefixes_of(&database.codes);
                }
            }
        }
    }
}
