//! What a worker's DNS does over UDP and TCP alike: judge a question, answer it here, release an answer.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::Settings;
use super::cache::Cache;
use super::exchange::{Decision, Exchange, is_canary};
use super::record::{ANSWERED, Outcome, record};
use super::review::{Address, Findings, Reader, Review};
use crate::firewall::naming_networks;
use crate::name::DomainName;
use crate::policy::bindings::Bindings;
use crate::policy::judge::{bound_lasts, judge_bound};
use crate::policy::network::Network;
use crate::policy::snapshot::Snapshot;
use crate::policy::{DropAction, IpVerdict, Reason, Transport};
use crate::sys::ending::{Ended, Ender};
use crate::sys::nft::{Named, NftSocket};
use crate::telemetry::{Gatherer, Telemetry};
use crate::wire::dns::query::{self, Local, Query};
use crate::wire::dns::{HEADER, Header, Message, rcode};

/// One worker's share of DNS.
pub struct Service {
    pub settings: Settings,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub bindings: Arc<Bindings>,
    /// One for all workers.
    pub cache: Arc<Cache<Waiter>>,
    pub telemetry: Telemetry,
    /// Of records and answers; handed over at the end of a turn.
    pub gatherer: RefCell<Gatherer>,
    pub ender: Rc<RefCell<Ender>>,
    /// To tell it of names before their answers are released (SPEC V12).
    pub kernel: Option<RefCell<NftSocket>>,
    /// Another process takes the questions that come from now on; this one answers those that it has.
    pub leaving: watch::Receiver<bool>,
}

