//! A set of name patterns, asked by name: compiled, and as large as a file that is mapped into memory.
//!
//! A name is kept as a keyed 64-bit hash, 5.3 to 5.5 octets of it: see [`table`](super::table). A suffix that the set does not hold
//! is taken for held with a probability below 2^-36 (16 names a bucket, 40 bits compared), about one in 68 thousand
//! million; the key is random and of one file, so nobody can look for such a name beforehand, nor does it stay one
//! after a rebuild. An entry that is held is always found.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::compile::Builder;
use super::entry::{Entry, Reach, Sense};
use super::file::{Image, Layout, Octets, Stamp};
use super::prefixes::{Exceptions, seconds, time};
use super::table::Probe;
use crate::name::{DomainName, Pattern};

/// Name patterns with the time, if any, at which each ends. Cloning shares them.
#[derive(Clone, Default)]
pub struct DomainSet {
    parts: Vec<Part>,
}

/// One compiled source.
#[derive(Clone)]
struct Part {
    octets: Octets,
    layout: Arc<Layout>,
}

/// The entry by which a set holds a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match<'a> {
    pub reach: Reach,
    /// The name of the entry, the asked name or one above it.
    pub name: &'a str,
}

impl DomainSet {
    /// `layout` is that of the octets.
    pub(super) fn part(octets: Octets, layout: Layout) -> Self {
        Self { parts: vec![Part { octets, layout: Arc::new(layout) }] }
    }

    /// What either holds. Exceptions stay within their own part.
    pub fn union(mut self, other: Self) -> Self {
        self.parts.extend(other.parts);
        self
    }

    pub fn holds(&self, name: &DomainName, now: SystemTime) -> bool {
        self.find(name, now).is_some()
    }

    /// The longest entry by which this set holds `name`.
    pub fn find<'a>(&self, name: &'a DomainName, now: SystemTime) -> Option<Match<'a>> {
        self.parts.iter().find_map(|part| part.find(name.as_str(), now))
    }

    /// When the entries and exceptions end that reach `name`, those that have ended among them.
    pub fn ends_of(&self, name: &DomainName) -> Vec<SystemTime> {
        let images = self.parts.iter().map(|part| Image { octets: (*part.octets).as_ref(), layout: &part.layout });
        let ends =
            images.flat_map(|image| [Sense::Holds, Sense::Exception].map(|sense| image.ends_of(sense, name.as_str())));
        ends.flatten().filter_map(time).collect()
    }

    /// How many different patterns went in, exceptions too.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.layout.names()).sum()
    }

    /// The same without exceptions.
    pub fn held(&self) -> u64 {
        self.parts.iter().map(|part| part.layout.held()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Octets of memory or of mapped file.
    pub fn footprint(&self) -> usize {
        self.parts.iter().map(|part| (*part.octets).as_ref().len()).sum()
    }

    /// What the sources of the parts were when they were compiled.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.parts.iter().map(|part| part.layout.stamp)
    }
}

impl Part {
    fn find<'a>(&self, name: &'a str, now: SystemTime) -> Option<Match<'a>> {
        let image = Image { octets: (*self.octets).as_ref(), layout: &self.layout };
        let held = image.longest(Sense::Holds, name, now)?;
        if !self.layout.has_exceptions() {
            return Some(held);
        }
        let excepted = image.longest(Sense::Exception, name, now);
        let silenced = excepted.is_some_and(|exception| match self.layout.exceptions {
            Exceptions::Always => true,
            Exceptions::MostSpecific => exception.name.len() >= held.name.len(),
        });
        (!silenced).then_some(held)
    }
}

impl Image<'_> {
    /// The longest entry of this sense that reaches `name`.
    fn longest<'a>(&self, sense: Sense, name: &'a str, now: SystemTime) -> Option<Match<'a>> {
        let labels = name.bytes().filter(|b| *b == b'.').count() + 1;
        let counts = self.layout.labels(sense);
        // Most lists hold no name of one label, and none of eight: those suffixes need not be hashed.
        let suffixes = crate::name::suffixes(name).enumerate();
        let mut suffixes = suffixes.filter(|(above, _)| counts.contains(labels - above)).fuse();
        loop {
            let begun: [_; AT_ONCE] = std::array::from_fn(|_| {
                let (above, suffix) = suffixes.next()?;
                let hash = self.layout.key.hash(suffix);
                let reaches = if above == 0 { [Reach::Exact, Reach::Tree] } else { [Reach::Below, Reach::Tree] };
                Some((suffix, reaches.map(|reach| (reach, self.table(sense, reach).probe(hash)))))
            });
            let [Some(_), ..] = begun else { return None };
            for (name, probes) in begun.iter().flatten() {
                let held = |probe: &Option<Probe<'_>>| probe.as_ref().is_some_and(|probe| probe.holds(seconds(now)));
                if let Some((reach, _)) = probes.iter().find(|(_, probe)| held(probe)) {
                    return Some(Match { reach: *reach, name });
                }
            }
        }
    }
}

