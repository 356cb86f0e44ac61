"""Containers: the runtime command, the daemon end to end, images, and what idle ones cost.

    scripts/bench containers [--json] [PART...]      parts: oci run many idle pull list

BENCH_IDLE (500), BENCH_RECORDED (5000) and BENCH_RUNS (50) make it smaller.
"""

import concurrent.futures
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from lib.bench import (Row, alternating, background, compile_c, cpu_seconds, inside, medians_ms, network_namespace,
                       processes, pss_kib, publish, rss_kib, run, say, timed, v1_view, workspace)
from lib.daemon import BIN, Daemon

HOUSE = Path(__file__).resolve().parent.parent
RUNS = int(os.environ.get("BENCH_RUNS", 50))
IDLE = int(os.environ.get("BENCH_IDLE", 500))
RECORDED = int(os.environ.get("BENCH_RECORDED", 5000))
REGISTRY = "127.0.0.1:5000"
# Enters what peers need to see of the host; set once by main.
VIEW = []
PARTS = ["oci", "run", "many", "idle", "pull", "list"]


class Podman:
    """Podman with storage of its own, in the bench's network namespace."""

    def __init__(self, directory, netns):
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "containers.conf"
        # This machine's hard limit of open files may be below podman's default for containers.
        config.write_text('[containers]\ndefault_ulimits=["nofile=1024:20000","nproc=4096:4096"]\n')
        self.env = {**os.environ, "CONTAINERS_CONF": str(config)}
        self.command = inside(netns, [*VIEW, "podman", "--root", directory / "storage", "--runroot", directory / "run",
                                      "--cgroup-manager=cgroupfs", "--runtime=crun", "--log-level=error"])

    def __call__(self, *words):
        return run([*self.command, *words], env=self.env)

    def remove_all(self):
        self("rm", "--all", "--force", "--time=0")


