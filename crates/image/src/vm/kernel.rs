//! Kernels: made from a distribution's package, with an initramfs that carries the agent.
//!
//! ```text
//!   apt-get download ─▶ package ─▶ vmlinuz                                 ─┐
//!                                 modules wanted, with all they need ─┐      ├─▶ ROOT/kernels/sha256/<key>/
//!                                 agent as /init ─────────────────────┴─▶ initramfs ─┘
//! ```
//! The directory's name is the digest of package, agent and this recipe's revision, so an upgrade of any
//! makes another kernel and a guest keeps the one it was started with. The initramfs is not
//! compressed: guests read it from memory, and inflating 5 MB costs a software CPU more than reading it.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{
    cpio::Archive,
    disk::{self, DiskError},
    modules::{ModuleError, Modules},
};
use crate::{
    digest::{Digest, Hasher},
    error::{StoreError, at},
    job::{Cancelled, Event, Job, Phase},
    store::{FORMAT, Lease, Store, read_json, write_json},
};

/// The package that always names Debian's newest kernel for virtual machines.
const DEFAULT_PACKAGE: &str = "linux-image-cloud-amd64";
/// Raise when what goes into the directory changes.
const REVISION: u32 = 4;
const MAX_AGENT: u64 = 64 << 20;
const MAX_KERNEL: u64 = 256 << 20;

/// The disk with all modules, in a kernel's directory.
const MODULES_DISK: &str = "modules.ext4";

/// Loaded in every guest, in this order as far as their needs allow: disks before all else.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "vmw_vsock_virtio_transport",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
];

/// Loaded where the guest's configuration asks for it: the list's name, and its modules.
const ON_DEMAND: &[(&str, &[&str])] = &[
    ("overlay", &["overlay"]),
    ("virtiofs", &["virtiofs"]),
    // With what its names and labels are written in unless told otherwise.
    ("vfat", &["vfat", "nls_cp437", "nls_ascii"]),
];

/// Which kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecipe {
    /// A kernel package of the host's apt sources, or a package that depends on one.
    pub package: String,
}

impl Default for KernelRecipe {
    fn default() -> Self {
        Self {
            package: DEFAULT_PACKAGE.to_owned(),
        }
    }
}

/// A kernel of the store, ready to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Names it in the store.
    pub id: Digest,
    /// Its release, as `uname -r` says it.
    pub release: String,
    /// The package it is from.
    pub package: String,
    /// The kernel: a bzImage.
    pub vmlinuz: PathBuf,
    /// The same decompressed, an ELF file: what starts without being decompressed each time. `None`
    /// when it is compressed in a way not known here.
    pub vmlinux: Option<PathBuf>,
    /// The archive that every guest with this kernel shares; a guest's own is appended to it.
    pub initramfs: PathBuf,
    /// A read-only ext4 disk with all modules, to be mounted at [`Kernel::modules_target`]: for what
    /// runs in a guest and wants more than booting takes, such as container engines and firewalls.
    /// `None` when the host had no `depmod` to index them.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// Where a guest mounts [`Kernel::modules`].
    #[must_use]
    pub fn modules_target(&self) -> String {
        format!("/lib/modules/{}", self.release)
    }
}

