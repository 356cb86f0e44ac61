//! Virtual machines through the same verbs as containers, on whatever executes them here.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use testkit::Daemon;

use crate::common::{self, until_so};

/// What making a kernel and running a machine takes.
pub const TOOLS: [&str; 7] = [
    "ip",
    "nft",
    "nsenter",
    "busybox",
    "mkfs.ext4",
    "apt-get",
    "dpkg-deb",
];

/// A daemon, not started yet, with busybox, its disk and a kernel; `None`, said loudly, where that
/// cannot be made.
fn idle(test: &str) -> Option<Daemon> {
    if testkit::lacks(test, &TOOLS) {
        return None;
    }
    let made = testkit::images_of(
        Path::new(common::BERTH),
        &common::cache(),
        "machine",
        &[&agent()],
        |daemon| {
            daemon.berth(&["image", "build", "--recipe", "busybox", "--vm"])?;
            // Both are there before the first machine asks for them.
            for made in ["kernels", "disks"] {
                let directory = daemon.root().join("images").join(made).join("sha256");
                assert_eq!(directory.read_dir()?.count(), 1, "{made}");
            }
            Ok(())
        },
    );
    let images = match made {
        Ok(images) => images,
        Err(error) => {
            testkit::skip(test, &format!("no kernel can be had here: {error:#}"));
            return None;
        }
    };
    let daemon = common::bare(test, &[])?;
    daemon.lend_images(&images).unwrap();
    Some(daemon)
}

/// The agent that goes into kernels: where the daemon looks for it.
pub fn agent() -> PathBuf {
    let beside = || Path::new(common::BERTH).with_file_name("berth-agent");
    std::env::var_os("BERTH_AGENT").map_or_else(beside, PathBuf::from)
}

/// A daemon with what a machine needs; `None`, said loudly, where that cannot be made.
pub fn daemon(test: &str) -> Option<Daemon> {
    let mut daemon = idle(test)?;
    daemon.restart().unwrap();
    Some(daemon)
}

#[test]
fn a_program_in_a_machine_is_a_program() {
    let Some(daemon) = daemon("a_program_in_a_machine_is_a_program") else {
        return;
    };
    let run = [
        "run",
        "--rm",
        "--vm",
        "--memory",
        "128M",
        "--network",
        "none",
    ];
    let script = "echo out; echo err >&2; pwd; id -u; echo $MARK; exit 7";
    let said = daemon
        .run(
            &[
                &run[..],
                &[
                    "-e",
                    "MARK=here",
                    "-w",
                    "/etc",
                    "busybox",
                    "sh",
                    "-c",
                    script,
                ],
            ]
            .concat(),
        )
        .unwrap();
    assert_eq!(said.code, 7, "{said:?}");
    assert_eq!(said.out, "out\n/etc\n0\nhere\n");
    assert!(said.err.contains("err"), "{said:?}");
    let said = daemon
        .run(&[&run[..], &["busybox", "/no/such/program"]].concat())
        .unwrap();
    assert_eq!(said.code, 127, "{said:?}");
}

