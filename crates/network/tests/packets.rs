//! What packets may do: real connections through the real rules.
#![allow(clippy::unwrap_used)]

mod lab;

use std::net::{IpAddr, UdpSocket};

use lab::{Instance, Lab, net, prefix};
use network::{
    Applied, Firewall, Guarded, NetworkConfig, Outside, Published, Rules, RulesError, Transport,
};

fn published(host: Option<&str>, host_port: u16, target: IpAddr, target_port: u16) -> Published {
    let host = host.map(|host| host.parse().unwrap());
    Published {
        transport: Transport::Tcp,
        host,
        host_port,
        count: 1,
        target,
        target_port,
    }
}

fn guarded(instances: &[&Instance]) -> Vec<Guarded> {
    instances
        .iter()
        .map(|instance| instance.guarded.clone())
        .collect()
}

fn firewall(lab: &Lab) -> Firewall {
    lab.host.run(|| Firewall::open(prefix()).unwrap())
}

fn ensure(lab: &Lab, networks: &[&NetworkConfig]) {
    for network in networks {
        lab.driver.ensure_network(network).unwrap();
    }
}

#[test]
fn published_ports_lead_in_from_everywhere_and_nothing_else_does() {
    let lab = Lab::new();
    published_ports(&lab);
    assert!(lab.driver.answers_on_loopback6());
}

/// Other software may have loaded `br_netfilter`, which shows bridged packets to the rules.
#[test]
fn published_ports_do_the_same_where_bridged_packets_pass_the_rules() {
    let lab = Lab::new();
    if !std::path::Path::new("/proc/sys/net/bridge").exists() {
        eprintln!("SKIP published_ports with br_netfilter: the module is not loaded");
        return;
    }
    lab.host
        .sh("for f in /proc/sys/net/bridge/bridge-nf-call-*; do echo 1 > $f; done");
    published_ports(&lab);
    assert!(!lab.driver.answers_on_loopback6());
}

