//! Reading an answer before its client may (SPEC D4).
//!
//! Pure. Fails closed, unless the Network only monitors: an answer that cannot be read to its last octet is never
//! released, every link of a chain is judged wherever it stands in the answer, and what must be taken away is taken away
//! from every section. Records are read as the Internet's whatever their class, since there are stub resolvers that do
//! not look at it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::SystemTime;

use super::exchange::Why;
use crate::name::DomainName;
use crate::policy::network::{Bind, Mode, Network, Quic};
use crate::policy::rules::Policy;
use crate::policy::{DomainVerdict, IpVerdict, Reason};
use crate::wire::Malformed;
use crate::wire::dns::name::Name;
use crate::wire::dns::rebuild::{Change, rebuild};
use crate::wire::dns::svcb::{Service, Strip, Stripped};
use crate::wire::dns::{Message, Record, Section, kind};

/// Who reads the answer, and by which rules.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    pub network: &'a Network,
    pub policy: &'a Policy,
    /// What the policy says of the name that was asked.
    pub asked: DomainVerdict,
    pub now: SystemTime,
}

/// What an answer says, and what may be told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Review {
    Release(Findings),
    /// To be answered as a blocked name.
    Block(Why),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The addresses that the asked name leads to, hints among them.
    pub addresses: Vec<Address>,
    /// The answer with parts taken away; `None`: as it came.
    pub edited: Option<Vec<u8>>,
    /// Why it would have been blocked, but the Network only monitors.
    pub spared: Option<Why>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    /// Seconds.
    pub ttl: u32,
    /// The asked name and those that led from it to the one that has the address; empty where the Network has no use for
    /// bindings.
    pub names: Arc<[DomainName]>,
}

impl Reader<'_> {
    pub fn review(&self, answer: &Message<'_>) -> Result<Review, Malformed> {
        let links = Links::read(answer)?;
        let mut addresses = links.addresses(answer, self.binds())?;
        let blocked = self.blocked(answer, &links, &addresses)?;
        if self.network.mode == Mode::Monitor {
            return Ok(Review::Release(Findings { addresses, edited: None, spared: blocked }));
        }
        if let Some(why) = blocked {
            return Ok(Review::Block(why));
        }
        let edited = self.edit(answer)?;
        addresses.retain(|address| self.keeps(address.ip));
        Ok(Review::Release(Findings { addresses, edited, spared: None }))
    }

    /// Why nothing of the answer may be told, if so.
    fn blocked(&self, answer: &Message<'_>, links: &Links, addresses: &[Address]) -> Result<Option<Why>, Malformed> {
        for name in links.judged.iter().filter_map(Name::to_domain) {
            let judged = self.policy.judge_name(&name, self.now);
            if judged.verdict == DomainVerdict::Block {
                return Ok(Some((judged.reason, judged.list)));
            }
        }
        if self.network.dns.rebind_protection
            && self.asked != DomainVerdict::Allow
            && !is_private_name(answer)
            && all_addresses(answer)?.into_iter().any(is_private_address)
        {
            return Ok(Some((Reason::Rebind, None)));
        }
        let none_is_left = !addresses.iter().any(|address| self.keeps(address.ip));
        let first = addresses.first().filter(|_| none_is_left && asks_for_addresses(answer));
        let judged = first.map(|address| self.policy.judge_ip(address.ip, self.now));
        Ok(judged.map(|judged| (judged.reason, judged.list)))
    }

    fn binds(&self) -> bool {
        self.network.inspection.as_ref().is_some_and(|own| own.bind != Bind::Off || own.use_bindings)
    }

    /// Who would be blocked over QUIC is not led there.
    fn strip(&self) -> Strip {
        let h3 = self.network.inspection.as_ref().is_some_and(|inspection| inspection.quic == Quic::Block);
        Strip { ech: self.network.dns.strip_ech, h3 }
    }

    fn keeps(&self, ip: IpAddr) -> bool {
        !self.network.dns.filter_answers || self.policy.judge_ip(ip, self.now).verdict == IpVerdict::Allow
    }

    /// The answer without refused addresses and keys, or `None` if it has none.
    fn edit(&self, answer: &Message<'_>) -> Result<Option<Vec<u8>>, Malformed> {
        let strip = self.strip();
        if !(self.network.dns.filter_answers || strip.ech || strip.h3) {
            return Ok(None);
        }
        let changes = answer.records.iter().map(|record| self.change(answer, record)).collect::<Result<Vec<_>, _>>()?;
        if changes.iter().all(|change| *change == Change::Keep) {
            return Ok(None);
        }
        let mut changes = changes.into_iter();
        let mut edited = Vec::with_capacity(answer.octets.len());
        rebuild(answer, |_| changes.next().unwrap_or(Change::Remove), &mut edited)?;
        Ok(Some(edited))
    }

    fn change(&self, answer: &Message<'_>, record: &Record) -> Result<Change, Malformed> {
        if let Some(ip) = address(answer, record)? {
            return Ok(if self.keeps(ip) { Change::Keep } else { Change::Remove });
        }
        if !is_service(record.kind) {
            return Ok(Change::Keep);
        }
        Ok(match Service::read(answer.data(record))?.without(self.strip(), |ip| self.keeps(ip)) {
            Stripped::Same => Change::Keep,
            Stripped::Data(data) => Change::Data(data),
            Stripped::Gone => Change::Remove,
        })
    }
}

