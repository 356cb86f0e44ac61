//! Request bodies, bounded: whole for JSON, as a stream for archives.

use std::time::Duration;

use api::{ErrorCode, Problem, routes, service::ByteStream};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap,
    body::{Body as _, Incoming},
    header,
};
use tokio::time::timeout;

use crate::config::Config;

/// Most of a refused stream that is read and thrown away, so that the peer can read the answer.
const DRAIN_BYTES: usize = 256 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Checks that the body is of the kind its route takes.
///
/// # Errors
/// 415 for another media type.
pub(crate) fn check_media(
    headers: &HeaderMap,
    takes: routes::Body,
    empty: bool,
) -> Result<(), Problem> {
    let wanted: &[&str] = match takes {
        routes::Body::None => return Ok(()),
        routes::Body::Json(_) => &["application/json"],
        routes::Body::MergePatch(_) => &["application/merge-patch+json", "application/json"],
        routes::Body::Bytes(media) => &[media, "application/octet-stream"],
    };
    if empty && matches!(takes, routes::Body::Json(_)) {
        return Ok(());
    }
    let given = headers
        .get(header::CONTENT_TYPE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let bare = given
        .as_deref()
        .and_then(|value| value.split(';').next())
        .map(str::trim);
    if bare.is_some_and(|bare| wanted.iter().any(|media| bare.eq_ignore_ascii_case(media))) {
        return Ok(());
    }
    let detail = match given {
        Some(given) => format!("the body is {given:?}; this route takes {}", wanted[0]),
        None => format!(
            "the body's media type is not stated; this route takes {}",
            wanted[0]
        ),
    };
    let mut problem = Problem::new(ErrorCode::Invalid, detail)
        .hint(format!("send the header Content-Type: {}", wanted[0]));
    problem.status = 415;
    Err(problem)
}

/// The whole body, as one piece when it came as one.
///
/// # Errors
/// [`ErrorCode::TooLarge`] past the limit, [`ErrorCode::Timeout`] when it takes too long.
async fn whole(mut body: Incoming, config: &Config) -> Result<Bytes, Problem> {
    let limit = config.json_body_bytes;
    if body.size_hint().lower() > limit as u64 {
        drain(body);
        return Err(too_large(limit));
    }
    let read = async {
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else {
                continue;
            };
            if all.len() + data.len() > limit {
                return Err(too_large(limit));
            }
            if all.is_empty() && body.is_end_stream() {
                return Ok(data);
            }
            all.extend_from_slice(&data);
        }
        Ok(all.freeze())
    };
    let result = timeout(config.body_timeout, read).await;
    match result {
        Ok(Err(problem)) if problem.code == ErrorCode::TooLarge => {
            drain(body);
            Err(problem)
        }
        Ok(result) => result,
        Err(_) => Err(Problem::new(
            ErrorCode::Timeout,
            format!(
                "the body did not arrive within {} s",
                config.body_timeout.as_secs()
            ),
        )),
    }
}

/// Checks that there is no body.
///
/// # Errors
/// [`ErrorCode::Invalid`] when there is.
pub(crate) async fn none(body: &mut Upload, config: &Config) -> Result<(), Problem> {
    if body.is_empty() || body.whole(config).await?.is_empty() {
        return Ok(());
    }
    Err(Problem::new(ErrorCode::Invalid, "this route takes no body"))
}

fn stream(body: Upload, idle: Duration) -> ByteStream {
    futures::stream::unfold(body, move |mut state| async move {
        let body = state.0.as_mut()?;
        let frame = match timeout(idle, body.frame()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return None,
            Err(_) => {
                state.0 = None;
                let detail = format!("nothing more was sent for {} s", idle.as_secs());
                return Some((Err(Problem::new(ErrorCode::Timeout, detail)), state));
            }
        };
        let item = match frame {
            Ok(frame) => Ok(frame.into_data().unwrap_or_default()),
            Err(error) => {
                state.0 = None;
                Err(broken(error))
            }
        };
        Some((item, state))
    })
    .boxed()
}

/// A body on its way to a handler. Dropped unread, it is drained.
pub(crate) struct Upload(Option<Incoming>);

impl Upload {
    /// Of a request that may be served.
    pub(crate) fn new(body: Incoming) -> Self {
        Self(Some(body))
    }

    /// Whether it is known that nothing comes.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(Incoming::is_end_stream)
    }

    /// All of it; see [`whole`].
    ///
    /// # Errors
    /// As [`whole`].
    pub(crate) async fn whole(&mut self, config: &Config) -> Result<Bytes, Problem> {
        match self.0.take() {
            Some(body) => whole(body, config).await,
            None => Ok(Bytes::new()),
        }
    }

    /// As it comes. A peer that is still sending would be cut off before it can read an answer,
    /// so dropping the stream early reads on for a moment.
    pub(crate) fn stream(&mut self, idle: Duration) -> ByteStream {
        stream(Self(self.0.take()), idle)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(body) = self.0.take() {
            drain(body);
        }
    }
}

/// Reads on in the background and throws away, within limits.
fn drain(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let read = async move {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(length) else {
                return;
            };
            left = rest;
        }
    };
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(timeout(DRAIN_TIME, read).map(drop));
    }
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        ErrorCode::TooLarge,
        format!("the body is larger than {limit} bytes"),
    )
}

fn broken(error: hyper::Error) -> Problem {
    Problem::new(ErrorCode::Invalid, format!("the body broke off: {error}"))
}