#[test]
fn a_machine_is_used_as_a_container_is() {
    let Some(mut daemon) = daemon("a_machine_is_used_as_a_container_is") else {
        return;
    };
    daemon
        .berth(&[
            "run",
            "-d",
            "--vm",
            "--memory",
            "160M",
            "--cpus",
            "2",
            "--name",
            "box",
            "busybox",
            "sh",
            "-c",
            "echo begun; trap 'exit 3' TERM; while :; do sleep 0.1; done",
        ])
        .unwrap();
    assert_eq!(common::status(&daemon, "box"), "running");
    let exec =
        |daemon: &Daemon, args: &[&str]| daemon.run(&[&["exec", "box"], args].concat()).unwrap();
    assert_eq!(exec(&daemon, &["nproc"]).out, "2\n");
    assert_eq!(exec(&daemon, &["sh", "-c", "exit 5"]).code, 5);
    assert_eq!(exec(&daemon, &["hostname"]).out, "box\n");
    until_so("its log has what it said", || {
        daemon.berth(&["logs", "box"]).unwrap() == "begun"
    });
    assert!(daemon.berth(&["top", "box"]).unwrap().contains("sleep"));
    assert!(daemon.berth(&["list"]).unwrap().contains("box"));
    what_executes_it_is_counted(&daemon);
    its_disk_is_read_by_io_uring_where_the_host_has_it(&daemon);

    // Files, both ways.
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("note");
    std::fs::write(&file, "ahoy").unwrap();
    let path = file.to_str().unwrap();
    daemon.berth(&["cp", path, "box:/root/note"]).unwrap();
    assert_eq!(exec(&daemon, &["cat", "/root/note"]).out, "ahoy");
    let back = place.path().join("back");
    daemon
        .berth(&["cp", "box:/root/note", back.to_str().unwrap()])
        .unwrap();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "ahoy");

    // It stands still, and goes on, with the time that it is.
    daemon.berth(&["pause", "box"]).unwrap();
    assert_eq!(common::status(&daemon, "box"), "paused");
    let said = daemon.run(&["show", "box", "--cpu-stats"]).unwrap();
    assert!(said.code == 4 && said.err.contains("paused"), "{said:?}");
    std::thread::sleep(std::time::Duration::from_secs(4));
    let before = seconds_now();
    daemon.berth(&["resume", "box"]).unwrap();
    let told: u64 = exec(&daemon, &["date", "+%s"]).out.trim().parse().unwrap();
    // One for what is cut off of a second.
    assert!((before - 1..=seconds_now() + 1).contains(&told), "{told}");

    // The daemon dies; the machine does not notice.
    let before = exec(&daemon, &["cat", "/proc/sys/kernel/random/boot_id"]).out;
    daemon.kill();
    daemon.restart().unwrap();
    let after = exec(&daemon, &["cat", "/proc/sys/kernel/random/boot_id"]).out;
    assert_eq!(before, after);

    // Its program is asked to end, and says how; what it wrote is there at the next start.
    daemon.berth(&["stop", "box"]).unwrap();
    let shown = daemon.inspect("box").unwrap();
    assert_eq!(shown["exit"]["code"], 3, "{shown:#}");
    daemon.berth(&["start", "box"]).unwrap();
    assert_eq!(exec(&daemon, &["cat", "/root/note"]).out, "ahoy");
    daemon.berth(&["rm", "-f", "box"]).unwrap();
}

#[test]
fn a_machine_is_reached_by_name_and_by_published_port() {
    let Some(daemon) = daemon("a_machine_is_reached_by_name_and_by_published_port") else {
        return;
    };
    let serve = "mkdir /srv; echo hello from a machine > /srv/index.html; httpd -f -p 80 -h /srv";
    daemon
        .berth(&[
            "run",
            "-d",
            "--vm",
            "--memory",
            "128M",
            "--name",
            "web",
            "--publish",
            "8080:80",
            "busybox",
            "sh",
            "-c",
            serve,
        ])
        .unwrap();
    until_so("a container reaches it by name", || {
        let fetch = ["run", "--rm", "busybox", "wget", "-qO-", "http://web/"];
        daemon.run(&fetch).unwrap().out == "hello from a machine\n"
    });
    until_so("the host reaches it by its port", || {
        let url = "http://127.0.0.1:8080/";
        let answer = daemon
            .netns()
            .command("curl")
            .args(["-fsS", "--max-time", "5", url])
            .output();
        answer.unwrap().stdout == b"hello from a machine\n"
    });
    // And it reaches others: the gateway answers for names.
    let found = daemon
        .run(&["exec", "web", "nslookup", "web.berth.internal"])
        .unwrap();
    assert_eq!(found.code, 0, "{found:?}");
    daemon.berth(&["rm", "-f", "web"]).unwrap();
}

#[test]
fn the_tiny_image_is_a_system_too() {
    let Some(daemon) = daemon("the_tiny_image_is_a_system_too") else {
        return;
    };
    let launch = ["launch", "--vm", "--memory", "128M", "--name", "tiny"];
    let rest = ["--root-size", "2G", "busybox"];
    daemon.berth(&[&launch[..], &rest].concat()).unwrap();
    let inside = |script: &str| daemon.run(&["exec", "tiny", "sh", "-c", script]).unwrap();
    assert_eq!(inside("cat /proc/1/comm").out, "init\n");
    // All modules of its kernel are there, as for container engines and firewalls.
    let said = inside("modprobe overlay && grep overlay /proc/filesystems");
    assert_eq!(said.code, 0, "{said:?}");
    // Its file system grows to the size it was given.
    until_so("the file system has grown", || {
        let said = inside("df -m / | tail -1 | awk '{print $2}'").out;
        said.trim().parse::<u64>().is_ok_and(|size| size > 1800)
    });
    daemon.berth(&["stop", "tiny"]).unwrap();
    assert_eq!(daemon.inspect("tiny").unwrap()["exit"]["code"], 0);
    daemon.berth(&["rm", "tiny"]).unwrap();
}

