//! `[limits.dns]`: how much of DNS is held at once, and for how long. All of it takes effect at start.

use std::time::Duration;

use super::super::table::Table;
use crate::dns::{self, cache};
use crate::policy::bindings;

/// Of DNS itself, and of what it says.
#[derive(Clone, Debug, Default)]
pub struct DnsLimits {
    pub dns: dns::Settings,
    pub bindings: bindings::Settings,
}

pub(super) fn read(mut table: Table<'_>) -> DnsLimits {
    let default = dns::Settings::default();
    let attempt = table.duration("attempt", MOMENT..=Duration::from_secs(10), default.attempt);
    let uses = default.questions_of_a_port;
    let of_one = table.count("questions_of_one", 1..=MOST_QUESTIONS, default.in_flight_of_one);
    let dns = dns::Settings {
        workers: table.count("workers", 0..=1024, default.workers),
        in_flight: table.count("questions", 1..=MOST_QUESTIONS, default.in_flight),
        in_flight_of_one: of_one,
        patience: table.duration("patience", MOMENT..=Duration::from_secs(30), default.patience),
        attempt,
        ports: table.count("ports", 1..=1024, default.ports),
        questions_of_a_port: small(&mut table, "questions_of_a_port", 1..=65_535, uses),
        ttl: small(&mut table, "ttl", 0..=86_400, default.ttl),
        connections: table.count("connections", 1..=65_536, default.connections),
        connections_of_one: table.count("connections_of_one", 1..=65_536, default.connections_of_one),
        pipeline: table.count("pipeline", 1..=1024, default.pipeline),
        idle: table.duration("idle", Duration::from_secs(1)..=Duration::from_secs(3600), default.idle),
        cache: cache(&mut table, of_one),
        ..default
    };
    DnsLimits { dns, bindings: bindings(&mut table) }
}

fn cache(table: &mut Table<'_>, waiting_of_one: usize) -> cache::Limits {
    let default = cache::Limits::default();
    let longest = Duration::from_secs(1)..=WEEK;
    cache::Limits {
        octets: table.size("cache", 0..=(64 << 30), default.octets),
        longest: table.duration("cache_longest", longest.clone(), default.longest),
        longest_negative: table.duration("cache_longest_negative", longest, default.longest_negative),
        waiting: table.count("waiting_for_one", 1..=1_000_000, default.waiting),
        waiting_of_one,
    }
}

fn bindings(table: &mut Table<'_>) -> bindings::Settings {
    let default = bindings::Settings::default();
    bindings::Settings {
        pairs: table.count("bindings", 16..=100_000_000, default.pairs),
        names: table.count("names_of_binding", 1..=1024, default.names),
        grace: table.duration("binding_grace", Duration::ZERO..=Duration::from_secs(3600), default.grace),
        ..default
    }
}

fn small(table: &mut Table<'_>, key: &'static str, range: std::ops::RangeInclusive<u64>, default: u32) -> u32 {
    u32::try_from(table.number(key, range, default.into())).unwrap_or(default)
}

const MOST_QUESTIONS: u64 = 1_000_000;
const MOMENT: Duration = Duration::from_millis(50);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::super::super::table::read_alone;
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default_and_the_reference_says_the_same() {
        let reference = include_str!("../../../conf/tidegate.toml");
        let table = reference.split("[limits.dns]\n").nth(1).and_then(|rest| rest.split("\n[").next()).unwrap();
        let (empty, mistakes) = read_alone("", |table, _| read(table));
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let (written, mistakes) = read_alone(table, |table, _| read(table));
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!(format!("{empty:?}"), format!("{:?}", DnsLimits::default()));
        assert_eq!(format!("{written:?}"), format!("{empty:?}"));
    }

    #[test]
    fn every_limit_is_read_where_it_belongs() {
        let text = r#"
workers = 19
questions = 1
questions_of_one = 2
patience = "3s"
attempt = "400ms"
ports = 5
questions_of_a_port = 6
ttl = 7
connections = 8
connections_of_one = 9
pipeline = 10
idle = "11s"
cache = "12KiB"
cache_longest = "13s"
cache_longest_negative = "14s"
waiting_for_one = 15
bindings = 16
names_of_binding = 17
binding_grace = "18s"
"#;
        let (read, mistakes) = read_alone(text, |table, _| read(table));
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let DnsLimits { dns, bindings } = read;
        let secs = Duration::from_secs;
        assert_eq!((dns.workers, dns.in_flight, dns.in_flight_of_one), (19, 1, 2));
        assert_eq!((dns.patience, dns.attempt), (secs(3), Duration::from_millis(400)));
        assert_eq!((dns.ports, dns.questions_of_a_port, dns.ttl), (5, 6, 7));
        assert_eq!((dns.connections, dns.connections_of_one, dns.pipeline, dns.idle), (8, 9, 10, secs(11)));
        assert_eq!((dns.cache.octets, dns.cache.longest), (12 << 10, secs(13)));
        assert_eq!((dns.cache.longest_negative, dns.cache.waiting), (secs(14), 15));
        assert_eq!(dns.cache.waiting_of_one, 2);
        assert_eq!((bindings.pairs, bindings.names, bindings.grace), (16, 17, secs(18)));
        assert!(dns.from_client && bindings.of_each);
    }
}
