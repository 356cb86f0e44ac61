//! The text of an instance's `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`. Pure.
//!
//! Names and domains come from validated specs; still, a line break in one could forge an entry,
//! so every word that is not a plain name is left out.

use std::fmt::Write as _;
use std::net::IpAddr;

/// The C library reads no more name servers than this (resolv.conf(5), `MAXNS`).
const NAMESERVERS_MAX: usize = 3;

/// `/etc/resolv.conf`: name servers in order of preference, and the domain appended to short
/// names.
#[must_use]
pub fn resolv_conf(servers: &[IpAddr], search: &[&str]) -> String {
    let mut text = String::new();
    let search: Vec<&str> = search
        .iter()
        .copied()
        .filter(|domain| is_name(domain))
        .collect();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for server in servers.iter().take(NAMESERVERS_MAX) {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

/// `/etc/hosts`: loopback, the instance's own addresses under `hostname` (and `hostname.domain`),
/// and `extra` entries.
#[must_use]
pub fn hosts(
    hostname: &str,
    domain: Option<&str>,
    addresses: &[IpAddr],
    extra: &[(IpAddr, &str)],
) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    if is_name(hostname) {
        let full = domain.filter(|domain| is_name(domain));
        let full = full.map_or_else(String::new, |domain| format!("{hostname}.{domain} "));
        for address in addresses {
            let _ = writeln!(text, "{address}\t{full}{hostname}");
        }
    }
    for (address, name) in extra.iter().filter(|(_, name)| is_name(name)) {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

/// `/etc/hostname`; empty if `hostname` is no plain name.
#[must_use]
pub fn hostname(hostname: &str) -> String {
    if is_name(hostname) {
        format!("{hostname}\n")
    } else {
        String::new()
    }
}

fn is_name(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= 253
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_expected_text_and_cannot_be_forged() {
        let address: IpAddr = "10.77.0.2".parse().unwrap();
        let gateways = ["10.77.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(
            resolv_conf(&gateways, &["berth.internal", "evil\nnameserver 6.6.6.6"]),
            "search berth.internal\nnameserver 10.77.0.1\nnameserver fd00::1\n"
        );
        let text = hosts(
            "web",
            Some("berth.internal"),
            &[address],
            &[(address, "db\n1.1.1.1 x")],
        );
        assert!(
            text.ends_with("\n10.77.0.2\tweb.berth.internal web\n"),
            "{text}"
        );
        assert_eq!(hostname("web"), "web\n");
        assert_eq!(hostname("web\nroot"), "");
    }
}
