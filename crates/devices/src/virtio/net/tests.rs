//! Tests of `net`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    io::{self, Write},
    net::UdpSocket,
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
};

use proptest::prelude::*;
use rustix::{
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
    thread::UnshareFlags,
};

use super::{
    Net, NetControl, NetOptions, Port,
    config::{F_GUEST_CHECKSUM, F_MERGE_BUFFERS, F_MULTI_QUEUE, HEADER_BYTES, PACKET_BYTES},
};
use crate::{
    pci::PciFunction,
    virtio::{
        Host, Limits, fuzzing,
        testing::{Driver, eventually},
    },
};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

fn options() -> NetOptions {
    NetOptions {
        label: "net".to_owned(),
        mac: MAC,
        mtu: Some(1500),
        receive_limits: Limits::default(),
        transmit_limits: Limits::default(),
    }
}

/// A port and the far end of its wire.
fn wire() -> (Port, OwnedFd) {
    let (near, far) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    (Port::packets(near).unwrap(), far)
}

fn card(pairs: usize) -> (Net, NetControl, Vec<OwnedFd>) {
    let (ports, far) = (0..pairs).map(|_| wire()).unzip();
    let net = Net::new(ports, &options(), &Host::default()).unwrap();
    let control = net.control();
    (net, control, far)
}

fn driver(features: u64) -> (Driver, NetControl, OwnedFd) {
    let (net, control, mut far) = card(1);
    let mut driver = Driver::new(Box::new(net));
    driver.start_with(features | 1 << 17, 64);
    (driver, control, far.remove(0))
}

/// A packet with its header, `bytes` of frame.
fn packet(bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES];
    packet.extend((0..bytes).map(|it| (it * 7 + it / 256) as u8));
    packet
}

fn send(far: &OwnedFd, packet: &[u8]) {
    let sent = rustix::net::send(far, packet, SendFlags::empty()).unwrap();
    assert_eq!(sent, packet.len());
}

fn receive(far: &OwnedFd) -> Vec<u8> {
    let mut packet = vec![0; PACKET_BYTES + 1];
    let (bytes, _) = rustix::net::recv(far, packet.as_mut_slice(), RecvFlags::empty()).unwrap();
    packet.truncate(bytes);
    packet
}

