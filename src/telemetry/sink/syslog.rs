//! Records as syslog messages (RFC 5424): the record's JSON is the message.
//!
//! Over UDP (RFC 5426) a message is a datagram; over TCP each is preceded by its length (RFC 6587, section 3.4.1). No
//! acknowledgement exists in either: what was sent to a server that dies before it reads is lost without a trace. A server
//! that cannot be reached over TCP makes records wait; over UDP a refused datagram is counted.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use super::{Line, Progress, Sink, Weight};
use crate::telemetry::json::Lines;

/// RFC 5424, section 6.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facility(pub u8);

/// What all messages have in common.
#[derive(Clone, Debug)]
pub struct Template {
    pub facility: Facility,
    pub host: Arc<str>,
    pub app_name: Arc<str>,
    /// A longer message is not sent, and counted: half a JSON object is none. In octets.
    pub longest: usize,
}

#[derive(Debug)]
pub struct SyslogUdp {
    messages: Messages,
    server: SocketAddr,
    socket: Option<UdpSocket>,
}

#[derive(Debug)]
pub struct SyslogTcp {
    messages: Messages,
    server: SocketAddr,
    connection: Option<TcpStream>,
}

#[derive(Debug)]
struct Messages {
    template: Template,
    times: Lines,
    text: Vec<u8>,
}

impl SyslogUdp {
    pub fn new(server: SocketAddr, template: Template) -> Self {
        Self { messages: Messages::new(template), server, socket: None }
    }

    fn socket(&mut self) -> io::Result<&UdpSocket> {
        let any: SocketAddr = match self.server {
            SocketAddr::V4(_) => ([0; 4], 0).into(),
            SocketAddr::V6(_) => ([0; 16], 0).into(),
        };
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let socket = UdpSocket::bind(any)?;
                socket.connect(self.server)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                socket
            }
        };
        Ok(self.socket.insert(socket))
    }
}

