"""Virtual machines on the software CPU, beside QEMU's microvm on TCG: boots, memory, start, the way to the agent, and
what the guest's processor is good for.

    scripts/bench vm [--json] [PART...]      parts: boot memory launch guest

BENCH_RUNS (5) is how often each boots. Both run the same kernel (the one `berth` makes from Debian's package), the
same initial file system, 512 MiB, one vCPU, the same kernel parameters.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

from lib.bench import Row, compile_c, cpu_seconds, network_namespace, publish, run, say, workspace
from lib.daemon import BIN, Daemon

HOUSE = Path(__file__).resolve().parent.parent
RUNS = int(os.environ.get("BENCH_RUNS", 5))
PARTS = ["boot", "memory", "launch", "guest"]
PATIENCE = 120
MARK = b"INIT-IS-UP"
PARAMETERS = "console=ttyS0 reboot=k panic=-1 tsc=reliable no_timer_check mitigations=off random.trust_cpu=on"
# What berth-vmm says of itself before all others.
OWN_PARAMETERS = "console=ttyS0 reboot=k panic=-1 "
PEER = "QEMU microvm, TCG"
INIT = """#!/bin/busybox sh
echo INIT-IS-UP
while read -r line; do :; done
"""
# Of benches/lib/guest.c: what it is called there, what here, its unit, and how many nanoseconds that is.
TESTS = [("controller", "list, matrix, state machine, crc16", "µs", 1e3), ("sha256", "sha256 of 64 B", "ns", 1),
         ("fib", "fib(30), call and return", "ms", 1e6), ("interpreter", "threaded interpreter, 64 operations", "ns", 1),
         ("matmul", "floating point matrix product 32³", "µs", 1e3), ("memcpy", "memcpy of 1 MiB", "µs", 1e3),
         ("movsb", "rep movsb of 1 MiB", "µs", 1e3), ("getppid", "getppid", "ns", 1),
         ("fault", "anonymous page fault", "µs", 1e3), ("pipe", "pipe round trip between processes", "µs", 1e3),
         ("fork", "fork and exit", "µs", 1e3), ("exec", "vfork and exec", "µs", 1e3)]


class Media:
    """Kernel and initial file systems."""

    def __init__(self, work, netns):
        self.vmlinuz, self.vmlinux = work / "vmlinuz", work / "vmlinux"
        say("the kernel, from Debian's package")
        with vm_daemon(work / "maker", netns).running() as daemon:
            busybox(daemon)
            # The first machine makes the kernel.
            daemon.berth("run", "--rm", "--vm", "--network", "none", "busybox", "true")
            [made] = daemon.root.glob("images/kernels/*/*/vmlinuz")
            shutil.copy(made, self.vmlinuz)
            self.release = json.loads((made.parent / "kernel.json").read_text())["release"]
        # For the daemons to come.
        self.images = daemon.root / "images"
        self.vmlinux.write_bytes(decompressed(self.vmlinuz.read_bytes()))
        self.initrd = work / "initrd"
        self.initrd.write_bytes(archive({"init": INIT.encode(), "bin/busybox": Path("/bin/busybox").read_bytes()}))
        compile_c(HOUSE / "benches/lib/guest.c", work / "guest")
        self.tests = work / "guest"
        self.tests_initrd = work / "tests-initrd"
        self.tests_initrd.write_bytes(archive({"init": self.tests.read_bytes()}))


class Machine:
    """A machine whose serial console we read."""

    def __init__(self, command, name, socket_path=None):
        self.name, self.command, self.control = name, [str(word) for word in command], socket_path
        self.said, self.errors = b"", b""

    @contextlib.contextmanager
    def running(self):
        self.began = time.monotonic()
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        try:
            yield self
        finally:
            self.process.kill()
            _, self.errors = self.process.communicate()

    def until(self, text):
        """Seconds from the start until it said so."""
        out = self.process.stdout
        while text not in self.said:
            ready, _, _ = select.select([out], [], [], max(0, self.began + PATIENCE - time.monotonic()))
            piece = os.read(out.fileno(), 65536) if ready else b""
            if not piece:
                said = self.said.decode(errors="replace")[-2000:]
                raise SystemExit(f"error: {self.name} does not say {text.decode()}; it says:\n{said}")
            self.said += piece
        return time.monotonic() - self.began

    def stats(self):
        """What the control socket of a berth-vmm tells of its use (crates/vmm/src/control/protocol.rs)."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(self.control))
            for request in ({"type": "hello", "version": 1}, {"type": "stats"}):
                data = json.dumps(request).encode()
                stream.sendall(struct.pack("<I", len(data)) + data)
                [length] = struct.unpack("<I", stream.recv(4, socket.MSG_WAITALL))
                reply = json.loads(stream.recv(length, socket.MSG_WAITALL))
        return reply

    def own_mib(self):
        """Memory that the process has for itself: all but the guest's RAM, which is a memory file."""
        kib, own = 0, True
        for line in Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                own = "/memfd:guest-memory" not in line and "/memfd:memory-backend-memfd" not in line
            elif own and line.startswith(("Private_Clean:", "Private_Dirty:")):
                kib += int(line.split()[1])
        return kib / 1024


