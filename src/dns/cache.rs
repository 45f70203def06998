//! Answers of upstream resolvers, kept for as long as their records live, and the clients that wait for one (RFC 1035,
//! section 7.4; RFC 2308).
//!
//! Shared by all workers: many clients that ask the same at once cost one upstream query. Bounded in octets: when
//! full, what was not asked for lately makes room, so that a flood of random names keeps what is in use.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::policy::by_client::ByClient;
use crate::wire::dns::query::Query;
use crate::wire::dns::{Header, Message, Record, Section, flag, kind, rcode, read_u32};

/// The answers, and for each question in flight those (`W`) who wait behind the one who asked.
#[derive(Debug)]
pub struct Cache<W> {
    limits: Limits,
    hasher: RandomState,
    shards: Vec<Mutex<Shard<W>>>,
    /// How often each client waits. Taken while a shard is held, never the other way round.
    of: Mutex<ByClient>,
}

#[derive(Clone, Debug)]
pub struct Limits {
    /// Octets of answers and keys, all workers together. Default 64 MiB. 0 keeps nothing.
    pub octets: usize,
    /// The longest that an answer is kept, whatever its TTL. Default 1 day.
    pub longest: Duration,
    /// The longest that a negative answer is kept. Default 1 h.
    pub longest_negative: Duration,
    /// Clients that may wait for one question. Default 1,000.
    pub waiting: usize,
    /// Times that one client may wait, whatever for, so that it leaves others room. Default 512.
    pub waiting_of_one: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            octets: 64 << 20,
            longest: Duration::from_secs(86_400),
            longest_negative: Duration::from_secs(3600),
            waiting: 1000,
            waiting_of_one: 512,
        }
    }
}

#[derive(Debug)]
struct Shard<W> {
    answers: HashTable<Kept>,
    /// Hash and number of each of them, the oldest first.
    order: VecDeque<(u64, u64)>,
    next: u64,
    octets: usize,
    waiting: HashTable<(Key, Vec<(IpAddr, W)>)>,
}

#[derive(Debug)]
struct Kept {
    hash: u64,
    /// Its name in `order`.
    number: u64,
    /// The key, the answer, and where TTLs lie in the answer (two octets each), in one piece of memory: what is kept
    /// long lies far away.
    octets: Box<[u8]>,
    key_ends: usize,
    answer_ends: usize,
    since: Instant,
    until: Instant,
    asked_again: bool,
}

/// What makes two questions the same: name, type, class, the bits that change an answer, and who is asked.
#[derive(Clone, Debug)]
pub struct Key {
    /// Seeded, since clients choose the names. Made once, for it costs more than to look something up.
    hash: u64,
    octets: Arc<[u8]>,
}

/// What a client who found no answer is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// It came in the meantime: the answer is there.
    Answered,
    /// Ask, and [`Cache::settle`] whatever comes of it.
    Ask,
    /// Another asks already, and will answer this client too.
    Wait,
    /// Too many wait, or this client too often.
    Full,
}

impl Key {
    /// Writes the key of a question into `into`, which serves as a look-up without an allocation.
    pub fn write(query: &Query<'_>, upstream: &[SocketAddr], into: &mut Vec<u8>) {
        into.clear();
        into.extend(query.question.name.octets().iter().map(u8::to_ascii_lowercase));
        into.extend_from_slice(&query.question.kind.to_be_bytes());
        into.extend_from_slice(&query.question.class.to_be_bytes());
        let bits = query.header.flags & (flag::RD | flag::CD | flag::AD);
        into.extend_from_slice(&bits.to_be_bytes());
        into.push(u8::from(query.edns.is_some()) | u8::from(query.dnssec()) << 1);
        for resolver in upstream {
            match resolver.ip() {
                IpAddr::V4(ip) => into.extend_from_slice(&ip.octets()),
                IpAddr::V6(ip) => into.extend_from_slice(&ip.octets()),
            }
            into.extend_from_slice(&resolver.port().to_be_bytes());
        }
    }

    pub fn octets(&self) -> &[u8] {
        &self.octets
    }
}

