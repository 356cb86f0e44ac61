//! Saying something to whoever reads the guest's kernel log or console.
//!
//! Used by every module for what is not an answer to a request. Never fails and never blocks for long.

use std::{fs::File, io::Write};

/// Writes a line to the kernel log, at a priority the console shows.
pub fn say(text: &str) {
    // One write is one record. Nothing can be done when nobody listens.
    let line = format!("<5>berth-agent: {text}\n");
    if let Ok(mut kmsg) = File::options().write(true).open("/dev/kmsg") {
        let _ = kmsg.write_all(line.as_bytes());
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
