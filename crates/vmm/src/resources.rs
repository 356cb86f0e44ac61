//! Everything a machine needs that has a name on the host, opened before the process locks itself
//! up.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use cpu::{Backend, kvm::KvmDevice};
use devices::virtio::net::Port;

use crate::{VmConfig, console::Log, shares::Shares};

/// Something could not be opened or made.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub struct ResourceError {
    /// What was attempted.
    pub what: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Names what was attempted, and on what.
pub(crate) trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, ResourceError>;
}

/// Where the hardware is had.
const KVM: &str = "/dev/kvm";

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, ResourceError> {
        self.map_err(|error| ResourceError {
            what,
            path: path.to_owned(),
            source: error.into(),
        })
    }
}

/// Files of one boot.
#[derive(Debug)]
pub struct Resources {
    /// The kernel.
    pub kernel: File,
    /// Pieces of the initial RAM file system.
    pub initrd: Vec<File>,
    /// Disks, in order.
    pub disks: Vec<File>,
    /// Folders of the host.
    pub shares: Shares,
    /// What network cards are attached to, in order.
    pub ports: Vec<Port>,
    /// What keeps the console's output.
    pub log: Option<Log>,
    /// The hardware, where that executes the vCPUs.
    pub kvm: Option<KvmDevice>,
}

impl Resources {
    /// Opens them all; for a process that will lock itself up, folders so that nothing else can be
    /// reached from them.
    ///
    /// # Errors
    /// With the first that cannot be.
    pub fn open(config: &VmConfig, backend: Backend, jail: bool) -> Result<Self, ResourceError> {
        let read = |what, path: &PathBuf| File::open(path).at(what, path);
        let initrd = config.initrd.iter().map(|it| read("open the initrd", it));
        let disks = config.disks.iter().map(|disk| {
            OpenOptions::new()
                .read(true)
                .write(!disk.read_only)
                .open(&disk.path)
                .at("open the disk", &disk.path)
        });
        let ports = config
            .nets
            .iter()
            .map(|net| match (&net.tap, &net.interface) {
                (Some(tap), _) => open_tap(tap)
                    .and_then(Port::tap)
                    .at("attach to the tap device", Path::new(tap)),
                (None, interface) => {
                    let name = interface.as_deref().unwrap_or_default();
                    Port::interface(name).at("attach to the interface", Path::new(name))
                }
            });
        let log = config.console.log.as_ref().map(|path| {
            Log::open(path, config.console.log_bytes).at("open the console's log", path)
        });
        Ok(Self {
            kernel: read("open the kernel", &config.kernel)?,
            initrd: initrd.collect::<Result<_, _>>()?,
            disks: disks.collect::<Result<_, _>>()?,
            shares: Shares::open(&config.shares, jail)?,
            ports: ports.collect::<Result<_, _>>()?,
            log: log.transpose()?,
            kvm: match backend {
                Backend::Kvm => Some(open_kvm(config.kvm_descriptor)?),
                Backend::Soft => None,
            },
        })
    }
}

fn open_kvm(descriptor: Option<i32>) -> Result<KvmDevice, ResourceError> {
    let path = Path::new(KVM);
    let device = match descriptor {
        Some(number) => {
            let copy = copy_inherited(number).at("use what should be open for", path)?;
            KvmDevice::from_fd(copy)
        }
        None => KvmDevice::open(),
    };
    device
        .map_err(io::Error::other)
        .at("execute the machine by", path)
}

/// A copy of a file that whoever started the process left open for it.
fn copy_inherited(number: i32) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a number that is no descriptor's may not be borrowed, and none of those is negative; it is
    // only copied, which the kernel refuses if it is of no open file.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_dupfd_cloexec(inherited, 0)?)
}

/// The request of `linux/if_tun.h`; libc's is of another type on each C library.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// Attaches to an existing tap device, with offload headers.
fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let too_long = io::Error::new(io::ErrorKind::InvalidInput, "its name is too long");
    // SAFETY: a struct of numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(too_long);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    use std::os::fd::AsRawFd;
    // SAFETY: reads and writes the struct, which lives over the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

/// Sockets that outlive a boot; removed when dropped.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For [`crate::control`].
    pub control: Option<UnixListener>,
    /// For [`crate::console`].
    pub console: Option<UnixListener>,
    /// For programs that connect to the guest.
    pub vsock: Option<UnixListener>,
    paths: Vec<PathBuf>,
}

impl Listeners {
    /// Makes them all, in place of what an earlier process may have left.
    ///
    /// # Errors
    /// With the first that cannot be made.
    pub fn bind(config: &VmConfig) -> Result<Self, ResourceError> {
        let mut listeners = Self::default();
        listeners.control = listeners.bind_one(config.control.as_ref())?;
        listeners.console = listeners.bind_one(config.console.socket.as_ref())?;
        listeners.vsock = listeners.bind_one(config.vsock.as_ref().map(|it| &it.socket))?;
        Ok(listeners)
    }

    fn bind_one(&mut self, path: Option<&PathBuf>) -> Result<Option<UnixListener>, ResourceError> {
        let Some(path) = path else {
            return Ok(None);
        };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("remove the old socket", path);
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).at("make the socket", path)?;
        self.paths.push(path.clone());
        // Whoever may connect commands the machine.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .at("protect the socket", path)?;
        Ok(Some(listener))
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for path in &self.paths {
            // It may be gone with its directory.
            let _gone = fs::remove_file(path);
        }
    }
}
