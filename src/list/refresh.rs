//! Whether what was fetched replaces the list that is in force, and when to fetch again.
//!
//! Fails safe: the last good copy stays unless the new one was read whole, holds entries, and is not suddenly a tenth
//! of what it was (SPEC V4).

use std::fmt;
use std::time::Duration;

use super::reader::{Refused, Report};

/// What is remembered of the last good copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Good {
    /// Without exceptions.
    pub entries: u64,
    pub ends_with_newline: bool,
}

/// How a fetch ended, as far as the transport knows.
#[derive(Debug)]
pub enum Fetched {
    /// The server says that nothing changed (RFC 9110, section 15.4.5).
    NotModified,
    /// No answer, or one that is no list: says which.
    Failed(String),
    /// Fewer octets than the server announced.
    CutShort,
    /// Read to the end that the transport gave it.
    Whole(Result<Report, Refused>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Replace(Good),
    Keep(Why),
}

/// Why the list in force stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    NotModified,
    Failed(String),
    CutShort,
    Refused(String),
    /// It held so many entries, and now would hold so many.
    Shrunk {
        from: u64,
        to: u64,
    },
}

/// `known` is `None` before the first good copy: then whatever is a list is taken.
pub fn decide(known: Option<&Good>, fetched: &Fetched) -> Decision {
    let report = match fetched {
        Fetched::NotModified => return Decision::Keep(Why::NotModified),
        Fetched::Failed(why) => return Decision::Keep(Why::Failed(why.clone())),
        Fetched::CutShort | Fetched::Whole(Err(Refused::CutShort)) => return Decision::Keep(Why::CutShort),
        Fetched::Whole(Err(refused)) => return Decision::Keep(Why::Refused(refused.to_string())),
        Fetched::Whole(Ok(report)) => report,
    };
    compare(known, Good { entries: report.held(), ends_with_newline: report.ends_with_newline })
}

/// The same for what was read whole and is a list.
pub fn compare(known: Option<&Good>, good: Good) -> Decision {
    match known {
        Some(known) if known.ends_with_newline && !good.ends_with_newline => Decision::Keep(Why::CutShort),
        Some(known) if good.entries <= known.entries / LEAST_PART && known.entries >= LEAST_JUDGED => {
            Decision::Keep(Why::Shrunk { from: known.entries, to: good.entries })
        }
        _ => Decision::Replace(good),
    }
}

/// How long to wait before the next fetch. After failures sooner than `refresh`: a minute, doubled with each.
/// `jitter`, 0 to 255, moves it by up to a tenth either way, so that a fleet does not ask at once.
pub fn wait(refresh: Duration, failures: u32, jitter: u8) -> Duration {
    let base = match failures {
        0 => refresh,
        failures => FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(refresh),
    };
    let tenth = base / 10;
    (base - tenth).saturating_add(tenth.saturating_mul(2).saturating_mul(u32::from(jitter)) / 255)
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotModified => f.write_str("it has not changed"),
            Self::Failed(why) | Self::Refused(why) => f.write_str(why),
            Self::CutShort => f.write_str("it was cut short"),
            Self::Shrunk { from, to } => write!(f, "it shrank from {from} entries to {to}"),
        }
    }
}

const LEAST_PART: u64 = 10;
/// A list of a few entries may well lose most of them.
const LEAST_JUDGED: u64 = 20;
const FIRST_RETRY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::reader::{Options, read};

    fn of(text: &str) -> Fetched {
        Fetched::Whole(read(text.as_bytes(), &Options::default(), &mut |_, _| ()))
    }

    fn names(count: usize) -> String {
        (0..count).map(|i| format!("n{i}.example\n")).collect()
    }

    const KNOWN: Good = Good { entries: 1000, ends_with_newline: true };

    #[test]
    fn a_good_list_stays_when_what_comes_is_none() {
        for (fetched, why) in [
            (Fetched::NotModified, Why::NotModified),
            (Fetched::Failed("no route".into()), Why::Failed("no route".into())),
            (Fetched::CutShort, Why::CutShort),
            (of(""), Why::Refused("it holds no entry".into())),
            (of("# a comment\n"), Why::Refused("it holds no entry".into())),
            (of("b a d\n"), Why::Refused("it holds no entry, and 1 bad lines".into())),
            (of("<html>Gateway Timeout</html>"), Why::Refused("it is a web page".into())),
            (of("{\"a\": {\"current\": [\"192.0.2.1\""), Why::CutShort),
            (of(names(2000).trim_end()), Why::CutShort),
            (of(&names(100)), Why::Shrunk { from: 1000, to: 100 }),
        ] {
            assert_eq!(decide(Some(&KNOWN), &fetched), Decision::Keep(why));
        }
    }

    #[test]
    fn a_list_that_shrank_less_or_grew_replaces_it() {
        for count in [101, 1000, 5000] {
            let entries = count as u64;
            let wanted = Decision::Replace(Good { entries, ends_with_newline: true });
            assert_eq!(decide(Some(&KNOWN), &of(&names(count))), wanted);
        }
        let small = Good { entries: 19, ends_with_newline: true };
        assert!(matches!(decide(Some(&small), &of(&names(1))), Decision::Replace(_)));
    }

    #[test]
    fn exceptions_do_not_hide_that_a_list_has_shrunk() {
        let excepted: String = (0..999).map(|i| format!("@@||n{i}.example^\n")).collect();
        let known = Good { entries: 1000, ends_with_newline: true };
        let shrunk = Decision::Keep(Why::Shrunk { from: 1000, to: 1 });
        assert_eq!(decide(Some(&known), &of(&format!("||a.example^\n{excepted}"))), shrunk);
    }

    #[test]
    fn a_list_that_never_ended_its_last_line_may_go_on_so() {
        let known = Good { ends_with_newline: false, ..KNOWN };
        assert!(matches!(decide(Some(&known), &of(names(1000).trim_end())), Decision::Replace(_)));
    }

    #[test]
    fn the_first_copy_only_needs_to_be_a_list() {
        assert!(matches!(decide(None, &of("a.example")), Decision::Replace(Good { entries: 1, .. })));
        assert!(matches!(decide(None, &of("")), Decision::Keep(_)));
    }

    #[test]
    fn failures_are_retried_sooner_but_ever_more_slowly_and_never_later_than_the_refresh() {
        let hour = Duration::from_secs(3600);
        let middle = 127;
        for (failures, least, most) in
            [(0, 3590, 3610), (1, 58, 62), (2, 118, 122), (6, 1910, 1930), (7, 3590, 3610), (99, 3590, 3610)]
        {
            let own = wait(hour, failures, middle).as_secs();
            assert!((least..=most).contains(&own), "{failures}: {own}");
        }
        assert_eq!(wait(hour, 0, 0), Duration::from_secs(3240));
        assert_eq!(wait(hour, 0, 255), Duration::from_secs(3960));
        assert!(wait(Duration::MAX, 0, 255) > Duration::from_secs(1));
    }
}
