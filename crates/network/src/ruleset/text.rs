//! The tables as nftables text.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Element, Limited, Rate, Rules};
use crate::{IfName, NetworkConfig, Outside, Prefix};

/// The sets whose members are [`Element`]s of the `inet` table, with their declarations.
const INET_MAPS: [(&str, &str); 4] = [
    (
        "publish4",
        "inet_proto . inet_service : ipv4_addr . inet_service",
    ),
    (
        "publish4_at",
        "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    ),
    (
        "publish6",
        "inet_proto . inet_service : ipv6_addr . inet_service",
    ),
    (
        "publish6_at",
        "ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service",
    ),
];

/// The same of the `bridge` table.
const BRIDGE_SETS: [(&str, &str); 4] = [
    ("senders", "ifname . ether_addr"),
    ("leases4", "ifname . ether_addr . ipv4_addr"),
    ("leases6", "ifname . ether_addr . ipv6_addr"),
    ("targets6", "typeof iifname . ether saddr . @th,64,128"),
];

/// What a network contributes to a set, if anything.
type Member = fn(&IfName, &NetworkConfig) -> Option<String>;

/// The sets that follow from networks, each with its type and its members.
const NETWORK_SETS: [(&str, &str, Member); 9] = [
    ("bridges", "ifname", |bridge, _| Some(quoted(bridge))),
    ("nat", "ifname", |bridge, n| {
        (n.outside == Outside::Nat).then(|| quoted(bridge))
    }),
    ("routed", "ifname", |bridge, n| {
        (n.outside == Outside::Routed).then(|| quoted(bridge))
    }),
    ("internal", "ifname", |bridge, n| {
        (n.outside == Outside::Internal).then(|| quoted(bridge))
    }),
    ("same", "ifname . ifname", |bridge, _| {
        Some(pair(bridge, bridge))
    }),
    ("gateways4", "ipv4_addr", |_, n| {
        Some(n.gateway4?.ip().to_string())
    }),
    ("gateways6", "ipv6_addr", |_, n| {
        Some(n.gateway6?.ip().to_string())
    }),
    // By subnet and not by incoming interface: the kernel knows none for bridged packets.
    (
        "subnets4",
        "ifname . ipv4_addr; flags interval",
        |bridge, n| {
            let subnet = n.gateway4?;
            Some(format!(
                "\"{bridge}\" . {}/{}",
                subnet.network(),
                subnet.prefix()
            ))
        },
    ),
    (
        "subnets6",
        "ifname . ipv6_addr; flags interval",
        |bridge, n| {
            let subnet = n.gateway6?;
            Some(format!(
                "\"{bridge}\" . {}/{}",
                subnet.network(),
                subnet.prefix()
            ))
        },
    ),
];

/// Chains of the `inet` table; `LOOPBACK6` stands for what becomes of connections to `::1`.
/// Priorities are nftables' standard ones.
const INET_CHAINS: &str = r#"
	chain raw {
		type filter hook prerouting priority raw; policy accept;
		iifname @bridges ip daddr 127.0.0.0/8 drop comment "loopback is routable for published ports only"
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump publish
	}

	chain output {
		type nat hook output priority -100; policy accept;
		LOOPBACK6
		fib daddr type local jump publish
	}

	chain publish {
		ip daddr @gateways4 th dport 53 return comment "names are always answered by the gateway"
		ip6 daddr @gateways6 th dport 53 return
		dnat ip to ip daddr . meta l4proto . th dport map @publish4_at
		dnat ip to meta l4proto . th dport map @publish4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @publish6_at
		dnat ip6 to meta l4proto . th dport map @publish6
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		iifname @nat oifname != @bridges masquerade
		oifname @bridges ip saddr 127.0.0.0/8 masquerade comment "published on localhost"
		oifname @bridges ip6 saddr ::1 masquerade
		oifname . ip saddr @subnets4 ct status dnat masquerade comment "published, used from the same network"
		oifname . ip6 saddr @subnets6 ct status dnat masquerade
	}

	chain input {
		type filter hook input priority filter; policy accept;
		ct state established,related accept
		iifname != "lo" ip daddr @gateways4 fib daddr . iif type != local drop
		iifname != "lo" ip6 daddr @gateways6 fib daddr . iif type != local drop
		iifname @internal fib daddr type local fib daddr . iif type != local drop
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname != @bridges oifname != @bridges accept comment "not ours"
		ct state established,related accept
		iifname . oifname @same accept
		iifname . oifname @reach accept
		iifname @internal drop
		oifname @internal drop
		ct status dnat accept comment "published"
		iifname @bridges oifname @bridges drop comment "isolation"
		iifname @bridges accept
		oifname @routed accept
		drop
	}
"#;

/// Chain of the `bridge` table; `PORTS` stands for the pattern of our ports.
const BRIDGE_CHAINS: &str = r#"
	chain guard {
		type filter hook prerouting priority dstnat; policy accept;
		iifname != "PORTS" accept
		iifname . ether saddr != @senders drop
		ether type arp iifname . ether saddr . arp saddr ip != @leases4 drop
		ether type arp accept
		ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
		ether type ip iifname . ether saddr . ip saddr != @leases4 drop
		ether type ip accept
		icmpv6 type { nd-router-advert, nd-redirect } drop
		icmpv6 type nd-neighbor-advert @th,64,128 0xfe800000000000000000000000000001 drop comment "a gateway's"
		icmpv6 type nd-neighbor-advert @th,64,128 & 0xffc00000000000000000000000000000 != 0xfe800000000000000000000000000000 iifname . ether saddr . @th,64,128 != @targets6 drop
		ip6 saddr fe80::/10 accept
		ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld2-listener-report } accept
		ether type ip6 iifname . ether saddr . ip6 saddr != @leases6 drop
		ether type ip6 accept
		drop
	}
