//! What the agent tells its host unasked.
//!
//! Best effort: a host that does not listen asks instead ([`agent::protocol::Verb::Info`], `Wait`).

use std::{fs, io, io::Read, io::Write, time::Duration};

use agent::protocol::{Decoder, Notice, encode_control};

use crate::{READY_PATH, console::say, vsock};

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Notes that all has started, and tells it.
pub fn ready() {
    if let Err(error) = fs::write(READY_PATH, "") {
        say(&format!("cannot note that the guest is ready: {error}"));
    }
    tell(Notice::Ready);
}

/// Tells the host something and waits until it has heard.
pub fn tell(notice: Notice) {
    // Nobody listening is normal.
    let _ = try_tell(notice);
}

fn try_tell(notice: Notice) -> io::Result<()> {
    let mut stream = vsock::connect_host(agent::NOTICE_PORT, PATIENCE)?;
    stream.write_all(&encode_control(&notice).map_err(io::Error::other)?)?;
    let mut decoder = Decoder::default();
    let mut buffer = [0; 256];
    loop {
        if let Some(_done) = decoder.next_frame().map_err(io::Error::other)? {
            return Ok(());
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => decoder.push(&buffer[..count]),
        }
    }
}