def bundle(directory, rootfs, seccomp):
    """A bundle that runs a static `true`, with the usual filter or without one."""
    directory.mkdir()
    run(["crun", "spec"], cwd=directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["process"].update(terminal=False, args=["/bin/true"])
    config["root"] = {"path": str(rootfs), "readonly": False}
    config["linux"].pop("seccomp", None)
    if seccomp:
        held = set(config["process"]["capabilities"]["bounding"])
        config["linux"]["seccomp"] = default_filter(held)
    path.write_text(json.dumps(config))
    return directory


def default_filter(held):
    """The profile that podman ships, as the runtime specification writes it."""
    profile = json.loads(Path("/usr/share/containers/seccomp.json").read_text())
    rules = []
    for rule in profile["syscalls"]:
        wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
        if not set(wanted.get("caps", [])) <= held or set(unwanted.get("caps", [])) & held:
            continue
        if wanted.get("arches") and "amd64" not in wanted["arches"] or "amd64" in unwanted.get("arches", []):
            continue
        rule = {key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key)}
        rules.append(rule)
    return {"defaultAction": profile["defaultAction"], "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules}


def oci(work, _netns):
    say("the runtime command")
    rootfs = work / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    source = work / "true.c"
    source.write_text("int main(void) { return 0; }\n")
    compile_c(source, rootfs / "bin" / "true")
    compile_c(HOUSE / "benches/lib/floor.c", work / "floor")
    rows = []
    for seccomp, wanted in ((False, "≤ 0.6"), (True, "≤ 0.25")):
        made = bundle(work / f"bundle-{seccomp}", rootfs, seccomp)
        commands = [f"{BIN}/berth-oci --root {work}/oci-berth run -b {made} bench",
                    f"crun --root {work}/oci-crun run -b {made} bench",
                    f"{work}/floor {rootfs} /bin/true"]
        berth, crun, floor = medians_ms(commands, RUNS, wrapper=VIEW)
        name = "OCI run of a static true, " + ("default seccomp profile" if seccomp else "no seccomp")
        rows.append(Row(name, "ms", berth, crun, "crun", wanted))
        if not seccomp:
            rows.append(Row(name, "ms", berth, floor, "floor program", "≤ 1.7"))
    return rows


def end_to_end(work, netns):
    say("run --rm, end to end")
    podman = Podman(work / "podman", netns)
    daemon = Daemon(work / "berth", netns)
    with daemon.running(), registry(work, netns):
        busybox_for(daemon, podman)
        os.environ["BERTH_HOST"] = daemon.env["BERTH_HOST"]
        os.environ["CONTAINERS_CONF"] = podman.env["CONTAINERS_CONF"]
        commands = [f"{BIN}/berth run --rm busybox true",
                    shlex.join([*podman.command, "run", "--rm", f"{REGISTRY}/busybox", "true"])]
        berth, peer = medians_ms(commands, RUNS)
        return [Row("run --rm true, with bridge and address", "ms", berth, peer, "podman", "≤ 0.12, ≤ 30 ms")]


def many(work, netns):
    say("a hundred at once")
    podman = Podman(work / "podman", netns)
    daemon = Daemon(work / "berth", netns)

    def loop(one, remove):
        taken = timed(lambda: [one() for _ in range(100)])
        remove()
        return taken

    def parallel(one, remove):
        def all_at_once():
            with concurrent.futures.ThreadPoolExecutor(100) as pool:
                for done in [pool.submit(one) for _ in range(100)]:
                    done.result()
        taken = timed(all_at_once)
        remove()
        return taken

    with daemon.running(), registry(work, netns):
        busybox_for(daemon, podman)
        ours = lambda: daemon.berth("run", "-d", "busybox", "sleep", "1000")
        theirs = lambda: podman("run", "-d", f"{REGISTRY}/busybox", "sleep", "1000")
        rows = []
        for name, way, wanted in (("100 × run -d, one after another", loop, "≤ 0.2"),
                                  ("100 × run -d, all at once", parallel, "")):
            berth, peer = alternating(3, lambda: way(ours, daemon.remove_all), lambda: way(theirs, podman.remove_all))
            rows.append(Row(name, "s", berth, peer, "podman", wanted))
        return rows


def idle(work, netns):
    say(f"{IDLE} idle containers")
    podman = Podman(work / "podman", netns)
    daemon = Daemon(work / "berth", netns)
    with daemon.running(), registry(work, netns):
        busybox_for(daemon, podman)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: daemon.berth("run", "-d", "busybox", "sleep", "100000"), range(IDLE)))
        time.sleep(10)
        before = cpu_seconds(daemon.pid)
        time.sleep(20)
        percent = (cpu_seconds(daemon.pid) - before) / 20 * 100
        resident = rss_kib(daemon.pid) / 1024
        shims = processes(lambda words: len(words) > 1 and "berth" in words[0] and "shim" in words[:2]
                          and any(str(work) in word for word in words))
        shim = sum(map(pss_kib, shims)) / max(1, len(shims)) / 1024
        few = 20
        for _ in range(few):
            podman("run", "-d", f"{REGISTRY}/busybox", "sleep", "100000")
        monitors = processes(lambda words: words[:1] and words[0].endswith("conmon") and any(str(work) in word for word in words))
        monitor = sum(map(pss_kib, monitors)) / max(1, len(monitors)) / 1024
        podman.remove_all()
        say(f"{len(shims)} shims, {len(monitors)} conmons")
        return [Row(f"shim, PSS each, with {IDLE} idle", "MiB", shim, monitor, f"conmon ({few} idle)", "≤ 0.6 MiB"),
                Row(f"daemon, resident, with {IDLE} idle", "MiB", resident, target="≤ 40"),
                Row(f"daemon, processor, with {IDLE} idle", "% CPU", percent, target="≤ 0.5")]


