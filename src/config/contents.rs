//! What a list holds: entries written in place, a file, and the copy of what is fetched.
//!
//! A bad entry in place is an error. A bad line of a file is a warning and is skipped (SPEC V4), but a file that is no list
//! is an error.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::mistake::{Place, Report, Source};
use super::source::{Fetcher, Remote, State};
use super::value::Located;
use crate::list::compile::Builder;
use crate::list::entry::{Bad, Entry, What};
use crate::list::format::Format;
use crate::list::prefixes::Exceptions;
use crate::list::reader::{BadLine, Limits, Options, Refused};
use crate::list::{List, ListVerdict};
use crate::sys::list_store::{Opened, Store, Summary};
use crate::sys::progress;

/// Bad lines of a list file that are shown one by one; of more only the number is.
const MAX_BAD_LINES: usize = 20;

#[derive(Debug)]
pub(super) struct Contents {
    inline: Builder,
    files: Vec<(State, Opened)>,
    subdomains: bool,
}

/// How the file of a list is read. `subdomains`: plain names stand for themselves and every name below.
pub(super) fn options(format: Option<Format>, subdomains: bool) -> Options {
    Options { format, subdomains, limits: Limits { reported: MAX_BAD_LINES, ..Limits::default() } }
}

impl Contents {
    pub(super) fn new(subdomains: bool) -> Self {
        Self { inline: Builder::new(Exceptions::Always), files: Vec::new(), subdomains }
    }

    pub(super) fn take_inline(&mut self, entry: &Located<String>, report: &Report) {
        match parse(&entry.value) {
            Ok(parsed) => self.inline.add(&if self.subdomains { parsed.widened() } else { parsed }),
            Err(wrong) => report.error(&entry.place, format!("`{}`: {}", entry.value, wrong.what()), wrong.mend()),
        }
    }

    /// `named`: where the configuration names the file.
    pub(super) fn take_file(&mut self, path: &Path, options: &Options, named: &Place, report: &Report) {
        match Store::from_environment().load(path, options, |file| progress::of(file, path)) {
            Ok(opened) => {
                if let Some(summary) = &opened.read {
                    warn_of_lines(path, summary, named, report);
                    warn_of_names_alone(path, summary.report.format, options, named, report);
                }
                self.files.push((State::of(path, &opened), opened));
            }
            Err(Refused::Io(why)) => {
                let what = format!("cannot read the list {}: {why}", path.display());
                report.error(named, what, "name a file that can be read, or write `enabled = false`");
            }
            Err(Refused::Nothing { bad: 0 }) => match Opened::empty(path, options) {
                Ok(opened) => {
                    let what = format!("the list {} holds no entry", path.display());
                    report.warning(named, what, "it matches nothing until it does");
                    self.files.push((State::of(path, &opened), opened));
                }
                Err(why) => report.error(named, format!("cannot read the list {}: {why}", path.display()), "try again"),
            },
            Err(why @ Refused::Nothing { .. }) => {
                let mend = "write one address, prefix or name a line, or say which `format` it is";
                report.error(named, format!("the list {} cannot be used: {why}", path.display()), mend);
            }
            Err(why) => {
                let what = format!("the list {} cannot be used: {why}", path.display());
                report.error(named, what, "mend the file, or write `enabled = false`");
            }
        }
    }

    /// The copy of what is fetched, which is fetched now if there is none.
    pub(super) fn take_remote(
        &mut self,
        name: &str,
        (remote, named): &(Remote, Place),
        options: &Options,
        fetcher: &Fetcher,
        report: &Report,
    ) {
        // What comes of a configuration with mistakes is nothing: nobody is asked for it.
        let there = if report.errors() > 0 { Ok(false) } else { fetcher.ensure(name, remote, options) };
        match there {
            Ok(true) => self.take_file(&remote.copy.path, options, named, report),
            Ok(false) => {
                let what = format!("the list `{name}` has not been fetched yet, and counts as empty here");
                report.warning(named, what, "`tidegate list build` fetches it, and `tidegate run` at its start");
            }
            Err(why) => {
                let what = format!("there is no copy of the list `{name}`, and it cannot be fetched: {why}");
                report.error(named, what, "`tidegate list build` takes more time; or write `enabled = false`");
            }
        }
    }

