//! Where the entries of a list come from, and reading them again while it is in force.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mistake::{Place, Report};
use super::table::Table;
use crate::list::compile::Builder;
use crate::list::entry::Entry;
use crate::list::file::Stamp;
use crate::list::prefixes::Exceptions;
use crate::list::reader::{Options, Refused};
use crate::list::refresh::Good;
use crate::list::{List, ListVerdict};
use crate::sys::fetch::{self, Origin};
use crate::sys::list_store::copy::Copy;
use crate::sys::list_store::{Opened, Store, Summary};

/// The sources of one list.
#[derive(Clone, Debug)]
pub struct ListSource {
    /// The name of the list.
    pub list: Arc<str>,
    pub verdict: ListVerdict,
    /// Entries in place, each with its `FILE:LINE`.
    pub entries: Vec<(String, String)>,
    pub file: Option<PathBuf>,
    pub remote: Option<Remote>,
    pub options: Options,
    /// Its files, as they were read: the one that is named, and the copy of what is fetched.
    pub states: Vec<State>,
}

/// What is fetched.
#[derive(Clone, Debug)]
pub struct Remote {
    pub origin: Origin,
    /// How long until the server is asked again.
    pub refresh: Duration,
    pub limits: fetch::Limits,
    pub copy: Copy,
}

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct State {
    pub path: PathBuf,
    pub stamp: Stamp,
    pub good: Good,
    /// The compiled form of it, where it is kept.
    pub compiled: Option<PathBuf>,
    /// Says how many lines are no entries, and which is the first; `None`: all are, or it was read before.
    pub skipped: Option<String>,
}

/// Whether reading a configuration may fetch lists of which there is no copy yet.
#[derive(Clone, Copy, Debug)]
pub enum Fetching {
    /// Such a list is a warning, and empty.
    Never,
    /// All of them in so much time.
    Within(Duration),
    /// Each in the time that `limits.fetch_time` gives.
    Patiently,
}

/// How lists are fetched while one configuration is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetcher {
    fetching: Fetching,
    limits: fetch::Limits,
    began: Instant,
}

impl ListSource {
    /// Reads the list anew. It is a list only if every source of it is.
    pub fn read(&self) -> Result<(List, Vec<State>), Refused> {
        let mut inline = Builder::new(Exceptions::Always);
        for entry in self.entries.iter().filter_map(|(text, _)| Entry::parse(text).ok()) {
            inline.add(&if self.options.subdomains { entry.widened() } else { entry });
        }
        let (mut domains, mut prefixes) = inline.finish().into_sets().map_err(Refused::Io)?;
        let mut states = Vec::new();
        for path in self.paths() {
            let opened = Store::from_environment().load(path, &self.options, |file| Box::new(file))?;
            states.push(State::of(path, &opened));
            (domains, prefixes) = (domains.union(opened.domains), prefixes.union(opened.prefixes));
        }
        Ok((List { name: self.list.clone(), verdict: self.verdict.clone(), domains, prefixes }, states))
    }

    /// The files that it is read from.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.file.as_deref().into_iter().chain(self.remote.as_ref().map(|remote| &*remote.copy.path))
    }
}

impl State {
    pub(super) fn of(path: &Path, opened: &Opened) -> Self {
        let (compiled, skipped) = (opened.compiled.clone(), opened.read.as_ref().and_then(skipped));
        Self { path: path.to_owned(), stamp: opened.state, good: opened.good(), compiled, skipped }
    }
}

fn skipped(read: &Summary) -> Option<String> {
    let first = read.report.first_bad.first()?;
    let (of, lines) = (read.report.bad, read.report.lines);
    Some(format!("{of} of {lines} lines are skipped, the first is line {}: {}", first.number, first.why))
}

impl Fetcher {
    pub(super) fn new(fetching: Fetching, limits: fetch::Limits) -> Self {
        Self { fetching, limits, began: Instant::now() }
    }

    /// What `url`, `refresh` and `ca` of a list say.
    pub(super) fn remote(&self, table: &mut Table<'_>, options: &Options, report: &Report) -> Option<(Remote, Place)> {
        let url = table.text("url");
        let authorities = table.text("ca");
        let refresh = table.duration("refresh", MIN_REFRESH..=MAX_REFRESH, REFRESH);
        let Some(url) = url else {
            for place in ["refresh", "ca"].into_iter().filter_map(|key| table.forbid(key)) {
                report.error(&place, "this key is for lists that are fetched", "add `url = \"https://..\"`");
            }
            return None;
        };
        if let Err(why) = fetch::check(&url.value) {
            let mend = "write one such as \"https://lists.example/feed.txt\"";
            report.error(&url.place, format!("nothing can be fetched from there: {why}"), mend);
            return None;
        }
        if fetch::is_open_to_forgery(&url.value) {
            let what = "anybody on the way may change what is fetched over http";
            report.warning(&url.place, what, "write https://");
        }
        let Some(copy) = Store::from_environment().copy_of(&url.value, options) else {
            report.error(&url.place, "there is no folder to keep what is fetched", "set CACHE_DIRECTORY or HOME");
            return None;
        };
        let authorities = authorities.map(|file| super::document::beside(&file.place, &file.value));
        let origin = Origin { url: url.value, authorities };
        Some((Remote { origin, refresh, limits: self.limits, copy }, url.place))
    }

    /// Makes sure that there is a copy. `Ok(false)`: there is none, and none may be fetched.
    pub(super) fn ensure(&self, name: &str, remote: &Remote, options: &Options) -> Result<bool, String> {
        if remote.copy.is_there().map_err(|error| error.to_string())? {
            return Ok(true);
        }
        let time = match self.fetching {
            Fetching::Never => return Ok(false),
            Fetching::Within(time) => time.saturating_sub(self.began.elapsed()).min(self.limits.time),
            Fetching::Patiently => self.limits.time,
        };
        if time.is_zero() {
            return Err("there was no time left for it".into());
        }
        let limits = fetch::Limits { time, ..self.limits };
        let mut progress = crate::sys::progress::of_fetch(name);
        let now = std::time::SystemTime::now();
        let fetched = remote.copy.refresh(&remote.origin, options, &limits, now, &mut *progress);
        fetched.map(|_| true).map_err(|why| why.to_string())
    }
}

const REFRESH: Duration = Duration::from_secs(3600);
const MIN_REFRESH: Duration = Duration::from_secs(1);
const MAX_REFRESH: Duration = Duration::from_secs(30 * 24 * 3600);
