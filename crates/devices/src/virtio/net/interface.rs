//! The port on an existing network interface: a packet socket (`packet(7)`).
//!
//! For a machine whose process has a network namespace of its own with one interface in it, as a
//! container has: frames of that interface are the guest's, and the namespace's own kernel, which
//! has no address there, stays silent. Like a tap it leaves checksums and segmentation to the
//! other side, with the header of virtio in front of each packet; unlike a tap it cannot be told
//! what the guest takes, so what a guest without those features cannot take is finished here.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::config::{F_GUEST_CHECKSUM, F_GUEST_TSO4, F_GUEST_TSO6, HEADER_BYTES};

const SOL_PACKET: libc::c_int = 263;
const PACKET_ADD_MEMBERSHIP: libc::c_int = 1;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_QDISC_BYPASS: libc::c_int = 20;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_VNET_HDR_SZ: libc::c_int = 24;
const PACKET_MR_PROMISC: libc::c_ushort = 1;

/// Bytes of the header that kernels before 6.6 have: without the number of buffers.
pub(super) const SHORT_HEADER: usize = 10;
/// Bytes the socket holds for a guest that is slow.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;

#[repr(C)]
struct Membership {
    index: libc::c_int,
    kind: libc::c_ushort,
    address_length: libc::c_ushort,
    address: [u8; 8],
}

/// A socket for all frames of an interface, and how long the header in front of them is.
pub(super) fn open(name: &str) -> io::Result<(OwnedFd, usize)> {
    let index = rustix::net::netdevice::name_to_index(
        rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::DGRAM,
            None,
        )?,
        name,
    )?;
    let index = libc::c_int::try_from(index).map_err(io::Error::other)?;
    let every_kind = (libc::ETH_P_ALL as u16).to_be();
    // Bound to no kind of frame before it is bound to the interface: none of another gets in.
    // SAFETY: numbers only; a valid descriptor is ours alone.
    let file = unsafe {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let fd = libc::socket(libc::AF_PACKET, flags, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let wide = set(&file, PACKET_VNET_HDR_SZ, &(HEADER_BYTES as libc::c_int));
    let header = match wide {
        Ok(()) => HEADER_BYTES,
        Err(_) => {
            set(&file, PACKET_VNET_HDR, &1)?;
            SHORT_HEADER
        }
    };
    set(&file, PACKET_IGNORE_OUTGOING, &1)?;
    // Both only make it faster.
    let _ = set(&file, PACKET_QDISC_BYPASS, &1);
    let _ = option(&file, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER);
    let promiscuous = Membership {
        index,
        kind: PACKET_MR_PROMISC,
        address_length: 0,
        address: [0; 8],
    };
    set(&file, PACKET_ADD_MEMBERSHIP, &promiscuous)?;
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every_kind;
    address.sll_ifindex = index;
    // SAFETY: reads one such structure of ours.
    let done = unsafe {
        libc::bind(
            file.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((file, header))
}

fn set<T>(file: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    option(file, SOL_PACKET, name, value)
}

fn option<T>(file: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: reads one value of ours, of the size given.
    let done = unsafe {
        libc::setsockopt(
            file.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Finishes what the sender left undone and this guest does not do; `false` when it cannot be
/// done for a packet that has to be cut.
pub(super) fn finish(packet: &mut [u8], features: u64) -> bool {
    let (header, frame) = packet.split_at_mut(HEADER_BYTES);
    let fits = match header[1] & 0x7f {
        GSO_NONE => true,
        GSO_TCP4 => features & F_GUEST_TSO4 != 0,
        GSO_TCP6 => features & F_GUEST_TSO6 != 0,
        _ => false,
    };
    if !fits {
        return false;
    }
    if header[0] & NEEDS_CHECKSUM == 0 || features & F_GUEST_CHECKSUM != 0 {
        return true;
    }
    let start = usize::from(u16::from_le_bytes([header[6], header[7]]));
    let place = start + usize::from(u16::from_le_bytes([header[8], header[9]]));
    if start > frame.len() || place + 2 > frame.len() {
        return false;
    }
    // The pseudo header's sum is in its place already.
    let sum = checksum(&frame[start..]).to_be_bytes();
    frame[place..place + 2].copy_from_slice(&sum);
    header[0] &= !NEEDS_CHECKSUM;
    true
}

/// The Internet checksum (RFC 1071); never 0, which in UDP would mean that there is none.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}