#[test]
fn what_a_machine_cannot_have_is_refused_by_name() {
    let Some(daemon) = daemon("what_a_machine_cannot_have_is_refused_by_name") else {
        return;
    };
    for (flags, field) in [
        (&["--network", "host"][..], "network"),
        (&["--device", "/dev/null"][..], "devices"),
        (&["--memory", "8M"][..], "memory"),
        (&["--no-userns"][..], "user_namespace"),
    ] {
        let said = daemon
            .run(&[&["run", "-d", "--vm"], flags, &["busybox", "true"]].concat())
            .unwrap();
        assert_ne!(said.code, 0, "{flags:?}");
        assert!(said.err.contains(field), "{flags:?}: {}", said.err);
    }
    assert_eq!(daemon.berth(&["list", "-o", "name"]).unwrap(), "");
}

#[test]
fn folders_and_volumes_are_mounted_in_machines_as_in_containers() {
    let Some(daemon) = daemon("folders_and_volumes_are_mounted_in_machines") else {
        return;
    };
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    let [shared, kept] = ["shared", "kept"].map(|name| {
        let path = host.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("page"), "from the host").unwrap();
        path
    });
    std::fs::write(host.path().join("secret"), "").unwrap();
    let everyone = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(&shared, everyone).unwrap();
    std::fs::write(host.path().join("one.conf"), "one").unwrap();
    let binds = [
        format!("{}:/host", shared.display()),
        format!("{}:/kept:ro", kept.display()),
        format!("{}/one.conf:/etc/one/conf", host.path().display()),
    ];
    let mut start = vec!["run", "-d", "--vm", "--memory", "128M", "--network", "none"];
    start.extend([
        "--name",
        "box",
        "-v",
        &binds[0],
        "-v",
        &binds[1],
        "-v",
        "data:/data",
        "-v",
        &binds[2],
    ]);
    start.extend(["busybox", "sleep", "1000"]);
    daemon.berth(&start).unwrap();
    let said = |flags: &[&str], script: &str| {
        let words = [&["exec"], flags, &["box", "sh", "-c", script]].concat();
        daemon.run(&words).unwrap()
    };

    // Both sides see what the other did, and whose it is.
    let read = said(&[], "cat /host/page /kept/page");
    assert_eq!(read.out, "from the hostfrom the host", "{read:?}");
    let theirs = "umask 022; mkdir /host/d && echo theirs > /host/d/f && ln -s ../secret /host/l";
    assert_eq!(said(&["--user", "1000:1001"], theirs).code, 0);
    let made = std::fs::metadata(shared.join("d/f")).unwrap();
    assert_eq!(
        (made.uid(), made.gid(), made.mode() & 0o777),
        (1000, 1001, 0o644)
    );
    let work = "set -e; cd /host; chown 7:8 d/f; chmod 4750 d/f; cp -a d e; mv e/f e/g; ln e/g e/h
        for i in $(seq 200); do echo $i > e/$i; done; ls e | wc -l; rm -r d
        dd if=/dev/urandom of=big bs=1M count=3 conv=fsync 2>/dev/null; sha256sum < big";
    let worked = said(&[], work);
    assert_eq!(worked.code, 0, "{worked:?}");
    let copied = std::fs::metadata(shared.join("e/h")).unwrap();
    assert_eq!((copied.uid(), copied.gid(), copied.nlink()), (7, 8, 2));
    assert_eq!(copied.mode() & 0o7777, 0o4750);
    assert!(!shared.join("d").exists());
    let big = std::fs::File::open(shared.join("big")).unwrap();
    let sum = std::process::Command::new("sha256sum").stdin(big).output();
    let sum = String::from_utf8(sum.unwrap().stdout).unwrap();
    assert_eq!(worked.out, format!("202\n{sum}"));

    // One file alone.
    let wrote = said(
        &[],
        "cat /etc/one/conf; echo two > /etc/one/conf; ls /etc/one",
    );
    assert_eq!(wrote.out, "oneconf\n", "{wrote:?}");
    let conf = std::fs::read_to_string(host.path().join("one.conf"));
    assert_eq!(conf.unwrap(), "two\n");

    // A link of the guest's leads where it leads in the guest, and what is read-only stays.
    assert_ne!(said(&[], "cat /host/l").code, 0);
    let refused = said(&[], "touch /kept/new");
    assert!(
        refused.code != 0 && refused.err.contains("Read-only"),
        "{refused:?}"
    );
    let refused = said(&[], "mount -o remount,rw /kept; touch /kept/new");
    assert!(
        refused.code != 0 && refused.err.contains("Read-only"),
        "{refused:?}"
    );

    // A volume outlives a boot, and is the same in a container.
    assert_eq!(
        said(&["--user", "5:5"], "touch /data/x").code,
        1,
        "it is root's"
    );
    assert_eq!(
        said(&[], "echo mine > /data/mine; chown 5:6 /data/mine").code,
        0
    );
    daemon.berth(&["stop", "box"]).unwrap();
    daemon.berth(&["start", "box"]).unwrap();
    assert_eq!(said(&[], "cat /data/mine").out, "mine\n");
    let used = daemon.run(&["volume", "rm", "data"]).unwrap();
    assert_eq!(used.code, 4, "{used:?}");
    daemon.berth(&["rm", "-f", "box"]).unwrap();
    let look = [
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "data:/data",
        "busybox",
    ];
    let looked = daemon
        .run(&[&look[..], &["stat", "-c", "%u:%g", "/data/mine"]].concat())
        .unwrap();
    assert_eq!(looked.out, "5:6\n", "{looked:?}");

    let socket = host.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let file = format!("{}:/x", socket.display());
    let refused = daemon
        .run(&["run", "--rm", "--vm", "-v", &file, "busybox", "true"])
        .unwrap();
    assert!(
        refused.code != 0 && refused.err.contains("neither a folder nor a file"),
        "{refused:?}"
    );
}

