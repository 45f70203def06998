//! `[[port]]`: protocols with their ports and ranges (SPEC N3).

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::mistake::Report;
use super::table::Table;
use super::value::{Located, Value};
use crate::policy::network::{Port, Protocol};
use crate::policy::protocol::{PROTOCOLS, number_of};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

pub(super) fn read(mut table: Table<'_>, name: &str, report: &Report) -> Option<Arc<Port>> {
    let description = table.text("description").map(|text| text.value).unwrap_or_default();
    let example = "[{ protocol = \"tcp\", ports = [443] }]";
    let written = table.demand("protocols", example)?;
    let place = written.place.clone();
    let items = written.items()?;
    if items.is_empty() {
        report.error(&place, format!("the port `{name}` has no protocols"), format!("write `protocols = {example}`"));
    }
    let wanted = items.len();
    let protocols: Vec<Protocol> =
        items.into_iter().filter_map(Value::table).filter_map(|table| protocol(table, report)).collect();
    let complete = protocols.len() == wanted && wanted > 0;
    complete.then(|| Arc::new(Port { name: name.into(), description, protocols }))
}

fn protocol(mut table: Table<'_>, report: &Report) -> Option<Protocol> {
    let number = table.demand("protocol", "\"tcp\"").and_then(|value| protocol_number(&value));
    let has_ports = matches!(number, Some(TCP | UDP));
    let ports = table.take("ports");
    if has_ports && !table.has("ports") {
        report.error(&table.place, "tcp and udp need ports", "add `ports = [443]` or `ports = [\"1-65535\"]`");
        return None;
    }
    let Some(written) = ports else { return Some(Protocol { number: number?, ports: Vec::new() }) };
    let (place, items) = (written.place.clone(), written.items()?);
    if number.is_some() && !has_ports && !items.is_empty() {
        report.error(&place, "this protocol takes no ports", "leave `ports` out: only tcp and udp have them here");
        return None;
    }
    if has_ports && items.is_empty() {
        report.error(&place, "tcp and udp need ports", "write `ports = [443]` or `ports = [\"1-65535\"]`");
        return None;
    }
    let wanted = items.len();
    let ports: Vec<_> =
        items.iter().filter_map(|item| item.text_or_number()).filter_map(|p| range(&p, report)).collect();
    (ports.len() == wanted).then_some(Protocol { number: number?, ports })
}

fn protocol_number(value: &Value<'_>) -> Option<u8> {
    let written = value.text_or_number()?;
    if let Some(number) = number_of(&written.value) {
        return Some(number);
    }
    let names: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
    value.refuse(format!("no protocol `{}`", written.value), format!("write 0 to 255, or one of {}", names.join(", ")))
}

/// `443`, `:443`, `9870-9880` or `:9870-:9880`.
fn range(written: &Located<String>, report: &Report) -> Option<RangeInclusive<u16>> {
    let text = &written.value;
    let port = |text: &str| {
        let text = text.trim();
        text.strip_prefix(':').unwrap_or(text).parse::<u16>().ok().filter(|port| *port > 0)
    };
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (port(low), port(high)) {
        (Some(low), Some(high)) if low <= high => Some(low..=high),
        (Some(low), Some(high)) => {
            report.error(
                &written.place,
                format!("the range `{text}` runs backwards"),
                format!("write \"{high}-{low}\""),
            );
            None
        }
        _ => {
            let mend = "write a port from 1 to 65535 or a range such as \"9870-9880\"";
            report.error(&written.place, format!("`{text}` is no port and no range"), mend);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::read_alone;
    use super::*;

    #[test]
    fn every_written_form_of_a_port_means_the_same() {
        for written in ["443", "\"443\"", "\":443\"", "\"443-443\"", "\":443-:443\"", "\" 443 \""] {
            let text = format!("protocols = [{{ protocol = \"tcp\", ports = [{written}] }}]");
            let (port, mistakes) = read_alone(&text, |table, report| read(table, "p", report));
            assert!(mistakes.is_empty(), "{mistakes:?}");
            assert_eq!(port.unwrap().protocols, [Protocol { number: 6, ports: vec![443..=443] }], "{written}");
        }
    }

    #[test]
    fn a_range_has_both_its_ends_and_nothing_beyond() {
        for written in ["9870-9880", ":9870-:9880", "9870 - 9880"] {
            let text = format!("protocols = [{{ protocol = \"tcp\", ports = [\"{written}\"] }}]");
            let (port, _) = read_alone(&text, |table, report| read(table, "p", report));
            let port = port.unwrap();
            for (number, covered) in [(9869, false), (9870, true), (9880, true), (9881, false)] {
                assert_eq!(port.covers(TCP, Some(number)), covered, "{written} {number}");
                assert!(!port.covers(UDP, Some(number)));
            }
        }
    }

    #[test]
    fn one_bad_port_makes_the_object_unusable_rather_than_narrower() {
        let text = "protocols = [{ protocol = \"tcp\", ports = [443, 70000] }]";
        let (port, mistakes) = read_alone(text, |table, report| read(table, "p", report));
        assert!(port.is_none());
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    }

    #[test]
    fn protocols_are_named_or_numbered() {
        for (text, number) in [("tcp", 6), ("ICMPv6", 58), ("esp", 50), ("47", 47), ("0", 0), ("255", 255)] {
            assert_eq!(number_of(text), Some(number), "{text}");
        }
        for text in ["", "tpc", "256", "-1"] {
            assert_eq!(number_of(text), None, "{text}");
        }
    }
}
