"""Virtual machines that benches time: a kernel and initial file systems, Berth's machine and QEMU's microvm on TCG with
the same of everything, and daemons that run machines.

Both have the kernel that `berth` makes from Debian's package, 512 MiB, one vCPU and the same kernel parameters.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from lib.bench import compile_c, cpu_seconds, network_namespace, publish, run, say, workspace
from lib.daemon import BIN, Daemon

HOUSE = Path(__file__).resolve().parent.parent.parent
# How often each machine boots.
RUNS = int(os.environ.get("BENCH_RUNS", 5))
# Seconds until a machine is said to hang.
PATIENCE = 120
# What init says first.
MARK = b"INIT-IS-UP"
PEER = "QEMU microvm, TCG"
PARAMETERS = "console=ttyS0 reboot=k panic=-1 tsc=reliable no_timer_check mitigations=off random.trust_cpu=on"
# What berth-vmm says of itself before all others.
OWN_PARAMETERS = "console=ttyS0 reboot=k panic=-1 "
INIT = """#!/bin/busybox sh
echo INIT-IS-UP
while read -r line; do :; done
"""


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
        """Memory that the process takes, in proportion where it is mapped twice: all but the guest's RAM, which is
        a memory file."""
        kib, own = 0, True
        for line in Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                own = "/memfd:guest-memory" not in line and "/memfd:memory-backend-memfd" not in line
            elif own and line.startswith("Pss:"):
                kib += int(line.split()[1])
        return kib / 1024


def berth(work, kernel, initrd, *more):
    control = work / "control"
    control.unlink(missing_ok=True)
    words = [BIN / "berth-vmm", "boot", "--accel", "soft", "--verbose", "--memory", "512M", "--kernel", kernel,
             "--initrd", initrd, "--control", control, "--append", PARAMETERS.removeprefix(OWN_PARAMETERS), *more]
    return Machine(words, "berth-vmm", control)


def qemu(kernel, initrd):
    words = ["qemu-system-x86_64", "-M", "microvm,memory-backend=ram", "-accel", "tcg", "-cpu", "max", "-m", "512",
             "-object", "memory-backend-memfd,id=ram,size=512M", "-smp", "1", "-nodefaults", "-no-user-config",
             "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
             "-append", f"{PARAMETERS} tsc_early_khz={tsc_khz()}"]
    return Machine(words, "qemu")


def booted(machine):
    """Boots a machine to its init and ends it: seconds, and seconds of processor time."""
    with machine.running():
        return machine.until(MARK), cpu_seconds(machine.process.pid)


def tsc_khz():
    """The guest's clock ticks as the host's. Told so it need not measure, where it stays for ever on a busy host."""
    found = re.search(r"^cpu MHz\s*: ([0-9.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return round(float(found[1]) * 1000)


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


def bench(title, notes, parts):
    """A bench of machines from its command line: the parts that are named there, or all, each called with a directory,
    the media and a network namespace."""
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")] or list(parts)
    unknown = [word for word in wanted if word not in parts]
    if unknown:
        raise SystemExit(f"error: there is no part {unknown[0]}: there are {', '.join(parts)}")
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
                rows += parts[part](work, media, netns)
    page = HOUSE / "docs/PERFORMANCE.md" if wanted == list(parts) else None
    publish(title, notes, rows, peers, page, load)
