//! Answers: what a handler gives, and how it goes over the wire. The status comes from the kind
//! of answer the routes table states, never from a handler.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use api::{ErrorCode, Problem, routes, service::ByteStream};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use hyper::{
    Response, StatusCode,
    body::{Frame, SizeHint},
    header::{self, HeaderValue},
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// What a handler answers.
pub(crate) enum Reply {
    /// Nothing.
    Empty,
    /// A JSON document, already written.
    Json {
        /// The document.
        body: Bytes,
        /// Generation of what it shows, for `ETag`.
        generation: Option<u64>,
    },
    /// JSON documents, one a line.
    Lines(ByteStream),
    /// Bytes at once.
    Bytes(Bytes),
    /// Bytes as they come.
    Stream(ByteStream),
    /// The answer to an upgrade; the key of RFC 6455 §4.2.2.
    Socket(String),
}

impl Reply {
    /// A JSON document.
    pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, Problem> {
        Ok(Self::Json {
            body: to_json(value)?,
            generation: None,
        })
    }

    /// A JSON document of something that has a generation.
    pub(crate) fn versioned<T: Serialize>(value: &T, generation: u64) -> Result<Self, Problem> {
        Ok(Self::Json {
            body: to_json(value)?,
            generation: Some(generation),
        })
    }

    /// JSON documents, one a line, cut off when `stop` says so: after a last one if `farewell`
    /// makes one from the one before it, else without a proper end, so that nobody takes the
    /// stream for complete.
    pub(crate) fn lines<T: Serialize + Send + 'static>(
        items: BoxStream<'static, T>,
        stop: CancellationToken,
        farewell: impl Fn(Option<&T>) -> Option<T> + Send + 'static,
    ) -> Self {
        let state = (items, stop, farewell, None::<T>, false);
        let lines = futures::stream::unfold(state, |state| async move {
            let (mut items, stop, farewell, last, stopped) = state;
            if stopped {
                return None;
            }
            let item = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let line = match farewell(last.as_ref()) {
                        Some(item) => to_line(&item),
                        None => Err(stopping()),
                    };
                    return Some((line, (items, stop, farewell, last, true)));
                }
                item = items.next() => item?,
            };
            Some((to_line(&item), (items, stop, farewell, Some(item), false)))
        });
        Self::Lines(lines.boxed())
    }

    /// The response a route's good answer is.
    pub(crate) fn into_response(self, answer: routes::Answer) -> Response<Body> {
        let status = match answer {
            routes::Answer::Empty => StatusCode::NO_CONTENT,
            routes::Answer::Accepted(_) => StatusCode::ACCEPTED,
            routes::Answer::Socket(_) => StatusCode::SWITCHING_PROTOCOLS,
            _ => StatusCode::OK,
        };
        let media = match answer {
            routes::Answer::Bytes("text/plain") => "text/plain; charset=utf-8",
            routes::Answer::Bytes(media) => media,
            routes::Answer::Lines(_) => "application/jsonl",
            _ => "application/json",
        };
        let (body, generation) = match self {
            Self::Empty => return response(status, None, Body::Full(None)),
            Self::Socket(key) => return switching(&key),
            Self::Json { body, generation } => (Body::Full(Some(body)), generation),
            Self::Bytes(body) => (Body::Full(Some(body)), None),
            Self::Lines(stream) | Self::Stream(stream) => (Body::Stream(stream), None),
        };
        let mut response = response(status, Some(media), body);
        if let Some(generation) = generation {
            let tag = HeaderValue::from_str(&format!("\"{generation}\""));
            let tag = tag.expect("digits and quotes are a header value");
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

/// The problem a stream ends with when the server stops.
pub(crate) fn stopping() -> Problem {
    Problem::new(ErrorCode::Cancelled, "the daemon is stopping")
        .hint("guests keep running; connect again when it is back")
}

/// The response that carries a problem (RFC 9457).
pub(crate) fn problem(problem: &Problem) -> Response<Body> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = to_json(problem).unwrap_or_default();
    let mut response = response(
        status,
        Some("application/problem+json"),
        Body::Full(Some(body)),
    );
    if status == StatusCode::UNAUTHORIZED {
        let value = HeaderValue::from_static("Bearer realm=\"berth\"");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

fn response(status: StatusCode, media: Option<&'static str>, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(media) = media {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

fn switching(key: &str) -> Response<Body> {
    let mut response = response(StatusCode::SWITCHING_PROTOCOLS, None, Body::Full(None));
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(value) = HeaderValue::from_str(key) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, value);
    }
    response
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, Problem> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| {
        Problem::new(
            ErrorCode::Internal,
            format!("the answer is no JSON: {error}"),
        )
    })
}

fn to_line<T: Serialize>(value: &T) -> Result<Bytes, Problem> {
    let mut line = serde_json::to_vec(value).map_err(|error| {
        Problem::new(
            ErrorCode::Internal,
            format!("the answer is no JSON: {error}"),
        )
    })?;
    line.push(b'\n');
    Ok(line.into())
}

/// The body of a response: at once, or as it comes. A stream is asked for more only when what it
/// gave has been sent.
pub(crate) enum Body {
    /// At once; `None` when sent or empty.
    Full(Option<Bytes>),
    /// As it comes; an error cuts the connection, so that the peer sees that something is missing.
    Stream(ByteStream),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Problem;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Problem>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => Pin::new(stream)
                .poll_next(context)
                .map(|item| item.map(|bytes| bytes.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Full(None) => SizeHint::with_exact(0),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