def berth(work, kernel, initrd):
    control = work / "control"
    control.unlink(missing_ok=True)
    words = [BIN / "berth-vmm", "boot", "--accel", "soft", "--verbose", "--memory", "512M", "--kernel", kernel,
             "--initrd", initrd, "--control", control, "--append", PARAMETERS.removeprefix(OWN_PARAMETERS)]
    return Machine(words, "berth-vmm", control)


def qemu(kernel, initrd):
    words = ["qemu-system-x86_64", "-M", "microvm,memory-backend=ram", "-accel", "tcg", "-cpu", "max", "-m", "512",
             "-object", "memory-backend-memfd,id=ram,size=512M", "-smp", "1", "-nodefaults", "-no-user-config",
             "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
             "-append", f"{PARAMETERS} tsc_early_khz={tsc_khz()}"]
    return Machine(words, "qemu")


def tsc_khz():
    """The guest's clock ticks as the host's. Told so it need not measure, where it stays for ever on a busy host."""
    found = re.search(r"^cpu MHz\s*: ([0-9.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return round(float(found[1]) * 1000)


def boot(work, media, _netns):
    say(f"boots, {RUNS} of each")
    rows = []
    for kind, kernel in (("bzImage", media.vmlinuz), ("vmlinux", media.vmlinux)):
        ours, theirs, our_cpu, their_cpu, speeds, counts, starts = [], [], [], [], [], [], []
        for _ in range(RUNS):
            with berth(work, kernel, media.initrd).running() as machine:
                ours.append(machine.until(MARK))
                our_cpu.append(cpu_seconds(machine.process.pid))
                # What is counted lags behind until the guest waits.
                time.sleep(0.2)
                stats = machine.stats()
            cpu_ns = sum(vcpu["cpu_time_ns"] for vcpu in stats["vcpus"])
            counts.append(stats["instructions"] / 1e6)
            speeds.append(stats["instructions"] * 1e3 / cpu_ns)
            starts.append(first_instruction_ms(machine.errors))
            with qemu(kernel, media.initrd).running() as machine:
                theirs.append(machine.until(MARK))
                their_cpu.append(cpu_seconds(machine.process.pid))
        median = statistics.median
        wanted = "≤ 0.5 with the translator" if kind == "vmlinux" else ""
        rows += [Row(f"boot to init's first line, {kind}", "s", median(ours), median(theirs), PEER, wanted),
                 Row(f"processor time of that, {kind}", "s", median(our_cpu), median(their_cpu), PEER),
                 Row(f"process start to first guest instruction, {kind}", "ms", median(starts), target="≤ 20 ms")]
    # Both kernels are the same code, once it is unpacked; the last loop's was on the host.
    rows += [Row("guest instructions of a boot", "million", median(counts)),
             Row("interpreter, over the boot", "MIPS", median(speeds), target="≥ 60")]
    return rows


def first_instruction_ms(errors):
    found = re.search(rb"first guest instruction after ([0-9.]+)(\S+)", errors)
    if not found:
        raise SystemExit(f"error: berth-vmm does not say how long its start took:\n{errors.decode(errors='replace')}")
    return float(found[1]) * {"s": 1e3, "ms": 1, "µs": 1e-3}[found[2].decode()]


def memory(work, media, _netns):
    say("memory")
    ours, theirs = [], []
    for _ in range(min(3, RUNS)):
        for machine, taken in ((berth(work, media.vmlinux, media.initrd), ours),
                               (qemu(media.vmlinux, media.initrd), theirs)):
            with machine.running():
                machine.until(MARK)
                time.sleep(1)
                taken.append(machine.own_mib())
    return [Row("memory beyond the guest's own, after a boot", "MiB", statistics.median(ours),
                statistics.median(theirs), PEER, "≤ 8 MiB")]


def vm_daemon(directory, netns, images=None):
    """A daemon that can make kernels: packages are had from outside of its network namespace."""
    directory.mkdir()
    daemon = Daemon(directory, netns)
    tools = directory / "tools"
    tools.mkdir()
    outside = tools / "apt-get"
    outside.write_text(f"#!/bin/sh\nexec nsenter --net=/proc/{os.getpid()}/ns/net {shutil.which('apt-get')} \"$@\"\n")
    outside.chmod(0o755)
    daemon.env["PATH"] = f"{tools}:{daemon.env['PATH']}"
    if images:
        daemon.root.mkdir()
        run(["cp", "-a", "--sparse=always", images, daemon.root / "images"])
    return daemon


def busybox(daemon):
    daemon.berth("image", "build", "--recipe", "busybox", "--name", "busybox")


def launch(work, media, netns):
    say(f"run --vm to the agent, {RUNS} times")
    daemon = vm_daemon(work / "daemon", netns, media.images)
    with daemon.running():
        busybox(daemon)
        steps = [launch_once(daemon, f"v{index}") for index in range(RUNS)]
        ended = []
        for _ in range(RUNS):
            began = time.monotonic()
            daemon.berth("run", "--rm", "--vm", "busybox", "true")
            ended.append(time.monotonic() - began)
    names = ["created and its process started", "from then on to the kernel's start of init",
             "init to the agent's first answer", "all of it"]
    rows = [Row(f"run -d --vm busybox: {name}", "s", statistics.median(taken))
            for name, taken in zip(names, zip(*steps))]
    return [*rows, Row("run --rm --vm busybox true", "s", statistics.median(ended))]


def launch_once(daemon, name):
    """Starts a machine and waits for its agent, by way of what its kernel says."""
    began = time.monotonic()
    daemon.berth("run", "-d", "--vm", "--name", name, "busybox", "sleep", "100000")
    created = time.monotonic() - began
    while not any(b"Run /init as init process" in log.read_bytes() for log in daemon.root.glob("instances/*/log/kernel.log")):
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"error: {name} does not come to its init; see kernel.log among its logs")
        time.sleep(0.02)
    init = time.monotonic() - began
    while subprocess.run([BIN / "berth", "exec", name, "true"], env=daemon.env, capture_output=True,
                         check=False).returncode != 0:
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"error: the agent of {name} does not answer")
        time.sleep(0.01)
    ready = time.monotonic() - began
    daemon.berth("rm", "-f", name)
    return created, init - created, ready - init, ready


