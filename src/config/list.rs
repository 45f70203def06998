//! `[[list]]`.
//!
//! Fails closed: a list that is missing or parses to nothing is an error, never an empty list.

use std::path::PathBuf;
use std::sync::Arc;

use super::contents::Contents;
use super::document::beside;
use super::mistake::Report;
use super::named::check_name;
use super::table::Table;
use crate::list::{List, ListVerdict};

/// What a policy gets for a list's name.
#[derive(Debug)]
pub(super) enum Slot {
    Ready(Arc<List>),
    /// `enabled = false`.
    Disabled,
}

impl Slot {
    pub(super) fn ready(&self) -> Option<&Arc<List>> {
        match self {
            Self::Ready(list) => Some(list),
            Self::Disabled => None,
        }
    }
}

/// `files`: takes the list file, if it has one.
pub(super) fn read(mut table: Table<'_>, name: &str, report: &Report, files: &mut Vec<PathBuf>) -> Option<Slot> {
    let verdict = verdict(&mut table, report);
    table.word("format", &[("auto", ()), ("plain", ())], ());
    table.take("url");
    table.take("refresh");
    if !["entries", "file", "url"].iter().any(|source| table.has(source)) {
        let what = format!("the list `{name}` has no source");
        report.error(&table.place, what, "add `entries = [..]` or `file = \"..\"`");
    }
    let mut contents = Contents::new(table.flag("subdomains", false));
    let enabled = table.flag("enabled", true);
    read_entries(&mut table, &mut contents, name, report);
    if let Some(file) = table.text("file").filter(|_| enabled) {
        let path = beside(&file.place, &file.value);
        contents.take_file(&path, &file.place, report);
        files.push(path);
    }
    if verdict == Some(ListVerdict::Allow) && contents.hold_every_address() {
        let what = format!("the allow list `{name}` holds every address of a family");
        report.warning(&table.place, what, "no block list counts for them: take the prefix of length 0 out");
    }
    let list = contents.into_list(name, verdict?);
    Some(if enabled { Slot::Ready(Arc::new(list)) } else { Slot::Disabled })
}

fn read_entries(table: &mut Table<'_>, contents: &mut Contents, name: &str, report: &Report) {
    let Some(written) = table.take("entries") else { return };
    let place = written.place.clone();
    let Some(entries) = written.items() else { return };
    for entry in entries.iter().filter_map(|entry| entry.text()) {
        contents.take_inline(&entry, report);
    }
    if entries.is_empty() && !table.has("file") {
        report.warning(&place, format!("the list `{name}` is empty"), "it matches nothing");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Allow,
    Block,
    Threat,
}

fn verdict(table: &mut Table<'_>, report: &Report) -> Option<ListVerdict> {
    let words = &[("allow", Kind::Allow), ("block", Kind::Block), ("threat", Kind::Threat)];
    let kind = table.demand("verdict", "\"allow\"").and_then(|value| value.word(words));
    if kind == Some(Kind::Threat) {
        return threat(table, report);
    }
    for place in ["category", "score"].into_iter().filter_map(|key| table.forbid(key)) {
        if kind.is_some() {
            report.error(&place, "this key is for threats", "leave it out, or write `verdict = \"threat\"`");
        }
    }
    match kind? {
        Kind::Allow => Some(ListVerdict::Allow),
        _ => Some(ListVerdict::Block),
    }
}

fn threat(table: &mut Table<'_>, report: &Report) -> Option<ListVerdict> {
    let category = table.demand("category", "\"malware\"").and_then(|value| value.text());
    let score = table.demand("score", "90").and_then(|value| value.number(1..=100));
    let category = category.filter(|category| check_name(category, report))?;
    Some(ListVerdict::Threat { category: category.value.into(), score: u8::try_from(score?).ok()? })
}
