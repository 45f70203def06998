//! The Linux edge, and the only place with `unsafe`: sockets, netlink, namespaces, privileges.

mod attributes;
pub mod capture;
pub mod channel;
pub mod child;
pub mod conntrack;
pub mod ending;
pub mod epoll;
pub mod fetch;
pub mod fork;
pub mod geoip;
pub mod landlock;
pub mod limits;
pub mod list_store;
pub mod mapped;
mod netfilter;
pub mod netns;
pub mod nflog;
pub mod nft;
pub mod pipe;
pub mod privileges;
pub mod process;
pub mod progress;
pub mod readable;
pub mod rtnl;
pub mod seccomp;
pub mod tcp;
pub mod udp;
