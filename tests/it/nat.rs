//! Masquerading, as an administrator's own ruleset does it beside ours.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Expressions, Hook, HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// `table inet nat { chain out { type nat hook postrouting priority 100; masquerade } }` in this namespace.
pub(crate) fn masquerade() {
    let (table, chain) = ("nat", "out");
    let hook = vec![Hook::Number(HookNumber::Inet(InetHookNumber::PostRouting)), Hook::Priority(100)];
    let masquerade = Expressions::Other { expression_type: "masq".into(), attributes: Vec::new() };
    let changes = [
        NfTablesMessage::NewTable(TableMessage { attributes: vec![TableAttribute::Name(table.into())] }),
        NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(table.into()),
                ChainAttribute::Name(chain.into()),
                ChainAttribute::Hook(hook),
                ChainAttribute::Type("nat".into()),
            ],
        }),
        NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(table.into()),
                RuleAttribute::Chain(chain.into()),
                RuleAttribute::Expressions(vec![masquerade.into()]),
            ],
        }),
    ];
    let control = |message| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES);
        (NLM_F_REQUEST, NetfilterMessage::new(header, message))
    };
    let change = |message: NfTablesMessage| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        (NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK, NetfilterMessage::new(header, message))
    };
    let mut batch = vec![control(ControlMessage::BatchBegin)];
    batch.extend(changes.into_iter().map(change));
    batch.push(control(ControlMessage::BatchEnd));

    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    socket.send(&serialized(batch), 0).unwrap();
    for _ in 0..3 {
        let (answer, _) = socket.recv_from_full().unwrap();
        let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer).unwrap();
        assert!(matches!(&answer.payload, NetlinkPayload::Error(e) if e.code.is_none()), "{answer:?}");
    }
}

fn serialized(batch: Vec<(u16, NetfilterMessage)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for ((flags, message), sequence) in batch.into_iter().zip(1..) {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = sequence;
        message.finalize();
        let begin = bytes.len();
        bytes.resize(begin + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[begin..]);
    }
    bytes
}

const NFTABLES: u16 = 10;
