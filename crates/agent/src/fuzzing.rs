//! Entry points for fuzzers: what reads a guest's bytes, or a host's. Property tests call them too.

use crate::{
    config::Config,
    protocol::{Decoder, Kind, Notice, Reply, Request, ToProgram, decode_control},
};

/// Feeds a decoder and reads every control frame as every message.
pub fn frames(bytes: &[u8]) {
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(7) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) if frame.kind == Kind::Control => messages(&frame.payload),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Reads bytes as every message of the protocol.
pub fn messages(bytes: &[u8]) {
    let _ = decode_control::<Request>(bytes);
    let _ = decode_control::<Reply>(bytes);
    let _ = decode_control::<ToProgram>(bytes);
    let _ = decode_control::<Notice>(bytes);
    let _ = Config::from_json(bytes);
}
