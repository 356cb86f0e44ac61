//! Entry points for fuzzers and property tests: every parser of outside bytes.

use std::net::IpAddr;

use crate::dns::Zone;
use crate::dns::wire::{Bad, bad_answer, parse_answer, parse_query};

/// Feeds `data` to the parsers; panics if one of their promises is broken.
pub fn fuzz(data: &[u8]) {
    let Some((selector, data)) = data.split_first() else {
        return;
    };
    match selector % 4 {
        0 => question(data),
        1 => answer(data),
        2 => crate::netlink::fuzz(data),
        _ => {
            let text = String::from_utf8_lossy(data);
            assert!(
                crate::dns::parse_resolv_conf(&text).len() <= 3,
                "no more than three servers"
            );
            let _ = text.parse::<crate::Mac>();
            let _ = crate::Prefix::parse(&text);
            if let Ok(name) = crate::IfName::parse(&text) {
                assert!(
                    name.as_str().len() <= crate::IFNAME_MAX,
                    "a name the kernel refuses"
                );
            }
        }
    }
}

/// A client's packet: whatever is answered is a well-formed answer to exactly that question.
fn question(packet: &[u8]) {
    let query = match parse_query(packet) {
        Ok(query) => query,
        Err(Bad::Drop) => return,
        Err(Bad::Answer { id, flags, code }) => {
            assert_eq!(
                bad_answer(id, flags, code).len(),
                12,
                "a header and nothing else"
            );
            return;
        }
    };
    let address: IpAddr = [10, 77, 0, 2].into();
    let zone = Zone::new("berth.internal").expect("a valid domain");
    zone.replace([("a", vec![address; 64])])
        .expect("a valid name");
    let subnets = ["10.77.0.0/24", "fd00::/8"].map(|text| text.parse().expect("a subnet"));
    let answers = [
        zone.answer(&query, &subnets),
        Some(query.error(crate::dns::wire::Code::Failed)),
        Some(query.truncated()),
    ];
    for answer in answers.into_iter().flatten() {
        let parsed = parse_answer(&answer, query.id, &query.question);
        let parsed = parsed.expect("our own answers are well-formed");
        assert_eq!(parsed.bytes, answer, "nothing is left over");
    }
    let upstream = query.upstream(7);
    let again = parse_query(&upstream).expect("what we pass on is a good question");
    assert_eq!(again.question, query.question, "and the same one");
}

/// An upstream's packet: never longer than it was, and safe to age.
fn answer(packet: &[u8]) {
    let id = packet
        .get(..2)
        .map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
    // The question is whatever the packet says it is, so that the rest is reached.
    let mut asked = packet.to_vec();
    if let Some(header) = asked.get_mut(2..12) {
        header.copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
    let Ok(query) = parse_query(&asked) else {
        return;
    };
    if let Some(answer) = parse_answer(packet, id, &query.question) {
        assert!(answer.bytes.len() <= packet.len(), "an answer grew");
        let aged = answer.for_query(&query, u32::MAX);
        assert_eq!(aged.len(), answer.bytes.len(), "aging changes no lengths");
    }
}
