//! Disks with a kernel of their own: imported, launched, grown; by a guest that knows nothing of us.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use testkit::Daemon;

use crate::{common::until_so, machine};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxFZ8PZ5s3FmXcZ1gU3u3mQw0a9b2r6k1q4t7y8u9i0 me@here";

/// What a distribution's initial file system does: drivers, the root, its init.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /new
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
root=$(/bin/busybox sed 's/.*root=//; s/ .*//' /proc/cmdline)
until /bin/busybox mount -t ext4 -o ro $root /new; do /bin/busybox sleep 0.1; done
for place in proc sys dev; do /bin/busybox mount --move /$place /new/$place; done
exec /bin/busybox switch_root /new /sbin/init
";
const INITTAB: &str = "::sysinit:/bin/busybox mount -o remount,rw /
::askfirst:-/bin/sh
::shutdown:/bin/umount -a -r
";

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?} failed");
    output.stdout
}

/// Packs a directory as an initial file system.
fn pack(directory: &Path, archive: &Path) {
    let script = "find . | cpio --quiet -o -H newc | gzip -1";
    let packed = run(Command::new("sh")
        .args(["-c", script])
        .current_dir(directory));
    fs::write(archive, packed).unwrap();
}

fn busybox(tree: &Path) {
    for path in [
        "bin", "sbin", "etc", "proc", "sys", "dev", "run", "root", "tmp",
    ] {
        fs::create_dir_all(tree.join(path)).unwrap();
    }
    let found = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find(|it| Path::new(it).exists());
    fs::copy(found.unwrap(), tree.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "df", "hostname", "ip", "umount", "mount", "reboot",
    ] {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    symlink("../bin/busybox", tree.join("sbin/init")).unwrap();
}

/// A disk as qcow2: a partition before its root, an extlinux.conf, and the kernel that `daemon` has from
/// Debian's package, with the drivers of that package.
fn disk(daemon: &Daemon, place: &Path) -> PathBuf {
    let kernels = daemon.root().join("images/kernels/sha256");
    let kernel = fs::read_dir(kernels)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let ours = place.join("ours");
    fs::create_dir(&ours).unwrap();
    let archive = File::open(kernel.join("initramfs.cpio")).unwrap();
    run(Command::new("cpio")
        .args(["-i", "-d", "--quiet"])
        .current_dir(&ours)
        .stdin(archive));

    let initial = place.join("initial");
    busybox(&initial);
    fs::write(initial.join("init"), INIT).unwrap();
    run(Command::new("chmod").arg("755").arg(initial.join("init")));
    fs::rename(ours.join("berth/modules"), initial.join("modules")).unwrap();

    let tree = place.join("tree");
    busybox(&tree);
    fs::create_dir_all(tree.join("boot/extlinux")).unwrap();
    fs::write(tree.join("etc/inittab"), INITTAB).unwrap();
    fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::copy(kernel.join("vmlinuz"), tree.join("boot/vmlinuz")).unwrap();
    pack(&initial, &tree.join("boot/initrd"));
    let conf = "LABEL one\n LINUX /boot/vmlinuz\n INITRD /boot/initrd\n APPEND root=/dev/vda2 console=tty0\n";
    fs::write(tree.join("boot/extlinux/extlinux.conf"), conf).unwrap();

    let raw = place.join("disk.img");
    File::create(&raw).unwrap().set_len(128 << 20).unwrap();
    let script = "printf 'label: gpt\\nstart=2048, size=2048\\nstart=8192\\n' | sfdisk -q disk.img && \
                  mkfs.ext4 -q -F -E offset=4194304 -d tree disk.img 122880k && \
                  qemu-img convert -c -O qcow2 disk.img disk.qcow2";
    run(Command::new("sh").args(["-c", script]).current_dir(place));
    place.join("disk.qcow2")
}

#[test]
fn a_disk_boots_its_own_kernel_and_has_an_agent_beside() {
    let test = "a_disk_boots_its_own_kernel_and_has_an_agent_beside";
    if testkit::lacks(test, &["cpio", "sfdisk", "qemu-img", "mkfs.ext4"]) {
        return;
    }
    let Some(daemon) = machine::daemon(test) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let disk = disk(&daemon, place.path());
    let disk = disk.to_str().unwrap();
    // A disk says no name, and is no container.
    let said = daemon.run(&["image", "import", disk]).unwrap();
    assert!(said.code != 0 && said.err.contains("name"), "{said:?}");
    daemon.berth(&["image", "import", disk, "small"]).unwrap();
    for words in [
        &["run", "--rm", "small", "sh"][..],
        &["run", "--rm", "--vm", "small", "sh"],
    ] {
        let said = daemon.run(words).unwrap();
        assert!(
            said.code != 0 && said.err.contains("berth launch --vm small"),
            "{said:?}"
        );
    }
    let too_small = ["launch", "--vm", "--root-size", "64M", "small"];
    let said = daemon.run(&too_small).unwrap();
    assert!(said.code != 0 && said.err.contains("too small"), "{said:?}");

    let key = place.path().join("key.pub");
    fs::write(&key, KEY).unwrap();
    let launch = [
        "launch",
        "--vm",
        "--memory",
        "256M",
        "--name",
        "box",
        "--root-size",
        "1G",
    ];
    let keys = ["--ssh-key", key.to_str().unwrap(), "small"];
    daemon.berth(&[&launch[..], &keys].concat()).unwrap();
    let inside = |script: &str| daemon.run(&["exec", "box", "sh", "-c", script]).unwrap();

    // Its own kernel with its own words, and its own init.
    let line = inside("cat /proc/cmdline").out;
    assert!(
        line.contains("root=/dev/vda2") && !line.contains("tty0"),
        "{line}"
    );
    assert_eq!(inside("cat /proc/1/comm").out, "init\n");
    // Without a cloud-init, the agent says who it is, and lets the keys in.
    until_so("it knows its name", || {
        inside("hostname; cat /etc/hostname").out == "box\nbox\n"
    });
    let address = daemon.inspect("box").unwrap()["addresses"][0].clone();
    until_so("it has its address", || {
        inside("ip addr").out.contains(address.as_str().unwrap())
    });
    until_so("the keys are let in", || {
        inside("cat /root/.ssh/authorized_keys").out == format!("{KEY}\n")
    });
    // Partition and file system are as large as the disk.
    until_so("the file system has grown", || {
        let said = inside("df -m /").out;
        let size = said
            .lines()
            .last()
            .and_then(|line| line.split_whitespace().nth(1));
        size.and_then(|size| size.parse::<u64>().ok())
            .is_some_and(|size| size > 900)
    });

    // What it writes stays on its own disk, however often it boots.
    assert_eq!(inside("echo kept > /root/note").code, 0);
    daemon.berth(&["restart", "box"]).unwrap();
    assert_eq!(inside("cat /root/note").out, "kept\n");
    daemon.berth(&["rm", "-f", "box"]).unwrap();
    daemon.berth(&["image", "rm", "small"]).unwrap();
}
