//! Published ports: `[ADDRESS:]HOST:INSTANCE[/udp]`, each side a port or a range.

use std::{net::IpAddr, ops::RangeInclusive};

use api::{Port, Protocol};

/// More published ports than this in one flag is a mistake.
const MAX_RANGE: usize = 1024;

/// What one `--publish` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(pub Vec<Port>);

/// Reads a `--publish` value. A port alone is published under its own number.
pub fn ports(text: &str) -> Result<Ports, String> {
    let (body, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((body, "tcp")) => (body, Protocol::Tcp),
        Some((body, "udp")) => (body, Protocol::Udp),
        Some((_, other)) => return Err(format!("{other:?} is not a transport: use tcp or udp")),
    };
    let (address, body) = split_address(body)?;
    let (host, inside) = body.split_once(':').unwrap_or((body, body));
    let (host, inside) = (range(host)?, range(inside)?);
    let (count, wanted) = (host.clone().count(), inside.clone().count());
    if count != wanted {
        return Err(format!(
            "{count} ports of the host cannot lead to {wanted} of the instance: use ranges of the same length"
        ));
    }
    if count > MAX_RANGE {
        return Err(format!(
            "{count} ports are too many for one flag: {MAX_RANGE} at most"
        ));
    }
    let port = |(host_port, port)| Port {
        host_address: address.clone(),
        host_port,
        port,
        protocol,
    };
    Ok(Ports(host.zip(inside).map(port).collect()))
}

/// Takes the address off the front, if there is one.
fn split_address(text: &str) -> Result<(Option<String>, &str), String> {
    let (address, rest) = if let Some(rest) = text.strip_prefix('[') {
        rest.split_once("]:")
            .ok_or("an IPv6 address is written in brackets: [::1]:8080:80")?
    } else {
        match text.splitn(3, ':').collect::<Vec<_>>()[..] {
            [address, _, _] => (address, &text[address.len() + 1..]),
            _ => return Ok((None, text)),
        }
    };
    let parsed: IpAddr = address
        .parse()
        .map_err(|_| format!("{address:?} is not an address of the host"))?;
    Ok((Some(parsed.to_string()), rest))
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong =
        || format!("{text:?} is not a port: write 1 to 65535, or a range such as 8000-8010");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (
        first.parse().map_err(|_| wrong())?,
        last.parse().map_err(|_| wrong())?,
    );
    if first == 0 || last < first {
        return Err(wrong());
    }
    Ok(first..=last)
}

/// As in a list: `8080->80`, `127.0.0.1:53->53/udp`.
pub fn show(port: &Port) -> String {
    let mut text = match &port.host_address {
        Some(address) if address.contains(':') => format!("[{address}]:"),
        Some(address) => format!("{address}:"),
        None => String::new(),
    };
    text.push_str(&format!("{}->{}", port.host_port, port.port));
    if port.protocol == Protocol::Udp {
        text.push_str("/udp");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        let list: Vec<_> = ports(text)?.0.iter().map(show).collect();
        Ok(list.join(" "))
    }

    #[test]
    fn the_forms_of_a_published_port() {
        for (text, means) in [
            ("8080:80", "8080->80"),
            ("80", "80->80"),
            ("53:53/udp", "53->53/udp"),
            ("127.0.0.1:8080:80/tcp", "127.0.0.1:8080->80"),
            ("[::1]:8080:80", "[::1]:8080->80"),
            ("8000-8002:80-82", "8000->80 8001->81 8002->82"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(means), "{text}");
        }
        for bad in [
            "",
            ":",
            "80:",
            ":80",
            "0:80",
            "65536:1",
            "80:90-91",
            "9-8:9-8",
            "80/sctp",
            "host:80:80",
            "::1:80:80",
            "[::1]80",
            "1-65535",
            "1:2:3:4",
        ] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[0-9a-f:./\\[\\]-]{0,30}") {
            let _ = ports(&text);
        }

        #[test]
        fn every_port_is_kept(host in 1u16.., inside in 1u16..) {
            let made = ports(&format!("{host}:{inside}")).unwrap();
            prop_assert_eq!((made.0[0].host_port, made.0[0].port), (host, inside));
        }
    }
}
