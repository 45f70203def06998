//! Rows with an end: `ip/maskbit,expiredate` or `domain,expiredate`, told by the header.
//!
//! An address without a mask is one address. The date is `YYYY-MM-DDTHH:MM:SSZ` in UTC; 0 or nothing is never.

use std::time::SystemTime;

use super::{Emit, Line};
use crate::list::entry::{Bad, Entry, What};

#[derive(Debug)]
pub(in crate::list) struct Table {
    subdomains: bool,
    column: Option<Column>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Prefix,
    Domain,
}

impl Table {
    pub(super) fn new(subdomains: bool) -> Self {
        Self { subdomains, column: None }
    }

    pub(super) fn line(&mut self, line: &str, emit: &mut Emit<'_>) -> Result<Line, Bad> {
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            return Ok(Line::Empty);
        }
        let Some(column) = self.column else {
            self.column = Some(header(text).ok_or(WANTED)?);
            return Ok(Line::Empty);
        };
        let (written, date) = text.split_once(',').unwrap_or((text, ""));
        let entry = Entry::parse(unquoted(written))?.with_expiry(expiry(unquoted(date))?);
        match (column, &entry.what) {
            (Column::Prefix, What::Name(..)) => Err(Bad::Form("an address or a prefix")),
            (Column::Domain, What::Prefix(_)) => Err(Bad::Form("a name")),
            _ => {
                emit(if self.subdomains { entry.widened() } else { entry });
                Ok(Line::Taken)
            }
        }
    }
}

/// What the first column holds, if this is a header.
pub(super) fn header(line: &str) -> Option<Column> {
    let (first, second) = line.trim().split_once(',')?;
    if !unquoted(second).eq_ignore_ascii_case("expiredate") {
        return None;
    }
    match unquoted(first).to_ascii_lowercase().as_str() {
        "ip/maskbit" | "ip/maskbits" => Some(Column::Prefix),
        "domain" => Some(Column::Domain),
        _ => None,
    }
}

fn expiry(text: &str) -> Result<Option<SystemTime>, Bad> {
    match text {
        "" | "0" => Ok(None),
        date => humantime::parse_rfc3339(date).map(Some).map_err(|_| Bad::Date),
    }
}

fn unquoted(field: &str) -> &str {
    let field = field.trim();
    field.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(field).trim()
}

const WANTED: Bad = Bad::Form("the header ip/maskbit,expiredate or domain,expiredate");
