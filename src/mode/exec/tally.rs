//! Whom the command spoke with: every record on its way to its file, each block said once, and a table at the end.
//!
//! Bounded: at most [`PARTNERS`] rows and as many notices, and [`ADDRESSES`] in a row; what does not fit is counted and
//! said.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;

use crate::telemetry::json::Lines;
use crate::telemetry::{Kind, Record, Writer};

/// What was seen.
#[derive(Debug, Default)]
pub struct Tally {
    records: Option<File>,
    notices: bool,
    partners: BTreeMap<Partner, Dealings>,
    /// The name for which DNS gave an address last.
    names: HashMap<IpAddr, String>,
    said: BTreeSet<String>,
    left_out: u64,
    lines: Lines,
    line: Vec<u8>,
}

/// Whom, and on which port. A name that was asked for and never connected to has no port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partner {
    pub name: Option<String>,
    /// Set where there is no name.
    pub address: Option<IpAddr>,
    pub protocol: std::borrow::Cow<'static, str>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dealings {
    /// At most [`ADDRESSES`].
    pub addresses: BTreeSet<IpAddr>,
    pub allowed: u64,
    pub blocked: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
}

impl Tally {
    pub fn new(records: Option<File>, notices: bool) -> Self {
        Self { records, notices, ..Self::default() }
    }

    /// Takes records until there are no more.
    pub fn take(mut self, writer: Writer) -> Self {
        writer.each(|record| self.record(record));
        self
    }

    pub fn partners(&self) -> impl Iterator<Item = (&Partner, &Dealings)> {
        self.partners.iter()
    }

    /// The names that DNS gave addresses for, connected to or not.
    pub fn resolved(&self) -> BTreeSet<&str> {
        self.names.values().map(String::as_str).collect()
    }

    fn record(&mut self, record: &Record) -> io::Result<()> {
        if let Some(file) = &mut self.records {
            self.line.clear();
            self.lines.write(record, &mut self.line);
            file.write_all(&self.line)?;
        }
        if self.notices && record.verdict == Some("block") {
            self.notice(record);
        }
        match record.kind {
            Kind::Dns => self.question(record),
            Kind::End => self.end(record),
            Kind::Ip | Kind::Domain => self.verdict(record),
        }
        Ok(())
    }

    fn question(&mut self, record: &Record) {
        let Some(name) = record.domain.as_ref().map(ToString::to_string) else { return };
        if record.verdict == Some("block") {
            let partner = Partner { name: Some(name), address: None, protocol: "dns".into(), port: None };
            if let Some(dealings) = self.dealings(partner) {
                dealings.blocked += 1;
            }
            return;
        }
        for address in record.dns.iter().flat_map(|dns| &dns.answers) {
            if self.names.len() < PARTNERS || self.names.contains_key(address) {
                self.names.insert(*address, name.clone());
            }
        }
    }

    fn verdict(&mut self, record: &Record) {
        if record.reason == Some("DOMAIN_INSPECT") {
            return;
        }
        let passes = record.verdict == Some("allow") || record.action == Some("monitor");
        let (partner, address) = (self.partner(record), record.destination);
        if let Some(dealings) = self.dealings(partner) {
            // A command that calls one name at every address there is shall not fill the memory.
            if dealings.addresses.len() < ADDRESSES {
                dealings.addresses.insert(address);
            }
            if passes { dealings.allowed += 1 } else { dealings.blocked += 1 }
        }
    }

    fn end(&mut self, record: &Record) {
        let partner = self.partner(record);
        if let Some(dealings) = self.dealings(partner) {
            dealings.bytes_out += record.bytes_out.unwrap_or(0);
            dealings.bytes_in += record.bytes_in.unwrap_or(0);
        }
    }

    fn partner(&self, record: &Record) -> Partner {
        let shown = record.domain.as_ref().map(ToString::to_string);
        let name = shown.or_else(|| self.names.get(&record.destination).cloned());
        let address = name.is_none().then_some(record.destination);
        Partner { name, address, protocol: record.protocol.clone(), port: record.destination_port }
    }

