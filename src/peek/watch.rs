//! What goes on being looked at after the first verdict, so that a flow cannot change its name behind the gateway.
//!
//! | the first bytes were | what is watched | until |
//! |---|---|---|
//! | nothing yet, or too few to tell | whatever the client sends next, as at the beginning | it is told what it is |
//! | a hello | the client's records: a second hello after HelloRetryRequest may bear another name | the server has chosen, or the client sends what no second hello can follow |
//! | HTTP/1, each request judged | every request head, every end of a body | the end; or the server turns the first request to a tunnel, whose beginning is looked at anew |
//! | HTTP/2 | every field block | the end |
//! | another protocol | nothing | |
//!
//! Pure: the relay shows the client's bytes that are not yet forwarded, at least [`Limits::held`] of them where so many
//! have come, and does what [`Next`] says, until it says [`Next::Splice`]. While [`Watch::wants_server`] it shows the
//! server's bytes too, as it forwards them, and then asks again.
//!
//! Fails closed: bytes are forwarded only once they cannot be part of a request or hello that was not judged; where
//! they cannot be read, the relay gets an unreadable discovery to judge before anything more is let through. An
//! exception is made for bytes too few to tell (`GE`) of a flow that was judged without a name: they are forwarded, or
//! both ends could wait for each other, but the request or hello that they might begin is not completed unjudged.

mod hello;
mod requests;

use super::tcp::{Began, Limits, Step, TcpPeek};
use super::{Discovery, Unreadable, Via};
use crate::wire::http2;
use hello::SecondHello;
use requests::HttpRequests;

/// Which requests of a connection are judged (SPEC I7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HttpRequestsJudged {
    #[default]
    Every,
    First,
}

/// What the relay shall do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Forward so many of the octets shown, at least one, and show what is left.
    Forward(usize),
    /// Judge this before anything more is forwarded. If it passes, ask again with the same octets.
    Judge(Discovery),
    /// Read more from the client (or, if it wants them, the server) and ask again.
    More,
    /// Forward everything from here on: nothing is looked at any more.
    Splice,
}

/// The state of watching one flow.
#[derive(Clone, Debug)]
pub struct Watch {
    limits: Limits,
    http: HttpRequestsJudged,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    /// Too little has come to tell what it is.
    Late(Box<Late>),
    Hello(Box<SecondHello>),
    Http(Box<HttpRequests>),
    Http2(Box<http2::Requests>),
    /// The octets of this many are judged and may go.
    Judged(usize, Box<Stage>),
    Splice,
}

/// A peek that goes on while what it looked at may already have been forwarded.
#[derive(Clone, Debug)]
struct Late {
    peek: TcpPeek,
    /// Everything since the beginning of the flow, or of the tunnel.
    seen: Vec<u8>,
    /// How much of it is forwarded.
    gone: usize,
}

impl Watch {
    /// Goes on from a peek that ended, whose discovery was judged and passed. `held`: the octets that it looked at,
    /// none of them forwarded yet.
    pub fn after(peek: TcpPeek, discovery: &Discovery, held: &[u8], http: HttpRequestsJudged) -> Self {
        let limits = peek.limits;
        let stage = match discovery.outcome {
            super::Outcome::Unreadable(_) => Stage::Splice,
            _ => stage_after(peek, held, 0, http),
        };
        Self { limits, http, stage }
    }

