//! What a reload does to the kernel sets of lists, entry by entry.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::encode::{delete_entries, empty_set, new_entries};
use super::message::Message;
use crate::firewall::{Change, Datum, Entry, ListSets, Set};

/// 36 octets at most for an entry, and 64 KiB for the attribute around them.
const ENTRIES_A_MESSAGE: usize = 1500;

/// What becomes of the sets of lists. The old entries stand until the transaction is done, then the new ones do.
pub(super) struct Changes {
    /// Sets that go, with their entries.
    pub(super) gone: Vec<Set>,
    /// Sets that come, empty.
    pub(super) new: Vec<Set>,
    /// The entries that go, then those that come.
    pub(super) entries: Vec<Message>,
}

pub(super) fn changes(standing: &[ListSets], next: &[ListSets], now: SystemTime) -> Changes {
    let (old_sets, new_sets) = (sets_of(standing), sets_of(next));
    let mut gone = Entries::new(delete_entries);
    let mut come = Entries::new(new_entries);
    for list in next {
        for change in list.changes_from(standing.iter().find(|old| old.stands_as(list))) {
            match change {
                Change::Add(entry) => {
                    if let Some(timeout) = timeout(&entry, now) {
                        come.add(list.set_name(entry.class()), entry.datum(), timeout);
                    }
                }
                Change::Remove(entry) => {
                    let set = list.set_name(entry.class());
                    // What has ended, the kernel has forgotten; what goes with its set need not be named.
                    if timeout(&entry, now).is_some() && new_sets.contains_key(&set) {
                        gone.add(set, entry.datum(), None);
                    }
                }
            }
        }
    }
    let only = |these: &BTreeMap<String, Set>, those: &BTreeMap<String, Set>| {
        these.iter().filter(|(name, _)| !those.contains_key(*name)).map(|(_, set)| set.clone()).collect()
    };
    let mut entries = gone.finish();
    entries.extend(come.finish());
    Changes { gone: only(&old_sets, &new_sets), new: only(&new_sets, &old_sets), entries }
}

/// Those that end by the time of `now` take the place of those that stand.
pub(super) fn renewal(lists: &[ListSets], now: SystemTime) -> Vec<Message> {
    let mut come = Entries::new(new_entries);
    let mut emptied = Vec::new();
    for list in lists {
        emptied.extend(list.classes().filter(|class| class.ending).map(|class| empty_set(&list.set_name(class))));
        let ending = list.entries().filter(|entry| entry.expires.is_some());
        for (entry, timeout) in ending.filter_map(|entry| Some((entry, timeout(&entry, now)?))) {
            come.add(list.set_name(entry.class()), entry.datum(), timeout);
        }
    }
    emptied.extend(come.finish());
    emptied
}

fn sets_of(lists: &[ListSets]) -> BTreeMap<String, Set> {
    lists.iter().flat_map(ListSets::sets).map(|set| (set.name.clone(), set)).collect()
}

/// The milliseconds after which an entry ends, if it does; `None` if it has.
#[expect(clippy::option_option, reason = "three outcomes: never, then, and already")]
fn timeout(entry: &Entry, now: SystemTime) -> Option<Option<u64>> {
    let Some(end) = entry.expires else { return Some(None) };
    let left = end.duration_since(now).ok()?.as_millis();
    (left > 0).then(|| Some(u64::try_from(left).unwrap_or(u64::MAX).min(LONGEST)))
}

/// A century in milliseconds: the kernel refuses what its clock cannot count.
const LONGEST: u64 = 100 * 366 * 86_400_000;

type Write = fn(&str, &[(Datum, Option<u64>)]) -> Message;

/// Entries by set, in messages of a size that the kernel takes.
struct Entries {
    write: Write,
    waiting: BTreeMap<String, Vec<(Datum, Option<u64>)>>,
    full: Vec<Message>,
}

impl Entries {
    fn new(write: Write) -> Self {
        Self { write, waiting: BTreeMap::new(), full: Vec::new() }
    }

    fn add(&mut self, set: String, datum: Datum, timeout: Option<u64>) {
        let waiting = match self.waiting.get_mut(&set) {
            Some(waiting) => waiting,
            None => self.waiting.entry(set.clone()).or_default(),
        };
        waiting.push((datum, timeout));
        if waiting.len() == ENTRIES_A_MESSAGE {
            self.full.push((self.write)(&set, waiting));
            waiting.clear();
        }
    }

    fn finish(mut self) -> Vec<Message> {
        let rest = self.waiting.iter().filter(|(_, entries)| !entries.is_empty());
        self.full.extend(rest.map(|(set, entries)| (self.write)(set, entries)));
        self.full
    }
}
