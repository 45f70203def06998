//! `[[list]]`.
//!
//! Fails closed: a list that is missing, or of which no line can be read, is an error, never an empty list. A file without
//! a line is one, at a start.

use std::sync::Arc;

use super::contents::{self, Contents};
use super::document::beside;
use super::mistake::Report;
use super::named::check_name;
use super::source::{Fetcher, ListSource};
use super::table::Table;
use crate::list::format::Format;
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

/// `sources`: takes where its entries come from.
pub(super) fn read(
    mut table: Table<'_>,
    name: &str,
    fetcher: &Fetcher,
    report: &Report,
    sources: &mut Vec<ListSource>,
) -> Option<Slot> {
    let verdict = verdict(&mut table, report);
    let format = table.word("format", FORMATS, None);
    if !SOURCES.iter().any(|source| table.has(source)) {
        let what = format!("the list `{name}` has no source");
        report.error(&table.place, what, "add `entries = [..]`, `file = \"..\"` or `url = \"..\"`");
    }
    let options = contents::options(format, table.flag("subdomains", false));
    let mut contents = Contents::new(options.subdomains);
    let enabled = table.flag("enabled", true);
    let entries = read_entries(&mut table, &mut contents, name, report);
    let file = table.text("file").filter(|_| enabled).map(|file| {
        let path = beside(&file.place, &file.value);
        contents.take_file(&path, &options, &file.place, report);
        path
    });
    let remote = fetcher.remote(&mut table, &options, report).filter(|_| enabled).map(|remote| {
        contents.take_remote(name, &remote, &options, fetcher, report);
        remote.0
    });
    let verdict = verdict?;
    sources.push(ListSource {
        list: name.into(),
        verdict: verdict.clone(),
        entries,
        file,
        remote,
        options,
        states: contents.files().iter().map(|(state, _)| state.clone()).collect(),
    });
    let list = contents.into_list(name, verdict, &table.place, report)?;
    let holds_every_address = list.prefixes.iter().any(|(prefix, _)| prefix.prefix_len() == 0);
    if list.verdict == ListVerdict::Allow && holds_every_address {
        let what = format!("the allow list `{name}` holds every address of a family");
        report.warning(&table.place, what, "no block list counts for them: take the prefix of length 0 out");
    }
    Some(if enabled { Slot::Ready(Arc::new(list)) } else { Slot::Disabled })
}

const SOURCES: [&str; 3] = ["entries", "file", "url"];

/// `auto` is none.
const FORMATS: &[(&str, Option<Format>)] = &[
    ("auto", None),
    ("plain", Some(Format::Plain)),
    ("hosts", Some(Format::Hosts)),
    ("adblock", Some(Format::Adblock)),
    ("dnsmasq", Some(Format::Dnsmasq)),
    ("rpz", Some(Format::Rpz)),
    ("cidr", Some(Format::Cidr)),
    ("csv", Some(Format::Csv)),
    ("json", Some(Format::Json)),
];

/// Each entry, with its place.
fn read_entries(table: &mut Table<'_>, contents: &mut Contents, name: &str, report: &Report) -> Vec<(String, String)> {
    let Some(written) = table.take("entries") else { return Vec::new() };
    let place = written.place.clone();
    let Some(entries) = written.items() else { return Vec::new() };
    let read = entries.iter().filter_map(|entry| entry.text()).map(|entry| {
        contents.take_inline(&entry, report);
        let line = entry.place.line();
        (entry.value, line)
    });
    let read: Vec<_> = read.collect();
    if entries.is_empty() && !table.has("file") && !table.has("url") {
        report.warning(&place, format!("the list `{name}` is empty"), "it matches nothing");
    }
    read
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