#[test]
fn whatever_ends_a_machine_is_told() {
    let Some(daemon) = daemon("whatever_ends_a_machine_is_told") else {
        return;
    };
    let run = |name: &str| {
        daemon
            .berth(&[
                "run",
                "-d",
                "--vm",
                "--memory",
                "128M",
                "--network",
                "none",
                "--name",
                name,
                "busybox",
                "sleep",
                "1000",
            ])
            .unwrap();
        daemon.berth(&["exec", name, "true"]).unwrap();
    };
    // The guest's kernel panics.
    run("panics");
    let crash = "echo c > /proc/sysrq-trigger";
    daemon.run(&["exec", "panics", "sh", "-c", crash]).unwrap();
    until_so("the panic ends it", || {
        common::status(&daemon, "panics") == "stopped"
    });
    assert_eq!(daemon.inspect("panics").unwrap()["exit"]["code"], 125);
    let said = daemon.berth(&["logs", "panics"]).unwrap();
    assert!(said.contains("reset itself"), "{said}");

    // Its process is killed: the deepest of the three, which holds the guest.
    run("killed");
    let front = daemon.inspect("killed").unwrap()["pid"].as_u64().unwrap();
    let machine = child_of(child_of(front));
    let kill = |signal: &str, process: u64| {
        let mut kill = std::process::Command::new("kill");
        let killed = kill.args([signal, &process.to_string()]).status();
        assert!(killed.unwrap().success());
    };
    kill("-9", machine);
    until_so("the kill ends it", || {
        common::status(&daemon, "killed") == "stopped"
    });
    let said = daemon.berth(&["logs", "killed"]).unwrap();
    assert!(said.contains("signal 9"), "{said}");

    // Others are not touched, and it can start again.
    daemon.berth(&["start", "killed"]).unwrap();
    assert_eq!(daemon.run(&["exec", "killed", "true"]).unwrap().code, 0);

    // What watches over it is asked to end: no clean end, for the guest was not asked.
    let front = daemon.inspect("killed").unwrap()["pid"].as_u64().unwrap();
    kill("-15", child_of(front));
    until_so("the signal ends it", || {
        common::status(&daemon, "killed") == "stopped"
    });
    assert_eq!(daemon.inspect("killed").unwrap()["exit"]["code"], 143);
    let said = daemon.berth(&["logs", "killed"]).unwrap();
    assert!(said.contains("signal 15"), "{said}");
    daemon.berth(&["start", "killed"]).unwrap();
    assert_eq!(daemon.run(&["exec", "killed", "true"]).unwrap().code, 0);
    daemon.berth(&["rm", "-f", "killed", "panics"]).unwrap();
}

