//! Telling the format from the beginning of a source.

use super::{Format, csv, hosts};
use crate::list::entry::parse_prefix;

/// The format of a source that begins so. What gives no sign of another is plain.
pub fn detect(beginning: &str) -> Format {
    let significant = beginning.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut lines = significant.filter(|line| !line.starts_with(['#', '!', ';']) || line.starts_with("##"));
    let Some(first) = lines.next() else { return Format::Plain };
    if first.starts_with('{') {
        return Format::Json;
    }
    if csv::header(first).is_some() {
        return Format::Csv;
    }
    if first.starts_with("[Adblock") {
        return Format::Adblock;
    }
    let mut votes = [0_usize; Format::ALL.len()];
    for line in std::iter::once(first).chain(lines).take(LINES) {
        if let Some(vote) = sign_of(line).and_then(|format| votes.get_mut(format as usize)) {
            *vote += 1;
        }
    }
    let most = Format::ALL.into_iter().zip(votes).rev().max_by_key(|(_, votes)| *votes);
    most.filter(|(_, votes)| *votes > 0).map_or(Format::Plain, |(format, _)| format)
}

/// The format that a line speaks for.
fn sign_of(line: &str) -> Option<Format> {
    if ["||", "@@", "##"].iter().any(|mark| line.starts_with(mark)) {
        return Some(Format::Adblock);
    }
    if ["address=/", "server=/", "local=/"].iter().any(|key| line.starts_with(key)) {
        return Some(Format::Dnsmasq);
    }
    let mut words = line.split_whitespace();
    let first = words.next()?;
    if first == "$TTL"
        || first == "$ORIGIN"
        || words.clone().take(3).any(|word| matches!(word, "CNAME" | "SOA" | "cname"))
    {
        return Some(Format::Rpz);
    }
    if hosts::is_address(first) && words.next().is_some_and(|word| !word.starts_with(['#', ';'])) {
        return Some(Format::Hosts);
    }
    let is_prefix = |text: &str| parse_prefix(text.trim()).is_ok_and(|prefix| prefix.is_some());
    let entry = super::before_comment(line, &['#', ';']);
    match entry.split_once(',') {
        Some((first, _)) => is_prefix(first).then_some(Format::Cidr),
        None if is_prefix(entry) => Some(Format::Cidr),
        None => Some(Format::Plain),
    }
}

/// Lines that are looked at.
const LINES: usize = 500;
