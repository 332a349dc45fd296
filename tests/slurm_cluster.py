"""A real Slurm of two nodes on this machine, and what a test does on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT.parent / "shared" / "tools" / "slurm"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")


def why_none() -> str:
    """Return why there can be no cluster here; nothing where there can."""
    if not TOOLS.is_dir():
        return f"no {TOOLS}, which starts a Slurm"
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "starting a Slurm takes root"


@dataclass(frozen=True)
class Cluster:
    """Two nodes, n1 and n2; partitions train and, of a higher priority, urgent.

    n2 sees another, empty folder than n1 at `apart`.
    """

    folder: Path
    environment: Mapping[str, str]

    @property
    def apart(self) -> Path:
        return self.folder / "apart"

    def ask(self, *words: str) -> str:
        done = subprocess.run(
            words,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()

    def queue(self) -> list[str]:
        return self.ask("squeue", "-h", "-o", "%A %T").splitlines()

    def set_apart(self) -> None:
        """Start n2 again where a mount of its own hides `apart`."""
        self.apart.mkdir()
        file = self.folder / "pid" / "slurmd.n2.pid"
        os.kill(int(file.read_text()), signal.SIGTERM)
        while file.exists():
            time.sleep(0.1)
        conf = self.environment["SLURM_CONF"]
        hide = f"mount -t tmpfs none {self.apart} && exec slurmd -N n2 -f {conf}"
        subprocess.run(["unshare", "-m", "sh", "-c", hide], check=True, timeout=60)
        while "idle" not in self.ask("sinfo", "-h", "-n", "n2", "-p", "train", "-o", "%T"):
            time.sleep(0.2)

    def on_n2(self, *words: str) -> None:
        """Run a command among the mounts of n2 alone."""
        pid = (self.folder / "pid" / "slurmd.n2.pid").read_text().strip()
        subprocess.run(["nsenter", "-t", pid, "-m", *words], check=True, timeout=60)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Yield a cluster that is gone afterwards."""
    settings = {"SLURM_TEST_PORT": str(_free_ports(3)), "SLURM_TEST_GRACE": "20"}
    start = [str(TOOLS / "start_slurm.sh"), str(folder)]
    subprocess.run(start, env=os.environ | settings, check=True, capture_output=True, timeout=120)
    try:
        made = Cluster(folder, {"SLURM_CONF": str(folder / "slurm.conf")})
        made.set_apart()
        yield made
    finally:
        stop = [str(TOOLS / "stop_slurm.sh"), str(folder), "--purge"]
        subprocess.run(stop, check=True, capture_output=True, timeout=120)


def _free_ports(count: int) -> int:
    """Return the first of as many ports in a row that nothing listens on."""
    for first in range(16817, 20000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


def install_metadata(folder: Path) -> Path:
    """Write the package's metadata, entry points among it, as an installation would."""
    build = (
        "import sys, setuptools.build_meta as backend;"
        "backend.prepare_metadata_for_build_wheel(sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    return folder
