//! The kernel's connection tracking: which flows it lets pass, and ending some of them (ctnetlink).
//!
//! A flow is ended by labels, not forgotten: what is forgotten would begin anew with the next packet, perhaps in the other
//! direction. The rules drop both directions of a flow with such labels.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::attributes::Attributes;
use super::netfilter::{ACK, ERROR, messages, put, request};
use crate::firewall::{ENDED_LABEL, ENDED_RESET_LABEL, ENDED_UNREACHABLE_LABEL, FlowKey, JUDGED_LABEL, TCP, UDP};
use crate::policy::{DropAction, Transport};
use crate::wire::ip::Headers;

/// A flow that the rules let in.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// As the forward hook sees the packets of who opened it.
    pub headers: Headers,
    family: u8,
    /// As the kernel wrote it.
    tuple: Vec<u8>,
    zone: Option<Vec<u8>>,
}

pub struct Conntrack {
    socket: Socket,
    number: u32,
}

impl std::fmt::Debug for Conntrack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conntrack").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Conntrack {
    /// Needs CAP_NET_ADMIN over the network namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, number: 0 })
    }

    /// The flows that the rules let in and nobody has ended, for which `chosen` says something.
    pub fn find<T>(&mut self, mut chosen: impl FnMut(&Headers) -> Option<T>) -> io::Result<Vec<(Tracked, T)>> {
        const DUMP: u16 = 0x300;
        const DONE: u16 = 3;
        self.number += 1;
        self.socket.send(&request(GET, DUMP, self.number, &[libc::AF_UNSPEC as u8, 0, 0, 0]), 0)?;
        let mut found = Vec::new();
        let mut buffer = Vec::with_capacity(MESSAGE);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            for (kind, body) in messages(&buffer) {
                match kind {
                    DONE => return Ok(found),
                    ERROR => return Err(error_of(body).unwrap_or_else(|| io::ErrorKind::InvalidData.into())),
                    NEW => {
                        let told = let_in(body).and_then(|own| Some((chosen(&own.headers)?, own)));
                        found.extend(told.map(|(said, own)| (own, said)));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Neither end hears of the other any more. False if the flow is gone by itself.
    pub fn end(&mut self, flow: &Tracked, action: DropAction) -> io::Result<bool> {
        self.end_tuple(flow.family, &flow.tuple, flow.zone.as_deref(), action)
    }

    /// The same for a flow of which nothing is known but who it is between. It is looked for where no zones are.
    pub fn end_between(&mut self, flow: &FlowKey, action: DropAction) -> io::Result<bool> {
        let Some((family, tuple)) = tuple_of(flow) else { return Ok(false) };
        self.end_tuple(family, &tuple, None, action)
    }

    /// Takes back [`Self::end_between`].
    pub fn revive_between(&mut self, flow: &FlowKey) -> io::Result<bool> {
        let Some((family, tuple)) = tuple_of(flow) else { return Ok(false) };
        self.label(family, &tuple, None, 0, labels(DropAction::TcpReset))
    }

    fn end_tuple(&mut self, family: u8, tuple: &[u8], zone: Option<&[u8]>, action: DropAction) -> io::Result<bool> {
        self.label(family, tuple, zone, labels(action), labels(action))
    }

    /// Sets those of the labels `of` that are in `set`, and takes away the others of them.
    fn label(&mut self, family: u8, tuple: &[u8], zone: Option<&[u8]>, set: u128, of: u128) -> io::Result<bool> {
        let mut body = vec![family, 0, 0, 0];
        put(&mut body, TUPLE_ORIG | NESTED, tuple);
        if let Some(zone) = zone {
            put(&mut body, ZONE, zone);
        }
        put(&mut body, LABELS, &set.to_ne_bytes());
        put(&mut body, LABELS_MASK, &of.to_ne_bytes());
        self.number += 1;
        self.socket.send(&request(NEW, ACK, self.number, &body), 0)?;
        let mut buffer = Vec::with_capacity(MESSAGE);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            let Some((_, body)) = messages(&buffer).find(|(kind, _)| *kind == ERROR) else { continue };
            return match error_of(body) {
                None => Ok(true),
                Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                Some(error) => Err(error),
            };
        }
    }
}

/// Those of a flow that was ended so.
fn labels(action: DropAction) -> u128 {
    1 << ENDED_LABEL
        | match action {
            DropAction::Discard => 0,
            DropAction::IcmpUnreachable => 1 << ENDED_UNREACHABLE_LABEL,
            DropAction::TcpReset => 1 << ENDED_UNREACHABLE_LABEL | 1 << ENDED_RESET_LABEL,
        }
}

fn error_of(body: &[u8]) -> Option<io::Error> {
    let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
    (code != 0).then(|| io::Error::from_raw_os_error(code.wrapping_neg()))
}

/// Reads a flow that bears the label of those that were let in, and not of those that were ended.
fn let_in(body: &[u8]) -> Option<Tracked> {
    let (head, attributes) = body.split_at_checked(4)?;
    let (mut orig, mut reply, mut zone, mut labels) = (None, None, None, 0);
    for (kind, value) in Attributes(attributes) {
        match kind {
            TUPLE_ORIG => orig = Some(value),
            TUPLE_REPLY => reply = Some(value),
            ZONE => zone = Some(value.to_vec()),
            LABELS => labels = value.first_chunk().map_or(0, |labels| u128::from_ne_bytes(*labels)),
            _ => {}
        }
    }
    let has = |label: u8| labels & 1 << label != 0;
    if !has(JUDGED_LABEL) || has(ENDED_LABEL) {
        return None;
    }
    let (tuple, back) = (orig?, Tuple::read(reply?)?);
    let opened = Tuple::read(tuple)?;
    // The destination may be translated before the forward hook, the source only behind it.
    let ports = opened.ports.zip(back.ports).map(|(there, back)| (there.0, back.0));
    let headers = Headers { source: opened.source, destination: back.source, protocol: opened.protocol, ports };
    Some(Tracked { headers, family: *head.first()?, tuple: tuple.to_vec(), zone })
}

/// The address family and the tuple of what the client sends.
fn tuple_of(flow: &FlowKey) -> Option<(u8, Vec<u8>)> {
    let (mut addresses, mut service, mut tuple) = (Vec::new(), Vec::new(), Vec::new());
    let family = match (flow.client.ip().to_canonical(), flow.remote.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(remote)) => {
            put(&mut addresses, V4_SOURCE, &client.octets());
            put(&mut addresses, V4_DESTINATION, &remote.octets());
            libc::AF_INET
        }
        (IpAddr::V6(client), IpAddr::V6(remote)) => {
            put(&mut addresses, V6_SOURCE, &client.octets());
            put(&mut addresses, V6_DESTINATION, &remote.octets());
            libc::AF_INET6
        }
        _ => return None,
    };
    let protocol = match flow.transport {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
    };
    put(&mut service, PROTO_NUMBER, &[protocol]);
    put(&mut service, PROTO_SOURCE_PORT, &flow.client.port().to_be_bytes());
    put(&mut service, PROTO_DESTINATION_PORT, &flow.remote.port().to_be_bytes());
    put(&mut tuple, TUPLE_IP | NESTED, &addresses);
    put(&mut tuple, TUPLE_PROTO | NESTED, &service);
    Some((u8::try_from(family).ok()?, tuple))
}

struct Tuple {
    source: IpAddr,
    protocol: u8,
    ports: Option<(u16, u16)>,
}

impl Tuple {
    fn read(attribute: &[u8]) -> Option<Self> {
        let (mut source, mut protocol, mut ports) = (None, None, (None, None));
        for (kind, value) in Attributes(attribute) {
            match kind {
                TUPLE_IP => {
                    source = Attributes(value).find_map(|(kind, value)| match kind {
                        V4_SOURCE => Some(Ipv4Addr::from(*value.first_chunk::<4>()?).into()),
                        V6_SOURCE => Some(Ipv6Addr::from(*value.first_chunk::<16>()?).into()),
                        _ => None,
                    });
                }
                TUPLE_PROTO => {
                    for (kind, value) in Attributes(value) {
                        let port = value.first_chunk().map(|port| u16::from_be_bytes(*port));
                        match kind {
                            PROTO_NUMBER => protocol = value.first().copied(),
                            PROTO_SOURCE_PORT => ports.0 = port,
                            PROTO_DESTINATION_PORT => ports.1 = port,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(Self { source: source?, protocol: protocol?, ports: ports.0.zip(ports.1) })
    }
}

/// NFNL_SUBSYS_CTNETLINK
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const NESTED: u16 = 0x8000;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const LABELS: u16 = 22;
const LABELS_MASK: u16 = 23;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE_PORT: u16 = 2;
const PROTO_DESTINATION_PORT: u16 = 3;
/// A message of the kernel is never longer.
const MESSAGE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(parts: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut body = Vec::new();
        parts.iter().for_each(|(kind, value)| put(&mut body, *kind, value));
        body
    }

    fn tuple(source: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
        let ports = [(PROTO_SOURCE_PORT, ports.0), (PROTO_DESTINATION_PORT, ports.1)];
        let mut proto = vec![(PROTO_NUMBER, vec![6])];
        proto.extend(ports.map(|(kind, port)| (kind, port.to_be_bytes().to_vec())));
        let ip = nested(&[(V4_SOURCE, source.to_vec())]);
        nested(&[(TUPLE_IP | NESTED, ip), (TUPLE_PROTO | NESTED, nested(&proto))])
    }

    #[test]
    fn a_flow_is_read_as_the_forward_hook_sees_it_and_only_if_it_was_let_in() {
        let entry = |labels: u128| {
            let mut body = vec![libc::AF_INET as u8, 0, 0, 0];
            body.extend(nested(&[
                (TUPLE_ORIG | NESTED, tuple([10, 1, 0, 2], (40000, 25))),
                (TUPLE_REPLY | NESTED, tuple([203, 0, 113, 7], (2525, 50000))),
                (LABELS, labels.to_ne_bytes().to_vec()),
            ]));
            body
        };
        let judged = 1_u128 << JUDGED_LABEL;
        let found = let_in(&entry(judged)).unwrap();
        let expected = Headers {
            source: [10, 1, 0, 2].into(),
            destination: [203, 0, 113, 7].into(),
            protocol: 6,
            ports: Some((40000, 2525)),
        };
        assert_eq!(found.headers, expected);
        assert_eq!(found.tuple, tuple([10, 1, 0, 2], (40000, 25)));
        assert!(let_in(&entry(0)).is_none());
        assert!(let_in(&entry(judged | 1 << ENDED_LABEL)).is_none());
        let whole = entry(judged);
        (0..whole.len()).for_each(|length| drop(let_in(&whole[..length])));
    }
}
