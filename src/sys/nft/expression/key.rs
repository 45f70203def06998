//! Keys of sets, laid over the registers, and the parts of packets that they are made of.

use super::{FIRST, META_L4PROTO, NETWORK_HEADER, TRANSPORT_HEADER, bitwise_and, load_meta, load_payload};
use crate::firewall::{Family, Key};
use crate::sys::nft::message::Message;

/// Lays the parts of a key over the registers, each from a register of its own.
pub(super) fn load_key(list: &mut Message, key: &[Key]) {
    let mut register = FIRST;
    for part in key {
        let taken = match *part {
            Key::Protocol => {
                load_meta(list, META_L4PROTO, register);
                1
            }
            Key::SourcePort => load_port(list, 0, register),
            Key::DestinationPort => load_port(list, 2, register),
            Key::Source(family) => load_address(list, source_offset(family), family, family.bits(), register),
            Key::Destination(family) => load_address(list, destination_offset(family), family, family.bits(), register),
            Key::SourcePrefix { family, length } => load_address(list, source_offset(family), family, length, register),
            Key::DestinationPrefix { family, length } => {
                load_address(list, destination_offset(family), family, length, register)
            }
        };
        register += taken;
    }
}

fn load_port(list: &mut Message, offset: u32, register: u32) -> u32 {
    load_payload(list, TRANSPORT_HEADER, offset, 2, register);
    1
}

fn load_address(list: &mut Message, offset: u32, family: Family, length: u8, register: u32) -> u32 {
    load_payload(list, NETWORK_HEADER, offset, width(family), register);
    mask(list, register, family, length);
    width(family) / 4
}

pub(super) fn mask(list: &mut Message, register: u32, family: Family, length: u8) {
    if length >= family.bits() {
        return;
    }
    let ones = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0).to_be_bytes();
    let (v4, _) = ones.split_at(4);
    bitwise_and(list, register, if family == Family::V4 { v4 } else { &ones });
}

pub(super) fn width(family: Family) -> u32 {
    u32::from(family.bits() / 8)
}

pub(super) fn source_offset(family: Family) -> u32 {
    match family {
        Family::V4 => 12,
        Family::V6 => 8,
    }
}

pub(super) fn destination_offset(family: Family) -> u32 {
    match family {
        Family::V4 => 16,
        Family::V6 => 24,
    }
}
