//! DNS messages as bytes: reading questions and answers within limits, writing answers.
//!
//! Only what a forwarder with a few authoritative names needs. Questions are read strictly: one
//! question, no compression in it, no more than one `OPT`. Source: RFC 1035 section 4, RFC 6891.

/// Length of the header.
pub(crate) const HEADER: usize = 12;
/// Longest name on the wire (RFC 1035 section 2.3.4).
const NAME_MAX: usize = 255;
/// Most records a message may have before it is refused unread.
const RECORDS_MAX: usize = 512;
/// Size of UDP answers that needs no agreement (RFC 1035), and the largest ever sent (the
/// figure of the DNS flag day 2020: fits every path unfragmented).
pub(crate) const UDP_PLAIN: usize = 512;
pub(crate) const UDP_LARGEST: usize = 1232;

/// Record types by number (IANA).
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// Class `IN`.
pub(crate) const IN: u16 = 1;

/// Response codes (RFC 1035, RFC 6895).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    Malformed = 1,
    Failed = 2,
    NoName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// A client's question, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) id: u16,
    /// The header's flags as they came.
    flags: u16,
    /// The question section as it came: name, type, class.
    pub(crate) question: Vec<u8>,
    /// Labels, lower case, without the root.
    pub(crate) labels: Vec<Vec<u8>>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// The client's EDNS, if it has any: its UDP size, and whether it wants DNSSEC records.
    pub(crate) edns: Option<(u16, bool)>,
}

/// What to do with a packet that is no good question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Say nothing: it is an answer, or too short to be answered.
    Drop,
    /// Answer with this code; the id and the flags are those of the packet.
    Answer { id: u16, flags: u16, code: Code },
}

const RESPONSE: u16 = 0x8000;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const OPCODE: u16 = 0x7800;
/// The flags of a question that are passed on: recursion desired, authentic data, checking
/// disabled.
const PASSED_ON: u16 = RECURSION_DESIRED | 0x0020 | 0x0010;
const DNSSEC_OK: u32 = 0x8000;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads a client's packet.
pub(crate) fn parse_query(packet: &[u8]) -> Result<Query, Bad> {
    let (Some(id), Some(flags)) = (u16_at(packet, 0), u16_at(packet, 2)) else {
        return Err(Bad::Drop);
    };
    if packet.len() < HEADER || flags & RESPONSE != 0 {
        return Err(Bad::Drop);
    }
    if flags & OPCODE != 0 {
        return Err(Bad::Answer {
            id,
            flags,
            code: Code::NotImplemented,
        });
    }
    read_query(packet, id, flags).ok_or(Bad::Answer {
        id,
        flags,
        code: Code::Malformed,
    })
}

fn read_query(packet: &[u8], id: u16, flags: u16) -> Option<Query> {
    let counts = [4, 6, 8, 10].map(|at| u16_at(packet, at).unwrap_or(u16::MAX));
    // One question; nothing else but EDNS (and perhaps a signature, which is not read).
    if counts[..3] != [1, 0, 0] || counts[3] > 2 {
        return None;
    }
    let (labels, at) = read_plain_name(packet, HEADER)?;
    let (kind, class) = (u16_at(packet, at)?, u16_at(packet, at + 2)?);
    let question = packet[HEADER..at + 4].to_vec();
    let mut edns = None;
    let mut at = at + 4;
    for _ in 0..counts[3] {
        let record = read_record(packet, at)?;
        if record.kind == kind::OPT {
            if edns.is_some() || packet.get(at) != Some(&0) {
                return None;
            }
            edns = Some((record.class, record.ttl & DNSSEC_OK != 0));
        }
        at = record.end;
    }
    Some(Query {
        id,
        flags,
        question,
        labels,
        kind,
        class,
        edns,
    })
}

/// A name without compression: its labels in lower case, and where it ends.
fn read_plain_name(packet: &[u8], start: usize) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut labels = Vec::new();
    let mut at = start;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels, at));
        }
        if length > 63 || at + length - start >= NAME_MAX {
            return None;
        }
        labels.push(packet.get(at..at + length)?.to_ascii_lowercase());
        at += length;
    }
}

/// Where a possibly compressed name ends. The pointer is not followed.
fn skip_name(packet: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match packet.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(*length),
            0xc0..=0xff => return (at + 2 <= packet.len()).then_some(at + 2),
            _ => return None,
        }
        if at - start >= NAME_MAX {
            return None;
        }
    }
}

