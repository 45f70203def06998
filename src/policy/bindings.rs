//! Which names DNS gave for which addresses, for each client (SPEC V11, V12).
//!
//! Fails closed: a binding that is not here, has ended or had to make room is no match, and then a peeked name earns
//! no Allow until a fresh look-up shows that it belongs.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::judge::Binding;
use crate::name::DomainName;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Pairs of client and address held at once, a quarter of them of one client. When full, the oldest make room, a
    /// client's own before those of others. Default 262,144 (some 60 MB).
    pub pairs: usize,
    /// Names of one pair; the oldest make room. Default 32.
    pub names: usize,
    /// How long a binding is good beyond its record's TTL, since a client connects after it was told. Default 1 s.
    pub grace: Duration,
    /// Whether a client has its bindings for itself. Default true; false where every address is the same client's.
    pub of_each: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { pairs: 262_144, names: 32, grace: Duration::from_secs(1), of_each: true }
    }
}

/// The bindings of all clients, shared by all workers.
#[derive(Debug)]
pub struct Bindings {
    settings: Settings,
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
    displaced: Mutex<Displaced>,
}

/// Pairs of client and address that had to make room for others.
#[derive(Debug, Default)]
pub struct Displaced {
    /// The oldest of them, up to 65,536: whoever holds a verdict for one shall forget it.
    pub pairs: Vec<(IpAddr, IpAddr)>,
    /// How many there were in all.
    pub count: u64,
}

#[derive(Debug, Default)]
struct Shard {
    pairs: HashMap<Pair, Vec<Bound>>,
    /// Every pair once, the longest unrenewed first.
    order: VecDeque<Pair>,
    /// By client, how many.
    of: HashMap<IpAddr, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pair {
    client: IpAddr,
    remote: IpAddr,
}

#[derive(Clone, Debug)]
struct Bound {
    name: DomainName,
    ends: Instant,
}

impl Default for Bindings {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

impl Bindings {
    pub fn new(settings: Settings) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { settings, hasher: RandomState::new(), shards, displaced: Mutex::default() }
    }

    /// DNS told `client` that `remote` is the address of `names`: the name that was asked first, then those that it
    /// led to. A TTL beyond a week counts as a week.
    pub fn bind(&self, client: IpAddr, remote: IpAddr, names: &[DomainName], ttl: Duration, now: Instant) {
        let pair = self.pair(client, remote);
        let mut shard = self.shard(&pair);
        shard.sweep(now);
        if !shard.pairs.contains_key(&pair) {
            let room = (self.settings.pairs / SHARDS).max(1);
            let room_of_one = if self.settings.of_each { (room / SHARES).max(1) } else { room };
            if shard.of.get(&pair.client).is_some_and(|count| *count >= room_of_one) {
                let own = shard.displace_of(pair.client);
                lock(&self.displaced).add(own);
                if own.is_none() {
                    return;
                }
            }
            while shard.pairs.len() >= room {
                lock(&self.displaced).add(shard.displace());
            }
            shard.order.push_back(pair);
            *shard.of.entry(pair.client).or_default() += 1;
        }
        let ends = now + ttl.min(LONGEST_TTL) + self.settings.grace;
        let bound = shard.pairs.entry(pair).or_default();
        bound.retain(|old| now < old.ends || names.contains(&old.name));
        // The asked name goes last: the newest.
        for name in names.iter().rev() {
            renew(bound, name, ends);
        }
        let beyond = bound.len().saturating_sub(self.settings.names.max(1));
        bound.drain(..beyond);
    }

    /// Whether DNS gave `client` this address for this name. Never [`Binding::Unknown`].
    pub fn state(&self, client: IpAddr, remote: IpAddr, name: &DomainName, now: Instant) -> Binding {
        let found = self.find(client, remote, |bound| bound.iter().any(|own| own.name == *name && now < own.ends));
        if found == Some(true) { Binding::Match } else { Binding::Mismatch }
    }

    /// The name for which `client` was given this address last.
    pub fn name_for(&self, client: IpAddr, remote: IpAddr, now: Instant) -> Option<DomainName> {
        self.find(client, remote, |bound| bound.iter().rev().find(|own| now < own.ends).map(|own| own.name.clone()))?
    }

    /// The same, with the time that it is good for.
    pub fn bound(&self, client: IpAddr, remote: IpAddr, now: Instant) -> Option<(DomainName, Duration)> {
        self.find(client, remote, |bound| newest(bound, now))?
    }

