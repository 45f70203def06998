//! Messages of the kernel's packet filter over netlink, but for those of nf_tables, which come in transactions.

/// A message as a whole: `flags` beside NLM_F_REQUEST.
pub(super) fn request(kind: u16, flags: u16, number: u32, body: &[u8]) -> Vec<u8> {
    const REQUEST: u16 = 1;
    let mut message = u32::try_from(body.len() + HEADER).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    message.extend(number.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    message
}

/// Adds an attribute.
pub(super) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(u16::try_from(value.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Kind and body of each netlink message.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, l2, l3, k0, k1] = *datagram.first_chunk::<6>()?;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = datagram.get(HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), body))
    })
}

const HEADER: usize = 16;
/// NLM_F_ACK
pub(super) const ACK: u16 = 0x4;
/// NLMSG_ERROR: the answer, also where all went well.
pub(super) const ERROR: u16 = 2;
