//! From the ruleset's model to the messages that make it.

use std::time::SystemTime;

use super::expression;
use super::list;
use super::message::{
    APPEND, CREATE, DELETE_CHAIN, DELETE_ELEMENT, DELETE_RULE, DELETE_SET, DELETE_TABLE, DESTROY_ELEMENT, GET_ELEMENT,
    Message, NEW_CHAIN, NEW_ELEMENT, NEW_OBJECT, NEW_RULE, NEW_SET, NEW_TABLE,
};
use crate::firewall::{Chain, Datum, Element, FORGED, Field, Hook, Rule, Ruleset, Set, SetKind, UNRECORDED};

/// For so long, in milliseconds, entries that have ended take up memory, and no packet meets them. Looking for them
/// more often costs more than they do.
const ENDED_ENTRIES_STAY: u32 = 60_000;

/// A list attribute is at most 64 KiB long; the largest element that we make has some 130 bytes.
const ELEMENTS_A_MESSAGE: usize = 400;

/// The messages that put a ruleset in the place of whatever table of its name exists.
pub(super) fn replace(ruleset: &Ruleset, now: SystemTime) -> Vec<Message> {
    // Deleting what does not exist is an error, making what exists is none.
    let mut messages = vec![new_table(), delete_table(), new_table()];
    messages.extend([UNRECORDED, FORGED].map(new_counter));
    messages.extend(fill(ruleset, &ruleset.sets.iter().collect::<Vec<_>>(), list::changes(&[], &ruleset.lists, now)));
    messages
}

/// The messages that turn the one ruleset, which stands, into the other, and keep what lies in the dynamic sets of
/// both. Of the sets of lists it sends the entries that come and go.
pub(super) fn update(standing: &Ruleset, next: &Ruleset, now: SystemTime) -> Vec<Message> {
    let kept = |set: &Set| {
        let same = |other: &Set| (&other.name, &other.key, other.kind) == (&set.name, &set.key, set.kind);
        set.kind.comes_and_goes() && standing.sets.iter().any(same) && next.sets.iter().any(same)
    };
    if (&standing.sets, &standing.chains) == (&next.sets, &next.chains) {
        let lists = list::changes(&standing.lists, &next.lists, now);
        // Otherwise some chain would name other sets.
        if lists.gone.is_empty() && lists.new.is_empty() {
            return lists.entries;
        }
    }
    // Without a chain it means all rules of the table; sets and chains may go once no rule names them.
    let mut messages = vec![Message::in_table(DELETE_RULE, 0, 1, "all rules")];
    messages.extend(standing.sets.iter().filter(|set| !kept(set)).map(delete_set));
    messages.extend(standing.chains.iter().map(delete_chain));
    let sets: Vec<_> = next.sets.iter().filter(|set| !kept(set)).collect();
    messages.extend(fill(next, &sets, list::changes(&standing.lists, &next.lists, now)));
    messages
}

/// The messages that turn whatever stands, of which the kernel tells names alone, into a ruleset: what lies in the dynamic
/// sets that both have stays.
pub(super) fn adopt(standing: &Standing, next: &Ruleset, now: SystemTime) -> Vec<Message> {
    let stands = |set: &Set| set.kind.comes_and_goes() && standing.sets.contains(&(set.name.clone(), Shape::of(set)));
    let (kept, sets): (Vec<&Set>, Vec<&Set>) = next.sets.iter().partition(|set| stands(set));
    let mut messages = vec![Message::in_table(DELETE_RULE, 0, 1, "all rules")];
    let gone = standing.sets.iter().map(|(name, _)| name).filter(|name| kept.iter().all(|set| set.name != **name));
    messages.extend(gone.map(|name| delete_set_named(name)));
    messages.extend(standing.chains.iter().map(|name| delete_chain_named(name)));
    messages.extend([UNRECORDED, FORGED].map(new_counter));
    messages.extend(fill(next, &sets, list::changes(&[], &next.lists, now)));
    messages
}

/// What the kernel tells of a table.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pub(super) sets: Vec<(String, Shape)>,
    pub(super) chains: Vec<String>,
}

/// What makes a set fit to go on being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) flags: u32,
    pub(super) types: u32,
    pub(super) width: u32,
    pub(super) size: u32,
    /// In milliseconds.
    pub(super) timeout: u64,
}

