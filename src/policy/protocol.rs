//! Protocols above IP, by name and number.

/// The names, with their numbers (IANA, Assigned Internet Protocol Numbers).
pub const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("ipv6", 41),
    ("rsvp", 46),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("eigrp", 88),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

/// `None`: it is told by its number.
pub fn name_of(number: u8) -> Option<&'static str> {
    PROTOCOLS.iter().find(|(_, own)| *own == number).map(|(name, _)| *name)
}

/// The number of a protocol that is written as a name or a number.
pub fn number_of(text: &str) -> Option<u8> {
    let named = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, number)| *number);
    named.or_else(|| text.parse().ok())
}