    /// Every pair of client and address that has a name, with the newest, and the time that this is good for. Shard by
    /// shard: what is bound meanwhile may be left out.
    pub fn each(&self, now: Instant, mut each: impl FnMut(IpAddr, IpAddr, &DomainName, Duration)) {
        for shard in &self.shards {
            let pairs: Vec<_> = {
                let shard = lock(shard);
                shard.pairs.iter().filter_map(|(pair, bound)| Some((*pair, newest(bound, now)?))).collect()
            };
            pairs.iter().for_each(|(pair, (name, lasts))| each(pair.client, pair.remote, name, *lasts));
        }
    }

    /// Pairs held now, ended ones among them.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).pairs.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What had to make room for others since this was asked last.
    pub fn take_displaced(&self) -> Displaced {
        std::mem::take(&mut *lock(&self.displaced))
    }

    fn find<T>(&self, client: IpAddr, remote: IpAddr, look: impl FnOnce(&[Bound]) -> T) -> Option<T> {
        let pair = self.pair(client, remote);
        self.shard(&pair).pairs.get(&pair).map(|bound| look(bound))
    }

    fn pair(&self, client: IpAddr, remote: IpAddr) -> Pair {
        let client = if self.settings.of_each { client.to_canonical() } else { Ipv4Addr::UNSPECIFIED.into() };
        Pair { client, remote: remote.to_canonical() }
    }

    fn shard(&self, pair: &Pair) -> MutexGuard<'_, Shard> {
        let place = self.hasher.hash_one(pair) as usize % SHARDS;
        // There are always SHARDS of them.
        lock(self.shards.get(place).unwrap_or(&self.shards[0]))
    }
}

impl Displaced {
    fn add(&mut self, pair: Option<Pair>) {
        self.count += 1;
        if self.pairs.len() < LISTED {
            self.pairs.extend(pair.map(|pair| (pair.client, pair.remote)));
        }
    }
}

fn newest(bound: &[Bound], now: Instant) -> Option<(DomainName, Duration)> {
    let newest = bound.iter().rev().find(|own| now < own.ends)?;
    Some((newest.name.clone(), newest.ends.duration_since(now)))
}

impl Shard {
    /// Looks at the oldest few: what has ended goes, what was renewed goes to the back.
    fn sweep(&mut self, now: Instant) {
        for _ in 0..SWEEP {
            let Some(pair) = self.order.pop_front() else { return };
            if self.pairs.get(&pair).is_some_and(|bound| bound.iter().any(|bound| now < bound.ends)) {
                self.order.push_back(pair);
            } else {
                self.remove(&pair);
            }
        }
    }

    /// The client's oldest pair, if it is among the first: those before it go to the back. Answers of thousands of
    /// addresses must not have every one of them look through the whole table.
    fn displace_of(&mut self, client: IpAddr) -> Option<Pair> {
        for _ in 0..LOOK {
            let oldest = self.order.pop_front()?;
            if oldest.client == client {
                self.remove(&oldest);
                return Some(oldest);
            }
            self.order.push_back(oldest);
        }
        None
    }

    fn displace(&mut self) -> Option<Pair> {
        let oldest = self.order.pop_front();
        match &oldest {
            Some(pair) => self.remove(pair),
            // Cannot be: every pair is in the order. But a loop must end.
            None => {
                self.pairs.clear();
                self.of.clear();
            }
        }
        oldest
    }

