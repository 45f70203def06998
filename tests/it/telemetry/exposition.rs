//! Metrics over HTTP, read as Prometheus reads them, and the dashboard that is made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use tidegate::mode::demo::lab::Lab;
use tidegate::sys::rtnl::Family;

use super::{be_blocked, pass, with_telemetry};
use crate::gateway::{DEADLINE, Gateway, servers};
use crate::inside::in_lab;

const METRICS: &str = "127.0.0.1:9469";

#[test]
fn metrics_count_what_flows_did_in_the_form_that_scrapers_read() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let gateway = Gateway::start(lab, &with_telemetry(""));
        for family in Family::BOTH {
            let (passed, blocked) = (pass(lab, family), be_blocked(lab, family));
            gateway.end_of(passed);
            gateway.verdict_on(blocked);
        }
        gateway.reload();

        let metrics = Exposition::read(&scrape(lab));
        assert_eq!(metrics.sum("tidegate_flows_total", &[]), 4.0);
        // The name blocks; that it allows decides nothing where the address is allowed anyway.
        for (verdict, reason) in [("allow", "DEFAULT"), ("block", "DOMAIN")] {
            let labels = [("kind", "domain"), ("verdict", verdict), ("reason", reason)];
            assert_eq!(metrics.sum("tidegate_verdicts_total", &labels), 2.0, "{verdict}");
        }
        assert_eq!(metrics.sum("tidegate_peeks_total", &[("type", "http"), ("outcome", "name")]), 4.0);
        assert_eq!(metrics.sum("tidegate_list_entries", &[("list", "blocked-addresses"), ("kind", "prefix")]), 2.0);
        assert_eq!(metrics.sum("tidegate_config_generation", &[]), 2.0);
        assert_eq!(metrics.sum("tidegate_limit_max", &[("limit", "bindings")]), 262_144.0);
        for limit in ["dns_questions", "tcp_held_bytes", "udp_held_bytes"] {
            assert!(metrics.sum("tidegate_limit_max", &[("limit", limit)]) > 0.0);
            assert_eq!(metrics.sum("tidegate_limit_used", &[("limit", limit)]), 0.0, "{limit}");
        }
        assert_eq!(metrics.sum("tidegate_limit_used", &[("limit", "flows")]), 0.0);
        assert_eq!(metrics.sum("tidegate_sink_up", &[("sink", "stdout")]), 1.0);
        assert!(metrics.sum("tidegate_kernel_set_elements", &[]) > 0.0);
        assert!(metrics.sum("process_resident_memory_bytes", &[]) > f64::from(1 << 20));
        assert!(metrics.sum("process_open_fds", &[]) > 3.0);
        assert!(metrics.sum("process_start_time_seconds", &[]) > 1_700_000_000.0);
        // A verdict of each flow, and an end of those that passed.
        assert!(metrics.sum("tidegate_records_written_total", &[("sink", "stdout")]) >= 6.0);
        gateway.stop();
    });
}

#[test]
fn nothing_but_metrics_is_served_and_only_to_whoever_asks_properly() {
    in_lab(|lab| {
        let gateway = Gateway::start(lab, &with_telemetry(""));
        for (request, status) in [
            ("GET /status HTTP/1.1\r\n\r\n", "404"),
            ("POST /reload HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("\0\0\0\0\r\n\r\n", "400"),
        ] {
            let answer = exchange(lab, request.as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        }
        let endless = [b"GET /".as_slice(), &[b'a'; 20 << 10]].concat();
        assert!(exchange(lab, &endless).starts_with("HTTP/1.1 400 "));
        gateway.stop();
    });
}

#[test]
fn where_the_address_is_taken_the_gateway_runs_and_takes_it_later() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let taken = lab.gateway.run(|| TcpListener::bind(METRICS)).unwrap().unwrap();
        let gateway = Gateway::start(lab, &with_telemetry(""));
        let said = |text: &'static str| gateway.enforcer.message(move |line| line.contains(text), DEADLINE).unwrap();
        said("metrics are not served yet");
        pass(lab, Family::V4);
        drop(taken);
        said("metrics are served");
        assert_eq!(Exposition::read(&scrape(lab)).sum("tidegate_flows_total", &[]), 1.0);
        gateway.stop();
    });
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("list.txt"), "blocked.example\n").unwrap();
        let list = format!(
            "[[list]]\nname = \"file\"\nverdict = \"block\"\nfile = \"{}\"\n",
            folder.path().join("list.txt").display()
        );
        let text = with_telemetry(&list).replace("\"blocked-names\"]", "\"blocked-names\", \"file\"]");
        let gateway = Gateway::start(lab, &text);
        gateway.end_of(pass(lab, Family::V4));
        let metrics = Exposition::read(&scrape(lab));
        gateway.stop();

        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/grafana.json");
        let dashboard: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut queries = Vec::new();
        collect_queries(&dashboard, &mut queries);
        assert!(queries.len() >= 12, "{queries:?}");
        for query in queries {
            let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let names: Vec<_> =
                words.filter(|word| word.starts_with("tidegate_") || word.starts_with("process_")).collect();
            assert!(!names.is_empty(), "{query}");
            for name in names {
                assert!(metrics.names.contains(name), "{query}: nothing is called {name}: {:#?}", metrics.names);
            }
        }
    });
}

fn collect_queries(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(|query| query.as_str()).map(str::to_owned));
            fields.values().for_each(|value| collect_queries(value, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_queries(item, found)),
        _ => {}
    }
}

/// The body of `/metrics`.
fn scrape(lab: &Lab) -> String {
    let answer = exchange(lab, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    body.to_owned()
}

fn exchange(lab: &Lab, request: &[u8]) -> String {
    let address: SocketAddr = METRICS.parse().unwrap();
    // The gateway may still be about to listen.
    let deadline = std::time::Instant::now() + DEADLINE;
    let mut stream = loop {
        match lab.gateway.run(|| TcpStream::connect(address)).unwrap() {
            Ok(stream) => break stream,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    };
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Samples by name and labels, after the rules of OpenMetrics were checked.
struct Exposition {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
    names: BTreeSet<String>,
}

impl Exposition {
    fn read(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("the end is marked");
        let (mut samples, mut names) = (Vec::new(), BTreeSet::new());
        let mut family: Option<(String, String)> = None;
        let mut seen = BTreeSet::new();
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (keyword, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                match keyword {
                    "HELP" => {
                        assert!(seen.insert(name.to_owned()), "{name} comes twice");
                        assert!(rest.len() > 3, "{line}");
                    }
                    "TYPE" => family = Some((name.to_owned(), rest.to_owned())),
                    "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let (family, kind) = family.as_ref().unwrap();
            let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} stands under {family}"));
            assert_eq!(suffix, if kind == "counter" { "_total" } else { "" }, "{line}");
            let labels = labels.strip_suffix('}').unwrap();
            let labels: BTreeMap<_, _> = labels
                .split_terminator("\",")
                .map(|label| label.split_once("=\"").unwrap())
                .map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned()))
                .collect();
            names.insert(name.to_owned());
            samples.push((name.to_owned(), labels, value.parse().unwrap()));
        }
        assert!(samples.len() > 50, "{text}");
        Self { samples, names }
    }

    /// Of all series of a name with these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |own: &BTreeMap<String, String>| {
            labels.iter().all(|(key, value)| own.get(*key).is_some_and(|own| own == value))
        };
        let found: Vec<_> = self.samples.iter().filter(|(own, with, _)| own == name && fits(with)).collect();
        assert!(!found.is_empty(), "no {name} with {labels:?}");
        found.iter().map(|(_, _, value)| value).sum()
    }
}
