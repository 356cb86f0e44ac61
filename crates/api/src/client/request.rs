//! One request and its answer: the part every call shares.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1::SendRequest,
    header,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    MAX_DOCUMENT, MAX_PROBLEM,
    address::{Address, Config},
    connect,
    error::{ClientError, Result},
};
use crate::{
    ErrorCode, Problem,
    routes::{self, Method},
};

/// What a request carries.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// The way to one connection.
pub(super) type Sender = SendRequest<RequestBody>;

/// How long the daemon may take to begin an answer, besides what it was asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of one daemon. Methods take `&self`; requests that overlap use connections of their
/// own. Must be used inside a tokio runtime.
#[derive(Debug)]
pub struct Client {
    config: Config,
    idle: Mutex<Option<Sender>>,
}

/// A request under construction.
pub(super) struct Call {
    method: Method,
    target: String,
    has_query: bool,
    body: RequestBody,
    media: Option<&'static str>,
    headers: Vec<(header::HeaderName, String)>,
    patience: Option<Duration>,
}

impl Call {
    /// The route with an id of the table; `argument` fills its one path parameter.
    pub(super) fn new(id: &str, argument: Option<&str>) -> Self {
        let route = routes::by_id(id);
        let target = match (route.path.split_once('{'), argument) {
            (Some((before, rest)), Some(value)) => {
                let (_, after) = rest.split_once('}').unwrap_or(("", ""));
                format!("{before}{}{after}", encode(value))
            }
            _ => route.path.to_owned(),
        };
        Self {
            method: route.method,
            target,
            has_query: false,
            body: Empty::new().map_err(|never| match never {}).boxed_unsync(),
            media: None,
            headers: Vec::new(),
            patience: Some(ANSWER_TIMEOUT),
        }
    }

