//! Names, asked for from inside instances: by raw packets, and by the C library.
#![allow(clippy::unwrap_used)]

mod lab;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lab::{Lab, Ns, net, prefix};
use network::dns::{Config, ListenerState, Served, Server, Upstreams, Zone};
use network::{Firewall, Outside, Rules};

const A: u16 = 1;
const PTR: u16 = 12;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const AXFR: u16 = 252;

/// What came back: the code, whether it is authoritative, whether it was cut, how many answers,
/// and the last four bytes (an A record's address).
#[derive(Debug, PartialEq, Eq)]
struct Said {
    code: u8,
    authoritative: bool,
    cut: bool,
    answers: u16,
    tail: [u8; 4],
}

fn packet(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&[kind.to_be_bytes(), [0, 1]].concat());
    packet
}

fn read(answer: &[u8]) -> Said {
    assert_eq!(&answer[..2], &[0xab, 0xcd], "the question's id");
    Said {
        code: answer[3] & 15,
        authoritative: answer[2] & 4 != 0,
        cut: answer[2] & 2 != 0,
        answers: u16::from_be_bytes([answer[6], answer[7]]),
        tail: answer[answer.len() - 4..].try_into().unwrap(),
    }
}

fn ask(ns: &Ns, server: &str, name: &str, kind: u16) -> Option<Said> {
    raw(ns, server, &packet(name, kind)).map(|answer| read(&answer))
}

/// Whether the server says nothing at all.
fn silent(ns: &Ns, server: &str, packet: &[u8]) -> bool {
    wait(ns, server, packet, Duration::from_millis(300)).is_none()
}

fn raw(ns: &Ns, server: &str, packet: &[u8]) -> Option<Vec<u8>> {
    wait(ns, server, packet, Duration::from_secs(10))
}

fn wait(ns: &Ns, server: &str, packet: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let server: SocketAddr = SocketAddr::new(server.parse().unwrap(), 53);
    ns.run(|| {
        let any = if server.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.connect(server).unwrap();
        socket.send(packet).ok()?;
        let mut buffer = [0; 2000];
        let length = socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    })
}

fn ask_tcp(ns: &Ns, server: &str, packets: &[Vec<u8>]) -> Vec<Said> {
    let server = SocketAddr::new(server.parse().unwrap(), 53);
    ns.run(|| {
        let mut stream = TcpStream::connect(server).unwrap();
        let exchange = |packet: &Vec<u8>| {
            stream
                .write_all(&(packet.len() as u16).to_be_bytes())
                .unwrap();
            stream.write_all(packet).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).unwrap();
            read(&answer)
        };
        packets.iter().map(exchange).collect()
    })
}

/// An upstream in the world outside. Says 203.0.113.7 to everything, but: nothing to names with
/// `silent`, and to `long` a cut answer by UDP and forty addresses by TCP. Counts what it is
/// asked.
fn upstream(ns: &Ns, address: &str) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let (udp, tcp) = ns.run(|| {
        (
            UdpSocket::bind(address).unwrap(),
            std::net::TcpListener::bind(address).unwrap(),
        )
    });
    let answer = |question: &[u8], count: u8, cut: bool| {
        let end = 12 + question[12..].iter().position(|b| *b == 0).unwrap() + 5;
        let mut answer = question[..end].to_vec();
        answer[2] = 0x81 | if cut { 2 } else { 0 };
        answer[3] = 0x80;
        answer[7] = count;
        answer[10..12].copy_from_slice(&[0, 0]);
        for _ in 0..count {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 203, 0, 113, 7]);
        }
        answer
    };
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((length, client)) = udp.recv_from(&mut buffer) {
            counter.fetch_add(1, Ordering::SeqCst);
            let question = &buffer[..length];
            let has = |word: &[u8]| question.windows(word.len()).any(|part| part == word);
            if has(b"silent") {
                continue;
            }
            // Forged first: another id, which must be passed over.
            let mut forged = answer(question, 1, false);
            forged[0] ^= 1;
            udp.send_to(&forged, client).unwrap();
            let long = has(b"long");
            udp.send_to(&answer(question, u8::from(!long), long), client)
                .unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            let answer = answer(&question, 40, false);
            stream
                .write_all(&(answer.len() as u16).to_be_bytes())
                .unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    asked
}

/// Two networks with a zone each; `b` is internal.
struct Names {
    lab: Lab,
    a: lab::Instance,
    b: lab::Instance,
    zones: [Zone; 2],
    server: Arc<Server>,
    networks: [network::NetworkConfig; 2],
    asked: Arc<AtomicUsize>,
    runtime: tokio::runtime::Runtime,
}