/// A client that waits for an answer to its question.
#[derive(Clone, Debug)]
pub struct Waiter {
    pub exchange: Exchange,
    /// Its query as it came.
    pub query: Box<[u8]>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Service {
    /// A conversation of `client` with `resolver`, judged by its ends.
    pub fn begin(&self, client: SocketAddr, resolver: SocketAddr, transport: Transport, at: SystemTime) -> Exchange {
        Exchange::begin(&self.snapshot.load(), client, resolver, transport, at)
    }

    /// Shows a client whose question was refused what its Network's drop action says. To a datagram `tcp-reset` has no
    /// meaning: it is answered as by `icmp-unreachable`.
    pub fn refuse_datagram(&self, exchange: &Exchange, action: DropAction, datagram: &[u8]) {
        if action != DropAction::Discard {
            // Where ICMP cannot be sent, the client hears nothing.
            let _ = self.ender.borrow().refuse_datagram(exchange.client.0, exchange.resolver.0, datagram);
        }
        self.record_refusal(exchange, action);
    }

    pub fn refuse_connection(&self, exchange: &Exchange, action: DropAction, stream: OwnedFd) {
        if let Ended::Reset { why } = self.ender.borrow_mut().end(stream, action) {
            tracing::debug!(%why, "a refused connection was reset");
            self.telemetry.count(|c| &c.ended_by_reset);
        }
        self.record_refusal(exchange, action);
    }

    fn record(&self, exchange: &Exchange, outcome: Outcome) {
        self.gatherer.borrow_mut().record(record(exchange, outcome));
        if exchange.transport == Transport::Tcp {
            // Nobody knows when its turn ends.
            self.hand_over();
        }
    }

    /// Hands over what was gathered in a turn.
    pub fn hand_over(&self) {
        self.gatherer.borrow_mut().hand_over();
    }

    fn record_refusal(&self, exchange: &Exchange, action: DropAction) {
        if let Decision::Refuse { reason, list, .. } = &exchange.decision {
            let blocked = Some((*reason, list.clone()));
            let outcome = Outcome { blocked, action: Some(action.as_str()), ..Outcome::default() };
            self.telemetry.count(|c| &c.dns_refused);
            self.record(exchange, outcome);
        }
    }

    /// Records a message that gets no answer, for it is no query, or too long for one.
    pub fn drop_unread(&self, exchange: &Exchange) {
        let blocked = Some((Reason::Unreadable, None));
        self.telemetry.count(|c| &c.dns_unread);
        let action = Some(DropAction::Discard.as_str());
        self.record(exchange, Outcome { blocked, action, ..Outcome::default() });
    }

    /// Answers a message that is no query, and records it.
    pub fn refuse_malformed(&self, exchange: &Exchange, message: &[u8], code: u16, into: &mut Vec<u8>) {
        query::refuse(message, code, into);
        self.telemetry.count(|c| &c.dns_malformed);
        let blocked = Some((Reason::Unreadable, None));
        let outcome = Outcome { rcode: Some(code), blocked, action: Some(ANSWERED), ..Outcome::default() };
        self.record(exchange, outcome);
    }

    /// Answers a blocked name.
    pub fn block(&self, exchange: &Exchange, query: &Query<'_>, why: (Reason, Option<Arc<str>>), into: &mut Vec<u8>) {
        let addresses = exchange.outbound().map_or(&[][..], |(network, _)| &network.dns.answer_ips);
        // A canary with an address would say the opposite.
        let gone = addresses.is_empty() || exchange.name.as_ref().is_some_and(is_canary);
        let code = if gone { rcode::NXDOMAIN } else { rcode::NO_ERROR };
        let local = Local { rcode: code, addresses, ttl: self.settings.ttl, error: Some(query::error::BLOCKED) };
        query::answer(query, &local, into);
        let outcome = Outcome { rcode: Some(code), blocked: Some(why), action: Some(ANSWERED), ..Outcome::default() };
        self.telemetry.count(|c| &c.dns_blocked);
        self.record(exchange, outcome);
    }

    /// Tells a client that nobody answered its question, or that a limit was reached.
    pub fn fail(&self, exchange: &Exchange, query: &Query<'_>, limit: bool, into: &mut Vec<u8>) {
        let error = Some(query::error::NO_REACHABLE_AUTHORITY).filter(|_| !limit);
        self.telemetry.count(|c| &c.dns_failed);
        let local = Local { rcode: rcode::SERVFAIL, addresses: &[], ttl: 0, error };
        query::answer(query, &local, into);
        let blocked = limit.then_some((Reason::Limit, None));
        let action = limit.then_some(ANSWERED);
        let outcome = Outcome { rcode: Some(rcode::SERVFAIL), blocked, action, ..Outcome::default() };
        self.record(exchange, outcome);
    }

    /// Reads an answer, binds what it says, and writes what the client may see of it.
    pub fn release(
        &self,
        exchange: &Exchange,
        query: &Query<'_>,
        answer: &[u8],
        upstream: Option<SocketAddr>,
        now: Instant,
        into: &mut Vec<u8>,
    ) {
        match Message::read(answer) {
            Ok(message) => self.release_read(exchange, query, &message, upstream, now, into),
            Err(_) => self.fail(exchange, query, false, into),
        }
    }

    /// The same for an answer that is read already.
    pub fn release_read(
        &self,
        exchange: &Exchange,
        query: &Query<'_>,
        message: &Message<'_>,
        upstream: Option<SocketAddr>,
        now: Instant,
        into: &mut Vec<u8>,
    ) {
        let findings = match self.review(exchange, message) {
            Some(Review::Release(findings)) => findings,
            Some(Review::Block(why)) => return self.block(exchange, query, why, into),
            None => return self.fail(exchange, query, false, into),
        };
        self.gatherer.borrow_mut().answered();
        self.bind(exchange, &findings, now);
        into.clear();
        into.extend_from_slice(findings.edited.as_deref().unwrap_or(message.octets));
        echo(query, into);
        if exchange.transport == Transport::Udp && into.len() > query.datagram_limit() {
            query::truncate(query, message.header.flags, into);
        }
        let outcome = Outcome {
            rcode: Some(message.header.rcode()),
            addresses: findings.addresses.iter().take(RECORDED).map(|address| address.ip).collect(),
            upstream: upstream.filter(|upstream| *upstream != exchange.resolver.0),
            spared: findings.spared,
            ..Outcome::default()
        };
        self.record(exchange, outcome);
    }

    /// Releases what is sure of an answer that ends in the midst of a record: that it was cut.
    pub fn release_cut(&self, exchange: &Exchange, query: &Query<'_>, answer: &[u8], into: &mut Vec<u8>) {
        let Ok(header) = Header::read(answer) else { return self.fail(exchange, query, false, into) };
        self.gatherer.borrow_mut().answered();
        query::truncate(query, header.flags, into);
        let outcome = Outcome { rcode: Some(header.rcode()), ..Outcome::default() };
        self.record(exchange, outcome);
    }

    fn review(&self, exchange: &Exchange, answer: &Message<'_>) -> Option<Review> {
        let unread = || Review::Release(Findings::default());
        let Some((network, policy)) = exchange.outbound() else { return Some(unread()) };
        let reader = Reader { network, policy, asked: exchange.domain.verdict, now: exchange.at };
        // Who only monitors keeps nobody from an answer that cannot be read.
        reader.review(answer).ok().or_else(|| exchange.is_monitored().then(unread))
    }

    fn bind(&self, exchange: &Exchange, findings: &Findings, now: Instant) {
        let client = exchange.client.ip();
        let mut pairs = Vec::new();
        for Address { ip, ttl, names } in findings.addresses.iter().filter(|found| !found.names.is_empty()) {
            let ttl = Duration::from_secs(u64::from(*ttl));
            self.bindings.bind(client, *ip, names, ttl, now);
            pairs.push((client, *ip));
        }
        if !pairs.is_empty() {
            self.tell_kernel(&pairs, now);
        }
    }

    /// Counts the pairs of client and address that made room for others, and has the kernel forget them.
    pub fn forget_displaced(&self, now: Instant) {
        let displaced = self.bindings.take_displaced();
        if displaced.count > 0 {
            self.telemetry.add(|c| &c.bindings_displaced, displaced.count);
            displaced.pairs.chunks(AT_ONCE).for_each(|pairs| self.tell_kernel(pairs, now));
        }
    }

    /// Tells the kernel what is known now of these pairs of client and address.
    fn tell_kernel(&self, pairs: &[(IpAddr, IpAddr)], now: Instant) {
        let Some(kernel) = &self.kernel else { return };
        let told = pairs.iter().map(|(client, remote)| {
            let (name, lasts) = self.bindings.bound(*client, *remote, now).unzip();
            Told { client: *client, remote: *remote, name, lasts: lasts.unwrap_or_default() }
        });
        let told: Vec<_> = told.collect();
        if tell(&mut kernel.borrow_mut(), &self.snapshot.load(), &told).is_err() {
            self.telemetry.add(|c| &c.names_untold, told.len() as u64);
        }
    }
}

/// The name that DNS gave a client for an address; `None` if it is forgotten.
#[derive(Clone, Debug)]
pub struct Told {
    pub client: IpAddr,
    pub remote: IpAddr,
    pub name: Option<DomainName>,
    pub lasts: Duration,
}

/// Has the kernel judge clients' flows to addresses by the names that DNS gave for them, in every Network that wants
/// this. Where the kernel does not take them, the addresses decide. Nothing is kept in the kernel for a name that changes
/// nothing of the verdict of its address.
pub fn tell(kernel: &mut NftSocket, snapshot: &Snapshot, told: &[Told]) -> io::Result<()> {
    let named = judged(snapshot, told, SystemTime::now());
    if named.is_empty() { Ok(()) } else { Ok(kernel.set_names(&named)?) }
}

/// No verdict outlives the entries of lists that made it.
fn judged<'a>(snapshot: &'a Snapshot, told: &[Told], now: SystemTime) -> Vec<Named<'a>> {
    let judge = |network: &'a Network, own: &Told| {
        let mut named = Named { network, client: own.client, remote: own.remote, passes: None, lasts: own.lasts };
        if let Some(name) = &own.name {
            let verdict = judge_bound(network, own.remote, name, now);
            if verdict.pass != (verdict.ip == IpVerdict::Allow) {
                named.passes = Some(verdict.pass);
                named.lasts = bound_lasts(network, own.remote, name, now, own.lasts);
            }
        }
        named
    };
    let networks = |own: &Told| naming_networks(snapshot, own.client);
    told.iter().flat_map(|own| networks(own).map(|network| judge(network, own)).collect::<Vec<_>>()).collect()
}

