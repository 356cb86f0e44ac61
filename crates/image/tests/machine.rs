//! Machine images: disks as the tools of a distribution make them, imported and taken apart.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says when it skips"
)]

mod common;

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{Scratch, local, needs};
use image::{
    ExportFormat, ImportError, ImportOptions, InUse, Job,
    vm::{BootError, MachineImageError, copy_disk},
};

const MIB: u64 = 1 << 20;
const KERNEL: &[u8] = b"not really a kernel, but the newest one";
const INITRD: &[u8] = b"its initial file system";

/// What the disk of a test has in `/boot`, besides the kernels.
const GRUB: &str = "menuentry 'Debian' {\n linux /boot/vmlinuz-6.10-cloud root=UUID=12 ro quiet console=tty0 net.ifnames=0\n \
                    initrd /boot/initrd.img-6.10-cloud\n}\n";

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// The files of a root file system with two kernels.
fn tree(dir: &Path, grub: Option<&str>) -> PathBuf {
    let tree = dir.join("tree");
    for path in ["etc", "sbin", "boot/grub"] {
        fs::create_dir_all(tree.join(path)).unwrap();
    }
    let files: [(&str, &[u8]); 6] = [
        ("etc/hostname", b"disk\n"),
        ("sbin/init", b""),
        ("boot/vmlinuz-6.9-cloud", b"older"),
        ("boot/vmlinuz-6.10-cloud", KERNEL),
        ("boot/initrd.img-6.9-cloud", b"older"),
        ("boot/initrd.img-6.10-cloud", INITRD),
    ];
    for (path, content) in files {
        fs::write(tree.join(path), content).unwrap();
    }
    // As in a merged /usr, and with a link that leads around.
    std::os::unix::fs::symlink("/boot/../boot/grub", tree.join("boot/grub2")).unwrap();
    if let Some(text) = grub {
        fs::write(tree.join("boot/grub/real.cfg"), text).unwrap();
        std::os::unix::fs::symlink("real.cfg", tree.join("boot/grub/grub.cfg")).unwrap();
    }
    tree
}

/// An ext4 file system with a tree, at a place in a disk.
fn format(disk: &Path, tree: &Path, offset: u64, bytes: u64) {
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-E", &format!("offset={offset}"), "-d"])
        .arg(tree)
        .arg(disk)
        .arg(format!("{}k", bytes / 1024)));
}

