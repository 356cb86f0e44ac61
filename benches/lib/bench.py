"""What every bench shares: rows, medians side by side, a network namespace, and the final table.

A bench measures Berth and its peers in the same run, because timings differ between machines and
hours; what it claims are ratios. Nothing it makes is left behind.
"""

import contextlib
import datetime
import http.client
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Row:
    """One measurement. `peer` is empty where a figure stands for itself. A bench with other columns has a class with
    `HEAD`, `cells` and `record` of its own."""

    HEAD = "| measurement | unit | Berth | peer | which | ratio | wanted |\n|---|---|---:|---:|---|---:|---|"

    name: str
    unit: str
    berth: float
    peer: float | None = None
    peer_name: str = ""
    target: str = ""

    @property
    def ratio(self):
        return self.berth / self.peer if self.peer else None

    def cells(self):
        return [self.name, self.unit, number(self.berth), number(self.peer), self.peer_name, number(self.ratio),
                self.target]

    def record(self):
        return {**asdict(self), "ratio": self.ratio}


def say(text):
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(command, **options):
    """Runs a command that must succeed; its output, stripped."""
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True, **options)
    if done.returncode != 0:
        words = " ".join(str(word) for word in command)
        raise SystemExit(f"error: {words} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def compile_c(source, out):
    """Compiles a static program."""
    run(["gcc", "-O2", "-static", "-o", out, source])


def medians_ms(commands, runs, warmup=3, wrapper=()):
    """Median milliseconds of each of some commands, by hyperfine, without a shell. The runs are dealt out
    in rounds, so that a noisy minute falls on all of them alike."""
    rounds = max(1, min(10, runs // 5))
    times = [[] for _ in commands]
    for _ in range(rounds):
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            run([*wrapper, "hyperfine", "--shell=none", f"--warmup={warmup}", f"--runs={-(-runs // rounds)}",
                 "--export-json", out.name, *commands])
            for result, taken in zip(json.load(open(out.name))["results"], times):
                taken.extend(result["times"])
    return [statistics.median(taken) * 1000 for taken in times]


def alternating(rounds, *actions):
    """Median seconds of each action, done in turn so that all see the same noise."""
    times = [[] for _ in actions]
    for _ in range(rounds):
        for action, taken in zip(actions, times):
            taken.append(action())
    return [statistics.median(taken) for taken in times]


def timed(action):
    """Seconds that an action takes."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


@contextlib.contextmanager
def workspace():
    """A directory of this bench's own on a disk file system."""
    path = Path(tempfile.mkdtemp(prefix="berth-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp")))
    try:
        yield path
    finally:
        for mount in sorted(mounts_below(path), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
        shutil.rmtree(path, ignore_errors=True)


def mounts_below(path):
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(str(path))]


@contextlib.contextmanager
def network_namespace():
    """A network namespace with loopback; its path. Peers leave rules behind, so they run in it."""
    name = f"berth-bench-{os.getpid()}"
    run(["ip", "netns", "add", name])
    try:
        run(["ip", "-n", name, "link", "set", "lo", "up"])
        yield Path("/run/netns") / name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def inside(netns, command):
    """The command, run in a network namespace, as words."""
    return ["nsenter", f"--net={netns}", *[str(word) for word in command]]


@contextlib.contextmanager
def v1_view(directory):
    """Where the host has control groups v1 and v2 side by side: a command prefix that enters a mount
    namespace in which only v1 is seen, because crun refuses a mix. Elsewhere nothing."""
    tree = Path("/sys/fs/cgroup")
    if (tree / "cgroup.controllers").exists() or not (tree / "unified").exists():
        yield []
        return
    binds = " ".join(entry.name for entry in sorted(tree.iterdir()) if entry.is_dir() and entry.name != "unified")
    script = f"""set -e
        mkdir -p {directory}; mount -t tmpfs cgroups {directory}
        for name in {binds}; do mkdir {directory}/$name; mount --bind /sys/fs/cgroup/$name {directory}/$name; done
        mount --rbind {directory} /sys/fs/cgroup
        echo ready
        exec sleep infinity"""
    holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                              stdout=subprocess.PIPE, text=True)
    try:
        if holder.stdout.readline() != "ready\n":
            raise SystemExit("error: no mount namespace with control groups v1 only")
        yield ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt"]
    finally:
        holder.kill()
        holder.wait()


@contextlib.contextmanager
def background(command, log, ready, what, seconds=30, **options):
    """A process that is there once `ready` says so, and is ended after."""
    with open(log, "ab") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=out,
                                   stdin=subprocess.DEVNULL, **options)
    try:
        deadline = time.monotonic() + seconds
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(Path(log).read_text(errors="replace").splitlines()[-5:])
                raise SystemExit(f"error: {what} did not start:\n{tail}")
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Api(http.client.HTTPConnection):
    """The daemon's API over its Unix socket."""

    def __init__(self, path):
        super().__init__("berth", timeout=120)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def call(self, method, path, body=None):
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = self.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise SystemExit(f"error: {method} {path}: {data.decode(errors='replace')}")
        return json.loads(data) if data else None


def remove_groups(name):
    """Removes the empty control groups of a daemon of this prefix, at the top of each hierarchy."""
    tops = [top / own for top in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir())
            for own in (name, f"{name}-shims")]
    for group in filter(Path.is_dir, tops):
        for path in [*sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True), group]:
            with contextlib.suppress(OSError):
                path.rmdir()


def pss_kib(pid):
    """Proportional set size of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def rss_kib(pid):
    """Resident set size of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def cpu_seconds(pid):
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processes(matches):
    """Process ids whose command line matches."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if matches([word.decode(errors="replace") for word in words if word]):
                    found.append(int(entry.name))
    return found


def number(value):
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} × {model}, {memory:.0f} GiB, Linux {platform.release()}"


def table(rows):
    """Markdown."""
    return "\n".join([rows[0].HEAD, *["| " + " | ".join(row.cells()) + " |" for row in rows]])


def publish(title, notes, rows, versions, path, load=None):
    """Prints the rows, as JSON with `--json`, and else makes them the section `title` of the page `path` too. `load`
    is the machine's load average when the bench began, before it made its own."""
    if "--json" in sys.argv:
        for row in rows:
            print(json.dumps(row.record()))
        return
    print(table(rows))
    if path is None:
        return
    today = datetime.datetime.now(datetime.timezone.utc).date()
    busy = "" if load is None else f" Load average before: {load:.1f}."
    peers = "\n".join(f"- {version}" for version in versions)
    section = (f"## {title}\n\nMeasured {today} on {machine()}.{busy}\n\n{table(rows)}\n\n{notes}\n\n"
               f"Peers:\n{peers}\n")
    path = Path(path)
    old = path.read_text().split("\n## ")[1:] if path.exists() else []
    sections = {text.partition("\n")[0]: f"## {text.rstrip()}\n" for text in old}
    path.write_text("\n".join([PAGE, *{**sections, title: section}.values()]))
    say(f"written: {path}")


PAGE = """# Performance

By `scripts/bench`; each bench rewrites its section. Medians; all of one run, side by side: absolute figures differ
between machines and hours, ratios much less.
"""
