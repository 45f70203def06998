//! What serves beside the configuration, and giving it to another process (see [`super::hand_over`]).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use super::{App, Ending, Failure, because, hand_over};
use crate::mode::gateway::Gateway;
use crate::mode::gateway::hand_over::Spare;
use crate::mode::gateway::kernel::Recorder;
use crate::sys::capture;
use crate::sys::channel::{Channel, Door};
use crate::sys::nflog::PacketLog;
use crate::sys::readable::Raw;
use crate::telemetry::{Happened, Telemetry};

/// What serves, beside the configuration.
pub(super) struct Scene {
    pub(super) gateway: Gateway,
    pub(super) ear: Ear,
    /// For who takes over.
    pub(super) spare: Option<Spare>,
    pub(super) door: Option<Door>,
}

/// Who reads what the kernel has judged.
pub(super) struct Ear {
    /// The same once more, for who takes over.
    log: OwnedFd,
    recorder: Option<Recorder>,
}

impl Ear {
    pub(super) fn open(log: PacketLog, app: &App, telemetry: &Telemetry) -> io::Result<Self> {
        let kept = log.as_fd().try_clone_to_owned()?;
        let recorder = Recorder::start(log, &app.snapshot, telemetry)?;
        recorder.knows(app.bindings.clone());
        Ok(Self { log: kept, recorder: Some(recorder) })
    }
}

/// Why the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Asked,
    HandedOver,
}

impl App {
    /// What serves ends, and then the rules, unless another process goes on with them.
    pub(super) fn stop(&mut self, scene: Scene, end: End, ending: Ending) -> Result<(), Failure> {
        let Scene { gateway, ear, spare, .. } = scene;
        drop(spare);
        let stopping = self.telemetry.happened(Happened::Stopping);
        if end == End::HandedOver {
            self.telemetry.event(stopping.detail("handed over"));
            gateway.stop(ending.drain);
            return Ok(());
        }
        self.telemetry.event(stopping);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        // Live flows need the rules that bring their packets here: they go last.
        gateway.stop(ending.drain);
        self.mend();
        let stay = ending.keep_rules || !self.may_change_rules();
        let removed = if stay { Ok(()) } else { capture::remove() };
        drop(ear);
        removed.map_err(because("take the rules away"))
    }

    /// Gives everything to another process. On an error this one goes on as before.
    pub(super) fn hand_over(&mut self, to: &Channel, scene: &mut Scene) -> io::Result<()> {
        let process = hand_over::greet(to)?;
        tracing::info!(process, "another tidegate takes over");
        let spare = scene.spare.as_ref().ok_or_else(none)?;
        let old = hand_over::Old { generation: self.generation, spare, bindings: &self.bindings };
        old.give(to, scene.ear.log.as_fd())?;
        hand_over::wait_for_quiet(to)?;
        let log = scene.ear.recorder.take().and_then(Recorder::stop);
        if let Err(error) = hand_over::say_quiet(to).and_then(|()| hand_over::wait_for_done(to)) {
            match log.ok_or_else(none).and_then(|log| Ear::open(log, self, &self.telemetry)) {
                Ok(ear) => scene.ear = ear,
                Err(error) => tracing::error!(%error, "what the kernel judges is not recorded any more"),
            }
            self.mend();
            return Err(error);
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::MainPid(process)]);
        scene.spare = None;
        tracing::info!(process, "handed over: what lives here goes on until it ends");
        Ok(())
    }
}

fn none() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// Waits for somebody who wants to take over.
pub(super) async fn entered(door: &Option<AsyncFd<Raw<OwnedFd>>>) -> Channel {
    let Some(door) = door else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = door.readable().await else { return std::future::pending().await };
        match Door::enter(door.get_ref()) {
            Ok(channel) => return channel,
            Err(_) => ready.clear_ready(),
        }
    }
}
