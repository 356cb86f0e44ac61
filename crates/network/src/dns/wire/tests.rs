//! Queries and answers as bytes: real ones, cut ones, hostile ones.

use proptest::prelude::*;

use super::*;

/// A question as the C library sends it: recursion desired, EDNS if asked for.
fn question(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut packet = header(
        0x1234,
        RECURSION_DESIRED,
        [1, 0, 0, u16::from(edns.is_some())],
    );
    packet.extend(encode_name(name).unwrap());
    packet.extend([kind.to_be_bytes(), IN.to_be_bytes()].concat());
    if let Some(size) = edns {
        packet.extend([0, 0, 41]);
        packet.extend(size.to_be_bytes());
        packet.extend([0; 6]);
    }
    packet
}

/// An answer of an upstream: `records` of the question's own name, then an SOA.
fn upstream_answer(query: &Query, ttls: &[u32], soa: Option<(u32, u32)>) -> Vec<u8> {
    let mut reply = Reply::new(query, Code::Ok, false);
    for ttl in ttls {
        reply.answer(kind::A, *ttl, &[192, 0, 2, 1]);
    }
    if let Some((ttl, minimum)) = soa {
        reply.authority += 1;
        let data = [&[0, 0][..], &[0; 16], &minimum.to_be_bytes()].concat();
        reply.record(&[0], kind::SOA, ttl, &data);
    }
    reply.finish()
}

#[test]
fn questions_are_read_strictly() {
    let query = parse_query(&question("WeB.Berth.Internal", kind::A, Some(4096))).unwrap();
    assert_eq!(query.labels, [&b"web"[..], b"berth", b"internal"]);
    assert_eq!(
        (query.kind, query.edns, query.udp_size()),
        (kind::A, Some((4096, false)), 1232)
    );
    let plain = question("web", kind::A, None);
    assert_eq!(parse_query(&plain).unwrap().udp_size(), 512);

    let malformed = |change: fn(&mut Vec<u8>)| {
        let mut packet = question("web", kind::A, None);
        change(&mut packet);
        parse_query(&packet).unwrap_err()
    };
    let answered = |code| Bad::Answer {
        id: 0x1234,
        flags: RECURSION_DESIRED,
        code,
    };
    assert_eq!(
        malformed(|p| p[5] = 2),
        answered(Code::Malformed),
        "two questions"
    );
    assert_eq!(
        malformed(|p| p[7] = 1),
        answered(Code::Malformed),
        "an answer in a question"
    );
    assert_eq!(
        malformed(|p| p.truncate(15)),
        answered(Code::Malformed),
        "cut"
    );
    assert_eq!(
        malformed(|p| p[12] = 0xc0),
        answered(Code::Malformed),
        "compressed"
    );
    assert_eq!(
        malformed(|p| p[11] = 1),
        answered(Code::Malformed),
        "a record that is not there"
    );
    assert_eq!(
        malformed(|p| p[2] |= 0x80),
        Bad::Drop,
        "an answer: answering could go on for ever"
    );
    assert_eq!(malformed(|p| p.truncate(11)), Bad::Drop);
    let flags = RECURSION_DESIRED | 0x2800;
    let notify = Bad::Answer {
        id: 0x1234,
        flags,
        code: Code::NotImplemented,
    };
    assert_eq!(malformed(|p| p[2] |= 0x28), notify);

    let long = vec!["a".repeat(63); 4].join(".");
    assert_eq!(
        encode_name(&long),
        None,
        "257 bytes are too many for a name"
    );
    let mut packet = question(&long[..long.len() - 4], kind::A, None);
    assert!(parse_query(&packet).is_ok());
    packet.splice(12..12, *b"\x04aaaa");
    assert!(parse_query(&packet).is_err());
}