def guest(work, media, _netns):
    say("inside the guest")
    taken = [], [], []
    for _ in range(min(3, RUNS)):
        machines = berth(work, media.vmlinux, media.tests_initrd), qemu(media.vmlinux, media.tests_initrd)
        for machine, found in zip(machines, taken):
            with machine.running():
                machine.until(b"DONE")
                found.append(results(machine.said.decode(errors="replace")))
        taken[2].append(results(run([media.tests])))
    ours, theirs, native = [{key: statistics.median(one[key] for one in found) for key, *_ in TESTS} for found in taken]
    rows = []
    for key, name, unit, scale in TESTS:
        rows += [Row(f"guest: {name}", unit, ours[key] / scale, theirs[key] / scale, PEER),
                 Row(f"guest: {name}", unit, ours[key] / scale, native[key] / scale, "the host itself")]
    against = {peer: statistics.geometric_mean(ours[key] / those[key] for key, *_ in TESTS)
               for peer, those in ((PEER, theirs), ("the host itself", native))}
    wanted = {PEER: "≤ 0.33 with the translator"}
    return rows + [Row("guest: geometric mean of these ratios", "ratio", mean, None, peer, wanted.get(peer, ""))
                   for peer, mean in against.items()]


def results(text):
    found = {key: float(value) for key, value in re.findall(r"^ROW (\w+) ([0-9.]+)\s*$", text, re.MULTILINE)}
    missing = [key for key, *_ in TESTS if key not in found]
    if missing:
        raise SystemExit(f"error: no result of {', '.join(missing)} in:\n{text[-2000:]}")
    return found


