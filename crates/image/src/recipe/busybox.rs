//! The busybox recipe: one static binary, a link for each applet, the files programs expect.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

use super::RecipeError;
use crate::{
    digest::Digest,
    job::Job,
    layer::{Ingested, ingest_tar},
    manifest::RunConfig,
    store::{Lease, Store},
    tar::{Entry, Kind, Writer},
};

/// Where distributions put a busybox.
const PLACES: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/usr/sbin/busybox"];
const MAX_BINARY: u64 = 64 << 20;
/// Raise when the files below change, so that cached results are not found again.
const REVISION: u32 = 2;

/// What busybox's init does where the image is a system: a shell on the console, an end in good order.
const INITTAB: &str = "\
console::askfirst:-/bin/sh
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/umount -a -r
::restart:/sbin/init
";

pub(super) struct Inputs {
    binary: Vec<u8>,
    /// Paths of the applets, relative, sorted.
    applets: Vec<String>,
}

/// Finds the binary and asks it for its applets.
pub(super) fn prepare() -> Result<Inputs, RecipeError> {
    let missing = || RecipeError::MissingTool {
        program: "busybox",
        package: "busybox-static",
    };
    let path: PathBuf = PLACES
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or_else(missing)?;
    let run = |source| RecipeError::Run {
        program: "busybox",
        source,
    };
    let binary = read(&path).map_err(run)?;
    if !is_static(&binary) {
        return Err(RecipeError::NotStatic(path));
    }
    let output = Command::new(&path)
        .arg("--list-full")
        .output()
        .map_err(run)?;
    if !output.status.success() {
        return Err(RecipeError::Tool {
            program: "busybox",
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    let listed = String::from_utf8_lossy(&output.stdout);
    let mut applets: Vec<String> = (listed.lines())
        .map(|line| line.trim().trim_start_matches('/').to_owned())
        .filter(|line| !line.is_empty() && line != "bin/busybox" && !line.contains(".."))
        .collect();
    applets.sort();
    applets.dedup();
    Ok(Inputs { binary, applets })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(
        &mut io::Read::take(std::fs::File::open(path)?, MAX_BINARY),
        &mut bytes,
    )?;
    Ok(bytes)
}

/// Whether an ELF file has no interpreter, that is needs no dynamic linker (ELF-64 and ELF-32).
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    if elf.get(..4) != Some(b"\x7fELF") {
        return false;
    }
    let wide = elf.get(4) == Some(&2);
    let little = elf.get(5) == Some(&1);
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        let fold = |value: usize, byte: &u8| (value << 8) | usize::from(*byte);
        Some(if little {
            bytes.iter().rev().fold(0, fold)
        } else {
            bytes.iter().fold(0, fold)
        })
    };
    let header = if wide {
        number(32, 8).zip(number(54, 2)).zip(number(56, 2))
    } else {
        number(28, 4).zip(number(42, 2)).zip(number(44, 2))
    };
    let Some(((offset, size), count)) = header else {
        return false;
    };
    (0..count).all(|i| {
        let at = offset.checked_add(i * size);
        at.and_then(|at| number(at, 4))
            .is_some_and(|kind| kind != PT_INTERP as usize)
    })
}

pub(super) fn run_config() -> RunConfig {
    super::base_config(&["sh"])
}

impl Inputs {
    pub(super) fn key(&self) -> Digest {
        let applets = self.applets.join("\n");
        let text = format!("busybox {REVISION} {} {applets}", Digest::of(&self.binary));
        Digest::of(text.as_bytes())
    }

    pub(super) fn build(
        &self,
        store: &Store,
        lease: &Lease,
        job: &Job,
    ) -> Result<Ingested, RecipeError> {
        let tar = self.tar().map_err(|source| RecipeError::Run {
            program: "busybox",
            source,
        })?;
        Ok(ingest_tar(store, lease, tar.as_slice(), job)?)
    }

    /// The root file system, always the same for the same binary.
    fn tar(&self) -> io::Result<Vec<u8>> {
        let mut tar = Writer::new(Vec::with_capacity(self.binary.len() + (1 << 20)));
        for (path, mode) in [
            ("./", 0o755),
            ("bin/", 0o755),
            ("dev/", 0o755),
            ("etc/", 0o755),
            ("home/", 0o755),
            ("proc/", 0o555),
            ("root/", 0o700),
            ("run/", 0o755),
            ("sbin/", 0o755),
            ("sys/", 0o555),
            ("tmp/", 0o1777),
            ("usr/", 0o755),
            ("usr/bin/", 0o755),
            ("usr/sbin/", 0o755),
            ("var/", 0o755),
            ("var/log/", 0o755),
            ("var/tmp/", 0o1777),
            ("var/www/", 0o755),
        ] {
            let path = path.as_bytes().to_vec();
            tar.entry(&Entry {
                path,
                kind: Kind::Directory,
                mode,
                ..Entry::default()
            })?;
        }
        tar.file("bin/busybox", 0o755, &self.binary)?;
        for applet in &self.applets {
            let up = "../".repeat(applet.matches('/').count());
            let link = if applet.starts_with("bin/") {
                "busybox".into()
            } else {
                format!("{up}bin/busybox")
            };
            symlink(&mut tar, applet, &link)?;
        }
        symlink(&mut tar, "var/run", "../run")?;
        for (path, mode, content) in [
            (
                "etc/passwd",
                0o644,
                "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
            ),
            (
                "etc/group",
                0o644,
                "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n",
            ),
            (
                "etc/shadow",
                0o600,
                "root:*:::::::\ndaemon:*:::::::\nwww-data:*:::::::\nnobody:*:::::::\n",
            ),
            (
                "etc/hosts",
                0o644,
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
            ),
            ("etc/hostname", 0o644, "localhost\n"),
            ("etc/inittab", 0o644, INITTAB),
            ("etc/resolv.conf", 0o644, ""),
            (
                "etc/nsswitch.conf",
                0o644,
                "passwd: files\ngroup: files\nhosts: files dns\n",
            ),
            (
                "etc/profile",
                0o644,
                "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
            ),
            (
                "etc/os-release",
                0o644,
                "NAME=\"BusyBox\"\nID=busybox\nPRETTY_NAME=\"BusyBox (Berth recipe)\"\n",
            ),
        ] {
            tar.file(path, mode, content.as_bytes())?;
        }
        tar.finish()
    }
}

fn symlink(tar: &mut Writer<Vec<u8>>, path: &str, target: &str) -> io::Result<()> {
    tar.entry(&Entry {
        path: path.as_bytes().to_vec(),
        link: target.as_bytes().to_vec(),
        kind: Kind::Symlink,
        mode: 0o777,
        ..Entry::default()
    })
}
