//! DNS over UDP: one loop for each worker that takes questions in, sends them on and releases their answers.
//!
//! No task for each question: what waits stands in a table of bounded size, and its time-outs in a queue. Fails closed:
//! when a limit is reached, or no answer comes, the client is told SERVFAIL.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use super::LONGEST_QUERY;
use super::arrivals::{Arrivals, Ear, Event};
use super::cache::{Key, Turn};
use super::exchange::{Decision, Exchange};
use super::in_flight::{Attempts, InFlight, Pending};
use super::own::OwnAddresses;
use super::ports::Ports;
use super::service::{Service, Waiter, is_answer_to};
use crate::policy::Transport;
use crate::sys::epoll::Epoll;
use crate::sys::udp::{Datagram, Inbox, MAX_BATCH, Outbox};
use crate::wire::dns::query::{Query, Refused};
use crate::wire::dns::{HEADER, Message};

/// Serves captured questions from `listeners`, which [`crate::sys::udp::listener`] made.
pub struct Udp {
    /// Each with its own address.
    listeners: Vec<(UdpSocket, SocketAddr)>,
    desk: Desk,
}

/// Everything of a worker but its listeners.
struct Desk {
    service: Rc<Service>,
    own: OwnAddresses,
    outbox: Outbox,
    ports: Ports,
    in_flight: InFlight,
    /// Buffers that serve again and again.
    made: Vec<u8>,
    sent: Vec<u8>,
    found: Vec<u8>,
    key: Vec<u8>,
    ready: Vec<u64>,
    /// Questions since the last tick that were not to be sent on.
    at_once: usize,
    /// Questions in flight, as all workers' level of them has it.
    told: u64,
}

impl std::fmt::Debug for Udp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Udp").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

impl Udp {
    /// `outbox` speaks for the addresses that clients ask.
    pub fn new(service: Rc<Service>, listeners: Vec<UdpSocket>, outbox: Outbox) -> io::Result<Self> {
        let with_address = |listener: UdpSocket| listener.local_addr().map(|own| (listener, own));
        let listeners = listeners.into_iter().map(with_address).collect::<io::Result<_>>()?;
        let settings = &service.settings;
        let desk = Desk {
            ports: Ports::new(settings.ports, settings.questions_of_a_port),
            in_flight: InFlight::new(settings.in_flight, settings.in_flight_of_one),
            service,
            own: OwnAddresses::default(),
            outbox,
            made: Vec::new(),
            sent: Vec::new(),
            found: Vec::new(),
            key: Vec::new(),
            ready: Vec::new(),
            at_once: 0,
            told: 0,
        };
        Ok(Self { listeners, desk })
    }

    /// Serves until its task is aborted.
    pub async fn run(self) -> io::Result<()> {
        let Self { listeners, mut desk } = self;
        let mut arrivals = Arrivals::new(listeners)?;
        let ports = arrivals.ports.it.clone();
        let mut questions = Inbox::new(BATCH, LONGEST_QUERY);
        let mut answers = Inbox::new(ANSWERS, LONGEST_ANSWER);
        loop {
            // It is seen at the next tick at the latest.
            if *desk.service.leaving.borrow() {
                arrivals.ears.clear();
            }
            let mut again = None;
            match arrivals.next().await? {
                Event::Questions(place) => {
                    if let Some(ear) = arrivals.ears.get(place)
                        && desk.take_questions(ear, &ports, &mut questions, Moment::now())
                    {
                        ear.listener.emptied();
                    }
                }
                Event::Answers => {
                    if desk.take_all_answers(&ports, &mut answers, Moment::now())? {
                        arrivals.ports.emptied();
                    }
                }
                Event::Everything => {
                    let now = Moment::now();
                    let mut is_all = true;
                    for ear in &arrivals.ears {
                        is_all &= desk.take_questions(ear, &ports, &mut questions, now);
                    }
                    is_all &= desk.take_all_answers(&ports, &mut answers, now)?;
                    again = Some(is_all);
                }
                Event::Tick => {
                    desk.look_at_the_clock(&ports, Moment::now());
                    arrivals.keep_pace(std::mem::take(&mut desk.at_once))?;
                }
            }
            desk.end_turn();
            if let Some(is_all) = again {
                arrivals.look_again(is_all)?;
            }
        }
    }
}