struct Record {
    kind: u16,
    class: u16,
    ttl: u32,
    ttl_at: usize,
    end: usize,
}

fn read_record(packet: &[u8], start: usize) -> Option<Record> {
    let at = skip_name(packet, start)?;
    let end = at + 10 + usize::from(u16_at(packet, at + 8)?);
    (end <= packet.len()).then_some(Record {
        kind: u16_at(packet, at)?,
        class: u16_at(packet, at + 2)?,
        ttl: u32_at(packet, at + 4)?,
        ttl_at: at + 4,
        end,
    })
}

/// An upstream's answer, checked to be one to our question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    /// Where its times to live are, so that a cached one can grow old.
    ttl_at: Vec<usize>,
    /// How long it may be kept, in seconds; 0 if not at all.
    pub(crate) ttl_s: u32,
}

/// Whether the answer was cut, so that TCP is needed to have all of it.
pub(crate) fn is_truncated(packet: &[u8]) -> bool {
    u16_at(packet, 2).is_some_and(|flags| flags & TRUNCATED != 0)
}

/// Reads an upstream's packet; `None` if it is no well-formed answer to `question` under `id`.
pub(crate) fn parse_answer(packet: &[u8], id: u16, question: &[u8]) -> Option<Answer> {
    let flags = u16_at(packet, 2)?;
    let same = packet
        .get(HEADER..HEADER + question.len())?
        .eq_ignore_ascii_case(question);
    if u16_at(packet, 0)? != id || flags & RESPONSE == 0 || u16_at(packet, 4)? != 1 || !same {
        return None;
    }
    let counts = [6, 8, 10].map(|at| usize::from(u16_at(packet, at).unwrap_or(u16::MAX)));
    if counts.iter().sum::<usize>() > RECORDS_MAX {
        return None;
    }
    let mut at = HEADER + question.len();
    let mut ttl_at = Vec::new();
    let mut ttl_s = u32::MAX;
    for index in 0..counts.iter().sum() {
        let record = read_record(packet, at)?;
        at = record.end;
        if record.kind == kind::OPT {
            continue;
        }
        ttl_at.push(record.ttl_at);
        ttl_s = ttl_s.min(record.ttl);
        let authority = (counts[0]..counts[0] + counts[1]).contains(&index);
        if authority && record.kind == kind::SOA {
            // How long "no such name" may be kept: the SOA's last field (RFC 2308 section 5).
            ttl_s = ttl_s.min(u32_at(packet, record.end - 4)?);
        }
    }
    let keep = matches!(flags & 0x000f, 0 | 3) && flags & TRUNCATED == 0 && !ttl_at.is_empty();
    // Bytes past the last record are not passed on.
    let bytes = packet[..at].to_vec();
    Some(Answer {
        bytes,
        ttl_at,
        ttl_s: if keep { ttl_s } else { 0 },
    })
}