#[test]
fn answers_count_only_if_they_are_to_our_question() {
    let query = parse_query(&question("example.org", kind::A, None)).unwrap();
    let good = upstream_answer(&query, &[300, 60], None);
    let answer = parse_answer(&good, query.id, &query.question).unwrap();
    assert_eq!(answer.ttl_s, 60, "the shortest time to live decides");
    assert_eq!(
        parse_answer(&good, query.id + 1, &query.question),
        None,
        "another id"
    );
    let other = parse_query(&question("example.com", kind::A, None)).unwrap();
    assert_eq!(
        parse_answer(&good, query.id, &other.question),
        None,
        "another name"
    );
    assert_eq!(
        parse_answer(&good[..good.len() - 1], query.id, &query.question),
        None,
        "cut"
    );
    let mut echo = good.clone();
    echo[2] &= 0x7f;
    assert_eq!(
        parse_answer(&echo, query.id, &query.question),
        None,
        "a question"
    );
    let trailing = [good.as_slice(), b"trailing"].concat();
    let trimmed = parse_answer(&trailing, query.id, &query.question).unwrap();
    assert_eq!(
        trimmed.bytes, good,
        "what follows the records is not passed on"
    );

    let mut shouted = question("example.org", kind::A, None);
    shouted[13..20].make_ascii_uppercase();
    let mut shouted = parse_query(&shouted).unwrap();
    shouted.id = 99;
    let aged = answer.for_query(&shouted, 50);
    let read = parse_answer(&aged, 99, &query.question).unwrap();
    assert_eq!(read.ttl_s, 10, "an answer kept for 50 seconds has 10 left");
    assert_eq!(
        &aged[HEADER..HEADER + 12],
        b"\x07EXAMPLE\x03org",
        "in the client's letters"
    );
}

#[test]
fn how_long_answers_are_kept() {
    let query = parse_query(&question("example.org", kind::A, None)).unwrap();
    let ttl = |packet: &[u8]| {
        parse_answer(packet, query.id, &query.question)
            .unwrap()
            .ttl_s
    };
    assert_eq!(
        ttl(&upstream_answer(&query, &[], Some((3600, 30)))),
        30,
        "RFC 2308: the minimum"
    );
    assert_eq!(ttl(&upstream_answer(&query, &[], Some((20, 3000)))), 20);
    assert_eq!(
        ttl(&upstream_answer(&query, &[], None)),
        0,
        "nothing says how long"
    );
    let mut failed = upstream_answer(&query, &[300], None);
    failed[3] |= Code::Failed as u8;
    assert_eq!(ttl(&failed), 0, "failures are not kept");
    let mut cut = upstream_answer(&query, &[300], None);
    cut[2] |= (TRUNCATED >> 8) as u8;
    assert_eq!(ttl(&cut), 0, "nor are cut answers");
}

proptest! {
    #[test]
    fn hostile_bytes_break_no_promise(data in prop::collection::vec(any::<u8>(), 0..300)) {
        crate::fuzzing::fuzz(&data);
    }

    /// Well-formed on the outside: lengths that lead into the attributes.
    #[test]
    fn hostile_netlink_breaks_no_promise(body in prop::collection::vec(any::<u8>(), 0..120)) {
        let length = u32::try_from(body.len() + 16).unwrap();
        let header = [&length.to_ne_bytes()[..], &[0; 12]].concat();
        crate::fuzzing::fuzz(&[&[2], header.as_slice(), &body].concat());
    }

    /// Nearly right packets reach deeper than noise does.
    #[test]
    fn damaged_packets_break_no_promise(
        selector in 0_u8..2,
        kind in prop_oneof![Just(kind::A), Just(kind::PTR), Just(kind::ANY), any::<u16>()],
        name in prop_oneof![
            Just("a".to_owned()),
            Just("a.berth.internal".to_owned()),
            Just("2.0.77.10.in-addr.arpa".to_owned()),
            "[a-z]{1,20}(\\.[a-z]{1,20}){0,5}",
        ],
        edns in prop::option::of(any::<u16>()),
        ttls in prop::collection::vec(any::<u32>(), 0..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut packet = question(&name, kind, edns);
        if selector == 1 {
            let query = parse_query(&packet).unwrap();
            packet = upstream_answer(&query, &ttls, Some((1, 2)));
        }
        for (at, byte) in damage {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        if let Some(cut) = cut {
            packet.truncate(cut.index(packet.len()));
        }
        packet.insert(0, selector);
        crate::fuzzing::fuzz(&packet);
    }
}
