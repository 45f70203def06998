//! The ways to run: gateway, sidecar, exec, demo; what each captures and how.

pub mod demo;
pub mod exec;
pub mod gateway;
pub mod sidecar;
