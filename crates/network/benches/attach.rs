//! What attaching costs beside what the kernel alone and the usual tools cost, in one run.
//!
//! `cargo bench -p network`. Prints medians; asserts nothing. Needs root.
#![allow(clippy::unwrap_used)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::{Lab, Ns, net, prefix};
use network::{Attachment, Firewall, Guarded, IfName, Mac, Outside, Published, Rules, Transport};

const ROUNDS: usize = 100;

fn main() {
    let lab = Lab::new();
    let config = net("default", 0, Outside::Nat);
    lab.driver.ensure_network(&config).unwrap();
    let mut rows: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut row = |name: &'static str, work: &mut dyn FnMut(usize) -> Duration| {
        rows.push((name, (0..ROUNDS).map(work).collect()));
    };
    let spaces: Vec<Ns> = (0..ROUNDS).map(|_| Ns::new()).collect();
    let attach = |space: &Ns| {
        let n = spaces
            .iter()
            .position(|other| std::ptr::eq(other, space))
            .unwrap();
        let (addresses, gateways) = lab::addresses(&config, n as u8 + 2);
        let key = format!("instance-{n}");
        let attachment = Attachment {
            key: &key,
            network: "default",
            netns: space.fd(),
            ifname: IfName::parse("eth0").unwrap(),
            mac: Mac::derive(&key),
            addresses,
            gateways,
            mtu: None,
            hairpin: false,
            isolated: false,
        };
        lab.driver.attach(&attachment).unwrap();
    };
    row("attach", &mut |n| {
        let start = Instant::now();
        attach(&spaces[n]);
        start.elapsed()
    });
    row("detach", &mut |n| {
        let start = Instant::now();
        assert!(lab.driver.detach(&format!("instance-{n}")).unwrap());
        start.elapsed()
    });
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let attach_some = || {
            while let Some(space) = spaces.get(next.fetch_add(1, Ordering::SeqCst)) {
                attach(space);
            }
        };
        for _ in 0..8 {
            scope.spawn(attach_some);
        }
    });
    let each = start.elapsed() / ROUNDS as u32;
    row("attach, 100 by 8 threads at once", &mut |_| each);
    lab.driver
        .sweep(&["default".to_owned()].into(), &Default::default())
        .unwrap();
    row("kernel: veth pair made by ip (sh, exec)", &mut |n| {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&spaces[n].fd());
        let peer = format!("/proc/{}/fd/{fd}", std::process::id());
        let start = Instant::now();
        lab.host.sh(&format!(
            "ip link add x{n} master lab-default type veth peer name eth0 netns {peer}"
        ));
        start.elapsed()
    });
    row("kernel: ip link del (sh, exec)", &mut |n| {
        let start = Instant::now();
        lab.host.sh(&format!("ip link del x{n}"));
        start.elapsed()
    });
    let mut firewall = lab.host.run(|| Firewall::open(prefix()).unwrap());
    let mut rules = Rules {
        networks: vec![config.clone()],
        ..Rules::default()
    };
    firewall.apply(&rules).unwrap();
    row("rules: one instance and one port more", &mut |n| {
        let key = format!("instance-{n}");
        rules.guarded.push(Guarded {
            port: prefix().link(&key),
            mac: Mac::derive(&key),
            addresses: vec![[10, 77, 0, n as u8].into()],
        });
        rules.published.push(Published {
            transport: Transport::Tcp,
            host: None,
            host_port: 1000 + n as u16,
            count: 1,
            target: [10, 77, 0, n as u8].into(),
            target_port: 80,
        });
        let start = Instant::now();
        firewall.apply(&rules).unwrap();
        start.elapsed()
    });
    row("rules: nothing changed", &mut |_| {
        let start = Instant::now();
        firewall.apply(&rules).unwrap();
        start.elapsed()
    });
    row("rules: all replaced by nft", &mut |n| {
        rules.networks[0].reaches = vec![format!("x{n}")];
        let mut fresh = lab.host.run(|| Firewall::open(prefix()).unwrap());
        let start = Instant::now();
        fresh.apply(&rules).unwrap();
        start.elapsed()
    });
    let mut out = std::io::stdout().lock();
    for (name, mut times) in rows {
        times.sort();
        let (median, least) = (times[times.len() / 2], times[0]);
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        writeln!(
            out,
            "{name:55} {:8.3} ms  (min {:.3})",
            ms(median),
            ms(least)
        )
        .unwrap();
    }
}
