//! Where packets go to and come from: a queue of a tap device, an interface, or a socket that keeps
//! packets apart.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use memory::GuestMemory;

use super::{
    config::{F_GUEST_CHECKSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, HEADER_BYTES},
    interface::{self, SHORT_HEADER},
};
use crate::virtio::chain::Buffers;

/// What is behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// A queue of a tap device.
    Tap,
    /// An interface, with a header of so many bytes in front of each packet.
    Interface(usize),
    /// Whoever has the other end of a socket.
    Peer,
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// A packet of so many bytes, header included.
    Packet(usize),
    /// One that the driver cannot take.
    Unfit,
    /// No packet: the other end of a socket went away.
    Nothing,
}

/// One queue. Each packet has the 12 bytes of `virtio_net_hdr_v1` in front.
#[derive(Debug)]
pub struct Port {
    file: OwnedFd,
    behind: Behind,
}

impl Port {
    /// A queue of a tap device that was opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` (and
    /// `IFF_MULTI_QUEUE` where there are several).
    ///
    /// # Errors
    /// When it is no such device.
    pub fn tap(file: OwnedFd) -> io::Result<Self> {
        let bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: reads one integer of ours.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &bytes) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Self::new(file, Behind::Tap)
    }

    /// All frames of the interface with this name, in the network namespace of the calling thread.
    /// Needs `CAP_NET_RAW` there.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn interface(name: &str) -> io::Result<Self> {
        let (file, header) = interface::open(name)?;
        Self::new(file, Behind::Interface(header))
    }

    /// A socket of packets, such as one end of a `SOCK_SEQPACKET` pair. Nothing is offloaded: who is
    /// at the other end need not look at the header.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn packets(file: OwnedFd) -> io::Result<Self> {
        Self::new(file, Behind::Peer)
    }

    fn new(file: OwnedFd, behind: Behind) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&file, true)?;
        Ok(Self { file, behind })
    }

    /// Whether the kernel does checksums and segmentation for it.
    pub(super) fn offloads(&self) -> bool {
        self.behind != Behind::Peer
    }

    /// Tells the tap what the driver takes as it is: `features` as negotiated.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        if self.behind != Behind::Tap {
            return Ok(());
        }
        let mut flags = 0;
        let has = |bit| features & bit != 0;
        if has(F_GUEST_CHECKSUM) {
            flags |= libc::TUN_F_CSUM;
            for (feature, flag) in [
                (F_GUEST_TSO4, libc::TUN_F_TSO4),
                (F_GUEST_TSO6, libc::TUN_F_TSO6),
                (F_GUEST_ECN, libc::TUN_F_TSO_ECN),
            ] {
                flags |= if has(feature) { flag } else { 0 };
            }
        }
        let flags = libc::c_ulong::from(flags);
        // SAFETY: the argument is a number.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD as _, flags) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Lets a queue of a tap with several take part, or not.
    pub(super) fn attach(&self, on: bool) -> io::Result<()> {
        if self.behind != Behind::Tap {
            return Ok(());
        }
        let flags = if on {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: reads one such structure of ours.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE as _, &request) };
        if done < 0 {
            let error = io::Error::last_os_error();
            // It is so already.
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// The next packet for a driver with these features.
    pub(super) fn receive(&self, packet: &mut [u8], features: u64) -> io::Result<Received> {
        let bytes = match self.behind {
            Behind::Interface(SHORT_HEADER) => {
                let (header, frame) = packet.split_at_mut(HEADER_BYTES);
                let mut parts = [
                    io::IoSliceMut::new(&mut header[..SHORT_HEADER]),
                    io::IoSliceMut::new(frame),
                ];
                rustix::io::readv(&self.file, &mut parts)? + HEADER_BYTES - SHORT_HEADER
            }
            _ => rustix::io::read(&self.file, &mut *packet)?,
        };
        if bytes <= HEADER_BYTES {
            return Ok(Received::Nothing);
        }
        let whole = !matches!(self.behind, Behind::Interface(_))
            || interface::finish(&mut packet[..bytes], features);
        Ok(if whole {
            Received::Packet(bytes)
        } else {
            Received::Unfit
        })
    }

    /// Sends a packet of the guest, header included.
    pub(super) fn send(&self, memory: &GuestMemory, packet: &Buffers) -> io::Result<()> {
        if self.behind != Behind::Interface(SHORT_HEADER) {
            return packet.write_to(memory, self.file.as_fd()).map(drop);
        }
        let mut copy = vec![0; packet.bytes() as usize];
        let read = packet.clone().read(memory, &mut copy);
        read.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let parts = [
            io::IoSlice::new(&copy[..SHORT_HEADER]),
            io::IoSlice::new(&copy[HEADER_BYTES..]),
        ];
        rustix::io::writev(&self.file, &parts)?;
        Ok(())
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