impl Image<'_> {
    fn ends_of(&self, sense: Sense, name: &str) -> Vec<u64> {
        let suffixes = crate::name::suffixes(name).enumerate();
        let ends = suffixes.flat_map(|(above, suffix)| {
            let hash = self.layout.key.hash(suffix);
            let reaches = if above == 0 { [Reach::Exact, Reach::Tree] } else { [Reach::Below, Reach::Tree] };
            reaches.map(|reach| self.table(sense, reach).probe(hash).and_then(|probe| probe.end()))
        });
        ends.flatten().collect()
    }
}

/// Suffixes whose buckets are fetched from memory together.
const AT_ONCE: usize = 4;

impl Match<'_> {
    /// The entry as a list writes it.
    pub fn pattern(&self) -> Cow<'_, str> {
        match self.reach {
            Reach::Exact => Cow::Borrowed(self.name),
            Reach::Below => Cow::Owned(format!("*.{}", self.name)),
            Reach::Tree => Cow::Owned(format!(".{}", self.name)),
        }
    }
}

impl FromIterator<(Pattern, Option<SystemTime>)> for DomainSet {
    /// In memory.
    fn from_iter<I: IntoIterator<Item = (Pattern, Option<SystemTime>)>>(entries: I) -> Self {
        let mut builder = Builder::new(Exceptions::Always);
        for (pattern, expires) in entries {
            builder.add(&Entry::from(&pattern).with_expiry(expires));
        }
        // Only 2^32 names would not fit, and as patterns they would have filled the memory before.
        builder.finish().into_sets().map(|(names, _)| names).unwrap_or_default()
    }
}