"#;

/// Above this the kernel's count of nanoseconds overflows (`nft_limit_init`); no link is as fast.
const RATE_MAX: u64 = 9_000_000_000;
/// Twice the largest packet that passes between a host and its own instances: a bucket that holds less
/// than one lets none through.
const BURST_MIN: u64 = 128 << 10;
/// The kernel has 32 bits for it.
const BURST_MAX: u64 = u32::MAX as u64;

/// The tables without their elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skeleton {
    table: String,
    inet_sets: String,
    inet_chains: String,
    bridge_chains: String,
    rate_chains: String,
}

impl Skeleton {
    pub(super) fn new(prefix: &Prefix, rules: &Rules) -> Self {
        let networks = &rules.networks;
        let loopback6 = match rules.loopback6 {
            true => "",
            false => "\t\tip6 daddr ::1 return comment \"its answers would be lost\"\n",
        };
        Self {
            table: table(prefix),
            inet_sets: network_sets(prefix, networks),
            inet_chains: INET_CHAINS.replace("\t\tLOOPBACK6\n", loopback6),
            bridge_chains: BRIDGE_CHAINS.replace("PORTS", &prefix.link_pattern()),
            rate_chains: rate_chains(&rules.limited),
        }
    }

    pub(super) fn render(&self, elements: &BTreeSet<Element>) -> String {
        let mut text = String::new();
        let table = &self.table;
        for family in ["inet", "bridge"] {
            // Declaring first makes the deletion succeed whether or not the table exists.
            let _ = writeln!(
                text,
                "table {family} {table} {{ }}\ndelete table {family} {table}"
            );
        }
        let _ = writeln!(text, "table inet {table} {{");
        text.push_str(&self.inet_sets);
        for (name, types) in INET_MAPS {
            push_set(&mut text, "map", name, types, &members(elements, name));
        }
        text.push_str(self.inet_chains.trim_start_matches('\n'));
        let _ = writeln!(text, "}}\ntable bridge {table} {{");
        for (name, types) in BRIDGE_SETS {
            push_set(&mut text, "set", name, types, &members(elements, name));
        }
        text.push_str(self.bridge_chains.trim_start_matches('\n'));
        text.push_str(&self.rate_chains);
        text.push_str("}\n");
        text
    }
}

