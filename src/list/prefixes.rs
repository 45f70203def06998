//! A set of address prefixes, asked by address.
//!
//! Nested and doubled prefixes are flattened into ranges that do not overlap: 8 octets for a v4 range (16 where
//! entries expire), 32 for a v6 one, and a look-up is one binary search.

mod outline;
mod ranges;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::entry::{Sense, canonical};
use outline::Outline;
pub(super) use ranges::Shape;
use ranges::{NEVER, Ranges, Span};

/// Prefixes with the time, if any, at which each ends.
#[derive(Debug, Default)]
pub struct PrefixSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    /// Made when it is asked for: a set never changes.
    outlines: OnceLock<(Outline, Outline)>,
    lengths: OnceLock<BTreeSet<Length>>,
}

/// What some prefixes of a set have in common. IPv4 comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Length {
    pub is_ipv6: bool,
    pub bits: u8,
    /// Whether each ends at a time of its own.
    pub ending: bool,
}

/// Which of an entry and an exception counts where both cover an address or a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exceptions {
    /// The exception (adblock lists).
    #[default]
    Always,
    /// The more specific of the two (RPZ, dnsmasq).
    MostSpecific,
}

/// Gathers prefixes for a [`PrefixSet`].
#[derive(Debug, Default)]
pub struct PrefixBuilder {
    v4: Vec<Span<u32>>,
    v6: Vec<Span<u128>>,
    exceptions: Exceptions,
}

impl PrefixSet {
    fn of(v4: Ranges<u32>, v6: Ranges<u128>) -> Self {
        Self { v4, v6, ..Self::default() }
    }

    pub fn holds(&self, address: IpAddr, now: SystemTime) -> bool {
        self.expiry_of(address).is_some_and(|expires| expires == NEVER || seconds(now) < expires)
    }

    /// When what holds `address` ends, or has ended.
    pub fn end_of(&self, address: IpAddr) -> Option<SystemTime> {
        self.expiry_of(address).and_then(time)
    }

    fn expiry_of(&self, address: IpAddr) -> Option<u64> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.expiry_of(address.to_bits()),
            IpAddr::V6(address) => self.v6.expiry_of(address.to_bits()),
        }
    }

    /// The fewest prefixes that cover the same addresses, with the time at which each ends: what a kernel set wants.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Option<SystemTime>)> {
        self.v4.iter().flat_map(v4_prefixes).chain(self.v6.iter().flat_map(v6_prefixes))
    }

    /// The same without long runs of prefixes that `other` has too.
    pub fn unlike<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (IpNet, Option<SystemTime>)> + 'a {
        let (own, others) = (self.outlines(), other.outlines());
        let v4 = own.0.unlike(&others.0).flat_map(|(start, end)| self.v4.between(start, end));
        let v6 = own.1.unlike(&others.1).flat_map(|(start, end)| self.v6.between(start, end));
        v4.flat_map(v4_prefixes).chain(v6.flat_map(v6_prefixes))
    }

    fn outlines(&self) -> &(Outline, Outline) {
        self.outlines.get_or_init(|| (Outline::of(&self.v4), Outline::of(&self.v6)))
    }

    /// Which lengths its prefixes have.
    pub fn lengths(&self) -> &BTreeSet<Length> {
        self.lengths.get_or_init(|| {
            let length = |(prefix, expires): (IpNet, Option<SystemTime>)| Length {
                is_ipv6: matches!(prefix, IpNet::V6(_)),
                bits: prefix.prefix_len(),
                ending: expires.is_some(),
            };
            self.iter().map(length).collect()
        })
    }

    /// How many ranges it takes, at most the number of prefixes put in and exceptions.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Octets of memory.
    pub fn footprint(&self) -> usize {
        self.v4.footprint() + self.v6.footprint()
    }

    /// How the ranges of both families are written.
    pub(super) fn shapes(&self) -> [Shape; 2] {
        [self.v4.shape(), self.v6.shape()]
    }

    /// Octets that such ranges take; `None`: more than any file has.
    pub(super) fn octets_of([v4, v6]: &[Shape; 2]) -> Option<usize> {
        v4.octets::<u32>()?.checked_add(v6.octets::<u128>()?)
    }

    pub(super) fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        self.v4.write(out)?;
        self.v6.write(out)
    }

    /// What [`Self::write`] wrote; `None` if the octets do not suffice.
    pub(super) fn read([v4, v6]: &[Shape; 2], octets: &[u8]) -> Option<Self> {
        let (first, rest) = octets.split_at_checked(v4.octets::<u32>()?)?;
        let v4 = Ranges::read(*v4, first)?;
        Some(Self::of(v4, Ranges::read(*v6, rest.get(..v6.octets::<u128>()?)?)?))
    }

    /// What either holds.
    pub fn union(self, other: Self) -> Self {
        match (self.is_empty(), other.is_empty()) {
            (true, _) => other,
            (_, true) => self,
            _ => Self::of(self.v4.union(&other.v4), self.v6.union(&other.v6)),
        }
    }
}

