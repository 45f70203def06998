//! Lists and databases that become others while their configuration stays what it is.

use std::fmt;
use std::sync::Arc;

use super::{GeoSource, Loaded};
use crate::list::List;
use crate::list::geoip::Database;
use crate::policy::network::{Network, Rule};
use crate::policy::rules::{GeoRule, Policy};

/// What became another.
#[derive(Clone, Debug)]
pub enum Part {
    List(Arc<List>),
    Database(Arc<Database>),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(list) => write!(f, "the list `{}`", list.name),
            Self::Database(database) => write!(f, "the {} database", database.kind().word()),
        }
    }
}

impl Loaded {
    /// The same configuration with this in place of what it replaces.
    pub fn with(&self, part: &Part) -> Self {
        match part {
            Part::List(list) => self.with_list(list),
            Part::Database(database) => self.with_database(database),
        }
    }

    fn with_list(&self, new: &Arc<List>) -> Self {
        let own = |list: &Arc<List>| if list.name == new.name { new.clone() } else { list.clone() };
        let with_policies = self.with_policies(|policy| {
            let named = policy.lists.iter().any(|list| list.name == new.name);
            named.then(|| Policy { lists: policy.lists.iter().map(own).collect(), ..policy.clone() })
        });
        Self { lists: self.lists.iter().map(own).collect(), ..with_policies }
    }

    fn with_database(&self, new: &Arc<Database>) -> Self {
        let mut made: Vec<GeoRule> = Vec::new();
        let mut renewed = |rule: &Option<GeoRule>| {
            let rule = rule.as_ref()?;
            if rule.database.kind() != new.kind() {
                return Some(rule.clone());
            }
            let rule = rule.renewed(new, &made);
            made.push(rule.clone());
            Some(rule)
        };
        let with_policies = self.with_policies(|policy| {
            let (asns, countries) = (renewed(&policy.asns), renewed(&policy.countries));
            Some(Policy { asns, countries, ..policy.clone() })
        });
        let source = |source: &GeoSource| match source.database.kind() == new.kind() {
            true => GeoSource { database: new.clone(), ..source.clone() },
            false => source.clone(),
        };
        Self { geoip: self.geoip.iter().map(source).collect(), ..with_policies }
    }

    /// The same with these policies in the place of others; `None`: the policy stays what it is.
    fn with_policies(&self, mut next: impl FnMut(&Policy) -> Option<Policy>) -> Self {
        let mut policy = |policy: &Arc<Policy>| next(policy).map_or_else(|| policy.clone(), Arc::new);
        // A policy that is not among them stays what it is.
        let replaced: Vec<_> = self.policies.iter().map(|old| (old, policy(old))).collect();
        let mut rule = |rule: &Rule| {
            let found = replaced.iter().find(|(old, _)| Arc::ptr_eq(old, &rule.policy));
            Rule { policy: found.map_or_else(|| policy(&rule.policy), |(_, new)| new.clone()), ..rule.clone() }
        };
        let mut network = |network: &Arc<Network>| {
            let (outbound, inbound) =
                (network.outbound.as_ref().map(&mut rule), network.inbound.as_ref().map(&mut rule));
            Arc::new(Network { outbound, inbound, ..(**network).clone() })
        };
        Self {
            networks: self.networks.iter().map(&mut network).collect(),
            policies: replaced.iter().map(|(_, new)| new.clone()).collect(),
            ..self.clone()
        }
    }
}
