//! `[[policy]]`: lists, thresholds, ASNs, countries, fingerprints and a default.

use std::collections::HashMap;
use std::sync::Arc;

use super::geoip::{self, Databases};
use super::list::Slot;
use super::mistake::Report;
use super::named::Named;
use super::table::Table;
use super::value::Located;
use crate::list::geoip::Kind;
use crate::list::{List, ListVerdict};
use crate::name::Pattern;
use crate::policy::IpVerdict;
use crate::policy::rules::{FingerprintDemand, FingerprintRule, Policy};
use crate::wire::tls::is_grease;

/// What a policy may name.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) lists: &'a Named<Slot>,
    pub(super) databases: &'a Databases,
}

pub(super) fn read(mut table: Table<'_>, name: &str, known: Known<'_>, report: &Report) -> Option<Arc<Policy>> {
    let words = &[("allow", IpVerdict::Allow), ("block", IpVerdict::Block)];
    let default = table.demand("default", "\"block\"").and_then(|value| value.word(words));
    let lists = lists_of(&mut table, known.lists, report);
    let thresholds = thresholds(&mut table, &lists, report);
    let fingerprints = table.tables("fingerprints").into_iter().filter_map(|rule| fingerprint(rule, report)).collect();
    let asns = known.databases.rule(&mut table, Kind::Asn, report);
    let countries = known.databases.rule(&mut table, Kind::Country, report);
    geoip::check((asns.as_ref(), countries.as_ref()), default?, &table.place, report);
    let policy = Policy { name: name.into(), default: default?, lists, thresholds, asns, countries, fingerprints };
    warn_of(&policy, table, report);
    Some(Arc::new(policy))
}

fn warn_of(policy: &Policy, table: Table<'_>, report: &Report) {
    let blocks = policy.lists.iter().any(|list| list.verdict != ListVerdict::Allow)
        || policy.geo_rules().any(|rule| rule.verdict == IpVerdict::Block)
        || !policy.fingerprints.is_empty();
    // What was written with mistakes is meant to block. A rule that allows has a warning of its own.
    let written = ["asns", "countries"].into_iter().any(|key| table.has(key));
    let meant = written || (table.has("lists") && report.errors() > 0);
    if policy.default == IpVerdict::Allow && !blocks && !meant {
        let what = format!("the policy `{}` blocks nothing", policy.name);
        report.warning(&table.place, what, "add a list, or `default = \"block\"`");
    }
    let required = policy.fingerprints.iter().filter(|rule| rule.demand == FingerprintDemand::Require);
    let mut seen: Vec<&FingerprintRule> = Vec::new();
    for rule in required {
        if let Some(name) = seen.iter().find_map(|other| shared_name(other, rule)) {
            let what = format!("two fingerprints are required of {name}: no flow can have both");
            report.warning(&table.place, what, "leave one out");
        }
        seen.push(rule);
    }
}

fn shared_name(a: &FingerprintRule, b: &FingerprintRule) -> Option<String> {
    if a.value == b.value {
        return None;
    }
    if a.domains.is_empty() && b.domains.is_empty() {
        return Some("every name".to_owned());
    }
    a.domains.iter().find(|name| b.domains.contains(name)).map(|name| format!("`{name}`"))
}

fn lists_of(table: &mut Table<'_>, lists: &Named<Slot>, report: &Report) -> Vec<Arc<List>> {
    let mut own: Vec<Arc<List>> = Vec::new();
    for name in table.array("lists").iter().filter_map(|item| item.text()) {
        let Some(Slot::Ready(list)) = lists.find(&name, report) else { continue };
        if own.iter().any(|other| other.name == list.name) {
            report.warning(&name.place, format!("`{}` is named twice", name.value), "name it once");
            continue;
        }
        own.push(list.clone());
    }
    own
}

fn thresholds(table: &mut Table<'_>, lists: &[Arc<List>], report: &Report) -> HashMap<Arc<str>, u8> {
    let mut own = HashMap::new();
    let place = table.place.clone();
    if let Some(mut thresholds) = table.table("thresholds") {
        for (category, score) in thresholds.free() {
            let score = score.number(1..=100).and_then(|score| u8::try_from(score).ok());
            own.extend(score.map(|score| (Arc::from(category.value.as_str()), score)));
            if !categories(lists).any(|known| **known == *category.value) {
                let what = format!("no list of this policy has the category `{}`", category.value);
                report.warning(&category.place, what, "leave it out, or name a threat list of that category");
            }
        }
    }
    for category in categories(lists).filter(|category| !own.contains_key(&***category)) {
        let what = format!("threats of the category `{category}` block nothing in this policy");
        report.warning(&place, what, format!("add `thresholds = {{ {category} = 80 }}`"));
    }
    own
}

fn categories(lists: &[Arc<List>]) -> impl Iterator<Item = &Arc<str>> {
    lists.iter().filter_map(|list| match &list.verdict {
        ListVerdict::Threat { category, .. } => Some(category),
        _ => None,
    })
}

fn fingerprint(mut table: Table<'_>, report: &Report) -> Option<FingerprintRule> {
    let domains = table.array("domains");
    let domains = domains.iter().filter_map(|item| pattern(&item.text()?, report)).collect();
    let written = ["require", "alert", "block"].iter().filter(|key| table.has(key)).count();
    if written != 1 {
        let what = format!("a fingerprint rule with {written} of `require`, `alert` and `block`");
        report.error(&table.place, what, "write exactly one");
    }
    let demands = [
        (table.text("require"), FingerprintDemand::Require),
        (table.text("alert"), FingerprintDemand::Alert),
        (table.text("block"), FingerprintDemand::Block),
    ];
    let (value, demand) = demands.into_iter().find_map(|(value, demand)| Some((value?, demand)))?;
    let Some(fingerprint) = fingerprint_of(&value.value) else {
        let what = format!("`{}` is no fingerprint", value.value);
        let mend = "write a JA3 hash (32 hexadecimal digits), a JA3 string (771,4865-4866,0-11,29-23,0) or a JA4 \
                    (t13d1516h2_8daaf6152771_b186095e22b6)";
        report.error(&value.place, what, mend);
        return None;
    };
    Some(FingerprintRule { domains, demand, value: fingerprint })
}

