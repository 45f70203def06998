//! The questions of one worker that wait for an answer over UDP.
//!
//! Bounded, for all and for one client: fails closed when [`InFlight::has_room`] says no.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::cache::Key;
use super::ports::Ticket;
use super::service::Waiter;
use crate::policy::by_client::ByClient;

/// A question that waits for its resolver.
#[derive(Debug)]
pub struct Pending {
    pub waiter: Waiter,
    /// Where the question ends in its query, and in what was sent.
    pub question_ends: usize,
    /// For questions that others may wait for too.
    pub key: Option<Key>,
    pub attempts: Attempts,
    pub asked: SocketAddr,
    pub since: Instant,
}

/// The tickets of the attempts so far: an answer to any of them will do. Most questions need one.
#[derive(Debug, Default)]
pub struct Attempts {
    first: Option<Ticket>,
    more: Vec<Ticket>,
}

impl Attempts {
    pub fn add(&mut self, ticket: Ticket) {
        match self.first {
            None => self.first = Some(ticket),
            Some(_) => self.more.push(ticket),
        }
    }

    pub fn count(&self) -> usize {
        self.tickets().count()
    }

    pub fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.first.iter().chain(&self.more).copied()
    }
}

/// What waits, by token, and when it must be looked at.
#[derive(Debug)]
pub struct InFlight {
    places: Vec<Option<Pending>>,
    free: Vec<u32>,
    of: ByClient,
    clock: VecDeque<(Instant, u32, u32)>,
    /// Tells a place's question from the one that stood there before.
    generations: Vec<u32>,
    most: usize,
    most_of_one: usize,
}

impl InFlight {
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            of: ByClient::default(),
            clock: VecDeque::new(),
            generations: Vec::new(),
            most,
            most_of_one,
        }
    }

    pub fn has_room(&self, client: IpAddr) -> bool {
        self.places.len() - self.free.len() < self.most && self.of.of(client) < self.most_of_one
    }

    /// Questions that wait now.
    pub fn waiting(&self) -> u64 {
        (self.places.len() - self.free.len()) as u64
    }

    pub fn add(&mut self, client: IpAddr, pending: Pending, look: Instant) -> u32 {
        self.of.add(client, 1);
        let token = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.generations.push(0);
            self.places.len() as u32 - 1
        });
        if let Some(place) = self.places.get_mut(token as usize) {
            *place = Some(pending);
        }
        self.wait_again(token, look);
        token
    }

    pub fn get(&mut self, token: u32) -> Option<&mut Pending> {
        self.places.get_mut(token as usize)?.as_mut()
    }

    pub fn remove(&mut self, token: u32) -> Option<Pending> {
        let pending = self.places.get_mut(token as usize)?.take()?;
        self.free.push(token);
        if let Some(generation) = self.generations.get_mut(token as usize) {
            *generation = generation.wrapping_add(1);
        }
        self.of.take(pending.waiter.exchange.client.ip(), 1);
        Some(pending)
    }

    pub fn wait_again(&mut self, token: u32, look: Instant) {
        let generation = self.generations.get(token as usize).copied().unwrap_or(0);
        self.clock.push_back((look, token, generation));
    }

    /// A question whose time to be looked at has come. All wait about as long, so the first is the earliest.
    pub fn due(&mut self, now: Instant) -> Option<u32> {
        loop {
            let (look, token, generation) = *self.clock.front()?;
            let is_gone = self.generations.get(token as usize) != Some(&generation);
            if !is_gone && look > now {
                return None;
            }
            self.clock.pop_front();
            if !is_gone {
                return Some(token);
            }
        }
    }
}