fn published_ports(lab: &Lab) {
    let (a, b) = (net("a", 1, Outside::Nat), net("b", 2, Outside::Nat));
    ensure(lab, &[&a, &b]);
    let web = lab.instance("web", &a, 2);
    let peer = lab.instance("peer", &a, 3);
    let far = lab.instance("far", &b, 2);
    let mut firewall = firewall(lab);
    let [v4, v6] = [web.guarded.addresses[0], web.guarded.addresses[1]];
    let rules = Rules {
        networks: vec![a, b],
        published: vec![
            published(None, 8080, v4, 80),
            published(None, 8080, v6, 80),
            published(Some("127.0.0.1"), 8081, v4, 80),
            published(Some("fd01::1"), 8082, v6, 80),
            published(Some("::1"), 8083, v6, 80),
            published(None, 8084, far.guarded.addresses[1], 80),
        ],
        guarded: guarded(&[&web, &peer, &far]),
        limited: Vec::new(),
        loopback6: lab.driver.answers_on_loopback6(),
    };
    assert_eq!(firewall.apply(&rules).unwrap(), Applied::Replaced);
    web.ns.serve("[::]:80");
    far.ns.serve("[::]:80");
    lab.outside.serve("[::]:80");
    let host_from = |address: &str| Some(address.to_owned());

    // Outwards, under the host's address.
    assert_eq!(web.ns.ask("192.0.2.2:80"), host_from("192.0.2.1"));
    assert_eq!(web.ns.ask("[fd01::2]:80"), host_from("fd01::1"));
    // Inwards, with the client's own address.
    assert_eq!(lab.outside.ask("192.0.2.1:8080"), host_from("192.0.2.2"));
    assert_eq!(lab.outside.ask("[fd01::1]:8080"), host_from("fd01::2"));
    assert_eq!(lab.outside.ask("[fd01::1]:8082"), host_from("fd01::2"));
    // From the host itself: localhost, its own address, the instance's address.
    assert_eq!(lab.host.ask("127.0.0.1:8080"), host_from("10.77.1.1"));
    assert_eq!(lab.host.ask("127.0.0.1:8081"), host_from("10.77.1.1"));
    assert_eq!(lab.host.ask("192.0.2.1:8080"), host_from("192.0.2.1"));
    assert_eq!(lab.host.ask("10.77.1.2:80"), host_from("10.77.1.1"));
    for (address, bridge) in [
        ("[::1]:8080", "fd77:1::1"),
        ("[::1]:8083", "fd77:1::1"),
        ("[::1]:8084", "fd77:2::1"),
    ] {
        match lab.driver.answers_on_loopback6() {
            true => assert_eq!(lab.host.ask(address), host_from(bridge), "{address}"),
            false => assert!(lab.host.barred(address), "{address}"),
        }
    }
    assert_eq!(lab.host.ask("[fd01::1]:8080"), host_from("fd01::1"));
    assert!(
        lab.host.barred("[::1]:8082"),
        "published on another address"
    );
    lab.host.serve("[::1]:9001");
    assert_eq!(lab.host.ask("[::1]:9001"), host_from("::1"));
    // From the instance itself, its neighbour, and another network.
    assert_eq!(web.ns.ask("192.0.2.1:8080"), host_from("10.77.1.1"));
    assert_eq!(peer.ns.ask("192.0.2.1:8080"), host_from("10.77.1.1"));
    assert_eq!(peer.ns.ask("[fd01::1]:8080"), host_from("fd77:1::1"));
    assert_eq!(far.ns.ask("192.0.2.1:8080"), host_from("10.77.2.2"));
    assert_eq!(peer.ns.ask("10.77.1.2:80"), host_from("10.77.1.3"));
    // What is published on localhost only stays there.
    assert!(lab.outside.barred("192.0.2.1:8081"));
    assert!(peer.ns.barred("192.0.2.1:8081"));
    assert!(lab.outside.barred("192.0.2.1:8082"));
    assert!(lab.outside.barred("[fd01::1]:8083"));
    // Knowing the way is not enough, and loopback is not for instances.
    lab.outside.sh("ip route add 10.77.0.0/16 via 192.0.2.1");
    assert!(lab.outside.barred("10.77.1.2:80"));
    lab.host.serve("127.0.0.1:9000");
    peer.ns
        .sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
         ip link set lo down; ip addr flush dev lo; ip route add 127.0.0.0/8 via 10.77.1.1");
    assert!(peer.ns.barred("127.0.0.1:9000"));
    lab.host.sh("nft flush chain inet lab_net raw");
    assert!(
        peer.ns.ask("127.0.0.1:9000").is_some(),
        "only the rule kept it out"
    );
    assert!(
        far.ns.barred("10.77.1.2:80"),
        "other networks' instances are out of reach"
    );
    // A gateway answers its own network only.
    lab.host.serve("10.77.1.1:7000");
    assert!(web.ns.ask("10.77.1.1:7000").is_some() && lab.host.ask("10.77.1.1:7000").is_some());
    assert!(far.ns.barred("10.77.1.1:7000"));
    assert!(lab.outside.barred("10.77.1.1:7000"));
}