/// A disk with a table of `kind` (`gpt` or `dos`), whose second partition, the last, is the root.
fn disk(dir: &Path, kind: &str, grub: Option<&str>) -> PathBuf {
    let path = dir.join(format!("{kind}.img"));
    File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    let script = format!("label: {kind}\nstart=2048, size=4096\nstart=8192, size=100000\n");
    let mut sfdisk = Command::new("sfdisk");
    let mut child = sfdisk
        .args(["-q"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    format(&path, &tree(dir, grub), 8192 * 512, 100_000 * 512);
    path
}

fn tools(more: &[&str]) -> bool {
    [("mkfs.ext4", "-V"), ("sfdisk", "-v")]
        .iter()
        .all(|(tool, flag)| needs(tool, &[flag]))
        && more.iter().all(|tool| needs(tool, &["--version"]))
}

fn import(scratch: &Scratch, disk: &Path, name: &str) -> Result<image::Digest, ImportError> {
    let options = ImportOptions {
        name: Some(local(name)),
        ..ImportOptions::default()
    };
    let file = File::open(disk).unwrap();
    scratch.store.import_disk(&file, &options, &Job::silent())
}

#[test]
fn a_disk_becomes_an_image_that_boots_its_own_kernel() {
    if !tools(&[]) {
        return;
    }
    for kind in ["gpt", "dos"] {
        let scratch = Scratch::new();
        let path = disk(scratch.dir.path(), kind, Some(GRUB));
        let image = import(&scratch, &path, "disk").unwrap();
        assert!(scratch.store.is_machine_image(&image).unwrap());
        let boot = scratch.store.own_boot(&image).unwrap().unwrap();
        assert_eq!(fs::read(&boot.kernel).unwrap(), KERNEL);
        assert_eq!(fs::read(boot.initrd.as_ref().unwrap()).unwrap(), INITRD);
        assert_eq!(boot.command_line, "root=UUID=12 ro net.ifnames=0");
        assert_eq!(boot.root_partition, Some(2));

        // The disk itself is there as it was, without its zeros.
        let base = scratch.store.root_disk(&image, &Job::silent()).unwrap();
        assert_eq!(fs::read(&base.path).unwrap(), fs::read(&path).unwrap());
        assert!(fs::metadata(&base.path).unwrap().blocks() * 512 < 32 * MIB);

        // A larger copy has a larger partition, and tables that its tools find nothing wrong with.
        let copy = scratch.path("copy");
        copy_disk(&base, &copy, 512 * MIB).unwrap();
        let listed = Command::new("sfdisk")
            .arg("--json")
            .arg(&copy)
            .output()
            .unwrap();
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let root = &listed["partitiontable"]["partitions"][1];
        assert_eq!(root["start"], 8192);
        assert!(root["size"].as_u64().unwrap() > 1_000_000, "{listed:#}");
        let verified = Command::new("sfdisk")
            .arg("--verify")
            .arg(&copy)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verified.stderr).into_owned()
            + &String::from_utf8_lossy(&verified.stdout);
        assert!(
            verified.status.success() && !said.contains("backup"),
            "{said}"
        );

        // It goes with its image.
        scratch.store.untag("disk").unwrap();
        scratch.store.gc(&InUse::default()).unwrap();
        assert!(!boot.kernel.exists() && !base.path.exists());
    }
}

#[test]
fn without_a_boot_loader_the_newest_kernel_is_taken() {
    if !tools(&[]) {
        return;
    }
    let scratch = Scratch::new();
    // And without partitions.
    let path = scratch.path("plain.img");
    File::create(&path).unwrap().set_len(32 * MIB).unwrap();
    format(&path, &tree(scratch.dir.path(), None), 0, 32 * MIB);
    let image = import(&scratch, &path, "plain").unwrap();
    let boot = scratch.store.own_boot(&image).unwrap().unwrap();
    assert_eq!(fs::read(&boot.kernel).unwrap(), KERNEL);
    assert_eq!(fs::read(boot.initrd.unwrap()).unwrap(), INITRD);
    assert!(
        boot.command_line.starts_with("root=UUID="),
        "{}",
        boot.command_line
    );
    assert_eq!(boot.root_partition, Some(0));
}

#[test]
fn qcow2_of_every_kind_is_the_disk_it_was_made_of() {
    if !tools(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let raw = disk(scratch.dir.path(), "gpt", Some(GRUB));
    let content = fs::read(&raw).unwrap();
    let kinds: [&[&str]; 5] = [
        &[],
        &["-c"],
        &["-c", "-o", "compression_type=zstd"],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=512"],
    ];
    for (number, options) in kinds.iter().enumerate() {
        let path = scratch.path(&format!("{number}.qcow2"));
        run(Command::new("qemu-img")
            .args(["convert", "-q", "-O", "qcow2"])
            .args(*options)
            .args([&raw, &path]));
        let image = import(&scratch, &path, &format!("disk-{number}")).unwrap();
        let base = scratch.store.root_disk(&image, &Job::silent()).unwrap();
        assert!(fs::read(&base.path).unwrap() == content, "{options:?}");
    }
    // As others publish them: a container with nothing but a qcow2 file in it.
    let tree = scratch.path("container");
    fs::create_dir_all(tree.join("disk")).unwrap();
    fs::copy(scratch.path("1.qcow2"), tree.join("disk/image.qcow2")).unwrap();
    let tar = common::tar_of(&tree);
    let options = ImportOptions {
        name: Some(local("published")),
        ..ImportOptions::default()
    };
    let image = scratch
        .store
        .import_rootfs(&tar[..], &options, &Job::silent())
        .unwrap();
    let base = scratch.store.root_disk(&image, &Job::silent()).unwrap();
    assert!(fs::read(&base.path).unwrap() == content);
    assert!(base.boot.unwrap().initrd.is_some());
}

/// Makes the first partition of a [`disk`] of the kind that firmware reads, with these files.
fn format_first(disk: &Path, files: &[(&str, &[u8])]) {
    let mut part = vec![0; 4096 * 512];
    let format = fatfs::FormatVolumeOptions::new();
    fatfs::format_volume(io::Cursor::new(&mut part), format).unwrap();
    let options = fatfs::FsOptions::new();
    let system = fatfs::FileSystem::new(io::Cursor::new(&mut part), options).unwrap();
    for (path, content) in files {
        let (mut directory, mut parts) = (system.root_dir(), path.split('/').peekable());
        while let Some(part) = parts.next() {
            if parts.peek().is_some() {
                directory = directory.create_dir(part).unwrap();
            } else {
                let mut file = directory.create_file(part).unwrap();
                file.write_all(content).unwrap();
            }
        }
    }
    system.unmount().unwrap();
    let file = File::options().write(true).open(disk).unwrap();
    file.write_all_at(&part, 2048 * 512).unwrap();
}

#[test]
fn a_kernel_is_found_on_the_partition_that_firmware_reads() {
    if !tools(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let path = disk(scratch.dir.path(), "gpt", None);
    // As systemd-boot wants it: the kernels in the root file system are not for the boot loader.
    let entry = b"title Some\nlinux /some-system/6.10/linux\ninitrd /some-system/6.10/initrd\n\
                  options rw quiet\n";
    format_first(
        &path,
        &[
            ("loader/entries/some-system-6.10.conf", entry),
            ("some-system/6.10/linux", KERNEL),
            ("some-system/6.10/initrd", INITRD),
        ],
    );
    let image = import(&scratch, &path, "disk").unwrap();
    let boot = scratch.store.own_boot(&image).unwrap().unwrap();
    assert_eq!(fs::read(&boot.kernel).unwrap(), KERNEL);
    assert_eq!(fs::read(boot.initrd.as_ref().unwrap()).unwrap(), INITRD);
    assert!(boot.command_line.starts_with("root=UUID="), "{boot:?}");
    assert_eq!(boot.root_partition, Some(2));
}

#[test]
fn a_kernel_is_found_on_xfs() {
    if !needs("mkfs.xfs", &["-V"]) {
        return;
    }
    let scratch = Scratch::new();
    let tree = tree(scratch.dir.path(), None);
    let proto = format!(
        "/dev/null\n0 0\nd--755 0 0\n etc d--755 0 0\n $\n sbin d--755 0 0\n  init ---755 0 0 {0}/sbin/init\n $\n \
         boot d--755 0 0\n  vmlinuz-6.10-cloud ---644 0 0 {0}/boot/vmlinuz-6.10-cloud\n  \
         initramfs-6.10-cloud.img ---644 0 0 {0}/boot/initrd.img-6.10-cloud\n $\n$\n",
        tree.display()
    );
    let (description, path) = (scratch.path("proto"), scratch.path("xfs.img"));
    fs::write(&description, proto).unwrap();
    File::create(&path).unwrap().set_len(320 * MIB).unwrap();
    let mut make = Command::new("mkfs.xfs");
    run(make
        .args(["-q", "-p"])
        .args([&description, &path])
        .args(["-m", "uuid=01a1f98c-ac8a-7458-8b1d-875239f62899"]));
    let image = import(&scratch, &path, "disk").unwrap();
    let boot = scratch.store.own_boot(&image).unwrap().unwrap();
    assert_eq!(fs::read(&boot.kernel).unwrap(), KERNEL);
    assert_eq!(fs::read(boot.initrd.as_ref().unwrap()).unwrap(), INITRD);
    let root = "root=UUID=01a1f98c-ac8a-7458-8b1d-875239f62899 ro";
    assert_eq!(boot.command_line, root);
}

#[test]
fn a_file_system_that_is_not_read_is_named() {
    if !tools(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let path = disk(scratch.dir.path(), "dos", None);
    format_first(&path, &[("EFI/fedora/grub.cfg", b"configfile elsewhere")]);
    let file = File::options().write(true).open(&path).unwrap();
    let root = 8192 * 512;
    file.write_all_at(&[0; 8192], root).unwrap();
    for (name, at, mark) in [("XFS", 0, &b"XFSB"[..]), ("Btrfs", 0x1_0040, b"_BHRfS_M")] {
        file.write_all_at(mark, root + at).unwrap();
        let error = import(&scratch, &path, "x").unwrap_err().to_string();
        assert!(
            error.contains(&format!("the disk has {name}")) && error.contains("--kernel"),
            "{error}"
        );
        file.write_all_at(&[0; 8], root + at).unwrap();
    }
}

#[test]
fn what_would_read_other_files_or_boots_nothing_is_refused() {
    if !tools(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let secret = scratch.path("secret");
    File::create(&secret).unwrap().set_len(MIB).unwrap();
    let create = |name: &str, options: &str, more: &[&str]| {
        let path = scratch.path(name);
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", options])
            .arg(&path)
            .args(more));
        path
    };
    let backing = format!("backing_file={},backing_fmt=raw", secret.display());
    let data = format!("data_file={}", scratch.path("data").display());
    for (path, what) in [
        (create("backed", &backing, &[]), "backing file"),
        (create("outside", &data, &["1M"]), "features"),
        (create("extended", "extended_l2=on", &["1M"]), "features"),
    ] {
        let error = import(&scratch, &path, "x").unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    // A disk of a petabyte, and a table beyond the end of the file.
    let path = create("large", "compat=1.1", &["1M"]);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&(1_u64 << 50).to_be_bytes(), 24).unwrap();
    let error = import(&scratch, &path, "x").unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");
    let path = create("short", "compat=1.1", &["1M"]);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&(1_u64 << 40).to_be_bytes(), 40).unwrap();
    let error = import(&scratch, &path, "x").unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");

    let empty = create("empty", "compat=1.1", &["64M"]);
    let error = import(&scratch, &empty, "x").unwrap_err();
    let none = MachineImageError::Boot(BootError::NoFileSystem);
    assert_eq!(error.to_string(), none.to_string());
    // A boot loader that names what is not there.
    let broken = GRUB.replace("initrd.img-6.10", "initrd.img-7");
    let path = disk(scratch.dir.path(), "gpt", Some(&broken));
    let error = import(&scratch, &path, "x").unwrap_err();
    assert!(error.to_string().contains("initrd.img-7"), "{error}");
    // Neither is a tar a disk, nor does any of this leave a name behind.
    let tar = scratch.path("some.tar");
    fs::write(&tar, common::tar_of(&scratch.path("tree"))).unwrap();
    assert!(matches!(
        import(&scratch, &tar, "x"),
        Err(ImportError::NoImage(_))
    ));
    assert!(scratch.store.list().unwrap().is_empty());
}

#[test]
fn damaged_file_systems_are_survived() {
    if !tools(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.path("plain.img");
    File::create(&path).unwrap().set_len(8 * MIB).unwrap();
    // Without the checksums that would tell of most damage at once: who means harm corrects them.
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^metadata_csum", "-d"])
        .args([&tree(scratch.dir.path(), Some(GRUB)), &path]));
    let sound = fs::read(&path).unwrap();
    image::fuzzing::disk(&sound);
    // A superblock that claims more than there is: blocks of 2 GiB, 2^47 of them, a group for each.
    for (at, bytes) in [
        (24, 21_u32.to_le_bytes()),
        (0x150, 0x7fff_u32.to_le_bytes()),
        (32, 1_u32.to_le_bytes()),
    ] {
        let mut damaged = sound.clone();
        damaged[1024 + at..1024 + at + 4].copy_from_slice(&bytes);
        image::fuzzing::disk(&damaged);
    }
    // Only what is not zero means something; each time other bytes of it, with a generator that repeats.
    let places: Vec<usize> = (1024..sound.len()).filter(|&at| sound[at] != 0).collect();
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 16).unwrap()
    };
    for _ in 0..300 {
        let mut damaged = sound.clone();
        for _ in 0..=random() % 8 {
            // The superblock and the groups behind it more often than what they lead to.
            let place = places[random() % if random() % 2 == 0 { places.len() } else { 200 }];
            damaged[place] = u8::try_from(random() % 256).unwrap();
        }
        image::fuzzing::disk(&damaged);
    }
}

#[test]
fn an_image_of_a_disk_travels_as_any_other() {
    if !tools(&[]) {
        return;
    }
    let (here, there) = (Scratch::new(), Scratch::new());
    let path = disk(here.dir.path(), "gpt", Some(GRUB));
    let image = import(&here, &path, "disk").unwrap();
    let mut archive = Vec::new();
    here.store
        .export(
            &[image],
            ExportFormat::Archive,
            &mut archive,
            &Job::silent(),
        )
        .unwrap();
    assert!(archive.len() < 4 << 20, "zeros travel: {}", archive.len());
    let options = ImportOptions::default();
    let images = there
        .store
        .import_archive(&archive[..], &options, &Job::silent())
        .unwrap();
    assert_eq!(images, [image]);
    let base = there.store.root_disk(&image, &Job::silent()).unwrap();
    assert!(fs::read(&base.path).unwrap() == fs::read(&path).unwrap());
    assert_eq!(fs::read(base.boot.unwrap().kernel).unwrap(), KERNEL);
}

/// A qcow2 image of one compressed and one plain cluster, small enough to be damaged anywhere.
fn small_qcow2() -> Vec<u8> {
    let mut image = vec![0_u8; 5 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &9_u32.to_be_bytes());
    put(24, &2048_u64.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &512_u64.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    // The first table names the second, which names a plain cluster and a compressed one.
    put(512, &(1 << 63 | 1024_u64).to_be_bytes());
    put(1024, &(1 << 63 | 1536_u64).to_be_bytes());
    put(1032, &(1 << 62 | 2048_u64).to_be_bytes());
    put(1536, &[7; 512]);
    let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(&[9; 512]).unwrap();
    put(2048, &packed.finish().unwrap());
    image
}

proptest::proptest! {
    #[test]
    fn damaged_disks_are_survived(
        at in 0_usize..1100, bytes in proptest::collection::vec(proptest::num::u8::ANY, 1..16),
        noise in proptest::collection::vec(proptest::num::u8::ANY, 0..2048),
    ) {
        let mut image = small_qcow2();
        image::fuzzing::qcow2(&image);
        image[at..at + bytes.len()].copy_from_slice(&bytes);
        image::fuzzing::qcow2(&image);
        let mut table = vec![0; 64 << 10];
        table[510..512].copy_from_slice(&[0x55, 0xaa]);
        table[446..446 + noise.len().min(64)].copy_from_slice(&noise[..noise.len().min(64)]);
        image::fuzzing::partitions(&table);
        table[450] = 0xee;
        table[512..520].copy_from_slice(b"EFI PART");
        image::fuzzing::partitions(&table);
        image::fuzzing::boot_loader(&noise);
        let text: Vec<u8> = noise.iter().flat_map(|&byte| {
            let words: [&[u8]; 8] = [b"linux ", b"initrd ", b"options ", b"$a", b"label ", b"\n", b"=", b"1.2 "];
            words[usize::from(byte % 8)].to_vec()
        }).collect();
        image::fuzzing::boot_loader(&text);
    }
}
