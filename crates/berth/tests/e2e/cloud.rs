//! A disk of Debian's own making: its kernel, its initial file system, its systemd, and its cloud-init,
//! which finds the seed and does what it says.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Instant,
};

use testkit::Daemon;

use crate::{
    common::{self, BERTH},
    debian::output,
    machine,
};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxFZ8PZ5s3FmXcZ1gU3u3mQw0a9b2r6k1q4t7y8u9i0 me@here";
// The usual locale is of a package that is not on the disk.
const USER_DATA: &str = r#"#cloud-config
locale: false
write_files:
  - path: /root/note
    content: written by cloud-init
runcmd:
  - echo ran >> /root/ran
"#;
const PACKAGES: &str = "systemd-sysv,udev,kmod,dbus,iproute2,linux-image-cloud-amd64,\
     initramfs-tools,cloud-init,sudo";
const EXTLINUX: &str = "LABEL debian
 LINUX /vmlinuz
 INITRD /initrd.img
 APPEND root=/dev/vda1 ro console=tty0
";

/// Makes the disk in `place`: a partition with a root file system that mmdebstrap makes.
fn disk(place: &Path) -> anyhow::Result<()> {
    let tree = place.join("tree");
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--variant=minbase", "--mode=root"]);
    make.args(["--aptopt=APT::Install-Recommends \"false\""]);
    make.arg(format!("--include={PACKAGES}"));
    output(make.args(["bookworm", "tree"]).current_dir(place))?;
    fs::write(tree.join("etc/fstab"), "/dev/vda1 / ext4 defaults 0 1\n")?;
    fs::write(tree.join("etc/machine-id"), "")?;
    fs::create_dir_all(tree.join("boot/extlinux"))?;
    fs::write(tree.join("boot/extlinux/extlinux.conf"), EXTLINUX)?;
    // What renders the network that cloud-init is told of.
    let mut enable = Command::new("systemctl");
    enable.arg("--root").arg(&tree);
    output(enable.args(["enable", "systemd-networkd"]))?;
    File::create(place.join("disk.img"))?.set_len(3 << 30)?;
    let script = "printf 'label: gpt\\nstart=2048\\n' | sfdisk -q disk.img && \
                  mkfs.ext4 -q -F -E offset=1048576 -d tree disk.img 3000M";
    output(Command::new("sh").args(["-c", script]).current_dir(place))?;
    Ok(())
}

/// A daemon with the image `cloud`, made of that disk; `None`, said loudly, where it cannot be made.
fn daemon(test: &str) -> Option<Daemon> {
    let tools = [
        "ip",
        "nft",
        "nsenter",
        "busybox",
        "mmdebstrap",
        "systemctl",
        "sfdisk",
        "mkfs.ext4",
    ];
    if testkit::lacks(test, &tools) {
        return None;
    }
    let make = |daemon: &Daemon| {
        let place = tempfile::tempdir_in("/var/tmp")?;
        disk(place.path())?;
        let disk = place.path().join("disk.img");
        let disk = disk.to_str().unwrap_or_default();
        daemon.berth(&["image", "import", disk, "cloud"])?;
        Ok(())
    };
    let cache = common::cache();
    let made = testkit::images_of(
        Path::new(BERTH),
        &cache,
        "cloud",
        &[&machine::agent()],
        make,
    );
    let images = match made {
        Ok(images) => images,
        Err(error) => {
            testkit::skip(
                test,
                &format!("no disk of Debian can be made here: {error:#}"),
            );
            return None;
        }
    };
    let mut daemon = common::bare(test, &[])?;
    daemon.lend_images(&images).unwrap();
    daemon.restart().unwrap();
    Some(daemon)
}

/// What a script says in the machine, where it must end well.
#[track_caller]
fn inside(daemon: &Daemon, script: &str) -> String {
    let said = daemon.run(&["exec", "box", "sh", "-c", script]).unwrap();
    assert_eq!(said.code, 0, "{script}: {said:?}");
    said.out.trim().to_owned()
}

