//! `tidegate list find`: who holds a name or an address, and by which line.

use std::fmt::Write;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use clap::Args;

use super::verdict;
use crate::cli::ConfigArg;
use crate::config::{GeoSource, ListSource, Loaded};
use crate::list::entry::{Entry, Reach, Sense, What};
use crate::list::geoip::Code;
use crate::list::{List, reader};
use crate::name::DomainName;
use crate::policy::rules::{GeoRule, Policy};
use crate::sys::progress;

#[derive(Debug, Args)]
pub(super) struct FindArgs {
    /// A name or an address
    #[arg(value_name = "NAME-OR-ADDRESS", value_parser = wanted)]
    pub(super) wanted: Wanted,
    #[command(flatten)]
    pub(super) config: ConfigArg,
}

#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Name(DomainName),
    Address(IpAddr),
}

fn wanted(text: &str) -> Result<Wanted, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(Wanted::Address(address.to_canonical())),
        Err(_) => DomainName::parse(text.as_bytes()).map(Wanted::Name).map_err(|why| why.to_string()),
    }
}

pub(super) fn account(wanted: &Wanted, loaded: &Loaded, now: SystemTime) -> String {
    let mut out = String::new();
    let holders: Vec<_> = loaded.lists.iter().filter(|list| wanted.is_held(list, now)).collect();
    for list in &holders {
        // Writing to a string does not fail.
        _ = writeln!(out, "list {}, {}", list.name, verdict(list));
        for source in loaded.list_sources.iter().filter(|source| source.list == list.name) {
            for line in lines(wanted, source, now) {
                _ = writeln!(out, "  {line}");
            }
        }
    }
    if holders.is_empty() {
        _ = writeln!(out, "no list holds it");
    }
    let codes = wanted.codes(loaded);
    for (code, source) in &codes {
        let kind = source.database.kind().word();
        let code = code.map_or_else(|| format!("no {kind}"), |code| code.to_string());
        _ = writeln!(out, "{code}, by {}", source.path.display());
    }
    for policy in &loaded.policies {
        let held = policy.lists.iter().any(|own| holders.iter().any(|list| list.name == own.name));
        let named = |rule: &GeoRule| codes.iter().any(|(code, _)| code.is_some_and(|own| rule.codes.contains(&own)));
        if held || policy.geo_rules().any(named) {
            _ = writeln!(out, "policy {}: {}", policy.name, wanted.verdict(policy, now));
        }
    }
    out
}

/// Where the source says so: `FILE:LINE: ENTRY`.
fn lines(wanted: &Wanted, source: &ListSource, now: SystemTime) -> Vec<String> {
    let mut found = Vec::new();
    for (text, place) in &source.entries {
        let entry = Entry::parse(text).map(|entry| if source.options.subdomains { entry.widened() } else { entry });
        if let Ok(entry) = entry.as_ref().map(|entry| wanted.line(entry, now)) {
            found.extend(entry.map(|line| format!("{place}: {line}")));
        }
    }
    source.paths().for_each(|path| lines_of(path, wanted, source, now, &mut found));
    found
}

fn lines_of(path: &Path, wanted: &Wanted, source: &ListSource, now: SystemTime, found: &mut Vec<String>) {
    let most = found.len() + MAX_LINES;
    let read = File::open(path).map_err(reader::Refused::Io).and_then(|file| {
        reader::read(progress::of(file, path), &source.options, &mut |number, entry| {
            if found.len() < most {
                found.extend(wanted.line(&entry, now).map(|line| format!("{}:{number}: {line}", path.display())));
            }
        })
    });
    if let Err(why) = read {
        found.push(format!("{}: {why}", path.display()));
    }
}

impl Wanted {
    fn is_held(&self, list: &List, now: SystemTime) -> bool {
        match self {
            Self::Name(name) => list.holds_name(name, now),
            Self::Address(address) => list.holds_address(*address, now),
        }
    }

    /// What each database tells of an address.
    fn codes<'a>(&self, loaded: &'a Loaded) -> Vec<(Option<Code>, &'a GeoSource)> {
        let Self::Address(address) = self else { return Vec::new() };
        loaded.geoip.iter().map(|source| (source.database.code_of(*address), source)).collect()
    }

    fn verdict(&self, policy: &Policy, now: SystemTime) -> String {
        let (verdict, reason, list) = match self {
            Self::Name(name) => {
                let judged = policy.judge_name(name, now);
                (judged.verdict.as_str(), judged.reason, judged.list)
            }
            Self::Address(address) => {
                let judged = policy.judge_ip(*address, now);
                (judged.verdict.as_str(), judged.reason, judged.list)
            }
        };
        let list = list.map_or(String::new(), |list| format!(" by {list}"));
        format!("{verdict} ({reason}){list}")
    }

    /// The entry, if it is about what is wanted.
    fn line(&self, entry: &Entry<'_>, now: SystemTime) -> Option<String> {
        let is_about = match (self, &entry.what) {
            (Self::Name(name), What::Name(reach, own)) => reaches(*reach, own, name.as_str()),
            (Self::Address(address), What::Prefix(prefix)) => prefix.contains(address),
            _ => false,
        };
        let end = match entry.expires {
            Some(end) if end <= now => format!(" (ended {})", humantime::format_rfc3339_seconds(end)),
            Some(end) => format!(" (until {})", humantime::format_rfc3339_seconds(end)),
            None => String::new(),
        };
        let excepted = if entry.sense == Sense::Exception { " (an exception)" } else { "" };
        is_about.then(|| format!("{entry}{end}{excepted}"))
    }
}