impl Shape {
    fn of(set: &Set) -> Self {
        let (size, timeout) = match set.kind {
            SetKind::Dynamic { timeout, size } => (size, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            SetKind::Counted { size } => (size, 0),
            _ => (0, 0),
        };
        Self { flags: flags_of(set), types: types_of(set), width: width_of(set), size, timeout }
    }
}

/// Sets before elements, and chains before whatever may name them.
fn fill(ruleset: &Ruleset, sets: &[&Set], lists: list::Changes) -> Vec<Message> {
    let mut messages: Vec<_> = lists.gone.iter().map(delete_set).collect();
    messages.extend((1..).zip(sets.iter().copied().chain(&lists.new)).map(|(id, set)| new_set(set, id)));
    messages.extend(ruleset.chains.iter().map(new_chain));
    messages.extend(lists.entries);
    for set in sets {
        let parts = set.elements.chunks(ELEMENTS_A_MESSAGE);
        messages.extend(parts.map(|elements| new_elements(&set.name, elements, None)));
    }
    for chain in &ruleset.chains {
        messages.extend(chain.rules.iter().map(|rule| new_rule(chain, rule)));
    }
    messages
}

/// The messages that take the table away, whether or not it exists.
pub(super) fn remove() -> Vec<Message> {
    vec![new_table(), delete_table()]
}

fn new_table() -> Message {
    Message::in_table(NEW_TABLE, CREATE, 1, "table inet tidegate")
}

fn delete_table() -> Message {
    Message::in_table(DELETE_TABLE, 0, 1, "table inet tidegate")
}

/// Nothing happens if it is there.
fn new_counter(name: &str) -> Message {
    const COUNTER: u32 = 1;
    let mut message = Message::in_table(NEW_OBJECT, CREATE, 1, format!("counter {name}"));
    message.text(2, name);
    message.u32(3, COUNTER);
    message.nest(4, |_| {});
    message
}

fn flags_of(set: &Set) -> u32 {
    const CONSTANT: u32 = 0x2;
    const INTERVAL: u32 = 0x4;
    const TIMEOUT: u32 = 0x10;
    const EVAL: u32 = 0x20;
    const CONCAT: u32 = 0x80;

    let concatenated = if set.key.len() > 1 { CONCAT } else { 0 };
    concatenated
        | match set.kind {
            SetKind::Hash => 0,
            SetKind::Interval => INTERVAL | CONSTANT,
            SetKind::Ending => TIMEOUT,
            SetKind::Dynamic { .. } => TIMEOUT | EVAL,
            SetKind::Counted { .. } => EVAL,
        }
}

fn types_of(set: &Set) -> u32 {
    set.key.iter().fold(0, |types, field| (types << 6) | type_number(*field))
}

fn width_of(set: &Set) -> u32 {
    match set.key[..] {
        [one] => width(one),
        ref parts => parts.iter().map(|field| padded(*field)).sum(),
    }
}

fn new_set(set: &Set, id: u32) -> Message {
    let mut message = Message::in_table(NEW_SET, CREATE, 1, format!("set {}", set.name));
    message.text(2, &set.name);
    message.u32(3, flags_of(set));
    message.u32(4, types_of(set));
    message.u32(5, width_of(set));
    message.nest(9, |description| {
        if let SetKind::Dynamic { size, .. } | SetKind::Counted { size } = set.kind {
            description.u32(1, size);
        }
        if set.key.len() > 1 {
            description.nest(2, |concat| {
                for field in &set.key {
                    concat.nest(1, |element| element.u32(1, width(*field)));
                }
            });
        }
    });
    message.u32(10, id);
    if let SetKind::Dynamic { timeout, .. } = set.kind {
        message.u64(11, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    }
    if set.kind == SetKind::Ending {
        message.u32(12, ENDED_ENTRIES_STAY);
    }
    if matches!(set.kind, SetKind::Counted { .. }) {
        message.nest(17, |expression| {
            expression.text(1, "counter");
            expression.nest(2, |_| {});
        });
    }
    message
}

fn new_chain(chain: &Chain) -> Message {
    const ACCEPT: u32 = 1;
    let mut message = Message::in_table(NEW_CHAIN, CREATE, 1, format!("chain {}", chain.name));
    message.text(3, &chain.name);
    if let Some(base) = &chain.base {
        message.nest(4, |hook| {
            let number = match base.hook {
                Hook::Prerouting => 0,
                Hook::Input => 1,
                Hook::Forward => 2,
                Hook::Output | Hook::Reroute => 3,
                Hook::Postrouting => 4,
            };
            hook.u32(1, number);
            hook.bytes(2, &base.priority.to_be_bytes());
        });
        message.u32(5, ACCEPT);
        message.text(7, if base.hook == Hook::Reroute { "route" } else { "filter" });
    }
    message
}

fn delete_set(set: &Set) -> Message {
    delete_set_named(&set.name)
}

fn delete_set_named(name: &str) -> Message {
    let mut message = Message::in_table(DELETE_SET, 0, 1, format!("set {name}"));
    message.text(2, name);
    message
}

fn delete_chain(chain: &Chain) -> Message {
    delete_chain_named(&chain.name)
}

fn delete_chain_named(name: &str) -> Message {
    let mut message = Message::in_table(DELETE_CHAIN, 0, 1, format!("chain {name}"));
    message.text(3, name);
    message
}

fn new_rule(chain: &Chain, rule: &Rule) -> Message {
    let object = format!("rule \"{rule}\" of chain {}", chain.name);
    let mut message = Message::in_table(NEW_RULE, CREATE | APPEND, 1, object);
    message.text(2, &chain.name);
    message.nest(4, |list| {
        for part in &rule.0 {
            expression::add(list, part);
        }
    });
    message
}

/// `timeout` in milliseconds, else the set's own.
pub(super) fn new_elements(set: &str, elements: &[Element], timeout: Option<u64>) -> Message {
    change_elements(NEW_ELEMENT, CREATE, set, elements, timeout)
}

/// Asks for one element of a set.
pub(super) fn get_element(set: &str, element: &Element) -> Message {
    change_elements(GET_ELEMENT, 0, set, std::slice::from_ref(element), None)
}

pub(super) fn delete_elements(set: &str, elements: &[Element]) -> Message {
    change_elements(DELETE_ELEMENT, 0, set, elements, None)
}

/// Those that are there.
pub(super) fn destroy_elements(set: &str, elements: &[Element]) -> Message {
    change_elements(DESTROY_ELEMENT, 0, set, elements, None)
}

fn change_elements(kind: u16, flags: u16, set: &str, elements: &[Element], timeout: Option<u64>) -> Message {
    let object = match elements {
        [one] => format!("element {one} of set {set}"),
        many => format!("{} elements of set {set}", many.len()),
    };
    let mut message = Message::in_table(kind, flags, 1, object);
    message.text(2, set);
    message.nest(3, |list| {
        for element in elements {
            list.nest(1, |own| add_element(own, element, timeout));
        }
    });
    message
}

/// Entries of a list that come to a set, each with the milliseconds after which it ends, if it does.
pub(super) fn new_entries(set: &str, entries: &[(Datum, Option<u64>)]) -> Message {
    change_entries(NEW_ELEMENT, CREATE, set, entries)
}

pub(super) fn delete_entries(set: &str, entries: &[(Datum, Option<u64>)]) -> Message {
    change_entries(DELETE_ELEMENT, 0, set, entries)
}

/// Takes all elements out of a set.
pub(super) fn empty_set(set: &str) -> Message {
    let mut message = Message::in_table(DELETE_ELEMENT, 0, 1, format!("all entries of set {set}"));
    message.text(2, set);
    message
}

fn change_entries(kind: u16, flags: u16, set: &str, entries: &[(Datum, Option<u64>)]) -> Message {
    let object = format!("{} entries of set {set}", entries.len());
    let mut message = Message::in_table(kind, flags, 1, object);
    message.text(2, set);
    message.nest(3, |list| {
        for (datum, timeout) in entries {
            list.nest(1, |own| {
                own.nest(1, |key| match datum {
                    Datum::Ipv4(address) => key.bytes(1, &address.octets()),
                    Datum::Ipv6(address) => key.bytes(1, &address.octets()),
                    Datum::Protocol(_) | Datum::Service(_) => key.bytes(1, &key_bytes(&[*datum])),
                });
                if let Some(timeout) = timeout {
                    own.u64(4, *timeout);
                }
            });
        }
    });
    message
}

fn add_element(own: &mut Message, element: &Element, timeout: Option<u64>) {
    own.nest(1, |key| key.bytes(1, &key_bytes(&element.key)));
    if let Some(timeout) = timeout {
        own.u64(4, timeout);
    }
    if let Some(end) = &element.end {
        own.nest(10, |key| key.bytes(1, &key_bytes(end)));
    }
}

/// Each part of a key begins at a multiple of four bytes.
fn key_bytes(key: &[Datum]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(44);
    for datum in key {
        match datum {
            Datum::Ipv4(address) => bytes.extend(address.octets()),
            Datum::Ipv6(address) => bytes.extend(address.octets()),
            Datum::Protocol(number) => bytes.push(*number),
            Datum::Service(port) => bytes.extend(port.to_be_bytes()),
        }
        if key.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// What `nft` calls the type, so that it can list our sets.
fn type_number(field: Field) -> u32 {
    match field {
        Field::Ipv4 => 7,
        Field::Ipv6 => 8,
        Field::Protocol => 12,
        Field::Service => 13,
    }
}

fn width(field: Field) -> u32 {
    match field {
        Field::Ipv4 => 4,
        Field::Ipv6 => 16,
        Field::Protocol => 1,
        Field::Service => 2,
    }
}

fn padded(field: Field) -> u32 {
    width(field).next_multiple_of(4)
}
