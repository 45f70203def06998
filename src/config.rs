//! From a file to a checked snapshot; every mistake at once, with file:line:column.
//!
//! Fails closed: a configuration with one mistake is no configuration. A key that nobody knows is a mistake.

mod contents;
mod dns;
mod document;
pub mod documents;
mod geoip;
mod inspection;
pub mod limits;
mod list;
pub mod mistake;
mod named;
mod nearest;
mod network;
mod part;
mod policy;
mod port;
mod rule;
pub mod sidecar;
pub mod source;
mod table;
pub mod telemetry;
mod tie;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::list::List;
use crate::policy::network::Network;
use crate::policy::rules::Policy;
use crate::policy::snapshot::Snapshot;

use document::Document;
pub use documents::Documents;
use geoip::Databases;
pub use geoip::GeoSource;
use limits::{GatewaySettings, Limits};
use list::Slot;
pub use mistake::{Mistake, Mistakes, Severity};
use mistake::{Place, Report, Source};
use named::{Named, name_of};
pub use network::ANYBODYS_WORD;
use network::{Known, Written};
pub use part::Part;
pub use policy::fingerprint_of;
use sidecar::SidecarSettings;
use source::Fetcher;
pub use source::{Fetching, ListSource};
use table::Table;
use telemetry::TelemetrySettings;
use value::Located;

/// A configuration without mistakes.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// This enforcer's name.
    pub enforcer: Arc<str>,
    /// The Networks that act on this enforcer, also those that are off.
    pub networks: Vec<Arc<Network>>,
    /// Every policy and list of the files that can be used, named by a Network or not.
    pub policies: Vec<Arc<Policy>>,
    pub lists: Vec<Arc<List>>,
    /// Where the entries of each list come from.
    pub list_sources: Vec<ListSource>,
    /// The databases of countries and ASNs.
    pub geoip: Vec<GeoSource>,
    pub gateway: GatewaySettings,
    /// Beside an application, instead of a gateway.
    pub sidecar: Option<SidecarSettings>,
    pub limits: Limits,
    pub telemetry: TelemetrySettings,
    pub warnings: Mistakes,
    /// Every file that was read: the configuration, what it includes, and its lists.
    pub files: Vec<PathBuf>,
    /// Where to see that the configuration has changed.
    pub documents: Documents,
}

impl Loaded {
    pub fn snapshot(&self, generation: u64) -> Snapshot {
        Snapshot::new(self.enforcer.clone(), generation, self.networks.clone())
    }

    /// Why this takes the place of nothing, if so: something whole is gone that was there before. A file that is cut to
    /// nothing, as on a full disk, would else open everything.
    pub fn lacks(&self, before: &Self) -> Option<String> {
        if self.networks.is_empty() && !before.networks.is_empty() {
            return Some("no network acts on this enforcer any more: give the last one `mode = \"off\"`".to_owned());
        }
        if let Some(path) = self.documents.emptied_since(&before.documents) {
            return Some(format!("{} is empty: remove it, or leave a comment in it", path.display()));
        }
        if let Some(pattern) = self.documents.lost_since(&before.documents) {
            return Some(format!("no file matches {} any more: take it out of `include`", pattern.display()));
        }
        self.emptied_since(before).map(|path| format!("{} holds no entry any more", path.display()))
    }

    /// A file without an entry whose list held more before: it replaces nothing (SPEC V4).
    fn emptied_since(&self, before: &Self) -> Option<&Path> {
        let size = |own: &Self, name: &str| {
            let list = own.lists.iter().find(|list| &*list.name == name)?;
            Some(list.domains.len() + list.prefixes.len() as u64)
        };
        let emptied = |source: &&ListSource| size(before, &source.list) > size(self, &source.list);
        let empty = |source: &'_ ListSource| source.states.iter().position(|state| state.good.entries == 0);
        let source = self.list_sources.iter().filter(emptied).find_map(|source| source.states.get(empty(source)?))?;
        Some(&source.path)
    }
}

/// Reads a configuration with all that it includes, and fetches the lists of which there is no copy yet: in a minute,
/// all of them together. The error holds every mistake, and the warnings.
pub fn load(path: &Path) -> Result<Loaded, Mistakes> {
    load_with(path, FETCHING)
}