impl Desk {
    /// Takes what has come to a listener, and says whether that was all.
    fn take_questions(&mut self, ear: &Ear, epoll: &Epoll, inbox: &mut Inbox, now: Moment) -> bool {
        for _ in 0..ROUNDS {
            let count = match inbox.receive(&*ear.listener.it) {
                Ok(count) => count,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            };
            self.at_once += count;
            for datagram in inbox.datagrams() {
                // What was sent to the listener itself has no original destination.
                if let Some(resolver) = datagram.to.filter(|to| *to != ear.own) {
                    self.take_question(epoll, &datagram, resolver, now);
                }
            }
            if count < BATCH {
                return true;
            }
        }
        false
    }

    fn end_turn(&mut self) {
        self.service.hand_over();
        self.outbox.flush();
        let waiting = self.in_flight.waiting();
        if waiting != self.told {
            // What all workers add to: that the number wraps where fewer wait than were told is right in the sum.
            self.service.telemetry.levels().questions.fetch_add(waiting.wrapping_sub(self.told), Ordering::Relaxed);
            self.told = waiting;
        }
    }

    /// The story of a question.
    fn take_question(&mut self, epoll: &Epoll, datagram: &Datagram<'_>, resolver: SocketAddr, now: Moment) {
        let conversation = self.service.begin(datagram.from, resolver, Transport::Udp, now.wall);
        if let Decision::Refuse { action, .. } = conversation.decision {
            return self.service.refuse_datagram(&conversation, action, datagram.bytes);
        }
        if datagram.truncated || !conversation.is_readable() {
            return self.service.drop_unread(&conversation);
        }
        let query = match Query::read(datagram.bytes) {
            Ok(query) => query,
            Err(Refused::Ignore) => return self.service.drop_unread(&conversation),
            Err(Refused::Answer(code)) => {
                self.service.refuse_malformed(&conversation, datagram.bytes, code, &mut self.made);
                return self.send(&conversation);
            }
        };
        let exchange = conversation.ask(&query, now.wall);
        match exchange.decision.clone() {
            Decision::Refuse { action, .. } => self.service.refuse_datagram(&exchange, action, datagram.bytes),
            Decision::Block { reason, list } => {
                self.service.block(&exchange, &query, (reason, list), &mut self.made);
                self.send(&exchange);
            }
            Decision::Forward if exchange.upstream().is_empty() => self.forward(epoll, exchange, &query, None, now),
            Decision::Forward => self.ask_upstream(epoll, exchange, &query, now),
        }
    }

    fn ask_upstream(&mut self, epoll: &Epoll, exchange: Exchange, query: &Query<'_>, now: Moment) {
        if !query.is_common() {
            return self.forward(epoll, exchange, query, None, now);
        }
        Key::write(query, exchange.upstream(), &mut self.key);
        let cache = self.service.cache.clone();
        let mut found = std::mem::take(&mut self.found);
        if cache.find(&self.key, query, now.at, &mut found) {
            self.release_found(&exchange, query, &found, now);
            self.found = found;
            return;
        }
        let key = cache.key(&self.key);
        let waiter = || Waiter { exchange: exchange.clone(), query: query.octets.into() };
        match cache.turn(&key, query, now.at, &mut found, exchange.client.ip(), waiter) {
            Turn::Answered => self.release_found(&exchange, query, &found, now),
            Turn::Wait => {}
            Turn::Ask => self.forward(epoll, exchange, query, Some(key), now),
            Turn::Full => {
                self.service.telemetry.count(|c| &c.refused_by_limit);
                self.fail(&exchange, query, true);
            }
        }
        self.found = found;
    }

    fn release_found(&mut self, exchange: &Exchange, query: &Query<'_>, found: &[u8], now: Moment) {
        let upstream = exchange.upstream().first().copied();
        self.service.release(exchange, query, found, upstream, now.at, &mut self.made);
        self.send(exchange);
    }