/// The addresses that the asked name leads to, each with its TTL in seconds.
pub fn addresses_of(answer: &Message<'_>) -> Result<Vec<(IpAddr, u32)>, Malformed> {
    let found = Links::read(answer)?.addresses(answer, false)?;
    Ok(found.into_iter().map(|address| (address.ip, address.ttl)).collect())
}

/// What the asked name leads to.
struct Links {
    /// The asked name, then each that it leads to by CNAME, DNAME and service records.
    chain: Vec<Link>,
    /// Every target in the answer, whether or not it belongs to the chain.
    judged: Vec<Name>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    name: Name,
    /// The place in the chain of the name that led here; the asked name has its own.
    from: usize,
}

impl Links {
    fn read(answer: &Message<'_>) -> Result<Self, Malformed> {
        let mut edges = Vec::new();
        for record in answers(answer) {
            if let Some(target) = target(answer, record)? {
                edges.push((answer.owner(record)?, target));
            }
        }
        let mut chain = vec![Link { name: answer.question.name, from: 0 }];
        // Servers put links in order; whoever does not is followed as far.
        for _ in 0..edges.len().min(LONGEST_CHAIN) {
            let before = chain.len();
            for (owner, target) in &edges {
                if chain.len() <= LONGEST_CHAIN
                    && let Some(from) = place(&chain, owner)
                    && place(&chain, target).is_none()
                {
                    chain.push(Link { name: *target, from });
                }
            }
            if chain.len() == before {
                break;
            }
        }
        Ok(Self { chain, judged: edges.into_iter().map(|(_, target)| target).collect() })
    }

    /// The asked name, and those on the way from it to the name at this place in the chain.
    ///
    /// No name beyond: who owns a name may send its clients to any other with hints of his own, and what he says of
    /// addresses binds the names before his, which chose to lead to him, and not the one that he points to.
    fn path(&self, mut place: usize) -> Arc<[DomainName]> {
        let mut names = Vec::new();
        while let Some(link) = self.chain.get(place) {
            names.extend(link.name.to_domain());
            if link.from == place {
                break;
            }
            place = link.from;
        }
        names.into_iter().rev().collect()
    }

    /// The addresses of the chain's names, from the answer, and from what is added for a service's target. `names`:
    /// whether their names are wanted too.
    fn addresses(&self, answer: &Message<'_>, names: bool) -> Result<Vec<Address>, Malformed> {
        let mut found = Vec::new();
        let mut last: Option<(usize, Arc<[DomainName]>)> = None;
        let services = answers(answer).any(|record| is_service(record.kind));
        for record in &answer.records {
            let counts = record.section == Section::Answer || (services && record.section == Section::Additional);
            if !counts || !matches!(record.kind, kind::A | kind::AAAA | kind::SVCB | kind::HTTPS) {
                continue;
            }
            let Some(owner) = place(&self.chain, &answer.owner(record)?) else { continue };
            let names = match &last {
                _ if !names => Arc::default(),
                Some((place, names)) if *place == owner => names.clone(),
                _ => last.insert((owner, self.path(owner))).1.clone(),
            };
            let found_at = |ip| Address { ip, ttl: record.lifetime(), names: names.clone() };
            match address(answer, record)? {
                Some(ip) => found.push(found_at(ip)),
                None => found.extend(Service::read(answer.data(record))?.hints().map(found_at)),
            }
        }
        Ok(found)
    }
}

