//! DNS of protected hosts: interception, forwarding, blocked answers, and reading answers into bindings.
//!
//! ```text
//! capture (TPROXY) -> read strictly -> judge the resolver, then the name
//!   -> refuse (drop action), or answer here, or ask:
//!        the resolver that the client asked, from the client's own address, or `upstream` by way of the cache
//!          -> read the answer -> bind its addresses -> release it from the address that was asked
//! ```
//!
//! Fails closed: what cannot be read is never forwarded and never released, and a resolver that does not answer is
//! SERVFAIL.

mod arrivals;
pub mod cache;
pub mod exchange;
pub mod frames;
pub mod in_flight;
pub mod lookup;
mod own;
pub mod ports;
pub mod record;
pub mod review;
pub mod service;
pub mod tcp;
pub mod udp;

use std::time::Duration;

pub use service::Service;

/// How DNS is served, each limit for one worker unless it says otherwise.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of a gateway's workers, those that take questions over UDP. Few that have much to do at a time do it for less than
    /// many that are woken for each. Default 0: one for every four.
    pub workers: usize,
    /// Questions that wait for a resolver at once; more are answered SERVFAIL. Default 16,384.
    pub in_flight: usize,
    /// Questions of one client that wait at once; more are answered SERVFAIL. Default 512.
    pub in_flight_of_one: usize,
    /// How long a question waits for its answer before SERVFAIL. Default 1.5 s, a multiple of
    /// `attempt`.
    pub patience: Duration,
    /// How long one `upstream` is waited for before the next is asked as well. Default 500 ms.
    pub attempt: Duration,
    /// Ports from which one `upstream` is asked. Each is drawn at random, and so is the choice among them. Default 32.
    pub ports: usize,
    /// Questions that leave from a port before another one takes its place. Default 64.
    pub questions_of_a_port: u32,
    /// The TTL of answers made here, in seconds. Default 60.
    pub ttl: u32,
    /// TCP connections of clients at once; more are reset. Default 1,024.
    pub connections: usize,
    /// TCP connections of one client at once; more are reset. Default 64.
    pub connections_of_one: usize,
    /// Questions of one TCP connection that wait at once; further ones are read later. Default 64.
    pub pipeline: usize,
    /// How long a TCP connection may be without a question. Default 10 s.
    pub idle: Duration,
    /// What is kept of upstream answers, all workers together.
    pub cache: cache::Limits,
    /// Ask the resolver that a client asked from the client's own address, not from this host's. Default true.
    pub from_client: bool,
}

/// A longer query is no query that anybody sends. Octets.
const LONGEST_QUERY: usize = 4096;

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 0,
            in_flight: 16_384,
            in_flight_of_one: 512,
            patience: Duration::from_millis(1500),
            attempt: Duration::from_millis(500),
            ports: 32,
            questions_of_a_port: 64,
            ttl: 60,
            connections: 1024,
            connections_of_one: 64,
            pipeline: 64,
            idle: Duration::from_secs(10),
            cache: cache::Limits::default(),
            from_client: true,
        }
    }
}