#[test]
fn a_packet_takes_as_many_buffers_as_it_needs_and_they_come_together() {
    let (mut driver, control, far) = driver(F_MERGE_BUFFERS);
    let large = packet(3000);
    send(&far, &large);
    send(&far, &packet(60));
    for _ in 0..2 {
        driver.add(0, &[], &[1000]);
    }
    driver.kick(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(
        driver.try_answer(0).is_none(),
        "too little room for the first packet"
    );
    for _ in 0..3 {
        driver.add(0, &[], &[500, 500]);
    }
    driver.kick(0);
    let parts: Vec<_> = (0..4).map(|_| driver.answer(0)).collect();
    let mut got = Vec::new();
    for part in parts {
        got.extend_from_slice(&part.data[..part.written as usize]);
    }
    assert_eq!(got[10..12], 4u16.to_le_bytes());
    assert!(got[12..] == large[12..], "the packet is whole");
    let small = driver.answer(0);
    assert_eq!((small.written, &small.data[10..12]), (72, &[1, 0][..]));
    driver.expect_interrupt(1);
    let stats = control.stats();
    assert_eq!((stats.received_packets, stats.received_bytes), (2, 3060));
}

#[test]
fn without_merged_buffers_what_does_not_fit_is_dropped() {
    let (mut driver, control, far) = driver(0);
    driver.add(0, &[], &[12, 100]);
    driver.kick(0);
    send(&far, &packet(101));
    send(&far, &packet(100));
    let answer = driver.answer(0);
    assert_eq!(answer.written, 112);
    assert!(answer.data[12..] == packet(100)[12..]);
    assert_eq!(control.stats().receive_drops, 1);
}

#[test]
fn what_the_guest_sends_goes_out_whole_and_nonsense_does_not() {
    let (mut driver, control, far) = driver(0);
    let packet = packet(1500);
    for parts in [vec![12, 1512], vec![5, 40, 1512], vec![1512]] {
        let mut readable: Vec<&[u8]> = Vec::new();
        let mut from = 0;
        for to in parts {
            readable.push(&packet[from..to]);
            from = to;
        }
        assert_eq!(driver.request(1, &readable, &[]).written, 0);
        assert!(receive(&far) == packet);
    }
    let huge = vec![0; PACKET_BYTES + 1];
    for nonsense in [&packet[..5], &packet[..25], &huge] {
        driver.request(1, &[nonsense], &[]);
    }
    control.set_link(false);
    driver.request(1, &[&packet], &[]);
    let stats = control.stats();
    assert_eq!(
        (stats.sent_packets, stats.sent_bytes, stats.send_drops),
        (3, 4500, 4)
    );
}

#[test]
fn commands_are_answered_and_pairs_of_queues_are_used_as_the_driver_says() {
    let (net, _, far) = card(3);
    let mut driver = Driver::new(Box::new(net));
    driver.start_with(F_MULTI_QUEUE | 1 << 17, 64);
    assert_eq!(driver.read(0x2008, 2), 3);
    let mut command = |bytes: &[u8]| driver.request(6, &[bytes], &[1]).data[0];
    assert_eq!(command(&[0, 0, 1]), 0, "promiscuous");
    assert_eq!(command(&[1, 0, 0, 0, 0, 0]), 0, "addresses");
    assert_eq!(command(&[1, 1, 1, 2, 3, 4, 5, 6]), 1, "another address");
    assert_eq!(command(&[4, 0, 0, 0]), 1, "no pairs");
    assert_eq!(command(&[4, 0, 4, 0]), 1, "too many");
    assert_eq!(command(&[4, 0]), 1, "cut short");
    assert_eq!(command(&[9, 9]), 1, "unknown");
    send(&far[2], &packet(60));
    driver.add(4, &[], &[100]);
    driver.kick(4);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(
        driver.try_answer(4).is_none(),
        "the third pair is not in use"
    );
    assert_eq!(driver.request(6, &[&[4, 0], &[3, 0]], &[1]).data, [0]);
    assert_eq!(driver.answer(4).written, 72);

    driver.function.pause();
    let saved = driver.function.save().unwrap();
    let (net, _, far) = card(3);
    let second = Driver::over(Box::new(net), driver.ram.clone());
    second.function.restore(&saved).unwrap();
    second.function.resume();
    driver.function = second.function;
    send(&far[2], &packet(61));
    driver.add(4, &[], &[100]);
    driver.kick(4);
    assert_eq!(driver.answer(4).written, 73);
}

#[test]
fn the_cable_stops_packets_and_the_driver_is_told() {
    let (mut driver, control, far) = driver(0);
    assert_eq!(driver.read(0x2000, 6).to_le_bytes()[..6], MAC);
    assert_eq!(driver.read(0x200a, 2), 1500);
    assert_eq!(driver.read(0x2006, 2), 1);
    control.set_link(false);
    driver.expect_interrupt(0);
    assert_eq!(driver.read(0x2006, 2), 0);
    driver.add(0, &[], &[100]);
    driver.kick(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    send(&far, &packet(60));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(driver.try_answer(0).is_none());
    control.set_link(true);
    assert_eq!(driver.answer(0).written, 72);
}

#[test]
fn limits_hold_packets_back_in_both_directions_until_they_are_lifted() {
    let (mut driver, control, far) = driver(0);
    let limits = Limits {
        operations_per_second: 1,
        ..Limits::default()
    };
    control.set_limits(limits, limits);
    let out = packet(60);
    for _ in 0..3 {
        send(&far, &out);
        driver.add(0, &[], &[100]);
        driver.add(1, &[&out], &[]);
    }
    driver.kick(0);
    driver.kick(1);
    driver.answer(0);
    driver.answer(1);
    // The second of each would be due after a second, the third after two.
    control.set_limits(Limits::default(), Limits::default());
    for _ in 0..2 {
        driver.answer(0);
        driver.answer(1);
    }
    assert_eq!(control.stats().sent_packets, 3);
}

/// A tap device with an address, in a network namespace of this thread's own.
fn tap() -> io::Result<Port> {
    // SAFETY: no other thread is meant to share what this one leaves.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..4].copy_from_slice(&b"tap0".map(|it| it as libc::c_char));
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as _;
    // SAFETY: reads and writes one such structure of ours.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    for arguments in [
        "link set tap0 address 52:54:00:aa:aa:aa up",
        "address add 10.0.0.1/24 dev tap0",
        "neighbour add 10.0.0.2 lladdr 52:54:00:01:02:03 dev tap0",
    ] {
        let status = Command::new("ip").args(arguments.split(' ')).status()?;
        assert!(status.success(), "ip {arguments}");
    }
    Port::tap(file.into())
}

/// Receives until a UDP datagram comes; the whole packet.
fn next_datagram(driver: &mut Driver) -> Vec<u8> {
    loop {
        driver.add(0, &[], &[2000]);
        driver.kick(0);
        let answer = driver.answer(0);
        let packet = &answer.data[..answer.written as usize];
        // IPv4, UDP.
        if packet[24..26] == [8, 0] && packet[35] == 17 {
            return packet.to_vec();
        }
    }
}

/// Sum of 16-bit words, folded (RFC 1071).
fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes
        .chunks(2)
        .map(|it| u32::from(it[0]) << 8 | u32::from(*it.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn a_tap_leaves_checksums_undone_only_for_a_driver_that_agreed() {
    for agreed in [false, true] {
        let port = match tap() {
            Ok(port) => port,
            Err(error) => {
                let test = "a_tap_leaves_checksums_undone_only_for_a_driver_that_agreed";
                writeln!(io::stderr(), "SKIP {test}: no tap device: {error}").unwrap();
                return;
            }
        };
        let net = Net::new(vec![port], &options(), &Host::default()).unwrap();
        let mut driver = Driver::new(Box::new(net));
        assert_ne!(driver.offered() & F_GUEST_CHECKSUM, 0);
        let features = if agreed { F_GUEST_CHECKSUM | 1 } else { 0 };
        driver.start_with(features | 1 << 17, 64);
        let socket = UdpSocket::bind("10.0.0.1:7000").unwrap();
        socket.send_to(b"to the guest", "10.0.0.2:7001").unwrap();
        let mut packet = next_datagram(&mut driver);
        assert_eq!(&packet[12 + 14 + 28..], b"to the guest");
        assert_eq!(packet[0] & 1, u8::from(agreed), "needs a checksum");
        let sum = checksum(&[&packet[38..46], &[0, 17, 0, 20], &packet[46..]]);
        assert_eq!(sum == 0xffff, !agreed, "the checksum is whole");

        // Back to where it came from: addresses and ports swapped, for the kernel to finish the
        // checksum where that was agreed.
        let (target, source) = (packet[12..18].to_vec(), packet[18..24].to_vec());
        packet[12..18].copy_from_slice(&source);
        packet[18..24].copy_from_slice(&target);
        let addresses = packet[38..46].to_vec();
        packet[38..42].copy_from_slice(&addresses[4..]);
        packet[42..46].copy_from_slice(&addresses[..4]);
        let ports = packet[46..50].to_vec();
        packet[46..48].copy_from_slice(&ports[2..]);
        packet[48..50].copy_from_slice(&ports[..2]);
        driver.request(1, &[&packet], &[]);
        let mut text = [0; 100];
        socket
            .set_read_timeout(Some(crate::virtio::testing::PATIENCE))
            .unwrap();
        let (bytes, from) = socket.recv_from(&mut text).unwrap();
        assert_eq!(&text[..bytes], b"to the guest");
        assert_eq!(from.to_string(), "10.0.0.2:7001");
    }
}

#[test]
fn a_wire_whose_far_end_is_gone_is_silent() {
    let (mut driver, _, far) = driver(0);
    drop(far);
    driver.add(0, &[], &[100]);
    driver.kick(0);
    driver.request(1, &[&packet(60)], &[]);
    eventually("the device is well", || driver.status() & 64 == 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_driver_harms_the_host(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for features in [0, u64::MAX] {
            let (net, _, far) = card(2);
            for size in [0, 13, 60, 3000, 60_000] {
                send(&far[0], &packet(size)[..]);
            }
            fuzzing::device(Box::new(net), features, &[4, 0, 2, 0], &bytes);
            drop(far);
        }
    }
}

#[test]
fn frames_of_an_interface_are_the_guests() {
    // A namespace of this test's own thread, with a pair of interfaces in it.
    // SAFETY: no other thread is meant to share what this one leaves.
    if let Err(error) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
        eprintln!("SKIP frames_of_an_interface_are_the_guests: no network namespace: {error}");
        return;
    }
    let made = Command::new("sh")
        .arg("-c")
        .arg(
            "ip link set lo up && ip link add a0 type veth peer name b0 \
             && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 \
             && ip link set a0 up && ip link set b0 up && ip addr add 192.0.2.1/24 dev a0",
        )
        .status();
    assert!(made.unwrap().success(), "iproute2 is missing");
    let port = Port::interface("b0").unwrap();
    let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    socket.send_to(b"ahoy", "192.0.2.255:9").unwrap();
    let mut received = vec![0; PACKET_BYTES];
    let mut found = None;
    eventually("the packet comes", || {
        // A driver without offloads gets whole checksums.
        if let Ok(super::port::Received::Packet(bytes)) = port.receive(&mut received, 0) {
            found = received[..bytes].ends_with(b"ahoy").then_some(bytes);
        }
        found.is_some()
    });
    let frame = &received[HEADER_BYTES..found.unwrap()];
    assert_eq!(received[0] & 1, 0, "nothing is left to be done");
    assert_eq!(udp_sum(frame), 0xffff, "the checksum is right");
}

/// The sum over a UDP packet and its pseudo header: all ones when its checksum is right.
fn udp_sum(frame: &[u8]) -> u16 {
    let ip = &frame[14..];
    let udp = &ip[20..];
    let pseudo = [
        &ip[12..20],
        &[0, 17][..],
        &(udp.len() as u16).to_be_bytes()[..],
        udp,
    ]
    .concat();
    let mut sum: u32 = 0;
    for pair in pseudo.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
