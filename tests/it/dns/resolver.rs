//! Resolvers in the lab's server, and stubs in its client.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use socket2::{Domain, Socket, Type};
use tidegate::mode::demo::lab::{Lab, client_address};

use crate::gateway::{DEADLINE, family_of};

/// Answers to one question: each datagram that is to be sent for it, or on TCP each message.
pub(crate) type Answerer = fn(&[u8]) -> Vec<Vec<u8>>;

/// Who asked, and what.
pub(crate) type Asked = (SocketAddr, Vec<u8>);

/// A resolver that answers as it is told, and remembers what it was asked and by whom.
pub(crate) struct Resolver {
    pub(crate) at: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Resolver {
    pub(crate) fn start(lab: &Lab, at: SocketAddr, answerer: Answerer) -> Self {
        let (udp, tcp) = lab
            .server
            .run(|| {
                let tcp: TcpListener = bind(at, Type::STREAM).into();
                socket2::SockRef::from(&tcp).listen(64).unwrap();
                (UdpSocket::from(bind(at, Type::DGRAM)), tcp)
            })
            .unwrap();
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let heard = asked.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                heard.lock().unwrap().push((from, buffer[..length].to_vec()));
                for answer in answerer(&buffer[..length]) {
                    udp.send_to(&answer, from).unwrap();
                }
            }
        });
        let heard = asked.clone();
        std::thread::spawn(move || {
            while let Ok((stream, from)) = tcp.accept() {
                let heard = heard.clone();
                std::thread::spawn(move || serve_stream(stream, from, &heard, answerer));
            }
        });
        Self { at, asked }
    }

    /// What has been asked so far, and by whom.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// A socket at one of the server's many addresses, which IPv6 gives only to those who ask for any.
pub(crate) fn bind(at: SocketAddr, kind: Type) -> Socket {
    let socket = Socket::new(Domain::for_address(at), kind, None).unwrap();
    if at.is_ipv6() {
        socket.set_freebind_v6(true).unwrap();
    }
    socket.bind(&at.into()).unwrap();
    socket
}

fn serve_stream(mut stream: TcpStream, from: SocketAddr, heard: &Mutex<Vec<Asked>>, answerer: Answerer) {
    while let Some(query) = read_frame(&mut stream) {
        heard.lock().unwrap().push((from, query.clone()));
        for answer in answerer(&query) {
            write_frame(&mut stream, &answer);
        }
    }
}

pub(crate) fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

pub(crate) fn write_frame(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat()).unwrap();
}

/// A socket of the client, at its address number `host`, that hears only `resolver`.
pub(crate) fn stub(lab: &Lab, host: u8, resolver: SocketAddr) -> UdpSocket {
    let source = client_address(family_of(resolver.ip()), host);
    lab.client
        .run(|| {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            socket.connect(resolver).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket
        })
        .unwrap()
}

/// Asks and waits for the answer.
pub(crate) fn exchange(stub: &UdpSocket, query: &[u8]) -> Vec<u8> {
    stub.send(query).unwrap();
    let mut buffer = vec![0; 65_535];
    let length = stub.recv(&mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

/// Asks over UDP from the client's first address.
pub(crate) fn ask(lab: &Lab, resolver: SocketAddr, query: &[u8]) -> Message {
    let octets = exchange(&stub(lab, 0, resolver), query);
    assert_eq!(octets[..2], query[..2], "the id of the query");
    Message::from_vec(&octets).unwrap()
}

pub(crate) fn connect_tcp(lab: &Lab, resolver: SocketAddr) -> TcpStream {
    let stream = lab.client.run(|| TcpStream::connect_timeout(&resolver, DEADLINE)).unwrap().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

pub(crate) fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

pub(crate) fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// The answer of an honest resolver: one address of the asked family.
pub(crate) fn honest(query: &[u8]) -> Vec<Vec<u8>> {
    vec![answered(query, 60, "192.0.2.80", "2001:db8:80::1")]
}

pub(crate) fn answered(query: &[u8], ttl: u32, v4: &str, v6: &str) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap().into_response();
    let question = message.queries[0].clone();
    message.metadata.recursion_available = true;
    let data = match question.query_type() {
        RecordType::A => Some(RData::A(A(v4.parse().unwrap()))),
        RecordType::AAAA => Some(RData::AAAA(AAAA(v6.parse().unwrap()))),
        _ => None,
    };
    if let Some(data) = data {
        message.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
    }
    with_question_of(message.to_vec().unwrap(), query)
}

/// hickory writes names in lower case.
pub(crate) fn with_question_of(mut answer: Vec<u8>, query: &[u8]) -> Vec<u8> {
    let end = 12 + query[12..].iter().position(|octet| *octet == 0).unwrap();
    answer[12..end].copy_from_slice(&query[12..end]);
    answer
}

pub(crate) const A_MOMENT: Duration = Duration::from_millis(300);
