//! What a machine's disk and network card carry, and where its vCPUs run: as asked, changed while it
//! runs, and kept over what it goes through.

use std::collections::BTreeMap;

use testkit::Daemon;

use crate::{common::until_so, machine};

/// What is carried, in seconds' worth of the limit.
const SECONDS: u64 = 3;
const RATE: &str = "1M";

/// A machine `box` and a container `peer` that have something for each other.
struct Pair(Daemon);

impl Pair {
    fn inside(&self, name: &str, script: &str) -> String {
        let said = self.0.run(&["exec", name, "sh", "-c", script]).unwrap();
        assert_eq!(said.code, 0, "{name}: {script}: {said:?}");
        said.out.trim().to_owned()
    }

    fn serve(&self, name: &str) {
        let file = format!("dd if=/dev/zero of=/srv/file bs=1M count={SECONDS} 2>/dev/null");
        self.inside(name, &format!("mkdir -p /srv; {file}; httpd -p 80 -h /srv"));
    }

    /// How long a script takes by the clock of where it runs: no command on the way counts.
    fn seconds(&self, name: &str, script: &str) -> f64 {
        let clock = "read now rest < /proc/uptime; echo $now";
        let said = self.inside(name, &format!("set -e; {clock}; {script}; {clock}"));
        let mut times = said.lines().map(|line| line.parse::<f64>().unwrap());
        let (from, to) = (times.next().unwrap(), times.next().unwrap());
        to - from
    }

    fn reads(&self) -> f64 {
        let read = format!(
            "dd if=/root/file of=/dev/null bs=64k count={}",
            SECONDS * 16
        );
        self.inside("box", "sync; echo 3 > /proc/sys/vm/drop_caches");
        self.seconds("box", &format!("{read} 2>/dev/null"))
    }

    fn writes(&self) -> f64 {
        let write = format!(
            "dd if=/dev/zero of=/root/file bs=64k count={}",
            SECONDS * 16
        );
        self.seconds("box", &format!("{write} conv=fsync 2>/dev/null"))
    }

    /// To a folder of the host, past the guest's page cache.
    fn shares(&self) -> f64 {
        let write = format!(
            "dd if=/dev/zero of=/host/file bs=64k count={}",
            SECONDS * 16
        );
        self.seconds("box", &format!("{write} conv=fsync 2>/dev/null"))
    }

    fn receives(&self) -> f64 {
        self.seconds("box", "wget -q -O /dev/null http://peer/file")
    }

    fn sends(&self) -> f64 {
        self.seconds("peer", "wget -q -O /dev/null http://box/file")
    }

    /// What each way of carrying takes.
    fn all(&self) -> BTreeMap<&'static str, f64> {
        let (write, read) = (self.writes(), self.reads());
        let all = [
            ("write", write),
            ("read", read),
            ("share", self.shares()),
            ("receive", self.receives()),
            ("send", self.sends()),
        ];
        all.into()
    }
}

/// The least that carrying it all takes under the limit. A tenth of a second's worth goes at once,
/// and as much more may be on its way or cached.
const LEAST: f64 = SECONDS as f64 - 0.5;