#[test]
fn a_machine_is_executed_by_kvm_through_its_jail_where_that_is_asked_for() {
    let name = "a_machine_is_executed_by_kvm_through_its_jail_where_that_is_asked_for";
    if let Err(error) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        return testkit::skip(name, &format!("/dev/kvm cannot be opened: {error}"));
    }
    let Some(daemon) = daemon(name) else {
        return;
    };
    // A kernel that any /dev/kvm can run, also one that interprets it: it says what it is and powers off.
    let kernel = daemon.root().join("bare");
    std::fs::write(&kernel, bare_kernel("said by KVM\n")).unwrap();
    daemon
        .berth(&[
            "launch",
            "--vm",
            "--accel",
            "kvm",
            "--kernel",
            kernel.to_str().unwrap(),
            "--memory",
            "96M",
            "--network",
            "none",
            "--restart",
            "no",
            "--timeout",
            "0",
            "--name",
            "bare",
            "busybox",
        ])
        .unwrap();
    until_so("it powers itself off", || {
        common::status(&daemon, "bare") == "stopped"
    });
    let shown = daemon.inspect("bare").unwrap();
    assert_eq!(shown["exit"]["code"], 0, "{shown:#}");
    let said = daemon.berth(&["logs", "bare"]).unwrap();
    assert!(said.contains("said by KVM"), "{said}");
    daemon.berth(&["rm", "bare"]).unwrap();
}

/// An ELF file with a PVH entry that sends `text` to the serial port and enters S5.
fn bare_kernel(text: &str) -> Vec<u8> {
    const ADDRESS: u32 = 0x10_0000;
    let (headers, note) = (64 + 2 * 56_u64, 20_u64);
    // mov esi, text; mov ecx, length; mov edx, 0x3f8; rep outsb
    let mut code = vec![
        0xbe, 0, 0, 0, 0, 0xb9, 0, 0, 0, 0, 0xba, 0xf8, 0x03, 0, 0, 0xf3, 0x6e,
    ];
    // mov edx, 0x600 (the sleep control register); mov al, S5 and enter it; out dx, al; jmp to itself
    code.extend([0xba, 0, 0x06, 0, 0, 0xb0, 0x34, 0xee, 0xeb, 0xfe]);
    let length = u32::try_from(text.len()).unwrap();
    let at = ADDRESS + u32::try_from(code.len()).unwrap();
    code[1..5].copy_from_slice(&at.to_le_bytes());
    code[6..10].copy_from_slice(&length.to_le_bytes());
    code.extend(text.bytes());
    let loaded = code.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    let longs = |file: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|it| file.extend(it.to_le_bytes()));
    };
    // Entry, program headers, section headers; flags; sizes and counts.
    longs(&mut file, &[ADDRESS.into(), 64, 0]);
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let address = u64::from(ADDRESS);
    longs(
        &mut file,
        &[
            1 | 7 << 32,
            headers + note,
            address,
            address,
            loaded,
            loaded,
            4,
        ],
    );
    longs(&mut file, &[4 | 4 << 32, headers, 0, 0, note, note, 4]);
    // XEN_ELFNOTE_PHYS32_ENTRY: where it is entered, in 32-bit protected mode.
    for word in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), ADDRESS] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[test]
fn linux_is_executed_by_kvm_by_itself_wherever_the_probe_passes() {
    let name = "linux_is_executed_by_kvm_by_itself_wherever_the_probe_passes";
    let vmm = std::path::Path::new(common::BERTH).with_file_name("berth-vmm");
    let probe = std::process::Command::new(vmm).arg("probe").output();
    let probe = probe.map_or_else(|_| Vec::new(), |it| it.stdout);
    let probe: serde_json::Value = serde_json::from_slice(&probe).unwrap_or_default();
    if probe["kvm"]["usable"] != true {
        return testkit::skip(name, &format!("the probe says {}", probe["kvm"]));
    }
    let Some(daemon) = daemon(name) else {
        return;
    };
    let run = [
        "run",
        "--rm",
        "--vm",
        "--cpus",
        "2",
        "--network",
        "none",
        "busybox",
    ];
    let said = daemon.run(&[&run[..], &["nproc"]].concat()).unwrap();
    assert_eq!((said.code, said.out.as_str()), (0, "2\n"), "{said:?}");
    let said = daemon.berth(&["doctor"]).unwrap();
    assert!(said.contains("by the processor (KVM)"), "{said}");
}