impl Answer {
    /// The answer for `query`, `age_s` seconds after it was received.
    pub(crate) fn for_query(&self, query: &Query, age_s: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[0..2].copy_from_slice(&query.id.to_be_bytes());
        // The same name, in the letters this client wrote.
        bytes[HEADER..HEADER + query.question.len()].copy_from_slice(&query.question);
        for at in &self.ttl_at {
            let ttl = u32_at(&bytes, *at).unwrap_or(0).saturating_sub(age_s);
            bytes[*at..*at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        bytes
    }
}

impl Query {
    /// The question as it is passed on: under an id of ours, with nothing the client attached.
    pub(crate) fn upstream(&self, id: u16) -> Vec<u8> {
        let extra = u16::from(self.edns.is_some());
        let mut bytes = header(id, self.flags & PASSED_ON, [1, 0, 0, extra]);
        bytes.extend_from_slice(&self.question);
        if let Some((_, dnssec)) = self.edns {
            push_opt(&mut bytes, dnssec);
        }
        bytes
    }

    /// What distinguishes answers: the name in lower case, type, class and EDNS.
    pub(crate) fn cache_key(&self) -> Vec<u8> {
        let mut key = self.question.to_ascii_lowercase();
        // Type and class are numbers: not to be lowered.
        let at = key.len() - 4;
        key[at..].copy_from_slice(&self.question[at..]);
        key.push(self.edns.map_or(0, |(_, dnssec)| 1 + u8::from(dnssec)));
        key.extend_from_slice(&(self.flags & PASSED_ON).to_be_bytes());
        key
    }

    /// The largest answer the client takes by UDP.
    pub(crate) fn udp_size(&self) -> usize {
        self.edns.map_or(UDP_PLAIN, |(size, _)| {
            usize::from(size).clamp(UDP_PLAIN, UDP_LARGEST)
        })
    }

    /// An answer without records.
    pub(crate) fn error(&self, code: Code) -> Vec<u8> {
        Reply::new(self, code, false).finish()
    }

    /// The answer that says "ask again by TCP".
    pub(crate) fn truncated(&self) -> Vec<u8> {
        let mut bytes = self.error(Code::Ok);
        bytes[2] |= (TRUNCATED >> 8) as u8;
        bytes
    }
}

/// The answer to a packet that could not be read.
pub(crate) fn bad_answer(id: u16, flags: u16, code: Code) -> Vec<u8> {
    let flags = RESPONSE | (flags & (OPCODE | RECURSION_DESIRED)) | code as u16;
    header(id, flags, [0; 4])
}

fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    for number in [id, flags].into_iter().chain(counts) {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes
}

fn push_opt(bytes: &mut Vec<u8>, dnssec: bool) {
    bytes.push(0);
    bytes.extend_from_slice(&kind::OPT.to_be_bytes());
    bytes.extend_from_slice(&(UDP_LARGEST as u16).to_be_bytes());
    bytes.extend_from_slice(&(if dnssec { DNSSEC_OK } else { 0 }).to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
}

/// An answer of our own under construction.
pub(crate) struct Reply {
    bytes: Vec<u8>,
    answers: u16,
    authority: u16,
    edns: bool,
}

impl Reply {
    /// An answer to `query`; `authoritative` if it is about a name of ours.
    pub(crate) fn new(query: &Query, code: Code, authoritative: bool) -> Self {
        let flags = RESPONSE
            | RECURSION_AVAILABLE
            | (query.flags & (RECURSION_DESIRED | 0x0010))
            | if authoritative { AUTHORITATIVE } else { 0 }
            | code as u16;
        let mut bytes = header(query.id, flags, [1, 0, 0, 0]);
        bytes.extend_from_slice(&query.question);
        Self {
            bytes,
            answers: 0,
            authority: 0,
            edns: query.edns.is_some(),
        }
    }

    /// Adds a record about the name in question.
    pub(crate) fn answer(&mut self, kind: u16, ttl_s: u32, data: &[u8]) {
        self.answers += 1;
        // The question's name always stands right after the header.
        self.record(&[0xc0, HEADER as u8], kind, ttl_s, data);
    }

    /// Adds the record that says how long "nothing" may be remembered (RFC 2308).
    pub(crate) fn negative(&mut self, zone: &[u8], ttl_s: u32) {
        let mut data = Vec::with_capacity(zone.len() + 32);
        data.extend_from_slice(b"\x02ns");
        data.extend_from_slice(zone);
        data.extend_from_slice(b"\x0ahostmaster");
        data.extend_from_slice(zone);
        for number in [1, 3600, 600, 86_400, ttl_s] {
            data.extend_from_slice(&u32::to_be_bytes(number));
        }
        self.authority += 1;
        self.record(zone, kind::SOA, ttl_s, &data);
    }

    fn record(&mut self, name: &[u8], kind: u16, ttl_s: u32, data: &[u8]) {
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&IN.to_be_bytes());
        self.bytes.extend_from_slice(&ttl_s.to_be_bytes());
        let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(&data[..usize::from(length)]);
    }

    /// The finished packet.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.edns {
            push_opt(&mut self.bytes, false);
        }
        self.bytes[6..8].copy_from_slice(&self.answers.to_be_bytes());
        self.bytes[8..10].copy_from_slice(&self.authority.to_be_bytes());
        self.bytes[10..12].copy_from_slice(&u16::from(self.edns).to_be_bytes());
        self.bytes
    }
}

/// A dotted name as wire bytes, lower case, root included; `None` if it is no valid name.
pub(crate) fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.to_ascii_lowercase().as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= NAME_MAX).then_some(bytes)
}

#[cfg(test)]
mod tests;
