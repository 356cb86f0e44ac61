"""The software CPU: what a guest's processor is good for, beside the host's own and QEMU's microvm on TCG.

    scripts/bench cpu [--json] [PART...]      parts: boot launch tests

BENCH_RUNS (5) is how often each boots; the tests (`lib/guest.c`) are run by three of them at most. Each turn has one of
the three processors after the other, so that a noisy minute falls on all of them alike.
"""

import re
import statistics
import time
from dataclasses import asdict, dataclass

from lib.bench import number, run, say
from lib.machines import RUNS, bench, berth, booted, busybox, qemu, vm_daemon


@dataclass
class Times:
    """A time on each of the three processors, where there is one."""

    HEAD = ("| test | unit | native | Berth | QEMU TCG | Berth / native | TCG / Berth | wanted |\n"
            "|---|---|---:|---:|---:|---:|---:|---|")

    name: str
    unit: str
    native: float | None
    berth: float | None
    tcg: float | None
    target: str = ""

    @property
    def over_native(self):
        return self.berth / self.native if self.native else None

    @property
    def faster_than_tcg(self):
        return self.tcg / self.berth if self.tcg else None

    def cells(self):
        figures = [self.native, self.berth, self.tcg, self.over_native, self.faster_than_tcg]
        return [self.name, self.unit, *map(number, figures), self.target]

    def record(self):
        return {**asdict(self), "over_native": self.over_native, "faster_than_tcg": self.faster_than_tcg}


@dataclass
class Means(Times):
    """The geometric means of ratios; there is no time."""

    over_native: float | None = None
    faster_than_tcg: float | None = None


@dataclass
class Test:
    """One of `lib/guest.c`: what it is called there and here, its unit, and how many nanoseconds that is."""

    key: str
    name: str
    unit: str
    nanoseconds: float
    target: str = "≥ 1 × TCG"


TESTS = [Test("controller", "coremark-like: list, matrix, state machine, crc16", "µs", 1e3, "≤ 4 × native, then 2.2"),
         Test("sha256", "sha256 of 64 B", "ns", 1),
         Test("fib", "fib(30): call and return", "ms", 1e6),
         Test("interpreter", "threaded interpreter: indirect jumps, 64 operations", "ns", 1),
         Test("matmul", "floating point matrix product 32³, SSE2", "µs", 1e3, "≥ 8 × TCG"),
         Test("memcpy", "libc's memcpy of 1 MiB", "µs", 1e3),
         Test("movsb", "rep movsb of 1 MiB", "µs", 1e3, "≥ 20 × TCG"),
         Test("getppid", "getppid", "ns", 1, "< 300 ns"),
         Test("fault", "anonymous page fault", "µs", 1e3),
         Test("pipe", "pipe round trip between processes", "µs", 1e3),
         Test("fork", "fork and exit", "µs", 1e3),
         Test("exec", "vfork and exec", "µs", 1e3)]


def boot(work, media, _netns):
    say(f"boots, {RUNS} of each")
    ours, theirs = [], []
    for _ in range(RUNS):
        ours.append(booted(berth(work, media.vmlinux, media.initrd)))
        theirs.append(booted(qemu(media.vmlinux, media.initrd)))
    (our_seconds, our_cpu), (seconds, cpu) = ([statistics.median(times) for times in zip(*taken)]
                                              for taken in (ours, theirs))
    return [Times("boot to init's first line", "s", None, our_seconds, seconds, "≥ 2 × TCG"),
            Times("processor time of that", "s", None, our_cpu, cpu)]


def launch(work, media, netns):
    say(f"launch --vm, {RUNS} times")
    daemon = vm_daemon(work / "daemon", netns, media.images)
    taken = []
    with daemon.running():
        busybox(daemon)
        for index in range(RUNS):
            began = time.monotonic()
            daemon.berth("launch", "--vm", "--name", f"v{index}", "busybox")
            daemon.berth("exec", f"v{index}", "true")
            taken.append(time.monotonic() - began)
            daemon.berth("rm", "-f", f"v{index}")
    seconds = statistics.median(taken)
    return [Times("berth launch --vm of busybox, to its agent's answer", "s", None, seconds, None, "< 1 s")]


def tests(work, media, _netns):
    say("tests, on each processor")
    native, ours, theirs = [], [], []
    for _ in range(min(3, RUNS)):
        native.append(results(run([media.tests])))
        for machine, taken in ((berth(work, media.vmlinux, media.tests_initrd), ours),
                               (qemu(media.vmlinux, media.tests_initrd), theirs)):
            with machine.running():
                machine.until(b"DONE")
            taken.append(results(machine.said.decode(errors="replace")))
    rows = []
    for test in TESTS:
        times = (statistics.median(one[test.key] for one in taken) for taken in (native, ours, theirs))
        rows.append(Times(test.name, test.unit, *(it / test.nanoseconds for it in times), test.target))
    over_native, faster = (statistics.geometric_mean(ratios)
                           for ratios in zip(*((row.over_native, row.faster_than_tcg) for row in rows)))
    return [*rows, Means("geometric mean of the tests", "ratio", None, None, None, "≥ 3 × TCG", over_native, faster)]


def results(text):
    """What the tests printed, in nanoseconds."""
    found = {key: float(value) for key, value in re.findall(r"^ROW (\w+) ([0-9.]+)\s*$", text, re.MULTILINE)}
    missing = [test.key for test in TESTS if test.key not in found]
    if missing:
        raise SystemExit(f"error: no result of {', '.join(missing)} in:\n{text[-2000:]}")
    return found


NOTES = """The tests are one static program, `benches/lib/guest.c`: run as it is on the host, and as the init of a guest
with one vCPU in berth-vmm (the software CPU) and in QEMU; each says the median of its rounds, and the table the median
of its runs. Both guests have the same kernel (vmlinux, entered by PVH) and parameters. QEMU's is told the frequency of
its clock (`tsc_early_khz`), which ours reads from a paravirtual one. For `berth launch` there is no peer: its seconds
are those of a daemon, a network, a disk and an agent, too. The two processes of the pipe have two
processors natively, and wake each other across them."""


if __name__ == "__main__":
    bench("Software CPU", NOTES, {"boot": boot, "launch": launch, "tests": tests})
