//! `tidegate explain`: what would happen to a flow, and why, by the very judgement that the gateway uses.

mod account;

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;

use super::{ConfigArg, USAGE, say};
use crate::config::fingerprint_of;
use crate::name::DomainName;
use crate::policy::protocol::number_of;
use account::{Account, Flow};

#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub config: ConfigArg,
    /// The address that opens the flow
    #[arg(long, value_name = "ADDRESS")]
    pub source: IpAddr,
    /// The address that it goes to
    #[arg(long, value_name = "ADDRESS")]
    pub destination: IpAddr,
    /// The destination port, for protocols that have ports
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// tcp, udp, icmp, another name, or a number
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp", value_parser = protocol)]
    pub protocol: Protocol,
    /// The name that the flow shows, or on port 53 asks for; left out: none
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Option<DomainName>,
    /// The client's JA3 hash, JA3 string or JA4
    #[arg(long, value_name = "FINGERPRINT", value_parser = fingerprint)]
    pub fingerprint: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// An IP protocol and how it was written.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub number: u8,
    pub written: String,
}

pub fn explain(args: &ExplainArgs) -> ExitCode {
    let has_ports = matches!(args.protocol.number, 6 | 17);
    if has_ports != args.port.is_some() {
        let what = if has_ports { "tcp and udp need --port" } else { "this protocol has no ports: leave --port out" };
        eprintln!("tidegate explain: {what}");
        return ExitCode::from(USAGE);
    }
    if args.source.is_ipv4() != args.destination.is_ipv4() {
        eprintln!("tidegate explain: --source and --destination are of different families: give two of one");
        return ExitCode::from(USAGE);
    }
    let loaded = match args.config.load() {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let account = Account::of(&loaded.snapshot(1), &args.flow(), SystemTime::now());
    if args.json {
        match serde_json::to_string_pretty(&account) {
            Ok(text) => say(text + "\n"),
            Err(error) => {
                eprintln!("tidegate explain: {error}");
                ExitCode::FAILURE
            }
        }
    } else {
        say(account)
    }
}

impl ExplainArgs {
    fn flow(&self) -> Flow {
        Flow {
            source: self.source,
            destination: self.destination,
            protocol: self.protocol.clone(),
            port: self.port,
            name: self.name.clone(),
            fingerprint: self.fingerprint.clone(),
        }
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    let number = number_of(text).ok_or("not the name or the number of a protocol")?;
    Ok(Protocol { number, written: text.to_lowercase() })
}

fn fingerprint(text: &str) -> Result<String, &'static str> {
    fingerprint_of(text).ok_or("not a JA3 hash, a JA3 string or a JA4")
}

fn name(text: &str) -> Result<DomainName, String> {
    DomainName::parse(text.as_bytes()).map_err(|why| format!("not a host name: {why}"))
}
