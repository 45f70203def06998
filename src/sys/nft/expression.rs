//! Expressions as the kernel has them: registers, loads and comparisons.

mod connection;
mod key;

use ipnet::IpNet;

use self::key::{destination_offset, load_key, mask, source_offset, width};
use super::message::Message;
use crate::firewall::{Expression, Family, Verdict};

// Sixteen registers of four bytes; a key is laid out over as many as it needs.
const FIRST: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_USER: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// The end of a packet that is looked up in the routes.
const FIB_SOURCE: u32 = 1;
const FIB_DESTINATION: u32 = 2;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Octets of a packet that its copy has: the headers, with some of IPv6's extensions.
const COPIED: u32 = 256;

const UPDATE: u32 = 1;
const DELETE: u32 = 2;

/// Appends what one expression of the model becomes.
pub(super) fn add(list: &mut Message, expression: &Expression) {
    match expression {
        Expression::Family(family) => match_family(list, *family),
        Expression::Protocol(number) => {
            load_meta(list, META_L4PROTO, FIRST);
            compare(list, FIRST, &[*number]);
        }
        Expression::SourceIn(prefix) => match_address(list, prefix, source_offset),
        Expression::DestinationIn(prefix) => match_address(list, prefix, destination_offset),
        Expression::DestinationPort(port) => {
            load_payload(list, TRANSPORT_HEADER, 2, 2, FIRST);
            compare(list, FIRST, &port.to_be_bytes());
        }
        Expression::SourcePort(port) => {
            load_payload(list, TRANSPORT_HEADER, 0, 2, FIRST);
            compare(list, FIRST, &port.to_be_bytes());
        }
        Expression::FromLoopback => match_loopback(list, META_IIF),
        Expression::ToLoopback => match_loopback(list, META_OIF),
        Expression::User(user) => {
            load_meta(list, META_USER, FIRST);
            compare(list, FIRST, &user.to_ne_bytes());
        }
        Expression::Discovery => match_discovery(list),
        Expression::MarkIs(mark) => {
            load_meta(list, META_MARK, FIRST);
            compare(list, FIRST, &mark.to_ne_bytes());
        }
        Expression::Connection(states) => connection::match_state(list, states),
        Expression::ConnectionProtocol(number) => connection::match_protocol(list, *number),
        Expression::Reply => connection::match_reply(list),
        Expression::SourceTranslated => connection::match_source_translated(list),
        Expression::Label(label) => connection::match_label(list, *label),
        Expression::LabelAlone { label, not } => connection::match_label_alone(list, *label, not),
        Expression::SetLabel(label) => connection::set_label(list, *label),
        Expression::TcpOpening => match_opening(list, EQUAL),
        Expression::TcpUnderWay => match_opening(list, NOT_EQUAL),
        Expression::TransparentSocket => match_transparent_socket(list),
        Expression::SourceIsLocal => match_local(list, FIB_SOURCE),
        Expression::DestinationIsLocal => match_local(list, FIB_DESTINATION),
        Expression::InSet { key, set, negate } => {
            load_key(list, key);
            lookup(list, set, *negate);
        }
        Expression::Refresh { key, set } => {
            load_key(list, key);
            change_set(list, set, UPDATE);
        }
        Expression::Forget { key, set } => {
            load_key(list, key);
            change_set(list, set, DELETE);
        }
        Expression::SetMark(mark) => {
            immediate(list, FIRST, &mark.to_ne_bytes());
            named(list, "meta", |meta| {
                meta.u32(2, META_MARK);
                meta.u32(3, FIRST);
            });
        }
        Expression::Tproxy { family, port } => tproxy(list, *family, *port),
        Expression::Counter => named(list, "counter", |_| {}),
        Expression::NoTrack => named(list, "notrack", |_| {}),
        Expression::NoLongHeader => match_no_long_header(list),
        Expression::ShorterThan(length) => match_shorter_than(list, *length),
        Expression::Reject => reject(list),
        Expression::Reset => named(list, "reject", |reject| {
            const TCP_RESET: u32 = 1;
            reject.u32(1, TCP_RESET);
        }),
        Expression::CountAs(name) => named(list, "objref", |reference| {
            const COUNTER: u32 = 1;
            reference.u32(1, COUNTER);
            reference.text(2, name);
        }),
        Expression::Fragment => match_fragment(list),
        Expression::FromItsPath => match_reverse_path(list),
        Expression::Beyond { per_second } => beyond(list, *per_second),
        Expression::Log { group, prefix } => log(list, *group, prefix),
        Expression::Verdict(verdict) => named(list, "immediate", |immediate| {
            immediate.u32(1, VERDICT_REGISTER);
            immediate.nest(2, |data| add_verdict(data, verdict));
        }),
    }
}

