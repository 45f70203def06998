//! `tidegate exec`: one command behind tidegate.

mod written;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::{USAGE, check};
use crate::app::lists;
use crate::config::{self, Loaded};
use crate::dns::lookup::resolvers_of_host;
use crate::mode::exec::{self, Beside, Failure, Settings, reach, world};
use crate::mode::gateway;
use crate::peek;
use crate::policy::bindings;
use crate::policy::network::{Mode, Network, ProtectedIp};
use crate::proxy::{proof, relay, udp, worker};
use crate::sys::fork::inherited;
use written::Entry;

#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExecArgs {
    /// A configuration: its Network judges the command
    #[arg(long, value_name = "FILE", conflicts_with_all = ["allow", "block"])]
    pub config: Option<PathBuf>,
    /// Allow a name (`example.com`, `*.example.com`, `.example.com` for both), an address or a prefix, and nothing else
    #[arg(long, value_name = "NAME", value_parser = Entry::parse)]
    pub allow: Vec<Entry>,
    /// Block a name, an address or a prefix
    #[arg(long, value_name = "NAME", value_parser = Entry::parse)]
    pub block: Vec<Entry>,
    /// Write records as JSON lines to a file, or to a descriptor by its number
    #[arg(long, value_name = "FILE|FD")]
    pub records: Option<PathBuf>,
    /// Say nothing: neither blocks nor whom the command spoke with
    #[arg(long)]
    pub quiet: bool,
    /// Write a policy that allows whom the command spoke with
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Let this host reach a port of the command, both on loopback
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub expose: Vec<u16>,
    /// Let the command reach a port of this host, both on loopback
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub host_port: Vec<u16>,
    /// Let the command use a path socket of this host
    #[arg(long, value_name = "PATH")]
    pub allow_socket: Vec<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

pub fn exec(args: ExecArgs) -> ExitCode {
    let loaded = match args.load() {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let records = match args.records.as_ref().map(open_records).transpose() {
        Ok(records) => records,
        Err(error) => return wrong(&format!("cannot write records to {}: {error}", shown(args.records.as_ref()))),
    };
    if let Err(error) = args.save.as_deref().map_or(Ok(()), is_writable) {
        return wrong(&format!("cannot save the policy as {}: {error}", shown(args.save.as_ref())));
    }
    let summary = !args.quiet && args.config.is_none() && args.allow.is_empty() && args.block.is_empty();
    let command = args.command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    match exec::run(args.settings(&loaded, records)) {
        Ok(outcome) => {
            if outcome.records_dropped > 0 {
                eprintln!("tidegate exec: {} records were dropped", outcome.records_dropped);
            }
            if summary {
                eprint!("\n{}", outcome.tally);
            }
            match args.save.map(|path| std::fs::write(path, written::learned(&outcome.tally, &command))) {
                Some(Err(error)) => {
                    eprintln!("tidegate exec: cannot save the policy: {error}");
                    ExitCode::FAILURE
                }
                _ => ExitCode::from(outcome.status),
            }
        }
        Err(failure) => {
            let program = matches!(failure, Failure::Program(_)).then(|| format!(" ({})", shown(args.command.first())));
            eprintln!("tidegate exec: {failure}{}", program.unwrap_or_default());
            ExitCode::from(status_of(&failure))
        }
    }
}

impl ExecArgs {
    fn load(&self) -> Result<Loaded, ExitCode> {
        if let Some((block, allow)) = written::vain(&self.allow, &self.block) {
            let (block, allow) = (&block.text, &allow.text);
            let what =
                format!("`--block {block}` would block nothing: `--allow {allow}` covers it, and allow beats block");
            return Err(wrong(&what));
        }
        let resolvers = resolvers();
        let mut loaded = match &self.config {
            Some(config) => config::load(config),
            None => config::load_text("exec", written::configuration(&self.allow, &self.block, &resolvers)),
        }
        .map_err(|mistakes| {
            check::print(&mistakes);
            ExitCode::from(USAGE)
        })?;
        if self.config.is_some() {
            // Here the resolver is the host's.
            loaded.warnings.0.retain(|warning| warning.what != config::ANYBODYS_WORD);
            check::print(&loaded.warnings);
        }
        enclose(&mut loaded, &resolvers).map_err(|what| wrong(&what))?;
        Ok(loaded)
    }

    fn settings(&self, loaded: &Loaded, records: Option<File>) -> Settings {
        Settings {
            command: self.command.clone(),
            nameservers: nameservers(loaded),
            snapshot: loaded.snapshot(1),
            gateway: gateway_settings(loaded, self.config.is_some()),
            records_waiting: loaded.limits.records,
            records,
            notices: !self.quiet,
            expose: self.expose.clone(),
            host_ports: self.host_port.clone(),
            sockets: self.allow_socket.clone(),
            drain: DRAIN,
            beside: {
                let loaded = loaded.clone();
                // The command must not loosen its own bonds.
                let is_taken = |path: &Path| !reach::is_in_reach(path);
                Beside(Box::new(move |snapshot, telemetry| lists::keep(loaded, is_taken, snapshot, telemetry)))
            },
        }
    }
}

/// Lets the configuration judge the command: its only Network does, or those that cover the command's addresses.
fn enclose(loaded: &mut Loaded, resolvers: &[SocketAddr]) -> Result<(), String> {
    let own = [IpAddr::from(world::OWN_V4), world::OWN_V6.into()];
    if let [only] = &mut loaded.networks[..] {
        let everything = own.map(|address| ProtectedIp { prefix: address.into(), port: None }).to_vec();
        *only = Arc::new(Network { ips: everything, ..(**only).clone() });
    }
    for address in own {
        let covers = |network: &Arc<Network>| {
            network.mode != Mode::Off
                && network.outbound.is_some()
                && network.ips.iter().any(|ip| ip.prefix.contains(&address) && ip.port.is_none())
        };
        if !loaded.networks.iter().any(covers) {
            return Err(format!(
                "no Network of the configuration judges what {address} sends, and that is the command: write one \
                 Network with an outbound policy, and no other, or add the address to the `ips` of one"
            ));
        }
    }
    for network in &mut loaded.networks {
        if network.dns.upstream.is_empty() && network.dns.authorized_resolvers.is_empty() {
            let mut own = (**network).clone();
            own.dns.upstream = resolvers.to_vec();
            *network = Arc::new(own);
        }
    }
    Ok(())
}

/// What the command asks: resolvers that it may, or one that stands for the host's.
fn nameservers(loaded: &Loaded) -> Vec<IpAddr> {
    let authorized: Vec<IpAddr> =
        loaded.networks.iter().flat_map(|network| network.dns.authorized_resolvers.iter().copied()).take(3).collect();
    if authorized.is_empty() { vec![world::RESOLVER.into()] } else { authorized }
}

fn resolvers() -> Vec<SocketAddr> {
    let mut own = resolvers_of_host(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    if own.is_empty() {
        // As the C library has it (resolv.conf(5)).
        own.push(([127, 0, 0, 1], 53).into());
    }
    own
}

fn gateway_settings(loaded: &Loaded, configured: bool) -> gateway::Settings {
    let limits = &loaded.limits;
    gateway::Settings {
        workers: 1,
        worker: worker::Settings {
            flows: limits.flows,
            // There is but one client.
            flows_of_one: limits.flows,
            held: limits.held_bytes_in_all,
            peek: peek::tcp::Limits { held: limits.held_bytes, fingerprints: true },
            dial_from: worker::DialFrom::Host,
            proof: proof::Settings::new(resolvers()),
        },
        relay: relay::Settings { idle: if configured { limits.idle } else { IDLE }, connect: CONNECT },
        dns: crate::dns::Settings { from_client: false, ..limits.dns.dns.clone() },
        udp: udp::Settings { flows: UDP_FLOWS, memory: UDP_IDLE, ..Default::default() },
        // Its two addresses are one client.
        bindings: bindings::Settings { of_each: false, grace: GRACE, ..limits.dns.bindings.clone() },
        kernel_names: false,
    }
}

fn open_records(to: &PathBuf) -> io::Result<File> {
    match to.to_str().and_then(|text| text.parse().ok()) {
        Some(number) => Ok(inherited(number)?.into()),
        None => OpenOptions::new().append(true).create(true).open(to),
    }
}

/// Whether a file can be written at `path`, which is left as it is: a long command shall not run in vain.
fn is_writable(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().append(true).open(path).map(drop)
        }
        Err(error) => Err(error),
    }
}

