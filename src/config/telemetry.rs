//! `[telemetry]`: where records go, and how a running gateway is looked at. All of it takes effect at start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::mistake::Report;
use super::table::Table;
use super::value::Located;
use crate::sys::privileges::files::RUNTIME;
use crate::telemetry::sink::{Facility, Rotation, Template};
use crate::telemetry::writers::{Destination, SinkSettings};

#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    /// `[[telemetry.sink]]`, at most 8. Default: standard output.
    pub sinks: Vec<SinkSettings>,
    /// Of the allowed flows one in so many is recorded, 0 for none: 0 to 1,000,000; default 1. Blocks always are.
    pub allowed: u64,
    /// Where metrics are served; `None`: nowhere. Default 127.0.0.1:9469.
    pub metrics: Option<SocketAddr>,
    /// The socket of `status` and `reload`; `None`: none. Default in $RUNTIME_DIRECTORY, or in /run/tidegate.
    pub socket: Option<PathBuf>,
}

impl TelemetrySettings {
    pub fn new(records: usize) -> Self {
        Self {
            sinks: vec![SinkSettings { to: Destination::Stdout, records }],
            allowed: 1,
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], METRICS_PORT))),
            socket: Some(default_socket()),
        }
    }
}

impl TelemetrySettings {
    /// Files beside which others are made, renamed and removed while the gateway runs.
    pub fn written_files(&self) -> impl Iterator<Item = &Path> {
        let files = self.sinks.iter().filter_map(|sink| match &sink.to {
            Destination::File { path, .. } => Some(&**path),
            _ => None,
        });
        files.chain(self.socket.as_deref())
    }
}

/// Where the socket is if nothing else is said.
pub fn default_socket() -> PathBuf {
    // systemd may name several, and the first is ours.
    let folder = std::env::var("RUNTIME_DIRECTORY").ok().and_then(|all| Some(all.split(':').next()?.to_owned()));
    let folder = folder.filter(|folder| !folder.is_empty());
    PathBuf::from(folder.unwrap_or_else(|| RUNTIME.to_owned())).join("tidegate.sock")
}

/// `records`: how many wait for a sink that does not say otherwise.
pub(super) fn read(mut table: Table<'_>, host: &Arc<str>, records: usize, report: &Report) -> TelemetrySettings {
    let default = TelemetrySettings::new(records);
    let metrics = table.text("metrics").map_or(default.metrics, |written| {
        switchable(&written, |text| {
            let address = text.parse().ok().filter(|address: &SocketAddr| address.port() > 0);
            if address.is_none() {
                let what = format!("`{text}` is no address with a port");
                report.error(&written.place, what, "write one such as \"127.0.0.1:9469\", or \"off\"");
            }
            address
        })
    });
    let socket =
        table.text("socket").map_or(default.socket, |written| switchable(&written, |_| Some(seen_from(&written))));
    let allowed = table.number("allowed", 0..=1_000_000, default.allowed);
    let is_given = table.has("sink");
    let mut sinks: Vec<SinkSettings> = Vec::new();
    for table in table.tables("sink") {
        let place = table.place.clone();
        let Some(sink) = read_sink(table, host, records, report) else { continue };
        let name = sink.to.to_string();
        if sinks.iter().any(|own| own.to.to_string() == name) {
            report.error(&place, format!("a second sink writes to {name}"), "leave it out");
        } else if sinks.len() >= MAX_SINKS {
            report.error(&place, format!("this sink is number {}", MAX_SINKS + 1), format!("at most {MAX_SINKS}"));
        } else {
            sinks.push(sink);
        }
    }
    TelemetrySettings { sinks: if is_given { sinks } else { default.sinks }, allowed, metrics, socket }
}

fn read_sink(mut table: Table<'_>, host: &Arc<str>, records: usize, report: &Report) -> Option<SinkSettings> {
    let words = &[("stdout", To::Stdout), ("file", To::File), ("syslog-udp", To::Udp), ("syslog-tcp", To::Tcp)];
    let to = table.demand("to", "\"file\"").and_then(|value| value.word(words));
    let records = table.count("records", 1..=(1 << 24), records);
    let to = match to? {
        To::Stdout => Some(Destination::Stdout),
        To::File => read_file(&mut table),
        To::Udp => read_server(&mut table, host, 65_000, report)
            .map(|(server, template)| Destination::SyslogUdp { server, template }),
        To::Tcp => read_server(&mut table, host, 1 << 20, report)
            .map(|(server, template)| Destination::SyslogTcp { server, template }),
    };
    Some(SinkSettings { to: to?, records })
}

