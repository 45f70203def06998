//! `[[list]]`: entries written in place, and files.
//!
//! Fails closed: a list that is missing or parses to nothing is an error, never an empty list.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use super::document::beside;
use super::mistake::{Place, Report, Source};
use super::reader::{Located, Table};
use crate::list::{DomainSet, List, ListVerdict, PrefixSet};
use crate::name::{NotAName, Pattern};

/// What a policy gets for a list's name.
#[derive(Debug)]
pub(super) enum Slot {
    Ready(Arc<List>),
    /// `enabled = false`.
    Disabled,
    /// Reported already.
    Broken,
}

impl Slot {
    pub(super) fn ready(&self) -> Option<&Arc<List>> {
        match self {
            Self::Ready(list) => Some(list),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Allow,
    Block,
    Threat,
}

#[derive(Clone, Copy)]
enum Format {
    Auto,
    Plain,
}

/// `files`: takes the list files that were read.
pub(super) fn read(mut table: Table<'_>, name: &str, report: &Report, files: &mut Vec<PathBuf>) -> Slot {
    let verdict = verdict(&mut table, report);
    let subdomains = table.flag("subdomains", false);
    let enabled = table.flag("enabled", true);
    _ = table.word("format", FORMATS, Format::Auto);
    table.take("url");
    table.take("refresh");
    let mut contents = Contents { subdomains, ..Contents::default() };
    let inline = table.has("entries");
    for entry in table.array("entries") {
        if let Some(entry) = entry.text() {
            contents.take_inline(&entry, report);
        }
    }
    let file = table.text("file");
    if let Some(file) = file.as_ref().filter(|_| enabled) {
        let path = beside(&file.place, &file.value);
        contents.take_file(&path, &file.place, report);
        files.push(path);
    }
    if !inline && file.is_none() && !table.has("file") && !table.has("url") {
        report.error(
            &table.place,
            format!("the list `{name}` has no source"),
            "add `entries = [..]` or `file = \"..\"`",
        );
    } else if file.is_none() && contents.is_empty() && enabled {
        report.warning(&table.place, format!("the list `{name}` is empty"), "it matches nothing");
    }
    match verdict {
        _ if !enabled => Slot::Disabled,
        None => Slot::Broken,
        Some(verdict) => Slot::Ready(Arc::new(contents.into_list(name, verdict))),
    }
}

const FORMATS: &[(&str, Format)] = &[("auto", Format::Auto), ("plain", Format::Plain)];

fn verdict(table: &mut Table<'_>, report: &Report) -> Option<ListVerdict> {
    let words = &[("allow", Kind::Allow), ("block", Kind::Block), ("threat", Kind::Threat)];
    let kind = table.demand("verdict", "\"allow\"").and_then(|value| value.word(words));
    if matches!(kind, Some(Kind::Allow | Kind::Block)) {
        for key in ["category", "score"] {
            if let Some(value) = table.take(key) {
                report.error(
                    &value.place,
                    format!("`{key}` is for threats"),
                    "leave it out, or `verdict = \"threat\"`",
                );
            }
        }
    }
    match kind {
        None => {
            table.take("category");
            table.take("score");
            None
        }
        Some(Kind::Allow) => Some(ListVerdict::Allow),
        Some(Kind::Block) => Some(ListVerdict::Block),
        Some(Kind::Threat) => threat(table, report),
    }
}

fn threat(table: &mut Table<'_>, report: &Report) -> Option<ListVerdict> {
    let category = table.demand("category", "\"malware\"").and_then(|value| value.text());
    let score = table.demand("score", "90").and_then(|value| value.number(1..=100));
    let category = category?;
    if !super::named::check_name(&category, report) {
        return None;
    }
    Some(ListVerdict::Threat { category: category.value.into(), score: u8::try_from(score?).ok()? })
}

#[derive(Default)]
struct Contents {
    domains: DomainSet,
    prefixes: PrefixSet,
    subdomains: bool,
}

impl Contents {
    fn take_inline(&mut self, entry: &Located<String>, report: &Report) {
        match Entry::parse(&entry.value) {
            Ok(parsed) => self.insert(parsed),
            Err(wrong) => report.error(&entry.place, format!("`{}`: {}", entry.value, wrong.what()), wrong.mend()),
        }
    }

    fn take_file(&mut self, path: &Path, named: &Place, report: &Report) {
        let text = match std::fs::read(path) {
            Ok(octets) => String::from_utf8_lossy(&octets).into_owned(),
            Err(error) => {
                let what = format!("cannot read the list {}: {error}", path.display());
                report.error(named, what, "name a file that can be read, or `enabled = false`");
                return;
            }
        };
        let mut bad = 0;
        let mut taken = 0_usize;
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let written = line.split('#').next().unwrap_or_default().trim();
            if written.is_empty() {
                continue;
            }
            match Entry::parse(written) {
                Ok(parsed) => self.insert(parsed),
                Err(Wrong::HostBits(net)) => self.insert(Entry::Prefix(net.trunc())),
                Err(wrong) => {
                    bad += 1;
                    if bad <= MAX_BAD_LINES {
                        skip_line(path, number + 1, line, &wrong, report);
                    }
                    continue;
                }
            }
            taken += 1;
        }
        if bad > MAX_BAD_LINES {
            report.warning(named, format!("{} more bad lines are skipped", bad - MAX_BAD_LINES), "mend the file");
        }
        if taken == 0 {
            let what = format!("the list {} holds no entry", path.display());
            report.error(named, what, "one address, prefix or name a line, `#` for comments");
        }
    }

    fn insert(&mut self, entry: Entry) {
        match entry {
            Entry::Prefix(prefix) => self.prefixes.insert(prefix, None),
            Entry::Name(Pattern::Exact(name)) if self.subdomains => self.domains.insert(Pattern::Tree(name), None),
            Entry::Name(pattern) => self.domains.insert(pattern, None),
        }
    }

    fn is_empty(&self) -> bool {
        self.domains.is_empty() && self.prefixes.is_empty()
    }

    fn into_list(self, name: &str, verdict: ListVerdict) -> List {
        List { name: name.into(), verdict, domains: self.domains, prefixes: self.prefixes }
    }
}

/// Bad lines of a list file that are shown one by one; of more only the number is.
const MAX_BAD_LINES: usize = 20;

fn skip_line(path: &Path, number: usize, line: &str, wrong: &Wrong, report: &Report) {
    let source = Source { path: path.to_owned(), text: line.chars().take(200).collect(), first_line: number };
    let place = Place::start_of(&Arc::new(source));
    report.warning(&place, format!("the line is skipped: {}", wrong.what()), wrong.mend());
}

enum Entry {
    Prefix(IpNet),
    Name(Pattern),
}

enum Wrong {
    Prefix,
    HostBits(IpNet),
    Mapped(IpAddr),
    Name(NotAName),
}

impl Entry {
    fn parse(text: &str) -> Result<Self, Wrong> {
        if let Ok(address) = text.parse::<IpAddr>() {
            let own = address.to_canonical();
            return if own == address { Ok(Self::Prefix(address.into())) } else { Err(Wrong::Mapped(own)) };
        }
        if text.contains('/') {
            let net: IpNet = text.parse().map_err(|_| Wrong::Prefix)?;
            return if net == net.trunc() { Ok(Self::Prefix(net)) } else { Err(Wrong::HostBits(net)) };
        }
        Pattern::parse(text).map(Self::Name).map_err(Wrong::Name)
    }
}

impl Wrong {
    fn what(&self) -> String {
        match self {
            Self::Prefix => "not an address prefix".to_owned(),
            Self::HostBits(net) => format!("bits are set beyond /{}", net.prefix_len()),
            Self::Mapped(_) => "an IPv4 address in IPv6 clothes matches no packet".to_owned(),
            Self::Name(why) => format!("not a host name: {why}"),
        }
    }

    fn mend(&self) -> String {
        match self {
            Self::Prefix => "write 198.51.100.0/24 or 2001:db8::/32".to_owned(),
            Self::HostBits(net) => format!("write {} or {}", net.trunc(), net.addr()),
            Self::Mapped(own) => format!("write {own}"),
            Self::Name(_) => "write an address, a prefix, name.example, *.name.example or .name.example".to_owned(),
        }
    }
}
