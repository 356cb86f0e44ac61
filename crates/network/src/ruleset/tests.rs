//! Rules as text, and what cannot be expressed.

use super::*;
use crate::Outside;

fn sample() -> Rules {
    let network = |name: &str, number: u8, outside, reaches: &[&str]| NetworkConfig {
        name: name.to_owned(),
        gateway4: Some(format!("10.77.{number}.1/24").parse().unwrap()),
        gateway6: Some(format!("fd77:{number}::1/64").parse().unwrap()),
        mtu: None,
        outside,
        reaches: reaches.iter().map(|name| (*name).to_owned()).collect(),
    };
    let target: IpAddr = "10.77.0.2".parse().unwrap();
    let published = |host: Option<&str>, host_port, count, target| Published {
        transport: Transport::Tcp,
        host: host.map(|host| host.parse().unwrap()),
        host_port,
        count,
        target,
        target_port: 80,
    };
    Rules {
        networks: vec![
            network("default", 0, Outside::Nat, &["dmz"]),
            network("dmz", 1, Outside::Routed, &[]),
            network("inner", 2, Outside::Internal, &[]),
        ],
        published: vec![
            published(None, 8080, 2, target),
            published(Some("192.0.2.1"), 8080, 1, target),
            published(None, 8080, 1, "fd77::2".parse().unwrap()),
        ],
        guarded: vec![Guarded {
            port: Prefix::parse("lab").unwrap().link("web"),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: vec![target, "fd77::2".parse().unwrap()],
        }],
        limited: Vec::new(),
        loopback6: true,
    }
}

/// The text is compared with the file; `UPDATE_SNAPSHOTS=1` writes it anew, to be read in review.
#[test]
fn the_text_is_as_reviewed() {
    let text = render(&Prefix::parse("lab").unwrap(), &sample()).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ruleset/snapshot.nft");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let reviewed = std::fs::read_to_string(path).unwrap();
    // Line by line, so that a failure shows the line and not both files.
    for (ours, reviewed) in text.lines().zip(reviewed.lines()) {
        assert_eq!(ours, reviewed);
    }
    assert_eq!(text.lines().count(), reviewed.lines().count());
}

#[test]
fn order_and_repetition_do_not_matter() {
    let prefix = Prefix::parse("lab").unwrap();
    let (rules, mut other) = (sample(), sample());
    other.networks.reverse();
    other.published.reverse();
    other.published.extend(rules.published.clone());
    assert_eq!(
        compile(&prefix, &rules).unwrap(),
        compile(&prefix, &other).unwrap()
    );
    other.networks.pop();
    let fewer = compile(&prefix, &other).unwrap();
    assert_ne!(fewer.skeleton, compile(&prefix, &rules).unwrap().skeleton);
}

#[test]
fn ranges_that_end_nowhere_and_mixed_families_are_refused() {
    let with = |change: fn(&mut Published)| {
        let mut rules = sample();
        change(&mut rules.published[0]);
        check(&rules)
    };
    assert_eq!(with(|_| ()), Ok(()));
    assert!(matches!(
        with(|p| p.count = 0),
        Err(RulesError::PortRange { .. })
    ));
    assert!(matches!(
        with(|p| p.host_port = 65535),
        Err(RulesError::PortRange { .. })
    ));
    assert!(matches!(
        with(|p| p.target_port = 65535),
        Err(RulesError::PortRange { .. })
    ));
    assert!(matches!(
        with(|p| p.host_port = 0),
        Err(RulesError::PortRange { .. })
    ));
    let mixed = with(|p| p.host = Some("::1".parse().unwrap()));
    assert!(matches!(mixed, Err(RulesError::Families { .. })));
}

#[test]
fn limited_ways_are_policed_port_by_port() {
    let prefix = Prefix::parse("lab").unwrap();
    let free = render(&prefix, &sample()).unwrap();
    assert!(!free.contains("limit rate"), "{free}");
    let port = prefix.link("web");
    let rate = |bytes, burst| Some(Rate { bytes, burst });
    let limited = Rules {
        limited: vec![
            Limited {
                port: port.clone(),
                receive: None,
                send: rate(1000, 1 << 20),
            },
            Limited {
                port: prefix.link("db"),
                receive: rate(u64::MAX, u64::MAX),
                send: rate(1, 0),
            },
        ],
        ..sample()
    };
    let text = render(&prefix, &limited).unwrap();
    let db = prefix.link("db");
    // Names are hashes: sorted, like all that is listed.
    let mut members = [&db, &port].map(|port| format!("\"{port}\" : jump send_{port}"));
    members.sort_unstable();
    let [first, second] = members;
    for expected in [
        format!(
            "chain send_{port} {{\n\t\tlimit rate over 1000 bytes/second burst 1048576 bytes drop"
        ),
        // What cannot be kept to, or would let nothing through, is brought to what can.
        format!("chain send_{db} {{\n\t\tlimit rate over 1 bytes/second burst 131072 bytes drop"),
        format!(
            "chain receive_{db} {{\n\t\tlimit rate over 9000000000 bytes/second burst 4294967295 bytes"
        ),
        format!("iifname vmap {{ {first}, {second} }}"),
        format!("oifname vmap {{ \"{db}\" : jump receive_{db} }}"),
    ] {
        assert!(text.contains(&expected), "{expected}: {text}");
    }
}
