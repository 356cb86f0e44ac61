//! A whole Debian in a machine: packages are installed inside over the network, and what they bring
//! compiles, runs and serves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::ensure;
use testkit::Daemon;

use crate::{
    common::{self, BERTH, until, until_so},
    machine,
};

/// The image, with nothing but what the recipe has.
const IMAGE: &str = "debian-vm";

/// A daemon with busybox and a Debian for machines; `None`, said loudly, where they cannot be made.
fn debian(test: &str) -> Option<Daemon> {
    let more = ["dpkg-scanpackages", "mmdebstrap", "curl"];
    if testkit::lacks(test, &machine::TOOLS) || testkit::lacks(test, &more) {
        return None;
    }
    let make = |daemon: &Daemon| {
        daemon.berth(&["image", "build", "--recipe", "busybox"])?;
        let build = ["image", "build", "--recipe", "debian", "--vm"];
        daemon.berth(&[&build[..], &["--name", IMAGE]].concat())?;
        Ok(())
    };
    let (berth, cache) = (Path::new(BERTH), common::cache());
    let made = testkit::images_of(berth, &cache, "debian-machine", &[&machine::agent()], make);
    let images = match made {
        Ok(images) => images,
        Err(error) => {
            testkit::skip(test, &format!("no Debian can be made here: {error:#}"));
            return None;
        }
    };
    let mut daemon = common::bare(test, &[])?;
    daemon.lend_images(&images).unwrap();
    daemon.restart().unwrap();
    Some(daemon)
}

/// What a command says that must succeed.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// This host's own apt, keeping what it fetches in `kept`.
fn apt(kept: &Path) -> Command {
    let mut apt = Command::new("apt-get");
    for option in [
        format!("Dir::Cache::archives={}", kept.display()),
        "Debug::NoLocking=1".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
    ] {
        apt.args(["-qq", "-o", &option]);
    }
    apt
}

/// A folder that is a repository of `packages` and of all they need that the image does not have, as
/// this host's own apt fetches them.
fn repository(daemon: &Daemon, packages: &str) -> anyhow::Result<PathBuf> {
    let kept = common::cache().join("packages");
    fs::create_dir_all(kept.join("partial"))?;
    let served = daemon.root().join("repository");
    fs::create_dir(&served)?;
    let status = daemon.root().join("status");
    let installed = ["run", "--rm", "--network", "none", IMAGE];
    let installed = [&installed[..], &["cat", "/var/lib/dpkg/status"]].concat();
    fs::write(&status, daemon.berth(&installed)? + "\n")?;
    let mut apt = apt(&kept);
    apt.args(["-o", &format!("Dir::State::status={}", status.display())]);
    apt.args(["-o", "APT::Install-Recommends=0"]);
    apt.args(["-y", "--download-only", "install"]);
    output(apt.args(packages.split(' ')))?;
    for file in fs::read_dir(&kept)? {
        let file = file?.path();
        if file.extension().is_some_and(|it| it == "deb") {
            let name = file.file_name().unwrap_or_default();
            fs::copy(&file, served.join(name))?;
        }
    }
    let mut index = Command::new("dpkg-scanpackages");
    let index = output(index.args(["--multiversion", "."]).current_dir(&served))?;
    fs::write(served.join("Packages"), index)?;
    Ok(served)
}

/// A machine `box` of that size with a Debian, and a container that serves it `packages`; `None`, said
/// loudly, where those cannot be had.
fn machine_and_repository(test: &str, packages: &str, size: [&str; 2]) -> Option<Daemon> {
    let daemon = debian(test)?;
    let served = match repository(&daemon, packages) {
        Ok(served) => served,
        Err(error) => {
            testkit::skip(test, &format!("no packages can be had here: {error:#}"));
            return None;
        }
    };
    let folder = format!("{}:/srv:ro", served.display());
    let serve = [
        "run",
        "-d",
        "--name",
        "repository",
        "-v",
        &folder,
        "busybox",
    ];
    let httpd = ["httpd", "-f", "-p", "80", "-h", "/srv"];
    daemon.berth(&[&serve[..], &httpd].concat()).unwrap();
    let [cpus, memory] = size;
    let launch = "launch --vm --name box --restart no --publish 8088:80";
    let launch = launch
        .split(' ')
        .chain(["--cpus", cpus, "--memory", memory, IMAGE]);
    daemon.berth(&launch.collect::<Vec<_>>()).unwrap();
    let sources = "rm -rf /etc/apt/sources.list*; \
        echo 'deb [trusted=yes] http://repository/ ./' > /etc/apt/sources.list; \
        apt-get -qq update";
    inside(&daemon, sources);
    Some(daemon)
}

/// What a script says in the machine, where it must end well.
#[track_caller]
fn inside(daemon: &Daemon, script: &str) -> String {
    let said = daemon.run(&["exec", "box", "sh", "-c", script]).unwrap();
    assert_eq!(said.code, 0, "{script}: {said:?}");
    said.out
}

