"""A real Slurm of two nodes on this machine, and what a test does on it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = Path(__file__).with_name("slurm.conf")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
STARTED_IN = 60.0  # seconds, on a busy machine
ENDED_IN = 20.0


def why_none() -> str:
    """Return why there can be no cluster here; nothing where there can."""
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
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def apart(self) -> Path:
        return self.folder / "apart"

    def ask(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            words,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=check,
        )
        return done.stdout.strip()

    def queue(self) -> list[str]:
        return self.ask("squeue", "-h", "-o", "%A %T").splitlines()

    def on_n2(self, *words: str) -> None:
        """Run a command among the mounts of n2 alone."""
        pid = str(self.daemons["slurmd.n2"].pid)
        subprocess.run(["nsenter", "-t", pid, "-m", *words], check=True, timeout=60)

    def is_idle(self) -> bool:
        nodes = self.ask("sinfo", "-h", "-N", "-p", "train", "-o", "%T", check=False)
        return nodes.split() == ["idle", "idle"]

    def cancel_jobs(self) -> None:
        """Cancel what is queued or runs, and wait: a job's processes outlive their slurmd."""
        self.ask("scancel", "--user=root")
        self.wait_for(lambda: not self.queue(), ENDED_IN)

    @contextmanager
    def running(self, name: str, *words: str) -> Iterator[None]:
        """Run a daemon in the foreground, with a log of its name."""
        with self.log(name).open("wb") as log:
            daemon = subprocess.Popen(
                words,
                cwd=self.folder,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is for pytest
            )
        self.daemons[name] = daemon
        try:
            yield
        finally:
            daemon.terminate()
            try:
                daemon.wait(ENDED_IN)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"

    def wait_for(self, condition: Callable[[], object], seconds: float = STARTED_IN) -> None:
        """Wait until something is so, while all daemons run; else raise with what they logged."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                what = f"{', '.join(ended)} ended" if ended else f"not within {seconds:.0f} s"
                logs = [self.log(name) for name in ended or self.daemons]
                tails = [f"{log}, last lines:\n{log.read_text()[-2000:]}" for log in logs]
                raise RuntimeError("\n".join([f"Slurm: {what}", *tails]))
            time.sleep(0.1)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Yield a cluster, both nodes idle; nothing of it runs afterwards."""
    conf = write_conf(folder)
    made = Cluster(folder, {"SLURM_CONF": str(conf)})
    socket_file = folder / "munge.socket"
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "seed", "pid")]
    hide = f"mount -t tmpfs none {made.apart} && exec slurmd -D -N n2 -f {conf}"
    with ExitStack() as stack:
        # It refuses a folder that not all may enter, as those of pytest are, unless forced.
        munged = ("munged", "--foreground", "--force", f"--socket={socket_file}", *files)
        stack.enter_context(made.running("munged", *munged))
        made.wait_for(socket_file.exists)
        stack.enter_context(made.running("slurmctld", "slurmctld", "-D", "-f", str(conf)))
        stack.enter_context(made.running("slurmd.n1", "slurmd", "-D", "-N", "n1", "-f", str(conf)))
        stack.enter_context(made.running("slurmd.n2", "unshare", "-m", "sh", "-c", hide))
        made.wait_for(made.is_idle)
        stack.callback(made.cancel_jobs)
        yield made


def write_conf(folder: Path) -> Path:
    """Write slurm.conf and munge's key, make the folders they name; return slurm.conf."""
    for name in ("log", "state", "spool.n1", "spool.n2", "apart"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    conf = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    given = {"folder": folder, "host": host, "ports": free_ports(3)}
    conf.write_text(TEMPLATE.read_text().format(**given))
    return conf


def free_ports(count: int) -> list[int]:
    """Return as many different TCP ports that nothing listens on now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


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