    /// Whether everything may be spliced from now on.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Splice)
    }

    /// Whether [`Watch::server`] shall be shown what the server sends.
    pub fn wants_server(&self) -> bool {
        match &self.stage {
            Stage::Hello(hello) => hello.wants_server(),
            Stage::Http(requests) => requests.wants_server(),
            Stage::Judged(_, then) => match &**then {
                Stage::Http(requests) => requests.wants_server(),
                _ => false,
            },
            _ => false,
        }
    }

    /// Shows the next octets from the server.
    pub fn server(&mut self, new: &[u8]) {
        match &mut self.stage {
            Stage::Hello(hello) => {
                hello.server(new);
                if hello.has_no_second() {
                    self.stage = Stage::Splice;
                }
            }
            Stage::Http(requests) => requests.server(new),
            Stage::Judged(_, then) => {
                if let Stage::Http(requests) = &mut **then {
                    requests.server(new);
                }
            }
            _ => {}
        }
    }

    /// What to do with the client's octets that are not forwarded yet. `ended`: the client will send no more.
    pub fn next(&mut self, held: &[u8], ended: bool) -> Next {
        match self.advance(held) {
            Next::More if held.len() >= self.limits.held => self.judge_unreadable(Unreadable::TooLong),
            Next::More if ended && held.is_empty() => self.splice(),
            Next::More if ended => self.judge_unreadable(Unreadable::Ended),
            next => next,
        }
    }

    fn advance(&mut self, held: &[u8]) -> Next {
        match &mut self.stage {
            Stage::Splice => Next::Splice,
            Stage::Judged(length, then) => {
                let length = *length;
                self.stage = std::mem::replace(&mut **then, Stage::Splice);
                if length == 0 { self.advance(held) } else { Next::Forward(length) }
            }
            Stage::Late(_) => self.late(held),
            Stage::Hello(hello) => match hello.next(held, self.limits.fingerprints) {
                Ok(hello::Next::More) => Next::More,
                Ok(hello::Next::Forward(length)) => Next::Forward(length),
                Ok(hello::Next::Splice) => self.splice(),
                Ok(hello::Next::Judge(discovery)) => self.judge(discovery, Stage::Splice),
                Err(what) => self.judge_unreadable(Unreadable::Malformed(what)),
            },
            Stage::Http(requests) => match requests.next(held) {
                Ok(requests::Next::More) => Next::More,
                Ok(requests::Next::Forward(length)) => Next::Forward(length),
                Ok(requests::Next::Judge(name)) => Next::Judge(Discovery::of_request(name)),
                Ok(requests::Next::Switched) => {
                    self.stage = Stage::Late(Box::new(Late::new(TcpPeek::new(self.limits))));
                    self.advance(held)
                }
                Err(fault) => self.judge_unreadable(fault.into()),
            },
            Stage::Http2(requests) => match requests.next(held) {
                Ok(http2::Next::Needs(_)) => Next::More,
                Ok(http2::Next::Pass(length)) => Next::Forward(length),
                Ok(http2::Next::Request { name, length }) => {
                    let then = std::mem::replace(&mut self.stage, Stage::Splice);
                    self.stage = Stage::Judged(length, Box::new(then));
                    Next::Judge(Discovery::of_request(name))
                }
                Err(fault) => self.judge_unreadable(fault.into()),
            },
        }
    }

    fn late(&mut self, held: &[u8]) -> Next {
        let Stage::Late(late) = &mut self.stage else { return Next::More };
        match late.look(held) {
            Step::NeedMore { .. } if late.peek.is_named_later() => {
                let peek = std::mem::replace(&mut late.peek, TcpPeek::new(self.limits));
                self.stage = stage_after(peek, &late.seen, late.gone, self.http);
                self.advance(held)
            }
            Step::NeedMore { .. } if late.peek.has_begun() || held.is_empty() => Next::More,
            Step::NeedMore { .. } => {
                late.gone += held.len();
                Next::Forward(held.len())
            }
            Step::Found(discovery) if discovery.via.is_none() => self.splice(),
            Step::Found(discovery) => {
                let peek = std::mem::replace(&mut late.peek, TcpPeek::new(self.limits));
                let then = match discovery.outcome {
                    super::Outcome::Unreadable(_) => Stage::Splice,
                    _ => stage_after(peek, &late.seen, late.gone, self.http),
                };
                self.judge(discovery, then)
            }
        }
    }

    fn splice(&mut self) -> Next {
        self.stage = Stage::Splice;
        Next::Splice
    }

    fn judge(&mut self, discovery: Discovery, then: Stage) -> Next {
        self.stage = then;
        Next::Judge(discovery)
    }

    fn judge_unreadable(&mut self, why: Unreadable) -> Next {
        let via = if matches!(self.stage, Stage::Hello(_)) { Via::Tls } else { Via::Http };
        self.judge(Discovery::unreadable(via, why), Stage::Splice)
    }
}

/// What is watched after a peek whose first `gone` octets are already forwarded.
fn stage_after(peek: TcpPeek, held: &[u8], gone: usize, http: HttpRequestsJudged) -> Stage {
    match peek.began {
        Began::Other => Stage::Splice,
        Began::Open(_) => Stage::Late(Box::new(Late { peek, seen: held.to_vec(), gone: 0 })),
        Began::Tls(records) => Stage::Hello(Box::new(SecondHello::after(records, held, gone))),
        _ if http == HttpRequestsJudged::First => Stage::Splice,
        Began::Http(_) => Stage::Splice,
        Began::Request(first) => {
            Stage::Judged(first.end.saturating_sub(gone), Box::new(Stage::Http(Box::new(HttpRequests::after(&first)))))
        }
        Began::Http2(requests, at) => Stage::Judged(at.saturating_sub(gone), Box::new(Stage::Http2(requests))),
    }
}

impl Late {
    fn new(peek: TcpPeek) -> Self {
        Self { peek, seen: Vec::new(), gone: 0 }
    }

    fn look(&mut self, held: &[u8]) -> Step {
        let known = self.seen.len().saturating_sub(self.gone);
        self.seen.extend_from_slice(held.get(known..).unwrap_or_default());
        self.peek.look(&self.seen, false)
    }
}
