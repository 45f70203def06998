//! The Linux edge, and the only place with `unsafe`: sockets, netlink, namespaces, privileges.

pub mod udp;
