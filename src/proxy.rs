//! Flows: intercept, inspect, judge, act, record.
//!
//! Fails closed: whatever cannot be intercepted, read or judged is ended, and nothing is sent to the remote before
//! the verdict.

pub mod flow;
pub mod inspect;
pub mod live;
pub mod proof;
pub mod relay;
pub mod tcp;
pub mod udp;
pub mod worker;
