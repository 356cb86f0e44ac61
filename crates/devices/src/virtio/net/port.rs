//! Where packets go to and come from: a queue of a tap device, or a socket that keeps packets apart.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use super::config::{F_GUEST_CHECKSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, HEADER_BYTES};

/// One queue. Each packet has the 12 bytes of `virtio_net_hdr_v1` in front.
#[derive(Debug)]
pub struct Port {
    file: OwnedFd,
    tap: bool,
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
        Self::new(file, true)
    }

    /// A socket of packets, such as one end of a `SOCK_SEQPACKET` pair. Nothing is offloaded: who is
    /// at the other end need not look at the header.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn packets(file: OwnedFd) -> io::Result<Self> {
        Self::new(file, false)
    }

    fn new(file: OwnedFd, tap: bool) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&file, true)?;
        Ok(Self { file, tap })
    }

    /// Whether the kernel does checksums and segmentation for it.
    pub(super) fn offloads(&self) -> bool {
        self.tap
    }

    /// Tells the tap what the driver takes as it is: `features` as negotiated.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        if !self.tap {
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
        if !self.tap {
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

    /// The next packet; its length, header included.
    pub(super) fn receive(&self, packet: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.file, packet)?)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
