//! The keys whose feature does not exist yet. A row goes when its feature comes.
//!
//! Fails closed: such a key is refused, so that nobody relies on a rule that nothing enforces.

/// Path of the key, and what does not exist yet.
const ROWS: &[(&str, &str)] = &[("sidecar", "running as a sidecar")];

/// What does not exist yet of this key.
pub(super) fn missing(path: &str) -> Option<&'static str> {
    ROWS.iter().find(|(key, _)| *key == path).map(|(_, what)| *what)
}