fn place(chain: &[Link], name: &Name) -> Option<usize> {
    chain.iter().position(|link| link.name == *name)
}

fn answers<'m>(answer: &'m Message<'_>) -> impl Iterator<Item = &'m Record> {
    answer.records.iter().filter(|record| record.section == Section::Answer)
}

/// Where a record sends its owner's client on.
fn target(answer: &Message<'_>, record: &Record) -> Result<Option<Name>, Malformed> {
    match record.kind {
        kind::CNAME | kind::DNAME => answer.name_in(record, 0).map(Some),
        kind::SVCB | kind::HTTPS => {
            let target = Service::read(answer.data(record))?.target;
            Ok((!target.is_root()).then_some(target))
        }
        _ => Ok(None),
    }
}

fn address(answer: &Message<'_>, record: &Record) -> Result<Option<IpAddr>, Malformed> {
    let data = answer.data(record);
    match record.kind {
        kind::A => <[u8; 4]>::try_from(data).map(|ip| Some(ip.into())).map_err(|_| ADDRESS),
        kind::AAAA => <[u8; 16]>::try_from(data).map(|ip| Some(ip.into())).map_err(|_| ADDRESS),
        _ => Ok(None),
    }
}

/// Every address in the answer, whosever it is.
fn all_addresses(answer: &Message<'_>) -> Result<Vec<IpAddr>, Malformed> {
    let mut found = Vec::new();
    for record in answer.records.iter().filter(|record| record.section != Section::Authority) {
        match address(answer, record)? {
            Some(ip) => found.push(ip),
            None if is_service(record.kind) => found.extend(Service::read(answer.data(record))?.hints()),
            None => {}
        }
    }
    Ok(found)
}

fn asks_for_addresses(answer: &Message<'_>) -> bool {
    matches!(answer.question.kind, kind::A | kind::AAAA)
}

fn is_service(kind: u16) -> bool {
    matches!(kind, kind::SVCB | kind::HTTPS)
}

/// A name that no public zone may hold, so that private addresses are its own.
fn is_private_name(answer: &Message<'_>) -> bool {
    let Some(name) = answer.question.name.to_domain() else { return true };
    let name = name.as_str();
    !name.contains('.')
        || PRIVATE_NAMES.iter().any(|zone| name.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.')))
}

/// An address that means something else to the client than to the one who answered.
fn is_private_address(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_private_v4(ip),
        IpAddr::V6(ip) => {
            let [first, second, ..] = ip.segments();
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                // Site-local, which some hosts still route (RFC 3879).
                || first & 0xffc0 == 0xfec0
                || embedded(ip, first, second).is_some_and(is_private_v4)
        }
    }
}

/// The IPv4 address within one of NAT64 (RFC 6052), 6to4 (RFC 3056) or the compatible kind (RFC 4291, 2.5.5.1).
fn embedded(ip: Ipv6Addr, first: u16, second: u16) -> Option<Ipv4Addr> {
    let octets = ip.octets();
    if first == 0x2002 {
        return octets.get(2..)?.first_chunk::<4>().map(|v4| (*v4).into());
    }
    let nat64 = first == 0x64 && second == 0xff9b;
    let compatible = octets.iter().take(12).all(|octet| *octet == 0);
    if nat64 || compatible { octets.last_chunk::<4>().map(|v4| (*v4).into()) } else { None }
}

fn is_private_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || a == 0
        // Shared address space (RFC 6598).
        || (a == 100 && b & 0xc0 == 64)
}

/// RFC 6761, RFC 6762, RFC 8375, and `internal` as ICANN reserved it.
const PRIVATE_NAMES: &[&str] = &["local", "localhost", "home.arpa", "internal", "test", "lan"];
/// Links that are followed.
const LONGEST_CHAIN: usize = 16;

