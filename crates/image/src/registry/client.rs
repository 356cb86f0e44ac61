//! Sending requests: scheme, authentication, retries, bounded answers.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::Engine as _;
use bytes::Bytes;
use reqwest::{
    Certificate, Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
    redirect,
};
use serde::Deserialize;

use super::{
    RegistryConfig, RegistryError,
    challenge::{self, Challenge},
    credentials::Credential,
    endpoint::{self, Endpoint},
};
use crate::job::{Cancelled, Job};

/// Tries of one request, the first included.
pub(super) const TRIES: u32 = 5;
/// First pause between tries; doubles each time.
const BACK_OFF: Duration = Duration::from_millis(200);
/// Longest pause that a registry may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Silence after which a connection counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_TOKEN_ANSWER: u64 = 1 << 20;
const MAX_ERROR_ANSWER: u64 = 64 << 10;
const MAX_REDIRECTS: usize = 5;
/// Lifetime of a token that does not say it (distribution specification).
const DEFAULT_TOKEN_SECONDS: u64 = 60;

/// The shared part of [`super::Registries`].
pub(super) struct Client {
    pub(super) config: RegistryConfig,
    proxied: reqwest::Client,
    /// For loopback, which no proxy can reach.
    direct: reqwest::Client,
    /// By authority.
    schemes: Mutex<HashMap<String, &'static str>>,
    /// By authority and scope.
    tokens: Mutex<HashMap<(String, String), Token>>,
}

struct Token {
    header: HeaderValue,
    until: Option<Instant>,
}

/// What to ask, and which answers are fine; others become errors.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) url: &'a Url,
    pub(super) fine: &'a [StatusCode],
    /// For messages.
    pub(super) what: &'a str,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, url: &'a Url, fine: &'a [StatusCode], what: &'a str) -> Self {
        Self {
            method,
            url,
            fine,
            what,
        }
    }
}

/// A repository at an endpoint, and what may be done there.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) repository: String,
    /// Token scopes, divided by spaces.
    pub(super) scope: String,
}

impl Target {
    /// The registry's name, for messages.
    pub(crate) fn registry(&self) -> &str {
        &self.endpoint.name
    }
}

