//! Adblock filters, of which a list of names can say the ones about whole hosts.
//!
//! `important` is taken as an ordinary entry. A filter with any other option holds only under circumstances that are
//! not known here (who asks, for what kind of thing), so it is reported and skipped.

use super::{Emit, Line, hosts};
use crate::list::entry::{Bad, Entry, Reach, Sense, parse_prefix};

pub(super) fn line(line: &str, emit: &mut Emit<'_>) -> Result<Line, Bad> {
    let text = line.trim();
    let is_header = text.starts_with('[') && text.ends_with(']');
    if text.is_empty() || is_header || text.starts_with('!') {
        return Ok(Line::Empty);
    }
    if COSMETIC.iter().any(|mark| text.contains(mark)) {
        return Ok(Line::Ignored);
    }
    if text.starts_with('#') {
        return Ok(Line::Empty);
    }
    if text.split_whitespace().next().is_some_and(hosts::is_address) && text.contains(char::is_whitespace) {
        return hosts::line(text, emit);
    }
    emit(filter(text)?);
    Ok(Line::Taken)
}

fn filter(text: &str) -> Result<Entry<'_>, Bad> {
    let (sense, rest) = match text.strip_prefix("@@") {
        Some(rest) => (Sense::Exception, rest),
        None => (Sense::Holds, text),
    };
    if rest.starts_with('/') {
        return Err(Bad::Unsupported("a regular expression or a path is about more than a host"));
    }
    let (pattern, options) = rest.split_once('$').unwrap_or((rest, ""));
    if options.split(',').any(|option| !TAKEN_OPTIONS.contains(&option.trim())) {
        return Err(Bad::Unsupported("the filter depends on an option"));
    }
    let entry = match (pattern.strip_prefix("||"), pattern.strip_prefix('|')) {
        (Some(host), _) => reach(Reach::Tree, closed(host)?),
        (_, Some(host)) => reach(Reach::Exact, closed(host)?),
        _ => reach(Reach::Exact, pattern.strip_suffix('^').unwrap_or(pattern)),
    }?;
    Ok(if sense == Sense::Exception { entry.as_exception() } else { entry })
}

/// The host of `host^`: without that end the filter is about every name that begins so.
fn closed(text: &str) -> Result<&str, Bad> {
    let host = text.strip_suffix("^|").or_else(|| text.strip_suffix('^')).ok_or(Bad::Form("a host and then ^"))?;
    if host.contains(['/', '^']) {
        return Err(Bad::Unsupported("a path is about more than a host"));
    }
    Ok(host)
}

fn reach(reach: Reach, host: &str) -> Result<Entry<'_>, Bad> {
    match (parse_prefix(host)?, host.strip_prefix("*.")) {
        (Some(prefix), _) => Ok(Entry::prefix(prefix)),
        (None, Some(below)) => Entry::name(Reach::Below, below),
        (None, None) => Entry::name(reach, host),
    }
}

/// Filters for the look of a page.
const COSMETIC: [&str; 7] = ["##", "#@#", "#?#", "#@?#", "#$#", "#@$#", "#%#"];
/// Options that leave the filter about the whole host.
const TAKEN_OPTIONS: [&str; 5] = ["", "important", "all", "document", "doc"];
