//! Running more programs in a container through its shim.

use container::shim::client::ClientError;
use container::shim::protocol::{ErrorCode, Exec, Kind, Request};
use serde_json::json;

use crate::world::{Wish, World, collect, is_alive, read_until, wait_until};

fn exec(script: &str) -> Exec {
    Exec {
        process: json!({ "args": ["sh", "-c", script] }),
        stdin: false,
        detach: false,
    }
}

#[test]
fn execs_have_streams_codes_signals_and_terminals_of_their_own() {
    let Some(mut world) = World::new("exec", "sleep 1000", Wish::default()) else {
        return;
    };
    let launched = world.launch();
    world.start();

    let mut client = world.client();
    client
        .exec(exec("echo out; echo err >&2; exit 17"))
        .unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exited = client
        .follow(|kind, data| match kind {
            Kind::Stdout => out.extend_from_slice(data),
            _ => err.extend_from_slice(data),
        })
        .unwrap();
    assert_eq!(
        (exited.code, &out[..], &err[..]),
        (17, &b"out\n"[..], &b"err\n"[..])
    );

    let mut client = world.client();
    client
        .exec(Exec {
            stdin: true,
            ..exec("cat; echo $VALUE")
        })
        .unwrap();
    let input = vec![b'x'; 150_000];
    client.send_stdin(&input).unwrap();
    client.send_eof().unwrap();
    let (text, exited) = collect(&mut client);
    assert_eq!((text.len(), exited.code), (input.len() + 1, 0));

    let mut client = world.client();
    let process = json!({
        "args": ["sh", "-c", "stty size; read x; stty size; cat"],
        "terminal": true,
        "consoleSize": { "height": 24, "width": 80 },
    });
    let pid = client
        .exec(Exec {
            process,
            stdin: true,
            detach: false,
        })
        .unwrap();
    read_until(&mut client, "24 80");
    let mut control = world.client();
    control
        .command(&Request::ExecResize {
            pid,
            rows: 10,
            cols: 20,
        })
        .unwrap();
    client.send_stdin(b"\r").unwrap();
    read_until(&mut client, "10 20");
    control
        .command(&Request::ExecSignal {
            pid,
            signal: libc::SIGKILL,
        })
        .unwrap();
    let (_, exited) = collect(&mut client);
    assert_eq!((exited.code, exited.signal), (137, Some(9)));
    let gone = control
        .command(&Request::ExecSignal { pid, signal: 9 })
        .unwrap_err();
    assert!(matches!(gone, ClientError::Refused(f) if f.code == ErrorCode::NotFound));

    let missing = Exec {
        process: json!({ "args": ["/no/such"] }),
        stdin: false,
        detach: false,
    };
    let error = world.client().exec(missing).unwrap_err();
    assert!(error.to_string().contains("/no/such"), "{error}");
    let state = world.client().state().unwrap();
    assert_eq!((state.pid, state.execs), (launched.pid, 0));
}

#[test]
fn an_exec_ends_with_its_terminal_but_not_with_its_client() {
    let Some(mut world) = World::new("execlife", "sleep 1000", Wish::default()) else {
        return;
    };
    world.launch();
    world.start();
    let mut client = world.client();
    let pid = client
        .exec(exec("while :; do echo x; sleep 0.02; done"))
        .unwrap();
    read_until(&mut client, "x");
    drop(client);
    let mut client = world.client();
    let process = json!({ "args": ["sleep", "1000"], "terminal": true });
    let tty = client
        .exec(Exec {
            process,
            stdin: true,
            detach: false,
        })
        .unwrap();
    drop(client);
    wait_until("the terminal hung up", || !is_alive(tty));
    assert!(
        is_alive(pid),
        "without a terminal it goes on, and nobody blocks it"
    );
    let detached = world
        .client()
        .exec(Exec {
            detach: true,
            ..exec("sleep 1000")
        })
        .unwrap();
    assert!(is_alive(detached));
    world
        .client()
        .command(&Request::Signal {
            signal: 9,
            all: false,
        })
        .unwrap();
    world.assert_gone();
    assert!(
        !is_alive(pid) && !is_alive(detached),
        "execs end with the container"
    );
}