const ADDRESS: Malformed = Malformed { field: "address", section: "RFC 1035, 3.4.1; RFC 3596, 2.2" };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{List, ListVerdict};
    use crate::name::Pattern;
    use crate::policy::network::*;
    use crate::policy::{DropAction, InspectionType};
    use hickory_proto::op::{Message as Theirs, OpCode, Query as TheirQuery};
    use hickory_proto::rr::rdata::svcb::{EchConfigList, IpHint, SvcParamKey, SvcParamValue};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, NULL, SVCB, TXT};
    use hickory_proto::rr::{DNSClass, Name as TheirName, RData, Record as TheirRecord, RecordType};
    use std::time::Duration;

    fn policy(block: &[&str], addresses: &[&str]) -> Policy {
        let list = List {
            name: "b".into(),
            verdict: ListVerdict::Block,
            domains: block.iter().map(|name| (Pattern::parse(name).unwrap(), None)).collect(),
            prefixes: addresses.iter().map(|prefix| (prefix.parse().unwrap(), None)).collect(),
        };
        Policy {
            name: "p".into(),
            default: IpVerdict::Allow,
            lists: vec![Arc::new(list)],
            thresholds: Default::default(),
            asns: None,
            countries: None,
            fingerprints: vec![],
        }
    }

    fn network(dns: Dns) -> Network {
        let policy = Arc::new(policy(&[], &[]));
        Network {
            name: "n".into(),
            description: String::new(),
            mode: Mode::Enforce,
            ips: vec![],
            outbound: Some(Rule { policy, drop: DropAction::Discard }),
            inbound: None,
            inspection: Some(Inspection {
                kind: InspectionType::PreferBoth,
                tls_ports: vec![443],
                http_ports: vec![80],
                quic: Quic::Inspect,
                packets: 5,
                timeout: Duration::from_secs(1),
                unidentified: Otherwise::IpVerdict,
                unreadable: Otherwise::Block,
                bind: Bind::Enforce,
                use_bindings: false,
                ech: Ech::Allow,
                http: HttpRequests::Every,
            }),
            dns,
        }
    }

    fn name(text: &str) -> TheirName {
        TheirName::from_ascii(text).unwrap()
    }

    fn a(ip: &str) -> RData {
        match ip.parse().unwrap() {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        }
    }

    fn cname(target: &str) -> RData {
        RData::CNAME(CNAME(name(target)))
    }

    fn https(target: &str) -> RData {
        let params = vec![
            (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A::new(192, 0, 2, 7), A::new(192, 0, 2, 8)]))),
            (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(EchConfigList(vec![1; 40]))),
        ];
        RData::HTTPS(HTTPS(SVCB::new(1, name(target), params)))
    }

    fn answer(asked: &str, kind: RecordType, records: &[(&str, RData)]) -> Vec<u8> {
        let mut message = Theirs::response(7, OpCode::Query);
        message.add_query(TheirQuery::query(name(asked), kind));
        for (n, (owner, data)) in records.iter().enumerate() {
            message.add_answer(TheirRecord::from_rdata(name(owner), 60 + n as u32, data.clone()));
        }
        message.to_vec().unwrap()
    }

    fn review(dns: Dns, policy: &Policy, answer: &[u8]) -> Review {
        let network = network(dns);
        let reader = Reader { network: &network, policy, asked: DomainVerdict::None, now: SystemTime::UNIX_EPOCH };
        reader.review(&Message::read(answer).unwrap()).unwrap()
    }

    fn findings(dns: Dns, policy: &Policy, answer: &[u8]) -> Findings {
        match review(dns, policy, answer) {
            Review::Release(findings) => findings,
            blocked => panic!("{blocked:?}"),
        }
    }

    fn is_blocked(dns: Dns, policy: &Policy, answer: &[u8]) -> bool {
        matches!(review(dns, policy, answer), Review::Block(_))
    }

    fn chain() -> Vec<u8> {
        let records = [
            ("www.example.", cname("a.cdn.example.")),
            ("a.cdn.example.", cname("b.cdn.example.")),
            ("b.cdn.example.", a("192.0.2.1")),
            ("b.cdn.example.", a("192.0.2.2")),
        ];
        answer("www.example.", RecordType::A, &records)
    }

    /// Each address with its TTL and the names that are bound to it.
    fn bound(findings: &Findings) -> Vec<String> {
        let words = |found: &Address| {
            let names: Vec<&str> = found.names.iter().map(DomainName::as_str).collect();
            format!("{} {} {}", found.ip, found.ttl, names.join(" "))
        };
        findings.addresses.iter().map(words).collect()
    }

    #[test]
    fn every_link_of_a_chain_is_judged() {
        for (blocked, expected) in
            [("a.cdn.example", true), ("b.cdn.example", true), ("*.cdn.example", true), ("c.cdn.example", false)]
        {
            assert_eq!(is_blocked(Dns::default(), &policy(&[blocked], &[]), &chain()), expected, "{blocked}");
        }
        let dname = NULL::with(b"\x03bad\x07example\0".to_vec());
        let records = [("example.", RData::Unknown { code: RecordType::Unknown(39), rdata: dname })];
        let moved = answer("www.example.", RecordType::A, &records);
        assert!(is_blocked(Dns::default(), &policy(&["bad.example"], &[]), &moved));
        let service = answer("www.example.", RecordType::HTTPS, &[("www.example.", https("bad.example."))]);
        assert!(is_blocked(Dns::default(), &policy(&["bad.example"], &[]), &service));
        let elsewhere = answer("www.example.", RecordType::A, &[("other.example.", cname("bad.example."))]);
        assert!(is_blocked(Dns::default(), &policy(&["bad.example"], &[]), &elsewhere));
    }

    #[test]
    fn addresses_are_found_along_the_chain_with_every_name_of_it() {
        let found = findings(Dns::default(), &policy(&[], &[]), &chain());
        let names = "www.example a.cdn.example b.cdn.example";
        assert_eq!(bound(&found), [format!("192.0.2.1 62 {names}"), format!("192.0.2.2 63 {names}")]);
        assert_eq!(found.edited, None);
    }

    #[test]
    fn a_chain_out_of_order_is_followed_all_the_same() {
        let records = [
            ("c.example.", a("192.0.2.1")),
            ("b.example.", cname("c.example.")),
            ("www.example.", cname("b.example.")),
        ];
        let found = findings(Dns::default(), &policy(&[], &[]), &answer("www.example.", RecordType::A, &records));
        assert_eq!(bound(&found), ["192.0.2.1 60 www.example b.example c.example"]);
    }

    #[test]
    fn extra_records_bind_nothing() {
        let mut message = Theirs::from_vec(&chain()).unwrap();
        message.add_answer(TheirRecord::from_rdata(name("bank.example."), 60, a("203.0.113.66")));
        message.add_additional(TheirRecord::from_rdata(name("www.example."), 60, a("203.0.113.67")));
        message.add_authority(TheirRecord::from_rdata(name("www.example."), 60, a("203.0.113.68")));
        let found = findings(Dns::default(), &policy(&[], &[]), &message.to_vec().unwrap());
        assert_eq!(found.addresses.len(), 2);
        assert!(!bound(&found).concat().contains("bank.example"));
    }

    #[test]
    fn hints_and_the_addresses_of_a_service_count() {
        let mut message =
            Theirs::from_vec(&answer("www.example.", RecordType::HTTPS, &[("www.example.", https("svc.example."))]))
                .unwrap();
        message.add_additional(TheirRecord::from_rdata(name("svc.example."), 9, a("2001:db8::9")));
        message.add_additional(TheirRecord::from_rdata(name("bank.example."), 9, a("2001:db8::66")));
        let found = findings(Dns::default(), &policy(&[], &[]), &message.to_vec().unwrap());
        // A hint is of him who points to the service.
        let expected =
            ["192.0.2.7 60 www.example", "192.0.2.8 60 www.example", "2001:db8::9 9 www.example svc.example"];
        assert_eq!(bound(&found), expected);
    }

    #[test]
    fn refused_addresses_are_filtered_and_the_rest_is_released() {
        let dns = Dns { filter_answers: true, ..Dns::default() };
        let found = findings(dns.clone(), &policy(&[], &["192.0.2.2/32"]), &chain());
        let edited = Theirs::from_vec(&found.edited.unwrap()).unwrap();
        let left: Vec<IpAddr> = edited.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
        assert_eq!(left, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(edited.answers.len(), 3);
        assert_eq!(found.addresses.len(), 1);
        assert!(is_blocked(dns.clone(), &policy(&[], &["192.0.2.0/24"]), &chain()));
        let service = answer("www.example.", RecordType::HTTPS, &[("www.example.", https("."))]);
        let found = findings(dns, &policy(&[], &["192.0.2.7/32"]), &service);
        assert_eq!(found.addresses.len(), 1);
        let edited = Theirs::from_vec(&found.edited.unwrap()).unwrap();
        assert!(!edited.answers[0].to_string().contains("192.0.2.7"));
    }

    #[test]
    fn ech_keys_are_stripped_and_nothing_else() {
        let dns = Dns { strip_ech: true, ..Dns::default() };
        let service = answer("www.example.", RecordType::HTTPS, &[("www.example.", https("."))]);
        let found = findings(dns.clone(), &policy(&[], &[]), &service);
        let edited = Theirs::from_vec(&found.edited.unwrap()).unwrap();
        assert_eq!(edited.answers[0].to_string(), "www.example. 60 IN HTTPS 1 . ipv4hint=192.0.2.7,192.0.2.8,");
        assert_eq!(findings(dns, &policy(&[], &[]), &chain()).edited, None);
    }

    #[test]
    fn http3_is_no_longer_offered_where_quic_is_blocked() {
        let mut offered = SVCB::new(1, name("."), vec![]);
        let alpn = hickory_proto::rr::rdata::svcb::Alpn(vec!["h3".into(), "h2".into()]);
        offered.svc_params.push((SvcParamKey::Alpn, SvcParamValue::Alpn(alpn)));
        let service = answer("www.example.", RecordType::HTTPS, &[("www.example.", RData::HTTPS(HTTPS(offered)))]);
        let edited = |quic| {
            let mut network = network(Dns::default());
            network.inspection.as_mut().unwrap().quic = quic;
            let policy = policy(&[], &[]);
            let asked = DomainVerdict::None;
            let reader = Reader { network: &network, policy: &policy, asked, now: SystemTime::UNIX_EPOCH };
            match reader.review(&Message::read(&service).unwrap()).unwrap() {
                Review::Release(findings) => findings.edited,
                blocked => panic!("{blocked:?}"),
            }
        };
        assert_eq!(edited(Quic::Inspect), None);
        assert_eq!(edited(Quic::LeaveAlone), None);
        let left = Theirs::from_vec(&edited(Quic::Block).unwrap()).unwrap();
        assert_eq!(left.answers[0].to_string(), "www.example. 60 IN HTTPS 1 . alpn=h2,");
    }

    #[test]
    fn private_addresses_of_public_names_are_refused() {
        let dns = Dns { rebind_protection: true, ..Dns::default() };
        let private = [
            "10.0.0.1",
            "172.16.9.9",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "::1",
            "::",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "::ffff:192.168.1.1",
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:a00:1::1",
        ];
        for ip in private {
            let answer = answer("www.example.com.", RecordType::A, &[("www.example.com.", a(ip))]);
            assert!(is_blocked(dns.clone(), &policy(&[], &[]), &answer), "{ip}");
            assert!(!is_blocked(Dns::default(), &policy(&[], &[]), &answer), "{ip}");
        }
        for (owner, ip) in [
            ("www.example.com.", "192.0.2.1"),
            ("www.example.com.", "2001:db8::1"),
            ("nas.home.arpa.", "192.168.1.1"),
            ("printer.local.", "10.0.0.9"),
            ("nas.", "192.168.1.1"),
        ] {
            assert!(
                !is_blocked(dns.clone(), &policy(&[], &[]), &answer(owner, RecordType::A, &[(owner, a(ip))])),
                "{owner}"
            );
        }
    }

    #[test]
    fn an_allowed_name_may_have_private_addresses() {
        let network = network(Dns { rebind_protection: true, ..Dns::default() });
        let policy = policy(&[], &[]);
        let reader =
            Reader { network: &network, policy: &policy, asked: DomainVerdict::Allow, now: SystemTime::UNIX_EPOCH };
        let answer = answer("www.example.com.", RecordType::A, &[("www.example.com.", a("10.0.0.1"))]);
        assert!(matches!(reader.review(&Message::read(&answer).unwrap()), Ok(Review::Release(_))));
    }

    #[test]
    fn an_address_of_a_wrong_length_is_malformed() {
        let mut octets = answer("www.example.", RecordType::A, &[("www.example.", a("192.0.2.1"))]);
        octets.push(0);
        let at = octets.len() - 6;
        octets[at] = 5;
        let (network, policy) = (network(Dns::default()), policy(&[], &[]));
        let reader =
            Reader { network: &network, policy: &policy, asked: DomainVerdict::None, now: SystemTime::UNIX_EPOCH };
        assert!(reader.review(&Message::read(&octets).unwrap()).is_err());
    }

    /// `answer` with one more record, of the class CH.
    fn and_of_another_class(answer: &[u8], owner: &str, data: RData) -> Vec<u8> {
        let mut message = Theirs::from_vec(answer).unwrap();
        let mut record = TheirRecord::from_rdata(name(owner), 60, data);
        record.dns_class = DNSClass::CH;
        message.add_answer(record);
        message.to_vec().unwrap()
    }

    #[test]
    fn records_of_another_class_than_was_asked_for_are_judged_and_filtered_alike() {
        let plain = answer("www.example.com.", RecordType::A, &[("www.example.com.", a("192.0.2.1"))]);
        let private = and_of_another_class(&plain, "www.example.com.", a("192.168.1.1"));
        let protected = Dns { rebind_protection: true, ..Dns::default() };
        assert!(is_blocked(protected, &policy(&[], &[]), &private));
        let filtered = Dns { filter_answers: true, ..Dns::default() };
        let found = findings(filtered, &policy(&[], &["192.168.0.0/16"]), &private);
        assert_eq!(Theirs::from_vec(&found.edited.unwrap()).unwrap().answers.len(), 1);
        let alias = and_of_another_class(&plain, "www.example.com.", cname("bad.example."));
        assert!(is_blocked(Dns::default(), &policy(&["bad.example"], &[]), &alias));
    }

    #[test]
    fn what_a_server_says_of_itself_in_another_class_passes() {
        let mut message = Theirs::response(7, OpCode::Query);
        let mut query = TheirQuery::query(name("version.bind."), RecordType::TXT);
        query.set_query_class(DNSClass::CH);
        message.add_query(query);
        let version = RData::TXT(TXT::new(vec!["9.18".into()]));
        let octets = and_of_another_class(&message.to_vec().unwrap(), "version.bind.", version);
        let dns = Dns { rebind_protection: true, filter_answers: true, strip_ech: true, ..Dns::default() };
        assert_eq!(findings(dns, &policy(&[], &[]), &octets), Findings::default());
    }

    #[test]
    fn a_ttl_with_its_highest_bit_set_is_zero() {
        let mut octets = answer("www.example.", RecordType::A, &[("www.example.", a("192.0.2.1"))]);
        let ttl = octets.len() - 10;
        octets[ttl] = 0x80;
        assert_eq!(bound(&findings(Dns::default(), &policy(&[], &[]), &octets)), ["192.0.2.1 0 www.example"]);
    }

    #[test]
    fn under_monitor_an_answer_is_released_as_it_came_and_all_its_addresses_are_found() {
        let dns = Dns { filter_answers: true, strip_ech: true, rebind_protection: true, ..Dns::default() };
        let mut network = Network { mode: Mode::Monitor, ..network(dns) };
        network.inspection.as_mut().unwrap().quic = Quic::Block;
        let service = answer("www.example.", RecordType::HTTPS, &[("www.example.", https("."))]);
        let private = answer("www.example.", RecordType::A, &[("www.example.", a("10.0.0.1"))]);
        for (policy, answer, addresses) in [
            (policy(&["b.cdn.example"], &[]), chain(), 2),
            (policy(&[], &["192.0.2.2/32"]), chain(), 2),
            (policy(&[], &["192.0.2.0/24"]), chain(), 2),
            (policy(&[], &["192.0.2.7/32"]), service, 2),
            (policy(&[], &[]), private, 1),
        ] {
            let asked = DomainVerdict::None;
            let reader = Reader { network: &network, policy: &policy, asked, now: SystemTime::UNIX_EPOCH };
            match reader.review(&Message::read(&answer).unwrap()).unwrap() {
                Review::Release(found) => assert_eq!((found.edited, found.addresses.len()), (None, addresses)),
                blocked => panic!("{blocked:?}"),
            }
        }
    }
}