#[test]
fn a_machines_disk_and_network_are_as_fast_as_they_may_be() {
    let Some(daemon) = machine::daemon("a_machines_disk_and_network_are_as_fast_as_they_may_be")
    else {
        return;
    };
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let volume = format!("{}:/host", folder.path().display());
    let launch = ["launch", "--vm", "--memory", "128M", "--name", "box"];
    let launch = [&launch[..], &["--volume", &volume, "busybox"]].concat();
    daemon.berth(&launch).unwrap();
    let peer = ["run", "-d", "--name", "peer", "busybox", "sleep", "10000"];
    daemon.berth(&peer).unwrap();
    let pair = Pair(daemon);
    pair.serve("box");
    pair.serve("peer");
    let free = pair.all();

    // In force when the command returns, without a restart.
    let pid = pair.0.inspect("box").unwrap()["pid"].clone();
    let mut limit = vec!["set", "box"];
    for flag in [
        "--io-read-bps",
        "--io-write-bps",
        "--net-ingress-bps",
        "--net-egress-bps",
    ] {
        limit.extend([flag, RATE]);
    }
    pair.0.berth(&limit).unwrap();
    let shown = pair.0.inspect("box").unwrap();
    assert_eq!(shown["pid"], pid);
    assert_eq!(shown["spec"]["net"]["egress_bps"], RATE);
    let said = pair.0.berth(&["show", "box"]).unwrap();
    assert!(said.contains("1M out"), "{said}");
    let slow = pair.all();
    eprintln!("seconds: {free:.2?} free, {slow:.2?} limited");
    for (way, seconds) in &slow {
        assert!(*seconds > LEAST, "{way}: {slow:?}");
        assert!(
            *seconds > 2.0 * free[way],
            "{way}: {slow:?} against {free:?}"
        );
    }

    // The guest boots again by itself, and later as a whole: the limits stay.
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let before = pair.inside("box", boot);
    pair.0.run(&["exec", "box", "reboot", "-f"]).unwrap();
    until_so("it has booted again", || {
        let said = pair.0.run(&["exec", "box", "sh", "-c", boot]).unwrap();
        said.code == 0 && said.out.trim() != before
    });
    assert_eq!(pair.0.inspect("box").unwrap()["pid"], pid);
    let seconds = pair.reads();
    assert!(seconds > LEAST, "{seconds}");
    pair.0.berth(&["restart", "box"]).unwrap();
    let seconds = pair.reads();
    assert!(seconds > LEAST, "{seconds}");

    // A change while it stands still holds when it goes on.
    pair.0.berth(&["pause", "box"]).unwrap();
    let lift = "set box io.read_bps= io.write_bps= net.ingress_bps= net.egress_bps=";
    pair.0.berth(&lift.split(' ').collect::<Vec<_>>()).unwrap();
    pair.0.berth(&["resume", "box"]).unwrap();
    pair.serve("box");
    let lifted = pair.all();
    for (way, seconds) in &lifted {
        assert!(
            *seconds * 2.0 < slow[way],
            "{way}: {lifted:?} against {slow:?}"
        );
    }

    let refused = ["run", "--rm", "--net-egress-bps", "1M", "busybox", "true"];
    let refused = pair.0.run(&refused).unwrap();
    assert!(
        refused.code != 0 && refused.err.contains("net:"),
        "{refused:?}"
    );
    pair.0.berth(&["rm", "-f", "box", "peer"]).unwrap();
}

/// The CPUs of the host that each vCPU of a machine may run on.
fn affinity(daemon: &Daemon) -> BTreeMap<String, String> {
    let front = daemon.inspect("box").unwrap()["pid"].as_u64().unwrap();
    let process = machine::child_of(machine::child_of(front));
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let allowed = tasks.filter_map(|task| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().to_owned()
        };
        let name = field("Name:");
        name.starts_with("vcpu")
            .then(|| (name, field("Cpus_allowed_list:")))
    });
    allowed.collect()
}

#[test]
fn vcpus_run_where_they_are_told_and_share_as_told() {
    let test = "vcpus_run_where_they_are_told_and_share_as_told";
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return testkit::skip(test, "it takes two CPUs to run on the other");
    }
    let Some(daemon) = machine::daemon(test) else {
        return;
    };
    let start = "run -d --vm --memory 128M --network none --cpus 2 --cpuset 0-1 --name box busybox";
    let start = start.split(' ').chain(["sleep", "10000"]);
    daemon.berth(&start.collect::<Vec<_>>()).unwrap();
    let where_they_run = |first: &str, second: &str| {
        let each = [("vcpu0", first), ("vcpu1", second)];
        let each = each.map(|(name, cpus)| (name.to_owned(), cpus.to_owned()));
        assert_eq!(affinity(&daemon), each.into());
    };
    daemon.berth(&["exec", "box", "true"]).unwrap();
    where_they_run("0", "1");
    daemon.berth(&["set", "box", "--cpuset", "1"]).unwrap();
    where_they_run("1", "1");
    daemon.berth(&["set", "box", "--cpuset", "0,1"]).unwrap();
    where_they_run("0", "1");
    daemon.berth(&["set", "box", "cpu_set="]).unwrap();
    let all = affinity(&daemon);
    assert!(all.values().all(|cpus| cpus.contains("0-")), "{all:?}");
    assert_eq!(daemon.run(&["exec", "box", "nproc"]).unwrap().out, "2\n");

    // Shares and caps are its control group's, of which there are two kinds.
    let id = daemon.inspect("box").unwrap()["id"].clone();
    let id = id.as_str().unwrap();
    let change = "set box --cpus 1.5 --cpu-weight 50";
    daemon
        .berth(&change.split(' ').collect::<Vec<_>>())
        .unwrap();
    let seen = |file| crate::limits::control(&daemon, id, "cpu", file);
    if std::path::Path::new("/sys/fs/cgroup/cpu").exists() {
        assert_eq!(seen("cpu.cfs_quota_us"), "150000");
        // The usual weight is 1024 shares.
        assert!(seen("cpu.shares").parse::<u32>().unwrap() < 600);
    } else {
        assert_eq!(seen("cpu.max"), "150000 100000");
        assert_eq!(seen("cpu.weight"), "50");
    }
    daemon.berth(&["rm", "-f", "box"]).unwrap();
}