fn reaches(reach: Reach, own: &str, name: &str) -> bool {
    let below = name.strip_suffix(own).is_some_and(|rest| rest.ends_with('.'));
    match reach {
        Reach::Exact => name == own,
        Reach::Below => below,
        Reach::Tree => below || name == own,
    }
}

/// Lines of one file that are shown.
const MAX_LINES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_country_of_an_address_is_told_with_the_policies_that_name_it() {
        use crate::list::geoip::mmdb::{Mmdb, Record};
        let folder = tempfile::tempdir().unwrap();
        let network = ("198.51.100.0/24".parse().unwrap(), Record::Country("KP".into()));
        std::fs::write(folder.path().join("c.mmdb"), Mmdb::new("Test", [network]).octets()).unwrap();
        let policy = |name: &str, countries: &str| {
            format!("[[policy]]\nname = \"{name}\"\ndefault = \"block\"\ncountries = {{ {countries} }}\n")
        };
        let (own, other) = (policy("own", "allow = [\"KP\"]"), policy("other", "block = [\"DE\"]"));
        let path = folder.path().join("tidegate.toml");
        std::fs::write(&path, format!("name = \"e\"\ngeoip = {{ country = \"c.mmdb\" }}\n{own}{other}")).unwrap();
        let loaded = crate::config::load(&path).unwrap();
        let shown = |text: &str| {
            let account = account(&wanted(text).unwrap(), &loaded, SystemTime::UNIX_EPOCH);
            account.replace(&format!("{}/", folder.path().display()), "")
        };
        let own = "no list holds it\ncountry:KP, by c.mmdb\npolicy own: allow (COUNTRY) by country:KP\n";
        assert_eq!(shown("198.51.100.7"), own);
        assert_eq!(shown("::ffff:198.51.100.7"), own);
        assert_eq!(shown("2001:db8::1"), "no list holds it\nno country, by c.mmdb\n");
        assert_eq!(shown("kp.example"), "no list holds it\n");
    }

    #[test]
    fn what_holds_a_name_or_an_address_is_told_by_file_and_line_with_the_policies_it_touches() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        write("feed.txt", "# head\nother.example\n||evil.example^\n@@||good.evil.example^\n||198.51.100.0^\n");
        let config = r#"
            name = "e"
            [[list]]
            name = "feed"
            verdict = "block"
            file = "feed.txt"
            [[list]]
            name = "own"
            verdict = "allow"
            entries = ["fine.evil.example", "198.51.100.0/24"]
            [[policy]]
            name = "both"
            default = "block"
            lists = ["feed", "own"]
            [[policy]]
            name = "strict"
            default = "block"
            lists = ["feed"]
            [[network]]
            name = "n"
            ips = [{ ip = "10.0.0.0", maskbits = 8 }]
            outbound = { policy = "both" }
        "#;
        let path = write("tidegate.toml", config);
        let loaded = crate::config::load(&path).unwrap();
        let shown = |text: &str| {
            let account = account(&wanted(text).unwrap(), &loaded, SystemTime::UNIX_EPOCH);
            account.replace(&format!("{}/", folder.path().display()), "")
        };
        assert_eq!(
            shown("WWW.evil.example"),
            "list feed, block\n  feed.txt:3: .evil.example\npolicy both: block (BLOCK_LIST) by feed\n\
             policy strict: block (BLOCK_LIST) by feed\n"
        );
        assert_eq!(
            shown("fine.evil.example"),
            "list feed, block\n  feed.txt:3: .evil.example\nlist own, allow\n  tidegate.toml:10: fine.evil.example\n\
             policy both: allow (ALLOW_LIST) by own\npolicy strict: block (BLOCK_LIST) by feed\n"
        );
        assert_eq!(
            shown("198.51.100.0"),
            "list feed, block\n  feed.txt:5: 198.51.100.0/32\nlist own, allow\n  tidegate.toml:10: 198.51.100.0/24\n\
             policy both: allow (ALLOW_LIST) by own\npolicy strict: block (BLOCK_LIST) by feed\n"
        );
        assert_eq!(shown("good.evil.example"), "no list holds it\n");
        assert!(wanted("no name").is_err());
    }
}