impl Sink for SyslogUdp {
    fn write(&mut self, lines: &[Line<'_>], progress: &mut Progress) -> io::Result<()> {
        self.socket()?;
        for line in lines {
            let (Some(message), Some(socket)) = (self.messages.message(line), &self.socket) else {
                progress.lost += 1;
                continue;
            };
            match socket.send(message) {
                Ok(_) => progress.written += 1,
                Err(error) => {
                    // It may tell of the message before; which of the two is lost makes no difference to the number.
                    progress.lost += 1;
                    if !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock) {
                        self.socket = None;
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

impl SyslogTcp {
    pub fn new(server: SocketAddr, template: Template) -> Self {
        Self { messages: Messages::new(template), server, connection: None }
    }

    fn connection(&mut self) -> io::Result<&mut TcpStream> {
        let connection = match self.connection.take().filter(is_open) {
            Some(connection) => connection,
            None => {
                let connection = TcpStream::connect_timeout(&self.server, PATIENCE)?;
                connection.set_write_timeout(Some(PATIENCE))?;
                connection
            }
        };
        Ok(self.connection.insert(connection))
    }
}

impl Sink for SyslogTcp {
    fn write(&mut self, lines: &[Line<'_>], progress: &mut Progress) -> io::Result<()> {
        self.connection()?;
        let mut text = Vec::new();
        let mut sum = Progress::default();
        for line in lines {
            match self.messages.message(line) {
                Some(message) => {
                    text.extend_from_slice(format!("{} ", message.len()).as_bytes());
                    text.extend_from_slice(message);
                    sum.written += 1;
                }
                None => sum.lost += 1,
            }
        }
        // A frame that is cut short cannot be mended: a new connection sends all of them again, some perhaps twice.
        if let Err(error) = self.connection()?.write_all(&text) {
            self.connection = None;
            return Err(error);
        }
        *progress = sum;
        Ok(())
    }
}

/// A server that has closed would take what is written and lose it.
fn is_open(connection: &TcpStream) -> bool {
    let mut answer = [0; 512];
    let _ = connection.set_nonblocking(true);
    // A syslog server says nothing: what it says all the same is not kept.
    let read = (&mut &*connection).read(&mut answer);
    let _ = connection.set_nonblocking(false);
    match read {
        Ok(count) => count > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

impl Messages {
    fn new(template: Template) -> Self {
        Self { template, times: Lines::default(), text: Vec::new() }
    }

    /// `None`: it would be too long.
    fn message(&mut self, line: &Line<'_>) -> Option<&[u8]> {
        let Self { template, times, text } = self;
        text.clear();
        let priority = u16::from(template.facility.0) * 8 + severity(line.weight);
        text.extend_from_slice(format!("<{priority}>1 ").as_bytes());
        times.write_time(line.time, text);
        let Template { host, app_name, .. } = template;
        let rest = format!(" {} {} {} {} - ", header(host, 255), header(app_name, 48), std::process::id(), line.kind);
        text.extend_from_slice(rest.as_bytes());
        text.extend_from_slice(line.json.trim_ascii_end());
        (text.len() <= template.longest).then_some(&**text)
    }
}

/// A header field is printable ASCII without blanks, or `-` (RFC 5424, section 6).
fn header(text: &str, longest: usize) -> String {
    let printable: String = text.chars().filter(char::is_ascii_graphic).take(longest).collect();
    if printable.is_empty() { "-".to_owned() } else { printable }
}

/// RFC 5424, section 6.2.1: warning, notice, informational.
fn severity(weight: Weight) -> u16 {
    match weight {
        Weight::Block => 4,
        Weight::Event => 5,
        Weight::Usual => 6,
    }
}

impl Facility {
    /// By the words of syslog.conf.
    pub const WORDS: [(&'static str, Self); 13] = [
        ("user", Self(1)),
        ("daemon", Self(3)),
        ("auth", Self(4)),
        ("syslog", Self(5)),
        ("authpriv", Self(10)),
        ("local0", Self(16)),
        ("local1", Self(17)),
        ("local2", Self(18)),
        ("local3", Self(19)),
        ("local4", Self(20)),
        ("local5", Self(21)),
        ("local6", Self(22)),
        ("local7", Self(23)),
    ];
}

/// How long a server may keep its sink waiting.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::net::TcpListener;
    use std::time::SystemTime;

    fn template() -> Template {
        Template { facility: Facility(16), host: "edge 1".into(), app_name: "tidegate".into(), longest: 200 }
    }

    fn line(json: &'static [u8], weight: Weight) -> Line<'static> {
        Line { json, time: SystemTime::UNIX_EPOCH, kind: "domain", weight }
    }

    fn expected(priority: u16, json: &str) -> String {
        format!("<{priority}>1 1970-01-01T00:00:00.000Z edge1 tidegate {} domain - {json}", std::process::id())
    }

    #[test]
    fn a_datagram_is_a_message_and_one_that_is_too_long_is_counted_and_not_cut() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sink = SyslogUdp::new(server.local_addr().unwrap(), template());
        let long: &'static [u8] = &[b'x'; 300];
        let lines = [line(b"{\"a\":1}\n", Weight::Usual), line(long, Weight::Usual), line(b"{}\n", Weight::Block)];
        let mut progress = Progress::default();
        sink.write(&lines, &mut progress).unwrap();
        assert_eq!(progress, Progress { written: 2, lost: 1 });
        for message in [expected(134, "{\"a\":1}"), expected(132, "{}")] {
            let mut buffer = [0; 512];
            let count = server.recv(&mut buffer).unwrap();
            assert_eq!(std::str::from_utf8(&buffer[..count]).unwrap(), message);
        }
    }

    #[test]
    fn over_tcp_each_message_has_its_length_before_it_and_a_server_that_comes_back_is_found() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let mut sink = SyslogTcp::new(address, template());
        let mut progress = Progress::default();
        sink.write(&[line(b"{}\n", Weight::Event), line(b"{\"b\":2}\n", Weight::Usual)], &mut progress).unwrap();
        assert_eq!(progress, Progress { written: 2, lost: 0 });
        let (connection, _) = server.accept().unwrap();
        let mut reader = io::BufReader::new(connection);
        for message in [expected(133, "{}"), expected(134, "{\"b\":2}")] {
            assert_eq!(framed(&mut reader), message);
        }

        drop((reader, server));
        let mut progress = Progress::default();
        while sink.write(&[line(b"{}\n", Weight::Usual)], &mut progress).is_ok() {
            // The end of the connection is on its way.
        }
        let server = TcpListener::bind(address).unwrap();
        let mut progress = Progress::default();
        sink.write(&[line(b"{\"c\":3}\n", Weight::Usual)], &mut progress).unwrap();
        assert_eq!(framed(&mut io::BufReader::new(server.accept().unwrap().0)), expected(134, "{\"c\":3}"));
    }

    fn framed(reader: &mut impl BufRead) -> String {
        let mut length = Vec::new();
        reader.read_until(b' ', &mut length).unwrap();
        let length: usize = std::str::from_utf8(length.trim_ascii()).unwrap().parse().unwrap();
        let mut message = vec![0; length];
        reader.read_exact(&mut message).unwrap();
        String::from_utf8(message).unwrap()
    }
}
