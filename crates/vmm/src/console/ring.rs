//! The end of what was put out, for who attaches later.

use std::collections::VecDeque;

/// The last bytes of a stream, at most as many as it was made for.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Ring {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
        }
    }

    pub(super) fn push(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(self.limit)..];
        let over = (self.bytes.len() + data.len()).saturating_sub(self.limit);
        self.bytes.drain(..over);
        self.bytes.extend(data);
    }

    pub(super) fn contents(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_however_they_came() {
        let mut ring = Ring::new(4);
        ring.push(b"ab");
        assert_eq!(ring.contents(), b"ab");
        ring.push(b"cde");
        assert_eq!(ring.contents(), b"bcde");
        ring.push(b"0123456789");
        assert_eq!(ring.contents(), b"6789");
        ring.push(b"");
        assert_eq!(ring.contents(), b"6789");
    }
}