#[test]
fn networks_meet_only_where_that_was_asked_for() {
    let lab = Lab::new();
    let mut shop = net("shop", 1, Outside::Routed);
    let inner = net("inner", 2, Outside::Internal);
    let other = net("other", 3, Outside::Nat);
    shop.reaches = vec!["other".to_owned(), "nonexistent".to_owned()];
    ensure(&lab, &[&shop, &inner, &other]);
    let front = lab.instance("front", &shop, 2);
    let [db, db2] = [2, 3].map(|last| lab.instance(&format!("db{last}"), &inner, last));
    let app = lab.instance("app", &other, 2);
    let isolated = [4, 5]
        .map(|last| lab.instance_with(&format!("iso{last}"), &other, last, |a| a.isolated = true));
    let mut firewall = firewall(&lab);
    let rules = Rules {
        networks: vec![shop, inner, other],
        published: vec![published(None, 5432, db.guarded.addresses[0], 80)],
        guarded: guarded(&[&front, &db, &db2, &app, &isolated[0], &isolated[1]]),
        limited: Vec::new(),
        loopback6: true,
    };
    firewall.apply(&rules).unwrap();
    lab.outside.sh("ip route add 10.77.0.0/16 via 192.0.2.1");
    for instance in [&front, &db, &app, &isolated[0]] {
        instance.ns.serve("[::]:80");
    }
    lab.outside.serve("[::]:80");
    let says = |address: &str| Some(address.to_owned());
    // Routed: own addresses, both ways.
    assert_eq!(front.ns.ask("192.0.2.2:80"), says("10.77.1.2"));
    assert_eq!(lab.outside.ask("10.77.1.2:80"), says("192.0.2.2"));
    // Asked for by one side, good for both.
    assert_eq!(front.ns.ask("10.77.3.2:80"), says("10.77.1.2"));
    assert_eq!(app.ns.ask("[fd77:1::2]:80"), says("fd77:3::2"));
    // Internal: among themselves and from the host, nothing else.
    assert_eq!(db2.ns.ask("10.77.2.2:80"), says("10.77.2.3"));
    assert_eq!(lab.host.ask("127.0.0.1:5432"), says("10.77.2.1"));
    for closed in [
        "192.0.2.2:80",
        "[fd01::2]:80",
        "10.77.1.2:80",
        "192.0.2.1:22",
    ] {
        assert!(db2.ns.barred(closed), "{closed}");
    }
    assert!(front.ns.barred("10.77.2.2:80"));
    assert!(lab.outside.barred("192.0.2.1:5432"));
    // Isolated ports: the gateway and the outside, but not each other.
    assert_eq!(isolated[1].ns.ask("192.0.2.2:80"), says("192.0.2.1"));
    assert!(isolated[1].ns.barred("10.77.3.4:80"));
    assert_eq!(app.ns.ask("10.77.3.4:80"), says("10.77.3.2"));
}

#[test]
fn an_instance_cannot_pose_as_another() {
    let lab = Lab::new();
    let a = net("a", 1, Outside::Nat);
    ensure(&lab, &[&a]);
    let (honest, forger) = (lab.instance("honest", &a, 2), lab.instance("forger", &a, 3));
    let newcomer = lab.instance("newcomer", &a, 4);
    let mut firewall = firewall(&lab);
    let mut rules = Rules {
        networks: vec![a],
        published: Vec::new(),
        guarded: guarded(&[&honest, &forger]),
        limited: Vec::new(),
        loopback6: true,
    };
    firewall.apply(&rules).unwrap();
    honest.ns.serve("[::]:80");
    assert!(forger.ns.ask("10.77.1.2:80").is_some());
    assert!(
        newcomer.ns.barred("10.77.1.2:80"),
        "an unknown port passes nothing"
    );
    rules.guarded.push(newcomer.guarded.clone());
    assert_eq!(firewall.apply(&rules).unwrap(), Applied::Elements(4));
    newcomer.ns.sh("ip neigh flush all");
    assert!(newcomer.ns.ask("10.77.1.2:80").is_some());
    // Claiming an address by advertisement instead of using it.
    forger.ns.sh(
        "cd /proc/sys/net/ipv6; echo 1 > conf/all/forwarding; echo 1 > conf/eth0/proxy_ndp
         echo 0 > neigh/eth0/proxy_delay; ip neigh add proxy fd77:1::99 dev eth0",
    );
    let claimed = || {
        newcomer.ns.sh("ip neigh flush all");
        assert!(newcomer.ns.barred("[fd77:1::99]:80"));
        let forger = forger.guarded.mac.to_string();
        newcomer
            .ns
            .sh("ip -6 neigh show fd77:1::99")
            .contains(&forger)
    };
    assert!(
        !claimed(),
        "an advertisement for an address that is not the sender's"
    );
    lab.host.sh("nft flush chain bridge lab_net guard");
    assert!((0..20).any(|_| claimed()), "only the rule kept it out");
    firewall = self::firewall(&lab);
    firewall.apply(&rules).unwrap();
    for forged in ["10.77.1.9/24", "fd77:1::9/64"] {
        forger.ns.sh(&format!(
            "ip addr flush dev eth0; ip addr add {forged} dev eth0 nodad || true"
        ));
        forger.ns.sh(&format!(
            "ip addr add {forged} dev eth0 2>/dev/null || true"
        ));
        assert!(forger.ns.barred("10.77.1.2:80"), "{forged}");
        assert!(forger.ns.barred("[fd77:1::2]:80"), "{forged}");
    }
    forger.ns.sh(
        "ip addr flush dev eth0; ip link set eth0 address 02:00:00:00:00:99
         ip addr add 10.77.1.3/24 dev eth0",
    );
    assert!(forger.ns.barred("10.77.1.2:80"), "another hardware address");
    forger
        .ns
        .sh(&format!("ip link set eth0 address {}", forger.guarded.mac));
    assert!(
        forger.ns.ask("10.77.1.2:80").is_some(),
        "the honest way still works"
    );
}

