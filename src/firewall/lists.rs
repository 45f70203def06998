//! The addresses of lists as kernel sets, which all policies that use a list share.
//!
//! A hash set for each prefix length in use: one entry comes or goes in microseconds, whatever the size of the list. An
//! interval set of a million prefixes would take a tenth of a second for each.
//!
//! Entries that end have sets of their own, since the kernel walks such sets from time to time.

use std::collections::HashSet;
use std::fmt::{self, Display, Formatter};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use ipnet::IpNet;

use super::ruleset::{Datum, Family, Set, SetKind};
use crate::list::{List, PrefixSet};
use crate::policy::snapshot::Snapshot;

/// The kernel sets of one list.
#[derive(Clone, Debug)]
pub struct ListSets {
    /// What the names of its sets begin with.
    name: String,
    list: Arc<List>,
}

/// What the entries of one kernel set have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    pub family: Family,
    /// Bits of the prefixes.
    pub length: u8,
    /// Whether they end, each at a time of its own.
    pub ending: bool,
}

/// An entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub prefix: IpNet,
    pub expires: Option<SystemTime>,
}

/// What a list that stands in the kernel gains and loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Add(Entry),
    Remove(Entry),
}

impl Entry {
    pub fn class(&self) -> Class {
        Class { family: Family::of(&self.prefix), length: self.prefix.prefix_len(), ending: self.expires.is_some() }
    }

    pub fn datum(&self) -> Datum {
        match self.prefix {
            IpNet::V4(prefix) => Datum::Ipv4(prefix.network()),
            IpNet::V6(prefix) => Datum::Ipv6(prefix.network()),
        }
    }
}

impl ListSets {
    /// What the names of its sets begin with, and how many prefixes they hold.
    pub fn describe(&self) -> (&str, usize) {
        (&self.name, self.list.prefixes.len())
    }

    fn new(name: String, list: Arc<List>) -> Self {
        Self { name, list }
    }

    pub fn classes(&self) -> impl Iterator<Item = Class> {
        self.list.prefixes.lengths().iter().map(|length| Class {
            family: if length.is_ipv6 { Family::V6 } else { Family::V4 },
            length: length.bits,
            ending: length.ending,
        })
    }

    pub fn set_name(&self, class: Class) -> String {
        let Class { family, length, ending } = class;
        let ending = if ending { "_ending" } else { "" };
        format!("{}_v{}_{length}{ending}", self.name, family.digit())
    }

    /// The sets, without their entries.
    pub fn sets(&self) -> impl Iterator<Item = Set> {
        self.classes().map(|class| {
            let kind = if class.ending { SetKind::Ending } else { SetKind::Hash };
            Set::new(self.set_name(class), vec![class.family.field()], kind, Vec::new())
        })
    }

    /// In the order of their addresses, none within another.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        entries(&self.list)
    }

    pub fn is_of(&self, list: &Arc<List>) -> bool {
        Arc::ptr_eq(&self.list, list)
    }

    /// Whether the other one's sets have the same names.
    pub fn stands_as(&self, other: &Self) -> bool {
        self.name == other.name
    }

    /// What turns the standing sets, if there are any, into these. Ordered by address; of one prefix, what goes comes
    /// before what comes.
    pub fn changes_from<'a>(&'a self, standing: Option<&'a Self>) -> impl Iterator<Item = Change> + 'a {
        let new = &self.list.prefixes;
        let old = standing.map_or(&*NOTHING, |standing| &standing.list.prefixes);
        let entry = |(prefix, expires)| Entry { prefix, expires };
        Changes { old: old.unlike(new).map(entry).peekable(), new: new.unlike(old).map(entry).peekable() }
    }
}

/// In the order of their addresses, none within another.
fn entries(list: &List) -> impl Iterator<Item = Entry> {
    list.prefixes.iter().map(|(prefix, expires)| Entry { prefix, expires })
}

/// Two ordered runs of entries, side by side.
struct Changes<A: Iterator<Item = Entry>, B: Iterator<Item = Entry>> {
    old: std::iter::Peekable<A>,
    new: std::iter::Peekable<B>,
}

impl<A: Iterator<Item = Entry>, B: Iterator<Item = Entry>> Iterator for Changes<A, B> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        loop {
            match (self.old.peek(), self.new.peek()) {
                (Some(old), Some(new)) if old == new => {
                    self.old.next();
                    self.new.next();
                }
                (Some(old), Some(new)) if new.prefix < old.prefix => return self.new.next().map(Change::Add),
                (Some(_), _) => return self.old.next().map(Change::Remove),
                (None, _) => return self.new.next().map(Change::Add),
            }
        }
    }
}

static NOTHING: LazyLock<PrefixSet> = LazyLock::new(PrefixSet::default);

