//! The agent in real guests: Debian's kernel, the initramfs of the recipe, disks made from images, run by
//! QEMU without hardware virtualization. What the host's half and the guest's half say to each other
//! goes over a console port, since QEMU has vsock only with the host kernel's help.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;

use std::collections::BTreeMap;

use agent::{
    client::{Client, ClientError, Output},
    config::{Config, File, HostsLine, Interface, Mount, Root, Source, Start},
    protocol::{ErrorKind, Exit, Program, Size, ToProgram, Verb},
};
use machine::{Machine, Media};

fn program(words: &[&str]) -> Program {
    Program {
        args: words.iter().map(|&word| word.to_owned()).collect(),
        ..Program::default()
    }
}

/// Everything a program says, and how it ended.
fn collect(client: &mut Client<impl std::io::Read + std::io::Write>) -> (String, String, Exit) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match client.output().unwrap() {
            Output::Stdout(bytes) => out.extend(bytes),
            Output::Stderr(bytes) => err.extend(bytes),
            Output::Exited(exit) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return (text(&out), text(&err), exit);
            }
        }
    }
}

fn on_disk() -> Root {
    Root {
        source: Source::Disk {
            serial: "root".into(),
            file_system: "ext4".into(),
        },
        changes: None,
        read_only: false,
    }
}

#[test]
fn a_system_boots_from_its_disk_and_does_what_the_host_asks() {
    let Some(media) = Media::new("a_system_boots_from_its_disk_and_does_what_the_host_asks") else {
        return;
    };
    let mut config = Config::new("heron", on_disk(), Start::System { init: None });
    config.interfaces.push(Interface {
        mac: "52:54:00:12:34:56".into(),
        addresses: vec!["10.77.0.14/24".into(), "fd00:77::14/64".into()],
        gateways: vec!["10.77.0.1".parse().unwrap()],
        mtu: Some(1400),
    });
    config.dns.servers.push("10.77.0.1".parse().unwrap());
    config.hosts.push(HostsLine {
        address: "10.77.0.9".parse().unwrap(),
        names: vec!["egret".into(), "egret.berth".into()],
    });
    config.files.push(File {
        path: "/root/.ssh/authorized_keys".into(),
        content: "ssh-ed25519 AAAA\n".into(),
        mode: 0o600,
    });
    let machine = Machine::start(&media, &config, 2 << 30);
    let mut client = machine.client();

    let info = client.info().unwrap();
    assert_eq!((info.hostname.as_str(), info.protocol), ("heron", 1));
    assert!(info.os.contains("BusyBox") && info.ready, "{info:?}");

    facts(&mut client);
    programs(&mut client);
    files(&mut client);
    disks(&mut client);

    client
        .command(Verb::Shutdown {
            reboot: false,
            grace_ms: 0,
        })
        .unwrap();
    machine.powers_off();
}

/// What the configuration said is so.
fn facts(client: &mut Client<impl std::io::Read + std::io::Write>) {
    let script = "cat /etc/hostname /etc/resolv.conf /etc/hosts; ip addr show eth0; ip route; \
                  stat -c %a /root/.ssh/authorized_keys; cat /proc/1/comm; ls /berth 2>&1; \
                  grep -c -E '^/dev/vda / ext4' /proc/mounts";
    client.exec(program(&["sh", "-c", script])).unwrap();
    let (out, err, exit) = collect(client);
    assert_eq!(exit, Exit::Code(0), "{out}{err}");
    for fact in [
        "heron\nnameserver 10.77.0.1\n",
        "10.77.0.14\theron\n",
        "10.77.0.9\tegret egret.berth\n",
        "inet 10.77.0.14/24",
        "inet6 fd00:77::14/64",
        "mtu 1400",
        "default via 10.77.0.1 dev eth0",
        "\n600\n",
        "\ninit\n",
        "ls: /berth: No such file",
    ] {
        assert!(out.contains(fact), "{fact:?} is not in:\n{out}");
    }
}

