//! Links, addresses, routes and policy rules by rtnetlink, without the `ip` program.
//!
//! An [`Rtnl`] belongs to the network namespace in which it was opened, whatever its thread does later. Calls block
//! for the microseconds that the kernel needs. Adding what exists and deleting what does not is no error, so a start
//! after a crash may simply apply everything again.
//!
//! Fails loudly: every error names the operation, its object and the kernel's own words. No call is retried.

mod link;
mod route;

pub use route::FwmarkRule;

use std::fmt;
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Which of the two address families a rule or route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Inet,
            Family::V6 => Self::Inet6,
        }
    }
}

/// What could not be done, to what, and why.
#[derive(Debug)]
pub struct RtnlError {
    /// "add route 0.0.0.0/0 via 10.1.0.1", for instance.
    pub operation: String,
    pub source: io::Error,
    /// The kernel's extended acknowledgement, where it gave one.
    pub detail: Option<String>,
}

impl RtnlError {
    /// The errno, where the kernel (and not the reading of its answer) refused.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// For callers whose function returns plain I/O errors: keeps the kind and the whole text.
    pub fn into_io(self) -> io::Error {
        io::Error::new(self.source.kind(), self)
    }
}

impl fmt::Display for RtnlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.source)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for RtnlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A conversation with the kernel about one network namespace.
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl fmt::Debug for Rtnl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtnl").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Rtnl {
    /// Opens a socket in the calling thread's network namespace. Reading needs no privilege; every change needs
    /// CAP_NET_ADMIN over that namespace.
    pub fn open() -> Result<Self, RtnlError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Self { socket, sequence: 0 }),
            Err(source) => Err(RtnlError { operation: "open an rtnetlink socket".to_owned(), source, detail: None }),
        }
    }

    /// Applies one change; an answer in `settled` means that it already is as wanted.
    fn change(
        &mut self,
        operation: impl FnOnce() -> String,
        message: RouteNetlinkMessage,
        flags: u16,
        settled: &[i32],
    ) -> Result<(), RtnlError> {
        match self.exchange(message, flags | NLM_F_ACK) {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.source.raw_os_error().is_some_and(|errno| settled.contains(&errno)) => Ok(()),
            Err(refusal) => Err(refusal.during(operation())),
        }
    }

    /// Asks, and returns every message of the answer. `flags` hold `NLM_F_ACK` or `NLM_F_DUMP`: either says where the
    /// answer ends.
    fn query(
        &mut self,
        operation: impl FnOnce() -> String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, RtnlError> {
        self.exchange(message, flags).map_err(|refusal| refusal.during(operation()))
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answer = Vec::new();
        loop {
            let datagram = self.receive()?;
            if self.read(&datagram, &mut answer)? {
                return Ok(answer);
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => return Ok(datagram),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Collects the messages of one datagram; true when the answer is complete.
    fn read(&self, datagram: &[u8], answer: &mut Vec<RouteNetlinkMessage>) -> Result<bool, Refusal> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            let aligned = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(aligned..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(e) => match e.code {
                    None => return Ok(true),
                    Some(code) => return Err(Refusal::from_kernel(code.get(), &e.header)),
                },
                NetlinkPayload::InnerMessage(inner) => answer.push(inner),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// An error that does not yet know which operation it ended.
struct Refusal {
    source: io::Error,
    detail: Option<String>,
}

impl Refusal {
    /// `code` is a negative errno; `rest` is the header of the refused request (`NETLINK_CAP_ACK` keeps its payload
    /// away) and then the attributes of the extended acknowledgement.
    fn from_kernel(code: i32, rest: &[u8]) -> Self {
        const REQUEST_HEADER: usize = 16;
        let attributes = rest.get(REQUEST_HEADER..).unwrap_or_default();
        Self { source: io::Error::from_raw_os_error(code.wrapping_neg()), detail: extended_message(attributes) }
    }

    fn during(self, operation: String) -> RtnlError {
        RtnlError { operation, source: self.source, detail: self.detail }
    }
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self { source, detail: None }
    }
}

/// The text of `NLMSGERR_ATTR_MSG`.
fn extended_message(mut attributes: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    while let Some((&[l0, l1, k0, k1], _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let body = attributes.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) == NLMSGERR_ATTR_MSG {
            return Some(String::from_utf8_lossy(body).trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_found_among_its_attributes() {
        let mut attributes = Vec::new();
        for (kind, body) in [(2u16, &[0, 0, 0, 9][..]), (1, b"Invalid scope\0")] {
            attributes.extend((4 + body.len() as u16).to_ne_bytes());
            attributes.extend(kind.to_ne_bytes());
            attributes.extend(body);
            attributes.resize(attributes.len().next_multiple_of(4), 0);
        }
        assert_eq!(extended_message(&attributes).as_deref(), Some("Invalid scope"));
        for cut in 0..attributes.len() {
            extended_message(&attributes[..cut]);
        }
        assert_eq!(extended_message(&[1, 0, 1, 0]), None);
    }

    #[test]
    fn an_error_names_the_operation_and_its_object() {
        let mut rtnl = Rtnl::open().unwrap();
        let error = rtnl.link_index("no-such-link0").unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV));
        assert!(error.to_string().contains("no-such-link0"), "{error}");
    }

    #[test]
    fn loopback_is_found_by_name() {
        assert_eq!(Rtnl::open().unwrap().link_index("lo").unwrap(), 1);
    }
}
