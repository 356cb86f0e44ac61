//! One request on its way to the service: what a handler is given.

use std::{sync::Arc, time::Duration};

use api::{
    ErrorCode, Problem,
    service::{ByteStream, Service},
};
use hyper::{HeaderMap, header, upgrade::OnUpgrade};
use serde::de::DeserializeOwned;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{body::Upload, config::Config, json, query::Query};

/// What all connections of a server share and a handler may use.
#[derive(Clone)]
pub(crate) struct Shared {
    /// What does it all.
    pub(crate) service: Arc<dyn Service>,
    /// Limits.
    pub(crate) config: Arc<Config>,
    /// Told to stop.
    pub(crate) stop: CancellationToken,
    /// Tasks that go on after their request.
    pub(crate) tasks: TaskTracker,
    /// The server's own counters.
    pub(crate) metrics: Arc<crate::metrics::Metrics>,
}

/// A request, checked against its route.
pub(crate) struct Call {
    /// Of the server.
    pub(crate) shared: Shared,
    /// Name or id in the path.
    pub(crate) name: String,
    /// The query.
    pub(crate) query: Query,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// The body; empty once taken.
    pub(crate) body: Upload,
    /// The connection, for a WebSocket.
    pub(crate) upgrade: Option<OnUpgrade>,
}

impl Call {
    /// The service.
    pub(crate) fn service(&self) -> &dyn Service {
        &*self.shared.service
    }

    /// The body as a wire type.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        json::parse(&self.body.whole(&self.shared.config).await?)
    }

    /// The body as a stream.
    pub(crate) fn stream(&mut self) -> ByteStream {
        self.body.stream(self.shared.config.stream_idle_timeout)
    }

    /// How long the caller wants to wait for the outcome.
    pub(crate) fn wait(&mut self) -> Result<Option<Duration>, Problem> {
        self.query.seconds("wait_s")
    }

    /// The generation in `If-Match` (RFC 9110 §13.1.1): a number, with or without quotes; `*`
    /// matches any.
    pub(crate) fn if_match(&self) -> Result<Option<u64>, Problem> {
        let Some(value) = self.headers.get(header::IF_MATCH) else {
            return Ok(None);
        };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(None);
        }
        let bare = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
            .unwrap_or(text);
        bare.parse().map(Some).map_err(|_| {
            Problem::new(
                ErrorCode::Invalid,
                format!("If-Match is {text:?}: it must be a generation such as \"3\""),
            )
        })
    }
}
