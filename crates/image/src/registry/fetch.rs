//! Reading from a registry: manifests, small blobs, and layers as resumable streams.

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, CONTENT_RANGE, RANGE},
};
use tokio::sync::mpsc;

use super::{
    Registries, RegistryError,
    client::{self, Ask, Target, cancellable, chain, pause},
    endpoint,
};
use crate::{
    digest::Digest,
    job::Job,
    manifest::{Descriptor, media},
    reference::Reference,
};

impl Registries {
    /// The places a reference can be pulled from, mirrors first.
    pub(crate) fn sources(&self, reference: &Reference) -> Vec<Target> {
        let endpoints = endpoint::for_pull(reference, &self.inner.config).into_iter();
        endpoints
            .map(|endpoint| {
                let repository = endpoint.repository(reference.repository());
                let scope = format!("repository:{repository}:pull");
                Target {
                    endpoint,
                    repository,
                    scope,
                }
            })
            .collect()
    }

    /// A manifest or index by tag or digest; a digest is verified.
    pub(crate) async fn manifest(
        &self,
        target: &Target,
        reference: &str,
        expected: Option<Digest>,
        limit: u64,
        job: &Job,
    ) -> Result<Bytes, RegistryError> {
        let what = format!("{}:{reference}", target.repository);
        let url = self
            .inner
            .url(target, &format!("manifests/{reference}"), job)
            .await?;
        let accept = |request: reqwest::RequestBuilder| request.header(ACCEPT, media::ACCEPT);
        let sent = self.inner.send(
            target,
            Ask::new(Method::GET, &url, &[StatusCode::OK], &what),
            accept,
            job,
        );
        let bytes = self
            .inner
            .read(target, sent.await?, limit, &what, job)
            .await?;
        verify(target, &what, &bytes, expected)?;
        Ok(bytes)
    }

    /// A small blob, verified.
    pub(crate) async fn small_blob(
        &self,
        target: &Target,
        blob: &Descriptor,
        limit: u64,
        job: &Job,
    ) -> Result<Bytes, RegistryError> {
        let what = format!("blob {}", blob.digest);
        let url = self
            .inner
            .url(target, &format!("blobs/{}", blob.digest), job)
            .await?;
        let sent = self.inner.send(
            target,
            Ask::new(Method::GET, &url, &[StatusCode::OK], &what),
            |request| request,
            job,
        );
        let bytes = self
            .inner
            .read(target, sent.await?, limit, &what, job)
            .await?;
        verify(target, &what, &bytes, Some(blob.digest))?;
        Ok(bytes)
    }

    /// Streams a blob from byte `offset` on into `out`, going on where a broken connection left off.
    /// `progress` is told the bytes so far. Returns early when the receiver is gone; the receiver verifies.
    pub(crate) async fn stream_blob<E>(
        &self,
        target: &Target,
        blob: &Descriptor,
        mut offset: u64,
        out: &mpsc::Sender<Result<Bytes, E>>,
        progress: impl Fn(u64),
        job: &Job,
    ) -> Result<(), RegistryError> {
        if offset > 0 && offset == blob.size {
            // All of it is there, which no range can say.
            return Ok(());
        }
        let mut tries = 1;
        loop {
            let before = offset;
            let reason = match self
                .stream_from(target, blob, &mut offset, out, &progress, job)
                .await?
            {
                End::Complete | End::Unwanted => return Ok(()),
                End::Broken(reason) => reason,
            };
            // A connection that brought something has earned fresh tries.
            tries = if offset > before { 1 } else { tries + 1 };
            if tries > client::TRIES {
                return Err(RegistryError::Transfer {
                    registry: target.registry().to_owned(),
                    what: blob.digest,
                    offset,
                    size: blob.size,
                    reason,
                });
            }
            job.note(format!(
                "{}: layer {} broke off at byte {offset} of {} ({reason}); resuming",
                target.registry(),
                blob.digest.short(),
                blob.size
            ));
            pause(tries, None, job).await?;
        }
    }

    async fn stream_from<E>(
        &self,
        target: &Target,
        blob: &Descriptor,
        offset: &mut u64,
        out: &mpsc::Sender<Result<Bytes, E>>,
        progress: &impl Fn(u64),
        job: &Job,
    ) -> Result<End, RegistryError> {
        let what = format!("blob {}", blob.digest);
        let url = self
            .inner
            .url(target, &format!("blobs/{}", blob.digest), job)
            .await?;
        let start = *offset;
        let range = |request: reqwest::RequestBuilder| match start {
            0 => request,
            _ => request.header(RANGE, format!("bytes={start}-")),
        };
        let fine = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let mut response = self
            .inner
            .send(
                target,
                Ask::new(Method::GET, &url, &fine, &what),
                range,
                job,
            )
            .await?;
        // A server that ignores ranges sends everything again.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(start) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(RegistryError::Protocol {
                    registry: target.registry().to_owned(),
                    what,
                    reason: "another range than asked for".into(),
                });
            }
            _ => start,
        };
        loop {
            let mut chunk = match cancellable(job, response.chunk()).await? {
                Ok(Some(chunk)) => chunk,
                Ok(None) if *offset >= blob.size => return Ok(End::Complete),
                Ok(None) => return Ok(End::Broken("the connection ended early".into())),
                Err(error) => return Ok(End::Broken(chain(&error))),
            };
            let skipped = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            skip -= skipped as u64;
            let chunk = chunk.split_off(skipped);
            if chunk.is_empty() {
                continue;
            }
            *offset += chunk.len() as u64;
            if cancellable(job, out.send(Ok(chunk))).await?.is_err() {
                return Ok(End::Unwanted);
            }
            progress(*offset);
        }
    }
}

/// How a connection ended.
enum End {
    Complete,
    /// The receiver has gone; it knows why.
    Unwanted,
    Broken(String),
}

/// The first byte of `Content-Range: bytes 5-9/10`.
fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}

fn verify(
    target: &Target,
    what: &str,
    bytes: &[u8],
    expected: Option<Digest>,
) -> Result<(), RegistryError> {
    let found = Digest::of(bytes);
    match expected {
        Some(expected) if expected != found => Err(RegistryError::Digest {
            registry: target.registry().to_owned(),
            what: what.to_owned(),
            expected,
            found,
        }),
        _ => Ok(()),
    }
}