/// Gives an answer the id of its query and its question byte for byte, in the client's own case.
fn echo(query: &Query<'_>, answer: &mut [u8]) {
    if let Some(id) = answer.get_mut(..2) {
        id.copy_from_slice(&query.header.id.to_be_bytes());
    }
    if let Some(question) = answer.get_mut(HEADER..query.question.end()) {
        question.copy_from_slice(query.question.octets);
    }
}

/// Whether `answer` answers `question`, which left with the id `id`: the same question byte for byte, and so in the same
/// case, which a forger who did not see it must guess.
pub fn is_answer_to(question: &[u8], id: u16, answer: &[u8]) -> bool {
    let Ok(header) = Header::read(answer) else { return false };
    header.id == id
        && header.is_answer()
        && header.questions == 1
        && answer.get(HEADER..HEADER + question.len()).is_some_and(|own| own == question)
}

/// Pairs that the kernel is told to forget in one transaction.
const AT_ONCE: usize = 1024;
/// Addresses in a record.
const RECORDED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::fixture::{network, snapshot, with_policy};
    use crate::list::{List, ListVerdict, PrefixSet};
    use crate::name::Pattern;

    #[test]
    fn the_kernel_is_told_of_a_name_for_no_longer_than_the_entry_lasts_that_blocks_it() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let entry = (Pattern::parse("bad.example").unwrap(), Some(now + Duration::from_secs(10)));
        let (name, verdict, prefixes) = ("bad".into(), ListVerdict::Block, PrefixSet::default());
        let list = Arc::new(List { name, verdict, domains: [entry].into_iter().collect(), prefixes });
        let mut office = with_policy(network("office", &[("10.1.0.0/24", None)]), vec![list], IpVerdict::Allow);
        office.inspection.iter_mut().for_each(|inspection| inspection.use_bindings = true);
        let snapshot = snapshot(vec![office]);
        for (name, passes, lasts) in
            [(Some("bad.example"), Some(false), 10), (Some("other.example"), None, 60), (None, None, 60)]
        {
            let name = name.map(|name| DomainName::parse(name.as_bytes()).unwrap());
            let (client, remote) = ([10, 1, 0, 2].into(), [192, 0, 2, 1].into());
            let told = Told { client, remote, name, lasts: Duration::from_secs(60) };
            let named = judged(&snapshot, &[told], now);
            let seen: Vec<_> = named.iter().map(|named| (named.passes, named.lasts.as_secs())).collect();
            assert_eq!(seen, [(passes, lasts)]);
        }
    }
}