/// The same with another patience for lists of which there is no copy yet.
pub fn load_with(path: &Path, fetching: Fetching) -> Result<Loaded, Mistakes> {
    let report = Report::default();
    let source = document::open(path, None, &report);
    finish(source.and_then(|source| read(&source, fetching, &report)), report)
}

/// Who will run, as far as it must be known before anything else is read. What cannot be read here will be told of there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runs {
    /// Whoever reads the rest is already the user that `gateway.user` names.
    Gateway { user: Option<String> },
    /// Becomes its user later.
    Sidecar,
}

pub fn runs(path: &Path) -> Runs {
    let report = Report::default();
    let source = document::open(path, None, &report);
    let document = source.as_ref().map(|source| (source, document::parse(source, &report)));
    let Some((source, document)) = document else { return Runs::Gateway { user: None } };
    let mut top = Table::top(&report, source, &document);
    if top.has("sidecar") {
        return Runs::Sidecar;
    }
    let user = top.table("gateway").and_then(|mut gateway| gateway.text("user"));
    Runs::Gateway { user: user.map(|user| user.value) }
}

/// The `[telemetry]` of a file, whatever else it says: for those who look at a gateway that runs.
pub fn telemetry_of(path: &Path) -> Option<TelemetrySettings> {
    let report = Report::default();
    let source = document::open(path, None, &report)?;
    let document = document::parse(&source, &report);
    let table = Table::top(&report, &source, &document).table("telemetry")?;
    Some(telemetry::read(table, &Arc::from(""), 1, &report))
}

/// A configuration in a text that stands in no file; `name` stands for the file in what is said of it.
pub fn load_text(name: &str, text: String) -> Result<Loaded, Mistakes> {
    let report = Report::default();
    let source = Source::whole(PathBuf::from(name), text);
    finish(read(&source, FETCHING, &report), report)
}

fn finish(loaded: Option<Loaded>, report: Report) -> Result<Loaded, Mistakes> {
    let mistakes = report.into_mistakes();
    match loaded {
        Some(loaded) if !mistakes.has_errors() => Ok(Loaded { warnings: mistakes, ..loaded }),
        _ => Err(mistakes),
    }
}

fn read(source: &Arc<Source>, fetching: Fetching, report: &Report) -> Option<Loaded> {
    let document = document::parse(source, report);
    let mut top = Table::top(report, source, &document);
    let enforcer = enforcer(&mut top, report);
    let (included, patterns) = document::included(&mut top, report);
    let documents: Vec<_> = included.iter().map(|source| document::parse(source, report)).collect();
    let gateway = top.table("gateway").map(|table| limits::read_gateway(table, report)).unwrap_or_default();
    let sidecar = read_sidecar(&mut top, report);
    let limits = top.table("limits").map(limits::read_limits).unwrap_or_default();
    let host: Arc<str> = enforcer.value.as_str().into();
    let records = limits.records;
    let telemetry = top.table("telemetry").map(|table| telemetry::read(table, &host, records, report));
    let telemetry = telemetry.unwrap_or_else(|| TelemetrySettings::new(records));
    let databases = top.table("geoip").map(|table| geoip::read(table, report)).unwrap_or_default();
    let mut files: Vec<PathBuf> = std::iter::once(source).chain(&included).map(|file| file.path.clone()).collect();
    let documents_read = Documents::new(std::iter::once(source).chain(&included), patterns);
    let mut tops = vec![top];
    tops.extend(included.iter().zip(&documents).map(|(source, document)| included_top(report, source, document)));
    let mut list_sources = Vec::new();
    let fetcher = Fetcher::new(fetching, limits.fetch());
    let objects = Objects::read(&mut tops, &fetcher, &databases, report, &mut list_sources);
    files.extend(list_sources.iter().filter_map(|source| source.file.clone()));
    let geoip = databases.sources();
    files.extend(geoip.iter().map(|source| source.path.clone()));
    tie::check(&objects.networks, report);
    let networks = objects.networks_of(&enforcer, report);
    if let Some((_, place)) = &sidecar {
        sidecar::warn_of_inspected_inbound(networks.iter().map(AsRef::as_ref), place, report);
        sidecar::warn_of_unseen_questions(&networks, place, report);
    }
    let policies = objects.policies.iter().cloned().collect();
    let lists = objects.lists.iter().filter_map(Slot::ready).cloned().collect();
    let warnings = Mistakes::default();
    let enforcer = enforcer.value.into();
    let documents = documents_read;
    let sidecar = sidecar.map(|(settings, _)| settings);
    Some(Loaded {
        enforcer,
        networks,
        policies,
        lists,
        list_sources,
        geoip,
        gateway,
        sidecar,
        limits,
        telemetry,
        warnings,
        files,
        documents,
    })
}

