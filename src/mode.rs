//! The ways to run: gateway, sidecar, exec, demo; what each captures and how.

pub mod gateway;
pub mod demo;
