//! The units of packaging/ under a real systemd, in a Debian of a machine's own: its kernel, control
//! groups of version 2, its journal. The programs are those under test, without their symbols.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use testkit::{Daemon, Said};

use crate::{common, machine};

/// What a host of Berth needs besides the base system (docs/getting-started.md), and what this test does.
const PACKAGES: &str = "nftables,busybox-static,apparmor,e2fsprogs";

/// As in docs/getting-started.md.
const INSTALL: &str = "set -e
    install -m 0755 /host/berth /host/berth-oci /host/berth-vmm /host/berth-agent /usr/bin/
    install -m 0644 /host/systemd/berth.service /host/systemd/berth.socket /etc/systemd/system/
    install -m 0644 /host/systemd/berth.sysusers.conf /usr/lib/sysusers.d/berth.conf
    systemd-sysusers
    systemctl daemon-reload
    systemctl enable --now berth.socket 2>/dev/null";

/// A Debian with what is to be installed at `/host`.
struct Host {
    daemon: Daemon,
    _programs: tempfile::TempDir,
}

impl Host {
    fn new(test: &str) -> Option<Self> {
        if testkit::lacks(
            test,
            &[
                "mmdebstrap",
                "strip",
                "debugfs",
                "depmod",
                "ip",
                "nft",
                "apt-get",
            ],
        ) {
            return None;
        }
        let runtime = PathBuf::from(std::env::var_os("BERTH_OCI").unwrap_or_default());
        if !runtime.is_file() {
            testkit::skip(
                test,
                "BERTH_OCI names no static runtime to install in a guest",
            );
            return None;
        }
        let berth = Path::new(common::BERTH);
        let images = testkit::images_of(
            berth,
            &common::cache(),
            "debian-vm-1",
            &[&machine::agent()],
            |daemon| {
                let words = [
                    "image", "build", "--recipe", "debian", "--vm", "--name", "debian",
                ];
                let words = [&words[..], &["--suite", "bookworm", "--package", PACKAGES]].concat();
                daemon.berth(&words).map(drop)
            },
        );
        let images = match images {
            Ok(images) => images,
            Err(error) => {
                testkit::skip(test, &format!("no Debian can be made here: {error:#}"));
                return None;
            }
        };
        let programs = programs(berth, &runtime);
        let mut daemon = common::bare(test, &[])?;
        daemon.lend_images(&images).unwrap();
        daemon.restart().unwrap();
        let folder = format!("{}:/host:ro", programs.path().display());
        let launch = [
            "launch", "--vm", "--memory", "1G", "--cpus", "2", "--name", "host",
        ];
        let rest = ["--timeout", "300", "-v", &folder, "debian"];
        daemon.berth(&[&launch[..], &rest].concat()).unwrap();
        Some(Self {
            daemon,
            _programs: programs,
        })
    }

    fn run(&self, script: &str) -> Said {
        let words = ["exec", "host", "bash", "-c", script];
        self.daemon.run(&words).unwrap()
    }

    /// The output of a script that has to end well.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let said = self.run(script);
        let journal = match said.code {
            0 => String::new(),
            _ => {
                self.run("systemctl status berth; journalctl -u berth -n 50")
                    .out
            }
        };
        assert_eq!(said.code, 0, "{script}: {said:?}\n{journal}");
        said.out.trim_end().to_owned()
    }

    /// Waits until a script says something.
    #[track_caller]
    fn until(&self, script: &str, wanted: &str) {
        common::until_so(script, || self.run(script).out.trim_end() == wanted);
    }
}

/// All that is installed, in one folder.
fn programs(berth: &Path, runtime: &Path) -> tempfile::TempDir {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let beside = ["berth-oci", "berth-vmm", "berth-agent"].map(|it| runtime.with_file_name(it));
    for program in beside.iter().map(PathBuf::as_path).chain([berth]) {
        let to = place.path().join(program.file_name().unwrap());
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(&to).arg(program);
        assert!(strip.status().unwrap().success(), "{strip:?}");
    }
    let units = place.path().join("systemd");
    fs::create_dir(&units).unwrap();
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd");
    for unit in fs::read_dir(ours).unwrap().flatten() {
        fs::copy(unit.path(), units.join(unit.file_name())).unwrap();
    }
    // The guest's root looks at it as root of the host does; others there need not.
    place
}