/// With the place of its table, for mistakes that show only later.
fn read_sidecar(top: &mut Table<'_>, report: &Report) -> Option<(SidecarSettings, Place)> {
    let table = top.table("sidecar")?;
    let place = table.place.clone();
    if top.has("gateway") {
        report.error(&place, "both [gateway] and [sidecar]", "leave one of them out");
    }
    Some((sidecar::read(table, report), place))
}

/// What starting may wait for.
const FETCHING: Fetching = Fetching::Within(Duration::from_secs(60));

/// An included file defines objects alone.
fn included_top<'a>(report: &'a Report, source: &Arc<Source>, document: &'a Document<'a>) -> Table<'a> {
    let mut top = Table::top(report, source, document);
    for key in ["name", "include", "gateway", "sidecar", "limits", "geoip", "telemetry"] {
        if let Some(place) = top.forbid(key) {
            report.error(&place, format!("`{key}` in an included file"), "move it to the file that includes this one");
        }
    }
    top
}

fn enforcer(top: &mut Table<'_>, report: &Report) -> Located<String> {
    if let Some(name) = top.text("name").filter(|name| named::check_name(name, report)) {
        return name;
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let place = top.place.clone();
    if host.is_none() && !top.has("name") {
        report.error(&place, "this host has no name", "add `name = \"edge-1\"`");
    }
    Located { value: host.unwrap_or_default(), place }
}

/// Every object that the files define.
struct Objects {
    lists: Named<Slot>,
    policies: Named<Arc<Policy>>,
    networks: Named<Written>,
}

impl Objects {
    /// Kind by kind over all files, so that the order of files and tables does not matter.
    fn read(
        tops: &mut [Table<'_>],
        fetcher: &Fetcher,
        databases: &Databases,
        report: &Report,
        sources: &mut Vec<ListSource>,
    ) -> Self {
        let lists = define("list", tops, report, |table, name| list::read(table, name, fetcher, report, sources));
        let known = policy::Known { lists: &lists, databases };
        let policies = define("policy", tops, report, |table, name| policy::read(table, name, known, report));
        let ports = define("port", tops, report, |table, name| port::read(table, name, report));
        let known = Known { policies: &policies, ports: &ports };
        let networks = define("network", tops, report, |table, name| network::read(table, name, known, report));
        // After an error it may be the one who names it that was left out.
        if report.errors() == 0 {
            lists.warn_of_unused("policy", report);
            policies.warn_of_unused("network", report);
            ports.warn_of_unused("network", report);
        }
        Self { lists, policies, networks }
    }

    fn networks_of(&self, enforcer: &Located<String>, report: &Report) -> Vec<Arc<Network>> {
        let own = self.networks.iter().filter(|written| written.acts_on(&enforcer.value));
        let own: Vec<_> = own.map(|written| written.network.clone()).collect();
        if own.is_empty() && report.errors() == 0 {
            let what = format!("no network acts on this enforcer, `{}`: nothing is judged", enforcer.value);
            report.warning(&enforcer.place, what, "add a [[network]], or name this enforcer in `enforcers`");
        }
        own
    }
}

/// The objects of one kind. One without a usable name is read for its mistakes, and left out.
fn define<T>(
    kind: &'static str,
    tops: &mut [Table<'_>],
    report: &Report,
    mut read: impl FnMut(Table<'_>, &str) -> Option<T>,
) -> Named<T> {
    let mut found = Named::new(kind);
    for mut table in tops.iter_mut().flat_map(|top| top.tables(kind)) {
        let (place, errors) = (table.place.clone(), report.errors());
        let name = name_of(&mut table, report);
        let object = read(table, name.as_ref().map_or("", |name| &name.value));
        if object.is_none() && report.errors() == errors {
            report.error(&place, format!("this {kind} cannot be read"), "compare it with the reference");
        }
        if let Some(name) = name {
            found.insert(name, object, report);
        }
    }
    found
}