    /// The files that were read.
    pub(super) fn files(&self) -> &[(State, Opened)] {
        &self.files
    }

    /// `None`: it is larger than can be held, which is reported.
    pub(super) fn into_list(self, name: &str, verdict: ListVerdict, named: &Place, report: &Report) -> Option<List> {
        let (mut domains, mut prefixes) = match self.inline.finish().into_sets() {
            Ok(sets) => sets,
            Err(why) => {
                report.error(named, format!("the list `{name}` cannot be held: {why}"), "split it");
                return None;
            }
        };
        for (_, file) in self.files {
            (domains, prefixes) = (domains.union(file.domains), prefixes.union(file.prefixes));
        }
        Some(List { name: name.into(), verdict, domains, prefixes })
    }
}

fn warn_of_lines(path: &Path, summary: &Summary, named: &Place, report: &Report) {
    for line in &summary.report.first_bad {
        warn_of_line(path, line, report);
    }
    let more = summary.report.bad.saturating_sub(summary.report.first_bad.len() as u64);
    if more > 0 {
        report.warning(named, format!("{more} more lines of {} are skipped", path.display()), "mend the file");
    }
    if let Some(why) = &summary.not_kept {
        let what = format!("the list {} is not kept compiled: {why}", path.display());
        report.warning(named, what, "it is read again at every start: let the cache folder be written to");
    }
}

/// A format in which a name has its own meaning keeps it.
fn warn_of_names_alone(path: &Path, format: Format, options: &Options, named: &Place, report: &Report) {
    if options.subdomains && matches!(format, Format::Hosts | Format::Adblock | Format::Rpz) {
        let what = format!("`subdomains` changes nothing in {}, which has the {format} format", path.display());
        report.warning(named, what, "there a name is what that format says: find the list in another, or leave it out");
    }
}

fn warn_of_line(path: &Path, line: &BadLine, report: &Report) {
    let first_line = usize::try_from(line.number).unwrap_or(usize::MAX);
    let source = Source::part(path.to_owned(), line.text.clone(), first_line);
    let mend = Wrong::Bad(line.why).mend();
    report.warning(&Place::start_of(&source), format!("the line is skipped: {}", line.why), mend);
}

/// What is wrong with an entry in place, where less is forgiven than in a file that somebody else writes.
enum Wrong {
    HostBits(IpNet),
    Mapped(IpAddr),
    Bad(Bad),
}

fn parse(text: &str) -> Result<Entry<'_>, Wrong> {
    let entry = Entry::parse(text).map_err(Wrong::Bad)?;
    if let What::Prefix(_) = entry.what {
        if let Some(own) = text.parse().ok().filter(|address: &IpAddr| address.to_canonical() != *address) {
            return Err(Wrong::Mapped(own.to_canonical()));
        }
        if let Some(net) = text.parse().ok().filter(|net: &IpNet| net.trunc() != *net) {
            return Err(Wrong::HostBits(net));
        }
    }
    Ok(entry)
}

impl Wrong {
    fn what(&self) -> String {
        match self {
            Self::HostBits(net) => format!("bits are set beyond /{}", net.prefix_len()),
            Self::Mapped(_) => "an IPv4 address in IPv6 clothes matches no packet".to_owned(),
            Self::Bad(why) => why.to_string(),
        }
    }

    fn mend(&self) -> String {
        match self {
            Self::HostBits(net) => format!("write {} or {}", net.trunc(), net.addr()),
            Self::Mapped(own) => format!("write {own}"),
            Self::Bad(Bad::Prefix) => "write 198.51.100.0/24 or 2001:db8::/32".to_owned(),
            Self::Bad(Bad::Name(_)) => {
                "write an address, a prefix, name.example, *.name.example or .name.example".to_owned()
            }
            Self::Bad(Bad::Unsupported(_)) => "take it out, or leave it".to_owned(),
            Self::Bad(_) => "mend the line, or say which `format` the file is".to_owned(),
        }
    }
}
