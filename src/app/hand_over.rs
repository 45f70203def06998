//! From one tidegate to the next without losing a connection attempt (SPEC R8).
//!
//! ```text
//! new: reads and checks its configuration      old: serves
//!      HELLO                             ->
//!                                        <-    STATE, its listeners, the kernel's log, its bindings, END
//!      QUIET                             ->    reads the kernel's log no more
//!      its rules in the place of the old
//!      its workers serve
//!      DONE                              ->    takes nothing more in
//!      ready                             <-    DONE; serves what it has until that ends, and ends
//! ```
//!
//! Until DONE each step can fail on either side, and the old one goes on: it puts its own rules back. Only root or the
//! user of the old one may take over, in its network namespace.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::mode::gateway::Listeners;
use crate::mode::gateway::hand_over::Spare;
use crate::name::DomainName;
use crate::policy::bindings::Bindings;
use crate::sys::channel::{Channel, Message};
use crate::sys::nflog::PacketLog;

/// By this name a gateway waits for who takes over.
pub(super) const NAME: &[u8] = b"tidegate/hand-over";

const HELLO: &[u8] = b"tidegate takes over, version 1";
const QUIET: &[u8] = b"quiet";
const END: &[u8] = b"end";
const DONE: &[u8] = b"done";
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(20);
/// Octets of a message with bindings.
const PAGE: usize = 3500;

#[derive(Debug, Serialize, Deserialize)]
struct State {
    generation: u64,
    workers: usize,
}

/// What a gateway that serves shows to the next.
pub(super) struct Old<'a> {
    pub(super) generation: u64,
    pub(super) spare: &'a Spare,
    pub(super) bindings: &'a Bindings,
}

/// What a new gateway gets from the old, until it says [`Taken::done`].
#[derive(Debug)]
pub(super) struct Taken {
    channel: Channel,
    pub(super) generation: u64,
    pub(super) listeners: Option<Listeners>,
    pub(super) log: Option<PacketLog>,
    pub(super) bound: Vec<Bound>,
}

/// A name that DNS gave a client for an address, with what is left of its time.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Bound(IpAddr, IpAddr, String, u64);

/// The other end may take over, and has said that it wants to: its process.
pub(super) fn greet(channel: &Channel) -> io::Result<u32> {
    channel.set_patience(PATIENCE)?;
    let (user, process) = channel.peer()?;
    if user != 0 && user != nix::unistd::Uid::effective().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {user} may not take over")));
    }
    expect(channel, HELLO)?;
    Ok(process)
}

impl Old<'_> {
    /// Gives all that the new one needs. `log` is what hears the kernel's log.
    pub(super) fn give(&self, to: &Channel, log: BorrowedFd<'_>) -> io::Result<()> {
        let state = State { generation: self.generation, workers: self.spare.workers() };
        to.send(&serde_json::to_vec(&state)?, &[])?;
        self.spare.send(to)?;
        to.send(b"log", &[log])?;
        let (mut page, mut broken) = (Vec::new(), None);
        self.bindings.each(Instant::now(), |client, remote, name, lasts| {
            let lasts = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
            let line = serde_json::to_vec(&Bound(client, remote, name.to_string(), lasts)).unwrap_or_default();
            if page.len() + line.len() >= PAGE && broken.is_none() {
                broken = to.send(&page, &[]).err();
                page.clear();
            }
            page.extend(line);
            page.push(b'\n');
        });
        if let Some(error) = broken {
            return Err(error);
        }
        if !page.is_empty() {
            to.send(&page, &[])?;
        }
        to.send(END, &[])
    }
}

/// Waits until the new one wants to hear the kernel's log.
pub(super) fn wait_for_quiet(channel: &Channel) -> io::Result<()> {
    expect(channel, QUIET)
}

pub(super) fn say_quiet(channel: &Channel) -> io::Result<()> {
    channel.send(QUIET, &[])
}

/// Waits until the new one serves.
pub(super) fn wait_for_done(channel: &Channel) -> io::Result<()> {
    expect(channel, DONE)
}

pub(super) fn say_done(channel: &Channel) -> io::Result<()> {
    channel.send(DONE, &[])
}

impl Taken {
    /// `None`: nobody is there to take over from.
    pub(super) fn ask() -> io::Result<Option<Self>> {
        let channel = match Channel::connect(NAME) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
            channel => channel?,
        };
        channel.set_patience(PATIENCE)?;
        let (user, _) = channel.peer()?;
        if user != 0 && user != nix::unistd::Uid::effective().as_raw() {
            // Whoever may use the name could else give us sockets of its own.
            tracing::warn!(
                user,
                "what answers by the name of a running tidegate is another user's: nothing is taken over"
            );
            return Ok(None);
        }
        channel.send(HELLO, &[])?;
        let State { generation, workers } = serde_json::from_slice(&next(&channel)?.octets)?;
        let messages = (0..workers.min(MOST_WORKERS)).map(|_| next(&channel)).collect::<io::Result<_>>()?;
        let listeners = Some(Listeners::take_over(messages)?);
        let log = next(&channel)?.descriptors.pop().map(PacketLog::from_socket);
        let mut bound = Vec::new();
        loop {
            let page = next(&channel)?.octets;
            if page == END {
                return Ok(Some(Self { channel, generation, listeners, log, bound }));
            }
            let lines = page.split(|octet| *octet == b'\n').filter(|line| !line.is_empty());
            // One that cannot be read is a binding that is not known here.
            bound.extend(lines.filter_map(|line| serde_json::from_slice::<Bound>(line).ok()));
        }
    }

    /// Asks the old one to leave the kernel's log to us.
    pub(super) fn quieten(&self) -> io::Result<()> {
        self.channel.send(QUIET, &[])?;
        expect(&self.channel, QUIET)
    }

    /// From here on the old one takes nothing more in.
    pub(super) fn done(self) -> io::Result<()> {
        self.channel.send(DONE, &[])?;
        expect(&self.channel, DONE)
    }
}

/// Remembers what the old one knew of names.
pub(super) fn remember(bindings: &Arc<Bindings>, bound: Vec<Bound>) {
    let now = Instant::now();
    for Bound(client, remote, name, lasts) in bound {
        if let Ok(name) = DomainName::parse(name.as_bytes()) {
            bindings.bind(client, remote, &[name], Duration::from_millis(lasts), now);
        }
    }
}

fn expect(channel: &Channel, word: &[u8]) -> io::Result<()> {
    match next(channel)?.octets == word {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "the other process speaks another language")),
    }
}

fn next(channel: &Channel) -> io::Result<Message> {
    channel.receive()?.ok_or_else(|| io::Error::new(io::ErrorKind::BrokenPipe, "the other process has given up"))
}

const MOST_WORKERS: usize = 1024;