/// Making a kernel failed; the store is as before.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The name is not one of a package.
    #[error("{0:?} is not the name of a package")]
    Name(String),
    /// The host's package manager is another one.
    #[error(
        "a kernel is made from a Debian package, which needs {0}; on other systems give your own \
         with --kernel and --initrd"
    )]
    MissingTool(&'static str),
    /// A tool ran and failed.
    #[error("{program} failed ({status}): {output}")]
    Tool {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A tool could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The package is something else than a kernel.
    #[error("the package {package} has no {what}")]
    NoKernel {
        /// The package.
        package: String,
        /// What it lacks.
        what: &'static str,
    },
    /// A module is missing or damaged.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The disk with all modules could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What is recorded beside a kernel.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    release: String,
    package: String,
}

/// Which kernel a recipe gave last, for which agent.
#[derive(Serialize, Deserialize)]
struct Latest {
    version: u32,
    id: Digest,
    agent: Digest,
}

impl Store {
    /// The kernel of a recipe with `agent` (a static program) as its `/init`: the one made before, or
    /// with `fresh` or another agent a new one from the newest package. Blocks: a download and a
    /// second.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn build_kernel(
        &self,
        recipe: &KernelRecipe,
        agent: &Path,
        fresh: bool,
        job: &Job,
    ) -> Result<Kernel, KernelError> {
        let package = recipe.package.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if !package.starts_with("linux-image") || !package.chars().all(plain) {
            return Err(KernelError::Name(package.to_owned()));
        }
        let agent = read(agent, MAX_AGENT)?;
        let agent_digest = Digest::of(&agent);
        let latest = self.kernels_dir().join(format!("{package}.json"));
        if !fresh
            && let Some(found) = read_json::<Latest>(&latest)?
            && found.agent == agent_digest
            && let Some(kernel) = self.kernel(&found.id)?
        {
            return Ok(kernel);
        }
        let lease = self.lease()?;
        job.emit(Event::Phase(Phase::Building));
        let id = self.make_kernel(package, &agent, &lease, job)?;
        job.emit(Event::Phase(Phase::Recording));
        let version = FORMAT;
        write_json(
            &latest,
            &Latest {
                version,
                id,
                agent: agent_digest,
            },
        )?;
        let kernel = self.kernel(&id)?;
        kernel.ok_or_else(|| StoreError::NotFound(id.to_string()).into())
    }

    /// A kernel by its id; `None` when it is not here.
    ///
    /// # Errors
    /// [`StoreError`] when its record cannot be read.
    pub fn kernel(&self, id: &Digest) -> Result<Option<Kernel>, StoreError> {
        let dir = self.kernel_dir(id);
        let record = read_json::<Record>(&dir.join("kernel.json"))?;
        Ok(record.map(|record| Kernel {
            id: *id,
            release: record.release,
            package: record.package,
            vmlinuz: dir.join("vmlinuz"),
            vmlinux: Some(dir.join("vmlinux")).filter(|file| file.exists()),
            initramfs: dir.join("initramfs.cpio"),
            modules: Some(dir.join(MODULES_DISK)).filter(|disk| disk.exists()),
        }))
    }

    /// The kernels that recipes gave last: what a guest started next would boot.
    pub(crate) fn latest_kernels(&self) -> Result<HashSet<Digest>, StoreError> {
        let dir = self.kernels_dir();
        let mut ids = HashSet::new();
        for entry in fs::read_dir(&dir).map_err(at("list", &dir))? {
            let path = entry.map_err(at("list", &dir))?.path();
            if path.extension().is_some_and(|it| it == "json")
                && let Some(latest) = read_json::<Latest>(&path)?
            {
                ids.insert(latest.id);
            }
        }
        Ok(ids)
    }

    fn kernels_dir(&self) -> PathBuf {
        self.root().join("kernels")
    }

    fn kernel_dir(&self, id: &Digest) -> PathBuf {
        self.kernels_dir().join("sha256").join(id.hex())
    }

    /// Downloads, unpacks and assembles; then one rename makes it visible.
    fn make_kernel(
        &self,
        package: &str,
        agent: &[u8],
        lease: &Lease,
        job: &Job,
    ) -> Result<Digest, KernelError> {
        let work = lease.fresh_path("kernel");
        let (download, unpacked, out) = (work.join("deb"), work.join("tree"), work.join("out"));
        for dir in [&download, &unpacked, &out] {
            fs::create_dir_all(dir).map_err(at("create", dir))?;
        }
        let name = real_package(package)?;
        job.note(format!("downloading {name}"));
        run(
            Command::new("apt-get")
                .args(["download", "-q", "-o", "APT::Sandbox::User=root", &name])
                .current_dir(&download),
            "apt-get",
        )?;
        job.check()?;
        let deb = only_file(&download, "deb")?.ok_or_else(|| lacks(&name, "file to download"))?;
        let bytes = read(&deb, MAX_KERNEL)?;
        let id = key(&bytes, agent);
        run(
            Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked),
            "dpkg-deb",
        )?;
        job.check()?;
        let release = release(&unpacked).ok_or_else(|| lacks(&name, "modules"))?;
        let vmlinuz = unpacked.join(format!("boot/vmlinuz-{release}"));
        if !vmlinuz.is_file() {
            return Err(lacks(&name, "kernel"));
        }
        let compressed = read(&vmlinuz, MAX_KERNEL)?;
        write(&out.join("vmlinuz"), &compressed)?;
        match bzimage::vmlinux(&compressed) {
            Ok(Some(vmlinux)) => write(&out.join("vmlinux"), &vmlinux)?,
            Ok(None) => {
                job.note("machines start more slowly: only the kernel can decompress itself")
            }
            Err(error) => job.note(format!(
                "machines start more slowly: the kernel is decompressed each time ({error})"
            )),
        }
        let tree = unpacked.join("lib/modules").join(&release);
        let modules = Modules::read(&tree)?;
        write(&out.join("initramfs.cpio"), &initramfs(agent, &modules)?)?;
        if index_modules(&unpacked, &release, job)? {
            job.check()?;
            disk::make(&tree, &out.join(MODULES_DISK), &id, disk::Purpose::Shared)?;
        }
        let record = Record {
            version: FORMAT,
            release,
            package: name,
        };
        write_json(&out.join("kernel.json"), &record)?;
        // From here on until it is named as the latest, only the lease keeps it.
        lease.pin(&[id], |_| Ok(()))?;
        self.publish_kernel(&out, &id)?;
        Ok(id)
    }

    fn publish_kernel(&self, out: &Path, id: &Digest) -> Result<(), StoreError> {
        let to = self.kernel_dir(id);
        match fs::rename(out, &to) {
            // The same package, agent and recipe: the same content.
            Err(_) if to.join("kernel.json").exists() => Ok(()),
            result => result.map_err(at("create", &to)),
        }
    }
}

