//! `[geoip]`, and the rules of a policy that ask its databases.
//!
//! Fails closed: a database that cannot be read, a code that is none, and a rule that could block nothing are errors.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::document::beside;
use super::mistake::{Place, Report};
use super::table::Table;
use super::value::Value;
use crate::list::file::Stamp;
use crate::list::geoip::{Code, Country, Database, Kind};
use crate::policy::IpVerdict;
use crate::policy::rules::GeoRule;
use crate::sys::geoip;

/// A database that is in use.
#[derive(Clone, Debug)]
pub struct GeoSource {
    pub path: PathBuf,
    /// Which state of the file it is.
    pub stamp: Stamp,
    pub database: Arc<Database>,
}

/// The databases of a configuration.
#[derive(Debug, Default)]
pub(super) struct Databases {
    country: Slot,
    asn: Slot,
    /// The rules so far: those of the same codes share their addresses.
    made: RefCell<Vec<GeoRule>>,
}

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Unnamed,
    /// It has mistakes, which are reported.
    Unusable,
    Ready(GeoSource),
}

pub(super) fn read(mut table: Table<'_>, report: &Report) -> Databases {
    let mut slot = |key, kind| match table.take(key) {
        None => Slot::Unnamed,
        Some(value) => open(&value, kind, report).map_or(Slot::Unusable, Slot::Ready),
    };
    Databases { country: slot("country", Kind::Country), asn: slot("asn", Kind::Asn), made: RefCell::default() }
}

fn open(value: &Value<'_>, kind: Kind, report: &Report) -> Option<GeoSource> {
    let written = value.text()?;
    let path = beside(&written.place, &written.value);
    match geoip::open(&path, kind) {
        Ok((database, stamp)) => Some(GeoSource { path, stamp, database: Arc::new(database) }),
        Err(why) => {
            let what = format!("the {} database {} cannot be used: {why}", kind.word(), path.display());
            report.error(&written.place, what, "name an MMDB file, such as GeoLite2's, or leave the key out");
            None
        }
    }
}

impl Databases {
    pub(super) fn sources(&self) -> Vec<GeoSource> {
        let ready = |slot: &Slot| match slot {
            Slot::Ready(source) => Some(source.clone()),
            _ => None,
        };
        [&self.country, &self.asn].into_iter().filter_map(ready).collect()
    }

    /// `{ allow = [..] }` or `{ block = [..] }` under this key of a policy.
    pub(super) fn rule(&self, policy: &mut Table<'_>, kind: Kind, report: &Report) -> Option<GeoRule> {
        let (key, file, slot) = match kind {
            Kind::Country => ("countries", "country", &self.country),
            Kind::Asn => ("asns", "asn", &self.asn),
        };
        let mut table = policy.table(key)?;
        let place = table.place.clone();
        let keys = [("allow", IpVerdict::Allow), ("block", IpVerdict::Block)];
        let written: Vec<_> = keys.into_iter().filter_map(|(key, verdict)| Some((table.take(key)?, verdict))).collect();
        let [(codes, verdict)] = &written[..] else {
            let what = format!("`{key}` has {} of `allow` and `block`", written.len());
            return error(report, &place, what, "write exactly one");
        };
        let source = match slot {
            Slot::Ready(source) => Some(source),
            Slot::Unusable => None,
            Slot::Unnamed => {
                let what = format!("`{key}` without a database");
                error(report, &place, what, &format!("add `{file} = \"..\"` to [geoip], and the file to this host"))
            }
        };
        let codes = codes_of(codes, kind, source, report);
        let made = &mut *self.made.borrow_mut();
        let rule = match made.iter().find(|rule| rule.codes == codes) {
            Some(same) => GeoRule { verdict: *verdict, ..same.clone() },
            None => GeoRule::new(*verdict, codes, source?.database.clone()),
        };
        made.push(rule.clone());
        Some(rule)
    }
}

fn codes_of(value: &Value<'_>, kind: Kind, source: Option<&GeoSource>, report: &Report) -> BTreeSet<Code> {
    let mut codes = BTreeSet::new();
    for item in value.clone().items().unwrap_or_default() {
        let code = match kind {
            Kind::Country => country(&item, report).map(Code::Country),
            Kind::Asn => item.number(1..=u32::MAX.into()).and_then(|number| u32::try_from(number).ok()).map(Code::Asn),
        };
        let Some(code) = code else { continue };
        if !codes.insert(code) {
            report.warning(&item.place, format!("`{code}` is named twice"), "name it once");
        } else if let Some(source) = source.filter(|source| !source.database.has(code)) {
            let what = format!("no address is `{code}` in {}", source.path.display());
            report.warning(&item.place, what, "it matches nothing: is it the code that is meant?");
        }
    }
    codes
}

fn country(item: &Value<'_>, report: &Report) -> Option<Country> {
    let written = item.text()?;
    let assigned = |text: &str| Country::of(text).filter(|country| country.is_assigned());
    if let Some(country) = assigned(&written.value) {
        return Some(country);
    }
    let upper = written.value.to_ascii_uppercase();
    let meant = assigned(if upper == "UK" { "GB" } else { &upper });
    let mend = match meant {
        Some(country) => format!("write \"{country}\""),
        None => "write two letters of ISO 3166, such as \"KP\"".to_owned(),
    };
    error(report, &item.place, format!("`{}` is no country", written.value), &mend)
}

/// A rule that allows is good for what would be blocked without it.
pub(super) fn check(
    (asns, countries): (Option<&GeoRule>, Option<&GeoRule>),
    default: IpVerdict,
    place: &Place,
    report: &Report,
) {
    let allows = |rule: Option<&GeoRule>| rule.is_some_and(|rule| rule.verdict == IpVerdict::Allow);
    let blocks = |rule: Option<&GeoRule>| rule.is_some_and(|rule| rule.verdict == IpVerdict::Block);
    for (key, useless) in [("countries", allows(countries)), ("asns", allows(asns) && !blocks(countries))] {
        if useless && default == IpVerdict::Allow {
            let what = format!("`{key}` allows some where the default allows all: it blocks nothing");
            report.error(place, what, "write `default = \"block\"`, or `block` instead of `allow`");
        }
    }
}

fn error<T>(report: &Report, place: &Place, what: String, mend: &str) -> Option<T> {
    report.error(place, what, mend);
    None
}
