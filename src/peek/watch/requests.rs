//! Every request of an HTTP/1 connection (SPEC I7).
//!
//! A request head is held until it is judged; a body is followed to its end and not held. The first request alone may
//! turn the connection to another protocol: which response belongs to which later request could only be told by
//! following the responses too, so after a later Upgrade or CONNECT what comes must still be requests.

use crate::name::DomainName;
use crate::peek::tcp::FirstRequest;
use crate::wire::http::body::Follow;
use crate::wire::http::response::{Answer, FirstResponse};
use crate::wire::http::{AsksFor, HeadEnd, Request};
use crate::wire::{Fault, Malformed};

/// Follows the requests of a connection whose first was judged.
#[derive(Clone, Debug)]
pub(super) struct HttpRequests {
    stage: Stage,
    /// What the first request asks for, until the server has answered.
    asks_for: AsksFor,
    response: FirstResponse,
    answer: Answer,
}

#[derive(Clone, Debug)]
enum Stage {
    Body(Follow),
    /// Nothing is forwarded before the server has answered the first request.
    Answer,
    /// Whether a line of the head has come: empty ones may precede it (RFC 9112, section 2.2).
    Head(HeadEnd, bool),
    /// A head of so many octets is being judged.
    Judged(usize, Follow),
    /// After an HTTP/0.9 request nothing can follow.
    Closed,
}

pub(super) enum Next {
    More,
    Forward(usize),
    Judge(Option<DomainName>),
    /// What follows is another protocol.
    Switched,
}

impl HttpRequests {
    pub(super) fn after(first: &FirstRequest) -> Self {
        let stage = if first.is_simple { Stage::Closed } else { Stage::Body(Follow::new(first.request.body)) };
        let answer = if first.request.asks_for == AsksFor::Nothing { Answer::Stayed } else { Answer::Open };
        Self { stage, asks_for: first.request.asks_for, response: FirstResponse::default(), answer }
    }

    pub(super) fn wants_server(&self) -> bool {
        self.answer == Answer::Open
    }

    /// Octets that are kept of what the server said.
    pub(super) fn kept(&self) -> usize {
        self.response.kept()
    }

    pub(super) fn server(&mut self, new: &[u8]) {
        if self.answer == Answer::Open {
            self.answer = self.response.follow(new, self.asks_for == AsksFor::Tunnel);
        }
    }

    pub(super) fn next(&mut self, held: &[u8]) -> Result<Next, Fault> {
        loop {
            match &mut self.stage {
                Stage::Body(follow) => {
                    let part = follow.follow(held)?;
                    if part.is_last {
                        self.stage = Stage::Answer;
                    }
                    if part.length > 0 {
                        return Ok(Next::Forward(part.length));
                    }
                    if !part.is_last {
                        return Ok(Next::More);
                    }
                }
                Stage::Answer => match self.answer {
                    Answer::Open => return Ok(Next::More),
                    Answer::Switched => return Ok(Next::Switched),
                    Answer::Stayed => self.stage = Stage::Head(HeadEnd::default(), false),
                },
                Stage::Head(end, has_begun) => {
                    let Some(end) = find_head(end, has_begun, held)? else { return Ok(Next::More) };
                    let request = Request::parse(held.get(..end).unwrap_or(held))?;
                    self.stage = Stage::Judged(end, Follow::new(request.body));
                    return Ok(Next::Judge(request.name));
                }
                Stage::Judged(length, follow) => {
                    let length = *length;
                    self.stage = Stage::Body(*follow);
                    return Ok(Next::Forward(length));
                }
                Stage::Closed if held.is_empty() => return Ok(Next::More),
                Stage::Closed => return Err(AFTER_SIMPLE.into()),
            }
        }
    }
}

/// The end of a head that empty lines may precede. Looks at each octet once.
fn find_head(end: &mut HeadEnd, has_begun: &mut bool, held: &[u8]) -> Result<Option<usize>, Malformed> {
    while let Some(line) = end.find_line(held)? {
        if line.is_empty && *has_begun {
            return Ok(Some(line.at));
        }
        *has_begun |= !line.is_empty;
    }
    Ok(None)
}

const AFTER_SIMPLE: Malformed = Malformed { field: "octets after an HTTP/0.9 request", section: "RFC 9112, C.1" };