impl Client {
    pub(super) fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        let mut authorities = Vec::new();
        for path in &config.ca_files {
            let bad = |reason: String| RegistryError::Certificates {
                path: path.clone(),
                reason,
            };
            let pem = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
            authorities.extend(
                Certificate::from_pem_bundle(&pem).map_err(|error| bad(error.to_string()))?,
            );
        }
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .redirect(redirect::Policy::custom(follow))
                .tls_certs_merge(authorities.clone())
        };
        let setup = |error: reqwest::Error| RegistryError::Setup {
            reason: chain(&error),
        };
        Ok(Self {
            proxied: builder().build().map_err(setup)?,
            direct: builder().no_proxy().build().map_err(setup)?,
            config,
            schemes: Mutex::default(),
            tokens: Mutex::default(),
        })
    }

    fn http(&self, endpoint: &Endpoint) -> &reqwest::Client {
        if endpoint.loopback {
            &self.direct
        } else {
            &self.proxied
        }
    }

    /// The URL of a resource below the target's repository.
    pub(super) async fn url(
        &self,
        target: &Target,
        tail: &str,
        job: &Job,
    ) -> Result<Url, RegistryError> {
        self.url_of(target, &format!("{}/{tail}", target.repository), job)
            .await
    }

    /// The URL that says which version of the protocol is spoken.
    pub(super) async fn base(&self, target: &Target, job: &Job) -> Result<Url, RegistryError> {
        self.url_of(target, "", job).await
    }

    async fn url_of(&self, target: &Target, path: &str, job: &Job) -> Result<Url, RegistryError> {
        let scheme = self.scheme(&target.endpoint, job).await?;
        let text = format!("{scheme}://{}/v2/{path}", target.endpoint.authority);
        text.parse().map_err(|_| RegistryError::Protocol {
            registry: target.registry().to_owned(),
            what: path.to_owned(),
            reason: format!("{text:?} is not a URL"),
        })
    }

    /// TLS unless it is not spoken there and plain HTTP is allowed.
    async fn scheme(&self, endpoint: &Endpoint, job: &Job) -> Result<&'static str, RegistryError> {
        if !endpoint.plain_allowed {
            return Ok("https");
        }
        if let Some(scheme) = lock(&self.schemes).get(&endpoint.authority) {
            return Ok(scheme);
        }
        let mut last = None;
        for scheme in ["https", "http"] {
            let ping = self
                .http(endpoint)
                .get(format!("{scheme}://{}/v2/", endpoint.authority))
                .send();
            match cancellable(job, ping).await? {
                Ok(_) => {
                    lock(&self.schemes).insert(endpoint.authority.clone(), scheme);
                    return Ok(scheme);
                }
                Err(error) => last = Some(error),
            }
        }
        let source = last.expect("two tries leave an error");
        Err(RegistryError::Unreachable {
            registry: endpoint.name.clone(),
            source,
        })
    }

    /// Sends a request until it gets a final answer; `prepare` adds headers and body each time.
    pub(super) async fn send(
        &self,
        target: &Target,
        ask: Ask<'_>,
        prepare: impl Fn(RequestBuilder) -> RequestBuilder,
        job: &Job,
    ) -> Result<Response, RegistryError> {
        let mut tries = 1;
        let mut challenged = false;
        loop {
            let mut request = prepare(
                self.http(&target.endpoint)
                    .request(ask.method.clone(), ask.url.clone()),
            );
            // An upload may go to another server, which is not told our secrets.
            let ours = authority(ask.url) == target.endpoint.authority;
            if ours && let Some(header) = self.cached_token(target) {
                request = request.header(AUTHORIZATION, header);
            }
            let failure = match cancellable(job, request.send()).await? {
                Ok(response) if ask.fine.contains(&response.status()) => return Ok(response),
                Ok(response)
                    if response.status() == StatusCode::UNAUTHORIZED && ours && !challenged =>
                {
                    challenged = true;
                    self.authenticate(target, &response, job).await?;
                    continue;
                }
                Ok(response) if is_transient(response.status()) && tries < TRIES => {
                    let asked = response
                        .headers()
                        .get(RETRY_AFTER)
                        .and_then(|value| value.to_str().ok());
                    let asked = asked
                        .and_then(|text| text.parse().ok())
                        .map(Duration::from_secs);
                    (format!("answered {}", response.status()), asked)
                }
                Ok(response) => return Err(refusal(target, response, ask.what).await),
                Err(error) if tries < TRIES && !error.is_builder() && !error.is_redirect() => {
                    (chain(&error), None)
                }
                Err(source) => {
                    return Err(RegistryError::Unreachable {
                        registry: target.registry().to_owned(),
                        source,
                    });
                }
            };
            let (reason, asked) = failure;
            job.note(format!("{}: {reason}; trying again", target.registry()));
            pause(tries, asked, job).await?;
            tries += 1;
        }
    }

    /// Reads an answer of at most `limit` bytes.
    pub(super) async fn read(
        &self,
        target: &Target,
        response: Response,
        limit: u64,
        what: &str,
        job: &Job,
    ) -> Result<Bytes, RegistryError> {
        match cancellable(job, read_limited(response, limit)).await? {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(RegistryError::Protocol {
                registry: target.registry().to_owned(),
                what: what.to_owned(),
                reason: format!("more than {limit} bytes"),
            }),
            Err(source) => Err(RegistryError::Unreachable {
                registry: target.registry().to_owned(),
                source,
            }),
        }
    }

    /// Forgets what a registry, by the name credentials are filed under, has granted.
    pub(super) fn forget_tokens(&self, registry: &str) {
        let authority = endpoint::of_registry(registry, &self.config).authority;
        lock(&self.tokens).retain(|(known, _), _| *known != authority);
    }

    fn cached_token(&self, target: &Target) -> Option<HeaderValue> {
        let tokens = lock(&self.tokens);
        let token = tokens.get(&(target.endpoint.authority.clone(), target.scope.clone()))?;
        token
            .until
            .is_none_or(|until| Instant::now() < until)
            .then(|| token.header.clone())
    }

    /// Answers a challenge: gets what the next try sends.
    async fn authenticate(
        &self,
        target: &Target,
        response: &Response,
        job: &Job,
    ) -> Result<(), RegistryError> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<Challenge> = headers
            .filter_map(|header| header.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let credential = self
            .config
            .credentials
            .find(&target.endpoint.name, &target.repository)?;
        let bearer = challenges
            .iter()
            .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let token = match (bearer, credential) {
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                credential,
            ) => {
                let scope = if target.scope.is_empty() {
                    scope.as_deref().unwrap_or_default()
                } else {
                    &target.scope
                };
                self.fetch_token(target, realm, service.as_deref(), scope, credential, job)
                    .await?
            }
            (_, Some(Credential::Basic { username, password }))
                if challenges.contains(&Challenge::Basic) =>
            {
                Token {
                    header: basic(&username, &password),
                    until: None,
                }
            }
            _ => {
                return Err(RegistryError::Denied {
                    registry: target.registry().to_owned(),
                    repository: target.repository.clone(),
                    message: "it asks for a login".into(),
                });
            }
        };
        let key = (target.endpoint.authority.clone(), target.scope.clone());
        lock(&self.tokens).insert(key, token);
        Ok(())
    }

    async fn fetch_token(
        &self,
        target: &Target,
        realm: &str,
        service: Option<&str>,
        scopes: &str,
        credential: Option<Credential>,
        job: &Job,
    ) -> Result<Token, RegistryError> {
        let protocol = |reason: String| RegistryError::Protocol {
            registry: target.registry().to_owned(),
            what: "the login".into(),
            reason,
        };
        let mut url: Url = realm
            .parse()
            .map_err(|_| protocol("its token server is not a URL".into()))?;
        // Secrets do not leave in the clear because a header says so.
        let plain = url.scheme() == "http" && target.endpoint.plain_allowed;
        if url.scheme() != "https" && !plain {
            return Err(protocol("its token server does not use https".into()));
        }
        let http = self.http(&target.endpoint);
        let request = match &credential {
            Some(Credential::RefreshToken(token)) => {
                let mut form = url::Pairs::default();
                form.add("grant_type", "refresh_token")
                    .add("refresh_token", token);
                form.add("service", service.unwrap_or_default())
                    .add("scope", scopes)
                    .add("client_id", "berth");
                http.post(url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form.finish())
            }
            other => {
                {
                    let mut query = url.query_pairs_mut();
                    if let Some(service) = service {
                        query.append_pair("service", service);
                    }
                    for scope in scopes.split(' ').filter(|scope| !scope.is_empty()) {
                        query.append_pair("scope", scope);
                    }
                }
                let request = http.get(url);
                match other {
                    Some(Credential::Basic { username, password }) => {
                        request.header(AUTHORIZATION, basic(username, password))
                    }
                    _ => request,
                }
            }
        };
        let unreachable = |source| RegistryError::Unreachable {
            registry: format!("{}'s token server", target.registry()),
            source,
        };
        let response = cancellable(job, request.send())
            .await?
            .map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(refusal(target, response, "the login").await);
        }
        let bytes = self
            .read(target, response, MAX_TOKEN_ANSWER, "the login", job)
            .await?;
        parse_token(&bytes).ok_or_else(|| protocol("its token server sent no token".into()))
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

