//! DNS over TCP (RFC 7766): questions in a row on one connection, answers as they come.
//!
//! One task for each connection, and one connection of its own to the resolver. Fails closed: a resolver that cannot be
//! reached, ends or is silent is SERVFAIL for every question that waits; a message without length, or longer than any
//! query, ends the connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::SystemTime;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{Instant, timeout, timeout_at};

use super::cache::Key;
use super::exchange::{Decision, Exchange};
use super::frames::{Frame, Frames, framed};
use super::service::{Service, Waiter, is_answer_to};
use super::{LONGEST_QUERY, Settings};
use crate::policy::Transport;
use crate::policy::by_client::ByClient;
use crate::sys::readable::readable;
use crate::sys::{tcp, udp};
use crate::wire::dns::query::{Query, Refused};

/// Takes connections from `listener`, which [`tcp::listen`] made, for as long as its task lives.
pub async fn serve(service: Rc<Service>, listener: OwnedFd) -> io::Result<()> {
    let own = tcp::local_address(&listener)?;
    let listener = readable(listener)?;
    let connections = Rc::new(RefCell::new(Connections::default()));
    loop {
        let mut ready = listener.readable().await?;
        match tcp::accept(listener.get_ref()) {
            Ok((socket, client)) => take_in(&service, &connections, own, socket, client),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                service.telemetry.count(|c| &c.out_of_descriptors);
                tokio::time::sleep(BREATH).await;
            }
            Err(_) => service.telemetry.count(|c| &c.ended_before_verdict),
        }
    }
}

fn take_in(
    service: &Rc<Service>,
    connections: &Rc<RefCell<Connections>>,
    own: SocketAddr,
    socket: OwnedFd,
    client: SocketAddr,
) {
    let Some(resolver) = tcp::local_address(&socket).ok().filter(|to| *to != own) else { return tcp::reset(socket) };
    let conversation = service.begin(client, resolver, Transport::Tcp, SystemTime::now());
    if let Decision::Refuse { action, .. } = conversation.decision {
        return service.refuse_connection(&conversation, action, socket);
    }
    if !conversation.is_readable() {
        service.drop_unread(&conversation);
        return tcp::reset(socket);
    }
    let Some(place) = Place::enter(connections, client.ip(), service) else {
        service.telemetry.count(|c| &c.refused_by_limit);
        return tcp::reset(socket);
    };
    let service = service.clone();
    tokio::task::spawn_local(async move {
        let _place = place;
        if let Ok(stream) = stream(socket) {
            // However it ends, it has ended.
            let _ = Connection::new(service, conversation, stream).serve().await;
        }
    });
}

/// A client's connection and what waits on it.
struct Connection {
    service: Rc<Service>,
    conversation: Exchange,
    client: Frames,
    to_client: OwnedWriteHalf,
    upstream: Option<Upstream>,
    waiting: HashMap<u16, Waiting>,
    random: SystemRandom,
    made: Vec<u8>,
    heard: Instant,
}

struct Waiting {
    waiter: Waiter,
    key: Option<Key>,
    until: Instant,
}

/// The connection to the resolver.
struct Upstream {
    answers: Frames,
    questions: OwnedWriteHalf,
    resolver: SocketAddr,
    /// One of `upstream`, not whom the client asked: it is asked from this host's own address.
    is_upstream: bool,
}

/// What happened on a connection.
enum Event {
    Question(Vec<u8>),
    Answer(Vec<u8>),
    QuestionTooLong,
    /// The resolver ended its connection, or broke the framing.
    UpstreamEnded,
    ClientEnded,
    Time,
}

impl Upstream {
    /// Whether this question may be asked of it.
    fn is_for(&self, exchange: &Exchange) -> bool {
        self.is_upstream != exchange.upstream().is_empty() && resolvers(exchange).contains(&self.resolver)
    }
}

impl Connection {
    fn new(service: Rc<Service>, conversation: Exchange, stream: TcpStream) -> Self {
        let (client, to_client) = stream.into_split();
        Self {
            service,
            conversation,
            client: Frames::new(client, LONGEST_QUERY),
            to_client,
            upstream: None,
            waiting: HashMap::new(),
            random: SystemRandom::new(),
            made: Vec::new(),
            heard: Instant::now(),
        }
    }

