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
        ("ct label", "CONFIG_NF_CONNTRACK_LABELS"),
        ("ct ", "nft_ct"),
        ("log ", "nft_log and nfnetlink_log"),
        ("limit ", "nft_limit"),
        ("reject ", "nft_reject_inet"),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's answer to the message of this sequence number; errno 0 acknowledges.
    fn answer(sequence: u32, errno: i32, words: Option<&str>) -> Vec<u8> {
        let mut body = (-errno).to_ne_bytes().to_vec();
        body.extend([0; HEADER]);
        if let Some(words) = words {
            body.extend(u16::try_from(words.len() + 5).unwrap().to_ne_bytes());
            body.extend(1_u16.to_ne_bytes());
            body.extend(words.as_bytes());
            body.push(0);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(NLMSG_ERROR.to_ne_bytes());
        message.extend([0; 2]);
        message.extend(sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        message
    }

    fn answers() -> Answers {
        Answers::new(u32::MAX, ["begin", "rule \"tproxy\" of chain x", "set y", "end"].map(str::to_owned).into())
    }

    #[test]
    fn the_first_refusal_is_told_with_its_object_and_what_is_likely_to_be_missing() {
        let mut all = answers();
        let refusals = [answer(0, libc::ENOENT, None), answer(1, libc::EEXIST, None), answer(1, 0, None)];
        all.read(&refusals.concat());
        let error = all.outcome().unwrap_err().to_string();
        assert!(error.contains("rule \"tproxy\" of chain x") && error.contains("nft_tproxy"), "{error}");
    }

    #[test]
    fn the_kernels_own_words_come_before_a_guess() {
        let mut all = answers();
        all.read(&answer(0, libc::ENOENT, Some("no such thing")));
        assert_eq!(all.outcome().unwrap_err().detail.as_deref(), Some("no such thing"));
    }

    #[test]
    fn silence_is_no_success() {
        assert!(answers().outcome().is_err());
        let mut acknowledged = answers();
        acknowledged.read(&answer(1, 0, None));
        assert!(acknowledged.outcome().is_ok());
    }

    #[test]
    fn an_answer_cut_short_or_made_of_nonsense_does_no_harm() {
        let whole = answer(0, libc::ENOENT, Some("no such thing"));
        for length in 0..whole.len() {
            let mut all = answers();
            all.read(&whole[..length]);
            assert!(all.outcome().is_err());
        }
        let mut all = answers();
        all.read(&[0; 64]);
        all.read(&[0xff; 64]);
        assert!(all.outcome().is_err());
    }
}