impl PrefixBuilder {
    pub fn new(exceptions: Exceptions) -> Self {
        Self { exceptions, ..Self::default() }
    }

    pub(super) fn set_exceptions(&mut self, exceptions: Exceptions) {
        self.exceptions = exceptions;
    }

    pub fn add(&mut self, prefix: IpNet, sense: Sense, expires: Option<SystemTime>) {
        let holds_until = match sense {
            Sense::Holds => Some(expires.map_or(NEVER, seconds)),
            Sense::Exception => None,
        };
        match canonical(prefix) {
            IpNet::V4(net) => {
                let (start, end) = (net.network().to_bits(), net.broadcast().to_bits());
                self.v4.push(Span { start, end, holds_until });
            }
            IpNet::V6(net) => {
                let (start, end) = (net.network().to_bits(), net.broadcast().to_bits());
                self.v6.push(Span { start, end, holds_until });
            }
        }
    }

    /// The set, and how many of what was added was there already.
    pub fn finish(self) -> (PrefixSet, u64) {
        let (v4, doubled_v4) = Ranges::flatten(self.v4, self.exceptions);
        let (v6, doubled_v6) = Ranges::flatten(self.v6, self.exceptions);
        (PrefixSet::of(v4, v6), doubled_v4 + doubled_v6)
    }
}

impl FromIterator<(IpNet, Option<SystemTime>)> for PrefixSet {
    fn from_iter<I: IntoIterator<Item = (IpNet, Option<SystemTime>)>>(entries: I) -> Self {
        let mut builder = PrefixBuilder::default();
        entries.into_iter().for_each(|(prefix, expires)| builder.add(prefix, Sense::Holds, expires));
        builder.finish().0
    }
}

/// Whole seconds since 1970; what lies before is 0.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn v4_prefixes((start, end, expires): (u32, u32, u64)) -> impl Iterator<Item = (IpNet, Option<SystemTime>)> {
    Ipv4Subnets::new(start.into(), end.into(), 0).map(move |prefix| (IpNet::V4(prefix), time(expires)))
}

fn v6_prefixes((start, end, expires): (u128, u128, u64)) -> impl Iterator<Item = (IpNet, Option<SystemTime>)> {
    Ipv6Subnets::new(start.into(), end.into(), 0).map(move |prefix| (IpNet::V6(prefix), time(expires)))
}