impl fmt::Debug for DomainSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainSet({} names in {} parts)", self.len(), self.parts.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;
    use crate::list::compile::Compiled;
    use crate::list::file;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn name(text: &str) -> DomainName {
        DomainName::parse(text.as_bytes()).unwrap()
    }

    fn compiled(rule: Exceptions, entries: &[(&str, Sense, Option<u64>)]) -> Compiled {
        let mut builder = Builder::new(rule);
        for (text, sense, expires) in entries {
            let entry = Entry::parse(text).unwrap();
            builder.add(&Entry { sense: *sense, ..entry }.with_expiry(expires.map(at)));
        }
        builder.finish()
    }

    fn octets_of(entries: &[&str]) -> Vec<u8> {
        let entries: Vec<_> = entries.iter().map(|text| (*text, Sense::Holds, None)).collect();
        let mut octets = Vec::new();
        compiled(Exceptions::Always, &entries).write_to([7; 32], &mut octets).unwrap();
        octets
    }

    fn open(octets: &[u8]) -> DomainSet {
        file::open(Arc::new(octets.to_vec())).unwrap().0
    }

    #[test]
    fn each_reach_holds_what_it_says_and_the_entry_is_told() {
        let set = open(&octets_of(&["exact.com", "*.below.com", ".tree.com", "com.test", "*.a.b.c.d"]));
        for (asked, entry) in [
            ("exact.com", Some("exact.com")),
            ("www.exact.com", None),
            ("below.com", None),
            ("www.below.com", Some("*.below.com")),
            ("a.b.www.below.com", Some("*.below.com")),
            ("tree.com", Some(".tree.com")),
            ("www.tree.com", Some(".tree.com")),
            ("nottree.com", None),
            ("com", None),
            ("com.test", Some("com.test")),
            ("a.b.c.d", None),
            ("x.a.b.c.d", Some("*.a.b.c.d")),
        ] {
            let asked = name(asked);
            let found = set.find(&asked, at(0)).map(|found| found.pattern().into_owned());
            assert_eq!(found.as_deref(), entry, "{asked}");
        }
    }

    #[test]
    fn an_entry_ends_at_its_second_and_the_later_of_two_ends_counts() {
        let set = compiled(
            Exceptions::Always,
            &[
                ("soon.com", Sense::Holds, Some(100)),
                ("twice.com", Sense::Holds, Some(100)),
                ("twice.com", Sense::Holds, Some(200)),
                ("ever.com", Sense::Holds, Some(100)),
                ("ever.com", Sense::Holds, None),
            ],
        );
        assert_eq!((set.names(), set.doubled), (3, 2));
        let (set, _) = set.into_sets().unwrap();
        for (asked, now, held) in [
            ("soon.com", 99, true),
            ("soon.com", 100, false),
            ("twice.com", 199, true),
            ("twice.com", 200, false),
            ("ever.com", 1_000_000, true),
        ] {
            assert_eq!(set.holds(&name(asked), at(now)), held, "{asked} at {now}");
        }
    }

    #[test]
    fn an_exception_silences_its_own_part_by_its_formats_rule() {
        let entries = [
            (".evil.com", Sense::Holds, None),
            (".good.evil.com", Sense::Exception, None),
            ("bad.good.evil.com", Sense::Holds, None),
            ("both.com", Sense::Holds, None),
            ("both.com", Sense::Exception, None),
        ];
        for (rule, deep_block_held) in [(Exceptions::Always, false), (Exceptions::MostSpecific, true)] {
            let (set, _) = compiled(rule, &entries).into_sets().unwrap();
            for (asked, held) in [
                ("evil.com", true),
                ("www.evil.com", true),
                ("good.evil.com", false),
                ("x.good.evil.com", false),
                ("bad.good.evil.com", deep_block_held),
                ("both.com", false),
            ] {
                assert_eq!(set.holds(&name(asked), at(0)), held, "{asked} by {rule:?}");
            }
            let own = open(&octets_of(&["both.com"]));
            assert!(set.union(own).holds(&name("both.com"), at(0)), "what another source says stands");
        }
    }

    #[test]
    fn two_files_of_the_same_names_have_other_secrets() {
        assert_ne!(octets_of(&["a.example"]), octets_of(&["a.example"]));
    }

    #[test]
    fn the_stamp_of_the_source_is_kept_and_nothing_is_held_by_an_empty_set() {
        let set = open(&octets_of(&[]));
        assert_eq!(set.stamps().collect::<Vec<_>>(), [[7; 32]]);
        assert!(set.is_empty() && !set.holds(&name("a.example"), at(0)));
    }

    #[test]
    fn a_hundred_thousand_names_take_less_than_six_octets_each_and_all_are_found() {
        let names: Vec<_> = (0..100_000).map(|i| format!("name-{i}.example{}.com", i % 7)).collect();
        let octets = octets_of(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(octets.len() < 600_000, "{}", octets.len());
        let set = open(&octets);
        for own in &names {
            assert!(set.holds(&name(own), at(0)), "{own}");
            assert!(!set.holds(&name(&format!("not-{own}")), at(0)), "not-{own}");
        }
    }

    /// The set as anybody would write it: strings in a hash set, and a walk up the name.
    #[derive(Default)]
    struct Plain(HashSet<(Sense, Reach, String)>);

    impl Plain {
        fn longest(&self, sense: Sense, name: &str) -> Option<usize> {
            crate::name::suffixes(name).enumerate().find_map(|(above, suffix)| {
                let first = if above == 0 { Reach::Exact } else { Reach::Below };
                let held = [first, Reach::Tree].into_iter().any(|r| self.0.contains(&(sense, r, suffix.to_owned())));
                held.then_some(suffix.len())
            })
        }

        fn holds(&self, name: &str, rule: Exceptions) -> bool {
            match (self.longest(Sense::Holds, name), self.longest(Sense::Exception, name)) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(held), Some(excepted)) => rule == Exceptions::MostSpecific && held > excepted,
            }
        }
    }

    fn short_name() -> impl Strategy<Value = String> {
        prop::collection::vec("[abAB]", 1..5).prop_map(|labels| labels.join("."))
    }

    proptest! {
        #[test]
        fn it_answers_as_a_hash_set_with_a_suffix_walk_does(
            entries in prop::collection::vec((short_name(), 0..3usize, prop::bool::weighted(0.2)), 0..60),
            asked in prop::collection::vec(short_name(), 1..60), most_specific in any::<bool>(),
        ) {
            let rule = if most_specific { Exceptions::MostSpecific } else { Exceptions::Always };
            let mut plain = Plain::default();
            let mut builder = Builder::new(rule);
            for (text, reach, excepted) in entries {
                let reach = [Reach::Exact, Reach::Below, Reach::Tree][reach];
                let sense = if excepted { Sense::Exception } else { Sense::Holds };
                let own = name(&text);
                builder.add(&Entry { sense, ..Entry::name(reach, own.as_str()).unwrap() });
                plain.0.insert((sense, reach, own.to_string()));
            }
            let mut octets = Vec::new();
            builder.finish().write_to([0; 32], &mut octets).unwrap();
            let set = open(&octets);
            prop_assert_eq!(set.len(), plain.0.len() as u64);
            prop_assert_eq!(set.held(), plain.0.iter().filter(|(sense, ..)| *sense == Sense::Holds).count() as u64);
            for text in asked {
                let asked = name(&text);
                prop_assert_eq!(set.holds(&asked, at(0)), plain.holds(asked.as_str(), rule), "{}", asked);
            }
        }
    }
}
