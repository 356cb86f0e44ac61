//! The machine's console on standard input and output, over its resets.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{PIECE, RETRY, pass};

/// Whom to send what is typed.
type Typed = Arc<Mutex<UnixStream>>;

/// What shows the console.
pub(super) struct Console {
    thread: JoinHandle<()>,
    over: Arc<AtomicBool>,
}

impl Console {
    /// Connects them with `stream`, which was there before the guest; should we have been too slow for
    /// the guest and been dropped, with the socket at `path`.
    pub(super) fn connect(stream: UnixStream, path: Option<PathBuf>) -> io::Result<Self> {
        let typed = Arc::new(Mutex::new(stream.try_clone()?));
        let to = Arc::clone(&typed);
        thread::spawn(move || send(&to));
        let over = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&over);
        let thread = thread::spawn(move || {
            show(stream);
            while let (false, Some(path)) = (ending.load(Ordering::SeqCst), &path) {
                match UnixStream::connect(path).and_then(|it| Ok((it.try_clone()?, it))) {
                    Ok((input, output)) => {
                        *lock(&typed) = input;
                        show(output);
                    }
                    Err(_between_two_boots) => thread::sleep(RETRY),
                }
            }
        });
        Ok(Self { thread, over })
    }

    /// Shows what is still to be shown of a machine that has ended.
    pub(super) fn finish(self) {
        self.over.store(true, Ordering::SeqCst);
        // A panic of it was printed already.
        let _panicked = self.thread.join();
    }
}

/// Shows what the console says until nobody is at its other end.
fn show(mut stream: UnixStream) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        pass(&mut io::stdout(), &piece[..count]);
    }
}

fn send(typed: &Typed) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = io::stdin().lock().read(&mut piece) {
        // Not with the lock held: a guest may take its time.
        let stream = lock(typed).try_clone();
        // What is typed at a machine that is no longer there is lost, as at any.
        let _ = stream.and_then(|mut stream| stream.write_all(&piece[..count]));
    }
}

fn lock(typed: &Typed) -> std::sync::MutexGuard<'_, UnixStream> {
    typed.lock().unwrap_or_else(PoisonError::into_inner)
}
