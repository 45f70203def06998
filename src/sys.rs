//! The Linux edge, and the only place with `unsafe`: sockets, netlink, namespaces, privileges.

pub mod capture;
pub mod ending;
pub mod netns;
pub mod nft;
pub mod rtnl;
