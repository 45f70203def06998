//! When a worker looks at what has come over UDP: as it is told of arrivals, or under load by the clock.
//!
//! To be woken for a few questions costs more than to answer them. So a busy worker does as the driver of a busy network card
//! does: it is told of nothing, and looks [`PERIOD`] after its last turn at what has come since. It waits for that in the
//! runtime, where its thread serves all else in the meantime. Where a turn leaves something, the next follows at once: no
//! capacity is lost. Clients who ask no more until they are answered would be slowed down by it: where fewer questions come
//! than before, it is given up again.
//!
//! Only questions that are answered at once make a worker busy. Those that are sent on would wait twice, and cost no less.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior};

use crate::sys::epoll::Epoll;
use crate::sys::readable::{Raw, Steady, readable};
use crate::sys::timer::Timer;

/// The listeners and the ports of one worker.
pub(super) struct Arrivals {
    pub(super) ears: Vec<Ear>,
    /// Where upstream resolvers answer.
    pub(super) ports: Watched<Epoll>,
    timer: AsyncFd<Raw<Timer>>,
    tick: Interval,
    /// Questions from one tick to the next before it was looked by the clock, while it is.
    by_clock: Option<usize>,
    /// Ticks until that may begin again.
    rest: u32,
    turn: usize,
}

/// A listener with its own address.
pub(super) struct Ear {
    pub(super) listener: Watched<UdpSocket>,
    pub(super) own: SocketAddr,
}

/// A descriptor, and what tells of its arrivals unless it is looked at by the clock.
pub(super) struct Watched<T: Steady> {
    pub(super) it: Rc<T>,
    bell: Option<AsyncFd<Raw<Rc<T>>>>,
}

/// What there is to do.
pub(super) enum Event {
    /// To take what has come to the listener of this place.
    Questions(usize),
    Answers,
    /// To take both, wherever there are any.
    Everything,
    /// To look at what waits.
    Tick,
}

impl Arrivals {
    /// Must be called within a runtime.
    pub(super) fn new(listeners: Vec<(UdpSocket, SocketAddr)>) -> io::Result<Self> {
        let ear = |(listener, own)| Ok(Ear { listener: Watched::new(listener)?, own });
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            ears: listeners.into_iter().map(ear).collect::<io::Result<_>>()?,
            ports: Watched::new(Epoll::new()?)?,
            timer: readable(Timer::new()?)?,
            tick,
            by_clock: None,
            rest: 0,
            turn: 0,
        })
    }

    pub(super) async fn next(&mut self) -> io::Result<Event> {
        self.turn = self.turn.wrapping_add(1);
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Who is looked at first changes with every turn, so that none waits for ever.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Event>> {
        if self.tick.poll_tick(cx).is_ready() {
            return Poll::Ready(Ok(Event::Tick));
        }
        if let Poll::Ready(guard) = self.timer.poll_read_ready(cx) {
            guard?.clear_ready();
            return Poll::Ready(Ok(Event::Everything));
        }
        let all = self.ears.len() + 1;
        for number in (0..all).map(|number| self.turn.wrapping_add(number) % all) {
            let (told, event) = match self.ears.get(number) {
                Some(ear) => (ear.listener.poll(cx), Event::Questions(number)),
                None => (self.ports.poll(cx), Event::Answers),
            };
            if let Poll::Ready(told) = told {
                return Poll::Ready(told.map(|()| event));
            }
        }
        Poll::Pending
    }

    /// Who looks by the clock looks again: at once, if this turn could not take all.
    pub(super) fn look_again(&self, is_all: bool) -> io::Result<()> {
        if self.by_clock.is_none() {
            return Ok(());
        }
        self.timer.get_ref().0.set(if is_all { PERIOD } else { Duration::ZERO })
    }

    /// Chooses how to look from now on, given how many questions were answered at once since the last tick.
    pub(super) fn keep_pace(&mut self, questions: usize) -> io::Result<()> {
        self.rest = self.rest.saturating_sub(1);
        let by_clock = match self.by_clock {
            Some(before) => questions >= CALM && questions >= before / 4 * 3,
            None => questions >= BUSY && self.rest == 0,
        };
        if by_clock == self.by_clock.is_some() {
            return Ok(());
        }
        self.rest = if by_clock { 0 } else { REST };
        self.by_clock = by_clock.then_some(questions);
        self.ears.iter_mut().try_for_each(|ear| ear.listener.tell(!by_clock))?;
        self.ports.tell(!by_clock)?;
        self.look_again(true)
    }
}

