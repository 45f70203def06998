//! The kernel's ruleset as a value, rendered from a policy. Pure.
