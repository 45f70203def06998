//! Makes the flows of a plan and holds what came of each against what was expected.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Outcome, Request, Saw, Trust, ask_http, ask_tls};
use super::lab::{Lab, Site};
use super::plan::{Speaks, Trial};
use super::tap::Packet;
use crate::policy::DropAction;

/// A trial that was made, with what each of the three sides has to say of it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) trial: Trial,
    pub(super) saw: Saw,
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

/// Makes the flows, several at a time, from the client's namespace.
pub(super) fn make(lab: &Lab, trust: &Trust, trials: Vec<Trial>) -> io::Result<Vec<Flow>> {
    let waiting = Mutex::new(trials.into_iter());
    let made = Mutex::new(Vec::new());
    let work = || {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(trial) = next else { return };
            let Outcome { saw, .. } = ask(&trial, trust);
            let flow = Flow { trial, saw, arrived: 0, record: None };
            made.lock().unwrap_or_else(PoisonError::into_inner).push(flow);
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| lab.client.run(work))).collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn ask(trial: &Trial, trust: &Trust) -> Outcome {
    let patience = if trial.drop == DropAction::Discard { SILENCE } else { PATIENCE };
    let request = Request {
        source: trial.source,
        destination: trial.destination,
        name: trial.named.name().map(str::to_owned),
        patience,
    };
    match trial.speaks {
        Speaks::Tls => ask_tls(&request, trust),
        Speaks::Http => ask_http(&request),
    }
}

impl Flow {
    /// Adds what the server's link and the gateway's records say.
    pub(super) fn complete(&mut self, packets: &[Packet], records: &[Record]) {
        self.arrived = packets.iter().filter(|packet| packet.destination == self.trial.destination).count();
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
    /// its drop action says.
    fn client_is_right(&self) -> bool {
        match (&self.saw, self.trial.passes, self.trial.drop) {
            (Saw::Answer(answer), true, _) => {
                *answer == format!("{} asked {}\n", self.trial.source, self.trial.destination)
            }
            (Saw::Silence, false, DropAction::Discard) => true,
            (Saw::Reset | Saw::Unreachable, false, DropAction::IcmpUnreachable) => true,
            (Saw::Reset, false, DropAction::TcpReset) => true,
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
            "packets_at_server": self.arrived,
            "record": self.record.as_ref().map(|record| &record.fields),
            "as_expected": self.is_as_expected(),
        })
    }
}

const AT_ONCE: usize = 16;
/// How long a client waits for what must come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a client listens before it calls it silence.
const SILENCE: Duration = Duration::from_millis(1500);
