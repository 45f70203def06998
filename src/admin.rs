//! Looking at a gateway that runs: metrics over HTTP on a loopback address, status and reload over a local socket.
//!
//! One thread serves both, with a few connections at a time, each bounded in size and time. Nothing here is on the way of a
//! flow. Where the address or the socket is taken, the gateway runs without, says so, and tries again: the one that has it
//! may be the gateway that this one replaces.

pub mod client;
mod http;
pub mod metrics;
mod socket;
pub mod status;
pub mod view;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::http::Door;
use self::view::View;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The socket of `status` and `reload`; `None`: none.
    pub socket: Option<PathBuf>,
}

/// What somebody at the socket wants done.
#[derive(Debug)]
pub enum Order {
    /// Read the configuration anew. Answered with the generation in force, or with why the one before stays.
    Reload(oneshot::Sender<Result<u64, String>>),
}

/// The thread that serves; it ends when this is dropped, and takes the socket away.
#[derive(Debug)]
pub struct Admin {
    stop: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What every connection needs.
#[derive(Clone, Debug)]
struct Desk {
    view: Arc<View>,
    orders: mpsc::Sender<Order>,
    /// Places for connections.
    places: Arc<Semaphore>,
}

impl Admin {
    /// Returns once both are served, or were found taken. `orders`: to who obeys them. The thread first does what `begin`
    /// does.
    pub fn start(settings: Settings, view: Arc<View>, orders: mpsc::Sender<Order>, begin: fn()) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = watch::channel(());
        let (tries, tried) = std::sync::mpsc::channel();
        let desk = Desk { view, orders, places: Arc::new(Semaphore::new(CONNECTIONS)) };
        let work = async move {
            let metrics =
                settings.metrics.map(|address| tokio::spawn(serve_metrics(address, desk.clone(), tries.clone())));
            let socket = socket::Socket::new(settings.socket);
            tokio::select! {
                () = socket.serve(desk, tries) => {}
                // Nobody sends: what is waited for is the end of the sender.
                _ = stopped.changed() => {}
            }
            socket.remove();
            drop(metrics);
        };
        let thread = std::thread::Builder::new().name("admin".into()).spawn(move || {
            begin();
            runtime.block_on(work);
            runtime.shutdown_background();
        })?;
        // Nobody sends: whoever has tried drops its end.
        let _ = tried.recv_timeout(FIRST_TRY);
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // One that panicked has nothing left to do.
            let _ = thread.join();
        }
    }
}

impl Desk {
    /// Serves a connection, if there is a place for it.
    fn receive(&self, connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, door: Door) {
        let Ok(place) = self.places.clone().try_acquire_owned() else { return };
        let desk = self.clone();
        tokio::spawn(async move {
            http::serve(connection, door, &desk).await;
            drop(place);
        });
    }
}

async fn serve_metrics(address: SocketAddr, desk: Desk, tries: Tries) {
    let mut is_said = false;
    let mut tries = Some(tries);
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !is_said => {
                tracing::warn!(%address, %error, "metrics are not served yet");
                is_said = true;
            }
            Err(_) => {}
        }
        tries.take();
        tokio::time::sleep(RETRY).await;
    };
    drop(tries);
    if is_said {
        tracing::info!(%address, "metrics are served");
    }
    loop {
        match listener.accept().await {
            Ok((connection, _)) => desk.receive(connection, Door::Metrics),
            // As a rule no descriptor is free.
            Err(_) => tokio::time::sleep(BREATH).await,
        }
    }
}

/// Held until the first try.
type Tries = std::sync::mpsc::Sender<()>;

/// Connections at once; one more is closed.
const CONNECTIONS: usize = 16;
/// How often what is taken is tried again.
const RETRY: Duration = Duration::from_secs(1);
const BREATH: Duration = Duration::from_millis(100);
/// How long a start waits for the first try.
const FIRST_TRY: Duration = Duration::from_secs(2);
