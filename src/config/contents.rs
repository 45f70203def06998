//! What a list holds: entries written in place, and the lines of a plain file.
//!
//! A bad entry in place is an error. A bad line of a file is a warning and is skipped (SPEC V4), but a file without one good
//! line is an error.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::mistake::{Place, Report, Source};
use super::value::Located;
use crate::list::{DomainSet, List, ListVerdict, PrefixSet};
use crate::name::{NotAName, Pattern};

/// Bad lines of a list file that are shown one by one; of more only the number is.
const MAX_BAD_LINES: usize = 20;

#[derive(Default)]
pub(super) struct Contents {
    domains: DomainSet,
    prefixes: PrefixSet,
    subdomains: bool,
}

impl Contents {
    /// `subdomains`: plain names stand for themselves and every name below.
    pub(super) fn new(subdomains: bool) -> Self {
        Self { subdomains, ..Self::default() }
    }

    pub(super) fn take_inline(&mut self, entry: &Located<String>, report: &Report) {
        match Entry::parse(&entry.value) {
            Ok(parsed) => self.insert(parsed),
            Err(wrong) => report.error(&entry.place, format!("`{}`: {}", entry.value, wrong.what()), wrong.mend()),
        }
    }

    /// `named`: where the configuration names the file.
    pub(super) fn take_file(&mut self, path: &Path, named: &Place, report: &Report) {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(why) => {
                let what = format!("cannot read the list {}: {why}", path.display());
                return report.error(named, what, "name a file that can be read, or write `enabled = false`");
            }
        };
        let (taken, skipped) = self.take_lines(path, &text, report);
        if skipped > MAX_BAD_LINES {
            let what = format!("{} more lines of {} are skipped", skipped - MAX_BAD_LINES, path.display());
            report.warning(named, what, "mend the file");
        }
        if taken == 0 {
            let what = format!("the list {} holds no entry", path.display());
            report.error(named, what, "write one address, prefix or name a line; comments begin with #");
        }
    }

    /// How many lines were taken, and how many skipped.
    fn take_lines(&mut self, path: &Path, text: &str, report: &Report) -> (usize, usize) {
        let (mut taken, mut skipped) = (0, 0);
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let written = line.split('#').next().unwrap_or_default().trim();
            match Entry::parse(written) {
                _ if written.is_empty() => continue,
                Ok(parsed) => self.insert(parsed),
                Err(Wrong::HostBits(net)) => self.insert(Entry::Prefix(net.trunc())),
                Err(wrong) => {
                    skipped += 1;
                    if skipped <= MAX_BAD_LINES {
                        warn_of_line(path, index + 1, line, &wrong, report);
                    }
                    continue;
                }
            }
            taken += 1;
        }
        (taken, skipped)
    }

    fn insert(&mut self, entry: Entry) {
        match entry {
            Entry::Prefix(prefix) => self.prefixes.insert(prefix, None),
            Entry::Name(Pattern::Exact(name)) if self.subdomains => self.domains.insert(Pattern::Tree(name), None),
            Entry::Name(pattern) => self.domains.insert(pattern, None),
        }
    }

    pub(super) fn hold_every_address(&self) -> bool {
        self.prefixes.iter().any(|(prefix, _)| prefix.prefix_len() == 0)
    }

    pub(super) fn into_list(self, name: &str, verdict: ListVerdict) -> List {
        List { name: name.into(), verdict, domains: self.domains, prefixes: self.prefixes }
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let about = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let octets = std::fs::read(path).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&octets).into_owned())
}

fn warn_of_line(path: &Path, number: usize, line: &str, wrong: &Wrong, report: &Report) {
    let source = Source::part(path.to_owned(), line.chars().take(200).collect(), number);
    let place = Place::start_of(&source);
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
