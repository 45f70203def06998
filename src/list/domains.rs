//! A set of name patterns, asked by name.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::name::{DomainName, Pattern};

/// Patterns with the time, if any, at which each ends.
#[derive(Debug, Default)]
pub struct DomainSet {
    exact: HashMap<DomainName, Option<SystemTime>>,
    below: HashMap<DomainName, Option<SystemTime>>,
}

impl DomainSet {
    pub fn insert(&mut self, pattern: Pattern, expires: Option<SystemTime>) {
        match pattern {
            Pattern::Exact(name) => _ = self.exact.insert(name, expires),
            Pattern::Below(name) => _ = self.below.insert(name, expires),
            Pattern::Tree(name) => {
                self.exact.insert(name.clone(), expires);
                self.below.insert(name, expires);
            }
        }
    }

    pub fn holds(&self, name: &DomainName, now: SystemTime) -> bool {
        let live = |expires: &Option<SystemTime>| expires.is_none_or(|end| now < end);
        self.exact.get(name).is_some_and(live)
            || name.suffixes().skip(1).any(|above| self.below.iter().any(|(n, e)| n.as_str() == above && live(e)))
    }

    pub fn len(&self) -> usize {
        self.exact.len() + self.below.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
