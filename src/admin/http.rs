//! One request and its answer, over HTTP/1.
//!
//! Over TCP there are metrics and nothing else; status and orders need the local socket, whose permissions say who may.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Desk, Order, metrics};

/// Where somebody came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// TCP: anybody on this host, as a rule.
    Metrics,
    Local,
}

#[derive(Debug)]
struct Request {
    method: String,
    path: String,
    query: String,
}

#[derive(Debug)]
struct Response {
    status: u16,
    content: &'static str,
    body: Vec<u8>,
}

/// Answers one request and closes. Who is too slow, or says too much, is left.
pub(super) async fn serve(mut connection: impl AsyncRead + AsyncWrite + Unpin, door: Door, desk: &Desk) {
    let response = match timeout(PATIENCE, read(&mut connection)).await {
        Ok(Some(request)) => answer(&request, door, desk).await,
        Ok(None) => Response::text(400, "no request that is understood here\n"),
        Err(_) => return,
    };
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        response.status,
        reason(response.status),
        response.content,
        response.body.len()
    );
    let octets = [head.as_bytes(), &response.body].concat();
    // Who has gone needs no answer.
    let _ = timeout(PATIENCE, async {
        connection.write_all(&octets).await?;
        connection.shutdown().await?;
        // A close with unread octets is a reset, which may overtake the answer.
        tokio::io::copy(&mut connection.take(HEAD as u64), &mut tokio::io::sink()).await
    })
    .await;
}

async fn read(connection: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        if request.parse(&head).ok()?.is_complete() {
            let (path, query) = request.path.map(|path| path.split_once('?').unwrap_or((path, "")))?;
            let method = request.method?.to_owned();
            return Some(Request { method, path: path.to_owned(), query: query.to_owned() });
        }
        let mut piece = [0; 1024];
        let count = connection.read(&mut piece).await.ok().filter(|count| *count > 0)?;
        head.extend_from_slice(piece.get(..count)?);
        if head.len() > HEAD {
            return None;
        }
    }
}

async fn answer(request: &Request, door: Door, desk: &Desk) -> Response {
    match (request.method.as_str(), request.path.as_str(), door) {
        ("GET", "/metrics", _) => match metrics::text(&desk.view) {
            Ok(text) => Response { status: 200, content: metrics::CONTENT_TYPE, body: text.into_bytes() },
            Err(_) => Response::text(500, "metrics cannot be written\n"),
        },
        ("GET", "/status", Door::Local) => {
            let most = request.parameter("flows").and_then(|number| number.parse().ok()).unwrap_or(FLOWS);
            Response::json(200, &desk.view.status(most.min(MOST_FLOWS)).await)
        }
        ("POST", "/reload", Door::Local) => reload(desk).await,
        (_, "/metrics", _) | (_, "/status" | "/reload", Door::Local) => Response::text(405, "not by this method\n"),
        _ => Response::text(404, "nothing here; metrics are at /metrics\n"),
    }
}

async fn reload(desk: &Desk) -> Response {
    let (answer, answered) = oneshot::channel();
    if desk.orders.send(Order::Reload(answer)).await.is_err() {
        return Response::text(503, "tidegate is ending\n");
    }
    match answered.await {
        Ok(Ok(generation)) => Response::json(200, &serde_json::json!({ "generation": generation })),
        Ok(Err(why)) => Response::text(409, &why),
        Err(_) => Response::text(503, "tidegate is ending\n"),
    }
}

impl Request {
    fn parameter(&self, key: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    }
}

impl Response {
    fn text(status: u16, text: &str) -> Self {
        Self { status, content: "text/plain; charset=utf-8", body: text.as_bytes().to_vec() }
    }

    fn json(status: u16, value: &impl serde::Serialize) -> Self {
        // Shapes of our own: all of them can be JSON.
        let body = serde_json::to_vec(value).unwrap_or_default();
        Self { status, content: "application/json", body }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// How long a client may take to ask, and to read.
const PATIENCE: Duration = Duration::from_secs(5);
/// Octets of a request.
const HEAD: usize = 8 << 10;
/// Flows that `/status` tells of, and the most.
const FLOWS: usize = 20;
const MOST_FLOWS: usize = 1000;