    async fn serve(mut self) -> io::Result<()> {
        let mut client_ended = false;
        loop {
            if client_ended && self.waiting.is_empty() {
                return Ok(());
            }
            match self.next(client_ended).await {
                Event::Question(question) => self.take_question(question).await?,
                Event::Answer(answer) => self.take_answer(&answer).await?,
                Event::QuestionTooLong => {
                    self.begin_anew();
                    self.service.drop_unread(&self.conversation);
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Event::UpstreamEnded => self.hang_up().await?,
                Event::ClientEnded => client_ended = true,
                Event::Time => {
                    let now = Instant::now();
                    self.fail_all(|waiting| waiting.until <= now).await?;
                    if self.waiting.is_empty() && now >= self.heard + self.service.settings.idle {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn next(&mut self, client_ended: bool) -> Event {
        let idle = self.heard + self.service.settings.idle;
        let until = self.waiting.values().map(|waiting| waiting.until).min().unwrap_or(idle);
        let may_ask = !client_ended && self.waiting.len() < self.service.settings.pipeline;
        let answer = async {
            match &mut self.upstream {
                Some(upstream) => upstream.answers.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = answer => match answer {
                Frame::Message(answer) => Event::Answer(answer),
                Frame::TooLong | Frame::End => Event::UpstreamEnded,
            },
            question = self.client.next(), if may_ask => match question {
                Frame::Message(question) => Event::Question(question),
                Frame::TooLong => Event::QuestionTooLong,
                Frame::End => Event::ClientEnded,
            },
            () = tokio::time::sleep_until(until) => Event::Time,
        }
    }

    /// The story of a question.
    async fn take_question(&mut self, question: Vec<u8>) -> io::Result<()> {
        self.heard = Instant::now();
        self.begin_anew();
        let query = match Query::read(&question) {
            Ok(query) => query,
            Err(Refused::Ignore) => {
                self.service.drop_unread(&self.conversation);
                return Err(io::ErrorKind::InvalidData.into());
            }
            Err(Refused::Answer(code)) => {
                self.service.refuse_malformed(&self.conversation, &question, code, &mut self.made);
                return self.send().await;
            }
        };
        let exchange = self.conversation.clone().ask(&query, SystemTime::now());
        match exchange.decision.clone() {
            // Since a reload: this connection would not be taken in now.
            Decision::Refuse { .. } => Err(io::ErrorKind::PermissionDenied.into()),
            Decision::Block { reason, list } => {
                self.service.block(&exchange, &query, (reason, list), &mut self.made);
                self.send().await
            }
            Decision::Forward => self.forward(exchange, &query).await,
        }
    }

    /// The policy of this moment, not of the connection's beginning.
    fn begin_anew(&mut self) {
        let (client, resolver) = (self.conversation.client.0, self.conversation.resolver.0);
        self.conversation = self.service.begin(client, resolver, Transport::Tcp, SystemTime::now());
    }

    async fn forward(&mut self, exchange: Exchange, query: &Query<'_>) -> io::Result<()> {
        let key = self.key_of(&exchange, query);
        if let Some(key) = &key {
            let mut found = Vec::new();
            let now = std::time::Instant::now();
            if self.service.cache.find(key.octets(), query, now, &mut found) {
                let upstream = exchange.upstream().first().copied();
                self.service.release(&exchange, query, &found, upstream, now, &mut self.made);
                return self.send().await;
            }
        }
        if self.upstream.as_ref().is_some_and(|upstream| !upstream.is_for(&exchange)) {
            // Since a reload, another is to be asked.
            self.hang_up().await?;
        }
        if self.ask(&exchange, query, key).await.is_err() {
            self.hang_up().await?;
            self.service.fail(&exchange, query, false, &mut self.made);
            return self.send().await;
        }
        Ok(())
    }

    /// The key under which an answer may serve others too.
    fn key_of(&self, exchange: &Exchange, query: &Query<'_>) -> Option<Key> {
        if exchange.upstream().is_empty() || !query.is_common() {
            return None;
        }
        let mut octets = Vec::new();
        Key::write(query, exchange.upstream(), &mut octets);
        Some(self.service.cache.key(&octets))
    }

    /// Sends a question to the resolver under an id that no other question of this connection has.
    async fn ask(&mut self, exchange: &Exchange, query: &Query<'_>, key: Option<Key>) -> io::Result<()> {
        let until = Instant::now() + self.service.settings.patience;
        if self.upstream.is_none() {
            self.upstream = Some(dial(exchange, self.service.settings.from_client, until).await?);
        }
        let id = self.fresh_id()?;
        let mut sent = Vec::new();
        query.to_forward(key.is_some(), &mut sent);
        if let Some(place) = sent.get_mut(..2) {
            place.copy_from_slice(&id.to_be_bytes());
        }
        let Some(upstream) = &mut self.upstream else { return Err(io::ErrorKind::NotConnected.into()) };
        timeout_at(until, upstream.questions.write_all(&framed(&sent)?)).await??;
        let waiter = Waiter { exchange: exchange.clone(), query: query.octets.into() };
        self.waiting.insert(id, Waiting { waiter, key, until });
        Ok(())
    }

    fn fresh_id(&self) -> io::Result<u16> {
        loop {
            let mut octets = [0; 2];
            self.random.fill(&mut octets).map_err(|_| io::Error::other("no randomness"))?;
            let id = u16::from_ne_bytes(octets);
            if !self.waiting.contains_key(&id) {
                return Ok(id);
            }
        }
    }

    async fn take_answer(&mut self, answer: &[u8]) -> io::Result<()> {
        let Some(id) = answer.first_chunk().map(|id| u16::from_be_bytes(*id)) else { return Ok(()) };
        // The question that was sent is that of the client, byte for byte.
        let is_its = |waiting: &Waiting| {
            Query::read(&waiting.waiter.query).is_ok_and(|asked| is_answer_to(asked.question.octets, id, answer))
        };
        if !self.waiting.get(&id).is_some_and(is_its) {
            return Ok(());
        }
        let Some(waiting) = self.waiting.remove(&id) else { return Ok(()) };
        let now = std::time::Instant::now();
        let resolver = self.upstream.as_ref().map(|upstream| upstream.resolver);
        // A key is that of certain resolvers, and what others say is not for it.
        let is_of_key = self.upstream.as_ref().is_some_and(|upstream| upstream.is_for(&waiting.waiter.exchange));
        if let Some(key) = waiting.key.as_ref().filter(|_| is_of_key) {
            self.service.cache.keep(key, answer, now);
        }
        let Ok(query) = Query::read(&waiting.waiter.query) else { return Ok(()) };
        self.service.release(&waiting.waiter.exchange, &query, answer, resolver, now, &mut self.made);
        self.send().await
    }

    /// Leaves the resolver. Nobody answers those who wait for it.
    async fn hang_up(&mut self) -> io::Result<()> {
        self.upstream = None;
        self.fail_all(|_| true).await
    }

    async fn fail_all(&mut self, which: impl Fn(&Waiting) -> bool) -> io::Result<()> {
        let ids: Vec<u16> = self.waiting.iter().filter(|(_, waiting)| which(waiting)).map(|(id, _)| *id).collect();
        for waiting in ids.into_iter().filter_map(|id| self.waiting.remove(&id)).collect::<Vec<_>>() {
            if let Ok(query) = Query::read(&waiting.waiter.query) {
                self.service.fail(&waiting.waiter.exchange, &query, false, &mut self.made);
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Sends what was made. A client that does not take it ends the connection.
    async fn send(&mut self) -> io::Result<()> {
        let message = framed(&self.made)?;
        timeout(self.service.settings.idle, self.to_client.write_all(&message)).await?
    }
}

/// Connects to the resolver that was asked, where `from_client` says so from the client's own address, or to an
/// `upstream` that takes the connection.
async fn dial(exchange: &Exchange, from_client: bool, until: Instant) -> io::Result<Upstream> {
    let resolvers = resolvers(exchange);
    let is_upstream = !exchange.upstream().is_empty();
    // A resolver on this host would send its answer past us.
    let is_own = !is_upstream && udp::is_local(exchange.resolver.ip());
    let client = (from_client && !is_upstream && !is_own).then(|| exchange.client.ip());
    let mut last = io::Error::from(io::ErrorKind::NotConnected);
    for (tried, resolver) in resolvers.iter().enumerate() {
        // Each has its share of what time is left.
        let share = (until - Instant::now()) / u32::try_from(resolvers.len() - tried).unwrap_or(1);
        match timeout(share, connect(client, *resolver)).await {
            Ok(Ok(stream)) => {
                let (answers, questions) = stream.into_split();
                return Ok(Upstream {
                    answers: Frames::new(answers, LONGEST_ANSWER),
                    questions,
                    resolver: *resolver,
                    is_upstream,
                });
            }
            Ok(Err(error)) => last = error,
            Err(late) => last = late.into(),
        }
    }
    Err(last)
}

/// Who may answer a question: `upstream`, or the resolver that was asked.
fn resolvers(exchange: &Exchange) -> &[SocketAddr] {
    match exchange.upstream() {
        [] => std::slice::from_ref(&exchange.resolver.0),
        upstream => upstream,
    }
}

async fn connect(client: Option<IpAddr>, resolver: SocketAddr) -> io::Result<TcpStream> {
    let stream = stream(tcp::dial(client, resolver)?)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

fn stream(socket: OwnedFd) -> io::Result<TcpStream> {
    TcpStream::from_std(socket.into())
}

/// How many connections there are, and of whom.
#[derive(Debug, Default)]
struct Connections {
    all: usize,
    of: ByClient,
}

/// A connection's place among the limited number; free again when dropped.
struct Place {
    connections: Rc<RefCell<Connections>>,
    client: IpAddr,
}

impl Place {
    fn enter(connections: &Rc<RefCell<Connections>>, client: IpAddr, service: &Service) -> Option<Self> {
        let mut all = connections.borrow_mut();
        let Settings { connections: most, connections_of_one: most_of_one, .. } = service.settings;
        if all.all >= most || all.of.of(client) >= most_of_one {
            return None;
        }
        all.all += 1;
        all.of.add(client, 1);
        Some(Self { connections: connections.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.connections.borrow_mut();
        all.all -= 1;
        all.of.take(self.client, 1);
    }
}

/// As long as a length can say. Octets.
const LONGEST_ANSWER: usize = 65_535;
const BREATH: std::time::Duration = std::time::Duration::from_millis(20);