impl Names {
    fn new() -> Self {
        let lab = Lab::new();
        let networks = [net("a", 1, Outside::Nat), net("b", 2, Outside::Internal)];
        for network in &networks {
            lab.driver.ensure_network(network).unwrap();
        }
        let [a, b] = [("a1", 0), ("b1", 1)].map(|(key, n)| lab.instance(key, &networks[n], 2));
        let rules = Rules {
            networks: networks.to_vec(),
            published: Vec::new(),
            guarded: vec![a.guarded.clone(), b.guarded.clone()],
            limited: Vec::new(),
            loopback6: true,
        };
        lab.host
            .run(|| Firewall::open(prefix()).unwrap())
            .apply(&rules)
            .unwrap();
        let asked = upstream(&lab.outside, "192.0.2.2:53");
        // Every thread of the runtime is one of the host's namespace, as the daemon's are.
        let runtime = lab.host.run(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2).enable_all().build().unwrap()
        });
        let zones = ["berth.internal", "Berth.Internal."].map(|domain| Zone::new(domain).unwrap());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        zones[0]
            .replace([
                ("web", vec![address("10.77.1.2"), address("fd77:1::2")]),
                ("four.only", vec![address("10.77.1.3")]),
            ])
            .unwrap();
        zones[1]
            .replace([("db", vec![address("10.77.2.2")])])
            .unwrap();
        // The first upstream is silent (nobody has its address), the second answers.
        let upstreams = ["10.77.1.1:53", "192.0.2.77:53", "192.0.2.2:53"];
        let config = Config {
            upstreams: Upstreams::Fixed(upstreams.map(|text| text.parse().unwrap()).into()),
            timeout: Duration::from_millis(700),
            ..Config::default()
        };
        let server = Arc::new(Server::new(config));
        let names = Self {
            lab,
            a,
            b,
            zones,
            server,
            networks,
            asked,
            runtime,
        };
        names.serve();
        names
    }

    fn serve(&self) {
        let _entered = self.runtime.enter();
        let both = [0, 1].map(|n| Served::of(&self.networks[n], self.zones[n].clone()));
        self.server.serve(both.into());
        while self
            .server
            .state()
            .iter()
            .any(|(_, state)| *state == ListenerState::Starting)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn names_are_known_within_their_network_and_the_rest_is_forwarded() {
    let names = Names::new();
    let Names { lab, a, b, .. } = &names;
    let states = names.server.state();
    assert_eq!(states.len(), 4);
    assert!(
        states
            .iter()
            .all(|(_, state)| *state == ListenerState::Listening),
        "{states:?}"
    );
    let code = |name: &str, kind| ask(&a.ns, "10.77.1.1", name, kind).map(|s| (s.code, s.answers));
    let web = ask(&a.ns, "10.77.1.1", "web", A).unwrap();
    assert_eq!(
        (web.code, web.authoritative, web.tail),
        (0, true, [10, 77, 1, 2])
    );
    // Found; found but not of that type; not found. By IPv4 and IPv6, in any letters.
    assert_eq!(
        ask(&a.ns, "fd77:1::1", "WEB.berth.INTERNAL", A)
            .unwrap()
            .tail,
        [10, 77, 1, 2]
    );
    assert_eq!(code("web.berth.internal", AAAA), Some((0, 1)));
    for nothing in [
        ("web", TXT),
        ("four.only", AAAA),
        ("only", A),
        ("berth.internal", A),
    ] {
        assert_eq!(code(nothing.0, nothing.1), Some((0, 0)), "{nothing:?}");
    }
    for unknown in ["nobody", "nobody.berth.internal", "x.web.berth.internal"] {
        assert_eq!(code(unknown, A), Some((3, 0)), "{unknown}");
    }
    assert_eq!(code("2.1.77.10.in-addr.arpa", PTR), Some((0, 1)));
    assert_eq!(code("9.1.77.10.in-addr.arpa", PTR), Some((3, 0)));
    assert_eq!(code("web", AXFR), Some((5, 0)));
    assert_eq!(
        names.asked.load(Ordering::SeqCst),
        0,
        "none of this went upstream"
    );
    // Other networks' names and servers, and the world outside.
    assert_eq!(code("db", A), Some((3, 0)));
    assert_eq!(ask(&b.ns, "10.77.2.1", "web", A).unwrap().code, 3);
    assert_eq!(
        ask(&b.ns, "10.77.2.1", "db", A).unwrap().tail,
        [10, 77, 2, 2]
    );
    assert_eq!(
        ask(&b.ns, "10.77.2.1", "example.org", A).unwrap().code,
        5,
        "no outside"
    );
    assert!(silent(&b.ns, "10.77.1.1", &packet("web", A)));
    lab.outside.sh("ip route add 10.77.0.0/16 via 192.0.2.1");
    assert!(
        silent(&lab.outside, "10.77.1.1", &packet("web", A)),
        "no open resolver"
    );
    lab.host.sh("nft flush ruleset");
    assert!(
        silent(&lab.outside, "10.77.1.1", &packet("web", A)),
        "not even without the rules"
    );

    // Forwarded past a silent resolver and ourselves, then kept.
    let out = ask(&a.ns, "10.77.1.1", "example.org", A).unwrap();
    assert_eq!(
        (out.code, out.authoritative, out.tail),
        (0, false, [203, 0, 113, 7])
    );
    assert_eq!(names.asked.load(Ordering::SeqCst), 1);
    assert_eq!(
        ask(&a.ns, "fd77:1::1", "Example.ORG", A).unwrap().tail,
        [203, 0, 113, 7]
    );
    assert_eq!(
        names.asked.load(Ordering::SeqCst),
        1,
        "the second one was kept"
    );
    assert_eq!(code("silent.example.org", A), Some((2, 0)));
    // Longer than UDP holds: cut for UDP, whole for TCP, and fetched by TCP.
    let long = ask(&a.ns, "10.77.1.1", "long.example.org", A).unwrap();
    assert_eq!((long.cut, long.answers), (true, 0));
    let both = [packet("long.example.org", A), packet("web", A)];
    let [long, web] = &ask_tcp(&a.ns, "fd77:1::1", &both)[..] else {
        panic!("two answers")
    };
    assert_eq!(
        (long.cut, long.answers, web.tail),
        (false, 40, [10, 77, 1, 2])
    );
    // Nonsense is answered as such or not at all, and does no harm.
    let mut twice = packet("web", A);
    twice[5] = 2;
    assert_eq!(read(&raw(&a.ns, "10.77.1.1", &twice).unwrap()).code, 1);
    let mut answer = packet("web", A);
    answer[2] |= 0x80;
    assert!(silent(&a.ns, "10.77.1.1", &answer));
    assert_eq!(code("web", A), Some((0, 1)));
}

#[test]
fn listeners_follow_changes_of_names_bridges_and_networks() {
    let names = Names::new();
    let Names {
        lab, a, b, zones, ..
    } = &names;
    zones[0]
        .replace([("new", vec!["10.77.1.9".parse().unwrap()])])
        .unwrap();
    assert_eq!(
        ask(&a.ns, "10.77.1.1", "new", A).unwrap().tail,
        [10, 77, 1, 9]
    );
    assert_eq!(ask(&a.ns, "10.77.1.1", "web", A).unwrap().code, 3);
    assert!(zones[0].replace([("bad name", vec![])]).is_err());
    assert_eq!(
        ask(&a.ns, "10.77.1.1", "new", A).unwrap().code,
        0,
        "refused as a whole"
    );

    // The bridge goes and comes back; nobody tells the server.
    lab.driver.remove_network("a").unwrap();
    lab.driver.ensure_network(&names.networks[0]).unwrap();
    lab.driver.detach("a1").unwrap();
    let again = lab.instance("a1", &names.networks[0], 2);
    assert_eq!(
        ask(&again.ns, "10.77.1.1", "new", A).unwrap().tail,
        [10, 77, 1, 9]
    );
    assert_eq!(
        ask(&again.ns, "fd77:1::1", "new", A).unwrap().tail,
        [10, 77, 1, 9]
    );

    // A network that is no longer served is left, the other one undisturbed.
    {
        let _entered = names.runtime.enter();
        names
            .server
            .serve(vec![Served::of(&names.networks[1], zones[1].clone())]);
    }
    assert_eq!(names.server.state().len(), 2);
    assert!(silent(&again.ns, "10.77.1.1", &packet("new", A)));
    assert_eq!(
        ask(&b.ns, "10.77.2.1", "db", A).unwrap().tail,
        [10, 77, 2, 2]
    );
}

#[test]
fn the_c_library_resolves_through_the_files_we_write() {
    let names = Names::new();
    let dir = tempfile::tempdir().unwrap();
    let gateways = lab::addresses(&names.networks[0], 1).1;
    let file = dir.path().join("resolv.conf");
    let text = network::files::resolv_conf(&gateways, &["berth.internal"]);
    std::fs::write(&file, text).unwrap();
    let hosts = dir.path().join("hosts");
    let own = ["10.77.1.2".parse().unwrap()];
    std::fs::write(
        &hosts,
        network::files::hosts("me", Some("berth.internal"), &own, &[]),
    )
    .unwrap();
    let getent = |database: &str, key: &str| {
        let script = format!(
            "mount --bind {} /etc/resolv.conf && mount --bind {} /etc/hosts && \
             getent {database} {key}",
            file.display(),
            hosts.display()
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script]);
        let output = names.a.ns.run(|| command.output().unwrap());
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        getent("ahostsv4", "web | head -1"),
        "10.77.1.2 STREAM web.berth.internal"
    );
    assert_eq!(getent("hosts", "web"), "fd77:1::2 web.berth.internal");
    assert_eq!(
        getent("hosts", "10.77.1.3"),
        "10.77.1.3 four.only.berth.internal"
    );
    assert_eq!(getent("hosts", "me"), "10.77.1.2 me.berth.internal me");
    assert_eq!(
        getent("ahostsv4", "example.org | head -1"),
        "203.0.113.7 STREAM example.org"
    );
    assert_eq!(getent("hosts", "nobody"), "");
}
