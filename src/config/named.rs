//! Objects by name: lists, policies, ports, Networks.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::mistake::{Place, Report};
use super::nearest::nearest;
use super::reader::{Located, Table};

/// The longest name of an object, in octets.
const MAX_NAME: usize = 128;

/// What a configuration defines under names of one kind.
#[derive(Debug)]
pub(super) struct Named<T> {
    /// `list`, `policy`, ...
    kind: &'static str,
    found: BTreeMap<String, Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    place: Place,
    used: Cell<bool>,
    object: T,
}

impl<T> Named<T> {
    pub(super) fn new(kind: &'static str) -> Self {
        Self { kind, found: BTreeMap::new() }
    }

    /// The second of one name is a mistake, and is left out.
    pub(super) fn insert(&mut self, name: Located<String>, object: T, report: &Report) {
        if let Some(first) = self.found.get(&name.value) {
            let what = format!("a second {} named `{}`", self.kind, name.value);
            report.error(&name.place, what, format!("rename one: the first is at {}", first.place.line()));
            return;
        }
        let entry = Entry { place: name.place, used: Cell::new(false), object };
        self.found.insert(name.value, entry);
    }

    pub(super) fn find(&self, name: &Located<String>, report: &Report) -> Option<&T> {
        let Some(entry) = self.found.get(&name.value) else {
            report.error(&name.place, format!("no {} is named `{}`", self.kind, name.value), self.advice(&name.value));
            return None;
        };
        entry.used.set(true);
        Some(&entry.object)
    }

    fn advice(&self, written: &str) -> String {
        let known: Vec<&str> = self.found.keys().map(String::as_str).collect();
        let define = format!("define it: [[{}]] name = \"{written}\"", self.kind);
        match nearest(written, &known) {
            Some(near) => format!("did you mean `{near}`? Else {define}"),
            None => define,
        }
    }

    /// What nobody named is probably forgotten.
    pub(super) fn warn_of_unused(&self, user: &str, report: &Report) {
        for (name, entry) in self.found.iter().filter(|(_, entry)| !entry.used.get()) {
            let what = format!("no {user} names the {} `{name}`: it judges nothing", self.kind);
            report.warning(&entry.place, what, format!("name it in a {user}, or leave it out"));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.found.values().map(|entry| &entry.object)
    }
}

/// The name of an object, which must have one.
pub(super) fn name_of(table: &mut Table<'_>, report: &Report) -> Option<Located<String>> {
    let name = table.demand("name", "\"..\"")?.text()?;
    check_name(&name, report).then_some(name)
}

pub(super) fn check_name(name: &Located<String>, report: &Report) -> bool {
    let text = &name.value;
    let wrong = if text.trim().is_empty() {
        "an empty name".to_owned()
    } else if text.trim() != text || text.chars().any(char::is_control) {
        "a name with blanks around it or control characters in it".to_owned()
    } else if text.len() > MAX_NAME {
        format!("a name of {} octets", text.len())
    } else {
        return true;
    };
    report.error(&name.place, wrong, format!("write 1 to {MAX_NAME} visible characters"));
    false
}
