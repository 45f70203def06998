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
    /// Everything since the beginning of the flow, or of the tunnel; or of its first line, where much was passed over.
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

    /// Octets that are kept here, beside those that the relay holds.
    pub fn kept(&self) -> usize {
        self.stage.kept()
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
            Step::NeedMore { .. } => Next::Forward(late.let_go(self.limits)),
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

impl Stage {
    fn kept(&self) -> usize {
        match self {
            Self::Late(late) => late.seen.capacity(),
            Self::Hello(hello) => hello.kept(),
            Self::Http(requests) => requests.kept(),
            Self::Http2(requests) => requests.kept(),
            Self::Judged(_, then) => then.kept(),
            Self::Splice => 0,
        }
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

    /// How much more may go of what was looked at, which has begun nothing yet.
    fn let_go(&mut self, limits: Limits) -> usize {
        let looked_at = self.seen.len().min(limits.held);
        let free = looked_at.saturating_sub(self.gone);
        self.gone = looked_at;
        if looked_at == limits.held {
            // Looked at anew from there: what stands before it has no end that must be waited for.
            let start = self.peek.passed_over().min(looked_at);
            *self = Self {
                seen: self.seen.get(start..looked_at).unwrap_or_default().into(),
                ..Self::new(TcpPeek::new(limits))
            };
            self.gone = self.seen.len();
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::peek::samples::{extension, hello, hello_with, outcome, record, records, rows, server_names, unescape};
    use crate::peek::tcp::Budget;

    /// A relay without sockets: what it let through, and what it was told to judge. It blocks names that begin with
    /// `blocked`, and all that is unreadable.
    struct Relay {
        peek: Option<TcpPeek>,
        watch: Option<Watch>,
        http: HttpRequestsJudged,
        held: Vec<u8>,
        sent: Vec<u8>,
        judged: Vec<String>,
        is_blocked: bool,
    }

    impl Relay {
        fn new() -> Self {
            Self::holding(4096)
        }

        fn holding(held: usize) -> Self {
            let peek = Some(TcpPeek::new(Limits { held, fingerprints: false }));
            let (held, sent, judged) = (vec![], vec![], vec![]);
            Self { peek, watch: None, http: HttpRequestsJudged::Every, held, sent, judged, is_blocked: false }
        }

        fn client(&mut self, new: &[u8]) {
            self.held.extend_from_slice(new);
            if let Some(peek) = &mut self.peek {
                let Step::Found(discovery) = peek.look(&self.held, false) else { return };
                self.begin(&discovery);
            }
            self.go_on(false);
        }

        fn deadline(&mut self) {
            let discovery = self.peek.as_mut().and_then(|peek| peek.give_up(Budget::Deadline)).unwrap();
            self.begin(&discovery);
            self.go_on(false);
        }

        fn begin(&mut self, discovery: &Discovery) {
            self.judge(discovery);
            let peek = self.peek.take().unwrap();
            self.watch = Some(Watch::after(peek, discovery, &self.held, self.http));
        }

        fn server(&mut self, new: &[u8]) {
            for octet in new {
                self.watch.as_mut().unwrap().server(std::slice::from_ref(octet));
            }
            self.go_on(false);
        }

        fn end(&mut self) {
            self.go_on(true);
        }

        fn judge(&mut self, discovery: &Discovery) {
            let outcome = outcome(discovery);
            self.is_blocked |= outcome.starts_with("blocked") || outcome == "unreadable";
            self.judged.push(outcome);
        }

        fn go_on(&mut self, ended: bool) {
            let mut watch = self.watch.take().unwrap();
            while !self.is_blocked {
                match watch.next(&self.held, ended) {
                    Next::Forward(count) => {
                        assert!(count > 0 && count <= self.held.len(), "forward {count} of {}", self.held.len());
                        self.sent.extend(self.held.drain(..count));
                    }
                    Next::Judge(discovery) => self.judge(&discovery),
                    Next::More => break,
                    Next::Splice => {
                        assert!(watch.is_done());
                        self.sent.append(&mut self.held);
                        break;
                    }
                }
            }
            self.watch = Some(watch);
        }

        fn is_spliced(&self) -> bool {
            self.watch.as_ref().is_some_and(Watch::is_done)
        }
    }

    /// What came of a client that sent all this at once: names judged, octets sent, whether it is spliced.
    fn relayed(bytes: &[u8]) -> Relay {
        let mut relay = Relay::new();
        relay.client(bytes);
        relay
    }

    fn get(host: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")
    }

    #[test]
    fn a_blocked_request_on_a_kept_alive_connection_sends_nothing_of_itself() {
        let first = get("a.example");
        let relay = relayed([first.as_str(), &get("blocked.example"), &get("c.example")].concat().as_bytes());
        assert_eq!(relay.judged, ["a.example", "blocked.example"]);
        assert_eq!(String::from_utf8(relay.sent).unwrap(), first);
    }

    #[test]
    fn request_streams_come_out_as_their_table_says() {
        for case in rows(include_str!("../../tests/data/request-streams.txt"), unescape) {
            for size in [1, 2, 7, 100_000] {
                let mut relay = Relay::new();
                case.bytes.chunks(size).for_each(|new| relay.client(new));
                assert_eq!(relay.judged.join(" "), case.expected, "{} by {size}", case.what);
                let last = relay.judged.last().unwrap();
                if !relay.is_blocked {
                    assert_eq!(relay.sent, case.bytes, "{}", case.what);
                } else if last != "unreadable" {
                    let at = case.bytes.windows(last.len()).position(|part| part == last.as_bytes()).unwrap();
                    assert!(relay.sent.len() < at, "{}", case.what);
                }
            }
        }
    }

    #[test]
    fn a_head_that_the_client_does_not_end_is_not_sent() {
        let mut relay = relayed(get("a.example").as_bytes());
        relay.client(b"GET / HTTP/1.1\r\nHost: blocked.example\r\n");
        relay.end();
        assert_eq!(relay.judged, ["a.example", "unreadable"]);
        assert_eq!(relay.sent, get("a.example").into_bytes());
    }

    #[test]
    fn a_later_head_over_the_limit_is_unreadable() {
        let mut relay = relayed(get("a.example").as_bytes());
        relay.client(&[b"GET / HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(700)].concat());
        assert_eq!(relay.judged, ["a.example", "unreadable"]);
    }

    /// So many that it would take hours to look at all of them for each.
    #[test]
    fn empty_lines_before_a_later_request_are_looked_at_once() {
        let mut relay = relayed(get("a.example").as_bytes());
        relay.watch.as_mut().unwrap().limits.held = usize::MAX;
        relay.client(&[&b"\r\n".repeat(4 << 20), get("b.example").as_bytes()].concat());
        assert_eq!(relay.judged, ["a.example", "b.example"]);
    }

    #[test]
    fn what_is_kept_beside_the_octets_that_the_relay_holds_is_told() {
        let mut relay = Relay::new();
        relay.client(&[b'a'; 3000]);
        relay.deadline();
        assert_eq!((relay.held.len(), relay.sent.len()), (0, 3000));
        assert!(relay.watch.as_ref().unwrap().kept() >= 3000);
        let mut remembered = http2(&["a.example"]);
        let literal = remembered.windows(2).position(|octets| octets == [1, 9]).unwrap();
        remembered[literal] = 0x41;
        let kept = [http2(&["a.example"]), remembered].map(|octets| relayed(&octets).watch.unwrap().kept());
        assert!(kept[0] == 0 && kept[1] > 60, "{kept:?}");
    }

    #[test]
    fn with_the_first_request_alone_judged_the_rest_is_spliced() {
        let mut relay = Relay::new();
        relay.http = HttpRequestsJudged::First;
        relay.client([get("a.example"), get("blocked.example")].concat().as_bytes());
        assert_eq!(relay.judged, ["a.example"]);
        assert!(relay.is_spliced());
    }

    const UPGRADE: &[u8] =
        b"GET /chat HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";

    #[test]
    fn what_follows_an_upgrade_is_held_until_the_server_switches_and_then_spliced() {
        let mut relay = relayed(&[UPGRADE, b"\x81\x85mask\x01"].concat());
        assert_eq!(relay.sent, UPGRADE);
        relay.server(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
        assert!(!relay.is_spliced());
        relay.server(SWITCHING);
        assert_eq!(relay.judged, ["a.example"]);
        assert!(relay.is_spliced());
        assert_eq!(relay.sent, [UPGRADE, b"\x81\x85mask\x01"].concat());
    }

    #[test]
    fn an_upgrade_that_the_server_refuses_leaves_the_requests_watched() {
        for answer in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 426 No\r\n\r\n", "HTTP/1.1 1010 x\r\n\r\n", "junk\r\n\r\n"]
        {
            let mut relay = relayed(&[UPGRADE, get("blocked.example").as_bytes()].concat());
            relay.server(answer.as_bytes());
            assert_eq!(relay.judged, ["a.example", "blocked.example"], "{answer}");
            assert_eq!(relay.sent, UPGRADE);
        }
    }

    #[test]
    fn a_later_upgrade_never_ends_the_watch() {
        let first = get("a.example");
        for switch in [UPGRADE, b"CONNECT a.example:443 HTTP/1.1\r\n\r\n"] {
            let mut relay = relayed(first.as_bytes());
            relay.client(switch);
            relay.server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            relay.server(SWITCHING);
            relay.client(b"\x81\x85mask");
            relay.client(get("blocked.example").as_bytes());
            assert_eq!(relay.judged[2], "unreadable");
            assert_eq!(relay.sent, [first.as_bytes(), switch].concat());
        }
    }

    const CONNECT: &[u8] = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";

    #[test]
    fn a_hello_inside_a_tunnel_is_judged() {
        for size in [1, 9, 1000] {
            let mut relay = relayed(CONNECT);
            relay.client(&records(&hello(b"blocked.example"), size));
            assert_eq!(relay.judged, ["a.example"]);
            relay.server(b"HTTP/1.1 200 Connection established\r\n\r\n");
            assert_eq!(relay.judged, ["a.example", "blocked.example"]);
            assert_eq!(relay.sent, CONNECT);
        }
    }

    #[test]
    fn a_request_inside_a_tunnel_is_judged_and_another_protocol_is_spliced() {
        let mut relay = relayed(CONNECT);
        relay.server(b"HTTP/1.1 200 OK\r\n\r\n");
        relay.client(get("b.example").as_bytes());
        relay.client(get("blocked.example").as_bytes());
        assert_eq!(relay.judged, ["a.example", "b.example", "blocked.example"]);

        let mut relay = relayed(CONNECT);
        relay.server(b"HTTP/1.1 200 OK\r\n\r\n");
        relay.client(b"SSH-2.0-OpenSSH_9.2\r\n");
        assert!(relay.is_spliced());
    }

    /// The client's first octets with prior knowledge, and a request for each authority in a stream of its own.
    fn http2(authorities: &[&str]) -> Vec<u8> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for (place, authority) in authorities.iter().enumerate() {
            let length = u8::try_from(authority.len()).unwrap();
            let stream = u8::try_from(place * 2 + 1).unwrap();
            bytes.extend([0, 0, length + 5, 1, 5, 0, 0, 0, stream, 0x82, 0x86, 0x84, 0x01, length]);
            bytes.extend(authority.bytes());
            bytes.extend([0, 0, 3, 0, 1, 0, 0, 0, stream, 1, 1, 1]);
        }
        bytes
    }

    #[test]
    fn every_stream_of_http2_is_judged() {
        let bytes = http2(&["a.example", "b.example", "blocked.example"]);
        for size in [1, 5, 1000] {
            let mut relay = Relay::new();
            bytes.chunks(size).for_each(|new| relay.client(new));
            assert_eq!(relay.judged, ["a.example", "b.example", "blocked.example"]);
            assert_eq!(relay.sent, http2(&["a.example", "b.example"]));
        }
    }

    #[test]
    fn http2_that_waits_for_the_server_has_no_name_at_first_and_its_requests_are_judged() {
        let bytes = http2(&["a.example", "blocked.example"]);
        let (settings, rest) = bytes.split_at(33);
        let mut relay = relayed(settings);
        relay.deadline();
        assert_eq!(relay.sent, settings);
        relay.client(rest);
        assert_eq!(relay.judged, ["-", "a.example", "blocked.example"]);
    }

    #[test]
    fn an_upgrade_to_http2_goes_on_with_its_streams() {
        let bytes = http2(&["b.example", "blocked.example"]);
        let (settings, rest) = bytes.split_at(33);
        let mut relay = relayed(UPGRADE);
        relay.server(SWITCHING);
        relay.client(settings);
        assert_eq!(relay.sent, [UPGRADE, settings].concat(), "the server waits for the settings");
        relay.client(rest);
        assert_eq!(relay.judged, ["a.example", "b.example", "blocked.example"]);
    }

    /// A server's first message with this random.
    fn server_hello(random: &[u8; 32]) -> Vec<u8> {
        record(22, &[&[2, 0, 0, 38, 3, 3][..], random, &[0, 0x13, 1, 0]].concat())
    }

    fn retry() -> Vec<u8> {
        let random = "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c";
        server_hello(&crate::peek::samples::unhex(random).try_into().unwrap())
    }

    #[test]
    fn a_second_hello_is_judged_before_any_of_it_goes() {
        let first = records(&hello(b"a.example"), 1000);
        let second = hello(b"blocked.example");
        let ccs = record(20, &[1]);
        for (lead, size) in [(&[][..], 1000), (&ccs, 1000), (&[], 1), (&ccs, 3)] {
            let mut relay = relayed(&first);
            assert_eq!(relay.sent, first);
            relay.server(&retry());
            relay.client(lead);
            for new in records(&second, size).chunks(7) {
                relay.client(new);
            }
            assert_eq!(relay.judged, ["a.example", "blocked.example"], "{size}");
            let with_header = relay.sent.len() - first.len() - lead.len();
            assert!(with_header <= 5, "no more than a record's header goes");
        }
    }

    #[test]
    fn a_second_hello_that_does_not_wait_for_the_server_is_judged_as_well() {
        let both = [hello(b"a.example"), hello(b"blocked.example")].concat();
        let relay = relayed(&records(&both, 1000));
        assert_eq!(relay.judged, ["a.example", "blocked.example"]);
        assert!(relay.sent.len() <= 5 + hello(b"a.example").len());
    }

    #[test]
    fn a_second_hello_behind_early_data_is_judged() {
        let early = hello_with(&[server_names(&[(0, b"a.example")]), extension(42, &[])].concat());
        let mut relay = relayed(&records(&early, 1000));
        let data = [record(20, &[1]), record(23, &[9; 300]), record(23, &[9; 300])].concat();
        relay.client(&data);
        assert_eq!(relay.sent.len(), records(&early, 1000).len() + data.len());
        relay.server(&retry());
        relay.client(&records(&hello(b"blocked.example"), 1000));
        assert_eq!(relay.judged, ["a.example", "blocked.example"]);
    }

    #[test]
    fn a_hello_with_the_same_name_again_is_judged_and_then_spliced() {
        let mut relay = relayed(&records(&hello(b"a.example"), 1000));
        relay.server(&retry());
        relay.client(&records(&hello(b"a.example"), 1000));
        assert_eq!(relay.judged, ["a.example", "a.example"]);
        assert!(relay.is_spliced());
    }

    #[test]
    fn a_handshake_that_goes_on_is_spliced() {
        let first = records(&hello(b"a.example"), 1000);
        let mut relay = relayed(&first);
        relay.server(&[record(21, &[1, 112]), server_hello(&[5; 32])].concat());
        assert!(relay.is_spliced());
        for next in [record(23, &[1; 50]), record(22, &[16, 0, 0, 1, 1]), record(22, &[0xaa; 40])] {
            let mut relay = relayed(&first);
            relay.client(&record(20, &[1]));
            assert!(!relay.is_spliced());
            relay.client(&next);
            assert!(relay.is_spliced());
            assert_eq!(relay.judged, ["a.example"]);
        }
    }

    #[test]
    fn octets_that_end_every_handshake_are_spliced_since_no_hello_can_follow() {
        let first = records(&hello(b"a.example"), 1000);
        for octet in [0, 19, 25, 0xab, 0xff] {
            let mut relay = relayed(&first);
            relay.client(&[octet]);
            assert!(relay.is_spliced(), "{octet}");
            assert_eq!(relay.judged, ["a.example"]);
        }
    }

    #[test]
    fn another_message_is_spliced_whatever_stands_behind_it() {
        let mut relay = relayed(&records(&hello(b"a.example"), 1000));
        relay.client(&[record(22, &[0xab; 300]), vec![0xab; 300]].concat());
        assert!(relay.is_spliced());
        assert_eq!(relay.judged, ["a.example"]);
    }

    #[test]
    fn records_that_no_handshake_has_are_unreadable() {
        let mut relay = relayed(&records(&hello(b"a.example"), 1000));
        relay.client(&record(24, &[1; 50]));
        assert_eq!(relay.judged, ["a.example", "unreadable"]);
    }

    #[test]
    fn a_client_that_waited_for_the_deadline_is_judged_when_it_speaks() {
        let hello = records(&hello(b"blocked.example"), 20);
        let request = get("blocked.example").into_bytes();
        for (bytes, first) in [(&hello, 0), (&request, 0), (&request, 1), (&request, 3)] {
            let mut relay = Relay::new();
            relay.client(&bytes[..first]);
            relay.deadline();
            for new in bytes[first..].chunks(11) {
                relay.client(new);
            }
            assert_eq!(relay.judged, ["-", "blocked.example"]);
            assert!(relay.sent.len() < 8, "at most what cannot be told");
        }
    }

    #[test]
    fn octets_that_some_server_passes_over_do_not_hide_the_request_behind_them() {
        for (first, rest) in [("\0\x01", "GET /"), ("\0", "\r\nGET /"), ("GET ?\x01", ""), ("a \x01", "")] {
            let request = format!("{rest} HTTP/1.1\r\nHost: blocked.example\r\n\r\n");
            let mut relay = Relay::new();
            relay.client(first.as_bytes());
            assert!(relay.peek.as_ref().unwrap().waits_in_vain(), "{first:?}");
            relay.deadline();
            assert_eq!(relay.sent, first.as_bytes(), "neither side waits for the other");
            request.as_bytes().chunks(7).for_each(|new| relay.client(new));
            assert_eq!(relay.judged, ["-", "unreadable"], "{first:?}");
            assert!(!relay.sent.contains(&b'\n') || first == "\0", "no line is ended: {:?}", relay.sent);
        }
    }

    #[test]
    fn octets_of_no_protocol_are_not_refused_however_long_they_tell_nothing() {
        for (octets, is_spliced) in [(&b"\0\x01"[..], false), (b"x y\0", true)] {
            let mut relay = Relay::holding(64 << 10);
            relay.client(octets);
            relay.deadline();
            (0..3000).for_each(|_| relay.client(octets));
            relay.client(&octets.repeat(90_000));
            assert_eq!(relay.is_spliced(), is_spliced);
            assert_eq!((relay.judged.join(" "), relay.sent.len()), ("-".into(), octets.len() * 93_001));
        }
    }

    #[test]
    fn a_line_that_a_server_would_read_hides_no_request_because_little_is_held() {
        for (held, long) in [(1024, 1024), (4096, 5000), (4096, 60_000), (64 << 10, 65_000)] {
            for first in ["a ?\x01", "\0a ?\x01"] {
                let mut relay = Relay::holding(held);
                relay.client(first.as_bytes());
                relay.deadline();
                relay.client(&vec![b'x'; long]);
                relay.client(b" HTTP/1.1\r\nHost: blocked.example\r\n\r\n");
                assert_eq!(relay.judged, ["-", "unreadable"], "{held} {long} {first:?}");
                assert!(!relay.sent.contains(&b'\n'), "{held} {long} {first:?}");
            }
        }
    }

    #[test]
    fn no_number_of_octets_that_some_server_passes_over_hides_the_request_behind_them() {
        let request = get("blocked.example").replace(" / ", " ?\x01 ");
        for many in [1, 4000, 4079, 4095, 4096, 4097, 5000, 12_287, 12_288, 20_000] {
            for size in [1, 100, 5000, 100_000] {
                let mut relay = Relay::new();
                relay.client(b"\0");
                relay.deadline();
                [&vec![0; many], request.as_bytes()].concat().chunks(size).for_each(|new| relay.client(new));
                assert_eq!(relay.judged, ["-", "unreadable"], "{many} by {size}");
                assert!(!relay.sent.contains(&b'\n'), "{many} by {size}");
            }
        }
    }

    #[test]
    fn a_protocol_whose_server_speaks_first_is_spliced_once_its_client_speaks() {
        let mut relay = Relay::new();
        relay.deadline();
        assert!(!relay.is_spliced());
        relay.server(b"220 mail.example\r\n");
        relay.client(b"EHLO c");
        assert_eq!(relay.sent, b"EHLO c", "neither side waits for the other");
        relay.client(b"lient.example\r\n");
        assert!(relay.is_spliced());
        assert_eq!(relay.sent, b"EHLO client.example\r\n");
    }

    #[test]
    fn after_an_unreadable_beginning_that_passes_nothing_is_looked_at() {
        let peek = TcpPeek::new(Limits::default());
        let why = Discovery::unreadable(Via::Http, Unreadable::TimedOut);
        assert!(Watch::after(peek, &why, b"GET / ", HttpRequestsJudged::Every).is_done());
    }

    fn request() -> impl Strategy<Value = (String, Vec<u8>)> {
        let name = "[a-z]{1,9}\\.example";
        let body = proptest::collection::vec(any::<u8>(), 0..60);
        let chunks = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..30), 0..4);
        prop_oneof![
            (name, Just(Vec::new())).prop_map(|(name, body)| (get(&name), body, name)),
            (name, body).prop_map(|(name, body)| {
                let head = format!("POST /x HTTP/1.1\r\nHost: {name}\r\nContent-Length: {}\r\n\r\n", body.len());
                (head, body, name)
            }),
            (name, chunks).prop_map(|(name, chunks)| {
                let head = format!("PUT /x HTTP/1.1\r\nhost:{name}\r\ntransfer-encoding: chunked\r\n\r\n");
                let pieces = chunks.iter().map(|c| [format!("{:x}\r\n", c.len()).as_bytes(), c, b"\r\n"].concat());
                let body = [pieces.collect::<Vec<_>>().concat(), b"0\r\nX-Sum: 1\r\n\r\n".to_vec()].concat();
                (head, body, name)
            }),
        ]
        .prop_map(|(head, body, name)| (name, [head.as_bytes(), &body].concat()))
    }

    proptest! {
        #[test]
        fn requests_are_judged_alike_however_their_octets_come(
            requests in proptest::collection::vec(request(), 1..5),
            sizes in proptest::collection::vec(1usize..40, 1..20),
        ) {
            let bytes = requests.iter().flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>();
            let mut relay = Relay::new();
            let (mut rest, mut sizes) = (&bytes[..], sizes.iter().cycle());
            while !rest.is_empty() {
                let (new, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                relay.client(new);
                rest = later;
            }
            let names: Vec<_> = requests.iter().map(|(name, _)| name.clone()).collect();
            prop_assert_eq!(relay.judged, names);
            prop_assert_eq!(relay.sent, bytes);
        }

        #[test]
        fn any_bytes_are_watched_without_a_panic(
            start in prop_oneof![
                Just(get("a.example").into_bytes()),
                Just(UPGRADE.to_vec()),
                Just(CONNECT.to_vec()),
                Just(http2(&["a.example"])),
                Just(records(&hello(b"a.example"), 30)),
                Just(Vec::new()),
            ],
            client in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
            server in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut relay = relayed(&start);
            if relay.watch.is_none() {
                relay.deadline();
            }
            for new in client {
                relay.client(&new);
                relay.server(&server);
            }
            relay.end();
        }
    }
}