    fn remove(&mut self, pair: &Pair) {
        if self.pairs.remove(pair).is_some()
            && let Entry::Occupied(mut count) = self.of.entry(pair.client)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

fn renew(bound: &mut Vec<Bound>, name: &DomainName, ends: Instant) {
    let before = bound.iter().position(|own| own.name == *name).map(|at| bound.remove(at).ends);
    let ends = before.map_or(ends, |before| before.max(ends));
    bound.push(Bound { name: name.clone(), ends });
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    match shared.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

const SHARDS: usize = 16;
/// Of so many shares one client has no more than one.
const SHARES: usize = 4;
/// Pairs looked at with each new binding: more than one, so that ended ones go faster than new ones come.
const SWEEP: usize = 2;
/// Pairs among which a client's own is sought that makes room; without one the new pair is not taken.
const LOOK: usize = 128;
/// A TTL beyond it is no promise that anybody keeps.
const LONGEST_TTL: Duration = Duration::from_secs(7 * 86_400);
/// Displaced pairs that are listed until somebody asks.
const LISTED: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        DomainName::parse(text.as_bytes()).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn without_grace(pairs: usize) -> Bindings {
        Bindings::new(Settings { pairs, names: 3, grace: Duration::ZERO, of_each: true })
    }

    #[test]
    fn a_name_is_bound_to_its_address_for_its_client_alone() {
        let (bindings, now) = (without_grace(100), Instant::now());
        for (one, other, remote) in [("10.0.0.1", "10.0.0.2", "192.0.2.1"), ("fd00::1", "fd00::2", "2001:db8::1")] {
            bindings.bind(ip(one), ip(remote), &[name("a.example")], secs(60), now);
            assert_eq!(bindings.state(ip(one), ip(remote), &name("a.example"), now), Binding::Match);
            assert_eq!(bindings.state(ip(other), ip(remote), &name("a.example"), now), Binding::Mismatch);
            assert_eq!(bindings.state(ip(one), ip("192.0.2.9"), &name("a.example"), now), Binding::Mismatch);
            assert_eq!(bindings.state(ip(one), ip(remote), &name("b.example"), now), Binding::Mismatch);
        }
    }

    #[test]
    fn a_binding_ends_with_its_ttl_and_lives_on_when_renewed() {
        let (bindings, now) = (without_grace(100), Instant::now());
        let (client, remote, asked) = (ip("10.0.0.1"), ip("192.0.2.1"), name("a.example"));
        bindings.bind(client, remote, std::slice::from_ref(&asked), secs(1), now);
        let state = |at| bindings.state(client, remote, &asked, now + at);
        assert_eq!(state(Duration::from_millis(999)), Binding::Match);
        assert_eq!(state(secs(1)), Binding::Mismatch);
        bindings.bind(client, remote, std::slice::from_ref(&asked), secs(5), now + secs(1));
        assert_eq!(state(secs(5)), Binding::Match);
        bindings.bind(client, remote, std::slice::from_ref(&asked), secs(1), now + secs(2));
        assert_eq!(state(secs(5)), Binding::Match, "a shorter TTL takes nothing away");
        assert_eq!(state(secs(6)), Binding::Mismatch);
    }

    #[test]
    fn grace_lengthens_a_binding() {
        let bindings = Bindings::new(Settings { grace: secs(2), ..Settings::default() });
        let now = Instant::now();
        bindings.bind(ip("10.0.0.1"), ip("192.0.2.1"), &[name("a.example")], secs(0), now);
        let state = |at| bindings.state(ip("10.0.0.1"), ip("192.0.2.1"), &name("a.example"), now + at);
        assert_eq!(state(secs(1)), Binding::Match);
        assert_eq!(state(secs(2)), Binding::Mismatch);
    }

    #[test]
    fn no_binding_outlasts_a_week() {
        let (bindings, now) = (without_grace(100), Instant::now());
        let (client, remote, week) = (ip("10.0.0.1"), ip("192.0.2.1"), secs(7 * 86_400));
        bindings.bind(client, remote, &[name("a.example")], secs(u64::from(u32::MAX)), now);
        assert_eq!(bindings.bound(client, remote, now), Some((name("a.example"), week)));
        assert_eq!(bindings.state(client, remote, &name("a.example"), now + week), Binding::Mismatch);
    }

    #[test]
    fn every_name_of_a_chain_is_bound_and_the_asked_one_serves() {
        let (bindings, now) = (without_grace(100), Instant::now());
        let (client, remote) = (ip("10.0.0.1"), ip("192.0.2.1"));
        let chain = [name("www.example"), name("edge.cdn.example")];
        bindings.bind(client, remote, &chain, secs(60), now);
        for link in &chain {
            assert_eq!(bindings.state(client, remote, link, now), Binding::Match);
        }
        assert_eq!(bindings.name_for(client, remote, now), Some(name("www.example")));
        bindings.bind(client, remote, &[name("newer.example")], secs(10), now);
        assert_eq!(bindings.name_for(client, remote, now), Some(name("newer.example")));
        assert_eq!(bindings.name_for(client, remote, now + secs(11)), Some(name("www.example")));
        assert_eq!(bindings.name_for(client, remote, now + secs(61)), None);
    }

    #[test]
    fn names_of_a_pair_are_bounded_and_the_oldest_make_room() {
        let (bindings, now) = (without_grace(100), Instant::now());
        let (client, remote) = (ip("10.0.0.1"), ip("192.0.2.1"));
        for n in 0..10 {
            bindings.bind(client, remote, &[name(&format!("n{n}.example"))], secs(60), now);
        }
        let bound = |n: u32| bindings.state(client, remote, &name(&format!("n{n}.example")), now) == Binding::Match;
        assert_eq!((0..10).filter(|n| bound(*n)).collect::<Vec<_>>(), [7, 8, 9]);
    }

    #[test]
    fn pairs_are_bounded_under_a_flood() {
        let (bindings, now) = (without_grace(160), Instant::now());
        for n in 0..10_000u32 {
            bindings.bind(ip("10.0.0.1"), IpAddr::from(n.to_be_bytes()), &[name("a.example")], secs(60), now);
        }
        assert!(bindings.len() <= 160, "{}", bindings.len());
        let displaced = bindings.take_displaced();
        assert!(displaced.count >= 10_000 - 160);
        assert_eq!(displaced.pairs.len() as u64, displaced.count);
        for (client, remote) in displaced.pairs {
            assert_eq!(bindings.name_for(client, remote, now), None);
        }
        let newest = IpAddr::from(9_999u32.to_be_bytes());
        assert_eq!(bindings.state(ip("10.0.0.1"), newest, &name("a.example"), now), Binding::Match);
    }

    #[test]
    fn one_client_displaces_itself_and_nobody_else() {
        let (bindings, now) = (without_grace(16 * 64), Instant::now());
        let asked = name("a.example");
        let bind = |client, n: u32| {
            bindings.bind(ip(client), IpAddr::from(n.to_be_bytes()), std::slice::from_ref(&asked), secs(60), now);
        };
        (0..40).for_each(|n| bind("10.0.0.1", n));
        (0..10_000).for_each(|n| bind("10.0.0.2", n));
        let bound = |client, n: u32| bindings.state(ip(client), IpAddr::from(n.to_be_bytes()), &asked, now);
        assert!((0..40).all(|n| bound("10.0.0.1", n) == Binding::Match));
        assert_eq!(bound("10.0.0.2", 9_999), Binding::Match);
        assert!(bindings.len() <= 40 + 16 * 16, "{}", bindings.len());
        let displaced = bindings.take_displaced();
        assert_eq!(displaced.count + bindings.len() as u64, 10_040);
        assert!(displaced.pairs.iter().all(|(client, _)| *client == ip("10.0.0.2")));
        let counted: usize = bindings.shards.iter().map(|shard| lock(shard).of.values().sum::<usize>()).sum();
        assert_eq!(counted, bindings.len());
    }

    #[test]
    fn ended_pairs_make_room_before_live_ones() {
        let (bindings, now) = (without_grace(100_000), Instant::now());
        for n in 0..1_000u32 {
            bindings.bind(ip("10.0.0.1"), IpAddr::from(n.to_be_bytes()), &[name("a.example")], secs(1), now);
        }
        for n in 1_000..3_000u32 {
            bindings.bind(ip("10.0.0.1"), IpAddr::from(n.to_be_bytes()), &[name("a.example")], secs(60), now + secs(2));
        }
        assert!(bindings.len() < 2_200, "{}", bindings.len());
        assert_eq!(bindings.take_displaced().count, 0);
    }

    #[test]
    fn where_all_clients_are_one_each_has_the_bindings_of_the_other() {
        let bindings = Bindings::new(Settings { of_each: false, ..Settings::default() });
        let now = Instant::now();
        bindings.bind(ip("10.0.0.1"), ip("2001:db8::1"), &[name("a.example")], secs(60), now);
        assert_eq!(bindings.state(ip("fd00::1"), ip("2001:db8::1"), &name("a.example"), now), Binding::Match);
        assert_eq!(bindings.name_for(ip("fd00::1"), ip("2001:db8::2"), now), None);
    }

    #[test]
    fn a_mapped_address_is_the_address_that_it_maps() {
        let (bindings, now) = (without_grace(100), Instant::now());
        bindings.bind(ip("::ffff:10.0.0.1"), ip("192.0.2.1"), &[name("a.example")], secs(60), now);
        assert_eq!(bindings.state(ip("10.0.0.1"), ip("::ffff:192.0.2.1"), &name("a.example"), now), Binding::Match);
    }
}
