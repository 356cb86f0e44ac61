//! Our agent in a guest of ours: Debian's kernel with the recipe's initramfs on the software CPU, a
//! root disk on virtio-block, the agent over vsock out of the jail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agent::{
    AGENT_PORT, NOTICE_PORT,
    client::{Client, Output, connect},
    config::{Config, Root, Source, Start},
    protocol::{Exit, Program, Verb},
};
use image::{
    Job, Recipe, Store,
    vm::{Kernel, KernelRecipe, RootDisk, config_archive, copy_disk},
};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use vmm::{
    ExitRecord, StopReason,
    control::{self, Reply, Request, protocol::Limits},
};

const PATIENCE: Duration = Duration::from_secs(240);

/// Kernel and disk, shared with later runs.
fn media() -> Result<(Kernel, RootDisk), String> {
    let agent = std::env::var_os("BERTH_AGENT");
    let agent = agent.ok_or("BERTH_AGENT does not name the static agent: scripts/build-runtime")?;
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm-store");
    fs::create_dir_all(&root).unwrap();
    let lock = fs::File::create(root.join("test.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let store = Store::open(root.join("store")).unwrap();
    let recipe = KernelRecipe::default();
    let kernel = store.build_kernel(&recipe, agent.as_ref(), false, &Job::silent());
    let kernel = kernel.map_err(|error| error.to_string())?;
    let name = "localhost/busybox:test".parse().unwrap();
    let built = store.build_recipe(&Recipe::Busybox, &name, false, &Job::silent());
    let built = built.map_err(|error| error.to_string())?;
    let disk = store.root_disk(&built.image, &Job::silent());
    Ok((kernel, disk.map_err(|error| error.to_string())?))
}

/// Ends the process when dropped.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(directory: &Path, kernel: &Kernel, disk: &RootDisk) -> Vmm {
    let path = |name: &str| -> PathBuf { directory.join(name) };
    copy_disk(disk, &path("disk"), 1 << 30).unwrap();
    let root = Root {
        source: Source::Disk {
            serial: "root".into(),
            file_system: "ext4".into(),
        },
        changes: None,
        read_only: false,
    };
    let config = Config::new("heron", root, Start::System { init: None });
    fs::write(path("config.cpio"), config_archive(&config.to_json())).unwrap();
    // The one directory that the machine sees, which it must be able to pass.
    fs::create_dir(path("sockets")).unwrap();
    fs::set_permissions(path("sockets"), fs::Permissions::from_mode(0o755)).unwrap();
    let config = json!({
        "version": 1,
        "name": "heron",
        "memory_bytes": 256 << 20,
        "vcpus": 2,
        "accel": "soft",
        "kernel": kernel.vmlinuz,
        "initrd": [kernel.initramfs, path("config.cpio")],
        "command_line": "console=ttyS0 loglevel=6 panic=-1 reboot=k net.ifnames=0 mitigations=off",
        "disks": [{"id": "root", "path": path("disk")}],
        "vsock": {"cid": 3, "socket": path("sockets/vsock")},
        "console": {"log": path("log")},
        "balloon": true,
        "control": path("control"),
        "exit_record": path("exit.json"),
        "jail": {"uid": 61001, "gid": 61001},
    });
    fs::write(path("config.json"), config.to_string()).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_berth-vmm"))
        .arg("--config")
        .arg(path("config.json"))
        .stdin(Stdio::null())
        .spawn();
    Vmm(child.unwrap())
}

fn log(directory: &Path) -> String {
    let bytes = fs::read(directory.join("log")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn run(client: &mut Client<impl Read + Write>, words: &[&str]) -> (String, Exit) {
    let program = Program {
        args: words.iter().map(|&word| word.to_owned()).collect(),
        ..Program::default()
    };
    client.exec(program).unwrap();
    let mut out = Vec::new();
    loop {
        match client.output().unwrap() {
            Output::Stdout(bytes) | Output::Stderr(bytes) => out.extend(bytes),
            Output::Exited(exit) => return (String::from_utf8(out).unwrap(), exit),
        }
    }
}

#[test]
fn the_agent_answers_over_vsock_and_shuts_the_guest_down() {
    let test = "the_agent_answers_over_vsock_and_shuts_the_guest_down";
    let (kernel, disk) = match media() {
        Ok(media) => media,
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
            return;
        }
    };
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut vmm = start(directory, &kernel, &disk);
    let notices = directory.join(format!("sockets/vsock_{NOTICE_PORT}"));
    let notices = {
        let listener = UnixListener::bind(&notices).unwrap();
        fs::set_permissions(&notices, fs::Permissions::from_mode(0o666)).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };

    // The guest calls the host: this goes out of the jail through the one directory.
    let since = Instant::now();
    while notices.accept().is_err() {
        let ended = vmm.0.try_wait().unwrap();
        let log = log(directory);
        assert!(
            ended.is_none() && since.elapsed() < PATIENCE,
            "{ended:?}\n{log}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let socket = directory.join("sockets/vsock");
    // Ready is said by one process of the guest, and the agent may be another one.
    let call = || loop {
        match connect(&socket, AGENT_PORT, Duration::from_secs(60)) {
            Ok(stream) => return Client::new(stream),
            Err(error) => assert!(since.elapsed() < PATIENCE, "{error}\n{}", log(directory)),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let info = call().info().unwrap();
    assert_eq!(info.hostname, "heron");

    let words = ["sh", "-c", "nproc; echo kept >/kept; sync; cat /kept"];
    let (out, exit) = run(&mut call(), &words);
    assert_eq!(out, "2\nkept\n");
    assert_eq!(exit, Exit::Code(0));
    let large = "head -c 3000000 /dev/zero | tr '\\0' x";
    assert_eq!(run(&mut call(), &["sh", "-c", large]).0.len(), 3_000_000);

    lend_memory(directory);
    call()
        .command(Verb::Shutdown {
            reboot: false,
            grace_ms: 1000,
        })
        .unwrap();
    let since = Instant::now();
    while vmm.0.try_wait().unwrap().is_none() {
        assert!(
            since.elapsed() < PATIENCE,
            "it runs on:\n{}",
            log(directory)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let json = fs::read(directory.join("exit.json")).unwrap();
    let record: ExitRecord = serde_json::from_slice(&json).unwrap();
    assert_eq!(record.reason, StopReason::PowerOff);
}

/// The balloon takes memory from the guest, and gives it back to the host.
fn lend_memory(directory: &Path) {
    let mut control = control::Client::connect(&directory.join("control"), Some(PATIENCE)).unwrap();
    let limits = Limits {
        balloon_bytes: Some(32 << 20),
        ..Limits::default()
    };
    control.call(&Request::SetLimits(limits)).unwrap();
    let since = Instant::now();
    loop {
        let Reply::Stats(stats) = control.call(&Request::Stats).unwrap() else {
            panic!("no stats");
        };
        if stats.balloon_bytes == Some(32 << 20) {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "{stats:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