def pull(work, netns):
    say("pull and unpack a Debian image")
    maker = Daemon(work / "maker", netns, "bm")
    # Made without Berth, because it needs the host's network and a daemon there would leave its rules.
    # BENCH_IMAGE names a file to keep it in, which saves making it at every run.
    archive = Path(os.environ.get("BENCH_IMAGE", work / "debian.tar"))
    if not archive.exists():
        run(["mmdebstrap", "--variant=minbase", "bookworm", archive])
    with registry(work, netns):
        with maker.running():
            maker.berth("image", "import", str(archive), "debian")
            maker.berth("image", "push", "debian", f"{REGISTRY}/debian")

        rounds = iter(range(1000))

        def ours():
            fresh = Daemon(work / f"pull-{next(rounds)}", netns, "bp")
            with fresh.running():
                return timed(lambda: fresh.berth("image", "pull", f"{REGISTRY}/debian"))

        def theirs():
            fresh = Podman(work / f"pull-{next(rounds)}", netns)
            return timed(lambda: fresh("pull", "--quiet", "--tls-verify=false", f"{REGISTRY}/debian"))

        berth, peer = alternating(5, ours, theirs)
        return [Row("pull and unpack Debian from a local registry", "s", berth, peer, "podman", "≤ 0.5")]


def listing(work, netns):
    say(f"list with {RECORDED} instances recorded")
    daemon = Daemon(work / "berth", netns)
    with daemon.running():
        daemon.berth("image", "build", "--recipe", "busybox", "--name", "busybox")

        def make(count):
            api = daemon.api()
            for _ in range(count):
                api.call("POST", "/v1/instances", {"desired": "stopped", "spec": {"image": "busybox", "network": "none"}})

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(make, [RECORDED // 8] * 8))
        os.environ["BERTH_HOST"] = daemon.env["BERTH_HOST"]
        [berth] = medians_ms([f"{BIN}/berth list -o name"], RUNS)
        return [Row(f"list with {RECORDED} instances recorded", "ms", berth, target="≤ 50 ms")]


@contextlib.contextmanager
def registry(work, netns):
    """Debian's docker-registry in the namespace, without TLS."""
    storage = work / "registry"
    config = work / "registry.yml"
    config.write_text(f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
                      f"http: {{addr: '{REGISTRY}'}}\n")
    ready = lambda: subprocess.run(inside(netns, ["curl", "-fs", f"http://{REGISTRY}/v2/"]), check=False,
                                   capture_output=True).returncode == 0
    with background(inside(netns, ["docker-registry", "serve", config]), work / "registry.log", ready, "docker-registry"):
        yield


def busybox_for(daemon, podman):
    """The same image for both."""
    daemon.berth("image", "build", "--recipe", "busybox", "--name", "busybox")
    daemon.berth("image", "push", "busybox", f"{REGISTRY}/busybox")
    podman("pull", "--quiet", "--tls-verify=false", f"{REGISTRY}/busybox")


def versions():
    first = lambda words: run(words).splitlines()[0]
    return [first(["crun", "--version"]), first(["podman", "--version"]),
            f"docker-registry {run(['dpkg-query', '-W', '-f=${Version}', 'docker-registry'])}"]


NOTES = """The floor program (`benches/lib/floor.c`) does only the system calls that make a container: namespaces, mounts,
device nodes, masks, pivot_root, one control group in each hierarchy. Peers run in a network namespace of the bench's own."""


def main():
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")] or PARTS
    measure = dict(zip(PARTS, [oci, end_to_end, many, idle, pull, listing]))
    unknown = [word for word in wanted if word not in measure]
    if unknown:
        raise SystemExit(f"error: there is no part {unknown[0]}: there are {', '.join(PARTS)}")
    if os.geteuid() != 0:
        raise SystemExit("error: containers need root: run it with sudo")
    # Ended from outside, it cleans up all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Asked first: the parts leave an environment behind that only their peers understand.
    peers = versions()
    rows = []
    with network_namespace() as netns, workspace() as ours, v1_view(ours / "cgroups") as view:
        VIEW.extend(view)
        for part in wanted:
            with workspace() as work:
                rows += measure[part](work, netns)
    if wanted == PARTS:
        publish("Containers", NOTES, rows, peers, HOUSE / "docs/PERFORMANCE.md")
    else:
        publish("", "", rows, [], None)


if __name__ == "__main__":
    main()