pub(super) fn time(expires: u64) -> Option<SystemTime> {
    if expires == NEVER { None } else { UNIX_EPOCH.checked_add(Duration::from_secs(expires)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn set(entries: &[(&str, Option<u64>)]) -> PrefixSet {
        entries.iter().map(|(prefix, expires)| (prefix.parse().unwrap(), expires.map(at))).collect()
    }

    /// Enough for some pieces.
    fn many(count: u32, but: &[u32]) -> PrefixSet {
        let numbers = (0..count).filter(|number| !but.contains(number));
        let prefixes = numbers.flat_map(|number| {
            let (v4, v6) = (Ipv4Addr::from_bits(number * 3), Ipv6Addr::from_bits(u128::from(number) << 70));
            [IpNet::from(IpAddr::from(v4)), IpNet::from(IpAddr::from(v6))]
        });
        prefixes.map(|prefix| (prefix, None)).collect()
    }

    proptest! {
        #[test]
        fn what_two_sets_do_not_share_is_told(
            but in proptest::collection::vec(0u32..3000, 0..4),
            and in proptest::collection::vec(0u32..3000, 0..4),
        ) {
            let (one, other) = (many(3000, &but), many(3000, &and));
            let all = |set: &PrefixSet| set.iter().collect::<BTreeSet<_>>();
            for (own, others) in [(&one, &other), (&other, &one)] {
                let told: Vec<_> = own.unlike(others).collect();
                prop_assert!(told.is_sorted());
                let told: BTreeSet<_> = told.into_iter().collect();
                prop_assert!(told.is_subset(&all(own)));
                prop_assert!(all(own).difference(&all(others)).all(|entry| told.contains(entry)));
            }
            prop_assert_eq!(one.unlike(&many(3000, &but)).count(), 0);
        }
    }

    #[test]
    fn of_what_two_sets_share_little_is_told() {
        let (one, other) = (many(20_000, &[]), many(20_000, &[7_000]));
        // A piece may be many times as long as the mean, but this long once in the age of the universe.
        assert!((2..20_000).contains(&one.unlike(&other).count()));
        assert!(other.unlike(&one).count() < 20_000);
    }

    fn holds(set: &PrefixSet, address: &str, now: u64) -> bool {
        set.holds(address.parse().unwrap(), at(now))
    }

    #[test]
    fn both_families_are_held_to_their_last_address() {
        let set = set(&[("198.51.100.0/24", None), ("2001:db8::/32", None), ("203.0.113.7/32", None)]);
        for (address, held) in [
            ("198.51.99.255", false),
            ("198.51.100.0", true),
            ("198.51.100.255", true),
            ("198.51.101.0", false),
            ("::ffff:198.51.100.9", true),
            ("203.0.113.6", false),
            ("203.0.113.7", true),
            ("203.0.113.8", false),
            ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("2001:db8::", true),
            ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("2001:db9::", false),
        ] {
            assert_eq!(holds(&set, address, 0), held, "{address}");
        }
    }

    #[test]
    fn a_v4_prefix_in_v6_clothes_is_the_v4_prefix() {
        let set = set(&[("::ffff:198.51.100.0/120", None)]);
        assert!(holds(&set, "198.51.100.9", 0) && !holds(&set, "198.51.101.9", 0));
    }

    #[test]
    fn everything_is_held_by_the_zero_prefixes_and_nothing_by_none() {
        let all = set(&[("0.0.0.0/0", None), ("::/0", None), ("10.0.0.0/8", None)]);
        for address in ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert!(holds(&all, address, 0) && !holds(&PrefixSet::default(), address, 0), "{address}");
        }
        assert_eq!(all.iter().count(), 2);
    }

    #[test]
    fn an_entry_ends_at_its_second_and_a_longer_lived_one_around_it_goes_on() {
        let set = set(&[("10.0.0.0/8", Some(200)), ("10.1.0.0/16", Some(100)), ("10.2.0.0/16", None)]);
        for (address, now, held) in [
            ("10.1.0.1", 199, true),
            ("10.1.0.1", 200, false),
            ("10.2.0.1", 1_000_000, true),
            ("10.3.0.1", 199, true),
            ("10.3.0.1", 200, false),
        ] {
            assert_eq!(holds(&set, address, now), held, "{address} at {now}");
        }
    }

    #[test]
    fn an_exception_cuts_a_hole_by_its_formats_rule() {
        for (rule, inner_block_held) in [(Exceptions::Always, false), (Exceptions::MostSpecific, true)] {
            let mut builder = PrefixBuilder::new(rule);
            builder.add("10.0.0.0/8".parse().unwrap(), Sense::Holds, None);
            builder.add("10.1.0.0/16".parse().unwrap(), Sense::Exception, None);
            builder.add("10.1.1.0/24".parse().unwrap(), Sense::Holds, None);
            builder.add("10.9.0.0/16".parse().unwrap(), Sense::Holds, None);
            builder.add("10.9.0.0/16".parse().unwrap(), Sense::Exception, None);
            let (set, _) = builder.finish();
            assert!(holds(&set, "10.0.0.1", 0) && holds(&set, "10.2.0.1", 0), "{rule:?}");
            assert!(!holds(&set, "10.1.0.1", 0) && !holds(&set, "10.9.0.1", 0), "{rule:?}");
            assert_eq!(holds(&set, "10.1.1.1", 0), inner_block_held, "{rule:?}");
        }
    }

    #[test]
    fn what_a_kernel_set_gets_is_the_fewest_prefixes_with_their_ends() {
        let set =
            set(&[("10.0.0.0/25", None), ("10.0.0.128/25", None), ("10.0.0.7/32", None), ("10.0.1.0/24", Some(9))]);
        let own: Vec<_> = set.iter().map(|(prefix, expires)| (prefix.to_string(), expires)).collect();
        assert_eq!(own, [("10.0.0.0/24".to_owned(), None), ("10.0.1.0/24".to_owned(), Some(at(9)))]);
    }

    #[test]
    fn doubles_are_counted_and_a_union_holds_what_either_does() {
        let mut builder = PrefixBuilder::default();
        for prefix in ["10.0.0.0/8", "10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32", "2001:db8::/32"] {
            builder.add(prefix.parse().unwrap(), Sense::Holds, None);
        }
        let (own, doubled) = builder.finish();
        assert_eq!(doubled, 2);
        let both = own.union(set(&[("192.0.2.0/24", Some(5)), ("10.1.0.0/16", Some(5))]));
        assert!(holds(&both, "10.1.0.1", 9) && holds(&both, "192.0.2.1", 4) && holds(&both, "2001:db8::1", 9));
        assert!(!holds(&both, "192.0.2.1", 5));
    }

    fn few_bits() -> impl Strategy<Value = (u16, u8, bool, Option<u64>)> {
        (any::<u16>(), 0u8..=32, any::<bool>(), prop::option::of(1u64..4))
    }

    fn net((bits, length, six, _): (u16, u8, bool, Option<u64>)) -> IpNet {
        let v4 = std::net::Ipv4Addr::from(u32::from(bits & 0xf0f) << 20 | u32::from(bits & 0xf3));
        let text = if six { format!("2001:db8::{v4}/{}", 96 + length) } else { format!("{v4}/{length}") };
        text.parse::<IpNet>().unwrap().trunc()
    }

    proptest! {
        #[test]
        fn it_answers_as_a_scan_of_every_prefix_does(
            entries in prop::collection::vec(few_bits(), 0..40), exceptions in prop::collection::vec(few_bits(), 0..6),
            most_specific in any::<bool>(), probes in prop::collection::vec(few_bits(), 1..40), now in 0u64..5,
        ) {
            let rule = if most_specific { Exceptions::MostSpecific } else { Exceptions::Always };
            let mut builder = PrefixBuilder::new(rule);
            entries.iter().for_each(|e| builder.add(net(*e), Sense::Holds, e.3.map(at)));
            exceptions.iter().for_each(|e| builder.add(net(*e), Sense::Exception, None));
            let (set, _) = builder.finish();
            let shown: Vec<_> = set.iter().collect();
            for probe in probes {
                let address = net(probe).addr();
                let excepted = exceptions.iter().filter(|e| net(**e).contains(&address)).map(|e| e.1).max();
                let held = entries.iter().any(|e| {
                    let beats = match (rule, excepted) {
                        (_, None) => true,
                        (Exceptions::Always, Some(_)) => false,
                        (Exceptions::MostSpecific, Some(length)) => e.1 > length,
                    };
                    beats && net(*e).contains(&address) && e.3.is_none_or(|end| now < end)
                });
                prop_assert_eq!(set.holds(address, at(now)), held, "{}", address);
                let in_shown = shown.iter().any(|(p, end)| p.contains(&address) && end.is_none_or(|end| at(now) < end));
                prop_assert_eq!(in_shown, held, "shown {}", address);
            }
        }
    }
}