fn pattern(name: &Located<String>, report: &Report) -> Option<Pattern> {
    match Pattern::parse(&name.value) {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            let what = format!("`{}` is not a host name: {why}", name.value);
            report.error(&name.place, what, "write name.example, *.name.example or .name.example");
            None
        }
    }
}

/// A JA3 hash, a JA3 string or a JA4 as a hello gives it, however it is written: a rule is compared octet by octet, and one
/// that no hello can have would block nothing.
pub fn fingerprint_of(text: &str) -> Option<String> {
    let small = text.to_ascii_lowercase();
    (is_hex(&small, 32) || is_ja4(&small)).then_some(small).or_else(|| ja3_string(text))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Version, ciphers, extensions, groups and point formats, each decimal numbers joined by `-`. What is GREASE in a hello is
/// left out of its JA3, and here.
fn ja3_string(text: &str) -> Option<String> {
    let fields: Vec<&str> = text.split(',').collect();
    let [version, ciphers, extensions, groups, formats] = fields[..] else { return None };
    let version: u16 = version.parse().ok()?;
    let lists = [(ciphers, u16::MAX), (extensions, u16::MAX), (groups, u16::MAX), (formats, u8::MAX.into())];
    let lists: Option<Vec<String>> = lists.into_iter().map(|(list, most)| ja3_list(list, most)).collect();
    Some(format!("{version},{}", lists?.join(",")))
}

fn ja3_list(text: &str, most: u16) -> Option<String> {
    let numbers = text.split('-').filter(|_| !text.is_empty()).map(|number| number.parse::<u16>().ok());
    let numbers: Vec<u16> = numbers.collect::<Option<_>>()?;
    let seen = numbers.iter().filter(|number| !is_grease(**number)).map(u16::to_string);
    numbers.iter().all(|number| *number <= most).then(|| seen.collect::<Vec<_>>().join("-"))
}

/// `t13d1516h2_8daaf6152771_b186095e22b6`: transport, version, SNI, two counts, ALPN; two hashes.
fn is_ja4(text: &str) -> bool {
    let parts: Vec<&str> = text.split('_').collect();
    let [start, ciphers, extensions] = parts[..] else { return false };
    let Some(&[transport, v1, v2, sni, c1, c2, e1, e2, a1, a2]) = start.as_bytes().first_chunk::<10>() else {
        return false;
    };
    start.len() == 10
        // Others have DTLS for a transport, which nobody peeks at.
        && matches!(transport, b't' | b'q')
        && matches!(&[v1, v2], b"13" | b"12" | b"11" | b"10" | b"s3" | b"s2" | b"00")
        && matches!(sni, b'd' | b'i')
        && [c1, c2, e1, e2].iter().all(u8::is_ascii_digit)
        && [a1, a2].iter().all(u8::is_ascii_alphanumeric)
        && is_hex(ciphers, 12)
        && is_hex(extensions, 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_a_hello_gives_it_however_it_is_written() {
        let hash = "3fed133de60c35724739b913924b6c24";
        let ja4 = "t13d1516h2_8daaf6152771_b186095e22b6";
        let string = "771,4865-4866-4867,0-11-10,29-23,0";
        for (written, read) in [
            (hash, hash),
            ("3FED133DE60C35724739B913924B6C24", hash),
            (string, string),
            ("0771,+4865-04866-4867,00-11-10,29-23,+0", string),
            ("771,2570-4865-4866-4867,0-11-10-64250,6682-29-23,0", string),
            ("771,,,,", "771,,,,"),
            ("771,2570,,,", "771,,,,"),
            (ja4, ja4),
            ("T13D1516H2_8DAAF6152771_B186095E22B6", ja4),
            ("q13i0312h3_55b375c5d22e_06cda9e17597", "q13i0312h3_55b375c5d22e_06cda9e17597"),
            ("ts3i000000_000000000000_000000000000", "ts3i000000_000000000000_000000000000"),
        ] {
            assert_eq!(fingerprint_of(written).as_deref(), Some(read), "{written}");
        }
    }

    #[test]
    fn what_no_hello_can_have_is_no_fingerprint() {
        for bad in [
            "",
            "3fed133de60c35724739b913924b6c2",
            "3fed133de60c35724739b913924b6c2g",
            " 3fed133de60c35724739b913924b6c24",
            "771,4865,0,29",
            ",4865,0,29,0",
            "771, 4865,0,29,0",
            "771,70000,0,29,0",
            "771,4865--4866,0,29,0",
            "771,4865,0,29,256",
            "t13d1516h2_8daaf6152771",
            "x13d1516h2_8daaf6152771_b186095e22b6",
            "d13d1516h2_8daaf6152771_b186095e22b6",
            "t14d1516h2_8daaf6152771_b186095e22b6",
            "td2d1516h2_8daaf6152771_b186095e22b6",
            "t13d1516h2é_8daaf6152771_b186095e22b6",
        ] {
            assert_eq!(fingerprint_of(bad), None, "{bad}");
        }
    }
}