/// The sets of every list that judges an address for some Network.
pub(super) fn list_sets(snapshot: &Snapshot) -> Vec<ListSets> {
    let rules = snapshot.networks().iter().flat_map(|network| network.outbound.iter().chain(&network.inbound));
    let lists = rules.flat_map(|rule| rule.policy.in_order().map(|question| question.list));
    let mut found: Vec<ListSets> = Vec::new();
    let mut seen = HashSet::new();
    let mut names = HashSet::new();
    for list in lists.filter(|list| !list.prefixes.is_empty()) {
        if seen.insert(Arc::as_ptr(list)) {
            found.push(ListSets::new(unused_name(&list.name, &mut names), list.clone()));
        }
    }
    found
}

/// The same from one reload to the next, for as long as no two lists have names that look alike.
fn unused_name(name: &str, used: &mut HashSet<String>) -> String {
    const LONGEST_NAME: usize = 64;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let plain: String = name.chars().map(plain).take(LONGEST_NAME).collect();
    let mut candidates = (1..).map(|number: usize| match number {
        1 => format!("list_{plain}"),
        _ => format!("list_{plain}_{number}"),
    });
    candidates.find(|name| used.insert(name.clone())).unwrap_or_default()
}

impl Display for ListSets {
    /// The sets and how many entries each has: a list may be long.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (class, set) in self.classes().zip(self.sets()) {
            let count = entries(&self.list).filter(|entry| entry.class() == class).count();
            writeln!(f, "\t# {count} entries")?;
            write!(f, "{set}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::list::{DomainSet, ListVerdict};

    fn sets(entries: &[(&str, Option<u64>)]) -> ListSets {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let entries = entries.iter().map(|(prefix, ends)| (prefix.parse().unwrap(), ends.map(time)));
        let list = List {
            name: "l".into(),
            verdict: ListVerdict::Block,
            domains: DomainSet::default(),
            prefixes: entries.collect(),
        };
        ListSets::new("list_l".into(), Arc::new(list))
    }

    #[test]
    fn each_length_has_a_set_and_entries_that_end_have_their_own() {
        let sets = sets(&[
            ("10.0.0.0/8", None),
            ("10.1.0.0/16", Some(9_999_999_999)),
            ("192.0.2.1/32", Some(9_999_999_999)),
            ("::/0", None),
        ]);
        let names: Vec<_> = sets.sets().map(|set| set.name).collect();
        assert_eq!(names, ["list_l_v4_8", "list_l_v4_32_ending", "list_l_v6_0"]);
    }

    #[test]
    fn names_that_look_alike_are_told_apart() {
        let mut used = HashSet::new();
        let names = ["a b", "A_B", "a_b_2", "ü"].map(|name| unused_name(name, &mut used));
        assert_eq!(names, ["list_a_b", "list_a_b_2", "list_a_b_2_2", "list__"]);
    }

    #[test]
    fn an_entry_whose_end_changes_goes_and_comes() {
        let (old, new) = (sets(&[("192.0.2.0/24", Some(4_000_000_000))]), sets(&[("192.0.2.0/24", None)]));
        let changes: Vec<_> = new.changes_from(Some(&old)).collect();
        assert!(matches!(changes[..], [Change::Remove(gone), Change::Add(come)]
            if gone.expires.is_some() && come.expires.is_none() && gone.prefix == come.prefix));
        assert_eq!(new.changes_from(Some(&new)).count(), 0);
    }

    proptest! {
        #[test]
        fn the_changes_turn_one_list_into_any_other(
            old in prop::collection::vec((any::<u32>(), 4u8..=32, prop::option::of(1_u64..4)), 0..40),
            new in prop::collection::vec((any::<u32>(), 4u8..=32, prop::option::of(1_u64..4)), 0..40),
            shared in prop::collection::vec((any::<u32>(), 4u8..=32, prop::option::of(1_u64..4)), 0..40),
        ) {
            let list = |own: &[(u32, u8, Option<u64>)]| {
                let text: Vec<_> = own.iter().chain(&shared)
                    .map(|(bits, length, ends)| (format!("{}/{length}", std::net::Ipv4Addr::from(*bits)), ends.map(|e| e * 4_000_000_000)))
                    .collect();
                sets(&text.iter().map(|(prefix, ends)| (prefix.as_str(), *ends)).collect::<Vec<_>>())
            };
            let (old, new) = (list(&old), list(&new));
            let mut standing: Vec<_> = entries(&old.list).collect();
            for change in new.changes_from(Some(&old)) {
                match change {
                    Change::Add(entry) => {
                        prop_assert!(standing.iter().all(|own| own.prefix != entry.prefix));
                        standing.push(entry);
                    }
                    Change::Remove(entry) => {
                        let at = standing.iter().position(|own| *own == entry);
                        prop_assert!(at.is_some());
                        standing.remove(at.unwrap());
                    }
                }
            }
            standing.sort_by_key(|entry| entry.prefix);
            prop_assert_eq!(standing, entries(&new.list).collect::<Vec<_>>());
        }
    }
}
