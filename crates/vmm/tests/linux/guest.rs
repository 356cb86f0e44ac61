//! A guest of these tests: Debian's kernel, one shell as its init, run by `berth-vmm`.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use vmm::{ExitRecord, control::Client};

const PACKAGE: &str = "linux-image-cloud-amd64";
/// On the software CPU of a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// What is typed is executed. A command whose output is waited for must not have it in its text.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo \"INIT-IS-UP on $(uname -r)\"
while read -r line; do eval \"$line\"; done
";

/// Kernel and initial RAM file system, shared by the tests of a run and by later runs.
#[derive(Clone)]
pub struct Media {
    pub vmlinuz: PathBuf,
    pub vmlinux: PathBuf,
    pub initrd: PathBuf,
}

/// Says aloud that a test cannot be run here.
pub fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

impl Media {
    /// Makes or finds them; `None`, said aloud, where this machine cannot.
    pub fn new(test: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linux-1");
        fs::create_dir_all(&root).unwrap();
        // One process makes them, the others find them.
        let lock = fs::File::create(root.join("lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let media = Self {
            vmlinuz: root.join("vmlinuz"),
            vmlinux: root.join("vmlinux"),
            initrd: root.join("initrd"),
        };
        let made = if media.initrd.exists() {
            Ok(())
        } else {
            media.make(&root)
        };
        if let Err(reason) = made {
            skip(test, &reason);
            return None;
        }
        Some(media)
    }

    fn make(&self, root: &Path) -> Result<(), String> {
        let directory = tempfile::tempdir_in(root).unwrap();
        let script = format!(
            "set -e; cd '{}'; \
             package=$(apt-cache depends {PACKAGE} | sed -n 's/^ *Depends: //p' | head -1); \
             apt-get -q download \"$package\" >&2; dpkg-deb -x ./*.deb .; mv boot/vmlinuz-* vmlinuz; \
             mkdir -p tree/bin tree/dev tree/proc tree/sys; cp \"$(command -v busybox)\" tree/bin/; \
             printf '%s' \"$INIT\" >tree/init; chmod 755 tree/init; \
             cd tree; find . | cpio -o -H newc --quiet >../initrd",
            directory.path().display()
        );
        let made = Command::new("sh")
            .args(["-c", &script])
            .env("INIT", INIT)
            .output()
            .map_err(|error| error.to_string())?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(format!("no kernel of Debian's can be had: {said}"));
        }
        let vmlinuz = fs::read(directory.path().join("vmlinuz")).unwrap();
        let vmlinux = bzimage::vmlinux(&vmlinuz).unwrap().unwrap();
        fs::write(&self.vmlinux, vmlinux).unwrap();
        fs::rename(directory.path().join("vmlinuz"), &self.vmlinuz).unwrap();
        // Last: it says that all are there.
        fs::rename(directory.path().join("initrd"), &self.initrd).unwrap();
        Ok(())
    }
}

/// A guest. Dropping it ends it.
pub struct Guest {
    pub vmm: Child,
    directory: tempfile::TempDir,
    console: Option<UnixStream>,
    said: String,
}

impl Guest {
    /// Starts one, in the jail, with `change`s to its configuration.
    pub fn start(media: &Media, change: impl FnOnce(&mut Value)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut config = json!({
            "version": 1,
            "name": "test",
            "memory_bytes": 256 << 20,
            "vcpus": 1,
            "accel": "soft",
            "kernel": media.vmlinux,
            "initrd": [media.initrd],
            "command_line": "console=ttyS0 panic=-1 reboot=k mitigations=off",
            "console": {"socket": path("console"), "log": path("log")},
            "control": path("control"),
            "exit_record": path("exit.json"),
            "jail": {"uid": 61000, "gid": 61000},
        });
        change(&mut config);
        fs::write(path("config.json"), config.to_string()).unwrap();
        let vmm = Command::new(env!("CARGO_BIN_EXE_berth-vmm"))
            .arg("--config")
            .arg(path("config.json"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            vmm,
            directory,
            console: None,
            said: String::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn console(&mut self) -> &mut UnixStream {
        if self.console.is_none() {
            let path = self.path("console");
            let start = Instant::now();
            let stream = loop {
                if let Ok(stream) = UnixStream::connect(&path) {
                    break stream;
                }
                let ended = self.vmm.try_wait().unwrap();
                assert!(ended.is_none(), "it ended with {ended:?}:\n{}", self.log());
                assert!(start.elapsed() < PATIENCE, "no console");
                std::thread::sleep(Duration::from_millis(20));
            };
            let patience = Some(Duration::from_millis(200));
            stream.set_read_timeout(patience).unwrap();
            self.console = Some(stream);
        }
        self.console.as_mut().unwrap()
    }

    /// Waits until the console says something new that contains `text`; returns what came before.
    pub fn expect(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.said.find(text) {
                let rest = self.said.split_off(at + text.len());
                return std::mem::replace(&mut self.said, rest);
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no {text:?}; it says:\n{}",
                self.said
            );
            let mut bytes = [0; 4096];
            match self.console().read(&mut bytes) {
                // Reset: the next boot has another console at the same place.
                Ok(0) => self.console = None,
                Ok(count) => self.said += &String::from_utf8_lossy(&bytes[..count]),
                Err(_) => {}
            }
        }
    }

    pub fn type_in(&mut self, line: &str) {
        // At once: its first byte may end the guest.
        let line = format!("{line}\n");
        self.console().write_all(line.as_bytes()).unwrap();
    }

    pub fn control(&self) -> Client {
        Client::connect(&self.path("control"), Some(PATIENCE)).unwrap()
    }

    /// The machine's own process, which the supervisor started.
    pub fn machine_pid(&self) -> i32 {
        let pid = self.vmm.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    /// Waits for the end of the process; what it recorded, and its status.
    pub fn ends(mut self) -> (ExitRecord, i32) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.vmm.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it runs on:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        };
        let json = fs::read(self.path("exit.json")).unwrap();
        let record = serde_json::from_slice(&json).unwrap();
        (record, status.code().unwrap())
    }

    pub fn log(&self) -> String {
        let bytes = fs::read(self.path("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}