    /// Adds a query parameter.
    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        self.target.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        self.target.push_str(name);
        self.target.push('=');
        self.target.push_str(&encode(value));
        self
    }

    /// Adds a query parameter that is there.
    pub(super) fn query_some(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// Asks the daemon to wait so many seconds with its answer, and waits as much longer for it.
    pub(super) fn wait(mut self, name: &str, seconds: Option<u64>) -> Self {
        let Some(seconds) = seconds else { return self };
        self.patience = Some(ANSWER_TIMEOUT + Duration::from_secs(seconds));
        self.query(name, &seconds.to_string())
    }

    /// Waits for the answer for as long as it takes.
    pub(super) fn patient(mut self) -> Self {
        self.patience = None;
        self
    }

    /// Carries a JSON document.
    pub(super) fn json<T: Serialize>(self, document: &T) -> Result<Self> {
        let bytes = serde_json::to_vec(document).map_err(|error| ClientError::Config {
            message: format!("the request cannot be written as JSON: {error}"),
            hint: "leave out what is not a finite number".into(),
        })?;
        let body = Full::from(bytes).map_err(|never| match never {});
        Ok(self.carry("application/json", body.boxed_unsync()))
    }

    /// Carries bytes as they come.
    pub(super) fn stream(
        self,
        media: &'static str,
        bytes: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Self {
        use futures::StreamExt;
        let body = StreamBody::new(bytes.map(|part| part.map(Frame::data)));
        self.carry(media, body.boxed_unsync())
    }

    fn carry(mut self, media: &'static str, body: RequestBody) -> Self {
        self.media = Some(media);
        self.body = body;
        self
    }

    /// Names the media type differently than the body's usual one.
    pub(super) fn media(mut self, media: &'static str) -> Self {
        self.media = Some(media);
        self
    }

    /// Adds a header.
    pub(super) fn header(mut self, name: header::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// An answer whose body is still to come, with the connection it comes on.
pub(super) struct Pending {
    pub(super) response: Response<Incoming>,
    pub(super) sender: Sender,
}

impl Client {
    /// A client. Connects when the first request is made.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            idle: Mutex::new(None),
        }
    }

    /// Where the daemon is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.config.address
    }

    /// Sends a request; gives the answer once its head is here and says success.
    pub(super) async fn send(&self, call: Call) -> Result<Pending> {
        let patience = call.patience;
        let exchange = self.exchange(call);
        let pending = match patience {
            None => exchange.await?,
            Some(limit) => tokio::time::timeout(limit, exchange).await.map_err(|_| {
                ClientError::Timeout {
                    address: self.config.address.to_string(),
                    seconds: limit.as_secs(),
                }
            })??,
        };
        let status = pending.response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            Ok(pending)
        } else {
            Err(self.problem(pending).await)
        }
    }

    async fn exchange(&self, call: Call) -> Result<Pending> {
        let mut request = self.request(call)?;
        let kept = self.idle().take();
        if let Some(mut sender) = kept
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(Pending { response, sender }),
                Err(mut refused) => match refused.take_message() {
                    // Never sent: the daemon had closed the connection in between.
                    Some(message) => request = message,
                    None => return Err(connect::broken(&self.config.address, refused.error())),
                },
            }
        }
        let mut sender = connect::connect(&self.config).await?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| connect::broken(&self.config.address, &error))?;
        Ok(Pending { response, sender })
    }

    fn request(&self, call: Call) -> Result<Request<RequestBody>> {
        let mut builder = Request::builder()
            .method(call.method.as_str())
            .uri(call.target.as_str());
        builder = match &self.config.address {
            Address::Unix(_) => builder.header(header::HOST, "berth"),
            Address::Https { host, port } if host.contains(':') => {
                builder.header(header::HOST, format!("[{host}]:{port}"))
            }
            Address::Https { host, port } => builder.header(header::HOST, format!("{host}:{port}")),
        };
        if let Some(token) = &self.config.credential.token {
            builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(media) = call.media {
            builder = builder.header(header::CONTENT_TYPE, media);
        }
        for (name, value) in call.headers {
            builder = builder.header(name, value);
        }
        builder
            .body(call.body)
            .map_err(|error| ClientError::Config {
                message: format!("the request cannot be written: {error}"),
                hint: "check BERTH_TOKEN: a token is one line of plain characters".into(),
            })
    }

    /// Sends a request whose answer is one JSON document.
    pub(super) async fn document<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let bytes = self.bytes(call).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.nonsense(error))
    }

    /// Sends a request whose answer is empty.
    pub(super) async fn nothing(&self, call: Call) -> Result<()> {
        self.bytes(call).await.map(drop)
    }

    /// Sends a request and reads its answer whole.
    pub(super) async fn bytes(&self, call: Call) -> Result<Bytes> {
        let Pending { response, sender } = self.send(call).await?;
        let bytes = self.collect(response, MAX_DOCUMENT).await?;
        *self.idle() = Some(sender);
        Ok(bytes)
    }

    async fn collect(&self, response: Response<Incoming>, limit: usize) -> Result<Bytes> {
        match Limited::new(response.into_body(), limit).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) => Err(match error.downcast::<hyper::Error>() {
                Ok(error) => connect::broken(&self.config.address, &*error),
                Err(_) => self.nonsense(format_args!("it is larger than {limit} bytes")),
            }),
        }
    }

    /// Makes an error of an answer that is not a success.
    async fn problem(&self, pending: Pending) -> ClientError {
        let status = pending.response.status();
        let bytes = match self.collect(pending.response, MAX_PROBLEM).await {
            Ok(bytes) => bytes,
            Err(error) => return error,
        };
        *self.idle() = Some(pending.sender);
        if let Ok(problem) = serde_json::from_slice::<Problem>(&bytes) {
            return ClientError::Problem(Box::new(problem));
        }
        // Something in between, or a daemon of another version: keep what it said.
        let code = match status.as_u16() {
            401 => ErrorCode::Unauthenticated,
            403 => ErrorCode::Denied,
            404 => ErrorCode::Unsupported,
            409 | 412 => ErrorCode::Conflict,
            413 => ErrorCode::TooLarge,
            504 => ErrorCode::Timeout,
            400..=499 => ErrorCode::Invalid,
            _ => ErrorCode::Internal,
        };
        let text: String = String::from_utf8_lossy(&bytes)
            .trim()
            .chars()
            .take(500)
            .collect();
        let detail = if text.is_empty() {
            format!("the daemon answered {status} without saying why")
        } else {
            format!("the daemon answered {status}: {text}")
        };
        let mut problem = Problem::new(code, detail).hint(
            "check with `berth version` that the daemon and this command are of the same version",
        );
        problem.status = status.as_u16();
        ClientError::Problem(Box::new(problem))
    }

    /// The error for an answer that cannot be understood.
    pub(super) fn nonsense(&self, what: impl std::fmt::Display) -> ClientError {
        ClientError::Protocol {
            address: self.config.address.to_string(),
            what: what.to_string(),
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