impl<W> Cache<W> {
    pub fn new(limits: Limits) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect();
        Self { limits, hasher: RandomState::new(), shards, of: Mutex::default() }
    }

    /// The key that [`Key::write`] wrote, to keep.
    pub fn key(&self, octets: &[u8]) -> Key {
        Key { hash: self.hasher.hash_one(octets), octets: octets.into() }
    }

    /// The answer to `query` with its own id and question, its TTLs less the time it has lain here.
    pub fn find(&self, key: &[u8], query: &Query<'_>, now: Instant, into: &mut Vec<u8>) -> bool {
        let hash = self.hasher.hash_one(key);
        self.shard(hash).find(hash, key, query, now, into)
    }

    /// For a question that [`Cache::find`] had no answer for.
    pub fn turn(
        &self,
        key: &Key,
        query: &Query<'_>,
        now: Instant,
        into: &mut Vec<u8>,
        client: IpAddr,
        waiter: impl FnOnce() -> W,
    ) -> Turn {
        let mut shard = self.shard(key.hash);
        if shard.find(key.hash, &key.octets, query, now, into) {
            return Turn::Answered;
        }
        match shard.waiting.entry(key.hash, |(own, _)| own.octets == key.octets, |(own, _)| own.hash) {
            Entry::Vacant(place) => {
                place.insert((key.clone(), Vec::new()));
                Turn::Ask
            }
            Entry::Occupied(place) if place.get().1.len() >= self.limits.waiting => Turn::Full,
            Entry::Occupied(mut place) => {
                let mut of = lock(&self.of);
                if of.of(client) >= self.limits.waiting_of_one {
                    return Turn::Full;
                }
                of.add(client, 1);
                place.get_mut().1.push((client, waiter()));
                Turn::Wait
            }
        }
    }

    /// Keeps an answer, if it may be kept, and returns those who waited for it. Without one, only the latter.
    pub fn settle(&self, key: &Key, answer: Option<&Message<'_>>, now: Instant) -> Vec<W> {
        let kept = answer.and_then(|answer| self.keepable(key, answer, now));
        let mut shard = self.shard(key.hash);
        if let Some(kept) = kept {
            shard.keep(kept, now, self.limits.octets / SHARDS);
        }
        let waiting = shard.waiting.find_entry(key.hash, |(own, _)| own.octets == key.octets);
        let waiting = waiting.map_or_else(|_| Vec::new(), |waiting| waiting.remove().0.1);
        drop(shard);
        self.forget(&waiting);
        waiting.into_iter().map(|(_, waiter)| waiter).collect()
    }

    /// Those who waited wait no longer.
    fn forget(&self, waiting: &[(IpAddr, W)]) {
        if waiting.is_empty() {
            return;
        }
        let mut of = lock(&self.of);
        for (client, _) in waiting {
            of.take(*client, 1);
        }
    }

    /// Keeps an answer, if it may be kept, for those who ask later.
    pub fn keep(&self, key: &Key, answer: &[u8], now: Instant) {
        let kept = Message::read(answer).ok().and_then(|answer| self.keepable(key, &answer, now));
        if let Some(kept) = kept {
            self.shard(key.hash).keep(kept, now, self.limits.octets / SHARDS);
        }
    }

    /// Octets of answers and keys held now.
    pub fn octets(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).octets).sum()
    }

    fn keepable(&self, key: &Key, answer: &Message<'_>, now: Instant) -> Option<Kept> {
        let lifetime = lifetime(answer, &self.limits)?;
        let records = || answer.records.iter().filter(|record| record.kind != kind::OPT);
        let key_ends = key.octets.len();
        let answer_ends = key_ends + answer.octets.len();
        // Just so much: what it had too much would be cut off by a copy.
        let mut octets = Vec::with_capacity(answer_ends + records().count() * 2);
        octets.extend_from_slice(&key.octets);
        octets.extend_from_slice(answer.octets);
        for record in records() {
            octets.extend_from_slice(&u16::try_from(record.ttl_at).ok()?.to_be_bytes());
        }
        let (octets, hash) = (octets.into(), key.hash);
        let until = now + lifetime;
        Some(Kept { hash, number: 0, octets, key_ends, answer_ends, since: now, until, asked_again: false })
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard<W>> {
        // Other bits than those by which the tables choose their places.
        let place = (hash >> 32) as usize % SHARDS;
        // There are always SHARDS of them.
        lock(self.shards.get(place).unwrap_or(&self.shards[0]))
    }
}

impl<W> Default for Shard<W> {
    fn default() -> Self {
        Self { answers: HashTable::new(), order: VecDeque::new(), next: 0, octets: 0, waiting: HashTable::new() }
    }
}

impl<W> Shard<W> {
    fn find(&mut self, hash: u64, key: &[u8], query: &Query<'_>, now: Instant, into: &mut Vec<u8>) -> bool {
        let Some(kept) = self.answers.find_mut(hash, |kept| kept.key() == key) else { return false };
        if kept.until <= now {
            return false;
        }
        // Not written without need: other workers read it too.
        if !kept.asked_again {
            kept.asked_again = true;
        }
        kept.write(query, now, into);
        true
    }

