//! A table of a document, read key by key: a key that nobody asks for is unknown.
//!
//! Fails closed: a [`Table`] reports its unknown keys when it is dropped, so no reader can forget to.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::mistake::{Place, Report, Source};
use super::nearest::nearest;
use super::value::{Located, Value};

/// A table of the document, read key by key.
#[derive(Debug)]
pub(super) struct Table<'a> {
    pub(super) place: Place,
    /// Dotted keys from the top, without the numbers of arrays: `network.inspection`.
    path: String,
    report: &'a Report,
    entries: &'a DeTable<'a>,
    known: Vec<&'static str>,
    /// Its keys are the user's own words.
    free: bool,
}

impl<'a> Table<'a> {
    pub(super) fn top(report: &'a Report, source: &Arc<Source>, document: &'a Spanned<DeTable<'a>>) -> Self {
        let place = Place::start_of(source);
        Self { place, path: String::new(), report, entries: document.get_ref(), known: Vec::new(), free: false }
    }

    /// `path`: the dotted keys that lead to it.
    pub(super) fn inner(place: Place, path: String, report: &'a Report, entries: &'a DeTable<'a>) -> Self {
        Self { place, path, report, entries, known: Vec::new(), free: false }
    }

    /// The value of a key; asking makes the key known.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        let value = self.entries.get(key)?;
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Some(Value::new(self.at(value.span()), path, self.report, value.get_ref()))
    }

    /// The value of a key that must be there.
    pub(super) fn demand(&mut self, key: &'static str, example: &str) -> Option<Value<'a>> {
        if !self.entries.contains_key(key) {
            let what = format!("`{key}` is missing in {}", self.title());
            self.report.error(&self.place, what, format!("add `{key} = {example}`"));
        }
        self.take(key)
    }

    /// Makes a key known that must not be here, and tells where it is.
    pub(super) fn forbid(&mut self, key: &'static str) -> Option<Place> {
        self.known.push(key);
        self.entries.get_key_value(key).map(|(name, _)| self.at(name.span()))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Keys that the reader cannot know, such as the categories of thresholds.
    pub(super) fn free(&mut self) -> Vec<(Located<String>, Value<'a>)> {
        self.free = true;
        let located = |(key, value): (&Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)| {
            let path = format!("{}.{}", self.path, key.get_ref());
            let key = Located { value: key.get_ref().to_string(), place: self.at(key.span()) };
            (key, Value::new(self.at(value.span()), path, self.report, value.get_ref()))
        };
        self.entries.iter().map(located).collect()
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.take(key).and_then(|value| value.boolean()).unwrap_or(default)
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<Located<String>> {
        self.take(key)?.text()
    }

    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
        self.take(key).and_then(|value| value.number(range)).unwrap_or(default)
    }

    pub(super) fn count(&mut self, key: &'static str, range: RangeInclusive<u64>, default: usize) -> usize {
        self.take(key).and_then(|value| value.number(range)).and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
    }

    /// Octets: a whole number, or a string with a unit.
    pub(super) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>, default: usize) -> usize {
        self.take(key).and_then(|value| value.size(range)).and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        self.take(key).and_then(|value| value.duration(range)).unwrap_or(default)
    }

    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], default: T) -> T {
        self.take(key).and_then(|value| value.word(words)).unwrap_or(default)
    }

    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'a>> {
        self.take(key)?.table()
    }

    /// The tables of `[[key]]`, or of an array of inline tables.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table<'a>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        if value.is_table() {
            value.refuse::<()>(
                format!("`{}` is one table here", value.path),
                format!("write [[{key}]]: there may be several"),
            );
            return Vec::new();
        }
        value.items().unwrap_or_default().into_iter().filter_map(|item| item.table()).collect()
    }

    pub(super) fn array(&mut self, key: &'static str) -> Vec<Value<'a>> {
        self.take(key).and_then(|value| value.items()).unwrap_or_default()
    }

    /// How messages speak of this table.
    pub(super) fn title(&self) -> String {
        if self.path.is_empty() { "the file".to_owned() } else { format!("`{}`", self.path) }
    }

    fn at(&self, span: std::ops::Range<usize>) -> Place {
        Place { source: self.place.source.clone(), span }
    }

    fn unknown(&self, key: &Spanned<DeString<'_>>) {
        let mend = match nearest(key.get_ref(), &self.known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("{} has: {}", self.title(), self.known.join(", ")),
        };
        let what = format!("unknown key `{}` in {}", key.get_ref(), self.title());
        self.report.error(&self.at(key.span()), what, mend);
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        for key in self.entries.keys() {
            if !self.free && !self.known.contains(&&**key.get_ref()) {
                self.unknown(key);
            }
        }
    }
}

/// Reads a table written alone, outside its place in the file, with the mistakes found as lines.
#[cfg(test)]
pub(super) fn read_alone<T>(text: &str, read: impl FnOnce(Table<'_>, &Report) -> T) -> (T, Vec<String>) {
    let report = Report::default();
    let source = Source::whole("t".into(), text.to_owned());
    let document = super::document::parse(&source, &report);
    let found = read(Table::top(&report, &source, &document), &report);
    let mistakes = report.into_mistakes().to_string();
    (found, mistakes.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_no_reader_asks_for_is_reported_even_if_reading_stops_early() {
        let (_, mistakes) = read_alone("a = 1\nb = 2", |mut table, _| _ = table.take("a"));
        assert_eq!(mistakes, ["t:2:1: error: unknown key `b` in the file: the file has: a"]);
    }
}
