//! An HTTP server that answers as a test wants: an issuer's keys, or the owner's service.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use tokio::runtime::Runtime;

/// Runs until it is dropped.
pub(crate) struct HttpServer {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    _runtime: Runtime,
}

/// What was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) headers: std::collections::BTreeMap<String, String>,
    pub(crate) body: String,
}

#[derive(Default)]
struct Shared {
    status: u16,
    body: String,
    delay: Duration,
    requests: usize,
    in_flight: usize,
    in_flight_max: usize,
    last: Request,
}

impl Shared {
    fn note_in_flight(&mut self) {
        self.in_flight_max = self.in_flight_max.max(self.in_flight);
    }
}

impl HttpServer {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shared = Arc::new(Mutex::new(Shared { status: 500, ..Shared::default() }));
        let routes = Router::new().fallback(handle).with_state(shared.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, routes).await.unwrap();
        });
        Self { address, shared, _runtime: runtime }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers so from now on.
    pub(crate) fn answer(&self, status: u16, body: &str) {
        let mut shared = self.shared.lock().unwrap();
        (shared.status, shared.body, shared.delay) = (status, body.to_owned(), Duration::ZERO);
    }

    /// Answers only after this long.
    pub(crate) fn answer_late(&self, delay: Duration) {
        self.shared.lock().unwrap().delay = delay;
    }

    /// How often it was asked.
    pub(crate) fn requests(&self) -> usize {
        self.shared.lock().unwrap().requests
    }

    /// Questions without an answer.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.lock().unwrap().in_flight
    }

    /// Most late questions that it had at a time.
    pub(crate) fn in_flight_max(&self) -> usize {
        self.shared.lock().unwrap().in_flight_max
    }

    pub(crate) fn last_request(&self) -> Request {
        self.shared.lock().unwrap().last.clone()
    }
}

/// By when an end of a connection is noticed.
const NOTICED: Duration = Duration::from_millis(100);

/// Counts a question until it is answered, or the one who asks has gone.
struct InFlight(Arc<Mutex<Shared>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.lock().unwrap().in_flight -= 1;
    }
}

async fn handle(
    State(shared): State<Arc<Mutex<Shared>>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let delay = {
        let mut shared = shared.lock().unwrap();
        shared.requests += 1;
        shared.in_flight += 1;
        let text = |value: &axum::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        shared.last = Request { headers, body: String::from_utf8_lossy(&body).into_owned() };
        shared.delay
    };
    let _in_flight = InFlight(shared.clone());
    if !delay.is_zero() {
        // Who has given up before this question came is noticed by then, and who has not is there still.
        tokio::time::sleep(NOTICED.min(delay)).await;
        shared.lock().unwrap().note_in_flight();
        tokio::time::sleep(delay.saturating_sub(NOTICED)).await;
    }
    let shared = shared.lock().unwrap();
    (StatusCode::from_u16(shared.status).unwrap(), shared.body.clone())
}
