//! Which files a running gateway may still open: those of its configuration, and those that it keeps.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::config::{Loaded, Mistakes};
use crate::sys::list_store::Store;
use crate::sys::privileges::files::{self, Allowed};

/// Confines this thread and all that it starts to them.
pub(super) fn confine(loaded: &Loaded, config: &Path) {
    if let Err(why) = files::confine(&allowed(loaded, config)) {
        tracing::warn!("{why}");
    }
}

fn allowed(loaded: &Loaded, config: &Path) -> Allowed {
    let mut allowed = Allowed::default();
    let remotes = || loaded.list_sources.iter().filter_map(|source| source.remote.as_ref());
    let authorities = remotes().filter_map(|remote| remote.origin.authorities.as_deref());
    for file in loaded.files.iter().map(|file| &**file).chain([config]).chain(authorities) {
        allowed.read_beside(file);
        // Where it is a link, what it leads to.
        if let Ok(file) = file.canonicalize() {
            allowed.read_beside(&file);
        }
    }
    loaded.documents.folders().for_each(|folder| allowed.read_beside(&folder.join("any")));
    if let Some(cache) = Store::from_environment().folder() {
        if remotes().next().is_some() {
            // Where it cannot be made, lists say that they are not kept.
            let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(cache);
        }
        allowed.write.insert(cache.to_owned());
    }
    for file in loaded.telemetry.written_files() {
        allowed.write_beside(file);
    }
    if let Some(folder) = loaded.telemetry.socket.as_deref().and_then(Path::parent) {
        // It must be there to be allowed. Where it cannot be made, the log will say that there is no socket.
        let _ = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
    }
    allowed
}

/// Tells why a file that can be read by others cannot be read by a gateway that runs.
pub(super) fn explain(mistakes: &Mistakes) -> Option<&'static str> {
    mistakes
        .to_string()
        .contains(DENIED)
        .then_some("\na gateway opens only files in the folders that it was started with: others need a restart")
}

/// What the standard library says of EACCES.
const DENIED: &str = "Permission denied";