/// The initramfs: the agent, the modules, and the lists of them.
fn initramfs(agent: &[u8], modules: &Modules) -> Result<Vec<u8>, ModuleError> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "run", "sysroot", "berth"] {
        archive.directory(dir, 0o755);
    }
    archive.file("init", 0o755, agent);
    archive.directory("berth/modules", 0o755);
    let mut carried = HashSet::new();
    let lists = [("order".to_owned(), MODULES)].into_iter().chain(
        ON_DEMAND
            .iter()
            .map(|(name, wanted)| (format!("order-{name}"), *wanted)),
    );
    for (list, wanted) in lists {
        let mut order = String::new();
        for module in modules.resolve(wanted)? {
            let file = format!("{}.ko", module.name);
            order.push_str(&file);
            order.push('\n');
            if carried.insert(module.name) {
                archive.file(&format!("berth/modules/{file}"), 0o644, &module.content);
            }
        }
        archive.file(&format!("berth/modules/{list}"), 0o644, order.as_bytes());
    }
    Ok(archive.finish())
}

/// Makes the index that `modprobe` reads. Answers whether there was a tool for it.
fn index_modules(unpacked: &Path, release: &str, job: &Job) -> Result<bool, KernelError> {
    let mut command = Command::new("depmod");
    command.arg("-b").arg(unpacked).arg(release);
    match run(&mut command, "depmod") {
        Ok(_) => Ok(true),
        Err(KernelError::MissingTool(_)) => {
            job.note("guests get the modules for booting only: there is no depmod (package kmod)");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn key(deb: &[u8], agent: &[u8]) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(format!("kernel {REVISION}\0").as_bytes());
    hasher.update(Digest::of(deb).hex().as_bytes());
    hasher.update(Digest::of(agent).hex().as_bytes());
    hasher.finish()
}

/// The package with files that a package without depends on.
fn real_package(package: &str) -> Result<String, KernelError> {
    let output = run(
        Command::new("apt-cache").args(["show", "--no-all-versions", package]),
        "apt-cache",
    )?;
    let depends = output
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "));
    let kernel = depends.and_then(|line| {
        let names = line.split(',').map(|item| item.trim().split(' ').next());
        names
            .flatten()
            .find(|name| name.starts_with("linux-image-"))
    });
    Ok(kernel.unwrap_or(package).to_owned())
}

/// The one release that has modules in the package.
fn release(unpacked: &Path) -> Option<String> {
    let entries = fs::read_dir(unpacked.join("lib/modules")).ok()?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    names.next()?.into_string().ok()
}

fn only_file(dir: &Path, extension: &str) -> Result<Option<PathBuf>, StoreError> {
    let entries = fs::read_dir(dir).map_err(at("list", dir))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.find(|path| path.extension().is_some_and(|it| it == extension)))
}

/// Runs a tool to its end; answers what it printed.
fn run(command: &mut Command, program: &'static str) -> Result<String, KernelError> {
    let command = command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    let output = command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KernelError::MissingTool(program),
        _ => KernelError::Run { program, source },
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = text.lines().rev().take(5).collect();
        return Err(KernelError::Tool {
            program,
            status: output.status.to_string(),
            output: last.into_iter().rev().collect::<Vec<_>>().join("\n"),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn lacks(package: &str, what: &'static str) -> KernelError {
    let package = package.to_owned();
    KernelError::NoKernel { package, what }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    crate::store::read_limited(path, limit).map_err(at("read", path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    crate::store::write_private(path, bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::store::InUse;

    /// A kernel as a recipe leaves it, without the download.
    fn put(store: &Store, name: &str) -> Digest {
        let id = Digest::of(name.as_bytes());
        let out = store.root().join("out");
        fs::create_dir(&out).unwrap();
        let record = Record {
            version: FORMAT,
            release: name.to_owned(),
            package: format!("linux-image-{name}"),
        };
        write_json(&out.join("kernel.json"), &record).unwrap();
        store.publish_kernel(&out, &id).unwrap();
        id
    }

    #[test]
    fn the_collector_keeps_the_newest_kernel_and_those_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let [old, used, newest] = ["1", "2", "3"].map(|name| put(&store, name));
        let latest = Latest {
            version: FORMAT,
            id: newest,
            agent: Digest::of(b"agent"),
        };
        let path = store.kernels_dir().join("linux-image-cloud-amd64.json");
        write_json(&path, &latest).unwrap();
        let in_use = InUse {
            kernels: [used].into(),
            ..InUse::default()
        };
        store.gc(&in_use).unwrap();
        assert_eq!(store.kernel(&old).unwrap(), None);
        assert_eq!(store.kernel(&used).unwrap().unwrap().release, "2");
        assert_eq!(store.kernel(&newest).unwrap().unwrap().release, "3");
        store.gc(&InUse::default()).unwrap();
        assert_eq!(store.kernel(&used).unwrap(), None);
        assert!(store.kernel(&newest).unwrap().is_some());
    }

    #[test]
    fn a_name_that_is_no_kernel_package_runs_no_tool() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for name in ["bash", "linux-image; reboot", "-o linux-image", ""] {
            let recipe = KernelRecipe {
                package: name.to_owned(),
            };
            let made = store.build_kernel(&recipe, Path::new("/"), true, &Job::silent());
            assert!(matches!(made, Err(KernelError::Name(_))), "{name:?}");
        }
    }
}
