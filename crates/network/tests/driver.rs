//! The driver against the real kernel.
#![allow(clippy::unwrap_used)]

mod lab;

use std::collections::BTreeSet;

use lab::{Lab, net};
use network::{AttachError, EnsureError, Outside};

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn networks_are_brought_into_the_wanted_state_and_only_if_needed() {
    let lab = Lab::new();
    let mut config = net("default", 0, Outside::Nat);
    lab.host
        .sh("echo 1 > /proc/sys/net/ipv6/conf/wan0/accept_ra");
    let bridge = lab.driver.ensure_network(&config).unwrap();
    assert_eq!(bridge.as_str(), "lab-default");
    let look = || {
        lab.host
            .sh("ip -o addr show lab-default; ip link show lab-default")
    };
    let before = look();
    assert!(
        before.contains("10.77.0.1/24") && before.contains("fd77::1/64"),
        "{before}"
    );
    assert_eq!(lab.host.sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    let ra = lab.host.sh("cat /proc/sys/net/ipv6/conf/wan0/accept_ra");
    assert_eq!(
        ra.trim(),
        "2",
        "the host's own interface still learns its routes"
    );
    lab.driver.ensure_network(&config).unwrap();
    assert_eq!(look(), before, "ensuring again changes nothing");

    config.gateway4 = Some("10.78.0.1/16".parse().unwrap());
    config.gateway6 = None;
    config.mtu = Some(1400);
    lab.driver.ensure_network(&config).unwrap();
    let after = look();
    assert!(
        after.contains("10.78.0.1/16") && after.contains("mtu 1400"),
        "{after}"
    );
    assert!(
        !after.contains("10.77.0.1") && !after.contains("fd77"),
        "{after}"
    );
    lab.host
        .sh("ip link set lab-default down; ip addr flush dev lab-default");
    lab.driver.ensure_network(&config).unwrap();
    assert!(
        look().contains("10.78.0.1/16"),
        "what somebody else broke is mended"
    );

    lab.host.sh("ip link add lab-other type veth peer name x0");
    let taken = lab
        .driver
        .ensure_network(&net("other", 1, Outside::Nat))
        .unwrap_err();
    assert!(matches!(taken, EnsureError::Taken { .. }), "{taken}");
    assert!(taken.to_string().contains("veth"), "{taken}");
    assert!(lab.driver.remove_network("default").unwrap());
    assert!(
        !lab.driver.remove_network("default").unwrap(),
        "removing again is no error"
    );
}

#[test]
fn what_a_crash_left_is_swept_and_nothing_else() {
    let lab = Lab::new();
    let (kept, gone) = (net("kept", 0, Outside::Nat), net("gone", 1, Outside::Nat));
    for config in [&kept, &gone] {
        lab.driver.ensure_network(config).unwrap();
    }
    let web = lab.instance("web", &kept, 2);
    let _stale = lab.instance("stale", &kept, 3);
    let _other = lab.instance("on-gone", &gone, 2);
    // Half made: killed between making and marking; and things of others.
    lab.host.sh("ip link add lab.halfmade type veth peer name x0
         ip link add lab-halfmade type bridge
         ip link add labx-foreign type bridge
         ip link add veth7 type veth peer name veth8");
    let observed = lab.driver.observe().unwrap();
    assert_eq!(
        (observed.networks.len(), observed.attachments.len()),
        (3, 4)
    );
    let of_web = observed
        .attachments
        .iter()
        .find(|a| a.key.as_deref() == Some("web"))
        .unwrap();
    assert_eq!((of_web.network.as_deref(), of_web.up), (Some("kept"), true));

    let swept = lab.driver.sweep(&set(&["kept"]), &set(&["web"])).unwrap();
    assert_eq!(
        (swept.bridges.len(), swept.links.len()),
        (2, 3),
        "{swept:?}"
    );
    let again = lab.driver.sweep(&set(&["kept"]), &set(&["web"])).unwrap();
    assert_eq!(
        again,
        network::Swept::default(),
        "sweeping again finds nothing"
    );
    let left = lab.host.sh("ip -o link");
    for name in [
        "labx-foreign",
        "veth7",
        "lab-kept",
        "wan0",
        web.guarded.port.as_str(),
    ] {
        assert!(left.contains(name), "{name} is gone:\n{left}");
    }
    assert!(lab.driver.detach("web").unwrap());
    assert!(
        !lab.driver.detach("web").unwrap(),
        "detaching again is no error"
    );
    // An instance's end takes its link along, without anybody's help.
    let last = lab.instance("last", &kept, 4);
    drop(last);
    while !lab.driver.observe().unwrap().attachments.is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    lab.driver.sweep(&set(&[]), &set(&[])).unwrap();
    assert_eq!(lab.driver.observe().unwrap(), network::Observed::default());
}

#[test]
fn attaching_again_replaces_and_failing_leaves_nothing() {
    let lab = Lab::new();
    let config = net("default", 0, Outside::Nat);
    let ns = lab::Ns::new();
    let (addresses, gateways) = lab::addresses(&config, 2);
    let attachment = network::Attachment {
        key: "web",
        network: "default",
        netns: ns.fd(),
        ifname: network::IfName::parse("eth0").unwrap(),
        mac: network::Mac::derive("web"),
        addresses,
        gateways,
        mtu: Some(1300),
        hairpin: true,
        isolated: true,
    };
    let missing = lab.driver.attach(&attachment).unwrap_err();
    assert!(
        matches!(missing, AttachError::NoNetwork { .. }),
        "{missing}"
    );
    lab.driver.ensure_network(&config).unwrap();
    let first = lab.driver.attach(&attachment).unwrap();
    let second = lab.driver.attach(&attachment).unwrap();
    assert_eq!(first.host_ifname, second.host_ifname);
    let inside = ns.sh("ip -o addr; ip route; ip -6 route; ip link show eth0");
    for part in [
        "10.77.0.2/24",
        "fd77::2/64",
        "default via 10.77.0.1",
        "default via fd77::1",
        "mtu 1300",
    ] {
        assert!(inside.contains(part), "{part} is missing:\n{inside}");
    }
    assert!(
        inside.contains(&network::Mac::derive("web").to_string()),
        "{inside}"
    );
    assert!(inside.contains("127.0.0.1"), "loopback is up:\n{inside}");
    let port = lab
        .host
        .sh(&format!("ip -d link show {}", first.host_ifname));
    assert!(
        port.contains("hairpin on") && port.contains("isolated on"),
        "{port}"
    );
    assert!(port.contains("alias web"), "{port}");

    // The name inside is taken by another attachment.
    let clash = network::Attachment {
        key: "clash",
        ..attachment.clone()
    };
    let error = lab.driver.attach(&clash).unwrap_err();
    assert!(matches!(error, AttachError::Netlink { .. }), "{error}");
    // The name outside is taken by what another key made.
    let taken = lab.driver.host_ifname("collides");
    lab.host.sh(&format!(
        "ip link add {taken} type veth peer name x0; ip link set {taken} alias other"
    ));
    let collision = network::Attachment {
        key: "collides",
        ..attachment.clone()
    };
    let error = lab.driver.attach(&collision).unwrap_err();
    assert!(matches!(error, AttachError::Taken { .. }), "{error}");
    assert!(
        !lab.driver.detach("collides").unwrap(),
        "nor is it detached by that key"
    );
    assert!(
        lab.host
            .sh(&format!("ip link show {taken}"))
            .contains("alias other")
    );
    lab.host.sh(&format!("ip link del {taken}"));
    // A gateway that is not reachable: refused inside, after the link was made.
    let unreachable = network::Attachment {
        key: "unreachable",
        ifname: network::IfName::parse("eth1").unwrap(),
        addresses: Vec::new(),
        gateways: vec!["203.0.113.1".parse().unwrap()],
        ..attachment.clone()
    };
    let error = lab.driver.attach(&unreachable).unwrap_err();
    assert!(matches!(error, AttachError::Netlink { .. }), "{error}");
    assert_eq!(
        lab.driver.observe().unwrap().attachments.len(),
        1,
        "failures leave nothing"
    );
}

/// A process in a user namespace of its own, ended with this guard.
struct Unprivileged(std::process::Child);

impl Drop for Unprivileged {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_namespace_owned_by_a_user_namespace_is_reached_by_its_process() {
    let lab = Lab::new();
    let config = net("default", 0, Outside::Nat);
    lab.driver.ensure_network(&config).unwrap();
    // IPv6 off by default, as hosts that do not use it pass on to their namespaces.
    let script = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6; echo; exec sleep 60";
    let mut child = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .map(Unprivileged)
        .unwrap();
    let mut ready = [0];
    std::io::Read::read_exact(child.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let netns = std::fs::File::open(format!("/proc/{}/ns/net", child.0.id())).unwrap();
    let (addresses, gateways) = lab::addresses(&config, 2);
    let attachment = network::Attachment {
        key: "unprivileged",
        network: "default",
        netns: std::os::fd::AsFd::as_fd(&netns),
        ifname: network::IfName::parse("eth0").unwrap(),
        mac: network::Mac::derive("unprivileged"),
        addresses,
        gateways,
        mtu: None,
        hairpin: false,
        isolated: false,
    };
    lab.driver.attach(&attachment).unwrap();
    let inside = format!(
        "nsenter --net=/proc/{}/ns/net ip -o addr show eth0",
        child.0.id()
    );
    let inside = lab.host.sh(&inside);
    assert!(
        inside.contains("10.77.0.2/24") && inside.contains("fd77::2/64"),
        "{inside}"
    );
    let neighbours = lab.host.sh("ip neigh show dev lab-default");
    let known = neighbours.matches(&attachment.mac.to_string()).count();
    assert_eq!(known, 2, "the host knows it without asking: {neighbours}");
}

#[test]
fn many_attach_at_once() {
    let lab = Lab::new();
    let config = net("default", 0, Outside::Nat);
    lab.driver.ensure_network(&config).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let (lab, config) = (&lab, &config);
            scope.spawn(move || {
                for round in 0..5_u8 {
                    let key = format!("{thread}/{round}");
                    let instance = lab.instance(&key, config, 2 + thread * 5 + round);
                    assert!(instance.ns.sh("ip route").contains("default via 10.77.0.1"));
                    if round % 2 == 0 {
                        assert!(lab.driver.detach(&key).unwrap());
                    }
                }
            });
        }
    });
    let known: BTreeSet<String> = (0..4).map(|thread| format!("{thread}/1")).collect();
    lab.driver.sweep(&set(&["default"]), &known).unwrap();
    for attachment in lab.driver.observe().unwrap().attachments {
        assert!(known.contains(&attachment.key.unwrap()));
    }
}