fn parse_token(bytes: &[u8]) -> Option<Token> {
    let answer: TokenAnswer = serde_json::from_slice(bytes).ok()?;
    let token = answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())?;
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    let seconds = answer
        .expires_in
        .unwrap_or(DEFAULT_TOKEN_SECONDS)
        .clamp(10, 86_400);
    // A little early, so that it does not run out on its way.
    Some(Token {
        header,
        until: Some(Instant::now() + Duration::from_secs(seconds) * 9 / 10),
    })
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    let mut header =
        HeaderValue::from_str(&format!("Basic {text}")).expect("base64 is a header value");
    header.set_sensitive(true);
    header
}

/// Redirects are followed (blobs often live elsewhere), but never from TLS to plain HTTP.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let downgrade = attempt
        .previous()
        .last()
        .is_some_and(|url| url.scheme() == "https")
        && attempt.url().scheme() != "https";
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("too many redirects")
    } else if downgrade {
        attempt.error("redirected from https to plain http")
    } else {
        attempt.follow()
    }
}

/// `host[:port]` of a URL.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Turns a refusal into an error with what the registry says about it.
pub(super) async fn refusal(target: &Target, response: Response, what: &str) -> RegistryError {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Detail>,
    }
    #[derive(Deserialize)]
    struct Detail {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let body = read_limited(response, MAX_ERROR_ANSWER)
        .await
        .ok()
        .flatten()
        .unwrap_or_default();
    let answer: Option<Answer> = serde_json::from_slice(&body).ok();
    let message = answer
        .and_then(|answer| answer.errors.into_iter().next())
        .map(|detail| {
            let text = format!("{} {}", detail.code, detail.message);
            // Printed on a terminal: no control characters, no essays.
            text.trim()
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect::<String>()
        });
    let message = message.unwrap_or_default();
    let registry = target.registry().to_owned();
    match status.as_u16() {
        401 | 403 => RegistryError::Denied {
            registry,
            repository: target.repository.clone(),
            message,
        },
        404 => RegistryError::NotFound {
            registry,
            what: what.to_owned(),
        },
        status => RegistryError::Status {
            registry,
            status,
            what: what.to_owned(),
            message,
        },
    }
}

async fn read_limited(mut response: Response, limit: u64) -> reqwest::Result<Option<Bytes>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes.into()))
}

/// Waits before the next try.
pub(super) async fn pause(tries: u32, asked: Option<Duration>, job: &Job) -> Result<(), Cancelled> {
    let time = asked
        .unwrap_or(BACK_OFF * 2u32.saturating_pow(tries - 1))
        .min(MAX_PAUSE);
    cancellable(job, tokio::time::sleep(time)).await
}

/// Waits for `work` or the cancellation, whichever is first.
pub(super) async fn cancellable<T>(
    job: &Job,
    work: impl Future<Output = T>,
) -> Result<T, Cancelled> {
    tokio::select! {
        biased;
        () = job.cancel_token().cancelled() => Err(Cancelled),
        result = work => Ok(result),
    }
}

/// An error with its causes: reqwest's own text leaves them out.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps are valid after any panic: each change is one insert.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Form encoding without another crate: `Url` already knows it.
mod url {
    use reqwest::Url;

    pub(super) struct Pairs(Url);

    impl Default for Pairs {
        fn default() -> Self {
            Self("http://form.invalid/".parse().expect("a constant URL"))
        }
    }

    impl Pairs {
        pub(super) fn add(&mut self, name: &str, value: &str) -> &mut Self {
            self.0.query_pairs_mut().append_pair(name, value);
            self
        }

        pub(super) fn finish(self) -> String {
            self.0.query().unwrap_or_default().to_owned()
        }
    }
}
