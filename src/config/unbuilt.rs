//! The keys whose feature does not exist yet. A row goes when its feature comes.
//!
//! Fails closed: such a key is refused, so that nobody relies on a rule that nothing enforces.

/// When a key is refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refused {
    Always,
    /// With anything in it.
    Filled,
}

use Refused::{Always, Filled};

/// Path of the key, when it is refused, and what does not exist yet.
const ROWS: &[(&str, Refused, &str)] = &[
    ("sidecar", Always, "running as a sidecar"),
    ("geoip", Always, "country and ASN databases"),
    ("telemetry", Always, "sinks other than standard output"),
    ("policy.countries", Filled, "country rules"),
    ("policy.asns", Filled, "ASN rules"),
];

/// What does not exist yet of this key with this value: `filled` tells whether it is a table or an array with something
/// in it.
pub(super) fn missing(path: &str, filled: bool) -> Option<&'static str> {
    ROWS.iter().find(|(key, when, _)| *key == path && when.holds(filled)).map(|(.., what)| *what)
}

impl Refused {
    fn holds(self, filled: bool) -> bool {
        match self {
            Always => true,
            Filled => filled,
        }
    }
}
