//! SVCB and HTTPS records (RFC 9460): what they point to, and how parts of them are taken away.

use std::net::IpAddr;

use super::name::Name;
use super::read_u16;
use crate::wire::Malformed;

/// The data of an SVCB or HTTPS record.
#[derive(Clone, Debug)]
pub struct Service<'a> {
    /// 0: an alias.
    pub priority: u16,
    /// The root stands for the owner itself, or in an alias for nobody.
    pub target: Name,
    /// Keys in rising order, each with its value.
    params: Vec<(u16, &'a [u8])>,
}

/// What is taken away from a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strip {
    /// The keys of Encrypted Client Hello (RFC 9848).
    pub ech: bool,
    /// HTTP/3 among the protocols.
    pub h3: bool,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stripped {
    Same,
    Data(Vec<u8>),
    /// Nothing usable is left.
    Gone,
}

impl<'a> Service<'a> {
    pub fn read(data: &'a [u8]) -> Result<Self, Malformed> {
        let priority = read_u16(data, 0).ok_or(MALFORMED)?;
        let (target, mut at) = Name::read(data, 2)?;
        if at - 2 != target.octets().len() {
            return Err(MALFORMED);
        }
        let mut params: Vec<(u16, &[u8])> = Vec::new();
        while at < data.len() {
            let key = read_u16(data, at).ok_or(MALFORMED)?;
            let length = usize::from(read_u16(data, at + 2).ok_or(MALFORMED)?);
            let value = data.get(at + 4..at + 4 + length).ok_or(MALFORMED)?;
            if params.last().is_some_and(|(last, _)| *last >= key) {
                return Err(MALFORMED);
            }
            params.push((key, value));
            at += 4 + length;
        }
        Ok(Self { priority, target, params })
    }

    pub fn is_alias(&self) -> bool {
        self.priority == 0
    }

    /// The addresses that a client may use before it has looked up the target (RFC 9460, section 7.3).
    pub fn hints(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.param(key::IPV4_HINT).as_chunks::<4>().0.iter().map(|ip| IpAddr::from(*ip));
        let v6 = self.param(key::IPV6_HINT).as_chunks::<16>().0.iter().map(|ip| IpAddr::from(*ip));
        v4.chain(v6)
    }

    fn param(&self, key: u16) -> &'a [u8] {
        self.params.iter().find(|(own, _)| *own == key).map_or(&[], |(_, value)| value)
    }

    /// The record without what `strip` names and without hints that `keep` refuses; all else as it was.
    pub fn without(&self, strip: Strip, keep: impl Fn(IpAddr) -> bool) -> Stripped {
        let mut left: Vec<(u16, Vec<u8>)> = Vec::with_capacity(self.params.len());
        for (key, value) in &self.params {
            let value = match *key {
                key::ECH if strip.ech => continue,
                key::ALPN if strip.h3 => without_h3(value),
                key::IPV4_HINT => without_hints::<4>(value, &keep),
                key::IPV6_HINT => without_hints::<16>(value, &keep),
                _ => value.to_vec(),
            };
            let emptied = value.is_empty() && matches!(*key, key::ALPN | key::IPV4_HINT | key::IPV6_HINT);
            if !emptied {
                left.push((*key, value));
            }
        }
        if left.len() == self.params.len() && left.iter().zip(&self.params).all(|(new, old)| new.1 == old.1) {
            return Stripped::Same;
        }
        if !make_consistent(&mut left) {
            return Stripped::Gone;
        }
        Stripped::Data(self.write(&left))
    }

    fn write(&self, params: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut data = self.priority.to_be_bytes().to_vec();
        data.extend_from_slice(self.target.octets());
        for (key, value) in params {
            data.extend_from_slice(&key.to_be_bytes());
            data.extend_from_slice(&(value.len() as u16).to_be_bytes());
            data.extend_from_slice(value);
        }
        data
    }
}

