//! The record of a judgement, one JSON object once it is written (SPEC L1 and section 10).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use crate::name::DomainName;
use crate::peek::{Fingerprint, Via};
use crate::policy::protocol::name_of;
use crate::policy::{Direction, DropAction, Verdict};
use crate::wire::ip::Headers;

/// Fields that do not apply are left out.
#[derive(Clone, Debug)]
pub struct Record {
    pub time: SystemTime,
    pub kind: Kind,
    pub enforcer: Arc<str>,
    pub network: Option<Arc<str>>,
    pub policy: Option<Arc<str>>,
    pub direction: Option<&'static str>,
    pub protocol: Cow<'static, str>,
    pub source: IpAddr,
    pub source_port: Option<u16>,
    pub destination: IpAddr,
    pub destination_port: Option<u16>,
    /// `type`, where the domain was read: `DNS`, `HTTP`, `TLS` or `QUIC`.
    pub via: Option<&'static str>,
    pub domain: Option<DomainName>,
    pub ip_verdict: Option<&'static str>,
    pub domain_verdict: Option<&'static str>,
    pub inspection: Option<&'static str>,
    pub verdict: Option<&'static str>,
    pub reason: Option<&'static str>,
    /// More about the reason, for a person: why a hello could not be read.
    pub detail: Option<String>,
    pub list: Option<Arc<str>>,
    /// What was done to a blocked flow; `monitor` if the Network only watches.
    pub action: Option<&'static str>,
    pub ja3: Option<String>,
    pub ja4: Option<String>,
    /// The hello carried an encrypted_client_hello extension.
    pub ech: bool,
    pub binding: Option<&'static str>,
    /// `fingerprint`: not the one that the policy expects for the name, and only to be told (SPEC V10).
    pub alert: Option<&'static str>,
    pub flow: Option<u64>,
    /// Octets from the client to the server.
    pub bytes_out: Option<u64>,
    /// Octets from the server to the client.
    pub bytes_in: Option<u64>,
    pub duration_ms: Option<u64>,
    pub closed_by: Option<&'static str>,
    pub dns: Option<Box<Dns>>,
}

/// What records of DNS exchanges have besides.
#[derive(Clone, Debug, Default)]
pub struct Dns {
    /// The question's type: `A`, `HTTPS`, `TYPE65280`.
    pub qtype: Option<Cow<'static, str>>,
    pub rcode: Option<Cow<'static, str>>,
    pub answers: Vec<IpAddr>,
    /// Who gave the answer, if not the one who was asked.
    pub resolver: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ip,
    Domain,
    Dns,
    End,
}

impl Kind {
    /// The word for `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Domain => "domain",
            Self::Dns => "dns",
            Self::End => "end",
        }
    }
}

impl Record {
    /// A record of a flow with the fields that every record has.
    pub fn new(
        kind: Kind,
        time: SystemTime,
        enforcer: Arc<str>,
        protocol: &'static str,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Self {
        Self {
            time,
            kind,
            enforcer,
            network: None,
            policy: None,
            direction: None,
            protocol: protocol.into(),
            source: source.ip(),
            source_port: Some(source.port()),
            destination: destination.ip(),
            destination_port: Some(destination.port()),
            via: None,
            domain: None,
            ip_verdict: None,
            domain_verdict: None,
            inspection: None,
            verdict: None,
            reason: None,
            detail: None,
            list: None,
            action: None,
            ja3: None,
            ja4: None,
            ech: false,
            binding: None,
            alert: None,
            flow: None,
            bytes_out: None,
            bytes_in: None,
            duration_ms: None,
            closed_by: None,
            dns: None,
        }
    }

    /// A record of a packet that may be of any protocol.
    pub fn of_packet(kind: Kind, time: SystemTime, enforcer: Arc<str>, packet: &Headers) -> Self {
        let (source_port, destination_port) = packet.ports.unzip();
        let at = |address, port: Option<u16>| SocketAddr::new(address, port.unwrap_or_default());
        let (source, destination) = (at(packet.source, source_port), at(packet.destination, destination_port));
        let protocol = match name_of(packet.protocol) {
            Some(name) => name.into(),
            None => packet.protocol.to_string().into(),
        };
        Self { protocol, source_port, destination_port, ..Self::new(kind, time, enforcer, "", source, destination) }
    }

    pub fn judged_by(mut self, network: Arc<str>, policy: Option<Arc<str>>, direction: Direction) -> Self {
        self.network = Some(network);
        self.policy = policy;
        self.direction = Some(direction.as_str());
        self
    }

    /// `action`: what a blocked peer sees, or `None` if the Network only monitors.
    pub fn verdict(mut self, verdict: &Verdict, action: Option<DropAction>) -> Self {
        self.ip_verdict = Some(verdict.ip.as_str());
        self.domain_verdict = verdict.domain.map(|v| v.as_str());
        self.inspection = verdict.inspection.map(|i| i.as_str());
        self.verdict = Some(if verdict.pass { "allow" } else { "block" });
        self.reason = Some(verdict.reason.as_str());
        self.list = verdict.list.clone();
        if !verdict.pass {
            self.action = Some(action.map_or("monitor", |action| action.as_str()));
        }
        self
    }

    pub fn fingerprint(mut self, fingerprint: Option<&Fingerprint>) -> Self {
        self.ja3 = fingerprint.map(|f| f.ja3.clone());
        self.ja4 = fingerprint.map(|f| f.ja4.clone());
        self
    }
}

/// The word for `type`.
pub fn via_word(via: Via) -> &'static str {
    match via {
        Via::Dns => "DNS",
        Via::Http => "HTTP",
        Via::Tls => "TLS",
        Via::Quic => "QUIC",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{DomainVerdict, InspectionType, IpVerdict, Reason};
    use crate::telemetry::json::Lines;
    use std::time::Duration;

    #[test]
    fn a_record_has_the_fields_of_the_interface_and_leaves_out_what_does_not_apply() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_148_999_123);
        let (source, destination) = ("10.1.0.2:41000".parse().unwrap(), "203.0.113.7:443".parse().unwrap());
        let verdict = Verdict {
            pass: false,
            reason: Reason::Domain,
            ip: IpVerdict::Allow,
            domain: Some(DomainVerdict::Block),
            inspection: Some(InspectionType::PreferBoth),
            list: Some("feeds".into()),
        };
        let mut record = Record::new(Kind::Domain, time, "edge-1".into(), "tcp", source, destination)
            .judged_by("office".into(), Some("office-out".into()), Direction::Outbound)
            .verdict(&verdict, Some(DropAction::TcpReset));
        record.via = Some(via_word(Via::Tls));
        record.domain = DomainName::parse(b"www.example.com").ok();
        record.flow = Some(42);
        let mut line = Vec::new();
        Lines::default().write(&record, &mut line);
        assert_eq!(
            String::from_utf8(line).unwrap().trim_end(),
            r#"{"time":"2026-11-20T04:29:59.123Z","kind":"domain","enforcer":"edge-1","network":"office","policy":"office-out","direction":"outbound","protocol":"tcp","source":"10.1.0.2","source_port":41000,"destination":"203.0.113.7","destination_port":443,"type":"TLS","domain":"www.example.com","ip_verdict":"allow","domain_verdict":"block","inspection":"prefer-both","verdict":"block","reason":"DOMAIN","list":"feeds","action":"tcp-reset","flow":42}"#
        );
    }
}
