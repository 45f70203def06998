//! Makes the flows of a plan and holds what came of each against what was expected.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Outcome, Request, Saw, Trust, ask_http, ask_tls};
use super::lab::{Lab, Site};
use super::plan::{Speaks, Trial};
use super::quic::ask_quic;
use super::tap::{Kind, Packet};
use crate::policy::DropAction;

/// A trial that was made, with what each of the three sides has to say of it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) trial: Trial,
    pub(super) saw: Saw,
    source: Option<SocketAddr>,
    /// What reached the client besides: resets of this flow, and ICMP that says prohibited.
    resets: usize,
    prohibitions: usize,
    /// How many packets reached the server.
    pub(super) arrived: usize,
    /// The gateway's record of its verdict.
    pub(super) record: Option<Record>,
}

/// A line of the gateway's standard output, and what it says.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) line: String,
    fields: Value,
}

impl Record {
    /// Lines that are no JSON are no records.
    pub(super) fn read(line: &str) -> Option<Self> {
        Some(Self { line: line.to_owned(), fields: serde_json::from_str(line).ok()? })
    }
}

/// Makes the flows, several at a time, from the client's namespace. The servers of TLS and of QUIC are trusted each by
/// its own.
pub(super) fn make(lab: &Lab, trust: &[Trust; 2], trials: Vec<Trial>) -> io::Result<Vec<Flow>> {
    let waiting = Mutex::new(trials.into_iter().enumerate());
    let made = Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, trial)) = next else { return };
            let Outcome { saw, source } = ask(&trial, trust);
            let flow = Flow { trial, saw, source, resets: 0, prohibitions: 0, arrived: 0, record: None };
            made.lock().unwrap_or_else(PoisonError::into_inner).push((number, flow));
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| lab.client.run(work))).collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.sort_by_key(|(number, _)| *number);
    Ok(made.into_iter().map(|(_, flow)| flow).collect())
}

fn ask(trial: &Trial, [tls, quic]: &[Trust; 2]) -> Outcome {
    let nothing_comes = trial.drop == DropAction::Discard || trial.speaks == Speaks::Quic;
    let patience = if nothing_comes && !trial.passes { SILENCE } else { PATIENCE };
    let request = Request {
        source: trial.source,
        destination: trial.destination,
        name: trial.named.name().map(str::to_owned),
        patience,
    };
    match trial.speaks {
        Speaks::Tls => ask_tls(&request, tls),
        Speaks::Http => ask_http(&request),
        Speaks::Quic => ask_quic(&request, quic),
    }
}

impl Flow {
    /// Adds what arrived at the server and at the client, and what the gateway's records say.
    pub(super) fn complete(&mut self, at_server: &[Packet], at_client: &[Packet], records: &[Record]) {
        self.arrived = at_server.iter().filter(|packet| packet.destination == self.trial.destination).count();
        self.resets = at_client
            .iter()
            .filter(|packet| packet.kind == Kind::Reset && Some(packet.destination) == self.source)
            .count();
        self.prohibitions = at_client
            .iter()
            .filter(|packet| packet.quoted == Some(self.trial.destination) && is_prohibition(packet.kind))
            .count();
        self.record = records.iter().rfind(|record| self.is_its_verdict(&record.fields)).cloned();
    }

    fn is_its_verdict(&self, record: &Value) -> bool {
        let judges = matches!(record["kind"].as_str(), Some("ip" | "domain")) && record["reason"] != "DOMAIN_INSPECT";
        let address = |key: &str| record[key].as_str().and_then(|text| text.parse().ok());
        judges
            && address("source") == Some(self.trial.source)
            && address("destination") == Some(self.trial.destination.ip())
            && record["destination_port"] == self.trial.destination.port()
    }

    /// Client, server and record all say what was expected.
    pub(super) fn is_as_expected(&self) -> bool {
        self.client_is_right() && self.server_is_right() && self.record_is_right()
    }

    /// A flow that passes shows the server the client's own address; one that is refused shows the client just what
    /// its drop action says. UDP knows no reset: ICMP stands for it.
    fn client_is_right(&self) -> bool {
        match (&self.saw, self.trial.passes, self.trial.drop) {
            (Saw::Answer(answer), true, _) => {
                *answer == format!("{} asked {}\n", self.trial.source, self.trial.destination)
            }
            (Saw::Silence, false, DropAction::IcmpUnreachable | DropAction::TcpReset)
                if self.trial.speaks == Speaks::Quic =>
            {
                self.prohibitions > 0 && self.resets == 0
            }
            (Saw::Silence, false, DropAction::Discard) => self.resets == 0 && self.prohibitions == 0,
            (Saw::Reset | Saw::Unreachable, false, DropAction::IcmpUnreachable) => self.prohibitions > 0,
            (Saw::Reset, false, DropAction::TcpReset) => self.resets > 0 && self.prohibitions == 0,
            _ => false,
        }
    }

    /// A refused flow sends nothing on, not even the packet that opens a connection.
    fn server_is_right(&self) -> bool {
        (self.arrived > 0) == self.trial.passes
    }

    fn record_is_right(&self) -> bool {
        let verdict = if self.trial.passes { "allow" } else { "block" };
        self.record.as_ref().is_some_and(|Record { fields, .. }| {
            fields["verdict"] == verdict && fields["domain"].as_str() == self.trial.named.name()
        })
    }

    /// What the client saw and was told, in a few words.
    pub(super) fn experience(&self) -> String {
        match (self.prohibitions > 0, self.trial.speaks) {
            (true, Speaks::Quic) => "ICMP prohibited (QUIC)".to_owned(),
            (true, _) => format!("ICMP prohibited, then {}", self.saw),
            (false, _) => self.saw.to_string(),
        }
    }

    /// One line for a person who asks what went wrong.
    pub(super) fn complaint(&self) -> String {
        let Trial { inspection, family, speaks, source, destination, .. } = &self.trial;
        format!(
            "{inspection}, {family} {}, {source} to {destination} named {}: expected to {}, the client saw {}, {} \
             packets reached the server, the record says {}",
            speaks.word(),
            self.trial.named.name().unwrap_or("nothing"),
            if self.trial.passes { "pass" } else { "be blocked" },
            self.saw,
            self.arrived,
            self.record.as_ref().map_or("nothing".to_owned(), |record| record.fields["verdict"].to_string()),
        )
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "inspection": self.trial.inspection.as_str(),
            "address": match self.trial.site { Site::A => "allow", Site::B => "block" },
            "domain": self.trial.named.name(),
            "family": self.trial.family.to_string(),
            "protocol": self.trial.speaks.word(),
            "source": self.trial.source.to_string(),
            "destination": self.trial.destination.to_string(),
            "drop": self.trial.drop.as_str(),
            "expected": if self.trial.passes { "allow" } else { "block" },
            "client_saw": self.saw.to_string(),
            "resets_at_client": self.resets,
            "icmp_prohibitions_at_client": self.prohibitions,
            "packets_at_server": self.arrived,
            "record": self.record.as_ref().map(|record| &record.fields),
            "as_expected": self.is_as_expected(),
        })
    }
}

/// Communication administratively prohibited: RFC 1812, 5.2.7.1, and RFC 4443, 3.1.
fn is_prohibition(kind: Kind) -> bool {
    matches!(kind, Kind::Icmp { kind: 3, code: 13 } | Kind::Icmp { kind: 1, code: 1 })
}

const AT_ONCE: usize = 16;
/// How long a client waits for what must come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a client listens before it calls it silence.
const SILENCE: Duration = Duration::from_millis(1500);