/// Boots of the small image one after another, each with another number of vCPUs, as many as BERTH_BOOTS
/// says: `BERTH_BOOTS=100 cargo test -p berth --test e2e boots -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes; run it by name, with BERTH_BOOTS for how often"]
fn boots_in_a_row_all_come_up_and_go_down() {
    let Some(daemon) = daemon("boots_in_a_row_all_come_up_and_go_down") else {
        return;
    };
    let boots = std::env::var("BERTH_BOOTS").map_or(10, |it| it.parse().unwrap());
    eprintln!("{}", daemon.berth(&["doctor"]).unwrap());
    for boot in 0..boots {
        let cpus = ["1", "2", "4"][boot % 3];
        let run = [
            "run",
            "--rm",
            "--vm",
            "--memory",
            "128M",
            "--network",
            "none",
        ];
        let run = [&run[..], &["--cpus", cpus, "busybox", "nproc"]].concat();
        let begun = std::time::Instant::now();
        let said = daemon.run(&run).unwrap();
        assert_eq!(
            (said.code, said.out.trim()),
            (0, cpus),
            "boot {boot}: {said:?}"
        );
        eprintln!("boot {boot}, {cpus} vCPUs: {:.1?}", begun.elapsed());
    }
}

/// Of the machine `box` with two vCPUs that runs.
fn what_executes_it_is_counted(daemon: &Daemon) {
    let said = daemon
        .run(&["show", "box", "--cpu-stats", "-o", "json"])
        .unwrap();
    if said.code != 0 {
        // Where the processor executes it.
        assert!(said.err.contains("KVM"), "{said:?}");
        return;
    }
    let counts = |said: &str| -> std::collections::BTreeMap<String, Vec<u64>> {
        let told: serde_json::Value = serde_json::from_str(said).unwrap();
        let counters = told["counters"].as_array().unwrap().iter();
        let counter = |it: &serde_json::Value| {
            let vcpus = it["vcpus"].as_array().unwrap().iter();
            let name = it["name"].as_str().unwrap().to_owned();
            (name, vcpus.map(|it| it.as_u64().unwrap()).collect())
        };
        counters.map(counter).collect()
    };
    let before = counts(&said.out);
    assert_eq!(before["translations"].len(), 2);
    for name in ["translations", "entries", "links", "tlb_fills", "handlers"] {
        assert!(before[name].iter().all(|it| *it > 0), "{name}: {before:?}");
    }
    // It goes on counting, and the table says the same.
    daemon
        .berth(&["exec", "box", "sh", "-c", "for i in $(seq 100); do :; done"])
        .unwrap();
    let after = counts(
        &daemon
            .berth(&["show", "box", "--cpu-stats", "-o", "json"])
            .unwrap(),
    );
    for (name, counts) in &before {
        let grown = counts
            .iter()
            .zip(&after[name])
            .all(|(before, after)| before <= after);
        assert!(grown, "{name}: {counts:?}, then {:?}", after[name]);
    }
    assert_ne!(before["entries"], after["entries"]);
    let table = daemon.berth(&["show", "box", "--cpu-stats"]).unwrap();
    assert!(
        table.contains("translations") && table.contains("NOT TRANSLATED"),
        "{table}"
    );
}

/// Of the machine `box` that runs: its jail does not keep it from what doctor says there is.
fn its_disk_is_read_by_io_uring_where_the_host_has_it(daemon: &Daemon) {
    if !daemon.berth(&["doctor"]).unwrap().contains("by io_uring") {
        return testkit::skip("its_disk_is_read_by_io_uring", "the host has none for it");
    }
    let front = daemon.inspect("box").unwrap()["pid"].as_u64().unwrap();
    let process = format!("/proc/{}", child_of(child_of(front)));
    let open = std::fs::read_dir(format!("{process}/fd")).unwrap();
    let rings = open.filter_map(|file| {
        let file = file.unwrap();
        let target = std::fs::read_link(file.path()).unwrap_or_default();
        let is_ring = target.to_string_lossy().ends_with("[io_uring]");
        let name = file.file_name().into_string().unwrap();
        is_ring.then(|| std::fs::read_to_string(format!("{process}/fdinfo/{name}")).unwrap())
    });
    let rings: Vec<String> = rings.collect();
    assert_eq!(rings.len(), 2, "one for each vCPU's queue: {rings:?}");
    // Its file system was read to boot.
    let taken = |ring: &String| {
        let line = ring.lines().find_map(|line| line.strip_prefix("SqHead:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    assert!(rings.iter().map(taken).sum::<u64>() > 0, "{rings:?}");
}

fn seconds_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// The only child of a process.
pub fn child_of(pid: u64) -> u64 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(path).unwrap();
    let child = children.split_whitespace().next().unwrap();
    child.parse().unwrap()
}
