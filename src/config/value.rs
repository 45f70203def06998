//! A value of a document: what it must be is asked for, and what it is instead is reported.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::mistake::{Place, Report};
use super::nearest::nearest;
use super::table::Table;

/// A value of the document and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Value<'a> {
    pub(super) place: Place,
    pub(super) path: String,
    report: &'a Report,
    value: &'a DeValue<'a>,
}

/// Something that was read, with its place, for mistakes that show only later.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<'a> Value<'a> {
    /// `path`: the dotted keys that lead to it.
    pub(super) fn new(place: Place, path: String, report: &'a Report, value: &'a DeValue<'a>) -> Self {
        Self { place, path, report, value }
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub(super) fn is_number(&self) -> bool {
        self.value.is_integer()
    }

    pub(super) fn table(self) -> Option<Table<'a>> {
        let DeValue::Table(entries) = self.value else { return self.wrong("a table") };
        Some(Table::inner(self.place, self.path, self.report, entries))
    }

    pub(super) fn items(self) -> Option<Vec<Value<'a>>> {
        let DeValue::Array(items) = self.value else { return self.wrong("an array, as in `[..]`") };
        let item = |item: &'a Spanned<DeValue<'a>>| {
            let place = Place { source: self.place.source.clone(), span: item.span() };
            Value::new(place, self.path.clone(), self.report, item.get_ref())
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

    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
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

    /// true, false, or one of `words`.
    pub(super) fn switch<T: Copy>(&self, meaning: impl Fn(bool) -> T, words: &[(&str, T)]) -> Option<T> {
        if let Some(on) = self.value.as_bool() {
            return Some(meaning(on));
        }
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let wanted = format!("true, false or {}", quoted(&all));
        let Some(text) = self.value.as_str() else { return self.wrong(&wanted) };
        let known = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        known.or_else(|| self.refuse(format!("`{text}` is no value of `{}`", self.path), format!("write {wanted}")))
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

#[cfg(test)]
mod tests {
    use super::super::table::read_alone;

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