#[test]
fn debians_own_disk_boots_its_own_kernel() {
    let test = "debians_own_disk_boots_its_own_kernel";
    let Some(daemon) = daemon(test) else {
        return;
    };
    let began = Instant::now();
    let launch = "launch --vm --name box --cpus 2 --memory 1G --restart no --timeout 300 \
                  --append cloud-init=disabled cloud";
    daemon
        .berth(&launch.split_whitespace().collect::<Vec<_>>())
        .unwrap();
    eprintln!("launched in {:.1?}", began.elapsed());
    let line = inside(&daemon, "cat /proc/cmdline");
    assert!(
        line.contains("root=/dev/vda1") && !line.contains("tty0"),
        "{line}"
    );
    // Its kernel has its modules, its init is its own, and its disk is what it boots from.
    inside(&daemon, "modprobe dummy");
    assert_eq!(inside(&daemon, "cat /proc/1/comm"), "systemd");
    assert_eq!(
        inside(&daemon, "findmnt -n -o SOURCE,FSTYPE /"),
        "/dev/vda1 ext4"
    );
    assert_eq!(
        inside(&daemon, "systemctl --failed --no-legend --plain"),
        ""
    );
    daemon.berth(&["rm", "-f", "box"]).unwrap();
}

/// `cargo test -p berth --test e2e cloud_init -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes: cloud-init is Python on the software CPU; run it by name"]
fn debians_own_disk_boots_and_its_cloud_init_does_as_the_seed_says() {
    let test = "debians_own_disk_boots_and_its_cloud_init_does_as_the_seed_says";
    let Some(daemon) = daemon(test) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = place.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (data, key) = (file("user-data", USER_DATA), file("key.pub", KEY));
    let began = Instant::now();
    let launch = "launch --vm --name box --cpus 2 --memory 1G --restart no --timeout 300";
    let launch = launch
        .split(' ')
        .chain(["--cloud-init", &data, "--ssh-key", &key, "cloud"]);
    daemon.berth(&launch.collect::<Vec<_>>()).unwrap();
    eprintln!("{test}: launched in {:.1?}", began.elapsed());

    let status = inside(
        &daemon,
        "cloud-init status --long --wait || cat /var/log/cloud-init.log",
    );
    assert!(status.contains("status: done"), "{status}");
    eprintln!("{test}: cloud-init is done after {:.1?}", began.elapsed());
    // This disk has no SSH server, of which it complains too.
    let complaints = "grep -E 'WARNING|ERROR' /var/log/cloud-init.log | \
                      grep -iE 'nocloud|seed|vendor|user_data|datasource' || true";
    assert_eq!(inside(&daemon, complaints), "");
    // The seed is what it found.
    let told = inside(&daemon, "cloud-init query --all");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let shown = daemon.inspect("box").unwrap();
    assert_eq!(told["v1"]["platform"], "nocloud", "{told:#}");
    assert_eq!(told["v1"]["instance_id"], shown["id"]);
    assert_eq!(told["v1"]["local_hostname"], "box");
    assert_eq!(told["v1"]["public_ssh_keys"][0], KEY);

    // And it did what it was told: name, keys, files, commands, network.
    assert_eq!(inside(&daemon, "hostname"), "box");
    assert_eq!(
        inside(&daemon, "cat /home/debian/.ssh/authorized_keys"),
        KEY
    );
    assert_eq!(
        inside(&daemon, "cat /root/note /root/ran"),
        "written by cloud-initran"
    );
    let address = shown["addresses"][0].as_str().unwrap();
    let rendered = inside(&daemon, "cat /etc/systemd/network/*cloud-init*");
    assert!(rendered.contains(address), "{rendered}");
    let network = inside(&daemon, "ip -4 -o addr show scope global");
    assert!(network.contains(address), "{network}");

    // The same instance at its next boot: what is done once is not done again.
    daemon
        .berth(&["restart", "box", "--timeout", "300"])
        .unwrap();
    inside(&daemon, "cloud-init status --wait");
    assert_eq!(inside(&daemon, "wc -l < /root/ran"), "1");
    daemon.berth(&["rm", "-f", "box"]).unwrap();
}