fn shown(path: Option<impl AsRef<Path>>) -> String {
    path.map(|path| path.as_ref().display().to_string()).unwrap_or_default()
}

fn wrong(what: &str) -> ExitCode {
    eprintln!("tidegate exec: {what}");
    ExitCode::from(USAGE)
}

/// As shells have it where the program is to blame.
fn status_of(failure: &Failure) -> u8 {
    match failure {
        Failure::Program(error) if error.kind() == io::ErrorKind::NotFound => 127,
        Failure::Program(_) => 126,
        Failure::Namespaces(_) | Failure::Step(..) => 1,
    }
}

const EXAMPLES: &str = "\
Without --config, --allow and --block everything is allowed, and a table at the end shows whom the command spoke with.

  tidegate exec -- npm install
  tidegate exec --save policy.toml -- make test
  tidegate exec --config policy.toml -- make test    nothing but that from now on
  tidegate exec --allow github.com --allow .npmjs.org -- ./agent
  tidegate exec --block .ads.example -- ./program
  tidegate exec --host-port 5432 -- ./app            a database on this host's loopback";

/// How long a server may take to answer.
const CONNECT: Duration = Duration::from_secs(15);
/// A command's own connection may rest as long as it likes, within reason.
const IDLE: Duration = Duration::from_secs(24 * 3600);
/// Programs keep addresses beyond their TTL: a pool that dials again does not ask again.
const GRACE: Duration = Duration::from_secs(600);
/// Each holds a descriptor.
const UDP_FLOWS: usize = 4096;
const UDP_IDLE: Duration = Duration::from_secs(180);
/// Data that was sent last is on its way; a server that never ends its side is not waited for longer.
const DRAIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_written_are_those_of_a_command_too() {
        let written = "[limits]\nflows = 9\n[limits.dns]\nttl = 7\nbindings = 99\n".to_owned();
        let loaded = config::load_text("exec", written).unwrap();
        let settings = gateway_settings(&loaded, true);
        assert_eq!((settings.worker.flows, settings.dns.ttl, settings.bindings.pairs), (9, 7, 99));
        assert!(!settings.dns.from_client && !settings.bindings.of_each && settings.bindings.grace == GRACE);
    }
}
