//! What the kernel knows of single flows: how long they live on, and what they have carried.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::encode::get_element;
use super::{NftError, NftSocket, mixed_families};
use crate::firewall::{Family, FlowKey, FlowSet, TCP, UDP};
use crate::policy::Transport;
use crate::sys::attributes::Attributes;

/// What has passed of a flow in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub packets: u64,
    /// With the headers of IP and UDP.
    pub octets: u64,
}

impl Counted {
    /// Octets behind the headers of IP (without options) and UDP.
    pub fn payload(self, family: Family) -> u64 {
        let headers = match family {
            Family::V4 => 20 + 8,
            Family::V6 => 40 + 8,
        };
        self.octets.saturating_sub(self.packets.saturating_mul(headers))
    }
}

impl NftSocket {
    /// How long a flow stays in a set if nothing more comes of it; `None` if it is not there.
    pub fn time_left(&mut self, set: FlowSet, flow: &FlowKey) -> Result<Option<Duration>, NftError> {
        const EXPIRATION: u16 = 5;
        let Some(element) = self.element(set, flow)? else { return Ok(None) };
        let left = Attributes(&element).find(|(kind, _)| *kind == EXPIRATION).and_then(|(_, left)| number(left));
        Ok(Some(Duration::from_millis(left.unwrap_or_default())))
    }

    /// All that is in a set; nothing where the rules have no such set.
    pub fn flows(&mut self, set: FlowSet) -> Result<Vec<FlowKey>, NftError> {
        let mut flows = Vec::new();
        for family in Family::BOTH {
            match self.each_key(set.name(family), |key| flows.extend(flow_of(family, key))) {
                Err(error) if error.source.raw_os_error() == Some(libc::ENOENT) => {}
                told => told?,
            }
        }
        Ok(flows)
    }

    /// What a set of kind `Counted` has counted of a flow; `None` if it is not there.
    pub fn counted(&mut self, set: FlowSet, flow: &FlowKey) -> Result<Option<Counted>, NftError> {
        const EXPRESSION: u16 = 7;
        const DATA: u16 = 2;
        const OCTETS: u16 = 1;
        const PACKETS: u16 = 2;
        let Some(element) = self.element(set, flow)? else { return Ok(None) };
        let mut counted = Counted::default();
        let inside = |kind, list| Attributes(list).filter(move |(own, _)| *own == kind).map(|(_, value)| value);
        for (kind, value) in inside(EXPRESSION, &element).flat_map(|own| inside(DATA, own)).flat_map(Attributes) {
            match kind {
                OCTETS => counted.octets = number(value).unwrap_or_default(),
                PACKETS => counted.packets = number(value).unwrap_or_default(),
                _ => {}
            }
        }
        Ok(Some(counted))
    }

    /// The attributes of a flow's element.
    fn element(&mut self, set: FlowSet, flow: &FlowKey) -> Result<Option<Vec<u8>>, NftError> {
        const ELEMENTS: u16 = 3;
        const ELEMENT: u16 = 1;
        let (family, element) = flow.element().ok_or_else(|| mixed_families(flow))?;
        let answers = match self.query(get_element(set.name(family), &element)) {
            Ok(answers) => answers,
            Err(error) if error.source.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let lists = answers.iter().flat_map(|body| Attributes(body)).filter(|(kind, _)| *kind == ELEMENTS);
        let mut elements = lists.flat_map(|(_, list)| Attributes(list)).filter(|(kind, _)| *kind == ELEMENT);
        Ok(elements.next().map(|(_, element)| element.to_vec()))
    }
}

/// Reads what [`FlowKey::element`] becomes: each part takes a multiple of four octets.
fn flow_of(family: Family, key: &[u8]) -> Option<FlowKey> {
    let (&[protocol, ..], rest) = key.split_first_chunk::<4>()?;
    let transport = match protocol {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        _ => return None,
    };
    let (client, rest) = end_of(family, rest)?;
    let (remote, _) = end_of(family, rest)?;
    Some(FlowKey { transport, client, remote })
}

fn end_of(family: Family, key: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (address, rest) = match family {
        Family::V4 => key.split_first_chunk::<4>().map(|(address, rest)| (IpAddr::from(*address), rest))?,
        Family::V6 => key.split_first_chunk::<16>().map(|(address, rest)| (IpAddr::from(*address), rest))?,
    };
    let (&[high, low, ..], rest) = rest.split_first_chunk::<4>()?;
    Some((SocketAddr::new(address, u16::from_be_bytes([high, low])), rest))
}

fn number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}
