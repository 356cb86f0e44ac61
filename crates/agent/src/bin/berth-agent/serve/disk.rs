//! File systems on disks: holding writes back while a disk is copied, and growing the root.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// `FIFREEZE`, `FITHAW` of `linux/fs.h`, which the C library leaves out: `_IOWR('X', 119 and 120, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

/// `EXT4_IOC_RESIZE_FS` of `linux/ext4.h`: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

/// Longest that writes are held back.
const MOST: Duration = Duration::from_secs(300);

/// What is frozen, and the number of the freeze that a timer belongs to.
static FROZEN: Mutex<Vec<File>> = Mutex::new(Vec::new());
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// A mounted file system on a disk.
struct Mounted {
    device: String,
    target: PathBuf,
    kind: String,
}

/// Writes everything out and holds further writes back on all file systems on disks, until thawed or
/// the time is over. Either all are frozen or none.
pub fn freeze(timeout_ms: u64) -> io::Result<()> {
    let mut frozen = lock();
    if !frozen.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "it is frozen already",
        ));
    }
    for mounted in mounted()? {
        let file = File::open(&mounted.target)?;
        match ioctl_int(&file, FIFREEZE) {
            Ok(()) => frozen.push(file),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(error) => {
                release(&mut frozen);
                return Err(error);
            }
        }
    }
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
    let timeout = Duration::from_millis(timeout_ms).min(MOST);
    let timer = thread::Builder::new().spawn(move || {
        thread::sleep(timeout);
        let mut frozen = lock();
        if GENERATION.load(Ordering::Relaxed) == generation {
            release(&mut frozen);
        }
    });
    if let Err(error) = timer {
        release(&mut frozen);
        return Err(error);
    }
    Ok(())
}

/// Lets writes go on; nothing happens when nothing is frozen.
pub fn thaw() {
    release(&mut lock());
}

fn lock() -> std::sync::MutexGuard<'static, Vec<File>> {
    FROZEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn release(frozen: &mut Vec<File>) {
    // In reverse: a file system on a loop device over another goes first.
    while let Some(file) = frozen.pop() {
        // One that somebody else thawed is thawed.
        let _ = ioctl_int(&file, FITHAW);
    }
}

/// Makes the ext4 file system that the guest writes to as large as its disk. Works while it is used.
pub fn grow_root() -> io::Result<()> {
    let root = ["/run/berth/changes", "/"];
    let mounts = mounted()?;
    let mounted = root
        .iter()
        .find_map(|target| mounts.iter().find(|it| it.target == Path::new(target)))
        .filter(|it| it.kind == "ext4")
        .ok_or_else(|| {
            let text = "the root file system is not an ext4 on a disk";
            io::Error::new(io::ErrorKind::Unsupported, text)
        })?;
    let name = Path::new(&mounted.device).file_name().unwrap_or_default();
    let size = fs::read_to_string(Path::new("/sys/class/block").join(name).join("size"))?;
    let bad = |_| io::Error::from(io::ErrorKind::InvalidData);
    let sectors: u64 = size.trim().parse().map_err(bad)?;
    let block = rustix::fs::statvfs(&mounted.target)?.f_bsize.max(1024);
    let blocks = sectors * 512 / block;
    let file = File::open(&mounted.target)?;
    // SAFETY: the request reads one u64 behind the pointer, which is to a live one.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// File systems on disks that can be written to, each once, in the order they were mounted.
fn mounted() -> io::Result<Vec<Mounted>> {
    let text = fs::read_to_string("/proc/self/mounts")?;
    let mut seen = BTreeSet::new();
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let device = fields.next()?.to_owned();
            let target = PathBuf::from(fields.next()?);
            let kind = fields.next()?.to_owned();
            let writable = fields.next()?.split(',').any(|option| option == "rw");
            let on_disk = device.starts_with("/dev/") && writable && seen.insert(device.clone());
            on_disk.then_some(Mounted {
                device,
                target,
                kind,
            })
        })
        .collect())
}

fn ioctl_int(file: &File, request: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these requests ignore their argument.
    if unsafe { libc::ioctl(file.as_raw_fd(), request, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
