//! What the kernel answers to a batch: nothing but acknowledgements and errors.

use std::io;

use super::NftError;

const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

/// Collects the answers to the messages of one batch, which carry consecutive sequence numbers.
pub(super) struct Answers {
    first: u32,
    objects: Vec<String>,
    acknowledged: bool,
    refusal: Option<NftError>,
}

impl Answers {
    pub(super) fn new(first: u32, objects: Vec<String>) -> Self {
        Self { first, objects, acknowledged: false, refusal: None }
    }

    /// Reads one datagram. Only the first error counts: what follows it is mostly its consequence.
    pub(super) fn read(&mut self, mut datagram: &[u8]) {
        while let Some((message, rest)) = next_message(datagram) {
            datagram = rest;
            if message.kind != NLMSG_ERROR {
                continue;
            }
            let Some((code, attributes)) = message.body.split_first_chunk::<4>() else { continue };
            let index = message.sequence.wrapping_sub(self.first) as usize;
            match i32::from_ne_bytes(*code) {
                0 => self.acknowledged = true,
                code => self.refuse(index, code.wrapping_neg(), attributes),
            }
        }
    }

    pub(super) fn outcome(self) -> Result<(), NftError> {
        match (self.refusal, self.acknowledged) {
            (Some(refusal), _) => Err(refusal),
            (None, true) => Ok(()),
            (None, false) => Err(NftError {
                object: "a transaction".to_owned(),
                source: io::Error::from(io::ErrorKind::UnexpectedEof),
                detail: Some("the kernel did not answer".to_owned()),
            }),
        }
    }

    /// The batch did not reach the kernel, or its answers did not reach us.
    pub(super) fn unsent(&self, source: io::Error, bytes: usize) -> NftError {
        let detail = match source.raw_os_error() {
            Some(libc::EMSGSIZE | libc::ENOBUFS) => {
                Some("the socket's buffer is too small: raise net.core.wmem_max, or run with CAP_NET_ADMIN".to_owned())
            }
            _ => None,
        };
        NftError { object: format!("a transaction of {bytes} bytes"), source, detail }
    }

    fn refuse(&mut self, index: usize, errno: i32, attributes: &[u8]) {
        if self.refusal.is_some() {
            return;
        }
        let object = self.objects.get(index).cloned().unwrap_or_else(|| "the transaction".to_owned());
        let words = attributes.get(HEADER..).and_then(extended_message);
        let detail = words.or_else(|| likely_cause(&object, errno));
        self.refusal = Some(NftError { object, source: io::Error::from_raw_os_error(errno), detail });
    }
}

fn likely_cause(object: &str, errno: i32) -> Option<String> {
    if errno == libc::EPERM {
        return Some("this needs CAP_NET_ADMIN over the network namespace".to_owned());
    }
    if !matches!(errno, libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) {
        return None;
    }
    let modules = [
        ("tproxy", "nft_tproxy"),
        ("socket", "nft_socket"),
        ("fib", "nft_fib_inet"),
        ("table", "nf_tables with CONFIG_NF_TABLES_INET"),
    ];
    let missing = modules.iter().find(|(word, _)| object.contains(word))?;
    Some(format!("does this kernel have {}?", missing.1))
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

fn next_message(datagram: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let (header, _) = datagram.split_first_chunk::<HEADER>()?;
    let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let body = datagram.get(HEADER..length)?;
    let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    let sequence = u32::from_ne_bytes([s0, s1, s2, s3]);
    Some((Message { kind: u16::from_ne_bytes([k0, k1]), sequence, body }, rest))
}

/// The text of `NLMSGERR_ATTR_MSG`.
fn extended_message(mut attributes: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    while let Some((&[l0, l1, k0, k1], _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let body = attributes.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) == NLMSGERR_ATTR_MSG {
            return Some(String::from_utf8_lossy(body).trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}
