//! A sidecar's life: who it becomes, what judges beside the kernel, and who may ask how it is.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::net::UnixListener;

use super::{Failure, because};
use crate::config::sidecar::{Capabilities, SidecarSettings};
use crate::mode::sidecar::probe::{self, State};
use crate::mode::sidecar::{Settings, neighbours};
use crate::policy::snapshot::Snapshot;
use crate::sys::privileges;

#[derive(Debug)]
pub(super) struct Sidecar {
    pub(super) settings: Settings,
    /// What judges the flows that are taken in.
    pub(super) judging: Arc<ArcSwap<Snapshot>>,
}

impl Sidecar {
    pub(super) fn new(written: &SidecarSettings) -> Self {
        let settings = Settings {
            user: written.user,
            group: written.group,
            may_change_rules: written.capabilities == Capabilities::NetAdmin,
        };
        Self { settings, judging: Arc::new(ArcSwap::from_pointee(Snapshot::new("".into(), 0, Vec::new()))) }
    }

    /// Becomes its user. Before any thread and any socket.
    pub(super) fn enter(written: &SidecarSettings) -> Result<Self, Failure> {
        let sidecar = Self::new(written);
        let user = sidecar.settings.user;
        tracing::info!(
            user,
            "no process of the application may run as this user, nor have CAP_NET_RAW, CAP_NET_ADMIN or CAP_SETUID"
        );
        for warning in neighbours::warnings(user) {
            tracing::warn!("{warning}");
        }
        sidecar.settings.become_user().map_err(because("become the user of [sidecar], which takes root"))?;
        privileges::confine().map_err(because("give up system calls"))?;
        Ok(sidecar)
    }

    pub(super) fn settle(&self) -> Result<(), Failure> {
        self.settings.settle().map_err(because("give up capabilities"))
    }
}

/// Where orchestrators ask.
#[derive(Debug)]
pub(super) struct Probes(Option<UnixListener>);

impl Probes {
    /// Within a runtime. A gateway has none.
    pub(super) fn open(is_sidecar: bool) -> Self {
        let open = || probe::listen().and_then(UnixListener::from_std);
        let listener = is_sidecar.then(open).transpose();
        Self(listener.unwrap_or_else(|error| {
            tracing::error!(%error, "probes cannot ask: somebody else is at their address");
            None
        }))
    }

    pub(super) async fn next(&self) -> Option<UnixStream> {
        match &self.0 {
            Some(listener) => listener.accept().await.ok().and_then(|(asker, _)| asker.into_std().ok()),
            None => std::future::pending().await,
        }
    }
}

pub(super) fn answer(asker: &UnixStream, is_ready: bool) {
    probe::answer(asker, if is_ready { State::Ready } else { State::Live });
}