/// The verdict as data.
fn add_verdict(data: &mut Message, verdict: &Verdict) {
    const DROP: i32 = 0;
    const ACCEPT: i32 = 1;
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    const RETURN: i32 = -5;
    let (code, chain) = match verdict {
        Verdict::Drop => (DROP, None),
        Verdict::Accept => (ACCEPT, None),
        Verdict::Jump(chain) => (JUMP, Some(chain)),
        Verdict::Goto(chain) => (GOTO, Some(chain)),
        Verdict::Return => (RETURN, None),
    };
    data.nest(2, |own| {
        own.bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            own.text(2, chain);
        }
    });
}

fn match_family(list: &mut Message, family: Family) {
    load_meta(list, META_NFPROTO, FIRST);
    compare(list, FIRST, &[nfproto(family)]);
}

fn match_address(list: &mut Message, prefix: &IpNet, offset: fn(Family) -> u32) {
    let family = Family::of(prefix);
    match_family(list, family);
    load_payload(list, NETWORK_HEADER, offset(family), width(family), FIRST);
    mask(list, FIRST, family, prefix.prefix_len());
    match prefix {
        IpNet::V4(prefix) => compare(list, FIRST, &prefix.network().octets()),
        IpNet::V6(prefix) => compare(list, FIRST, &prefix.network().octets()),
    }
}

fn match_opening(list: &mut Message, operation: u32) {
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    load_payload(list, TRANSPORT_HEADER, FLAGS_OFFSET, 1, FIRST);
    bitwise_and(list, FIRST, &[SYN | ACK]);
    compare_with(list, FIRST, operation, &[SYN]);
}

fn match_loopback(list: &mut Message, interface: u32) {
    // Each network namespace has its loopback as its first interface.
    const LOOPBACK: u32 = 1;
    load_meta(list, interface, FIRST);
    compare(list, FIRST, &LOOPBACK.to_ne_bytes());
}

/// From the multicast listener query to its second version's report (RFC 4443, section 8; RFC 4861; RFC 3810).
fn match_discovery(list: &mut Message) {
    const ICMPV6: u8 = 58;
    const AT_MOST: u32 = 3;
    const AT_LEAST: u32 = 5;
    match_family(list, Family::V6);
    load_meta(list, META_L4PROTO, FIRST);
    compare(list, FIRST, &[ICMPV6]);
    load_payload(list, TRANSPORT_HEADER, 0, 1, FIRST);
    compare_with(list, FIRST, AT_LEAST, &[130]);
    compare_with(list, FIRST, AT_MOST, &[143]);
}

fn match_no_long_header(list: &mut Message) {
    const UDP_HEADER: u32 = 8;
    load_payload(list, TRANSPORT_HEADER, UDP_HEADER, 1, FIRST);
    bitwise_and(list, FIRST, &[0x80]);
    compare(list, FIRST, &[0]);
}

fn beyond(list: &mut Message, per_second: u32) {
    const INVERTED: u32 = 1;
    named(list, "limit", |limit| {
        limit.u64(1, per_second.into());
        limit.u64(2, 1);
        limit.u32(3, per_second);
        limit.u32(5, INVERTED);
    });
}

fn log(list: &mut Message, group: u16, prefix: &str) {
    named(list, "log", |log| {
        log.bytes(1, &group.to_be_bytes());
        log.text(2, prefix);
        log.u32(3, COPIED);
    });
}

fn match_shorter_than(list: &mut Message, length: u32) {
    const META_LENGTH: u32 = 0;
    load_meta(list, META_LENGTH, FIRST);
    // No comparison but this one is made without a change of byte order first.
    bitwise_and(list, FIRST, &(!length.saturating_sub(1)).to_ne_bytes());
    compare(list, FIRST, &[0; 4]);
}

fn reject(list: &mut Message) {
    const ICMPX_UNREACHABLE: u32 = 2;
    const ADMIN_PROHIBITED: u8 = 3;
    named(list, "reject", |reject| {
        reject.u32(1, ICMPX_UNREACHABLE);
        reject.bytes(2, &[ADMIN_PROHIBITED]);
    });
}

