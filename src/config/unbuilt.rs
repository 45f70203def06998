//! The keys whose feature does not exist yet. A row goes when its feature comes.
//!
//! Fails closed: such a key is refused, so that nobody relies on a rule that nothing enforces.

/// When a key is refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refused {
    Always,
    /// With this value, a string or a boolean.
    As(&'static str),
}

use Refused::{Always, As};

/// Path of the key, when it is refused, and what does not exist yet.
const ROWS: &[(&str, Refused, &str)] = &[
    ("sidecar", Always, "running as a sidecar"),
    ("gateway.recheck", As("true"), "ending live flows that a new configuration forbids"),
];

/// What does not exist yet of this key with this value: `text` is its string or boolean.
pub(super) fn missing(path: &str, text: &str) -> Option<(Refused, &'static str)> {
    ROWS.iter().find(|(key, when, _)| *key == path && when.holds(text)).map(|(_, when, what)| (*when, *what))
}

impl Refused {
    fn holds(self, text: &str) -> bool {
        match self {
            Always => true,
            As(value) => text == value,
        }
    }
}