#[test]
fn small_changes_end_in_the_same_rules_as_replacing_everything() {
    let lab = Lab::new();
    let a = net("a", 1, Outside::Nat);
    let mut firewall = firewall(&lab);
    let many = |range: std::ops::Range<u16>| Rules {
        networks: vec![a.clone()],
        published: range
            .clone()
            .flat_map(|port| {
                let v4 = [10, 77, 1, 2].into();
                [
                    published(None, port, v4, 80),
                    published(Some("192.0.2.1"), port + 1, v4, 81),
                    published(None, port, "fd77:1::2".parse().unwrap(), port),
                    published(Some("fd01::1"), port + 1, "fd77:1::2".parse().unwrap(), 9),
                ]
            })
            .collect(),
        guarded: range
            .map(|n| Guarded {
                port: prefix().link(&n.to_string()),
                mac: network::Mac::derive(&n.to_string()),
                addresses: vec![[10, 77, 1, n as u8].into(), "fd77:1::7".parse().unwrap()],
            })
            .collect(),
        limited: Vec::new(),
        loopback6: true,
    };
    let list = || {
        let text = lab.host.sh("nft -j list ruleset");
        lab.host.sh(&format!(
            "echo '{}' | jq -S '[.nftables[] | del(.. | .handle?) | \
             if .map then .map.elem |= (. // [] | sort) elif .set then .set.elem |= (. // [] | sort) \
             else . end | select(.metainfo | not)]'",
            text.replace('\'', "")
        ))
    };
    assert_eq!(firewall.apply(&many(10..60)).unwrap(), Applied::Replaced);
    assert_eq!(firewall.apply(&many(10..60)).unwrap(), Applied::Unchanged);
    // Some go, some come, some stay, and one leads elsewhere now.
    let mut rules = many(30..90);
    rules.published[0].target_port = 8888;
    assert!(matches!(
        firewall.apply(&rules).unwrap(),
        Applied::Elements(_)
    ));
    let by_elements = list();
    let mut fresh = lab.host.run(|| Firewall::open(prefix()).unwrap());
    assert_eq!(fresh.apply(&rules).unwrap(), Applied::Replaced);
    assert_eq!(list(), by_elements);
    assert!(by_elements.contains("8888"));

    // Another tool's flush is noticed, whether or not anything else changed.
    for port in [30, 31] {
        rules.published[0].target_port = port;
        lab.host.sh("nft flush ruleset");
        if port == 31 {
            rules.published[0].target_port = 30;
        }
        assert_eq!(firewall.apply(&rules).unwrap(), Applied::Replaced);
    }
    // Contradictions are refused, and the rules in force stay.
    let before = list();
    rules
        .published
        .push(published(None, 31, [10, 77, 1, 3].into(), 80));
    let refused = firewall.apply(&rules).unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(
        source.contains("port 31/tcp") && source.contains("10.77.1.3:80"),
        "{source}"
    );
    assert_eq!(list(), before);
    let range = Published {
        count: 2,
        ..published(None, 65535, [10, 77, 1, 3].into(), 80)
    };
    let rules = Rules {
        published: vec![range],
        ..Rules::default()
    };
    assert!(matches!(
        network::ruleset::check(&rules),
        Err(RulesError::PortRange { .. })
    ));

    firewall.remove().unwrap();
    firewall.remove().unwrap();
    assert_eq!(lab.host.sh("nft list ruleset").trim(), "");
}