    fn dealings(&mut self, partner: Partner) -> Option<&mut Dealings> {
        if self.partners.len() >= PARTNERS && !self.partners.contains_key(&partner) {
            self.left_out += 1;
            return None;
        }
        Some(self.partners.entry(partner).or_default())
    }

    /// Each whom, where and why once: a program that tries again and again says nothing new.
    fn notice(&mut self, record: &Record) {
        let partner = self.partner(record);
        let mut line = match (record.kind, &partner.name) {
            (Kind::Dns, Some(name)) => format!("the name {name}"),
            (_, Some(name)) => format!("{} {name} ({})", record.protocol, end_of(record)),
            (_, None) => format!("{} {}", record.protocol, end_of(record)),
        };
        line += &format!(": {}", record.reason.unwrap_or("?"));
        if let Some(list) = &record.list {
            line += &format!(", list `{list}`");
        }
        if let Some(words) = record.reason.and_then(in_words) {
            line += &format!(" ({words})");
        }
        if self.said.len() < PARTNERS && self.said.insert(line.clone()) {
            let _ = writeln!(io::stderr(), "tidegate: blocked {line}");
        }
    }
}

/// What a reason means to who meets it for the first time.
fn in_words(reason: &str) -> Option<&'static str> {
    match reason {
        "DEFAULT" => Some("nothing allows it"),
        "BINDING" => Some("DNS did not give this address for the name"),
        "UNREADABLE" => Some("what it begins with cannot be read"),
        _ => None,
    }
}

fn end_of(record: &Record) -> String {
    match (record.destination, record.destination_port) {
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
        (address, Some(port)) => format!("{address}:{port}"),
        (address, None) => address.to_string(),
    }
}

impl fmt::Display for Tally {
    /// A table for people, the most talkative first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.partners.is_empty() && self.left_out == 0 {
            return writeln!(f, "The command spoke with nobody.");
        }
        let mut rows: Vec<[String; 6]> = vec![HEAD.map(str::to_owned)];
        let mut partners: Vec<_> = self.partners.iter().collect();
        partners.sort_by_key(|(_, dealings)| std::cmp::Reverse(dealings.bytes_in + dealings.bytes_out));
        rows.extend(partners.iter().map(|(partner, dealings)| row(partner, dealings)));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths = [0, 1, 2, 3, 4, 5].map(width);
        for row in &rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        if self.left_out > 0 {
            writeln!(f, "and {} more, for which there was no room", self.left_out)?;
        }
        Ok(())
    }
}

fn row(partner: &Partner, dealings: &Dealings) -> [String; 6] {
    let name = partner.name.clone().unwrap_or_else(|| "-".to_owned());
    let port = partner.port.map_or_else(|| partner.protocol.to_string(), |port| format!("{}/{port}", partner.protocol));
    let verdict = match (dealings.allowed, dealings.blocked) {
        (allowed, 0) => format!("allowed {allowed}"),
        (0, blocked) => format!("blocked {blocked}"),
        (allowed, blocked) => format!("allowed {allowed}, blocked {blocked}"),
    };
    let addresses: Vec<_> = dealings.addresses.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = dealings.addresses.len().saturating_sub(SHOWN);
    let or_more = if dealings.addresses.len() < ADDRESSES { "" } else { " or more" };
    let addresses = addresses.join(" ") + &if more > 0 { format!(" +{more}{or_more}") } else { String::new() };
    [name, port, octets(dealings.bytes_out), octets(dealings.bytes_in), verdict, addresses]
}

fn octets(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 100.0);
    format!("{value:.digits$} {}", UNITS.get(unit).unwrap_or(&""))
}

