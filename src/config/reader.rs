//! Reading TOML values while collecting every mistake: a key that nobody asks for is unknown, a value of the
//! wrong kind is reported and left out.
//!
//! Fails closed: [`Table`] reports its unknown keys when it is dropped, so no reader can forget to.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::mistake::{Place, Report, Source};
use super::nearest::nearest;
use super::unbuilt::{Refused, missing};
use std::sync::Arc;

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

/// A value of the document and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Value<'a> {
    pub(super) place: Place,
    path: String,
    report: &'a Report,
    value: &'a DeValue<'a>,
}

/// Something that was read, with its place, for mistakes that show only later.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<'a> Table<'a> {
    pub(super) fn top(report: &'a Report, source: &Arc<Source>, document: &'a Spanned<DeTable<'a>>) -> Self {
        let place = Place::start_of(source);
        Self { place, path: String::new(), report, entries: document.get_ref(), known: Vec::new(), free: false }
    }

    /// The value of a key that is built; asking makes the key known.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        let (name, value) = self.entries.get_key_value(key)?;
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        let value = Value { place: self.at(value.span()), path, report: self.report, value: value.get_ref() };
        match missing(&value.path, &value.plain(), value.filled()) {
            None => Some(value),
            Some((refused, what)) => {
                self.refuse(&self.at(name.span()), &value, refused, what);
                None
            }
        }
    }

    fn refuse(&self, place: &Place, value: &Value<'_>, refused: Refused, what: &str) {
        let path = &value.path;
        let (what, mend) = match refused {
            Refused::As(word) => {
                (format!("`{path}` = `{word}` is not built yet: {what}"), "take another value, or leave it out")
            }
            _ => (format!("`{path}` is not built yet: {what}"), "leave it out"),
        };
        self.report.error(place, what, mend);
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
            (key, Value { place: self.at(value.span()), path, report: self.report, value: value.get_ref() })
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
        if value.value.is_table() {
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

impl<'a> Value<'a> {
    pub(super) fn table(self) -> Option<Table<'a>> {
        let DeValue::Table(entries) = self.value else { return self.wrong("a table") };
        Some(Table { place: self.place, path: self.path, report: self.report, entries, known: Vec::new(), free: false })
    }

    pub(super) fn items(self) -> Option<Vec<Value<'a>>> {
        let DeValue::Array(items) = self.value else { return self.wrong("an array, as in `[..]`") };
        let item = |item: &'a Spanned<DeValue<'a>>| Value {
            place: Place { source: self.place.source.clone(), span: item.span() },
            path: self.path.clone(),
            report: self.report,
            value: item.get_ref(),
        };
        Some(items.iter().map(item).collect())
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong("true or false"))
    }

    pub(super) fn text(&self) -> Option<Located<String>> {
        match self.value.as_str() {
            Some(text) => Some(Located { value: text.to_owned(), place: self.place.clone() }),
            None => self.wrong("a string in quotes"),
        }
    }

    pub(super) fn number(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let (low, high) = (range.start(), range.end());
        let Some(written) = self.value.as_integer() else {
            return self.wrong(&format!("a whole number from {low} to {high}"));
        };
        let number = i128::from_str_radix(written.as_str(), written.radix()).ok();
        match number.and_then(|number| u64::try_from(number).ok()).filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => {
                self.refuse(format!("`{}` is {} here", self.path, written.as_str()), format!("write {low} to {high}"))
            }
        }
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let Some(text) = self.value.as_str() else {
            return self.wrong("a duration such as \"500ms\", \"1s\" or \"5m\"");
        };
        let Ok(duration) = humantime::parse_duration(text) else {
            return self.refuse(format!("`{text}` is no duration"), "write one such as \"500ms\", \"1s\" or \"5m\"");
        };
        if range.contains(&duration) {
            return Some(duration);
        }
        let say = humantime::format_duration;
        let mend = format!("write {} to {}", say(*range.start()), say(*range.end()));
        self.refuse(format!("`{}` is {text} here", self.path), mend)
    }

    fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        if self.value.is_integer() {
            return self.number(range);
        }
        let Some(text) = self.value.as_str() else { return self.wrong("a size such as \"64KiB\"") };
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = text.strip_prefix(digits).unwrap_or_default().trim();
        let shift = [("", 0), ("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30)].iter().find(|(own, _)| *own == unit);
        let size = shift.and_then(|(_, shift)| digits.parse::<u64>().ok()?.checked_mul(1 << shift));
        let Some(size) = size else {
            return self.refuse(format!("`{text}` is no size"), "write one such as 65536, \"64KiB\" or \"1MiB\"");
        };
        if range.contains(&size) {
            return Some(size);
        }
        let mend = format!("write {} to {} octets", range.start(), range.end());
        self.refuse(format!("`{}` is {text} here", self.path), mend)
    }

    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let Some(text) = self.value.as_str() else { return self.wrong(&quoted(&all)) };
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*meaning);
        }
        let mend = match nearest(text, &all) {
            Some(near) => format!("did you mean \"{near}\"? It can be {}", quoted(&all)),
            None => format!("it can be {}", quoted(&all)),
        };
        self.refuse(format!("`{text}` is no value of `{}`", self.path), mend)
    }

    /// A string, or a number written without quotes.
    pub(super) fn text_or_number(&self) -> Option<Located<String>> {
        match self.value {
            DeValue::Integer(number) if number.radix() == 10 => {
                Some(Located { value: number.as_str().to_owned(), place: self.place.clone() })
            }
            _ => self.text(),
        }
    }

    pub(super) fn refuse<T>(&self, what: impl Into<String>, mend: impl Into<String>) -> Option<T> {
        self.report.error(&self.place, what, mend);
        None
    }

    fn wrong<T>(&self, wanted: &str) -> Option<T> {
        let what = format!("`{}` is {} here", self.path, kind(self.value));
        self.refuse(what, format!("write {wanted}"))
    }

    /// A string or a boolean as text; nothing for other values.
    fn plain(&self) -> String {
        match self.value {
            DeValue::String(text) => text.to_string(),
            DeValue::Boolean(flag) => flag.to_string(),
            _ => String::new(),
        }
    }

    fn filled(&self) -> bool {
        match self.value {
            DeValue::Array(items) => !items.is_empty(),
            DeValue::Table(entries) => !entries.is_empty(),
            _ => true,
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

fn quoted(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    quoted.join(", ")
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

    #[test]
    fn numbers_are_read_in_every_radix_and_never_wrap() {
        for (written, expected) in [
            ("10", Some(10)),
            ("0x1F", Some(31)),
            ("0b101", Some(5)),
            ("1_000", Some(1000)),
            ("-1", None),
            ("1001", None),
            ("18446744073709551617", None),
            ("340282366920938463463374607431768211457", None),
            ("5.0", None),
        ] {
            let text = format!("n = {written}");
            let (found, mistakes) = read_alone(&text, |mut table, _| table.take("n")?.number(0..=1000));
            assert_eq!(found, expected, "{written}");
            assert_eq!(mistakes.is_empty(), expected.is_some(), "{written}: {mistakes:?}");
        }
    }

    #[test]
    fn sizes_have_binary_units_and_never_wrap() {
        for (written, expected) in [
            ("65536", Some(65_536)),
            ("\"64KiB\"", Some(65_536)),
            ("\"1 MiB\"", Some(1 << 20)),
            ("\"100B\"", Some(100)),
            ("\"64KB\"", None),
            ("\"KiB\"", None),
            ("\"18014398509481985KiB\"", None),
            ("\"2GiB\"", None),
        ] {
            let text = format!("n = {written}");
            let (found, mistakes) = read_alone(&text, |mut table, _| table.take("n")?.size(0..=1 << 30));
            assert_eq!(found, expected, "{written}");
            assert_eq!(mistakes.is_empty(), expected.is_some(), "{written}: {mistakes:?}");
        }
    }
}
