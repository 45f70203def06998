//! nf_tables by netlink, without the `nft` program: a whole ruleset or single elements, each in one transaction.
//!
//! An [`NftSocket`] belongs to the network namespace in which it was opened. Calls block for the microseconds that the
//! kernel needs; each thread may have a socket of its own.
//!
//! Fails closed: a transaction that the kernel refuses changes nothing, and the error names the object that it refused.

mod answer;
mod count;
mod encode;
mod entries;
mod expression;
mod list;
mod message;
mod watch;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::time::{Duration, SystemTime};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use crate::firewall::{FlowKey, FlowSet, Ruleset, TABLE, name_element, name_set};
use crate::policy::network::Network;
use answer::Answers;
pub use count::Counted;
pub use entries::Sample;
use message::{GET_TABLE, Message};
pub use watch::Fingerprint;

/// What the kernel refused, and why.
#[derive(Debug)]
pub struct NftError {
    /// `rule "..." of chain prerouting`, for instance.
    pub object: String,
    pub source: io::Error,
    /// The kernel's own words, where it had any, or what is likely to be missing.
    pub detail: Option<String>,
}

impl fmt::Display for NftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nf_tables refused {}: {}", self.object, self.source)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for NftError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<NftError> for io::Error {
    fn from(error: NftError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// A conversation with nf_tables.
pub struct NftSocket {
    socket: Socket,
    sequence: u32,
    send_buffer: usize,
    /// The kernel cannot remove what may not be there (before Linux 6.3).
    lacks_destroy: bool,
}

/// What the kernel is told of the flows of a client to a remote address.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    pub network: &'a Network,
    pub client: IpAddr,
    pub remote: IpAddr,
    /// `None`: the verdict of the address.
    pub passes: Option<bool>,
    pub lasts: Duration,
}

impl Named<'_> {
    fn removals(&self, lacks_destroy: bool) -> Vec<Message> {
        let Some((family, element)) = name_element(self.client, self.remote) else { return Vec::new() };
        let element = [element];
        let sets = [true, false].map(|verdict| name_set(self.network, verdict, family));
        let destroy = |set: &String| vec![encode::destroy_elements(set, &element)];
        // Deleting what is not there is an error, adding what is there is none.
        let add_and_delete =
            |set: &String| vec![encode::new_elements(set, &element, Some(1)), encode::delete_elements(set, &element)];
        sets.iter().flat_map(|set| if lacks_destroy { add_and_delete(set) } else { destroy(set) }).collect()
    }

    fn addition(&self) -> Option<Message> {
        let (family, element) = name_element(self.client, self.remote)?;
        let lasts = u64::try_from(self.lasts.as_millis()).unwrap_or(u64::MAX).max(1);
        Some(encode::new_elements(&name_set(self.network, self.passes?, family), &[element], Some(lasts)))
    }
}

