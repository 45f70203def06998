//! Records as JSON lines.
//!
//! Written field by field: a record is written for every judgement, and deriving this cost more than the judgement of a
//! blocked name. Never fails: it writes to memory.

use std::borrow::Cow;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::event::Event;
use super::record::{Dns, Kind, Record};

/// Writes records one after another, and keeps the text of what most have in common with the last.
#[derive(Debug, Default)]
pub struct Lines {
    second: u64,
    text: Vec<u8>,
    judge: Option<Judge>,
    judged: Vec<u8>,
}

/// Who judged what kind of thing: the fields that a record has next to its time.
#[derive(Debug)]
struct Judge {
    kind: Kind,
    enforcer: Arc<str>,
    network: Option<Arc<str>>,
    policy: Option<Arc<str>>,
    direction: Option<&'static str>,
    protocol: Cow<'static, str>,
}

impl Lines {
    /// Appends a record as one line.
    pub fn write(&mut self, record: &Record, into: &mut Vec<u8>) {
        self.begin(record.time, into);
        self.write_judge(record, into);
        let mut object = Object(into);
        object.fields(record);
        if let Some(dns) = &record.dns {
            object.dns_fields(dns);
        }
        into.extend_from_slice(b"}\n");
    }

    /// The same for an event.
    pub fn write_event(&mut self, event: &Event, into: &mut Vec<u8>) {
        self.begin(event.time, into).event_fields(event);
        into.extend_from_slice(b"}\n");
    }

    fn begin<'a>(&mut self, time: SystemTime, into: &'a mut Vec<u8>) -> Object<'a> {
        into.extend_from_slice(b"{\"time\":\"");
        self.write_time(time, into);
        into.push(b'"');
        Object(into)
    }

    fn write_judge(&mut self, record: &Record, into: &mut Vec<u8>) {
        if !self.judge.as_ref().is_some_and(|judge| judge.is_of(record)) {
            self.judged.clear();
            Object(&mut self.judged).judge(record);
            self.judge = Some(Judge::of(record));
        }
        into.extend_from_slice(&self.judged);
    }

    /// As RFC 3339 has it, to the millisecond.
    pub fn write_time(&mut self, time: SystemTime, into: &mut Vec<u8>) {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.text.is_empty() || since.as_secs() != self.second {
            self.second = since.as_secs();
            self.text.clear();
            let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(self.second);
            // Only a year that has five digits cannot be written.
            let _ = write!(self.text, "{}", humantime::format_rfc3339_seconds(whole));
            self.text.pop();
        }
        into.extend_from_slice(&self.text);
        let millis = since.subsec_millis();
        let digit = |of: u32| b'0' + (millis / of % 10) as u8;
        into.extend_from_slice(&[b'.', digit(100), digit(10), digit(1), b'Z']);
    }
}

impl Judge {
    fn of(record: &Record) -> Self {
        Self {
            kind: record.kind,
            enforcer: record.enforcer.clone(),
            network: record.network.clone(),
            policy: record.policy.clone(),
            direction: record.direction,
            protocol: record.protocol.clone(),
        }
    }

    /// Names are looked at by where they lie: to compare them all would cost as much as to write them.
    fn is_of(&self, record: &Record) -> bool {
        let same = |own: &Option<Arc<str>>, other: &Option<Arc<str>>| match (own, other) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (own, other) => own.is_none() && other.is_none(),
        };
        self.kind == record.kind
            && Arc::ptr_eq(&self.enforcer, &record.enforcer)
            && same(&self.network, &record.network)
            && same(&self.policy, &record.policy)
            && self.direction == record.direction
            && self.protocol == record.protocol
    }
}

/// An object that has a field already.
struct Object<'a>(&'a mut Vec<u8>);