fn match_transparent_socket(list: &mut Message) {
    const TRANSPARENT: u32 = 0;
    const WILDCARD: u32 = 2;
    for (key, wanted) in [(WILDCARD, 0), (TRANSPARENT, 1)] {
        named(list, "socket", |socket| {
            socket.u32(1, key);
            socket.u32(2, FIRST);
        });
        compare(list, FIRST, &[wanted]);
    }
}

fn match_fragment(list: &mut Message) {
    const FRAGMENT_HEADER: u8 = 44;
    const PRESENT: u32 = 1;
    const IPV6: u32 = 0;
    named(list, "exthdr", |exthdr| {
        exthdr.u32(1, FIRST);
        exthdr.bytes(2, &[FRAGMENT_HEADER]);
        exthdr.u32(3, 0);
        exthdr.u32(4, 1);
        exthdr.u32(5, PRESENT);
        exthdr.u32(6, IPV6);
    });
    compare(list, FIRST, &[1]);
}

fn match_reverse_path(list: &mut Message) {
    const RESULT_INTERFACE: u32 = 1;
    const AND_INTERFACE: u32 = 8;
    const PRESENT: u32 = 32;
    named(list, "fib", |fib| {
        fib.u32(1, FIRST);
        fib.u32(2, RESULT_INTERFACE);
        fib.u32(3, FIB_SOURCE | AND_INTERFACE | PRESENT);
    });
    // As a whole register is compared here, its first octet tells.
    compare(list, FIRST, &[1]);
}

fn match_local(list: &mut Message, which: u32) {
    const RESULT_ADDRESS_TYPE: u32 = 3;
    const RTN_LOCAL: u32 = 2;
    named(list, "fib", |fib| {
        fib.u32(1, FIRST);
        fib.u32(2, RESULT_ADDRESS_TYPE);
        fib.u32(3, which);
    });
    compare(list, FIRST, &RTN_LOCAL.to_ne_bytes());
}

fn tproxy(list: &mut Message, family: Family, port: u16) {
    let port_register = FIRST + 4;
    match family {
        Family::V4 => immediate(list, FIRST, &[127, 0, 0, 1]),
        Family::V6 => immediate(list, FIRST, &std::net::Ipv6Addr::LOCALHOST.octets()),
    }
    immediate(list, port_register, &port.to_be_bytes());
    named(list, "tproxy", |tproxy| {
        tproxy.u32(1, u32::from(nfproto(family)));
        tproxy.u32(2, FIRST);
        tproxy.u32(3, port_register);
    });
}

fn lookup(list: &mut Message, set: &str, negate: bool) {
    const INVERT: u32 = 1;
    named(list, "lookup", |lookup| {
        lookup.text(1, set);
        lookup.u32(2, FIRST);
        if negate {
            lookup.u32(5, INVERT);
        }
    });
}

fn change_set(list: &mut Message, set: &str, operation: u32) {
    named(list, "dynset", |dynset| {
        dynset.text(1, set);
        dynset.u32(3, operation);
        dynset.u32(4, FIRST);
    });
}

fn load_meta(list: &mut Message, key: u32, register: u32) {
    named(list, "meta", |meta| {
        meta.u32(1, register);
        meta.u32(2, key);
    });
}

fn load_payload(list: &mut Message, base: u32, offset: u32, length: u32, register: u32) {
    named(list, "payload", |payload| {
        payload.u32(1, register);
        payload.u32(2, base);
        payload.u32(3, offset);
        payload.u32(4, length);
    });
}

fn compare(list: &mut Message, register: u32, value: &[u8]) {
    compare_with(list, register, EQUAL, value);
}

fn compare_with(list: &mut Message, register: u32, operation: u32, value: &[u8]) {
    named(list, "cmp", |cmp| {
        cmp.u32(1, register);
        cmp.u32(2, operation);
        cmp.nest(3, |data| data.bytes(1, value));
    });
}

fn bitwise_and(list: &mut Message, register: u32, mask: &[u8]) {
    named(list, "bitwise", |bitwise| {
        bitwise.u32(1, register);
        bitwise.u32(2, register);
        bitwise.u32(3, u32::try_from(mask.len()).unwrap_or_default());
        bitwise.nest(4, |data| data.bytes(1, mask));
        bitwise.nest(5, |data| data.bytes(1, &[0; 16][..mask.len().min(16)]));
    });
}

fn immediate(list: &mut Message, register: u32, value: &[u8]) {
    named(list, "immediate", |immediate| {
        immediate.u32(1, register);
        immediate.nest(2, |data| data.bytes(1, value));
    });
}

fn named(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(1, |element| {
        element.text(1, name);
        element.nest(2, fill);
    });
}

fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}