fn install(daemon: &Daemon, packages: &str) {
    let quiet = "DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install";
    inside(
        daemon,
        &format!("{quiet} {packages} > /tmp/installed 2>&1 || {{ cat /tmp/installed; exit 1; }}"),
    );
}

/// The page of the machine's web server: by its name in a container, by its published port here.
fn pages(daemon: &Daemon) -> [String; 2] {
    let by_name = ["run", "--rm", "busybox", "wget", "-qO-", "http://box/"];
    let by_name = until("a container reaches it by its name", || {
        let said = daemon.run(&by_name).unwrap();
        (said.code == 0).then_some(said.out)
    });
    let by_port = until("the host reaches it by its port", || {
        let mut curl = daemon.netns().command("curl");
        curl.args(["-fsS", "--max-time", "20", "http://127.0.0.1:8088/"]);
        output(&mut curl).ok()
    });
    [by_name, by_port]
}

#[test]
fn a_web_server_is_installed_in_a_machine_and_serves() {
    let test = "a_web_server_is_installed_in_a_machine_and_serves";
    let Some(daemon) = machine_and_repository(test, "nginx-light", ["2", "1G"]) else {
        return;
    };
    let began = Instant::now();
    install(&daemon, "nginx-light");
    eprintln!("installed in {:.1?}", began.elapsed());
    for page in pages(&daemon) {
        assert!(page.contains("Welcome to nginx"), "{page}");
    }
    // It is a service of the guest's init like any other, also after a boot.
    daemon.berth(&["restart", "box"]).unwrap();
    until_so("systemd has started it again", || {
        let said = daemon.run(&["exec", "box", "systemctl", "is-active", "nginx"]);
        said.unwrap().out == "active\n"
    });
    daemon.berth(&["rm", "-f", "box", "repository"]).unwrap();
}

const PROGRAM: &str = r#"
#include <math.h>
#include <stdio.h>
int main(void) {
    double sum = 0;
    for (int i = 1; i <= 100000; i++) sum += 1.0 / ((double)i * i);
    printf("%.4f\n", sqrt(6 * sum));
    return 42;
}"#;

/// `cargo test -p berth --test e2e compiler -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes: it installs a compiler in a machine; run it by name"]
fn a_compiler_and_python_are_installed_in_a_machine_and_work() {
    let test = "a_compiler_and_python_are_installed_in_a_machine_and_work";
    let packages = "gcc libc6-dev python3";
    let Some(daemon) = machine_and_repository(test, packages, ["2", "1G"]) else {
        return;
    };
    let began = Instant::now();
    install(&daemon, packages);
    eprintln!("installed in {:.1?}", began.elapsed());
    inside(
        &daemon,
        &format!("cat > /root/program.c <<'END'\n{PROGRAM}\nEND"),
    );
    let compile = "cd /root; gcc -O2 -Wall -Werror -o program program.c -lm; ./program; echo $?";
    assert_eq!(inside(&daemon, compile), "3.1416\n42\n");
    let script = "import json, hashlib; print(hashlib.sha256(json.dumps(list(range(1000))).encode()).hexdigest())";
    let here = output(Command::new("python3").args(["-c", script]));
    let there = inside(&daemon, &format!("python3 -c '{script}'"));
    match here {
        Ok(here) => assert_eq!(there, here),
        Err(error) => testkit::skip(test, &format!("only the half of Python: {error:#}")),
    }
    inside(
        &daemon,
        "mkdir /srv/www; echo made by hand > /srv/www/index.html; \
        systemd-run -q python3 -m http.server --bind :: -d /srv/www 80",
    );
    assert_eq!(pages(&daemon), ["made by hand\n", "made by hand\n"]);
    daemon.berth(&["rm", "-f", "box", "repository"]).unwrap();
}

/// What is built, how, and the fewest tests of its own that must pass: a compressor, one whose tests are
/// shell scripts and pipes, one that compiles at run time, and one full of hand-written assembly.
const BUILT: [(&str, &str, usize); 4] = [
    ("zlib", "./configure && make -j4 && make test", 3),
    ("gzip", "./configure && make -j4 && make -j4 check", 20),
    (
        "pcre2",
        "./configure --enable-jit && make -j4 && make -j4 check",
        3,
    ),
    (
        "gmp",
        // Debian's release lacks its documentation, for the licence.
        "mkdir doc; echo 'all check:' > doc/Makefile.in; \
        ./configure --disable-shared && make -j4 && make -j4 check",
        150,
    ),
];

