"""Virtual machines on the software CPU, beside QEMU's microvm on TCG: boots, memory, start, and the way to the agent.

    scripts/bench vm [--json] [PART...]      parts: boot interpreter memory launch

BENCH_RUNS (5) is how often each boots. What the guest's processor is good for is measured by `scripts/bench cpu`.
"""

import re
import statistics
import subprocess
import time

from lib.bench import Row, cpu_seconds, say
from lib.daemon import BIN
from lib.machines import MARK, PATIENCE, PEER, RUNS, bench, berth, booted, busybox, qemu, vm_daemon

# Seconds that a machine has nothing to do before what it still takes is read.
IDLE = 5


def boot(work, media, _netns):
    say(f"boots, {RUNS} of each")
    rows = []
    for kind, kernel in (("bzImage", media.vmlinuz), ("vmlinux", media.vmlinux)):
        ours, theirs, starts = [], [], []
        for _ in range(RUNS):
            machine = berth(work, kernel, media.initrd)
            ours.append(booted(machine))
            starts.append(first_instruction_ms(machine.errors))
            theirs.append(booted(qemu(kernel, media.initrd)))
        (our_seconds, our_cpu), (seconds, cpu) = ([statistics.median(times) for times in zip(*taken)]
                                                  for taken in (ours, theirs))
        wanted = "≤ 0.5" if kind == "vmlinux" else ""
        rows += [Row(f"boot to init's first line, {kind}", "s", our_seconds, seconds, PEER, wanted),
                 Row(f"processor time of that, {kind}", "s", our_cpu, cpu, PEER),
                 Row(f"process start to first guest instruction, {kind}", "ms", statistics.median(starts),
                     target="≤ 20 ms")]
    return rows


def interpreter(work, media, _netns):
    say("the interpreter alone")
    speeds, sizes = [], []
    for _ in range(min(3, RUNS)):
        machine = berth(work, media.vmlinux, media.initrd, "--no-translate")
        with machine.running():
            machine.until(MARK)
            speeds.append(machine.stats()["instructions"] / cpu_seconds(machine.process.pid) / 1e6)
            sizes.append(machine.own_mib())
    return [Row("interpreter alone, over the boot of vmlinux", "million instructions per second",
                statistics.median(speeds), target="≥ 60"),
            Row("memory beyond the guest's own, interpreter alone", "MiB", statistics.median(sizes), target="≤ 8 MiB")]


def first_instruction_ms(errors):
    text = errors.decode(errors="replace")
    found = re.search(r"first guest instruction after ([0-9.]+)([a-zµ]+)", text)
    if not found:
        raise SystemExit(f"error: berth-vmm does not say how long its start took:\n{text}")
    return float(found[1]) * {"s": 1e3, "ms": 1, "µs": 1e-3}[found[2]]


def memory(work, media, _netns):
    say("memory")
    ours, theirs = [], []
    for _ in range(min(3, RUNS)):
        for machine, taken in ((berth(work, media.vmlinux, media.initrd), ours),
                               (qemu(media.vmlinux, media.initrd), theirs)):
            with machine.running():
                machine.until(MARK)
                at_once = machine.own_mib()
                time.sleep(IDLE)
                taken.append((at_once, machine.own_mib()))
    (our_first, our_idle), (first, idle) = ([statistics.median(sizes) for sizes in zip(*taken)]
                                            for taken in (ours, theirs))
    return [Row("memory beyond the guest's own, at init's first line", "MiB", our_first, first, PEER),
            Row(f"the same, idle for {IDLE} s", "MiB", our_idle, idle, PEER, "≤ 8 MiB")]


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


NOTES = """Guests are on the software CPU. QEMU's guest is told the frequency of its clock (`tsc_early_khz`), which ours
reads from a paravirtual one. The processor time is that of the whole process, and says more than the seconds where
the host was busy. Both kernels are the same: a bzImage is decompressed by berth-vmm before, by the guest itself in QEMU.
Memory is the proportional set size of the process, without the guest's RAM.
For `run --vm` there is no peer: its seconds are those of a daemon, a network, a disk and an agent, too."""


if __name__ == "__main__":
    bench("Virtual machines", NOTES, {"boot": boot, "interpreter": interpreter, "memory": memory, "launch": launch})
