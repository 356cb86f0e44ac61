//! What a machine's disk and network card carry, and where its vCPUs run: as asked, changed while it
//! runs, and kept over what it goes through.

use std::collections::BTreeMap;

use testkit::Daemon;

use crate::{
    common::{self, until_so},
    machine,
};

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

    pair.0.berth(&["rm", "-f", "box", "peer"]).unwrap();
}

/// What a container carries, in MB, and how much of that goes at once: a second's worth and a burst.
const CONTAINER_MB: u64 = 4;
const AT_ONCE: f64 = 1.2;

/// A container `box` that may carry `RATE`, its neighbour `peer`, and a server on the host.
struct Containers {
    daemon: Daemon,
    host: u16,
}

impl Containers {
    fn inside(&self, name: &str, script: &str) -> String {
        let said = self.daemon.run(&["exec", name, "sh", "-c", script]);
        let said = said.unwrap();
        assert_eq!(said.code, 0, "{name}: {script}: {said:?}");
        said.out.trim().to_owned()
    }

    /// Asserts that a script carried all there is, and no faster than it may.
    fn carries_slowly(&self, what: &str, name: &str, script: &str) {
        let clock = "read now rest < /proc/uptime; echo $now";
        let said = self.inside(name, &format!("{clock}; {script} | wc -c; {clock}"));
        let mut numbers = said.lines().map(|line| line.parse::<f64>().unwrap());
        let mut next = || numbers.next().unwrap();
        let (from, bytes, to) = (next(), next(), next());
        #[allow(clippy::cast_precision_loss, reason = "a few MB")]
        let (all, seconds) = ((CONTAINER_MB << 20) as f64, to - from);
        assert!(bytes >= all, "{what}: {bytes} of {all}");
        #[allow(clippy::cast_precision_loss, reason = "a few seconds")]
        let least = CONTAINER_MB as f64 - AT_ONCE;
        assert!(seconds > least, "{what}: {seconds} s, not {least}");
    }

    fn all_slowly(&self) {
        let gateway = self.inside(
            "box",
            "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'",
        );
        let host = format!("nc {gateway} {} < /dev/null", self.host);
        self.carries_slowly(
            "receives from a neighbour",
            "box",
            "wget -qO- http://peer/file",
        );
        self.carries_slowly("receives from the host", "box", &host);
        self.carries_slowly("sends", "peer", "wget -qO- http://box/file");
    }

    /// The policing rules in force.
    fn policed(&self) -> usize {
        let rules = self
            .daemon
            .netns()
            .command("nft")
            .args(["list", "ruleset"])
            .output();
        let rules = String::from_utf8(rules.unwrap().stdout).unwrap();
        rules.matches("limit rate over").count()
    }
}

/// Serves as much as containers carry at all addresses of the daemon's namespace; the port.
fn serve_on_host(daemon: &Daemon) -> u16 {
    let listener = daemon
        .netns()
        .run(|| std::net::TcpListener::bind("0.0.0.0:0"));
    let listener = listener.unwrap().unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let all = vec![0; usize::try_from(CONTAINER_MB << 20).unwrap()];
        for stream in listener.incoming() {
            // Who does not take it all notices by itself.
            let _ = std::io::Write::write_all(&mut stream.unwrap(), &all);
        }
    });
    port
}

#[test]
fn a_containers_network_is_as_fast_as_it_may_be() {
    let Some(daemon) = common::daemon("a_containers_network_is_as_fast_as_it_may_be") else {
        return;
    };
    let serve = format!(
        "mkdir -p /srv; dd if=/dev/zero of=/srv/file bs=1M count={CONTAINER_MB} 2>/dev/null; \
         exec httpd -f -p 80 -h /srv"
    );
    let limits = ["--net-ingress-bps", RATE, "--net-egress-bps", RATE];
    for (name, limits) in [("peer", &[][..]), ("box", &limits)] {
        let start = [&["run", "-d", "--name", name][..], limits].concat();
        let program = ["busybox", "sh", "-c", &serve];
        daemon.berth(&[&start[..], &program].concat()).unwrap();
    }
    let host = serve_on_host(&daemon);
    let mut both = Containers { daemon, host };
    let look = "until wget -qO /dev/null http://localhost/file; do sleep 0.1; done";
    both.inside("peer", look);
    both.inside("box", look);
    assert_eq!(both.policed(), 2);
    both.all_slowly();

    // Kept by the next daemon, which need not touch what runs, and by the next run.
    both.daemon.kill();
    both.daemon.restart().unwrap();
    assert_eq!(both.policed(), 2);
    both.daemon.berth(&["restart", "box"]).unwrap();
    both.inside("box", look);
    assert_eq!(both.policed(), 2);
    both.carries_slowly("sends", "peer", "wget -qO- http://box/file");

    // Changed while it runs, in force when the command returns; gone with the container.
    let lift = ["set", "box", "net.ingress_bps=", "net.egress_bps="];
    both.daemon.berth(&lift).unwrap();
    assert_eq!(both.policed(), 0);
    both.daemon
        .berth(&["set", "peer", "--net-egress-bps", RATE])
        .unwrap();
    assert_eq!(both.policed(), 1);
    both.carries_slowly("is sent to", "box", "wget -qO- http://peer/file");
    both.daemon.berth(&["rm", "-f", "peer"]).unwrap();
    assert_eq!(both.policed(), 0);
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
