//! Objects by name: lists, policies, ports, Networks.

use std::cell::Cell;
use std::collections::HashMap;

use super::mistake::Report;
use super::nearest::nearest;
use super::table::Table;
use super::value::Located;

/// The longest name of an object, in octets.
const MAX_NAME: usize = 128;

/// What a configuration defines under names of one kind, in the order of the files.
#[derive(Debug)]
pub(super) struct Named<T> {
    /// `list`, `policy`, ...
    kind: &'static str,
    found: Vec<Entry<T>>,
    /// Name to index in `found`.
    index: HashMap<String, usize>,
}

#[derive(Debug)]
struct Entry<T> {
    name: Located<String>,
    used: Cell<bool>,
    /// `None`: it has mistakes, which are reported where it stands and not wherever it is named.
    object: Option<T>,
}

impl<T> Named<T> {
    pub(super) fn new(kind: &'static str) -> Self {
        Self { kind, found: Vec::new(), index: HashMap::new() }
    }

    /// The second of one name is a mistake, and is left out.
    pub(super) fn insert(&mut self, name: Located<String>, object: Option<T>, report: &Report) {
        if let Some(first) = self.entry(&name.value) {
            let what = format!("a second {} named `{}`", self.kind, name.value);
            report.error(&name.place, what, format!("rename one: the first is at {}", first.name.place.line()));
            return;
        }
        self.index.insert(name.value.clone(), self.found.len());
        self.found.push(Entry { name, used: Cell::new(false), object });
    }

    pub(super) fn find(&self, name: &Located<String>, report: &Report) -> Option<&T> {
        let Some(entry) = self.entry(&name.value) else {
            report.error(&name.place, format!("no {} is named `{}`", self.kind, name.value), self.advice(&name.value));
            return None;
        };
        entry.used.set(true);
        entry.object.as_ref()
    }

    fn entry(&self, name: &str) -> Option<&Entry<T>> {
        self.found.get(*self.index.get(name)?)
    }

    fn advice(&self, written: &str) -> String {
        let known: Vec<&str> = self.found.iter().map(|entry| entry.name.value.as_str()).collect();
        let define = format!("define it: [[{}]] name = \"{written}\"", self.kind);
        match nearest(written, &known) {
            Some(near) => format!("did you mean `{near}`? Else {define}"),
            None => define,
        }
    }

    /// What nobody named is probably forgotten.
    pub(super) fn warn_of_unused(&self, user: &str, report: &Report) {
        for Entry { name, .. } in self.found.iter().filter(|entry| !entry.used.get()) {
            let what = format!("no {user} names the {} `{}`: it judges nothing", self.kind, name.value);
            report.warning(&name.place, what, format!("name it in a {user}, or leave it out"));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.found.iter().filter_map(|entry| entry.object.as_ref())
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