impl<T: Steady> Watched<T> {
    fn new(it: T) -> io::Result<Self> {
        let mut watched = Self { it: Rc::new(it), bell: None };
        watched.tell(true)?;
        Ok(watched)
    }

    /// Whether to be told of arrivals.
    fn tell(&mut self, is_told: bool) -> io::Result<()> {
        self.bell = if is_told { Some(readable(self.it.clone())?) } else { None };
        Ok(())
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bell.as_ref().map_or(Poll::Pending, |bell| bell.poll_read_ready(cx).map_ok(|_| ()))
    }

    /// All that it was told of is taken. What comes from now on is told anew: to look once more would be a system call for
    /// nothing.
    pub(super) fn emptied(&self) {
        if let Some(bell) = &self.bell {
            let nothing = || io::Error::from(io::ErrorKind::WouldBlock);
            let _ = bell.try_io(Interest::READABLE, |_| Err::<(), _>(nothing()));
        }
    }
}

/// How long after a turn who is busy looks again: no question waits longer for that.
const PERIOD: Duration = Duration::from_micros(150);
const TICK: Duration = Duration::from_millis(50);
/// Questions from one tick to the next by which a worker becomes busy: 20,000 a second.
const BUSY: usize = 1000;
/// Those below which it is no longer.
const CALM: usize = BUSY / 2;
/// Ticks: a second.
const REST: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::udp;

    async fn next_but_ticks(arrivals: &mut Arrivals) -> Event {
        loop {
            match arrivals.next().await.unwrap() {
                Event::Tick => {}
                event => return event,
            }
        }
    }

    #[tokio::test]
    async fn who_is_asked_less_by_the_clock_gives_it_up_for_a_while() {
        let mut arrivals = Arrivals::new(Vec::new()).unwrap();
        let mut is_by_clock = |questions| {
            arrivals.keep_pace(questions).unwrap();
            arrivals.by_clock.is_some()
        };
        assert!(is_by_clock(4 * BUSY));
        assert!(is_by_clock(3 * BUSY));
        assert!(!is_by_clock(3 * BUSY - 1), "the clients wait for answers");
        for _ in 1..REST {
            assert!(!is_by_clock(4 * BUSY));
        }
        assert!(is_by_clock(4 * BUSY));
    }

    #[tokio::test]
    async fn a_busy_worker_looks_by_the_clock_and_is_told_of_arrivals_again_when_it_is_not() {
        let listener = udp::listener("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = listener.local_addr().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut arrivals = Arrivals::new(vec![(listener, own)]).unwrap();
        client.send_to(b"1", own).unwrap();
        assert!(matches!(next_but_ticks(&mut arrivals).await, Event::Questions(0)));
        arrivals.keep_pace(BUSY - 1).unwrap();
        assert!(matches!(next_but_ticks(&mut arrivals).await, Event::Questions(0)));
        for questions in [BUSY, BUSY / 4 * 3] {
            arrivals.keep_pace(questions).unwrap();
            for is_all in [true, false] {
                assert!(matches!(next_but_ticks(&mut arrivals).await, Event::Everything));
                arrivals.look_again(is_all).unwrap();
            }
        }
        arrivals.keep_pace(CALM - 1).unwrap();
        // The last look that was due, and then what lies unread.
        assert!(matches!(next_but_ticks(&mut arrivals).await, Event::Everything));
        arrivals.look_again(true).unwrap();
        assert!(matches!(next_but_ticks(&mut arrivals).await, Event::Questions(0)));
        arrivals.ears[0].listener.emptied();
        client.send_to(b"2", own).unwrap();
        assert!(matches!(next_but_ticks(&mut arrivals).await, Event::Questions(0)));
    }
}
