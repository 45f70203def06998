//! The files of a configuration: the one that was named, and those that it includes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::DeTable;

use super::documents::{self, State};
use super::mistake::{Place, Report, Source};
use super::table::Table;
use super::value::Located;
use crate::list::reader::BYTE_ORDER_MARK;

/// What a file holds, each key and value with its span.
pub(super) type Document<'s> = Spanned<DeTable<'s>>;

/// The largest configuration file that is read, in octets.
const MAX_FILE: u64 = 64 << 20;

/// The text of a file; what hinders reading it is reported at `named`, or at its own start.
pub(super) fn open(path: &Path, named: Option<&Place>, report: &Report) -> Option<Arc<Source>> {
    let own = Place::start_of(&Source::whole(path.to_owned(), String::new()));
    let place = named.unwrap_or(&own);
    let mend = if named.is_some() { "name a file of UTF-8 text" } else { "name a file of UTF-8 text: --config FILE" };
    match read_text(path) {
        Ok((text, state)) => Some(Source::file(path.to_owned(), text, state)),
        Err(why) => {
            report.error(place, format!("cannot read {}: {why}", path.display()), mend);
            None
        }
    }
}

/// With the state of the file before it was read: what is written meanwhile makes another.
fn read_text(path: &Path) -> Result<(String, State), String> {
    let about = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if about.len() > MAX_FILE {
        return Err(format!("it is larger than {} MiB", MAX_FILE >> 20));
    }
    let mut octets = std::fs::read(path).map_err(|error| error.to_string())?;
    // It is no column of what is written.
    if octets.starts_with(BYTE_ORDER_MARK) {
        octets.drain(..BYTE_ORDER_MARK.len());
    }
    let text = String::from_utf8(octets).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(at).filter(|b| **b == b'\n').count();
        format!("line {line} is not UTF-8")
    })?;
    Ok((text, documents::state_of(&about)))
}

/// The document as far as it can be read; errors of its syntax are reported.
pub(super) fn parse<'s>(source: &'s Arc<Source>, report: &Report) -> Document<'s> {
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let place = Place { source: source.clone(), span };
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        report.error(&place, format!("not TOML: {message}"), mend(&message));
    }
    document
}

fn mend(message: &str) -> &'static str {
    let known = [
        ("duplicate key", "leave one of the two out; several objects of a kind are written [[kind]] each"),
        ("must be quoted", "put it in quotes: \"..\""),
        ("invalid table header", "write [table], or [[object]] for one of several"),
        ("invalid array", "write [item, item]"),
        ("invalid inline table", "write { key = value, key = value }"),
    ];
    let mend = known.iter().find(|(part, _)| message.contains(part)).map(|(_, mend)| *mend);
    mend.unwrap_or("each line is `key = value`, [table], [[object]] or # a comment")
}

/// The files that `include` names, in the order of the patterns and, within one, of their names; and the patterns.
pub(super) fn included(top: &mut Table<'_>, report: &Report) -> (Vec<Arc<Source>>, Vec<PathBuf>) {
    let patterns: Vec<_> = top.array("include").iter().filter_map(|item| item.text()).collect();
    let written = patterns.iter().map(|pattern| beside(&pattern.place, &pattern.value)).collect();
    let mut sources: Vec<Arc<Source>> = Vec::new();
    for pattern in patterns {
        for path in matching(&pattern, report) {
            if sources.iter().any(|source| source.path == path) || path == pattern.place.source.path {
                report.error(&pattern.place, format!("{} is included twice", path.display()), "name it once");
                continue;
            }
            sources.extend(open(&path, Some(&pattern.place), report));
        }
    }
    (sources, written)
}

fn matching(pattern: &Located<String>, report: &Report) -> Vec<PathBuf> {
    let path = beside(&pattern.place, &pattern.value);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        report.error(&pattern.place, "this names no file", "write one such as \"networks.d/*.toml\"");
        return Vec::new();
    };
    if folder.to_string_lossy().contains(['*', '?']) {
        report.error(&pattern.place, "a wildcard in the name of a folder", "`*` and `?` are for the file name alone");
        return Vec::new();
    }
    if !name.contains(['*', '?']) {
        return vec![path];
    }
    let mut found = match files_in(folder, name) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let what = format!("cannot read the folder {}: {error}", folder.display());
            report.error(&pattern.place, what, "make it, or leave the pattern out");
            return Vec::new();
        }
    };
    if found.is_empty() {
        report.warning(&pattern.place, "no file matches", "leave it out if none is meant to");
    }
    found.sort();
    found
}

pub(super) fn files_in(folder: &Path, pattern: &str) -> std::io::Result<Vec<PathBuf>> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| !name.starts_with('.') && matches(pattern.as_bytes(), name.as_bytes())) {
            found.push(path);
        }
    }
    Ok(found)
}

/// `*`: any octets; `?`: any one.
pub(super) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            matches(rest, name) || name.split_first().is_some_and(|(_, after)| matches(pattern, after))
        }
        (Some((b'?', rest)), Some((_, after))) => matches(rest, after),
        (Some((own, rest)), Some((other, after))) => own == other && matches(rest, after),
        _ => false,
    }
}

/// A path that a file writes, seen from that file.
pub(super) fn beside(place: &Place, written: &str) -> PathBuf {
    place.source.path.parent().unwrap_or(Path::new("")).join(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_of_byte_order_is_no_part_of_the_text() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("tidegate.toml");
        for (octets, text) in [(&b"\xef\xbb\xbfname"[..], "name"), (b"name", "name"), (b"\xef\xbb\xbf", "")] {
            std::fs::write(&path, octets).unwrap();
            assert_eq!(read_text(&path).unwrap().0, text);
        }
    }

    #[test]
    fn patterns_match_file_names() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml.bak", false),
            ("edge-?.toml", "edge-1.toml", true),
            ("edge-?.toml", "edge-.toml", false),
            ("*a*b", "xaxxb", true),
            ("*a*b", "xbxxa", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
