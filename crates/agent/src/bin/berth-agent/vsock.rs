//! Sockets of the address family vsock: a guest's way to its host without a network.
//!
//! Owns the system calls, which no library of ours wraps; answers plain files. See `vsock(7)`.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

/// The host's address, as every guest sees it.
const HOST_CID: u32 = libc::VMADDR_CID_HOST;

/// A socket that takes connections.
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens on a port, for connections from the host.
    pub fn bind(port: u32) -> io::Result<Self> {
        let socket = socket()?;
        let address = address(libc::VMADDR_CID_ANY, port);
        // SAFETY: the pointer is to a live sockaddr_vm of the length given, and the kernel only reads it.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        check(bound)?;
        // SAFETY: no memory is involved.
        check(unsafe { libc::listen(socket.as_raw_fd(), 64) })?;
        Ok(Self(socket))
    }

    /// Waits for a connection.
    pub fn accept(&self) -> io::Result<File> {
        // SAFETY: null pointers tell the kernel that the peer's address is not wanted.
        let fd = unsafe {
            libc::accept4(
                self.0.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        };
        check(fd)?;
        // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// Connects to a port of the host; each read and write then takes at most `timeout`.
pub fn connect_host(port: u32, timeout: Duration) -> io::Result<File> {
    let socket = socket()?;
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let time = libc::timeval {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_usec: libc::suseconds_t::from(timeout.subsec_micros()),
        };
        // SAFETY: the pointer is to a live timeval of the length given, and the kernel only reads it.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const time).cast(),
                size_of_val(&time) as libc::socklen_t,
            )
        };
        check(set)?;
    }
    let address = address(HOST_CID, port);
    // SAFETY: as for bind above.
    let connected = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    check(connected)?;
    Ok(File::from(socket))
}

/// Ends a connection for both directions, waking whoever reads it; no error for other files.
pub fn shutdown(file: &File) {
    // SAFETY: no memory is involved; a file that is no socket is refused by the kernel.
    let _ = unsafe { libc::shutdown(file.as_raw_fd(), libc::SHUT_RDWR) };
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all bytes zero is a valid sockaddr_vm, which holds only integers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
