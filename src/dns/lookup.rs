//! One fresh look-up by tidegate itself, for a flow whose name has no binding (SPEC V11).
//!
//! Fails closed: no answer, or one that cannot be read, gives no address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message as Built, Query as Question};
use hickory_proto::rr::{Name, RecordType};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::review::addresses_of;
use super::service::is_answer_to;
use crate::name::DomainName;
use crate::sys::{tcp, udp};
use crate::wire::dns::query::Query;
use crate::wire::dns::{Message, flag};

/// The addresses of `name` by `resolver`, of the family of `like` alone, each with its TTL in seconds.
///
/// Asks from this host's own address, at a random port with a random id; over TCP if the answer was cut. A resolver
/// that says nothing for `patience` gives an error.
pub async fn addresses(
    name: &DomainName,
    like: IpAddr,
    resolver: SocketAddr,
    patience: Duration,
) -> io::Result<Vec<(IpAddr, u32)>> {
    tokio::time::timeout(patience, ask(name, like, resolver)).await?
}

/// The resolvers of this host, in its own order, from the text of /etc/resolv.conf.
pub fn resolvers_of_host(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

async fn ask(name: &DomainName, like: IpAddr, resolver: SocketAddr) -> io::Result<Vec<(IpAddr, u32)>> {
    let kind = if like.is_ipv4() { RecordType::A } else { RecordType::AAAA };
    let octets = question(name, kind)?;
    let query = Query::read(&octets).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut answer = over_udp(&query, resolver).await?;
    if is_cut(&answer) {
        answer = over_tcp(&query, resolver).await?;
    }
    let message = Message::read(&answer).map_err(io::Error::other)?;
    addresses_of(&message).map_err(io::Error::other)
}

fn question(name: &DomainName, kind: RecordType) -> io::Result<Vec<u8>> {
    let mut name = Name::from_ascii(name.as_str()).map_err(io::Error::other)?;
    name.set_fqdn(true);
    let mut message = Built::query();
    let mut id = [0; 2];
    SystemRandom::new().fill(&mut id).map_err(|_| io::Error::other("no randomness"))?;
    message.metadata.id = u16::from_ne_bytes(id);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM);
    message.set_edns(edns);
    message.to_vec().map_err(io::Error::other)
}

async fn over_udp(query: &Query<'_>, resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let unspecified: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = udp::from(unspecified, false)?;
    socket.connect(resolver)?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    socket.send(query.octets).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        if let Some(own) = answer.get(..length)
            && is_answer_to(query.question.octets, query.header.id, own)
            && (is_cut(own) || Message::read(own).is_ok())
        {
            return Ok(own.to_vec());
        }
    }
}

async fn over_tcp(query: &Query<'_>, resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = tokio::net::TcpStream::from_std(tcp::dial(None, resolver)?.into())?;
    stream.writable().await?;
    let length = u16::try_from(query.octets.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), query.octets].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if is_answer_to(query.question.octets, query.header.id, &answer) {
        Ok(answer)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn is_cut(answer: &[u8]) -> bool {
    crate::wire::dns::Header::read(answer).is_ok_and(|header| header.flags & flag::TC != 0)
}

const DATAGRAM: u16 = 1232;