    /// Sends a question on: to the resolver that was asked, from the client's address, or to the first `upstream`.
    fn forward(&mut self, epoll: &Epoll, exchange: Exchange, query: &Query<'_>, key: Option<Key>, now: Moment) {
        self.at_once = self.at_once.saturating_sub(1);
        let client = exchange.client.ip();
        if !self.in_flight.has_room(client) {
            self.service.telemetry.count(|c| &c.refused_by_limit);
            self.fail(&exchange, query, true);
            return self.settle(key.as_ref(), None, now);
        }
        let asked = exchange.upstream().first().copied().unwrap_or(exchange.resolver.0);
        query.to_forward(key.is_some(), &mut self.sent);
        let waiter = Waiter { exchange, query: query.octets.into() };
        let question_ends = query.question.end();
        let pending = Pending { waiter, question_ends, key, attempts: Attempts::default(), asked, since: now.at };
        let token = self.in_flight.add(client, pending, now.at + self.service.settings.attempt);
        self.attempt(epoll, token, 0);
    }

    fn ask_again(&mut self, epoll: &Epoll, token: u32, attempt: usize) {
        let Some(pending) = self.in_flight.get(token) else { return };
        let Ok(query) = Query::read(&pending.waiter.query) else { return };
        query.to_forward(pending.key.is_some(), &mut self.sent);
        self.attempt(epoll, token, attempt);
    }

    /// Sends what lies in `sent` to the resolver number `attempt`.
    fn attempt(&mut self, epoll: &Epoll, token: u32, attempt: usize) {
        let Some(pending) = self.in_flight.get(token) else { return };
        let exchange = &pending.waiter.exchange;
        let upstream = exchange.upstream();
        let is_own = upstream.is_empty() && self.own.contains(exchange.resolver.ip());
        // A resolver on this host would send its answer past us.
        let as_client = self.service.settings.from_client && upstream.is_empty() && !is_own;
        let source = as_client.then_some(exchange.client.0);
        pending.asked = upstream.get(attempt % upstream.len().max(1)).copied().unwrap_or(exchange.resolver.0);
        // What cannot be sent is as what is not answered: the next attempt or SERVFAIL follows.
        if let Ok(ticket) = self.ports.ask(epoll, source, pending.asked, &mut self.sent, token) {
            pending.attempts.add(ticket);
        }
    }

    /// Takes what has come to the ports, and says whether that was all.
    fn take_all_answers(&mut self, ports: &Epoll, inbox: &mut Inbox, now: Moment) -> io::Result<bool> {
        let mut ready = std::mem::take(&mut self.ready);
        ports.ready(&mut ready)?;
        let mut is_all = ready.len() < READY;
        for place in &ready {
            is_all &= self.take_answers(*place as u32, inbox, now);
        }
        self.ready = ready;
        Ok(is_all)
    }

