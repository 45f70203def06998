//! The Linux edge, and the only place with `unsafe`: sockets, netlink, namespaces, privileges.

pub mod epoll;
pub mod limits;
pub mod pipe;
pub mod readable;
pub mod tcp;
pub mod netns;
pub mod rtnl;
