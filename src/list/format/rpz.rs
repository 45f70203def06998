//! A response policy zone (draft-vixie-dnsop-dns-rpz), of which a list can say the triggers that are names or addresses.
//!
//! Every action that answers otherwise than the truth puts its owner on the list; `rpz-passthru.` takes it off. What is
//! triggered by who asks, or by the name or address of a name server, is reported and skipped.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Emit, Line};
use crate::list::entry::{Bad, Entry, Reach};

/// What the lines so far have set. Names here are in lower case.
#[derive(Debug, Default)]
pub(in crate::list) struct Zone {
    /// The zone's own name, without its last dot: the owner of its SOA, until then the first origin.
    name: Option<String>,
    /// What names without a last dot are below; empty: the root.
    origin: Option<String>,
    /// The owner of the last record, for a line that begins with a blank: below the zone, or with a last dot.
    owner: String,
    /// Parentheses that are open.
    depth: usize,
}

impl Zone {
    pub(super) fn is_open(&self) -> bool {
        self.depth > 0
    }

    pub(super) fn line(&mut self, line: &str, emit: &mut Emit<'_>) -> Result<Line, Bad> {
        let text = without_comment(line);
        let was_open = self.is_open();
        self.count_parentheses(text);
        let begins_with_blank = text.starts_with([' ', '\t']);
        let mut words = text.split_whitespace();
        let Some(first) = words.next() else { return Ok(Line::Empty) };
        if was_open {
            return Ok(Line::Empty);
        }
        if first.starts_with('$') {
            return self.directive(first, words.next());
        }
        if begins_with_blank {
            words = text.split_whitespace();
        } else {
            self.owner = self.owner(first);
        }
        let mut words = words.skip_while(|word| is_ttl_or_class(word));
        let kind = words.next().ok_or(WANTED)?.to_ascii_uppercase();
        match kind.as_str() {
            "SOA" => Ok(self.begin()),
            "NS" | "RRSIG" | "DNSKEY" | "NSEC" | "NSEC3" | "NSEC3PARAM" => Ok(Line::Empty),
            "CNAME" => self.trigger(Some(words.next().ok_or(WANTED)?), emit),
            "A" | "AAAA" | "TXT" | "MX" | "SRV" | "PTR" | "SVCB" | "HTTPS" | "CAA" => self.trigger(None, emit),
            _ => Err(WANTED),
        }
    }

    fn directive(&mut self, name: &str, value: Option<&str>) -> Result<Line, Bad> {
        match (name.to_ascii_uppercase().as_str(), value) {
            ("$ORIGIN", Some(origin)) => self.set_origin(origin),
            ("$TTL", Some(_)) => {}
            _ => return Err(Bad::Unsupported("only $ORIGIN and $TTL are read")),
        }
        Ok(Line::Empty)
    }

    fn set_origin(&mut self, written: &str) {
        let origin = absolute(written, self.origin.as_deref().unwrap_or_default());
        if self.name.is_none() && !origin.is_empty() {
            self.name = Some(origin.clone());
        }
        self.origin = Some(origin);
    }

    /// A zone that was written out by a server has an origin for each of its branches.
    fn owner(&self, written: &str) -> String {
        match (&self.origin, &self.name) {
            (Some(origin), Some(name)) if origin != name => absolute(written, origin) + ".",
            _ => written.to_ascii_lowercase(),
        }
    }

    /// The owner of the SOA is the zone.
    fn begin(&mut self) -> Line {
        let origin = self.origin.as_deref().unwrap_or_default();
        let name = absolute(&self.owner, origin);
        if !name.is_empty() {
            self.origin.get_or_insert_with(|| name.clone());
            self.name = Some(name);
        }
        Line::Empty
    }

    fn trigger(&self, target: Option<&str>, emit: &mut Emit<'_>) -> Result<Line, Bad> {
        let Some(owner) = self.within_zone()? else { return Ok(Line::Empty) };
        let entry = entry(owner)?;
        match target.map(str::to_ascii_lowercase).as_deref() {
            Some("rpz-tcp-only.") => return Err(Bad::Unsupported("rpz-tcp-only blocks nothing")),
            Some("rpz-passthru.") => emit(entry.as_exception()),
            _ => emit(entry),
        }
        Ok(Line::Taken)
    }