    fn keep(&mut self, mut kept: Kept, now: Instant, room: usize) {
        let size = kept.cost();
        if size > room {
            return;
        }
        match self.answers.entry(kept.hash, |own| own.key() == kept.key(), |own| own.hash) {
            Entry::Occupied(mut old) => {
                self.octets = self.octets.saturating_sub(old.get().cost());
                kept.number = old.get().number;
                *old.get_mut() = kept;
            }
            Entry::Vacant(place) => {
                kept.number = self.next;
                self.order.push_back((kept.hash, kept.number));
                self.next += 1;
                place.insert(kept);
            }
        }
        self.octets += size;
        while self.octets > room {
            if !self.make_room(now) {
                return;
            }
        }
    }

    /// Lets the oldest go, unless it was asked for since it was last looked at.
    fn make_room(&mut self, now: Instant) -> bool {
        let Some((hash, number)) = self.order.pop_front() else { return false };
        let Ok(mut place) = self.answers.find_entry(hash, |kept| kept.number == number) else { return true };
        let kept = place.get_mut();
        if kept.asked_again && now < kept.until {
            kept.asked_again = false;
            self.order.push_back((hash, number));
            return true;
        }
        let (gone, _) = place.remove();
        self.octets = self.octets.saturating_sub(gone.cost());
        true
    }
}

impl Kept {
    fn key(&self) -> &[u8] {
        self.octets.get(..self.key_ends).unwrap_or_default()
    }

    fn write(&self, query: &Query<'_>, now: Instant, into: &mut Vec<u8>) {
        into.clear();
        into.extend_from_slice(self.octets.get(self.key_ends..self.answer_ends).unwrap_or_default());
        put(into, 0, &query.header.id.to_be_bytes());
        put(into, crate::wire::dns::HEADER, query.question.octets);
        let age = u32::try_from(now.saturating_duration_since(self.since).as_secs()).unwrap_or(u32::MAX);
        let (ttls, _) = self.octets.get(self.answer_ends..).unwrap_or_default().as_chunks();
        for at in ttls {
            let at = usize::from(u16::from_be_bytes(*at));
            let left = read_u32(into, at).unwrap_or(0).saturating_sub(age);
            put(into, at, &left.to_be_bytes());
        }
    }

    /// Octets, with what the tables take for an entry, roughly.
    fn cost(&self) -> usize {
        self.octets.len() + ENTRY
    }
}

fn put(octets: &mut [u8], at: usize, part: &[u8]) {
    if let Some(place) = octets.get_mut(at..at + part.len()) {
        place.copy_from_slice(part);
    }
}

/// How long an answer may be kept; `None` if not at all.
fn lifetime(answer: &Message<'_>, limits: &Limits) -> Option<Duration> {
    let Header { flags, .. } = answer.header;
    if flags & flag::TC != 0 || !matches!(flags & flag::RCODE, rcode::NO_ERROR | rcode::NXDOMAIN) {
        return None;
    }
    let records = answer.records.iter().filter(|record| record.kind != kind::OPT);
    let ttl = records.map(Record::lifetime).min();
    let positive = flags & flag::RCODE == rcode::NO_ERROR
        && answer.records.iter().any(|record| {
            record.section == Section::Answer && (record.kind == answer.question.kind || answer.question.kind == ANY)
        });
    let longest = if positive { limits.longest } else { limits.longest_negative };
    let seconds = if positive { ttl? } else { ttl?.min(negative(answer)?) };
    Some(Duration::from_secs(seconds.into()).min(longest)).filter(|lifetime| !lifetime.is_zero())
}

