//! The store without any registry: recipes, root file systems, names, collection, commit, archives.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod common;

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use common::{Scratch, listing, local, needs, run, tar_of};
use image::{
    CommitOptions, DebianRecipe, ExportFormat, ImportOptions, InUse, Job, Recipe, RecipeError,
    Reference, Store,
};

#[test]
fn busybox_runs_from_its_layer_and_is_found_again() {
    let scratch = Scratch::new();
    let Some(image) = scratch.busybox() else {
        return;
    };
    let layers = scratch.store.layers(&image).unwrap();
    let output = Command::new("chroot")
        .arg(&layers[0])
        .args(["/bin/sh", "-c", "id -un; ls /etc/passwd; uname"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "root\n/etc/passwd\nLinux\n"
    );
    assert_eq!(scratch.store.config(&image).unwrap().config.cmd, ["sh"]);
    assert_eq!(scratch.store.resolve("busybox").unwrap(), image);
    assert_eq!(scratch.store.resolve(&image.short()).unwrap(), image);

    let again = scratch
        .store
        .build_recipe(&Recipe::Busybox, &local("other"), false, &Job::silent())
        .unwrap();
    assert!(again.cached && again.image == image);
    let fresh = scratch
        .store
        .build_recipe(&Recipe::Busybox, &local("other"), true, &Job::silent())
        .unwrap();
    assert!(!fresh.cached, "asked for a fresh build");
    assert_eq!(fresh.image, image, "the recipe is reproducible");
    assert_eq!(scratch.store.get("other").unwrap().names.len(), 2);
    assert_eq!(scratch.leftovers(), Vec::<std::path::PathBuf>::new());
}

/// A tree with everything that a layer can carry.
fn rich_tree(root: &Path) {
    let script = r#"
        set -e; mkdir -p "$1"; cd "$1"
        mkdir -p a/b/c usr/bin empty sticky; chmod 1777 sticky; ln -s usr/bin bin
        echo hello > a/file; ln a/file a/hard; ln -s ../a/file a/b/soft; ln -s /nowhere dangling
        cp /bin/true usr/bin/su; chmod 4755 usr/bin/su; chown 1000:2000 a/b; chown 65534:65534 a/file
        mknod null c 1 3; mknod disk b 8 0; mkfifo fifo; chmod 640 null
        setfattr -n user.color -v blue a/file 2>/dev/null || true
        setcap cap_net_raw+ep usr/bin/su 2>/dev/null || true
        truncate -s 2M holes; printf x | dd of=holes bs=1 seek=1500000 conv=notrunc 2>/dev/null
        mkdir -p "$(printf 'long%.0s' $(seq 60))/$(printf 'name%.0s' $(seq 60))"
        echo deep > "$(printf 'long%.0s' $(seq 60))/$(printf 'name%.0s' $(seq 60))/file"
        printf 'u\303\251' > "$(printf 'u\303\251')"
        touch -d '2001-02-03 04:05:06.123456789 UTC' a/file a/b; touch -d '1960-01-01 UTC' empty
    "#;
    let output = run("sh", &["-c", script, "sh", root.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_root_file_system_goes_in_and_out_unchanged_in_every_tar_dialect_and_compression() {
    let scratch = Scratch::new();
    let tree = scratch.path("tree");
    rich_tree(&tree);
    let original = listing(&tree);
    for (name, args) in [
        ("gnu", &["--format=gnu", "--sparse"][..]),
        ("pax", &["--format=posix", "--xattrs", "--xattrs-include=*"]),
        (
            "sparse00",
            &[
                "--format=posix",
                "--sparse",
                "--sparse-version=0.0",
                "--xattrs",
                "--xattrs-include=*",
            ],
        ),
        (
            "sparse01",
            &[
                "--format=posix",
                "--sparse",
                "--sparse-version=0.1",
                "--xattrs",
                "--xattrs-include=*",
            ],
        ),
        (
            "sparse10",
            &[
                "--format=posix",
                "--sparse",
                "--sparse-version=1.0",
                "--xattrs",
                "--xattrs-include=*",
                "-z",
            ],
        ),
        (
            "xz",
            &["--format=posix", "--xattrs", "--xattrs-include=*", "-J"],
        ),
        (
            "bz2",
            &["--format=posix", "--xattrs", "--xattrs-include=*", "-j"],
        ),
        (
            "zstd",
            &["--format=posix", "--xattrs", "--xattrs-include=*", "--zstd"],
        ),
    ] {
        let file = scratch.path("t.tar");
        let mut tar = Command::new("tar");
        tar.args(args)
            .arg("-cf")
            .arg(&file)
            .arg("-C")
            .arg(&tree)
            .arg(".");
        let packed = tar.output().unwrap();
        if !packed.status.success() {
            eprintln!(
                "SKIP {name}: tar cannot write it here: {}",
                String::from_utf8_lossy(&packed.stderr)
            );
            continue;
        }
        let options = ImportOptions {
            name: Some(local(name)),
            ..ImportOptions::default()
        };
        let image = scratch
            .store
            .import_rootfs(fs::File::open(&file).unwrap(), &options, &Job::silent())
            .unwrap();
        let layer = &scratch.store.layers(&image).unwrap()[0];
        let (mut expected, mut found) = (original.clone(), listing(layer));
        if name == "gnu" {
            // This dialect has neither nanoseconds nor extended attributes.
            let coarse = |line: &mut String| {
                let at = line.rfind(' ').unwrap();
                line.truncate(at);
                let dot = line.find('.').unwrap();
                line.replace_range(dot..dot + 10, "");
            };
            expected.iter_mut().for_each(coarse);
            found.iter_mut().for_each(coarse);
        }
        assert_eq!(found, expected, "{name}");
        let holes = fs::metadata(layer.join("holes")).unwrap();
        if name.contains("sparse") || name == "gnu" {
            assert!(holes.blocks() * 512 < 1 << 20, "{name}: holes stay holes");
        }

        let mut exported = Vec::new();
        scratch
            .store
            .export(
                &[image],
                ExportFormat::RootFs,
                &mut exported,
                &Job::silent(),
            )
            .unwrap();
        let out = scratch.path(&format!("out-{name}"));
        fs::create_dir(&out).unwrap();
        fs::write(&file, &exported).unwrap();
        let unpacked = run(
            "tar",
            &[
                "--xattrs",
                "--xattrs-include=*",
                "-xpf",
                file.to_str().unwrap(),
                "-C",
                out.to_str().unwrap(),
            ],
        );
        assert!(
            unpacked.status.success(),
            "{}",
            String::from_utf8_lossy(&unpacked.stderr)
        );
        if name != "gnu" {
            assert_eq!(
                listing(&out),
                original,
                "GNU tar reads our {name} export back"
            );
        }
    }
}

#[test]
fn commit_turns_a_real_overlay_back_into_a_layer_that_shows_the_same() {
    let scratch = Scratch::new();
    let tree = scratch.path("tree");
    rich_tree(&tree);
    fs::create_dir_all(tree.join("gone/with/content")).unwrap();
    fs::create_dir_all(tree.join("replaced/old")).unwrap();
    let base = scratch.image_of(&tree, "base");
    let lower = scratch.store.layers(&base).unwrap();
    for dir in ["upper", "work", "merged"] {
        fs::create_dir(scratch.path(dir)).unwrap();
    }
    let script = r#"
        set -e
        mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work,redirect_dir=off,metacopy=off" "$2/merged"
        cd "$2/merged"
        echo new > added; echo more >> a/file; rm -r gone; rm dangling
        rm -r replaced; mkdir replaced; echo fresh > replaced/new; chmod 700 empty
        rm a/hard; ln added a/link; mkdir -p deep/er; touch -d '2011-11-11 11:11:11 UTC' deep/er
    "#;
    // In a mount namespace of its own, which takes the mount with it.
    let scratch_dir = scratch.dir.path().to_str().unwrap().to_owned();
    let merged_copy = scratch.path("copy");
    let script = format!("{script}\n cp -a \"$2/merged\" \"$2/copy\"");
    let output = Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            &script,
            "sh",
            lower[0].to_str().unwrap(),
            &scratch_dir,
        ])
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!(
            "SKIP commit of a real overlay: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let options = CommitOptions {
        name: Some(local("next")),
        created_unix: Some(0),
        ..CommitOptions::default()
    };
    let next = scratch
        .store
        .commit(&scratch.path("upper"), &base, &options, &Job::silent())
        .unwrap();
    assert_eq!(
        scratch
            .store
            .commit(&scratch.path("upper"), &base, &options, &Job::silent())
            .unwrap(),
        next
    );
    let layers = scratch.store.layers(&next).unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(
        layers[1], lower[0],
        "the base's layer is shared, and topmost comes first"
    );
    assert_eq!(
        fs::symlink_metadata(layers[0].join("gone")).unwrap().rdev(),
        0
    );
    assert!(fs::symlink_metadata(layers[0].join("gone")).unwrap().mode() & 0o170_000 == 0o020_000);

    // What the two layers show, merged by us, is what the kernel showed.
    let mut tar = Vec::new();
    scratch
        .store
        .export(&[next], ExportFormat::RootFs, &mut tar, &Job::silent())
        .unwrap();
    let flat = scratch
        .store
        .import_rootfs(tar.as_slice(), &ImportOptions::default(), &Job::silent())
        .unwrap();
    let flat = &scratch.store.layers(&flat).unwrap()[0];
    assert_eq!(listing(flat), listing(&merged_copy));

    let usage = scratch.store.usage().unwrap();
    let base_usage = usage
        .images
        .iter()
        .find(|usage| usage.image.id == base)
        .unwrap();
    assert_eq!(base_usage.unique_bytes, 0);
    assert!(base_usage.shared_bytes > 0 && usage.layer_bytes < usage.unshared_bytes);
}

#[test]
fn collection_takes_what_nobody_names_uses_or_holds() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let make = |name: &str, content: &[u8]| {
        let tree = scratch.path(name);
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), content).unwrap();
        scratch.image_of(&tree, name)
    };
    let images: Vec<_> = ["n1", "u1", "h1", "l1", "d1"]
        .iter()
        .map(|n| make(n, n.repeat(9000).as_bytes()))
        .collect();
    let [named, used, held, layered, dropped] = images[..] else {
        unreachable!()
    };
    let layer = store.get("l1").unwrap().layers[0];
    for name in ["u1", "h1", "l1", "d1"] {
        assert_eq!(store.untag(name).unwrap().remaining, 0);
    }
    let hold = store.hold(&held).unwrap();
    let in_use = InUse {
        images: [used].into(),
        layers: [layer].into(),
        ..InUse::default()
    };
    let report = store.gc(&in_use).unwrap();
    assert_eq!(
        report.images.iter().collect::<HashSet<_>>(),
        [layered, dropped].iter().collect()
    );
    assert_eq!(report.layers.len(), 1);
    assert!(report.freed_bytes >= 9000, "{report:?}");
    assert!(
        store.layer(&layer).unwrap().is_some(),
        "a mounted layer stays though its image is gone"
    );
    for image in [named, used, held] {
        assert!(store.layers(&image).unwrap()[0].join("file").exists());
    }
    drop(hold);
    let report = store.gc(&InUse::default()).unwrap();
    assert_eq!(report.images.len(), 2);
    assert_eq!(
        store.gc(&InUse::default()).unwrap(),
        image::GcReport::default(),
        "nothing is left to take"
    );
    assert!(store.resolve("n1").is_ok() && store.resolve("u1").is_err());
    assert!(scratch.leftovers().is_empty());
}