/// Programs: streams apart, input to its end, exit codes, signals, users, terminals, refusals.
fn programs(client: &mut Client<impl std::io::Read + std::io::Write>) {
    client
        .exec(program(&["sh", "-c", "echo out; echo err >&2; exit 3"]))
        .unwrap();
    let said = collect(client);
    assert_eq!(said, ("out\n".into(), "err\n".into(), Exit::Code(3)));

    let mut sum = program(&["md5sum"]);
    sum.stdin = true;
    client.exec(sum).unwrap();
    let large = vec![b'x'; 1_000_000];
    client.stdin(&large).unwrap();
    client.stdin(&[]).unwrap();
    let (out, _, exit) = collect(client);
    assert_eq!(
        (out.as_str(), exit),
        ("ec78dbd963d2fc01e51176ed4dec299e  -\n", Exit::Code(0))
    );

    let mut nobody = program(&["sh", "-c", "id -u; id -g; pwd; echo $WHO"]);
    nobody.user = Some("www-data".into());
    nobody.cwd = "/var/www".into();
    nobody.env = vec!["WHO=me".into()];
    client.exec(nobody).unwrap();
    assert_eq!(collect(client).0, "33\n33\n/var/www\nme\n");

    client.exec(program(&["sleep", "1000"])).unwrap();
    client.tell(ToProgram::Signal(15)).unwrap();
    assert_eq!(collect(client).2, Exit::Signal(15));

    let mut shell = program(&[
        "sh",
        "-c",
        "tty; stty size; read line; stty size; echo got $line",
    ]);
    shell.terminal = Some(Size { rows: 30, cols: 90 });
    shell.stdin = true;
    client.exec(shell).unwrap();
    let mut seen = String::new();
    while !seen.contains("30 90") {
        let Output::Stdout(bytes) = client.output().unwrap() else {
            panic!("it ended after {seen:?}");
        };
        seen.push_str(&String::from_utf8_lossy(&bytes));
    }
    let size = Size {
        rows: 40,
        cols: 100,
    };
    client.tell(ToProgram::Resize(size)).unwrap();
    client.stdin(b"word\n").unwrap();
    let (out, _, exit) = collect(client);
    assert!(seen.contains("/dev/pts/"), "{seen}");
    assert!(out.contains("40 100") && out.contains("got word"), "{out}");
    assert_eq!(exit, Exit::Code(0));

    // A child left behind that holds the output open does not hold up the end.
    client
        .exec(program(&["sh", "-c", "sleep 1000 & echo done"]))
        .unwrap();
    assert_eq!(collect(client).0, "done\n");

    let refused = client.exec(program(&["no-such-program"])).unwrap_err();
    assert_eq!(refused.refusal(), Some(ErrorKind::NotFound), "{refused}");
    let mut stranger = program(&["id"]);
    stranger.user = Some("stranger".into());
    let refused = client.exec(stranger).unwrap_err();
    assert!(refused.to_string().contains("stranger"), "{refused}");
    let refused = client.wait().unwrap_err();
    assert_eq!(refused.refusal(), Some(ErrorKind::State), "{refused}");

    let processes = client.processes().unwrap();
    assert!(
        processes
            .iter()
            .any(|it| it.pid == 1 && it.command.contains("init"))
    );
    assert!(
        processes
            .iter()
            .any(|it| it.command == "sleep 1000" && it.uid == 0)
    );
}

/// Files in and out.
fn files(client: &mut Client<impl std::io::Read + std::io::Write>) {
    let mut builder = tar::Builder::new(Vec::new());
    let content = vec![7u8; 300_000];
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    header.set_uid(33);
    header.set_gid(5);
    header.set_mtime(1_000_000);
    builder
        .append_data(&mut header, "dir/file", content.as_slice())
        .unwrap();
    let tar = builder.into_inner().unwrap();
    client.write_files("/root", tar.as_slice()).unwrap();
    client
        .exec(program(&["stat", "-c", "%a %u %g %s %Y", "/root/dir/file"]))
        .unwrap();
    assert_eq!(collect(client).0, "640 33 5 300000 1000000\n");

    let mut copied = Vec::new();
    client.read_files("/root/dir", false, &mut copied).unwrap();
    let mut archive = tar::Archive::new(copied.as_slice());
    let found: BTreeMap<String, u64> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().display().to_string(), entry.size())
        })
        .collect();
    assert_eq!(found.get("dir/file"), Some(&300_000), "{found:?}");

    let refused = client
        .read_files("/absent", false, std::io::sink())
        .unwrap_err();
    assert_eq!(refused.refusal(), Some(ErrorKind::NotFound), "{refused}");
    // The connection stays in step after a refusal in the middle of a stream.
    let refused = client.write_files("/absent", tar.as_slice()).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(_)), "{refused}");
    client.info().unwrap();
}

