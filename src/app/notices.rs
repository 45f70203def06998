//! Limits that were passed, told as events: a few times a minute however often it happened, with the count.

use std::collections::HashMap;

use crate::telemetry::{Happened, Telemetry};

/// What was counted when it was last told.
#[derive(Debug, Default)]
pub(super) struct Notices(HashMap<&'static str, u64>);

impl Notices {
    pub(super) fn look(&mut self, telemetry: &Telemetry) {
        for (name, help, count) in telemetry.counters().described() {
            let Some((_, limit)) = LIMITS.iter().find(|(own, _)| *own == name) else { continue };
            let before = self.0.insert(name, count).unwrap_or_default();
            let new = count.saturating_sub(before);
            if new == 0 {
                continue;
            }
            tracing::warn!(count = new, "{limit} is reached: {}", help.trim());
            let detail = format!("{limit}: {name}");
            telemetry.event(telemetry.happened(Happened::Limit).detail(detail).count(new));
        }
    }
}

/// The counters that tell of a limit, and which it is.
const LIMITS: [(&str, &str); 9] = [
    ("refused_by_limit", "limits.flows, limits.flows_of_one or one of limits.dns"),
    ("refused_unheld", "limits.held_bytes_in_all"),
    ("out_of_descriptors", "the limit of open descriptors"),
    ("bindings_displaced", "limits.dns.bindings"),
    ("kernel_unrecorded", "limits.kernel_records"),
    ("kernel_records_lost", "the buffer of kernel records"),
    ("kernel_refused", "a kernel set of flows"),
    ("names_untold", "a kernel set of names"),
    ("uncounted", "a kernel set of counted flows"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Queue;
    use serde_json::Value;

    #[test]
    fn a_limit_that_was_passed_is_told_once_with_the_count() {
        let (queue, writer) = Queue::new(10);
        let telemetry = Telemetry::new(queue.clone());
        let mut notices = Notices::default();
        notices.look(&telemetry);
        telemetry.add(|c| &c.refused_by_limit, 3);
        telemetry.count(|c| &c.flows);
        notices.look(&telemetry);
        notices.look(&telemetry);
        telemetry.count(|c| &c.refused_by_limit);
        notices.look(&telemetry);
        queue.close();
        let mut written = Vec::new();
        writer.run(&mut written);
        let lines = std::str::from_utf8(&written).unwrap().lines();
        let events: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        let counts: Vec<_> = events.iter().map(|event| (event["reason"].as_str(), event["count"].as_u64())).collect();
        assert_eq!(counts, [(Some("LIMIT"), Some(3)), (Some("LIMIT"), Some(1))]);
        assert_eq!(events[0]["detail"], "limits.flows, limits.flows_of_one or one of limits.dns: refused_by_limit");
    }

    #[test]
    fn every_limit_has_a_counter() {
        let telemetry = Telemetry::new(Queue::new(1).0);
        let names: Vec<_> = telemetry.counters().all().into_iter().map(|(name, _)| name).collect();
        assert!(LIMITS.iter().all(|(name, _)| names.contains(name)), "{names:?}");
    }
}
