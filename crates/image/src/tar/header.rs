//! The 512-byte header block: fields in, fields out.

use super::BLOCK;

/// Type characters.
pub(super) mod flag {
    pub(crate) const FILE: u8 = b'0';
    pub(crate) const HARD_LINK: u8 = b'1';
    pub(crate) const SYMLINK: u8 = b'2';
    pub(crate) const CHAR: u8 = b'3';
    pub(crate) const BLOCK: u8 = b'4';
    pub(crate) const DIRECTORY: u8 = b'5';
    pub(crate) const FIFO: u8 = b'6';
    pub(crate) const CONTIGUOUS: u8 = b'7';
    pub(crate) const PAX: u8 = b'x';
    pub(crate) const PAX_SOLARIS: u8 = b'X';
    pub(crate) const PAX_GLOBAL: u8 = b'g';
    pub(crate) const GNU_LONG_NAME: u8 = b'L';
    pub(crate) const GNU_LONG_LINK: u8 = b'K';
    pub(crate) const GNU_SPARSE: u8 = b'S';
    pub(crate) const GNU_VOLUME: u8 = b'V';
}

/// A header block with its fields by name.
pub(super) struct Header(pub(super) [u8; BLOCK]);

impl Header {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// The checksum as POSIX defines it, or as old programs with signed characters computed it.
    pub(super) fn checksum_ok(&self) -> bool {
        let Some(stored) = number(&self.0[148..156]) else {
            return false;
        };
        let field = |i: usize| (148..156).contains(&i);
        let bytes = || {
            self.0
                .iter()
                .enumerate()
                .map(|(i, &b)| if field(i) { b' ' } else { b })
        };
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
        stored == unsigned || stored == signed
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if self.is_star() {
            text(&self.0[345..476])
        } else if &self.0[257..263] == b"ustar\0" {
            text(&self.0[345..500])
        } else {
            &[]
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Option<i64> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Option<i64> {
        number(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Option<i64> {
        number(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    /// Device numbers; absent in pre-POSIX headers.
    pub(super) fn device(&self) -> Option<(i64, i64)> {
        Some((number(&self.0[329..337])?, number(&self.0[337..345])?))
    }

    fn is_star(&self) -> bool {
        &self.0[257..263] == b"ustar\0" && &self.0[508..512] == b"tar\0"
    }
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal text or GNU's base-256; `None` when neither or out of range. An empty field is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement, big endian; the top bit is the marker, the next one the sign.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, &byte) in field.iter().enumerate() {
            let byte = match i {
                0 if negative => byte | 0x80,
                0 => byte & 0x7f,
                _ => byte,
            };
            value = (value << 8) | i128::from(byte);
            i64::try_from(value).ok()?;
        }
        return i64::try_from(value).ok();
    }
    let digits = text(field).trim_ascii();
    let mut value: i64 = 0;
    for &digit in digits {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}
