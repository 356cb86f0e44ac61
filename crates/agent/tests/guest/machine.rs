//! A guest of these tests: what it boots, QEMU running it, the way to its agent.

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agent::{CONSOLE_PORT_NAME, client::Client, config::Config};
use image::{
    DebianRecipe, Job, Recipe, Store,
    vm::{Kernel, KernelRecipe, RootDisk, config_archive, copy_disk},
};
use rustix::fs::{FlockOperation, flock};

const QEMU: &str = "qemu-system-x86_64";
/// Emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Kernel and disk, shared by the tests of a run and by later runs.
pub struct Media {
    pub disk: RootDisk,
    pub kernel: Kernel,
}

impl Media {
    /// Makes or finds them; `None`, said aloud, where this machine cannot.
    pub fn new(test: &str) -> Option<Self> {
        Self::of(test, &Recipe::Busybox)
    }

    /// The same of Debian with systemd.
    pub fn debian(test: &str) -> Option<Self> {
        let recipe = DebianRecipe {
            suite: "bookworm".into(),
            packages: Vec::new(),
            systemd: true,
            machine: false,
            mirror: None,
        };
        Self::of(test, &Recipe::Debian(recipe))
    }

    fn of(test: &str, recipe: &Recipe) -> Option<Self> {
        match Self::make(recipe) {
            Ok(media) => Some(media),
            Err(reason) => {
                let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
                None
            }
        }
    }

    fn make(recipe: &Recipe) -> Result<Self, String> {
        let agent = std::env::var_os("BERTH_AGENT");
        let agent =
            agent.ok_or("BERTH_AGENT does not name the static agent: scripts/build-runtime")?;
        Command::new(QEMU)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .map_err(|error| format!("{QEMU}: {error}"))?;
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm-store");
        fs::create_dir_all(&root).unwrap();
        // One process makes them, the others find them.
        let lock = fs::File::create(root.join("test.lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let store = Store::open(root.join("store")).unwrap();
        let kernel = store
            .build_kernel(
                &KernelRecipe::default(),
                agent.as_ref(),
                false,
                &Job::silent(),
            )
            .map_err(|error| error.to_string())?;
        let name = recipe.default_name().unwrap();
        let built = store
            .build_recipe(recipe, &name, false, &Job::silent())
            .map_err(|error| error.to_string())?;
        let disk = store
            .root_disk(&built.image, &Job::silent())
            .map_err(|error| error.to_string())?;
        Ok(Self { disk, kernel })
    }
}

/// QEMU's arguments for the disk with all modules.
fn modules_disk(media: &Media) -> Vec<String> {
    let Some(path) = &media.kernel.modules else {
        return Vec::new();
    };
    let drive = format!(
        "file={},if=none,id=modules,format=raw,read-only=on",
        path.display()
    );
    let device = "virtio-blk-pci,drive=modules,serial=modules".to_owned();
    vec!["-drive".into(), drive, "-device".into(), device]
}

/// A guest. Dropping it ends it.
pub struct Machine {
    child: Child,
    dir: tempfile::TempDir,
}

impl Machine {
    pub fn start(media: &Media, config: &Config, disk_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { dir.path().join(name) };
        copy_disk(&media.disk, &path("disk"), disk_bytes).unwrap();
        let mut initrd = fs::read(&media.kernel.initramfs).unwrap();
        initrd.extend(config_archive(&config.to_json()));
        fs::write(path("initrd"), initrd).unwrap();
        let shown = |name: &str| path(name).display().to_string();
        let child = Command::new(QEMU)
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "256"])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", shown("log"))])
            .args(["-kernel", &media.kernel.vmlinuz.display().to_string()])
            .args(["-initrd", &shown("initrd")])
            .args([
                "-append",
                "console=ttyS0 quiet loglevel=6 net.ifnames=0 mitigations=off",
            ])
            .args([
                "-drive",
                &format!("file={},if=none,id=root,format=raw", shown("disk")),
            ])
            .args(["-device", "virtio-blk-pci,drive=root,serial=root"])
            .args(modules_disk(media))
            .args(["-device", "virtio-serial-pci"])
            .args([
                "-chardev",
                &format!("socket,id=agent,server=on,wait=off,path={}", shown("agent")),
            ])
            .args([
                "-device",
                &format!("virtserialport,chardev=agent,name={CONSOLE_PORT_NAME}"),
            ])
            .args(["-netdev", "hubport,id=net,hubid=0"])
            .args([
                "-device",
                "virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,romfile=",
            ])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    /// Waits for the agent.
    pub fn client(&self) -> Client<UnixStream> {
        let start = Instant::now();
        loop {
            if let Some(client) = self.try_client() {
                return client;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no agent; the console says:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks once: what is sent before the agent listens waits in the port.
    fn try_client(&self) -> Option<Client<UnixStream>> {
        let stream = UnixStream::connect(self.dir.path().join("agent")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client::new(stream);
        client.info().ok()?;
        Some(client)
    }

    /// Waits until the console has said something.
    pub fn says(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            let log = self.log();
            assert!(start.elapsed() < PATIENCE, "{text:?} is not in:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn log(&self) -> String {
        let bytes = fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for the guest's own end; answers what its console said.
    pub fn powers_off(mut self) -> String {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return self.log();
            }
            assert!(
                start.elapsed() < PATIENCE,
                "it runs on; the console says:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
