//! Writing to a registry: blobs (present, mounted, whole or in pieces) and manifests.

use std::{ops::Range, path::Path};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE},
};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{
    Registries, RegistryError,
    client::{Ask, TRIES, Target, authority, cancellable, pause},
    endpoint,
};
use crate::{digest::Digest, job::Job, manifest::Descriptor, reference::Reference};

/// Blobs up to this length are sent in one request, longer ones in pieces of it: what a broken
/// connection can cost.
const PIECE: u64 = 8 << 20;

/// How a blob got to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Present,
    Mounted,
    Uploaded,
}

impl Registries {
    /// The place to push a reference to; `others` are repositories of the same registry that blobs
    /// may be mounted from.
    pub(crate) fn destination(&self, reference: &Reference, others: &[String]) -> Target {
        let endpoint = endpoint::for_push(reference, &self.inner.config);
        let repository = endpoint.repository(reference.repository());
        let mut scope = format!("repository:{repository}:pull,push");
        for other in others {
            scope.push_str(&format!(" repository:{other}:pull"));
        }
        Target {
            endpoint,
            repository,
            scope,
        }
    }

    /// Makes sure a blob is in the repository.
    pub(crate) async fn put_blob(
        &self,
        target: &Target,
        blob: &Descriptor,
        file: &Path,
        mount_from: Option<&str>,
        progress: impl Fn(u64),
        job: &Job,
    ) -> Result<Sent, RegistryError> {
        let what = format!("blob {}", blob.digest);
        let url = self
            .inner
            .url(target, &format!("blobs/{}", blob.digest), job)
            .await?;
        let fine = [StatusCode::OK, StatusCode::NOT_FOUND];
        let head = self
            .inner
            .send(
                target,
                Ask::new(Method::HEAD, &url, &fine, &what),
                |request| request,
                job,
            )
            .await?;
        if head.status() == StatusCode::OK {
            return Ok(Sent::Present);
        }
        let mut url = self.inner.url(target, "blobs/uploads/", job).await?;
        if let Some(from) = mount_from {
            url.query_pairs_mut()
                .append_pair("mount", &blob.digest.to_string())
                .append_pair("from", from);
        }
        let mut tries = 1;
        loop {
            let begin = |request: RequestBuilder| request.header(CONTENT_LENGTH, 0);
            let fine = [StatusCode::ACCEPTED, StatusCode::CREATED];
            let response = self
                .inner
                .send(
                    target,
                    Ask::new(Method::POST, &url, &fine, &what),
                    begin,
                    job,
                )
                .await?;
            if response.status() == StatusCode::CREATED {
                return Ok(Sent::Mounted);
            }
            let location = location(target, &url, &response, &what)?;
            match self
                .upload(target, blob, file, location, &progress, job)
                .await
            {
                Ok(()) => return Ok(Sent::Uploaded),
                // The upload is gone or confused; a new one may do.
                Err(RegistryError::NotFound { .. } | RegistryError::Status { status: 416, .. })
                    if tries < TRIES =>
                {
                    job.note(format!(
                        "{}: starting layer {} again",
                        target.registry(),
                        blob.digest.short()
                    ));
                    pause(tries, None, job).await?;
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn upload(
        &self,
        target: &Target,
        blob: &Descriptor,
        file: &Path,
        mut location: Url,
        progress: &impl Fn(u64),
        job: &Job,
    ) -> Result<(), RegistryError> {
        let what = format!("blob {}", blob.digest);
        let mut offset = 0;
        while blob.size > PIECE && offset < blob.size {
            let length = PIECE.min(blob.size - offset);
            (location, offset) = self
                .piece(target, blob, file, &location, offset..offset + length, job)
                .await?;
            progress(offset);
        }
        let rest = blob.size - offset;
        let body = part(blob, file, offset, rest, job).await?;
        location
            .query_pairs_mut()
            .append_pair("digest", &blob.digest.to_string());
        let put = |request: RequestBuilder| {
            let request = request.header(CONTENT_LENGTH, rest);
            request
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(body.clone())
        };
        self.inner
            .send(
                target,
                Ask::new(Method::PUT, &location, &[StatusCode::CREATED], &what),
                put,
                job,
            )
            .await?;
        progress(blob.size);
        Ok(())
    }

    /// Sends one piece; when that fails, asks how much arrived. Answers where to go on.
    async fn piece(
        &self,
        target: &Target,
        blob: &Descriptor,
        file: &Path,
        location: &Url,
        range: Range<u64>,
        job: &Job,
    ) -> Result<(Url, u64), RegistryError> {
        let (offset, length) = (range.start, range.end - range.start);
        let what = format!("blob {}", blob.digest);
        let body = part(blob, file, offset, length, job).await?;
        let patch = |request: RequestBuilder| {
            request
                .header(CONTENT_LENGTH, length)
                .header(CONTENT_RANGE, format!("{offset}-{}", offset + length - 1))
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(body.clone())
        };
        let fine = [StatusCode::ACCEPTED, StatusCode::NO_CONTENT];
        match self
            .inner
            .send(
                target,
                Ask::new(Method::PATCH, location, &fine, &what),
                patch,
                job,
            )
            .await
        {
            Ok(response) => Ok((
                self::location(target, location, &response, &what)?,
                offset + length,
            )),
            // The retry of a piece that had arrived after all is out of order; so is one that half arrived.
            Err(RegistryError::Status { status: 416, .. } | RegistryError::Unreachable { .. }) => {
                let fine = [StatusCode::NO_CONTENT, StatusCode::ACCEPTED];
                let sent = self.inner.send(
                    target,
                    Ask::new(Method::GET, location, &fine, &what),
                    |request| request,
                    job,
                );
                let response = sent.await?;
                let arrived =
                    received(&response).filter(|arrived| (offset..=blob.size).contains(arrived));
                let arrived = arrived.ok_or_else(|| RegistryError::Transfer {
                    registry: target.registry().to_owned(),
                    what: blob.digest,
                    offset,
                    size: blob.size,
                    reason: "the registry lost the upload".into(),
                })?;
                Ok((self::location(target, location, &response, &what)?, arrived))
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a manifest under a tag or its digest; answers the registry's digest for it.
    pub(crate) async fn put_manifest(
        &self,
        target: &Target,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
        job: &Job,
    ) -> Result<Digest, RegistryError> {
        let what = format!("{}:{reference}", target.repository);
        let url = self
            .inner
            .url(target, &format!("manifests/{reference}"), job)
            .await?;
        let put = |request: RequestBuilder| {
            request
                .header(CONTENT_TYPE, media_type)
                .body(bytes.to_vec())
        };
        let fine = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
        let response = self
            .inner
            .send(target, Ask::new(Method::PUT, &url, &fine, &what), put, job)
            .await?;
        let ours = Digest::of(bytes);
        let header = response
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok());
        match header.and_then(|text| text.parse::<Digest>().ok()) {
            Some(found) if found != ours => Err(RegistryError::Digest {
                registry: target.registry().to_owned(),
                what,
                expected: ours,
                found,
            }),
            _ => Ok(ours),
        }
    }
}

/// A piece of a file in memory: bounded, and can be sent again.
async fn part(
    blob: &Descriptor,
    file: &Path,
    offset: u64,
    length: u64,
    job: &Job,
) -> Result<bytes::Bytes, RegistryError> {
    let read = async {
        let mut file = tokio::fs::File::open(file).await?;
        file.seek(std::io::SeekFrom::Start(offset)).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        file.take(length).read_to_end(&mut bytes).await?;
        if bytes.len() as u64 == length {
            Ok(bytes)
        } else {
            Err(std::io::ErrorKind::UnexpectedEof.into())
        }
    };
    let bytes = cancellable(job, read).await?;
    bytes
        .map(bytes::Bytes::from)
        .map_err(|source| RegistryError::Read {
            what: blob.digest,
            source,
        })
}

/// Where the registry wants the next part.
fn location(
    target: &Target,
    base: &Url,
    response: &Response,
    what: &str,
) -> Result<Url, RegistryError> {
    let protocol = |reason: &str| RegistryError::Protocol {
        registry: target.registry().to_owned(),
        what: what.to_owned(),
        reason: reason.to_owned(),
    };
    let text = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let url = base
        .join(text.ok_or_else(|| protocol("no Location"))?)
        .map_err(|_| protocol("a Location that is no URL"))?;
    let same = authority(&url) == target.endpoint.authority;
    // Elsewhere only with TLS; at the registry itself as we reached it.
    if url.scheme() == "https" || (same && url.scheme() == base.scheme()) {
        Ok(url)
    } else {
        Err(protocol("a Location without TLS"))
    }
}

/// How many bytes have arrived: one more than the end in `Range: 0-1023`.
fn received(response: &Response) -> Option<u64> {
    let text = response.headers().get(RANGE)?.to_str().ok()?;
    let end: u64 = text
        .trim_start_matches("bytes=")
        .split_once('-')?
        .1
        .parse()
        .ok()?;
    end.checked_add(1)
}
