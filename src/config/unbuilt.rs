//! The keys whose feature does not exist yet. A row goes when its feature comes.
//!
//! Fails closed: such a key is refused, so that nobody relies on a rule that nothing enforces.

/// When a key is refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refused {
    Always,
    /// With this value, a string or a boolean.
    As(&'static str),
    /// With anything in it.
    Filled,
}

use Refused::{Always, As, Filled};

/// Path of the key, when it is refused, and what does not exist yet.
const ROWS: &[(&str, Refused, &str)] = &[
    ("sidecar", Always, "running as a sidecar"),
    ("geoip", Always, "country and ASN databases"),
    ("gateway.recheck", As("true"), "ending live flows that a new configuration forbids"),
    ("policy.countries", Filled, "country rules"),
    ("policy.asns", Filled, "ASN rules"),
];

/// What does not exist yet of this key with this value: `text` is its string or boolean, `filled` whether it is
/// a table or an array with something in it.
pub(super) fn missing(path: &str, text: &str, filled: bool) -> Option<(Refused, &'static str)> {
    ROWS.iter().find(|(key, when, _)| *key == path && when.holds(text, filled)).map(|(_, when, what)| (*when, *what))
}

impl Refused {
    fn holds(self, text: &str, filled: bool) -> bool {
        match self {
            Always => true,
            As(value) => text == value,
            Filled => filled,
        }
    }
}
