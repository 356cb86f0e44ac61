//! Answers that come bit by bit: bytes, and JSON documents one a line.

use std::{collections::VecDeque, marker::PhantomData};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{
    MAX_LINE,
    address::Address,
    connect,
    error::{ClientError, Result},
    request::{Pending, Sender},
};

/// Bytes as they come. Dropping it closes the connection.
#[derive(Debug)]
pub struct ByteStream {
    address: Address,
    body: Incoming,
    // The connection lives as long as this does.
    _sender: Sender,
}

impl ByteStream {
    pub(super) fn new(address: &Address, pending: Pending) -> Self {
        Self {
            address: address.clone(),
            body: pending.response.into_body(),
            _sender: pending.sender,
        }
    }

    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks before the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| connect::broken(&self.address, &error))?;
            // Trailers say nothing to us.
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Writes all that comes; gives the number of bytes.
    ///
    /// # Errors
    /// When the connection breaks, or writing fails.
    pub async fn copy_to(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> Result<u64> {
        let local = |source| ClientError::Local {
            what: "writing the output",
            source,
        };
        let mut total = 0;
        while let Some(bytes) = self.next().await? {
            writer.write_all(&bytes).await.map_err(local)?;
            // Logs are followed by people: nothing waits in a buffer.
            writer.flush().await.map_err(local)?;
            total += bytes.len() as u64;
        }
        Ok(total)
    }
}

/// Cuts bytes into lines of a limited length.
#[derive(Debug, Default)]
struct LineSplitter {
    partial: BytesMut,
    whole: VecDeque<Bytes>,
}

impl LineSplitter {
    /// Takes bytes in; `false` when a line is too long.
    fn push(&mut self, mut bytes: Bytes) -> bool {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let mut line = self.partial.split();
            line.extend_from_slice(&bytes[..end]);
            bytes.advance(end + 1);
            if line.len() > MAX_LINE {
                return false;
            }
            if !line.is_empty() {
                self.whole.push_back(line.freeze());
            }
        }
        self.partial.extend_from_slice(&bytes);
        self.partial.len() <= MAX_LINE
    }
}

/// Documents as they come. Dropping it closes the connection.
#[derive(Debug)]
pub struct Lines<T> {
    bytes: ByteStream,
    lines: LineSplitter,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(super) fn new(bytes: ByteStream) -> Self {
        Self {
            bytes,
            lines: LineSplitter::default(),
            of: PhantomData,
        }
    }

    /// The next document, or `None` at the end. Safe to cancel: nothing that came is lost.
    ///
    /// # Errors
    /// When the connection breaks, a line is too long, or not a document of the type.
    pub async fn next(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(line) = self.lines.whole.pop_front() {
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| self.nonsense(error.to_string()));
            }
            let Some(bytes) = self.bytes.next().await? else {
                return if self.lines.partial.is_empty() {
                    Ok(None)
                } else {
                    Err(self.nonsense("it ends in the middle of a line".into()))
                };
            };
            if !self.lines.push(bytes) {
                return Err(self.nonsense(format!("a line is longer than {MAX_LINE} bytes")));
            }
        }
    }

    fn nonsense(&self, what: String) -> ClientError {
        ClientError::Protocol {
            address: self.bytes.address.to_string(),
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_bytes_are_cut(
            lines in prop::collection::vec("[a-z{}\":]{0,20}", 0..20),
            cuts in prop::collection::vec(1usize..30, 1..50),
        ) {
            let text: Bytes = lines.iter().map(|line| format!("{line}\n")).collect::<String>().into();
            let mut splitter = LineSplitter::default();
            let mut rest = text;
            let mut cuts = cuts.into_iter().cycle();
            while !rest.is_empty() {
                let at = cuts.next().unwrap_or(1).min(rest.len());
                prop_assert!(splitter.push(rest.split_to(at)));
            }
            let found: Vec<_> = splitter.whole.iter().map(|line| line.to_vec()).collect();
            let wanted: Vec<_> = lines.iter().filter(|line| !line.is_empty()).map(|line| line.clone().into_bytes()).collect();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut splitter = LineSplitter::default();
        let part = Bytes::from(vec![b'x'; MAX_LINE / 2 + 1]);
        assert!(splitter.push(part.clone()));
        assert!(!splitter.push(part));
    }
}
