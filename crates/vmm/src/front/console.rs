//! The machine's console on standard input and output, over its resets.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{PIECE, RETRY, pass};

/// Whom to send what is typed, while there is somebody.
type Typed = Arc<Mutex<Option<UnixStream>>>;

/// Connects them for as long as this process lives.
pub(super) fn connect(path: PathBuf) {
    let typed = Typed::default();
    let to = Arc::clone(&typed);
    thread::spawn(move || send(&to));
    thread::spawn(move || {
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => show(stream, &typed),
                Err(_not_yet) => thread::sleep(RETRY),
            }
        }
    });
}

/// Shows what the console says until the machine resets or ends.
fn show(mut stream: UnixStream, typed: &Typed) {
    *lock(typed) = stream.try_clone().ok();
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        pass(&mut io::stdout(), &piece[..count]);
    }
    *lock(typed) = None;
}

fn send(typed: &Typed) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = io::stdin().lock().read(&mut piece) {
        // What is typed at a machine that is just being reset is lost, as at any.
        if let Some(stream) = &mut *lock(typed) {
            let _ = stream.write_all(&piece[..count]);
        }
    }
}

fn lock(typed: &Typed) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
    typed.lock().unwrap_or_else(PoisonError::into_inner)
}
