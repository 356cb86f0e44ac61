//! Frames: a kind, a length, bytes.
//!
//! ```text
//!   byte 0      kind
//!   bytes 1..5  length of the payload, little endian
//!   then        payload
//! ```
//! Pure and incremental: a [`Decoder`] is pushed bytes as they come and gives out whole frames, keeping
//! only what was pushed and not yet given. Used by both halves; the length is checked against the kind's limit before anything is
//! kept.

/// Bytes before a frame's payload.
pub const HEADER_BYTES: usize = 5;

/// Most bytes of a control message.
pub const MAX_CONTROL_BYTES: usize = 1 << 20;

/// Most bytes of a frame of any other kind.
pub const MAX_DATA_BYTES: usize = 64 << 10;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A JSON message.
    Control,
    /// Bytes for a program's standard input; empty for its end.
    Stdin,
    /// Bytes of a program's standard output or terminal.
    Stdout,
    /// Bytes of a program's standard error.
    Stderr,
    /// Bytes of a tar stream; empty for its end.
    Data,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Control,
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::Data,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Stdin => 2,
            Self::Stdout => 3,
            Self::Stderr => 4,
            Self::Data => 5,
        }
    }

    fn from_code(code: u8) -> Result<Self, FrameError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.code() == code)
            .ok_or(FrameError::Kind(code))
    }

    /// Most bytes that a payload of this kind may have.
    #[must_use]
    pub const fn limit(self) -> usize {
        match self {
            Self::Control => MAX_CONTROL_BYTES,
            _ => MAX_DATA_BYTES,
        }
    }
}

/// A whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Bytes are no frame, or a frame no message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No frame begins with this byte.
    #[error("the other side does not speak the agent protocol: a frame of unknown kind {0}")]
    Kind(u8),
    /// A payload is longer than its kind may be.
    #[error("a frame of {length} bytes is longer than the {limit} allowed")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A control frame is not the message expected.
    #[error("a message of the agent protocol cannot be read")]
    Json(#[source] serde_json::Error),
}

/// Appends a frame to `output`.
///
/// # Errors
/// [`FrameError::TooLong`]; nothing is appended then.
pub fn encode(kind: Kind, payload: &[u8], output: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = check(kind, payload.len())?;
    output.push(kind.code());
    output.extend_from_slice(&length.to_le_bytes());
    output.extend_from_slice(payload);
    Ok(())
}

fn check(kind: Kind, length: usize) -> Result<u32, FrameError> {
    let limit = kind.limit();
    match u32::try_from(length) {
        Ok(short) if length <= limit => Ok(short),
        _ => Err(FrameError::TooLong { length, limit }),
    }
}

/// Reads the header of a frame: its kind and the length of its payload, checked.
///
/// # Errors
/// [`FrameError::Kind`], [`FrameError::TooLong`].
pub fn decode_header(header: [u8; HEADER_BYTES]) -> Result<(Kind, usize), FrameError> {
    let [code, a, b, c, d] = header;
    let kind = Kind::from_code(code)?;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    check(kind, length)?;
    Ok((kind, length))
}

/// Takes bytes in pieces of any size, gives frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` already given out.
    taken: usize,
}

impl Decoder {
    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until more bytes come.
    ///
    /// # Errors
    /// [`FrameError::Kind`], [`FrameError::TooLong`]: the stream is of no further use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.taken..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let (kind, length) = decode_header(*header)?;
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.taken += HEADER_BYTES + length;
        Ok(Some(Frame { kind, payload }))
    }

    /// Whether the stream may end here without cutting a frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken == self.buffer.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_longer_than_its_kind_may_be_is_refused_before_its_bytes_come() {
        let mut decoder = Decoder::default();
        let length = u32::try_from(MAX_DATA_BYTES + 1).unwrap();
        decoder.push(&[Kind::Stdout.code()]);
        decoder.push(&length.to_le_bytes());
        assert!(matches!(
            decoder.next_frame(),
            Err(FrameError::TooLong { .. })
        ));
        let long = vec![0; MAX_DATA_BYTES + 1];
        assert!(encode(Kind::Data, &long, &mut Vec::new()).is_err());
        assert!(encode(Kind::Control, &long, &mut Vec::new()).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_cut(
            frames in prop::collection::vec(
                (0usize..5, prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            cuts in prop::collection::vec(1usize..400, 1..50),
        ) {
            let frames: Vec<Frame> = frames
                .into_iter()
                .map(|(kind, payload)| Frame { kind: Kind::ALL[kind], payload })
                .collect();
            let mut bytes = Vec::new();
            for frame in &frames {
                encode(frame.kind, &frame.payload, &mut bytes).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                rest = more;
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    found.push(frame);
                }
            }
            prop_assert_eq!(found, frames);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            crate::fuzzing::frames(&bytes);
        }
    }
}
