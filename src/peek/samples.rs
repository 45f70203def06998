//! First bytes for tests: made here, from captures, and from the tables of hostile forms in tests/data.

use super::{Discovery, Outcome};

/// How a discovery is written in the tables.
pub(crate) fn outcome(discovery: &Discovery) -> String {
    match &discovery.outcome {
        Outcome::Name(name) => name.to_string(),
        Outcome::NoName => "-".into(),
        Outcome::Unreadable(_) => "unreadable".into(),
    }
}

/// Bytes behind their length in two octets.
pub(crate) fn vec16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

pub(crate) fn record(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &vec16(bytes)].concat()
}

/// A handshake message in records of so many octets.
pub(crate) fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|piece| record(22, piece)).collect()
}

pub(crate) fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vec16(body)].concat()
}

/// A `server_name` extension with entries of (type, name).
pub(crate) fn server_names(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> = entries.iter().flat_map(|(kind, name)| [&[*kind][..], &vec16(name)].concat()).collect();
    extension(0, &vec16(&list))
}

/// A ClientHello with this section of extensions.
pub(crate) fn hello_with(extensions: &[u8]) -> Vec<u8> {
    message(&[&[3, 3][..], &[7; 32], &[0], &[0, 4, 0x13, 1, 0xc0, 0x2f], &[1, 0], &vec16(extensions)].concat())
}

pub(crate) fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1][..], &length[1..], body].concat()
}

/// A ClientHello that names one host.
pub(crate) fn hello(name: &[u8]) -> Vec<u8> {
    hello_with(&server_names(&[(0, name)]))
}

/// The first bytes of one client in a capture, and what is in them.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) id: String,
    pub(crate) flags: Vec<String>,
    pub(crate) is_malformed: bool,
    pub(crate) name: String,
    pub(crate) need: usize,
    pub(crate) ja3: String,
    pub(crate) ja4: String,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn tls_flights() -> Vec<Flight> {
    flights(include_str!("../../tests/data/flights/tls.tsv"))
}

pub(crate) fn http_flights() -> Vec<Flight> {
    flights(include_str!("../../tests/data/flights/http.tsv"))
}

fn flights(table: &str) -> Vec<Flight> {
    table.lines().map(flight).collect()
}

fn flight(line: &str) -> Flight {
    let fields: Vec<&str> = line.split('\t').collect();
    let flags: Vec<String> = fields[1].split(',').map(Into::into).collect();
    let (ja3, ja4) = if fields.len() > 6 { (fields[4], fields[5]) } else { ("", "") };
    Flight {
        id: fields[0].into(),
        is_malformed: flags.iter().any(|flag| flag == "malformed"),
        flags,
        name: fields[2].into(),
        need: fields[3].parse().unwrap(),
        ja3: ja3.into(),
        ja4: ja4.into(),
        bytes: unhex(fields.last().unwrap()),
    }
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// One row of a table of hostile forms.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) expected: String,
    pub(crate) what: String,
    pub(crate) bytes: Vec<u8>,
}

/// Both tables.
pub(crate) fn hostile() -> Vec<Case> {
    let http = include_str!("../../tests/data/hostile-http.txt");
    let tls = include_str!("../../tests/data/hostile-tls.txt");
    let mut cases = rows(http, unescape);
    cases.extend(rows(tls, recipe));
    cases
}

/// `expected | what it is | the bytes in some notation`
pub(crate) fn rows(table: &str, read: fn(&str) -> Vec<u8>) -> Vec<Case> {
    let rows = table.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|row| {
        let fields: Vec<&str> = row.splitn(3, " | ").map(str::trim).collect();
        let [expected, what, bytes] = fields[..] else { panic!("not a row: {row}") };
        Case { expected: expected.into(), what: what.into(), bytes: read(bytes) }
    })
    .collect()
}

/// `\r`, `\n`, `\t`, `\xNN`, and `{N:text}` for a text that comes so many times.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let (mut rest, mut bytes) = (text, Vec::new());
    while let Some(first) = rest.chars().next() {
        let taken = match (first, rest.get(1..2)) {
            ('\\', Some("r")) => (2, vec![b'\r']),
            ('\\', Some("n")) => (2, vec![b'\n']),
            ('\\', Some("t")) => (2, vec![b'\t']),
            ('\\', Some("x")) => (4, unhex(&rest[2..4])),
            ('{', _) => {
                let end = rest.find('}').unwrap();
                let (times, part) = rest[1..end].split_once(':').unwrap();
                (end + 1, unescape(part).repeat(times.parse().unwrap()))
            }
            _ => (first.len_utf8(), first.to_string().into_bytes()),
        };
        bytes.extend(taken.1);
        rest = &rest[taken.0..];
    }
    bytes
}

/// Words that say how a hello is put together; hostile-tls.txt explains them.
pub(crate) fn recipe(text: &str) -> Vec<u8> {
    let (mut extensions, mut lead, mut between, mut tail, mut inside) = (vec![], vec![], vec![], vec![], vec![]);
    let (mut size, mut version, mut bare) = (usize::MAX, None, false);
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "sni" => extensions.extend(server_names(&[(0, &unescape(value))])),
            "sni2" => {
                let (one, two) = value.split_once(',').unwrap();
                extensions.extend(server_names(&[(0, &unescape(one)), (0, &unescape(two))]));
            }
            "sni-type" => {
                let (kind, name) = value.split_once(',').unwrap();
                extensions.extend(server_names(&[(kind.parse().unwrap(), &unescape(name))]));
            }
            "sni-type-first" => {
                let (one, two) = value.split_once(',').unwrap();
                extensions.extend(server_names(&[(1, &unescape(one)), (0, &unescape(two))]));
            }
            "sni-raw" => extensions.extend(extension(0, &unhex(value))),
            "ext" => {
                let (kind, body) = value.split_once(',').unwrap();
                extensions.extend(extension(u16::from_str_radix(kind, 16).unwrap(), &unhex(body)));
            }
            "pad" => extensions.extend(extension(21, &vec![0; value.parse().unwrap()])),
            "many" => extensions.extend((0..value.parse().unwrap()).flat_map(|n| extension(0x7000 + n, &[]))),
            "raw" => extensions.extend(unhex(value)),
            "lead" => lead.extend(unhex(value)),
            "between" => between = unhex(value),
            "tail" => tail = unhex(value),
            "inside" => inside = unhex(value),
            "split" => size = value.parse().unwrap(),
            "version" => version = Some(unhex(value)),
            "no-extensions" => bare = true,
            _ => panic!("unknown word {word}"),
        }
    }
    let mut hello = if bare {
        message(&[&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat())
    } else {
        hello_with(&extensions)
    };
    if !inside.is_empty() {
        hello = message(&[&hello[4..], &inside].concat());
    }
    let pieces = hello.chunks(size.min(16_000)).map(|piece| {
        let mut record = record(22, piece);
        if let Some(version) = &version {
            record[1..3].copy_from_slice(version);
        }
        record
    });
    let joined = pieces.collect::<Vec<_>>().join(&between[..]);
    [lead, joined, tail].concat()
}