#[test]
fn an_archive_is_read_by_skopeo_and_comes_back_as_the_same_image() {
    let scratch = Scratch::new();
    let Some(image) = scratch.busybox() else {
        return;
    };
    let name: Reference = "registry.example/team/busybox:1.35".parse().unwrap();
    scratch.store.tag(&image, &name).unwrap();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    scratch
        .store
        .export(&[image], ExportFormat::Archive, &mut first, &Job::silent())
        .unwrap();
    scratch
        .store
        .export(&[image], ExportFormat::Archive, &mut second, &Job::silent())
        .unwrap();
    assert!(first == second, "exports are reproducible");
    let layout = scratch.path("layout");
    scratch
        .store
        .export_layout(&[image], &layout, &Job::silent())
        .unwrap();

    let other = Scratch::new();
    let back = other
        .store
        .import_archive(first.as_slice(), &ImportOptions::default(), &Job::silent())
        .unwrap();
    assert!(
        back.iter().all(|id| *id == image),
        "an OCI archive keeps the image's identity"
    );
    assert_eq!(
        other
            .store
            .resolve("registry.example/team/busybox:1.35")
            .unwrap(),
        image
    );
    assert_eq!(
        listing(&other.store.layers(&image).unwrap()[0]),
        listing(&scratch.store.layers(&image).unwrap()[0])
    );
    let options = ImportOptions {
        name: Some(local("l")),
        ..ImportOptions::default()
    };
    // Two names make two entries, but of one image: it can be given another name.
    let named = other
        .store
        .import_layout(&layout, &options, &Job::silent())
        .unwrap();
    assert!(named.iter().all(|id| *id == image));
    assert_eq!(other.store.resolve(&local("l").to_string()).unwrap(), image);
    assert_eq!(
        other
            .store
            .import_layout(&layout, &ImportOptions::default(), &Job::silent())
            .unwrap()[0],
        image
    );

    if !needs("skopeo", &["--version"]) {
        return;
    }
    let archive = scratch.path("a.tar");
    fs::write(&archive, &first).unwrap();
    let config = scratch.store.get("busybox").unwrap().config.to_string();
    for (from, to) in [
        (
            format!("docker-archive:{}:{name}", archive.display()),
            "docker-archive",
        ),
        (
            format!("oci-archive:{}:1.35", archive.display()),
            "oci-archive",
        ),
    ] {
        // skopeo reads ours; we read what skopeo writes.
        let target = scratch.path(&format!("{to}.tar"));
        let _ = fs::remove_file(&target);
        let output = run(
            "skopeo",
            &[
                "copy",
                "--insecure-policy",
                &from,
                &format!("{to}:{}:again/x:1", target.display()),
            ],
        );
        assert!(
            output.status.success(),
            "{from}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let fresh = Scratch::new();
        let file = fs::File::open(&target).unwrap();
        let images = fresh
            .store
            .import_archive(file, &ImportOptions::default(), &Job::silent())
            .unwrap();
        assert_eq!(
            fresh
                .store
                .get(&images[0].to_string())
                .unwrap()
                .config
                .to_string(),
            config,
            "{to}"
        );
        assert_eq!(fresh.store.resolve("again/x:1").unwrap(), images[0]);
    }
}

#[test]
fn layers_not_flushed_before_a_power_failure_are_unpacked_again() {
    let scratch = Scratch::new();
    let Some(image) = scratch.busybox() else {
        return;
    };
    // A copy, because the original may be flushed in the background at any moment.
    let copy = scratch.path("copy");
    assert!(
        run(
            "cp",
            &[
                "-a",
                scratch.store.root().to_str().unwrap(),
                copy.to_str().unwrap()
            ]
        )
        .status
        .success()
    );
    let original = &scratch.store.layers(&image).unwrap()[0];
    let layer = copy.join(original.strip_prefix(scratch.store.root()).unwrap());
    // What a power failure leaves: the names are there, the content is not, and the boot is another.
    fs::write(layer.join("bin/busybox"), b"").unwrap();
    fs::remove_file(layer.join("etc/passwd")).unwrap();
    let record = layer.parent().unwrap().join("layer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    json["unflushed_since_boot"] = "an-earlier-boot".into();
    fs::write(&record, json.to_string()).unwrap();
    let store = Store::open(&copy).unwrap();
    assert_eq!(store.layers(&image).unwrap(), std::slice::from_ref(&layer));
    assert_eq!(listing(&layer), listing(original));
    assert_eq!(fs::read_dir(copy.join("ingest")).unwrap().count(), 0);
}

#[test]
fn a_missing_name_and_a_wrong_recipe_say_what_to_do() {
    let scratch = Scratch::new();
    let error = scratch.store.get("nothing:1").unwrap_err().to_string();
    assert!(
        error.contains("nothing:1") && error.contains("pull"),
        "{error}"
    );
    let recipe = DebianRecipe {
        suite: "-x;rm".into(),
        packages: vec![],
        systemd: false,
        machine: false,
        mirror: None,
    };
    let built =
        scratch
            .store
            .build_recipe(&Recipe::Debian(recipe), &local("d"), false, &Job::silent());
    assert!(matches!(
        built,
        Err(RecipeError::Parameter { what: "suite", .. })
    ));
    assert!(Store::open("/proc/berth-no-such-place").is_err());
}

#[test]
fn the_store_is_closed_to_other_users_and_refuses_newer_formats() {
    let scratch = Scratch::new();
    let mode = fs::metadata(scratch.store.root())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    fs::write(scratch.store.root().join("version"), "7\n").unwrap();
    let error = Store::open(scratch.store.root()).unwrap_err().to_string();
    assert!(error.contains("format 7"), "{error}");
    let _ = tar_of(scratch.store.root());
}

#[test]
fn a_failing_debian_build_shows_the_tool_s_words_and_can_be_cancelled() {
    if !needs("mmdebstrap", &["--version"]) {
        return;
    }
    let scratch = Scratch::new();
    let mirror = Some("http://127.0.0.1:1/debian".to_owned());
    let recipe = Recipe::Debian(DebianRecipe {
        suite: "bookworm".into(),
        packages: vec![],
        systemd: true,
        machine: false,
        mirror,
    });
    let error = scratch
        .store
        .build_recipe(&recipe, &local("d"), false, &Job::silent())
        .unwrap_err();
    assert!(
        matches!(&error, RecipeError::Tool { program: "mmdebstrap", output, .. } if !output.is_empty()),
        "{error}"
    );
    let cancel = tokio_util::sync::CancellationToken::new();
    let trigger = cancel.clone();
    let job = Job::new(
        move |event| {
            if matches!(event, image::Event::Note(_)) {
                trigger.cancel()
            }
        },
        cancel,
    );
    let error = scratch
        .store
        .build_recipe(&recipe, &local("d"), false, &job)
        .unwrap_err();
    assert!(matches!(error, RecipeError::Cancelled(_)), "{error}");
    assert!(scratch.store.list().unwrap().is_empty() && scratch.leftovers().is_empty());
}

#[test]
#[ignore = "fetches packages for minutes; run with --run-ignored all"]
fn debian_recipes_yield_a_base_and_a_system_container() {
    if !needs("mmdebstrap", &["--version"]) {
        return;
    }
    let scratch = Scratch::new();
    let recipe = DebianRecipe {
        suite: "bookworm".into(),
        packages: vec!["nano".into()],
        systemd: true,
        machine: false,
        mirror: None,
    };
    let recipe = Recipe::Debian(recipe);
    let name = recipe.default_name().unwrap();
    let built = scratch
        .store
        .build_recipe(&recipe, &name, false, &Job::silent())
        .unwrap();
    let root = &scratch.store.layers(&built.image).unwrap()[0];
    let shown = Command::new("chroot")
        .arg(root)
        .args([
            "/bin/sh",
            "-c",
            ". /etc/os-release; echo $ID; test -x /bin/nano && readlink -f /sbin/init",
        ])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&shown.stdout),
        "debian\n/usr/lib/systemd/systemd\n"
    );
    assert_eq!(fs::read(root.join("etc/machine-id")).unwrap(), b"");
    let masked = fs::read_link(root.join("etc/systemd/system/systemd-udevd.service")).unwrap();
    assert_eq!(masked, Path::new("/dev/null"));
    let config = scratch.store.config(&built.image).unwrap().config;
    assert_eq!(
        (config.cmd.as_slice(), config.stop_signal.as_str()),
        (&["/sbin/init".to_owned()][..], "SIGRTMIN+3")
    );
    assert!(
        scratch
            .store
            .build_recipe(&recipe, &name, false, &Job::silent())
            .unwrap()
            .cached
    );
    assert_eq!(name.familiar(), "debian:bookworm-systemd");

    let Recipe::Debian(mut recipe) = recipe else {
        unreachable!("it was made above");
    };
    recipe.machine = true;
    let recipe = Recipe::Debian(recipe);
    let name = recipe.default_name().unwrap();
    let built = scratch
        .store
        .build_recipe(&recipe, &name, false, &Job::silent());
    let root = &scratch.store.layers(&built.unwrap().image).unwrap()[0];
    assert!(root.join("lib/systemd/systemd-udevd").exists());
    assert!(
        !root
            .join("etc/systemd/system/systemd-udevd.service")
            .exists()
    );
    assert_eq!(name.familiar(), "debian:bookworm-vm");
}
