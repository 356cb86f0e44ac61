//! Programs of the fake daemon: the first word says what they do.
//!
//! `say WORDS` prints them on stdout, `complain WORDS` on stderr; `cat` gives back what it gets;
//! `code N` ends with N; `linger` waits for a signal; `keys` waits for a `q` and tells of its
//! terminal; `vanish` takes the connection with it; `absent` cannot be started.

use api::{
    ErrorCode, Problem, Process,
    stream::{Attach, Channel, Control},
};
use axum::extract::ws::{Message, WebSocket};
use serde_json::Value;

use crate::fake::Shared;

/// Plays the program of an instance, or one run inside.
pub async fn serve(mut socket: WebSocket, exec: bool, detail: Value, world: Shared) {
    let first = next_text(&mut socket).await;
    let words: Vec<String> = if exec {
        let process: Process = serde_json::from_str(&first).unwrap();
        process.command
    } else {
        let attach: Attach = serde_json::from_str(&first).unwrap();
        assert_eq!(attach.start, detail["status"] == "prepared");
        serde_json::from_value(detail["spec"]["command"].clone()).unwrap_or_default()
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let code = match words[..] {
        ["say", ref rest @ ..] => {
            send(
                &mut socket,
                Channel::Stdout,
                &format!("{}\n", rest.join(" ")),
            )
            .await;
            0
        }
        ["complain", ref rest @ ..] => {
            send(
                &mut socket,
                Channel::Stderr,
                &format!("{}\n", rest.join(" ")),
            )
            .await;
            1
        }
        ["code", code] => code.parse().unwrap(),
        ["cat"] => cat(&mut socket).await,
        ["linger"] => linger(&mut socket).await,
        ["keys"] => keys(&mut socket).await,
        ["systemctl", "is-system-running"] => {
            send(&mut socket, Channel::Stdout, "running\n").await;
            0
        }
        ["vanish"] => return,
        ["absent"] => {
            let problem =
                Problem::new(ErrorCode::NotFound, "there is no program \"absent\" inside");
            return control(&mut socket, &Control::Problem { problem }).await;
        }
        ref other => panic!("no program {other:?}"),
    };
    if code == i32::MIN {
        // The user left; the instance goes on.
        let name = detail["name"].as_str().unwrap();
        world.lock().unwrap().instances.get_mut(name).unwrap()["status"] = "running".into();
        return;
    }
    if detail["spec"]["remove_on_exit"] == true {
        let name = detail["name"].as_str().unwrap();
        world.lock().unwrap().instances.remove(name);
    }
    control(&mut socket, &Control::Exited { code }).await;
}

async fn next_text(socket: &mut WebSocket) -> String {
    let message = socket.recv().await.unwrap().unwrap();
    message.into_text().unwrap().to_string()
}

async fn send(socket: &mut WebSocket, channel: Channel, text: &str) {
    let mut message = vec![channel as u8];
    message.extend_from_slice(text.as_bytes());
    socket.send(Message::Binary(message.into())).await.unwrap();
}

async fn control(socket: &mut WebSocket, message: &Control) {
    let text = serde_json::to_string(message).unwrap();
    socket.send(Message::Text(text.into())).await.unwrap();
}

async fn cat(socket: &mut WebSocket) -> i32 {
    loop {
        match socket.recv().await.unwrap().unwrap() {
            Message::Binary(bytes) => {
                let text = String::from_utf8(bytes[1..].to_vec()).unwrap();
                send(socket, Channel::Stdout, &text).await;
            }
            Message::Text(text) => {
                let said: Control = serde_json::from_str(&text).unwrap();
                assert_eq!(said, Control::StdinEof);
                return 0;
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn linger(socket: &mut WebSocket) -> i32 {
    send(socket, Channel::Stdout, "waiting\n").await;
    loop {
        if let Message::Text(text) = socket.recv().await.unwrap().unwrap() {
            let said: Control = serde_json::from_str(&text).unwrap();
            match said {
                Control::Signal { signal } if signal == "SIGTERM" => return 143,
                Control::Signal { signal } if signal == "SIGKILL" => return 137,
                other => send(socket, Channel::Stdout, &format!("{other:?}\n")).await,
            }
        }
    }
}

async fn keys(socket: &mut WebSocket) -> i32 {
    send(socket, Channel::Stdout, "press\r\n").await;
    loop {
        match socket.recv().await {
            Some(Ok(Message::Binary(bytes))) if bytes[1..] == *b"q" => return 0,
            Some(Ok(Message::Binary(bytes))) => {
                send(
                    socket,
                    Channel::Stdout,
                    &format!("typed {:?}\r\n", &bytes[1..]),
                )
                .await;
            }
            Some(Ok(Message::Text(text))) => {
                send(socket, Channel::Stdout, &format!("{text}\r\n")).await;
            }
            _ => return i32::MIN,
        }
    }
}