/// Sends from one socket, so that it is one flow all along, until something is heard back.
fn hears(lab: &Lab, socket: &UdpSocket, tries: usize) -> Option<String> {
    let mut buffer = [0; 64];
    lab.outside.run(|| {
        // The first may only fetch a complaint about an earlier one.
        for _ in 0..tries {
            if socket.send(b"?").is_ok()
                && let Ok(length) = socket.recv(&mut buffer)
            {
                return Some(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        }
        None
    })
}

#[test]
fn a_udp_client_that_never_pauses_follows_changes_of_published_ports() {
    let lab = Lab::new();
    let a = net("a", 1, Outside::Nat);
    ensure(&lab, &[&a]);
    let instances = [("one", 2), ("two", 3)].map(|(key, last)| lab.instance(key, &a, last));
    for (instance, name) in instances.iter().zip(["one", "two"]) {
        let socket = instance.ns.run(|| UdpSocket::bind("[::]:53").unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                socket.send_to(name.as_bytes(), client).unwrap();
            }
        });
    }
    let mut firewall = firewall(&lab);
    let publish = |n: usize| Published {
        transport: Transport::Udp,
        ..published(None, 5000, instances[n].guarded.addresses[0], 53)
    };
    let mut rules = Rules {
        networks: vec![a],
        published: Vec::new(),
        guarded: guarded(&[&instances[0], &instances[1]]),
        limited: Vec::new(),
        loopback6: true,
    };
    firewall.apply(&rules).unwrap();
    let client = lab
        .outside
        .run(|| UdpSocket::bind("192.0.2.2:4000").unwrap());
    client
        .set_read_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    client.connect("192.0.2.1:5000").unwrap();
    assert_eq!(hears(&lab, &client, 3), None, "nothing is published yet");
    for (n, name) in ["one", "two"].into_iter().enumerate() {
        rules.published = vec![publish(n)];
        assert!(matches!(
            firewall.apply(&rules).unwrap(),
            Applied::Elements(_)
        ));
        assert_eq!(hears(&lab, &client, 50).as_deref(), Some(name));
    }
    rules.published.clear();
    firewall.apply(&rules).unwrap();
    assert_eq!(hears(&lab, &client, 3), None, "no longer published");
    rules.published = vec![Published {
        target: instances[0].guarded.addresses[1],
        ..publish(0)
    }];
    firewall.apply(&rules).unwrap();
    let local = lab.host.run(|| UdpSocket::bind("[::1]:0").unwrap());
    local
        .set_read_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    local.connect("[::1]:5000").unwrap();
    assert_eq!(hears(&lab, &local, 50).as_deref(), Some("one"));
}

#[test]
fn what_the_hosts_own_firewall_drops_stays_dropped() {
    let lab = Lab::new();
    let a = net("a", 1, Outside::Nat);
    ensure(&lab, &[&a]);
    let web = lab.instance("web", &a, 2);
    web.ns.serve("[::]:80");
    lab.host.sh("nft add table inet admin
         nft 'add chain inet admin forward { type filter hook forward priority 10; }'
         nft 'add rule inet admin forward meta l4proto tcp ct original proto-dst 8080 drop'");
    let mut firewall = firewall(&lab);
    let v4 = web.guarded.addresses[0];
    let rules = Rules {
        networks: vec![a],
        published: vec![published(None, 8080, v4, 80), published(None, 8081, v4, 80)],
        guarded: guarded(&[&web]),
        limited: Vec::new(),
        loopback6: true,
    };
    firewall.apply(&rules).unwrap();
    assert!(lab.outside.barred("192.0.2.1:8080"));
    assert!(lab.outside.ask("192.0.2.1:8081").is_some());
    firewall.remove().unwrap();
    assert!(lab.host.sh("nft list ruleset").contains("table inet admin"));
}