/// A folder with the sources of what is [`BUILT`], as their authors released them, fetched by this
/// host's own apt.
fn sources(daemon: &Daemon) -> anyhow::Result<PathBuf> {
    let kept = common::cache().join("sources");
    let lists = kept.join("lists");
    fs::create_dir_all(lists.join("partial"))?;
    // From where this host's packages are. Only of the release itself: later ones (`bookworm-updates`) differ
    // by Debian's changes, which are left out.
    let format = "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let listed = ["indextargets", "--format", format, "Created-By: Packages"];
    let listed = output(Command::new("apt-get").args(listed))?;
    let of_release = |line: &&str| line.split(' ').nth(2).is_some_and(|it| !it.contains('-'));
    let listed: Vec<&str> = listed.lines().filter(of_release).collect();
    fs::write(kept.join("sources.list"), listed.join("\n") + "\n")?;
    let apt = || {
        let mut apt = apt(&kept);
        for (option, value) in [
            ("Dir::Etc::sourcelist", kept.join("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("-")),
            ("Dir::State::lists", lists.clone()),
            ("Dir::Cache::srcpkgcache", PathBuf::new()),
            ("Dir::Cache::pkgcache", PathBuf::new()),
        ] {
            apt.args(["-o", &format!("{option}={}", value.display())]);
        }
        apt
    };
    let fetched = daemon.root().join("sources");
    fs::create_dir(&fetched)?;
    output(apt().arg("update"))?;
    let mut fetch = apt();
    fetch.args(["--download-only", "source"]);
    fetch.args(BUILT.iter().map(|(package, ..)| package));
    output(fetch.current_dir(&fetched))?;
    // What Debian changes in them would have their build systems made anew.
    for file in fs::read_dir(&fetched)? {
        let file = file?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if !name.contains(".orig.tar.") || name.ends_with(".asc") {
            fs::remove_file(&file)?;
        }
    }
    Ok(fetched)
}

/// What a script in the machine said, however long it takes; fails as soon as the machine does not answer
/// any more or the script fails.
#[track_caller]
fn patiently(daemon: &Daemon, name: &str, script: &str) -> String {
    inside(
        daemon,
        &format!(
            "cat > /root/{name}.sh <<'END'\n{script}\nEND\n\
            systemd-run -q sh -c 'sh -e /root/{name}.sh > /root/{name}.log 2>&1; echo $? > /root/{name}.code'"
        ),
    );
    let ended = format!("cat /root/{name}.code 2>/dev/null || true");
    loop {
        std::thread::sleep(Duration::from_secs(5));
        let code = inside(daemon, &ended);
        if code == "0\n" {
            return inside(daemon, &format!("cat /root/{name}.log"));
        }
        let end = || inside(daemon, &format!("tail -n 100 /root/{name}.log"));
        assert_eq!(code, "", "{name}: {}", end());
    }
}

/// How many tests passed, by what zlib's `make test` and automake's `make check` say.
fn passed(log: &str) -> usize {
    log.lines()
        .filter(|line| line.starts_with("PASS:") || line.contains("test OK ***"))
        .count()
}

/// The soak of the software CPU: four processors that share memory compile, link and test for as long as
/// that takes. `cargo test -p berth --test e2e soak -- --ignored --nocapture`.
#[test]
#[ignore = "takes an hour: it builds and tests real packages in a machine; run it by name"]
fn soak_real_packages_are_built_and_tested_by_four_processors() {
    let test = "soak_real_packages_are_built_and_tested_by_four_processors";
    let packages = "build-essential m4";
    let Some(daemon) = machine_and_repository(test, packages, ["4", "2G"]) else {
        return;
    };
    let sources = match sources(&daemon) {
        Ok(sources) => sources,
        Err(error) => return testkit::skip(test, &format!("no sources can be had: {error:#}")),
    };
    install(&daemon, packages);
    let sources = sources.to_str().unwrap();
    daemon.berth(&["cp", sources, "box:/root/sources"]).unwrap();
    for (package, build, tests) in BUILT {
        let began = Instant::now();
        let unpack =
            format!("mkdir /root/{package}; cd /root/{package}; tar -x --strip-components=1");
        let script = format!("{unpack} -f ../sources/{package}_*; {build}");
        let log = patiently(&daemon, package, &script);
        let passed = passed(&log);
        eprintln!("{package}: {passed} tests in {:.1?}", began.elapsed());
        assert!(passed >= tests, "{package}: {passed} tests: {log}");
    }
    // All four processors are there, and neither the kernel nor a program complained.
    assert_eq!(inside(&daemon, "nproc"), "4\n");
    let words = "oops|BUG|WARNING|lockup|stall|hung task|segfault|general protection|trap |invalid opcode|Call Trace";
    let complaints = format!("dmesg | grep -E '{words}' || true");
    assert_eq!(inside(&daemon, &complaints), "");
    assert_eq!(
        inside(&daemon, "systemctl --failed --plain --no-legend"),
        ""
    );
    daemon.berth(&["rm", "-f", "box", "repository"]).unwrap();
}