/// Rows, names and notices that are kept.
const PARTNERS: usize = 16_384;
/// Addresses that are kept of a row.
pub const ADDRESSES: usize = 64;
/// Addresses that are shown of it.
const SHOWN: usize = 3;
const HEAD: [&str; 6] = ["NAME", "PORT", "SENT", "RECEIVED", "FLOWS", "ADDRESSES"];

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::name::DomainName;
    use crate::telemetry::record::Dns;

    fn record(kind: Kind, protocol: &'static str, destination: &str) -> Record {
        let source = ([10, 254, 0, 1], 40000).into();
        Record::new(kind, SystemTime::UNIX_EPOCH, "e".into(), protocol, source, destination.parse().unwrap())
    }

    fn name(text: &str) -> Option<DomainName> {
        DomainName::parse(text.as_bytes()).ok()
    }

    fn told(records: &[Record]) -> Tally {
        let mut tally = Tally::default();
        records.iter().for_each(|record| tally.record(record).unwrap());
        tally
    }

    #[test]
    fn flows_are_told_by_the_name_that_dns_gave_where_they_show_none() {
        let mut question = record(Kind::Dns, "udp", "10.254.0.53:53");
        question.domain = name("git.example");
        question.dns = Some(Box::new(Dns { answers: vec!["192.0.2.7".parse().unwrap()], ..Dns::default() }));
        let mut allowed = record(Kind::Ip, "tcp", "192.0.2.7:22");
        allowed.verdict = Some("allow");
        let mut end = record(Kind::End, "tcp", "192.0.2.7:22");
        (end.bytes_out, end.bytes_in) = (Some(900), Some(1_500_000));
        let mut blocked = record(Kind::Domain, "tcp", "192.0.2.8:443");
        (blocked.domain, blocked.verdict) = (name("ads.example"), Some("block"));
        let tally = told(&[question, allowed, end, blocked.clone(), blocked]);
        assert_eq!(
            tally.to_string(),
            "NAME         PORT     SENT   RECEIVED  FLOWS      ADDRESSES\n\
             git.example  tcp/22   900 B  1.5 MB    allowed 1  192.0.2.7\n\
             ads.example  tcp/443  0 B    0 B       blocked 2  192.0.2.8\n"
        );
    }

    #[test]
    fn a_flow_that_is_held_for_its_name_is_no_verdict_yet() {
        let mut held = record(Kind::Ip, "tcp", "192.0.2.7:443");
        (held.verdict, held.reason) = (Some("allow"), Some("DOMAIN_INSPECT"));
        assert_eq!(told(&[held]).partners().count(), 0);
    }

    #[test]
    fn a_name_that_is_called_at_every_address_is_kept_with_a_few() {
        let mut tally = Tally::default();
        for n in 0..100_000_u32 {
            let mut one = record(Kind::Domain, "tcp", "192.0.2.7:443");
            (one.destination, one.domain, one.verdict) =
                (IpAddr::from(n.to_be_bytes()), name("a.example"), Some("block"));
            tally.record(&one).unwrap();
        }
        let [(_, dealings)] = tally.partners().collect::<Vec<_>>()[..] else { panic!("{tally}") };
        assert_eq!((dealings.addresses.len(), dealings.blocked), (ADDRESSES, 100_000));
        assert!(tally.to_string().ends_with("0.0.0.0 0.0.0.1 0.0.0.2 +61 or more\n"), "{tally}");
    }

    #[test]
    fn partners_past_the_limit_are_counted() {
        let records: Vec<Record> = (0..PARTNERS as u32 + 5)
            .map(|n| {
                let mut one = record(Kind::Ip, "tcp", "192.0.2.7:443");
                (one.destination, one.verdict) = (IpAddr::from(n.to_be_bytes()), Some("allow"));
                one
            })
            .collect();
        let tally = told(&records);
        assert_eq!(tally.partners().count(), PARTNERS);
        assert!(tally.to_string().ends_with("and 5 more, for which there was no room\n"));
    }
}
