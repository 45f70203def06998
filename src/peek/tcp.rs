use super::*;
#[derive(Debug)]
pub struct TcpPeek(usize);
#[derive(Debug)]
pub enum Step {
    NeedMore { at_least: usize },
    Found(Discovery),
}
#[derive(Debug, Clone, Copy)]
pub enum GiveUp {
    TimedOut,
    Packets,
    TooLong,
    Ended,
}
impl TcpPeek {
    pub fn new(l: usize) -> Self {
        Self(l)
    }
    pub fn has_begun(&self) -> bool {
        false
    }
    pub fn look(&mut self, held: &[u8], ended: bool) -> Step {
        if held.first() == Some(&0x16) {
            if held.len() > 9 && held.len() >= 5 + u16::from_be_bytes([held[3], held[4]]) as usize {
                return Step::Found(Discovery::of_hello(&held[5..], Carrier::Tcp, false));
            }
            return Step::NeedMore { at_least: 1 };
        }
        let mut h = [httparse::EMPTY_HEADER; 64];
        let mut r = httparse::Request::new(&mut h);
        match r.parse(held) {
            Ok(s) if s.is_complete() => {
                let n = r
                    .headers
                    .iter()
                    .find(|h| h.name.eq_ignore_ascii_case("host"))
                    .and_then(|h| DomainName::parse(h.value.split(|b| *b == b':').next().unwrap_or_default()).ok());
                Step::Found(Discovery {
                    outcome: n.map_or(Outcome::NoName, Outcome::Name),
                    via: Some(Via::Http),
                    fingerprint: None,
                    ech: false,
                })
            }
            Ok(_) if !ended => Step::NeedMore { at_least: 1 },
            _ => Step::Found(Discovery::no_name(None)),
        }
    }
    pub fn give_up(&mut self, _h: &[u8], _w: GiveUp) -> Discovery {
        Discovery::no_name(None)
    }
}
