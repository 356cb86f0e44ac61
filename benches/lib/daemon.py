"""The daemon that benches drive, and where Berth's programs are."""

import contextlib
import os
import subprocess
from pathlib import Path

from lib.bench import Api, background, inside, remove_groups, run

BIN = Path(os.environ["BERTH_BIN"])


class Daemon:
    """A Berth daemon in a directory and a network namespace of its own."""

    def __init__(self, directory, netns, prefix="bb"):
        self.root, self.run_dir = directory / "root", directory / "run"
        self.socket = self.run_dir / "berth.sock"
        self.env = {**os.environ, "BERTH_HOST": f"unix://{self.socket}", "BERTH_ROOT": str(self.root),
                    "BERTH_RUN_DIR": str(self.run_dir)}
        self.command = inside(netns, [BIN / "berth", "daemon", "--root", self.root, "--run-dir", self.run_dir,
                                      "--prefix", prefix])
        self.prefix = prefix
        self.log = directory / "daemon.log"
        self.pid = None

    @contextlib.contextmanager
    def running(self):
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with background(self.command, self.log, self.answers, "berth daemon", env=self.env) as process:
                self.pid = process.pid
                try:
                    yield self
                finally:
                    self.remove_all()
        finally:
            remove_groups(self.prefix)

    def answers(self):
        return subprocess.run([BIN / "berth", "info"], env=self.env, capture_output=True, check=False).returncode == 0

    def berth(self, *words):
        return run([BIN / "berth", *words], env=self.env)

    def api(self):
        return Api(self.socket)

    def remove_all(self):
        names = self.berth("list", "-o", "name").split()
        for at in range(0, len(names), 100):
            self.berth("rm", "-f", *names[at:at + 100])