    /// Takes what has come to a port, and says whether that was all.
    fn take_answers(&mut self, place: u32, inbox: &mut Inbox, now: Moment) -> bool {
        let count = match self.ports.receive(place, inbox) {
            Ok(count) => count,
            // Any other is an ICMP message, which anybody could have forged: the wait goes on.
            Err(error) => return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound),
        };
        for datagram in inbox.datagrams().filter(|datagram| !datagram.truncated) {
            let id = datagram.bytes.first_chunk().map(|id| u16::from_be_bytes(*id));
            let Some((id, token)) = id.and_then(|id| Some((id, self.ports.waiter(place, id)?))) else { continue };
            self.take_answer(token, id, datagram.bytes, now);
        }
        count < ANSWERS
    }

    fn take_answer(&mut self, token: u32, id: u16, answer: &[u8], now: Moment) {
        let Some(pending) = self.in_flight.get(token) else { return };
        let Some(question) = pending.waiter.query.get(HEADER..pending.question_ends) else { return };
        let message = Message::read(answer).ok();
        // A cut answer may end in the midst of a record.
        let is_cut = answer.get(2).is_some_and(|flags| flags & 0x02 != 0);
        if !is_answer_to(question, id, answer) || (message.is_none() && !is_cut) {
            return;
        }
        let Some(pending) = self.end(token) else { return };
        let others = match &pending.key {
            Some(key) => self.service.cache.settle(key, message.as_ref(), now.at),
            None => Vec::new(),
        };
        for waiter in std::iter::once(&pending.waiter).chain(&others) {
            self.release(waiter, answer, message.as_ref(), pending.asked, now);
        }
    }

    /// `message`: the answer as it was read, unless it was cut.
    fn release(
        &mut self,
        waiter: &Waiter,
        answer: &[u8],
        message: Option<&Message<'_>>,
        asked: SocketAddr,
        now: Moment,
    ) {
        let Ok(query) = Query::read(&waiter.query) else { return };
        match message {
            Some(message) => {
                self.service.release_read(&waiter.exchange, &query, message, Some(asked), now.at, &mut self.made);
            }
            None => self.service.release_cut(&waiter.exchange, &query, answer, &mut self.made),
        }
        self.send(&waiter.exchange);
    }

    /// Asks again where an attempt had no answer, and gives up where patience has ended.
    fn look_at_the_clock(&mut self, epoll: &Epoll, now: Moment) {
        self.count_unsent();
        self.service.forget_displaced(now.at);
        let settings = self.service.settings.clone();
        while let Some(token) = self.in_flight.due(now.at) {
            let Some(pending) = self.in_flight.get(token) else { continue };
            let waited = now.at.saturating_duration_since(pending.since);
            let patience = settings.patience.saturating_sub(waited);
            if patience.is_zero() {
                self.give_up(token, now);
                continue;
            }
            let attempts = pending.attempts.count();
            let may_ask_again = !pending.waiter.exchange.upstream().is_empty();
            self.in_flight.wait_again(token, now.at + settings.attempt.min(patience));
            if may_ask_again {
                self.ask_again(epoll, token, attempts);
            }
        }
    }

    fn count_unsent(&mut self) {
        let unsent = std::mem::take(&mut self.outbox.dropped);
        if unsent > 0 {
            self.service.telemetry.add(|c| &c.dns_unsent, unsent);
        }
    }

    fn give_up(&mut self, token: u32, now: Moment) {
        let Some(pending) = self.end(token) else { return };
        if let Ok(query) = Query::read(&pending.waiter.query) {
            self.fail(&pending.waiter.exchange, &query, false);
        }
        self.settle(pending.key.as_ref(), None, now);
    }

    /// Tells all who wait for a question that there will be no answer.
    fn settle(&mut self, key: Option<&Key>, answer: Option<&Message<'_>>, now: Moment) {
        let Some(key) = key else { return };
        for waiter in self.service.cache.settle(key, answer, now.at) {
            if let Ok(query) = Query::read(&waiter.query) {
                self.fail(&waiter.exchange, &query, false);
            }
        }
    }

    fn end(&mut self, token: u32) -> Option<Pending> {
        let pending = self.in_flight.remove(token)?;
        for ticket in pending.attempts.tickets() {
            self.ports.forget(ticket);
        }
        Some(pending)
    }

    fn fail(&mut self, exchange: &Exchange, query: &Query<'_>, limit: bool) {
        self.service.fail(exchange, query, limit, &mut self.made);
        self.send(exchange);
    }

    /// Sends what was made, in the name of whom the client asked.
    fn send(&mut self, exchange: &Exchange) {
        self.outbox.push(exchange.resolver.0, exchange.client.0, &self.made);
    }
}

/// One look at both clocks for a batch.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    wall: SystemTime,
}

impl Moment {
    fn now() -> Self {
        Self { at: Instant::now(), wall: SystemTime::now() }
    }
}

/// Sockets that are told ready at once, at most.
const READY: usize = crate::sys::epoll::BATCH;
const BATCH: usize = if MAX_BATCH < 32 { MAX_BATCH } else { 32 };
/// Batches that are taken before answers have their turn.
const ROUNDS: usize = 4;
const ANSWERS: usize = 4;
const LONGEST_ANSWER: usize = 65_535;
