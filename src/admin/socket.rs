//! The local socket: made whole under another name, then put in its place, so that nobody finds one that is not served or
//! has other permissions. What a dead gateway left is replaced; that of a live one is not.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokio::net::{UnixListener, UnixStream};

use super::http::Door;
use super::{BREATH, Desk, RETRY, Tries};

#[derive(Debug)]
pub(super) struct Socket {
    path: Option<PathBuf>,
    /// Once it is in its place.
    listener: OnceLock<UnixListener>,
}

impl Socket {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path, listener: OnceLock::new() }
    }

    /// Serves for as long as it is asked to.
    pub(super) async fn serve(&self, desk: Desk, tries: Tries) {
        let mut tries = Some(tries);
        let Some(path) = &self.path else {
            tries.take();
            return std::future::pending().await;
        };
        let mut is_said = false;
        let listener = loop {
            match open(path).await {
                Ok(listener) => break listener,
                Err(error) if !is_said => {
                    tracing::warn!(socket = %path.display(), %error, "no status for now");
                    is_said = true;
                }
                Err(_) => {}
            }
            tries.take();
            tokio::time::sleep(RETRY).await;
        };
        tries.take();
        let listener = self.listener.get_or_init(|| listener);
        loop {
            match listener.accept().await {
                Ok((connection, _)) => desk.receive(connection, Door::Local),
                Err(_) => tokio::time::sleep(BREATH).await,
            }
        }
    }

    /// While it still listens: until it is deaf nobody puts another in its place.
    pub(super) fn remove(&self) {
        if let Some(path) = self.path.as_ref().filter(|_| self.listener.get().is_some()) {
            // Its folder may be closed to us by now.
            let _ = fs::remove_file(path);
        }
    }
}

async fn open(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another tidegate serves it"));
    }
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    let placed = fs::set_permissions(&new, Permissions::from_mode(MODE)).and_then(|()| fs::rename(&new, path));
    if placed.is_err() {
        let _ = fs::remove_file(&new);
    }
    placed.map(|()| listener)
}

const FOLDER_MODE: u32 = 0o755;
/// Whoever may write to it may reload.
const MODE: u32 = 0o660;

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn the_socket_of_a_dead_gateway_is_replaced_and_that_of_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inner").join("s");
        block_on(async {
            let first = open(&path).await.unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
            assert_eq!(open(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
            drop(first);
            let second = open(&path).await.unwrap();
            let client = UnixStream::connect(&path).await;
            assert!(client.is_ok() && second.accept().await.is_ok());
        });
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