/// The name of both tables. The suffix keeps a prefix from being a word of nftables' own.
pub(crate) fn table(prefix: &Prefix) -> String {
    format!("{prefix}_net")
}

fn members(elements: &BTreeSet<Element>, set: &str) -> Vec<String> {
    elements
        .iter()
        .filter(|element| element.set().1 == set)
        .map(Element::text)
        .collect()
}

fn network_sets(prefix: &Prefix, networks: &[NetworkConfig]) -> String {
    let mut text = String::new();
    for (name, types, member) in NETWORK_SETS {
        let members = networks
            .iter()
            .filter_map(|n| member(&prefix.bridge(&n.name), n));
        push_set(&mut text, "set", name, types, &sorted(members));
    }
    let exists = |name: &&String| networks.iter().any(|network| network.name == **name);
    let reach = networks.iter().flat_map(|network| {
        let here = prefix.bridge(&network.name);
        network
            .reaches
            .iter()
            .filter(exists)
            .flat_map(move |other| {
                let there = prefix.bridge(other);
                [pair(&here, &there), pair(&there, &here)]
            })
    });
    push_set(&mut text, "set", "reach", "ifname . ifname", &sorted(reach));
    text
}

/// Chains for the limited ways of ports. What an instance sends is policed behind its guard; what it
/// receives, where all that leads to it meets: from the host, from outside, and from its neighbours.
fn rate_chains(limited: &[Limited]) -> String {
    let send = limited.iter().map(|one| (&one.port, one.send));
    let receive = limited.iter().map(|one| (&one.port, one.receive));
    let sends = "hook prerouting priority filter; policy accept;\n\t\tiifname";
    let receives = "hook postrouting priority srcnat; policy accept;\n\t\toifname";
    rate_chain("send", sends, send) + &rate_chain("receive", receives, receive)
}

/// A chain for each port that is limited, and one that leads there by the port's name.
fn rate_chain<'a>(
    way: &str,
    hook: &str,
    ports: impl Iterator<Item = (&'a IfName, Option<Rate>)>,
) -> String {
    let mut ports: Vec<_> = ports
        .filter_map(|(port, rate)| Some((port, rate?)))
        .collect();
    ports.sort_unstable();
    let mut text = String::new();
    let mut members = Vec::new();
    for (port, rate) in ports {
        let bytes = rate.bytes.clamp(1, RATE_MAX);
        let burst = rate.burst.clamp(BURST_MIN, BURST_MAX);
        let _ = writeln!(
            text,
            "\n\tchain {way}_{port} {{\n\t\tlimit rate over {bytes} bytes/second burst {burst} bytes drop\n\t}}"
        );
        members.push(format!("\"{port}\" : jump {way}_{port}"));
    }
    if !members.is_empty() {
        let members = members.join(", ");
        let _ = writeln!(
            text,
            "\n\tchain {way} {{\n\t\ttype filter {hook} vmap {{ {members} }}\n\t}}"
        );
    }
    text
}

fn quoted(bridge: &IfName) -> String {
    format!("\"{bridge}\"")
}

fn pair(from: &IfName, to: &IfName) -> String {
    format!("\"{from}\" . \"{to}\"")
}

/// Sorted and without doubles, so that the same networks in another order are the same text.
fn sorted(members: impl Iterator<Item = String>) -> Vec<String> {
    members.collect::<BTreeSet<_>>().into_iter().collect()
}

fn push_set(text: &mut String, keyword: &str, name: &str, types: &str, members: &[String]) {
    let keyword_of_type = if types.starts_with("typeof") {
        ""
    } else {
        "type "
    };
    let _ = writeln!(text, "\t{keyword} {name} {{\n\t\t{keyword_of_type}{types}");
    if !members.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", members.join(", "));
    }
    text.push_str("\t}\n\n");
}