/// Takes from `mandatory` the keys that are gone (RFC 9460, section 8). Says no if no protocol is left: the default
/// one is excluded, and nothing else remains (section 7.1.1).
fn make_consistent(params: &mut Vec<(u16, Vec<u8>)>) -> bool {
    let keys: Vec<u16> = params.iter().map(|(key, _)| *key).collect();
    if let Some((_, value)) = params.iter_mut().find(|(key, _)| *key == key::MANDATORY) {
        let still = value.as_chunks::<2>().0.iter().filter(|key| keys.contains(&u16::from_be_bytes(**key)));
        *value = still.flatten().copied().collect();
    }
    params.retain(|(key, value)| *key != key::MANDATORY || !value.is_empty());
    keys.contains(&key::ALPN) || !keys.contains(&key::NO_DEFAULT_ALPN)
}

/// `h3` and its drafts (`h3-29`) are left out.
fn without_h3(value: &[u8]) -> Vec<u8> {
    let mut left = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((length, octets)) = rest.split_first() {
        let Some((id, next)) = octets.split_at_checked(usize::from(*length)) else { return value.to_vec() };
        if id != b"h3" && !id.starts_with(b"h3-") {
            left.push(*length);
            left.extend_from_slice(id);
        }
        rest = next;
    }
    left
}

fn without_hints<const N: usize>(value: &[u8], keep: impl Fn(IpAddr) -> bool) -> Vec<u8>
where
    IpAddr: From<[u8; N]>,
{
    let (addresses, rest) = value.as_chunks::<N>();
    let kept = addresses.iter().filter(|ip| keep(IpAddr::from(**ip))).flatten();
    kept.chain(rest).copied().collect()
}

/// Keys (RFC 9460, section 14.3.2; RFC 9848).
mod key {
    pub(super) const MANDATORY: u16 = 0;
    pub(super) const ALPN: u16 = 1;
    pub(super) const NO_DEFAULT_ALPN: u16 = 2;
    pub(super) const IPV4_HINT: u16 = 4;
    pub(super) const ECH: u16 = 5;
    pub(super) const IPV6_HINT: u16 = 6;
}