def decompressed(image):
    """The ELF file inside a bzImage (Linux: Documentation/arch/x86/boot.rst, payload_offset)."""
    start = (image[0x1f1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    # The build puts the size of what comes out behind what goes in.
    payload = image[start + offset:start + offset + length - 4]
    tools = {b"\x02\x21\x4c\x18": "lz4", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    tool = tools.get(payload[:4])
    if tool is None:
        raise SystemExit(f"error: a kernel compressed by something else than {', '.join(tools.values())}")
    return subprocess.run([tool, "-dc"], input=payload, stdout=subprocess.PIPE, check=True).stdout


def archive(files):
    """A cpio archive of executables (Linux: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    directories = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    entries = [(name, 0o40755, b"") for name in sorted(directories)] + [(name, 0o100755, data) for name, data in files.items()]
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


NOTES = """Guests are on the software CPU, which is an interpreter so far; the translator is to come. QEMU's guest is told the
frequency of its clock (`tsc_early_khz`), which ours reads from a paravirtual one. The processor time is that of the
whole process, and says more than the seconds where the host was busy. Both kernels are the same: a bzImage is
decompressed by berth-vmm before, by the guest itself in QEMU. Memory is the private pages of the process,
without the guest's RAM. The tests inside are `benches/lib/guest.c`, run as the guest's init with the vmlinux kernel.
For `run --vm` there is no peer: its seconds are those of a daemon, a network, a disk and an agent, too."""


def main():
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")] or PARTS
    measure = dict(zip(PARTS, [boot, memory, launch, guest]))
    unknown = [word for word in wanted if word not in measure]
    if unknown:
        raise SystemExit(f"error: there is no part {unknown[0]}: there are {', '.join(PARTS)}")
    if os.geteuid() != 0:
        raise SystemExit("error: the daemon needs root: run it with sudo")
    # Ended from outside, it cleans up all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    load, rows = os.getloadavg()[0], []
    with network_namespace() as netns, workspace() as shared:
        media = Media(shared, netns)
        peers = [run(["qemu-system-x86_64", "--version"]).splitlines()[0], f"guests: Linux {media.release}"]
        for part in wanted:
            with workspace() as work:
                rows += measure[part](work, media, netns)
    page = HOUSE / "docs/PERFORMANCE.md" if wanted == PARTS else None
    publish("Virtual machines", NOTES, rows, peers, page, load)


if __name__ == "__main__":
    main()