/// The MINIMUM of the SOA, without which a negative answer is not kept (RFC 2308, section 5).
fn negative(answer: &Message<'_>) -> Option<u32> {
    let soa = answer.records.iter().find(|record| record.section == Section::Authority && record.kind == kind::SOA)?;
    let data = answer.data(soa);
    read_u32(data, data.len().checked_sub(4)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

const ANY: u16 = 255;
const SHARDS: usize = 16;
/// Octets that an entry takes beside its text.
const ENTRY: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message as Theirs, Query as TheirQuery, ResponseCode};
    use hickory_proto::rr::rdata::{A, CNAME, SOA};
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use std::str::FromStr;

    fn query(name: &str) -> Vec<u8> {
        let mut message = Theirs::query();
        message.add_query(TheirQuery::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn answer(query: &[u8], ttls: &[u32]) -> Vec<u8> {
        let mut message = Theirs::from_vec(query).unwrap().into_response();
        for ttl in ttls {
            let name = message.queries[0].name().clone();
            message.add_answer(Record::from_rdata(name, *ttl, RData::A(A::new(192, 0, 2, 1))));
        }
        message.to_vec().unwrap()
    }

    fn negative_answer(query: &[u8], code: ResponseCode, ttl: u32, minimum: u32) -> Vec<u8> {
        let mut message = Theirs::from_vec(query).unwrap().into_response();
        message.metadata.response_code = code;
        let zone = Name::from_str("example.").unwrap();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, minimum);
        message.add_authority(Record::from_rdata(zone, ttl, RData::SOA(soa)));
        message.to_vec().unwrap()
    }

    struct Bench {
        cache: Cache<u32>,
        now: Instant,
    }

    impl Bench {
        fn new(octets: usize) -> Self {
            let limits = Limits { octets, waiting: 3, waiting_of_one: 2, ..Limits::default() };
            Self { cache: Cache::new(limits), now: Instant::now() }
        }

        fn key(&self, query: &[u8]) -> Key {
            let mut key = Vec::new();
            Key::write(&Query::read(query).unwrap(), &["192.0.2.53:53".parse().unwrap()], &mut key);
            self.cache.key(&key)
        }

        fn keep(&self, query: &[u8], answer: &[u8]) -> Vec<u32> {
            self.cache.settle(&self.key(query), Some(&Message::read(answer).unwrap()), self.now)
        }

        fn find(&self, query: &[u8], after: u64) -> Option<Vec<u8>> {
            let mut found = Vec::new();
            let at = self.now + Duration::from_secs(after);
            let read = Query::read(query).unwrap();
            self.cache.find(&self.key(query).octets, &read, at, &mut found).then_some(found)
        }

        /// The turn of a client who is known by nothing but his number.
        fn turn(&self, query: &[u8], waiter: u32) -> Turn {
            self.turn_of(std::net::Ipv4Addr::from(waiter).into(), query, waiter)
        }

        fn turn_of(&self, client: IpAddr, query: &[u8], waiter: u32) -> Turn {
            let read = Query::read(query).unwrap();
            self.cache.turn(&self.key(query), &read, self.now, &mut Vec::new(), client, || waiter)
        }
    }

    #[test]
    fn an_answer_is_given_with_the_id_and_case_of_the_query_and_ttls_run_down() {
        let bench = Bench::new(1 << 20);
        bench.keep(&query("www.example."), &answer(&query("www.example."), &[300, 60]));
        let again = query("WWW.eXample.");
        let found = bench.find(&again, 59).unwrap();
        assert_eq!(found[..2], again[..2]);
        assert_eq!(found[12..again.len()], again[12..]);
        let found = Theirs::from_vec(&found).unwrap();
        assert_eq!(found.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [241, 1]);
        assert_eq!(bench.find(&again, 60), None);
    }

    #[test]
    fn other_questions_have_other_answers() {
        let bench = Bench::new(1 << 20);
        let asked = query("www.example.");
        bench.keep(&asked, &answer(&asked, &[300]));
        assert!(bench.find(&query("ww.example."), 0).is_none());
        for (at, octet) in [(3, 0x10), (2, 0x00), (asked.len() - 3, 28), (asked.len() - 1, 3)] {
            let mut other = asked.clone();
            other[at] ^= octet ^ if at == 2 { 1 } else { 0 };
            assert!(bench.find(&other, 0).is_none(), "octet {at}");
        }
        let dnssec = |bits: u8| {
            let mut other = [&asked[..], &[0, 0, 41, 4, 208, 0, 0, bits, 0, 0, 0]].concat();
            other[11] = 1;
            other
        };
        assert!(bench.find(&dnssec(0), 0).is_none());
        let with_edns = dnssec(0);
        bench.keep(&with_edns, &answer(&asked, &[300]));
        assert!(bench.find(&with_edns, 0).is_some());
        assert!(bench.find(&dnssec(0x80), 0).is_none());
    }

    #[test]
    fn negative_answers_live_as_long_as_their_soa_says() {
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            for (ttl, minimum) in [(300, 20), (20, 300)] {
                let bench = Bench::new(1 << 20);
                let asked = query("none.example.");
                bench.keep(&asked, &negative_answer(&asked, code, ttl, minimum));
                assert!(bench.find(&asked, 19).is_some());
                assert!(bench.find(&asked, 20).is_none());
            }
        }
    }

    #[test]
    fn an_alias_without_an_address_is_negative() {
        let bench = Bench::new(1 << 20);
        let asked = query("www.example.");
        let mut message = Theirs::from_vec(&negative_answer(&asked, ResponseCode::NoError, 300, 5)).unwrap();
        let alias = RData::CNAME(CNAME(Name::from_str("none.example.").unwrap()));
        message.add_answer(Record::from_rdata(Name::from_str("www.example.").unwrap(), 300, alias));
        bench.keep(&asked, &message.to_vec().unwrap());
        assert!(bench.find(&asked, 4).is_some());
        assert!(bench.find(&asked, 5).is_none());
    }

    #[test]
    fn what_may_not_be_kept_is_not() {
        let asked = query("www.example.");
        let good = answer(&asked, &[300]);
        let failed = negative_answer(&asked, ResponseCode::ServFail, 300, 300);
        let refused = negative_answer(&asked, ResponseCode::Refused, 300, 300);
        let mut cut = good.clone();
        cut[2] |= 0x02;
        let without_soa = answer(&asked, &[]);
        for answer in [answer(&asked, &[300, 0]), answer(&asked, &[1 << 31]), failed, refused, cut, without_soa] {
            let bench = Bench::new(1 << 20);
            bench.keep(&asked, &answer);
            assert!(bench.find(&asked, 0).is_none(), "{:?}", Theirs::from_vec(&answer));
        }
    }

    #[test]
    fn one_asks_and_the_others_wait_for_it() {
        let bench = Bench::new(1 << 20);
        let asked = query("www.example.");
        assert_eq!(bench.turn(&asked, 1), Turn::Ask);
        assert_eq!(
            [bench.turn(&asked, 2), bench.turn(&asked, 3), bench.turn(&asked, 4)],
            [Turn::Wait, Turn::Wait, Turn::Wait]
        );
        assert_eq!(bench.turn(&asked, 5), Turn::Full);
        assert_eq!(bench.turn(&query("other.example."), 6), Turn::Ask);
        assert_eq!(bench.keep(&asked, &answer(&asked, &[300])), [2, 3, 4]);
        assert_eq!(bench.turn(&asked, 7), Turn::Answered);
        assert_eq!(bench.cache.settle(&bench.key(&query("other.example.")), None, bench.now), [0u32; 0]);
        assert_eq!(bench.turn(&query("other.example."), 8), Turn::Ask);
    }

    #[test]
    fn one_client_waits_only_so_often_whatever_for() {
        let bench = Bench::new(1 << 20);
        let greedy = IpAddr::from([10, 1, 0, 2]);
        let (one, other) = (query("www.example."), query("other.example."));
        assert_eq!([bench.turn(&one, 1), bench.turn(&other, 2)], [Turn::Ask, Turn::Ask]);
        assert_eq!([bench.turn_of(greedy, &one, 3), bench.turn_of(greedy, &other, 4)], [Turn::Wait, Turn::Wait]);
        assert_eq!([bench.turn_of(greedy, &one, 5), bench.turn_of(greedy, &other, 6)], [Turn::Full, Turn::Full]);
        assert_eq!(bench.turn(&one, 7), Turn::Wait, "another client");
        assert_eq!(bench.cache.settle(&bench.key(&one), None, bench.now), [3, 7]);
        assert_eq!(bench.turn_of(greedy, &other, 8), Turn::Wait, "there is room again");
        assert_eq!(bench.keep(&other, &answer(&other, &[300])), [4, 8]);
        assert!(lock(&bench.cache.of).is_empty());
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_keeps_what_is_in_use() {
        let bench = Bench::new(1 << 20);
        let used = query("used.example.");
        bench.keep(&used, &answer(&used, &[300]));
        for n in 0..50_000 {
            let asked = query(&format!("n{n}.example."));
            bench.keep(&asked, &answer(&asked, &[300]));
            assert!(bench.find(&used, 1).is_some(), "after {n}");
        }
        assert!(bench.cache.octets() <= 1 << 20);
        assert!(bench.cache.octets() > 1 << 19);
    }

    #[test]
    fn an_answer_that_is_kept_again_counts_once() {
        let bench = Bench::new(1 << 20);
        let asked = query("www.example.");
        bench.keep(&asked, &answer(&asked, &[300]));
        let once = bench.cache.octets();
        for _ in 0..10 {
            bench.keep(&asked, &answer(&asked, &[300]));
        }
        assert_eq!(bench.cache.octets(), once);
    }
}