#[derive(Clone, Copy)]
enum To {
    Stdout,
    File,
    Udp,
    Tcp,
}

fn read_file(table: &mut Table<'_>) -> Option<Destination> {
    let path = table.demand("path", "\"/var/log/tidegate/records.jsonl\"").and_then(|value| value.text());
    let rotation = Rotation {
        size: table.size("size", (64 << 10)..=(1 << 40), 100 << 20) as u64,
        age: table.duration("age", MINUTE..=366 * DAY, DAY),
        keep: table.count("keep", 0..=10_000, 7),
    };
    Some(Destination::File { path: seen_from(&path?), rotation })
}

fn read_server(table: &mut Table<'_>, host: &Arc<str>, most: u64, report: &Report) -> Option<(SocketAddr, Template)> {
    let server = table.demand("server", "\"192.0.2.1:514\"").and_then(|value| value.text());
    let template = Template {
        facility: table.word("facility", &Facility::WORDS, Facility(16)),
        host: host.clone(),
        app_name: table.text("app_name").map_or_else(|| "tidegate".into(), |name| name.value.into()),
        longest: table.size("longest", 480..=most, 8 << 10),
    };
    let server = server?;
    match server.value.parse::<SocketAddr>().ok().filter(|server| server.port() > 0) {
        Some(server) => Some((server, template)),
        None => {
            let what = format!("`{}` is no address with a port", server.value);
            report.error(&server.place, what, "write one such as \"192.0.2.1:514\" or \"[2001:db8::1]:514\"");
            None
        }
    }
}

fn switchable<T>(written: &Located<String>, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    if written.value == "off" { None } else { read(&written.value) }
}

/// A path, seen from the file that it is written in.
fn seen_from(written: &Located<String>) -> PathBuf {
    let folder = written.place.source.path.parent();
    folder.map_or_else(|| PathBuf::from(&written.value), |folder| folder.join(&written.value))
}

const METRICS_PORT: u16 = 9469;
const MAX_SINKS: usize = 8;
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::super::table::read_alone;
    use super::*;

    #[test]
    fn every_key_reaches_its_setting() {
        let text = r#"
metrics = "[::1]:9000"
socket = "/tmp/s"
allowed = 10
[[sink]]
to = "stdout"
[[sink]]
to = "file"
path = "r.jsonl"
size = "1MiB"
age = "1h"
keep = 3
records = 5
[[sink]]
to = "syslog-udp"
server = "192.0.2.1:514"
facility = "daemon"
app_name = "edge"
longest = 2048
"#;
        let (read, mistakes) = read_alone(text, |table, report| read(table, &"host".into(), 77, report));
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!((read.metrics, read.allowed), (Some("[::1]:9000".parse().unwrap()), 10));
        assert_eq!(read.socket, Some("/tmp/s".into()));
        let names: Vec<_> = read.sinks.iter().map(|sink| (sink.to.to_string(), sink.records)).collect();
        let expected = [("stdout", 77), ("r.jsonl", 5), ("syslog-udp 192.0.2.1:514", 77)];
        assert_eq!(names, expected.map(|(name, records)| (name.to_owned(), records)));
        let rotation = Rotation { size: 1 << 20, age: Duration::from_secs(3600), keep: 3 };
        assert!(matches!(&read.sinks[1].to, Destination::File { rotation: own, .. } if *own == rotation));
        let Destination::SyslogUdp { template, .. } = &read.sinks[2].to else { panic!() };
        assert_eq!((template.facility, &*template.app_name, template.longest), (Facility(3), "edge", 2048));
        assert_eq!(&*template.host, "host");
    }

    #[test]
    fn what_is_switched_off_is_off_and_what_is_left_out_is_the_default() {
        let (off, _) =
            read_alone("metrics = \"off\"\nsocket = \"off\"", |table, report| read(table, &"host".into(), 1, report));
        assert_eq!((off.metrics, off.socket, off.sinks.len()), (None, None, 1));
        assert_eq!(TelemetrySettings::new(1).metrics, Some("127.0.0.1:9469".parse().unwrap()));
    }
}