const MALFORMED: Malformed = Malformed { field: "SvcParams", section: "RFC 9460, 2.2" };

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn params(list: &[(u16, &[u8])]) -> Vec<u8> {
        let mut data = vec![0, 1, 3, b'c', b'd', b'n', 0];
        for (key, value) in list {
            data.extend(key.to_be_bytes());
            data.extend((value.len() as u16).to_be_bytes());
            data.extend(*value);
        }
        data
    }

    fn keep_all(_: IpAddr) -> bool {
        true
    }

    const ECH: Strip = Strip { ech: true, h3: false };
    const H3: Strip = Strip { ech: false, h3: true };

    #[test]
    fn ech_is_taken_out_and_the_rest_stays_as_it_was() {
        let (alpn, v4, odd) = (&b"\x02h3\x02h2"[..], &[192, 0, 2, 1][..], &b"\x01\x02"[..]);
        let before = params(&[(1, alpn), (3, &[1, 187]), (4, v4), (5, &[0xab; 70]), (65_280, odd)]);
        let after = params(&[(1, alpn), (3, &[1, 187]), (4, v4), (65_280, odd)]);
        let service = Service::read(&before).unwrap();
        assert_eq!(service.without(ECH, keep_all), Stripped::Data(after.clone()));
        assert_eq!(Service::read(&after).unwrap().without(ECH, keep_all), Stripped::Same);
        assert_eq!(service.target.to_string(), "cdn");
    }

    #[test]
    fn a_key_that_is_gone_is_mandatory_no_more() {
        let before = params(&[(0, &[0, 1, 0, 5]), (1, b"\x02h2"), (5, b"ech")]);
        let after = params(&[(0, &[0, 1]), (1, b"\x02h2")]);
        assert_eq!(Service::read(&before).unwrap().without(ECH, keep_all), Stripped::Data(after));
        let before = params(&[(0, &[0, 5]), (5, b"ech")]);
        assert_eq!(Service::read(&before).unwrap().without(ECH, keep_all), Stripped::Data(params(&[])));
    }

    #[test]
    fn h3_and_its_drafts_leave_the_protocols() {
        let before = params(&[(1, b"\x02h3\x05h3-29\x02h2\x08http/1.1")]);
        let after = params(&[(1, b"\x02h2\x08http/1.1")]);
        assert_eq!(Service::read(&before).unwrap().without(H3, keep_all), Stripped::Data(after));
        let only = params(&[(1, b"\x02h3")]);
        assert_eq!(Service::read(&only).unwrap().without(H3, keep_all), Stripped::Data(params(&[])));
        let nothing_else = params(&[(1, b"\x02h3"), (2, b"")]);
        assert_eq!(Service::read(&nothing_else).unwrap().without(H3, keep_all), Stripped::Gone);
    }

    #[test]
    fn hints_are_told_and_refused_ones_are_left_out() {
        let v6 = [[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0xfd; 16]].concat();
        let before = params(&[(4, &[192, 0, 2, 1, 10, 0, 0, 1]), (6, &v6)]);
        let service = Service::read(&before).unwrap();
        let hints: Vec<String> = service.hints().map(|ip| ip.to_string()).collect();
        assert_eq!(hints[..3], ["192.0.2.1", "10.0.0.1", "2001:db8::1"]);
        assert_eq!(hints.len(), 4);
        let after = params(&[(4, &[192, 0, 2, 1])]);
        let public_v4 = |ip: IpAddr| ip == IpAddr::from([192, 0, 2, 1]);
        assert_eq!(service.without(Strip::default(), public_v4), Stripped::Data(after));
    }

    #[test]
    fn malformed_records_are_refused() {
        let cases = [
            vec![0],
            vec![0, 1],
            vec![0, 1, 0xc0, 0],
            params(&[(2, b""), (1, b"")]),
            params(&[(1, b""), (1, b"")]),
            [params(&[]), vec![0]].concat(),
            [params(&[]), vec![0, 1, 0, 9, 1]].concat(),
        ];
        for data in cases {
            assert!(Service::read(&data).is_err(), "{data:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_can_be_read_again(
            list in prop::collection::btree_map(0u16..8, prop::collection::vec(0u8..40, 0..20), 0..6),
            cut in 0usize..4,
        ) {
            let list: Vec<(u16, &[u8])> = list.iter().map(|(key, value)| (*key, value.as_slice())).collect();
            let data = params(&list);
            let service = Service::read(&data[..data.len().saturating_sub(cut)]);
            if let Ok(service) = service {
                let keep = |ip: IpAddr| ip.is_ipv4();
                if let Stripped::Data(left) = service.without(Strip { ech: true, h3: true }, keep) {
                    let again = Service::read(&left).unwrap();
                    prop_assert!(again.params.iter().all(|(key, _)| *key != key::ECH));
                    prop_assert_eq!(again.without(Strip { ech: true, h3: true }, keep), Stripped::Same);
                }
            }
        }
    }

    #[test]
    fn hickory_reads_what_was_left() {
        let before = params(&[(0, &[0, 1]), (1, b"\x02h3\x02h2"), (4, &[192, 0, 2, 1]), (5, b"\0\0")]);
        let Stripped::Data(left) = Service::read(&before).unwrap().without(Strip { ech: true, h3: true }, keep_all)
        else {
            panic!("nothing was stripped")
        };
        let mut message =
            b"\0\x07\x81\x80\0\x01\0\x01\0\0\0\0\x01a\0\0\x41\0\x01\xc0\x0c\0\x41\0\x01\0\0\0\x05".to_vec();
        message.extend((left.len() as u16).to_be_bytes());
        message.extend(left);
        let read = hickory_proto::op::Message::from_vec(&message).unwrap();
        assert_eq!(read.answers[0].to_string(), "a. 5 IN HTTPS 1 cdn. mandatory=alpn, alpn=h2, ipv4hint=192.0.2.1,");
    }
}
