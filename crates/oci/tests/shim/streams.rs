//! Streams: attaching, detaching, floods, slow clients, terminals, logs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use container::shim::client::ClientError;
use container::shim::logs::{From, Logs};
use container::shim::protocol::{Attach, ErrorCode, Phase, Request};

use crate::world::{Wish, World, collect, read_until, wait_until};

#[test]
fn clients_come_and_go_and_input_stays_open() {
    let wish = Wish {
        stdin: true,
        ..Wish::default()
    };
    let script = "while read line; do echo got $line; done; echo end";
    let Some(mut world) = World::new("attach", script, wish) else {
        return;
    };
    world.launch();
    world.start();
    let input = Attach {
        stdin: true,
        ..Attach::default()
    };
    let mut first = world.attached(input.clone());
    let mut observer = world.attached(Attach::default());
    first.send_stdin(b"one\n").unwrap();
    read_until(&mut first, "got one\n");
    read_until(&mut observer, "got one\n");
    // A client that dies in the middle of a frame harms nobody.
    let mut rude = UnixStream::connect(world.dir().join("shim.sock")).unwrap();
    rude.write_all(&[200, 0, 0, 0, 0, b'{']).unwrap();
    drop((first, rude));
    wait_until("one is attached", || {
        world.client().state().unwrap().attached == 1
    });

    let mut second = world.attached(Attach {
        tail_bytes: 1000,
        ..input
    });
    read_until(&mut second, "got one\n");
    second.send_stdin(b"two\n").unwrap();
    read_until(&mut second, "got two\n");
    second.send_eof().unwrap();
    let (text, exited) = collect(&mut second);
    assert_eq!((text.as_str(), exited.code), ("end\n", 0));
    let (text, _) = collect(&mut observer);
    assert_eq!(text, "got two\nend\n");
    drop((second, observer));
    world.assert_gone();
}

#[test]
fn a_flood_reaches_the_patient_drops_the_slow_and_rotates_the_log() {
    let wish = Wish {
        rotate_bytes: 1 << 20,
        ..Wish::default()
    };
    let script = "yes 0123456789012345678901234567890123456789 | head -c 12000000; echo done >&2";
    let Some(mut world) = World::new("flood", script, wish) else {
        return;
    };
    world.launch();
    let mut patient = world.attached(Attach {
        lossless: true,
        ..Attach::default()
    });
    let mut slow = world.attached(Attach::default());
    // There is no terminal: the refusal must not end the stream.
    patient.send(&Request::Resize { rows: 1, cols: 1 }).unwrap();
    world.start();
    let mut bytes = 0;
    let exited = patient.follow(|_, data| bytes += data.len()).unwrap();
    assert_eq!((bytes, exited.code), (12_000_005, 0));
    let dropped = slow.follow(|_, _| {}).unwrap_err();
    assert!(
        matches!(&dropped, ClientError::Refused(f) if f.code == ErrorCode::Slow),
        "{dropped}"
    );
    drop((patient, slow));
    world.assert_gone();

    let path = world.config.log.as_ref().unwrap().path.clone();
    let mut files = 0;
    for entry in std::fs::read_dir(world.root.path()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("log") {
            files += 1;
            assert!(entry.metadata().unwrap().len() <= 1 << 20);
        }
    }
    assert_eq!(files, 3);
    // The two streams are pipes of their own: the last of one may come before the last of the other.
    let mut logs = Logs::open(
        &path,
        From {
            tail: Some(5000),
            ..From::default()
        },
    )
    .unwrap();
    let mut last = Vec::new();
    while let Some(record) = logs.next_record().unwrap() {
        last.extend(record.bytes());
    }
    assert!(String::from_utf8_lossy(&last).contains("done\n"));
}

#[test]
fn a_terminal_has_a_size_echoes_and_takes_signals_as_characters() {
    let wish = Wish {
        terminal: true,
        stdin: true,
        ..Wish::default()
    };
    let script = "stty size; read x; stty size; trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let Some(mut world) = World::new("tty", script, wish) else {
        return;
    };
    world.launch();
    let mut client = world.attached(Attach {
        stdin: true,
        size: Some((24, 80)),
        ..Attach::default()
    });
    world.start();
    read_until(&mut client, "24 80");
    client
        .send(&Request::Resize {
            rows: 50,
            cols: 132,
        })
        .unwrap();
    client.send_stdin(b"typed\r").unwrap();
    let text = read_until(&mut client, "ready");
    assert!(text.contains("typed") && text.contains("50 132"), "{text}");
    client.send_stdin(b"\x03").unwrap();
    let (text, exited) = collect(&mut client);
    assert!(text.contains("interrupted"), "{text}");
    assert_eq!(exited.code, 9);
    drop(client);
    world.assert_gone();
}

#[test]
fn hostile_clients_are_refused_and_the_container_lives_on() {
    let Some(mut world) = World::new("hostile", "sleep 1000", Wish::default()) else {
        return;
    };
    world.launch();
    let socket = world.dir().join("shim.sock");
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[3, 0, 0, 0, 0, b'[', b'[', b'['],
        &[0, 0, 0, 0, 4],
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = [0; 512];
        let n = stream.read(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer[..n]).contains(r#""type":"error""#));
    }
    // Connections that never say anything do not use up the places for ever.
    let idle: Vec<_> = (0..100)
        .filter_map(|_| UnixStream::connect(&socket).ok())
        .collect();
    drop(idle);
    wait_until("the shim answers", || world.client().state().is_ok());
    assert_eq!(world.client().state().unwrap().phase, Phase::Created);
}

#[test]
fn a_shim_that_waits_for_a_reader_gives_its_directory_free() {
    let script = "yes 0123456789 | head -c 400000";
    let Some(mut world) = World::new("linger", script, Wish::default()) else {
        return;
    };
    world.launch();
    let mut pager = world.attached(Attach {
        lossless: true,
        ..Attach::default()
    });
    world.start();
    world.assert_gone();
    assert_eq!(world.record().unwrap().code, 0);
    world.launch();
    assert_eq!(world.client().state().unwrap().phase, Phase::Created);
    let (text, exited) = collect(&mut pager);
    assert_eq!((text.len(), exited.code), (400_000, 0));
}