impl fmt::Debug for NftSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NftSocket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl NftSocket {
    /// Every change needs CAP_NET_ADMIN over the network namespace of the calling thread.
    pub fn open() -> Result<Self, NftError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Self { socket, sequence: 0, send_buffer: 0, lacks_destroy: false }),
            Err(source) => Err(NftError { object: "a netlink socket".to_owned(), source, detail: None }),
        }
    }

    /// One that was opened elsewhere, by [`Self::into_socket`] of another process. It stays with its namespace.
    pub fn from_socket(socket: OwnedFd) -> Self {
        // SAFETY: the descriptor is owned, and goes over to the socket that will close it.
        #[allow(unsafe_code)]
        let socket = unsafe { Socket::from_raw_fd(socket.into_raw_fd()) };
        Self { socket, sequence: 0, send_buffer: 0, lacks_destroy: false }
    }

    pub fn into_socket(self) -> OwnedFd {
        // SAFETY: the socket gives up its descriptor, which nobody else owns.
        #[allow(unsafe_code)]
        unsafe {
            OwnedFd::from_raw_fd(self.socket.into_raw_fd())
        }
    }

    /// Puts the ruleset in the place of the table that is there, if any. Packets meet the old rules or the new ones,
    /// never none. Elements of dynamic sets are forgotten.
    pub fn replace(&mut self, ruleset: &Ruleset) -> Result<(), NftError> {
        self.transact(encode::replace(ruleset, SystemTime::now()))
    }

    /// Turns the ruleset that stands into another in one step. Unlike [`Self::replace`] it keeps what lies in dynamic
    /// sets; it is an error if something else stands.
    pub fn update(&mut self, standing: &Ruleset, next: &Ruleset) -> Result<(), NftError> {
        self.transact(encode::update(standing, next, SystemTime::now()))
    }

    /// Puts the entries of lists that end in the place of those that stand, all in one step.
    pub fn renew(&mut self, standing: &Ruleset, now: SystemTime) -> Result<(), NftError> {
        match list::renewal(&standing.lists, now) {
            nothing if nothing.is_empty() => Ok(()),
            renewal => self.transact(renewal),
        }
    }

    /// Turns whatever stands of another tidegate into this ruleset in one step, and keeps what lies in the dynamic sets
    /// that both have. Without any it is put in place.
    pub fn adopt(&mut self, next: &Ruleset) -> Result<(), NftError> {
        if !self.is_installed()? {
            return self.replace(next);
        }
        let standing = self.standing()?;
        self.transact(encode::adopt(&standing, next, SystemTime::now()))
    }

    /// Takes our table away; nothing happens if there is none.
    pub fn remove(&mut self) -> Result<(), NftError> {
        self.transact(encode::remove())
    }

    /// Whether our table stands.
    pub fn is_installed(&mut self) -> Result<bool, NftError> {
        let get = Message::in_table(GET_TABLE, 0, 1, format!("table inet {TABLE}"));
        match self.exchange(vec![get]) {
            Ok(()) => Ok(true),
            Err(error) if error.source.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds a flow; one that is there already stays as it is. `timeout`: `None` for the set's own. A full set
    /// is an error of errno ENFILE.
    pub fn add_flow(&mut self, set: FlowSet, flow: &FlowKey, timeout: Option<Duration>) -> Result<(), NftError> {
        let Some((family, element)) = flow.element() else { return Err(mixed_families(flow)) };
        let timeout = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        self.transact(vec![encode::new_elements(set.name(family), &[element], timeout)])
    }

    /// Adds flows in one transaction, each with its time or its set's own; those that are there already stay as they
    /// are. All are added or none.
    pub fn add_flows(&mut self, flows: &[(FlowSet, FlowKey, Option<Duration>)]) -> Result<(), NftError> {
        let add = |(set, flow, timeout): &(FlowSet, FlowKey, Option<Duration>)| {
            let (family, element) = flow.element().ok_or_else(|| mixed_families(flow))?;
            let timeout = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
            Ok(encode::new_elements(set.name(family), &[element], timeout))
        };
        self.transact(flows.iter().map(add).collect::<Result<_, _>>()?)
    }

    /// Takes flows out of their sets in one transaction; if one of them is not there, none goes.
    pub fn remove_flows(&mut self, flows: &[(FlowSet, FlowKey)]) -> Result<(), NftError> {
        let remove = |(set, flow): &(FlowSet, FlowKey)| {
            let (family, element) = flow.element().ok_or_else(|| mixed_families(flow))?;
            Ok(encode::delete_elements(set.name(family), &[element]))
        };
        self.transact(flows.iter().map(remove).collect::<Result<_, _>>()?)
    }

    /// False if the flow was not there.
    pub fn remove_flow(&mut self, set: FlowSet, flow: &FlowKey) -> Result<bool, NftError> {
        let Some((family, element)) = flow.element() else { return Err(mixed_families(flow)) };
        match self.transact(vec![encode::delete_elements(set.name(family), &[element])]) {
            Ok(()) => Ok(true),
            Err(error) if error.source.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// From now on the flows of these clients to these addresses have the verdicts of their names, in one transaction. If the
    /// kernel has no room (ENFILE), none of them has: that of the address decides. A ruleset without names is an error of
    /// errno ENOENT.
    pub fn set_names(&mut self, told: &[Named<'_>]) -> Result<(), NftError> {
        let removals = told.iter().flat_map(|own| own.removals(self.lacks_destroy));
        let all = removals.chain(told.iter().filter_map(Named::addition)).collect();
        let Err(error) = self.transact(all) else { return Ok(()) };
        if matches!(error.source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) && !self.lacks_destroy {
            self.lacks_destroy = true;
            return self.set_names(told);
        }
        // What was told before is no longer so, whether or not there is room for what is so now.
        self.transact(told.iter().flat_map(|own| own.removals(self.lacks_destroy)).collect())?;
        Err(error)
    }

    /// All of the messages take effect, or none.
    fn transact(&mut self, messages: Vec<Message>) -> Result<(), NftError> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut batch = Vec::with_capacity(messages.len() + 2);
        batch.push(Message::batch_begin());
        batch.extend(messages);
        batch.last_mut().map(Message::ask_for_ack);
        batch.push(Message::batch_end());
        self.run(batch)
    }

    /// One request outside of a transaction.
    fn exchange(&mut self, mut messages: Vec<Message>) -> Result<(), NftError> {
        messages.last_mut().map(Message::ask_for_ack);
        self.run(messages)
    }

    /// The kernel works within `send`: when it returns, every answer lies in the socket.
    fn run(&mut self, messages: Vec<Message>) -> Result<(), NftError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::len).sum());
        let mut objects = Vec::with_capacity(messages.len());
        for mut message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            objects.push(std::mem::take(&mut message.object));
            message.write(self.sequence, &mut bytes);
        }
        self.make_room(bytes.len());
        let mut answers = Answers::new(first, objects);
        self.socket.send(&bytes, 0).map_err(|e| answers.unsent(e, bytes.len()))?;
        let mut buffer = Vec::with_capacity(32 * 1024);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => answers.read(&buffer),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return answers.outcome(),
                Err(e) => return Err(answers.unsent(e, bytes.len())),
            }
        }
    }

    /// A transaction is one datagram, and must fit the send buffer.
    fn make_room(&mut self, bytes: usize) {
        const ALWAYS_THERE: usize = 128 * 1024;
        let wanted = bytes.saturating_mul(2);
        if bytes <= ALWAYS_THERE || wanted <= self.send_buffer {
            return;
        }
        // Where neither helps, `send` says so.
        if setsockopt(&self.socket, sockopt::SndBufForce, &wanted).is_ok()
            || setsockopt(&self.socket, sockopt::SndBuf, &wanted).is_ok()
        {
            self.send_buffer = wanted;
        }
    }
}

fn mixed_families(flow: &FlowKey) -> NftError {
    NftError {
        object: format!("the flow from {} to {}", flow.client, flow.remote),
        source: io::Error::from(io::ErrorKind::InvalidInput),
        detail: Some("its ends are of different address families".to_owned()),
    }
}
