//! One connection: HTTP/1.1 over any stream, and the way of each request through the server.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use api::{ErrorCode, Problem, routes};
use futures::FutureExt as _;
use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::token::Scope;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::{
    auth::{Gate, Peer},
    body::{self, Upload},
    call::{Call, Shared},
    query::Query,
    reply::{self, Body, Reply},
    router::{Found, Router},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Serves a connection until either end closes it or the server stops.
pub(crate) async fn serve<S>(stream: S, peer: Peer, shared: Shared, gate: &Gate)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = &shared.config;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.header_bytes.max(8192))
        .max_headers(config.headers);
    let service = service_fn(|request| answer(request, peer, &shared, gate));
    let connection = http
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shared.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match timeout(config.drain, connection).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "a connection broke off");
    }
}

/// A request's answer: every failure is a problem, and every request is counted and logged.
async fn answer(
    request: Request<Incoming>,
    peer: Peer,
    shared: &Shared,
    gate: &Gate,
) -> Result<Response<Body>, Infallible> {
    let started = Instant::now();
    let id = request_id();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let found = Router::get().find(method.as_str(), &path);
    let index = found.as_ref().ok().map(|found| found.index);
    let served = match found {
        Ok(found) => pass(request, found, peer, shared, gate, &id).await,
        Err(problem) => Err(problem),
    };
    let (mut response, scope, problem) = match served {
        Ok((response, scope)) => (response, scope, None),
        Err(problem) => (reply::problem(&problem), None, Some(problem)),
    };
    if response.status() == 405
        && let Ok(allowed) = HeaderValue::from_str(&Router::get().allowed(&path))
    {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let took = started.elapsed();
    shared
        .metrics
        .count(index, response.status().as_u16(), took);
    Line {
        id: &id,
        method: &method,
        path: &path,
        peer,
        scope,
        took,
    }
    .write(response.status().as_u16(), problem.as_ref());
    Ok(response)
}

/// Checks a request against its route and calls the handler.
async fn pass(
    mut request: Request<Incoming>,
    found: Found,
    peer: Peer,
    shared: &Shared,
    gate: &Gate,
    id: &str,
) -> Result<(Response<Body>, Option<Scope>), Problem> {
    let route = found.route;
    let scope = gate
        .check(&*shared.service, peer, request.headers(), route.scope)
        .await?;
    let upgrade =
        matches!(route.answer, routes::Answer::Socket(_)).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut body = Upload::new(body);
    let query = Query::parse(parts.uri.query().unwrap_or_default(), route.query)?;
    body::check_media(&parts.headers, route.body, body.is_empty())?;
    if matches!(route.body, routes::Body::None) {
        body::none(&mut body, &shared.config).await?;
    }
    let call = Call {
        shared: shared.clone(),
        name: found.parameter,
        query,
        headers: parts.headers,
        body,
        upgrade,
    };
    let answer = AssertUnwindSafe((found.handler)(call)).catch_unwind();
    let result = if parts.method == Method::GET {
        answer.await
    } else {
        // A caller that goes away must not leave a change half made.
        match shared.tasks.spawn(answer).await {
            Ok(result) => result,
            Err(error) => Err(Box::new(error) as Box<_>),
        }
    };
    match result {
        Ok(reply) => reply.map(|reply: Reply| (reply.into_response(route.answer), scope)),
        Err(panic) => {
            shared.metrics.panics.fetch_add(1, Relaxed);
            tracing::error!(
                request = id,
                route = route.id,
                panic = panic_text(&*panic),
                "a fault"
            );
            Err(Problem::new(
                ErrorCode::Internal,
                format!("the daemon hit a fault of its own (request {id})"),
            )
            .hint("the daemon's log has the cause under that id; please report it"))
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// Unique in this run and unlikely to repeat in the next.
fn request_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut n = NEXT.fetch_add(1, Relaxed);
    if n == 0 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let start = since.map_or(1, |since| since.as_secs()) << 24;
        NEXT.fetch_add(start, Relaxed);
        n = start;
    }
    format!("{n:x}")
}

/// What the log says of a request.
struct Line<'a> {
    id: &'a str,
    method: &'a Method,
    path: &'a str,
    peer: Peer,
    scope: Option<Scope>,
    took: Duration,
}

impl Line<'_> {
    /// Faults are errors, changes are worth a line, looks and refusals only on request.
    fn write(&self, status: u16, problem: Option<&Problem>) {
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "berth::request",
                    id = self.id,
                    method = self.method.as_str(),
                    path = self.path,
                    peer = %self.peer,
                    scope = self.scope.map(Scope::as_str),
                    status,
                    took_us = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX),
                    problem = problem.map(|problem| problem.detail.as_str()),
                    "request"
                )
            };
        }
        match (status, self.method) {
            (500, _) => line!(error),
            (401 | 429, _) => line!(warn),
            (_, &Method::GET) => line!(debug),
            _ => line!(info),
        }
    }
}