/// The root file system fills its disk, by itself from the start; writes are held back and let go.
fn disks(client: &mut Client<impl std::io::Read + std::io::Write>) {
    // Asked again it has nothing to do.
    client.command(Verb::GrowRoot).unwrap();
    let after = client.usage().unwrap();
    assert!(after.disk_bytes > 1900 << 20, "{after:?}");
    assert!(after.memory_bytes > 128 << 20 && after.processes > 1 && after.cpu_us > 0);

    client.command(Verb::Freeze { timeout_ms: 60_000 }).unwrap();
    let again = client.command(Verb::Freeze { timeout_ms: 1 }).unwrap_err();
    assert!(again.to_string().contains("frozen already"), "{again}");
    client.command(Verb::Thaw).unwrap();
    client
        .exec(program(&["sh", "-c", "echo more >/root/more && sync"]))
        .unwrap();
    assert_eq!(collect(client).2, Exit::Code(0));

    let year_2030 = 1_893_456_000;
    let unix_ns = year_2030 * 1_000_000_000;
    client.command(Verb::SetTime { unix_ns }).unwrap();
    client.exec(program(&["date", "+%s"])).unwrap();
    let now: i64 = collect(client).0.trim().parse().unwrap();
    assert!((year_2030..year_2030 + 600).contains(&now), "{now}");
}

#[test]
fn an_application_runs_over_a_shared_disk_and_its_end_is_the_guests_end() {
    let Some(media) =
        Media::new("an_application_runs_over_a_shared_disk_and_its_end_is_the_guests_end")
    else {
        return;
    };
    let root = Root {
        changes: Some(Source::Memory { size_bytes: None }),
        ..on_disk()
    };
    let script = "echo began in $(pwd); touch /changed; read word; echo heard $word; exit 7";
    let mut main = program(&["sh", "-c", script]);
    main.stdin = true;
    main.cwd = "/made/for/it".into();
    let config = Config::new("app", root, Start::Application(main));
    let machine = Machine::start(&media, &config, media.disk.bytes);
    let mut client = machine.client();
    // Ready is noted after the start, so it may come a moment later.
    while !client.info().unwrap().ready {}
    client.attach().unwrap();
    client.stdin(b"hello\n").unwrap();
    let (out, _, exit) = collect(&mut client);
    assert!(out.contains("heard hello"), "{out}");
    assert_eq!(exit, Exit::Code(7));
    let log = machine.powers_off();
    assert!(
        log.contains("began in /made/for/it\n") && log.contains("heard hello"),
        "{log}"
    );
    assert!(log.contains("exit code 7"), "{log}");
}

#[test]
fn a_guest_that_cannot_come_up_says_why_and_ends() {
    let Some(media) = Media::new("a_guest_that_cannot_come_up_says_why_and_ends") else {
        return;
    };
    let init = Some("/sbin/absent".to_owned());
    let config = Config::new("lost", on_disk(), Start::System { init });
    let machine = Machine::start(&media, &config, media.disk.bytes);
    let log = machine.powers_off();
    assert!(
        log.contains("the image has no init (/sbin/absent)"),
        "{log}"
    );
}

#[test]
fn a_debian_system_comes_up_whole_with_systemd_and_goes_down_in_order() {
    let test = "a_debian_system_comes_up_whole_with_systemd_and_goes_down_in_order";
    let Some(media) = Media::debian(test) else {
        return;
    };
    let mut config = Config::new("egret", on_disk(), Start::System { init: None });
    if media.kernel.modules.is_some() {
        config.mounts.push(Mount {
            source: Source::Disk {
                serial: "modules".into(),
                file_system: "ext4".into(),
            },
            file: None,
            target: media.kernel.modules_target(),
            read_only: true,
        });
    }
    let machine = Machine::start(&media, &config, 2 << 30);
    let mut client = machine.client();
    let mut info = client.info().unwrap();
    while !info.ready {
        std::thread::sleep(std::time::Duration::from_millis(200));
        info = client.info().unwrap();
    }
    assert!(info.os.contains("Debian"), "{info:?}");
    client
        .exec(program(&["systemctl", "is-system-running"]))
        .unwrap();
    let (state, _, _) = collect(&mut client);
    client
        .exec(program(&[
            "systemctl",
            "--failed",
            "--plain",
            "--no-legend",
        ]))
        .unwrap();
    let (failed, _, _) = collect(&mut client);
    assert!(
        state == "running\n" || state == "starting\n",
        "{state}: {failed}"
    );
    assert_eq!(failed, "");
    if media.kernel.modules.is_some() {
        // systemd finds this one by itself where it can, for its automounts.
        client.exec(program(&["cat", "/proc/modules"])).unwrap();
        let (modules, _, _) = collect(&mut client);
        assert!(modules.contains("autofs4"), "{modules}");
    }
    machine.says("egret login:");
    client
        .command(Verb::Shutdown {
            reboot: false,
            grace_ms: 0,
        })
        .unwrap();
    let log = machine.powers_off();
    assert!(log.contains("Power down"), "{log}");
}