impl Object<'_> {
    fn judge(&mut self, record: &Record) {
        self.text("kind", record.kind.as_str());
        self.text("enforcer", &record.enforcer);
        self.some_text("network", record.network.as_deref());
        self.some_text("policy", record.policy.as_deref());
        self.some_text("direction", record.direction);
        self.text("protocol", &record.protocol);
    }

    fn fields(&mut self, record: &Record) {
        self.address("source", record.source);
        self.number("source_port", record.source_port.map(u64::from));
        self.address("destination", record.destination);
        self.number("destination_port", record.destination_port.map(u64::from));
        self.some_text("type", record.via);
        self.some_text("domain", record.domain.as_ref().map(|name| name.as_str()));
        self.some_text("ip_verdict", record.ip_verdict);
        self.some_text("domain_verdict", record.domain_verdict);
        self.some_text("inspection", record.inspection);
        self.some_text("verdict", record.verdict);
        self.some_text("reason", record.reason);
        self.some_text("detail", record.detail.as_deref());
        self.some_text("list", record.list.as_deref());
        self.some_text("action", record.action);
        self.some_text("ja3", record.ja3.as_deref());
        self.some_text("ja4", record.ja4.as_deref());
        if record.ech {
            self.key("ech");
            self.0.extend_from_slice(b"true");
        }
        self.some_text("binding", record.binding);
        self.some_text("alert", record.alert);
        self.number("flow", record.flow);
        self.number("bytes_out", record.bytes_out);
        self.number("bytes_in", record.bytes_in);
        self.number("duration_ms", record.duration_ms);
        self.some_text("closed_by", record.closed_by);
    }

    fn dns_fields(&mut self, dns: &Dns) {
        self.some_text("qtype", dns.qtype.as_deref());
        self.some_text("rcode", dns.rcode.as_deref());
        if let Some((first, rest)) = dns.answers.split_first() {
            self.key("answers");
            self.0.push(b'[');
            write_address(*first, self.0);
            for address in rest {
                self.0.push(b',');
                write_address(*address, self.0);
            }
            self.0.push(b']');
        }
        if let Some(resolver) = dns.resolver {
            self.key("resolver");
            write_socket_address(resolver, self.0);
        }
    }

    fn event_fields(&mut self, event: &Event) {
        self.text("kind", "event");
        self.text("enforcer", &event.enforcer);
        self.text("reason", event.reason.as_str());
        self.some_text("detail", event.detail.as_deref());
        self.some_text("list", event.list.as_deref());
        self.some_text("sink", event.sink.as_deref());
        self.number("count", event.count);
        self.number("generation", event.generation);
    }

    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn text(&mut self, key: &'static str, text: &str) {
        self.key(key);
        write_text(text, self.0);
    }

    fn some_text(&mut self, key: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn number(&mut self, key: &'static str, number: Option<u64>) {
        if let Some(number) = number {
            self.key(key);
            write_number(number, self.0);
        }
    }

    fn address(&mut self, key: &'static str, address: IpAddr) {
        self.key(key);
        write_address(address, self.0);
    }
}

fn write_text(text: &str, into: &mut Vec<u8>) {
    if text.bytes().all(|octet| octet >= b' ' && octet != b'"' && octet != b'\\') {
        into.push(b'"');
        into.extend_from_slice(text.as_bytes());
        into.push(b'"');
    } else {
        // Memory takes everything, and every text can be JSON.
        let _ = serde_json::to_writer(into, text);
    }
}

fn write_number(mut number: u64, into: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut used = 0;
    for place in digits.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    into.extend_from_slice(digits.get(digits.len() - used..).unwrap_or_default());
}

fn write_address(address: IpAddr, into: &mut Vec<u8>) {
    into.push(b'"');
    write_plain(address, into);
    into.push(b'"');
}

fn write_socket_address(address: SocketAddr, into: &mut Vec<u8>) {
    into.push(b'"');
    match address {
        SocketAddr::V4(v4) => {
            write_plain((*v4.ip()).into(), into);
            into.push(b':');
            write_number(v4.port().into(), into);
        }
        SocketAddr::V6(_) => _ = write!(into, "{address}"),
    }
    into.push(b'"');
}

