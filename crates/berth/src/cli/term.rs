//! The terminal: raw mode that is always given back, its size, and the keys that leave a session.

use std::{
    io::{self, Write as _},
    os::fd::AsFd,
};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};

/// Size of the terminal on stdin or stdout: rows, columns. A terminal that does not know its size
/// says 0; then the program inside is better off with its own idea.
pub fn size() -> Option<(u16, u16)> {
    let of = |fd: rustix::fd::BorrowedFd<'_>| {
        termios::tcgetwinsize(fd)
            .ok()
            .map(|size| (size.ws_row, size.ws_col))
            .filter(|(rows, cols)| *rows > 0 && *cols > 0)
    };
    of(io::stdout().as_fd()).or_else(|| of(io::stdin().as_fd()))
}

/// The terminal on stdin in raw mode. Dropping it, in a panic too, gives the terminal back as it
/// was.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Every key goes to the program inside; nothing is echoed here.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Asks for a line on the terminal.
pub fn ask(question: &str) -> io::Result<String> {
    let mut errors = io::stderr().lock();
    errors.write_all(question.as_bytes())?;
    errors.flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks for a line that nobody looking on should see.
pub fn ask_secret(question: &str) -> io::Result<String> {
    let before = termios::tcgetattr(io::stdin())?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    termios::tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
    let _given_back = RawMode { before };
    let line = ask(question);
    let _ = io::stderr().lock().write_all(b"\n");
    line
}

/// Keys pressed one after the other to leave a session: `ctrl-p,ctrl-q`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl std::fmt::Display for DetachKeys {
    /// As [`detach_keys`] reads them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = |byte: &u8| match byte {
            0..0x20 => format!("ctrl-{}", (byte | 0x40).to_ascii_lowercase() as char),
            _ => (*byte as char).to_string(),
        };
        f.write_str(&self.0.iter().map(key).collect::<Vec<_>>().join(","))
    }
}

/// Reads keys: letters, or `ctrl-` and a letter or one of `@[\]^_`, with commas between. Empty
/// for none.
pub fn detach_keys(text: &str) -> Result<DetachKeys, String> {
    if text.is_empty() {
        return Ok(DetachKeys(Vec::new()));
    }
    let key = |word: &str| match word.strip_prefix("ctrl-").map(str::as_bytes) {
        Some([c]) if c.is_ascii_alphabetic() || b"@[\\]^_".contains(c) => {
            Ok(c.to_ascii_uppercase() & 0x1f)
        }
        None if word.len() == 1 && word.is_ascii() => Ok(word.as_bytes()[0]),
        _ => Err(format!(
            "{word:?} is not a key: write for example ctrl-p,ctrl-q"
        )),
    };
    text.split(',')
        .map(key)
        .collect::<Result<_, _>>()
        .map(DetachKeys)
}

/// Finds the detach keys in what is typed. Bytes that may be their beginning are held back until
/// the next one decides.
#[derive(Debug)]
pub struct DetachScanner {
    keys: Vec<u8>,
    held: usize,
}

impl DetachScanner {
    /// A scanner that has seen nothing.
    pub fn new(keys: &DetachKeys) -> Self {
        Self {
            keys: keys.0.clone(),
            held: 0,
        }
    }

    /// Takes bytes typed; gives those to pass on and whether the keys are complete.
    pub fn scan(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut pass = Vec::with_capacity(typed.len() + self.held);
        for byte in typed {
            while self.held > 0 && self.keys[self.held] != *byte {
                // Not the keys after all: the longest end of what is held that may still begin
                // them stays held, the rest goes on.
                let shorter = (0..self.held)
                    .rev()
                    .find(|n| self.keys[self.held - n..self.held] == self.keys[..*n])
                    .unwrap_or(0);
                pass.extend_from_slice(&self.keys[..self.held - shorter]);
                self.held = shorter;
            }
            if self.keys.get(self.held) == Some(byte) {
                self.held += 1;
                if self.held == self.keys.len() {
                    return (pass, true);
                }
            } else {
                pass.push(*byte);
            }
        }
        (pass, false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_read() {
        assert_eq!(
            detach_keys("ctrl-p,ctrl-q").unwrap(),
            DetachKeys(vec![16, 17])
        );
        assert_eq!(detach_keys("ctrl-[,a").unwrap(), DetachKeys(vec![27, b'a']));
        assert_eq!(detach_keys("").unwrap(), DetachKeys(vec![]));
        for bad in ["ctrl-", "ctrl-1", "ctrl-ab", "ab", "a,", "é"] {
            assert!(detach_keys(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn everything_before_the_keys_passes_and_nothing_after(
            typed in prop::collection::vec(0u8..3, 0..40),
            keys in prop::collection::vec(0u8..3, 1..4),
            cut in 1usize..5,
        ) {
            let mut scanner = DetachScanner::new(&DetachKeys(keys.clone()));
            let mut passed = Vec::new();
            let mut detached = false;
            for part in typed.chunks(cut) {
                let (pass, done) = scanner.scan(part);
                passed.extend(pass);
                if done { detached = true; break; }
            }
            match typed.windows(keys.len()).position(|window| window == keys) {
                Some(at) => {
                    prop_assert!(detached);
                    prop_assert_eq!(&passed[..], &typed[..at]);
                }
                None => {
                    prop_assert!(!detached);
                    passed.extend_from_slice(&keys[..scanner.held]);
                    prop_assert_eq!(passed, typed);
                }
            }
        }
    }
}