const PROPERTY: &str = "systemctl show berth.service --value -p";
const FETCH: &str = "busybox wget -qO- http://127.0.0.1:8080/hostname";
const FETCH_6: &str = "busybox wget -qO- 'http://[::1]:8080/hostname'";

#[test]
fn a_real_systemd_starts_watches_and_replaces_the_daemon_and_guests_do_not_notice() {
    let Some(host) = Host::new("a_real_systemd_starts_watches_and_replaces_the_daemon") else {
        return;
    };
    host.sh(INSTALL);
    // Nothing runs until somebody asks; then it is ready when systemd says so.
    assert_eq!(host.run("systemctl is-active berth").out, "inactive\n");
    assert_eq!(
        host.sh("stat -c %a:%U:%G /run/berth/berth.sock"),
        "660:root:berth"
    );
    assert_eq!(host.sh("berth list -q"), "");
    assert_eq!(host.sh("systemctl is-active berth"), "active");
    assert_eq!(host.sh(&format!("{PROPERTY} StatusText")), "serving");
    // Of other users, those of the group.
    let other = "setpriv --reuid 1000 --regid 1000";
    assert_eq!(
        host.run(&format!("{other} --clear-groups berth list")).code,
        6
    );
    host.sh(&format!(
        "{other} --groups $(getent group berth | cut -d: -f3) berth list"
    ));

    host.sh("berth image build --recipe busybox");
    let serve = "berth run -d --name web --memory 64M -p 8080:80 busybox httpd -f -p 80 -h /etc";
    host.sh(serve);
    host.until(FETCH, "web");
    assert_eq!(host.sh(FETCH_6), "web");
    let pid = host.sh("berth inspect web | grep -m1 '\"pid\"' | tr -dc 0-9");
    let limit = format!("cat /sys/fs/cgroup$(cut -d: -f3 /proc/{pid}/cgroup)/memory.max");
    assert_eq!(host.sh(&limit), "67108864");
    // Its shim is none of the service's processes, of which systemd would complain.
    let unit = host.sh(&format!("{PROPERTY} ControlGroup"));
    let members = format!("cat /sys/fs/cgroup{unit}/cgroup.procs");
    assert_eq!(host.sh(&members), host.sh(&format!("{PROPERTY} MainPID")));
    let shim = host.sh("pgrep -x berth-oci | xargs -I{} cut -d: -f3 /proc/{}/cgroup");
    assert_eq!(shim, "/berth-shims");
    let still = |what: &str| {
        let runs = host.sh("berth inspect web | grep -m1 '\"pid\"' | tr -dc 0-9");
        assert_eq!(runs, pid, "{what}");
        host.until(FETCH, "web");
    };

    host.sh("systemctl restart berth");
    still("restarted");
    let main = host.sh(&format!("{PROPERTY} MainPID"));
    host.sh("systemctl kill -s KILL --kill-who main berth");
    host.until(
        &format!("[ $({PROPERTY} MainPID) != {main} ] && systemctl is-active berth"),
        "active",
    );
    still("killed");
    assert_eq!(host.sh(&format!("{PROPERTY} NRestarts")), "1");

    // Stopped, replaced by another build, and started by the next who asks.
    host.sh("systemctl stop berth.socket berth.service");
    host.sh(&format!("kill -0 {pid}"));
    assert_eq!(host.sh(FETCH), "web", "what is published stays so");
    host.sh(
        "install -m 0755 /host/berth /host/berth-oci /usr/bin/ && systemctl start berth.socket",
    );
    still("upgraded");

    // The journal knows what matters how much, and of nothing left behind.
    let of_systemd = host.sh("journalctl -b -o cat _PID=1 UNIT=berth.service");
    assert!(of_systemd.contains("Stopped"), "{of_systemd}");
    for complaint in ["left-over process", "remains running"] {
        assert!(!of_systemd.contains(complaint), "{of_systemd}");
    }
    let said = host.sh("journalctl -u berth -p info -o cat");
    assert!(
        said.contains("listening") && !said.contains("<6>"),
        "{said}"
    );
    let worse = host.sh("journalctl -u berth -p warning -o cat _COMM=berth");
    assert!(!worse.contains("listening"), "{worse}");
    let failed = host.sh("systemctl --failed --plain --no-legend | grep berth || true");
    assert_eq!(failed, "");

    host.sh("berth rm -f web && systemctl stop berth.socket berth.service");
    let left = "pgrep -x 'berth|berth-oci'; ip -o link show type veth; ls /sys/fs/cgroup/berth | grep -v '[.]'";
    let left = host.run(left).out;
    assert_eq!(left, "");
    host.daemon.berth(&["rm", "-f", "host"]).unwrap();
}

