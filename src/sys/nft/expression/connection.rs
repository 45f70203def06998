//! What connection tracking knows of a packet's flow.

use super::{FIRST, NOT_EQUAL, bitwise_and, compare, compare_with, immediate, named};
use crate::firewall::Connection;
use crate::sys::nft::message::Message;

const STATE: u32 = 0;
const DIRECTION: u32 = 1;
const STATUS: u32 = 2;
const PROTOCOL: u32 = 10;
const LABELS: u32 = 13;

pub(super) fn match_state(list: &mut Message, states: &[Connection]) {
    let bits: u32 = states
        .iter()
        .map(|state| match state {
            Connection::New => 0x8,
            Connection::Invalid => 0x1,
            Connection::Established => 0x2,
            Connection::Related => 0x4,
        })
        .sum();
    load_ct(list, STATE);
    bitwise_and(list, FIRST, &bits.to_ne_bytes());
    compare_with(list, FIRST, NOT_EQUAL, &[0; 4]);
}

pub(super) fn match_reply(list: &mut Message) {
    const REPLY: u8 = 1;
    load_ct(list, DIRECTION);
    compare(list, FIRST, &[REPLY]);
}

pub(super) fn match_source_translated(list: &mut Message) {
    const SOURCE_TRANSLATED: u32 = 1 << 4;
    load_ct(list, STATUS);
    bitwise_and(list, FIRST, &SOURCE_TRANSLATED.to_ne_bytes());
    compare_with(list, FIRST, NOT_EQUAL, &[0; 4]);
}

pub(super) fn match_protocol(list: &mut Message, number: u8) {
    load_ct(list, PROTOCOL);
    compare(list, FIRST, &[number]);
}

pub(super) fn match_label(list: &mut Message, label: u8) {
    load_ct(list, LABELS);
    bitwise_and(list, FIRST, &labels_with(label));
    compare_with(list, FIRST, NOT_EQUAL, &[0; 16]);
}

pub(super) fn match_label_alone(list: &mut Message, label: u8, not: &[u8]) {
    let all = not.iter().map(|label| label_bit(*label)).fold(label_bit(label), |all, bit| all | bit);
    load_ct(list, LABELS);
    bitwise_and(list, FIRST, &all.to_ne_bytes());
    compare(list, FIRST, &labels_with(label));
}

pub(super) fn set_label(list: &mut Message, label: u8) {
    immediate(list, FIRST, &labels_with(label));
    named(list, "ct", |ct| {
        ct.u32(2, LABELS);
        ct.u32(4, FIRST);
    });
}

/// The labels of a flow that has this one alone, as the kernel keeps them. To set them leaves the others as they are.
fn labels_with(label: u8) -> [u8; 16] {
    label_bit(label).to_ne_bytes()
}

fn label_bit(label: u8) -> u128 {
    1_u128.checked_shl(label.into()).unwrap_or_default()
}

fn load_ct(list: &mut Message, key: u32) {
    named(list, "ct", |ct| {
        ct.u32(1, FIRST);
        ct.u32(2, key);
    });
}