    /// The owner without the zone's own name; `None`: it is the zone itself.
    fn within_zone(&self) -> Result<Option<&str>, Bad> {
        if self.owner == "@" {
            return Ok(None);
        }
        let Some(absolute) = self.owner.strip_suffix('.') else { return Ok(Some(&self.owner)) };
        let name = self.name.as_deref().ok_or(Bad::Form("in a zone whose name is known ($ORIGIN or SOA)"))?;
        if absolute == name {
            return Ok(None);
        }
        let relative = absolute.strip_suffix(name).and_then(|rest| rest.strip_suffix('.'));
        relative.map(Some).ok_or(Bad::Form("in the zone"))
    }

    fn count_parentheses(&mut self, text: &str) {
        for octet in unquoted(text).map(|(_, octet)| octet) {
            match octet {
                b'(' => self.depth += 1,
                b')' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }
}

fn entry(owner: &str) -> Result<Entry<'_>, Bad> {
    if let Some(address) = owner.strip_suffix(".rpz-ip") {
        return prefix(address).map(Entry::prefix).ok_or(Bad::Prefix);
    }
    if [".rpz-client-ip", ".rpz-nsdname", ".rpz-nsip"].iter().any(|trigger| owner.ends_with(trigger)) {
        return Err(Bad::Unsupported("only names and rpz-ip are read as triggers"));
    }
    match owner.strip_prefix("*.") {
        Some(below) => Entry::name(Reach::Below, below),
        None => Entry::name(Reach::Exact, owner),
    }
}

/// `24.0.2.0.192` is 192.0.2.0/24, `48.zz.1.db8.2001` is 2001:db8:1::/48.
fn prefix(reversed: &str) -> Option<IpNet> {
    let (length, reversed) = reversed.split_once('.')?;
    let length: u8 = length.parse().ok()?;
    let parts: Vec<&str> = reversed.rsplit('.').collect();
    if parts.len() == 4 && !parts.contains(&"zz") {
        let address: Ipv4Addr = parts.join(".").parse().ok()?;
        return IpNet::new(address.into(), length).ok();
    }
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    // `zz` is the run of zeros, which has a colon of its own at either end.
    let mut text = parts.join(":").replace("zz", "");
    if text.is_empty() || text.starts_with(':') {
        text.insert(0, ':');
    }
    if text.ends_with(':') {
        text.push(':');
    }
    let address: Ipv6Addr = text.parse().ok()?;
    IpNet::new(address.into(), length).ok()
}

fn is_ttl_or_class(word: &str) -> bool {
    word.eq_ignore_ascii_case("IN") || word.bytes().all(|b| b.is_ascii_digit()) || is_ttl_with_unit(word)
}

/// `1h`, `1w2d`.
fn is_ttl_with_unit(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
        && word
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b.to_ascii_lowercase(), b's' | b'm' | b'h' | b'd' | b'w'))
}

/// What stands before `;`, unless that is quoted.
fn without_comment(line: &str) -> &str {
    let end = unquoted(line).find(|(_, octet)| *octet == b';');
    end.and_then(|(end, _)| line.get(..end)).unwrap_or(line)
}

/// The octets outside strings, but for those behind a backslash, which stand for themselves (RFC 1035, section 5.1).
fn unquoted(line: &str) -> impl Iterator<Item = (usize, u8)> {
    let (mut quoted, mut escaped) = (false, false);
    line.bytes().enumerate().filter(move |(_, octet)| {
        let plain = !escaped;
        escaped = plain && *octet == b'\\';
        quoted ^= plain && *octet == b'"';
        plain && !quoted
    })
}

/// Without a last dot.
fn absolute(written: &str, origin: &str) -> String {
    let written = written.to_ascii_lowercase();
    match written.strip_suffix('.') {
        Some(absolute) => absolute.to_owned(),
        None if matches!(&*written, "@" | "") => origin.to_owned(),
        None if origin.is_empty() => written,
        None => written + "." + origin,
    }
}

const WANTED: Bad = Bad::Form("an owner and a record");