/// A profile, loaded, and a bundle whose program shows what it is confined by, and tries what is denied.
/// Without `signal` nobody could end what it confines.
const CONFINED: &str = r##"set -e
    cat > /tmp/profile <<'END'
profile berth-test flags=(attach_disconnected,mediate_deleted) {
    file,
    capability,
    signal,
    deny /tmp/denied w,
}
END
    apparmor_parser -a /tmp/profile
    cd / && mkdir -p b/rootfs/bin b/rootfs/proc b/rootfs/dev b/rootfs/sys b/rootfs/tmp && cd b
    cp /bin/busybox rootfs/bin/
    for name in sh cat touch sleep; do ln -s busybox rootfs/bin/$name; done
    cat > rootfs/look <<'END'
cat /proc/self/attr/current
touch /tmp/allowed && echo allowed
touch /tmp/denied || echo denied
END
    echo 'exec sleep 1000' > rootfs/stay
    berth-oci spec
    sed -i -e 's/"terminal": true/"terminal": false, "apparmorProfile": "berth-test"/' \
        -e 's/"readonly": true/"readonly": false/' -e 's#"sh"#"sh", "/look"#' config.json"##;

const AS_CONFINED: &str = "berth-test (enforce)\nallowed\ndenied\n";

#[test]
#[ignore = "starts a Debian of its own on the software CPU: minutes"]
fn apparmor_confines_a_container_and_what_is_executed_in_it() {
    let Some(host) = Host::new("apparmor_confines_a_container") else {
        return;
    };
    host.sh(INSTALL);
    let enabled = "cat /sys/module/apparmor/parameters/enabled";
    assert_eq!(host.sh(enabled), "Y");
    host.sh(CONFINED);
    let said = host.run("cd /b && berth-oci run one");
    assert_eq!(said.out, AS_CONFINED, "{said:?}");

    // What exec runs is confined as its container is, unless it asks for another profile.
    host.sh("cd /b && sed -i s#/look#/stay# config.json");
    host.sh("cd /b && berth-oci run -d two > /dev/null 2>&1 < /dev/null");
    let said = host.run("berth-oci exec two sh /look");
    assert_eq!(said.out, AS_CONFINED, "{said:?}");
    // One that is not loaded is no reason to run unconfined.
    let refused = |said: &Said| {
        assert_ne!(said.code, 0, "{said:?}");
        assert!(!said.out.contains("allowed"), "{said:?}");
        for word in ["apparmorProfile", "nowhere"] {
            assert!(said.err.contains(word), "{said:?}");
        }
    };
    refused(&host.run("berth-oci exec --apparmor nowhere two sh /look"));
    host.sh("berth-oci delete -f two");
    host.sh("cd /b && sed -i -e s/berth-test/nowhere/ -e s#/stay#/look# config.json");
    refused(&host.run("cd /b && berth-oci run one"));
    assert_eq!(host.sh("berth-oci list -q"), "", "nothing is left");
    host.daemon.berth(&["rm", "-f", "host"]).unwrap();
}