fn write_plain(address: IpAddr, into: &mut Vec<u8>) {
    match address {
        IpAddr::V4(v4) => {
            for (place, octet) in v4.octets().into_iter().enumerate() {
                if place > 0 {
                    into.push(b'.');
                }
                write_number(octet.into(), into);
            }
        }
        IpAddr::V6(v6) => _ = write!(into, "{v6}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::name::DomainName;
    use crate::policy::Direction;

    fn line(record: &Record) -> String {
        let mut text = Vec::new();
        Lines::default().write(record, &mut text);
        String::from_utf8(text).unwrap()
    }

    fn bare(source: &str, destination: &str) -> Record {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Record::new(Kind::Ip, SystemTime::UNIX_EPOCH, "e".into(), "tcp", source, destination)
    }

    #[test]
    fn every_field_is_written_in_the_order_of_the_interface() {
        let mut record = bare("10.1.0.2:41000", "203.0.113.7:443");
        record.kind = Kind::End;
        (record.network, record.policy) = (Some("n".into()), Some("p".into()));
        (record.direction, record.via) = (Some("outbound"), Some("TLS"));
        record.domain = DomainName::parse(b"www.example.com").ok();
        (record.ip_verdict, record.domain_verdict, record.inspection) =
            (Some("allow"), Some("block"), Some("explicit"));
        (record.verdict, record.reason, record.detail) = (Some("block"), Some("DOMAIN"), Some("d".into()));
        (record.list, record.action) = (Some("l".into()), Some("discard"));
        (record.ja3, record.ja4, record.ech, record.binding) =
            (Some("3".into()), Some("4".into()), true, Some("match"));
        record.alert = Some("fingerprint");
        (record.flow, record.bytes_out, record.bytes_in) = (Some(42), Some(0), Some(u64::MAX));
        (record.duration_ms, record.closed_by) = (Some(1_000), Some("client"));
        record.dns = Some(Box::new(Dns {
            qtype: Some("TYPE65280".into()),
            rcode: Some("NOERROR".into()),
            answers: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            resolver: Some("9.9.9.9:53".parse().unwrap()),
        }));
        assert_eq!(
            line(&record),
            concat!(
                r#"{"time":"1970-01-01T00:00:00.000Z","kind":"end","enforcer":"e","network":"n","policy":"p","#,
                r#""direction":"outbound","protocol":"tcp","source":"10.1.0.2","source_port":41000,"#,
                r#""destination":"203.0.113.7","destination_port":443,"type":"TLS","domain":"www.example.com","#,
                r#""ip_verdict":"allow","domain_verdict":"block","inspection":"explicit","verdict":"block","#,
                r#""reason":"DOMAIN","detail":"d","list":"l","action":"discard","ja3":"3","ja4":"4","ech":true,"#,
                r#""binding":"match","alert":"fingerprint","flow":42,"bytes_out":0,"bytes_in":18446744073709551615,"#,
                r#""duration_ms":1000,"#,
                r#""closed_by":"client","qtype":"TYPE65280","rcode":"NOERROR","#,
                r#""answers":["192.0.2.1","2001:db8::1"],"resolver":"9.9.9.9:53"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_record_that_differs_from_the_last_in_any_field_says_so() {
        let first = bare("10.1.0.2:1", "10.1.0.3:2").judged_by("n".into(), Some("p".into()), Direction::Outbound);
        let with = |change: fn(&mut Record)| {
            let mut record = first.clone();
            change(&mut record);
            record
        };
        let mut lines = Lines::default();
        for record in [
            first.clone(),
            first.clone(),
            with(|record| record.kind = Kind::Dns),
            with(|record| record.enforcer = "f".into()),
            with(|record| record.network = Some("m".into())),
            with(|record| record.network = None),
            with(|record| record.policy = Some("q".into())),
            with(|record| record.policy = None),
            with(|record| record.direction = Some("inbound")),
            with(|record| record.protocol = "udp".into()),
            first.clone(),
        ] {
            let mut text = Vec::new();
            lines.write(&record, &mut text);
            assert_eq!(String::from_utf8(text).unwrap(), line(&record));
        }
    }

    #[test]
    fn times_are_told_apart_to_the_millisecond_and_in_any_order() {
        let mut lines = Lines::default();
        let base = 1_795_148_999_123;
        for (millis, text) in [
            (base, "2026-11-20T04:29:59.123Z"),
            (base + 1, "2026-11-20T04:29:59.124Z"),
            (base + 877, "2026-11-20T04:30:00.000Z"),
            (base, "2026-11-20T04:29:59.123Z"),
            (0, "1970-01-01T00:00:00.000Z"),
        ] {
            let mut written = Vec::new();
            lines.write_time(SystemTime::UNIX_EPOCH + Duration::from_millis(millis), &mut written);
            assert_eq!(String::from_utf8(written).unwrap(), text);
        }
    }

    proptest! {
        #[test]
        fn whatever_names_and_addresses_hold_the_line_is_the_json_of_it(
            text in ".*", number: u64, source: IpAddr, port: u16, resolver: IpAddr,
        ) {
            let mut record = bare("10.1.0.2:1", "10.1.0.3:2");
            record.network = Some(Arc::from(&*text));
            record.source = source;
            record.flow = Some(number);
            let resolver = SocketAddr::new(resolver, port);
            record.dns = Some(Box::new(Dns { resolver: Some(resolver), ..Dns::default() }));
            let text_of_line = line(&record);
            prop_assert_eq!(text_of_line.matches('\n').count(), 1);
            let read: Value = serde_json::from_str(&text_of_line).unwrap();
            let expected = json!({
                "time": "1970-01-01T00:00:00.000Z", "kind": "ip", "enforcer": "e", "network": text, "protocol": "tcp",
                "source": source, "source_port": 1, "destination": "10.1.0.3", "destination_port": 2, "flow": number,
                "resolver": resolver,
            });
            prop_assert_eq!(read, expected);
        }
    }
}
