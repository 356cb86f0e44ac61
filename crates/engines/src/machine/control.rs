//! A question to a machine's own process, over its control socket.
//!
//! What is said there is `berth-vmm`'s to define: a little-endian length and as many bytes of JSON.
//! Only what the engine asks is known here, so that the daemon links nothing of what runs guests; a
//! test holds it against the other side. The process serves a guest that nobody trusts: its answers
//! have a limit, and are waited for only so long.

use std::{path::Path, time::Duration};

use engine::{CpuCounter, CpuStats, Untranslated};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// Version of the protocol.
const VERSION: u32 = 1;
/// Longest answer, in bytes.
const MAX_ANSWER: u32 = 256 << 10;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a machine's process could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Nobody listens.
    #[error("the machine's process does not listen")]
    Absent,
    /// It listens, and that is all.
    #[error("the machine's process gave no answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// It did not do it.
    #[error("{0}")]
    Refused(String),
    /// It said something else, or too much.
    #[error(
        "the machine's process speaks otherwise than expected; it may be of another version: restart the machine"
    )]
    Unexpected,
    /// The connection broke.
    #[error("the connection to the machine's process broke")]
    Io(#[from] std::io::Error),
}

/// What is answered, as far as it is understood here.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Reply {
    Welcome {
        version: u32,
    },
    Ok,
    Error {
        message: String,
    },
    CpuStats {
        counters: Vec<Counter>,
        untranslated: Vec<Form>,
    },
}

#[derive(Debug, Deserialize)]
struct Counter {
    name: String,
    meaning: String,
    vcpus: Vec<u64>,
}

#[derive(Debug, Deserialize)]
struct Form {
    form: String,
    count: u64,
}

/// Has the process of the machine whose files are in `guest` do something.
pub(super) async fn order(guest: &Path, request: &Value) -> Result<(), ControlError> {
    match asked_again(guest, request).await? {
        Reply::Ok => Ok(()),
        _ => Err(ControlError::Unexpected),
    }
}

/// What the software CPU of the machine whose files are in `guest` did so far.
pub(crate) async fn cpu_stats(guest: &Path) -> Result<CpuStats, ControlError> {
    match asked_again(guest, &json!({ "type": "cpu-stats" })).await? {
        Reply::CpuStats {
            counters,
            untranslated,
        } => Ok(told(counters, untranslated)),
        _ => Err(ControlError::Unexpected),
    }
}

/// Asks, and once more where the guest resets itself just then: whatever boots it again listens to
/// the same socket.
async fn asked_again(guest: &Path, question: &Value) -> Result<Reply, ControlError> {
    match asked(guest, question).await {
        Err(ControlError::Io(_)) => asked(guest, question).await,
        answer => answer,
    }
}

/// Connects, asks, and gives the answer.
async fn asked(guest: &Path, question: &Value) -> Result<Reply, ControlError> {
    let asked = async {
        let mut stream = UnixStream::connect(super::control_socket(guest))
            .await
            .map_err(|_| ControlError::Absent)?;
        let hello = json!({ "type": "hello", "version": VERSION });
        match ask(&mut stream, &hello).await? {
            Reply::Welcome { version: VERSION } => ask(&mut stream, question).await,
            _ => Err(ControlError::Unexpected),
        }
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    asked.unwrap_or(Err(ControlError::Silent))
}

/// Asks, and gives the answer; a refusal is an error.
async fn ask(stream: &mut UnixStream, question: &Value) -> Result<Reply, ControlError> {
    let text = question.to_string();
    let length = u32::try_from(text.len()).map_err(|_| ControlError::Unexpected)?;
    let message = [&length.to_le_bytes(), text.as_bytes()].concat();
    stream.write_all(&message).await?;
    let length = stream.read_u32_le().await?;
    if length > MAX_ANSWER {
        return Err(ControlError::Unexpected);
    }
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await?;
    match serde_json::from_slice(&answer) {
        Ok(Reply::Error { message }) => Err(ControlError::Refused(message)),
        Ok(reply) => Ok(reply),
        Err(_) => Err(ControlError::Unexpected),
    }
}

fn told(counters: Vec<Counter>, untranslated: Vec<Form>) -> CpuStats {
    let counter = |it: Counter| CpuCounter {
        name: it.name,
        meaning: it.meaning,
        vcpus: it.vcpus,
    };
    let form = |it: Form| Untranslated {
        form: it.form,
        count: it.count,
    };
    CpuStats {
        counters: counters.into_iter().map(counter).collect(),
        untranslated: untranslated.into_iter().map(form).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::net::UnixListener;

    use vmm::control::{Commands, Event, Events, Reply, Request, protocol, serve};

    use super::*;

    /// A machine on the software CPU, or on the processor.
    struct Machine {
        soft: bool,
    }

    impl Commands for Machine {
        fn name(&self) -> &str {
            "box"
        }

        fn call(&mut self, request: &Request) -> Reply {
            assert_eq!(*request, Request::CpuStats);
            if !self.soft {
                let message = "nothing is counted".to_owned();
                return Reply::Error { message };
            }
            Reply::CpuStats(protocol::CpuStats {
                counters: vec![protocol::Counter {
                    name: "links".into(),
                    meaning: "Jumps".into(),
                    vcpus: vec![1, u64::MAX],
                }],
                untranslated: vec![protocol::Untranslated {
                    form: "Cpuid".into(),
                    count: 7,
                }],
            })
        }
    }

    /// What is told of a machine whose process serves its socket with its own code.
    async fn asked(soft: bool) -> Result<CpuStats, ControlError> {
        let guest = tempfile::tempdir().unwrap();
        std::fs::create_dir(super::super::directory(guest.path())).unwrap();
        let listener = UnixListener::bind(super::super::control_socket(guest.path())).unwrap();
        let (events, source) = Events::new().unwrap();
        let server = std::thread::spawn(move || {
            serve(Some(&listener), &source, &mut Machine { soft });
        });
        let told = cpu_stats(guest.path()).await;
        let reason = vmm::StopReason::Killed;
        events.send(Event::Stopped { reason });
        server.join().unwrap();
        told
    }

    #[tokio::test]
    async fn it_is_asked_as_it_answers() {
        assert_eq!(u64::from(MAX_ANSWER), protocol::MAX_MESSAGE as u64);
        let told = asked(true).await.unwrap();
        assert_eq!(told.counters[0].vcpus, [1, u64::MAX]);
        assert_eq!(
            (&*told.untranslated[0].form, told.untranslated[0].count),
            ("Cpuid", 7)
        );
        let refused = asked(false).await.unwrap_err();
        assert!(matches!(&refused, ControlError::Refused(text) if text == "nothing is counted"));
    }

    #[tokio::test]
    async fn one_that_does_not_run_is_absent() {
        let guest = tempfile::tempdir().unwrap();
        let error = cpu_stats(guest.path()).await.unwrap_err();
        assert!(matches!(error, ControlError::Absent), "{error:?}");
    }
}
