"""The commands of the stages, their environment, and the proof that each did its work."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from account_tax.config import Resolved
from account_tax.errors import Failed
from account_tax.layout import ADAPTER_FOLDER, MARKER_FILE
from account_tax.prepared import DATASETS

TAIL_LINES = 12
RANK_ENDED = re.compile(r"^srun: error: .*|^host \S+ ended with .*", re.MULTILINE)
NO_RESULT = (
    "exit status 0, but no result was written; deepspeed ends so when its launch process is killed"
)


@dataclass
class Stages:
    """One run's stages: where they run and write, and with what configuration.

    Attributes:
        project: The project's root; stages run in it.
        root: The run's own folder for results, logs and its copy of the configuration.
        environment: What every stage finds in its environment.
        versions: Catalog versions that later stages load.
    """

    project: Path
    root: Path
    environment: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def logs(self) -> Path:
        """Folder of the stages' and ranks' full logs."""
        return self.root / "logs"

    def write_configuration(self, resolved: Resolved) -> None:
        """Write the one configuration all stages read: Kedro's files with resolved parameters."""
        base = self.root / "conf" / "base"
        base.mkdir(parents=True, exist_ok=True)
        (base.parent / "local").mkdir(exist_ok=True)  # Kedro wants it, and finds nothing in it
        for name in ("catalog.yml", "mlflow.yml"):
            shutil.copy(self.project / "conf" / "base" / name, base / name)
        root = str(self.root)
        values = resolved.values | {"artifacts_root": root, "recipe": None}
        _dump(base / "globals.yml", {"artifacts_root": root})
        _dump(base / "parameters.yml", values)

    def write_prepare_catalog(self, folder: Path) -> None:
        """Write the environment `prepare` of Kedro's: what it saves goes below another folder."""
        text = (self.project / "conf" / "base" / "catalog.yml").read_text(encoding="utf-8")
        entries = {name: yaml.safe_load(text)[name] for name in DATASETS}
        for entry in entries.values():
            place = "path" if "path" in entry else "filepath"
            entry[place] = str(folder / Path(entry[place]).name)
        environment = self.root / "conf" / "prepare"
        environment.mkdir(parents=True, exist_ok=True)
        _dump(environment / "catalog.yml", entries)

    def kedro(self, pipeline: str, *options: str) -> list[str]:
        """Return the arguments of `kedro` that run one pipeline with this configuration."""
        versions = ",".join(f"{name}:{version}" for name, version in self.versions.items())
        return [
            "run",
            f"--pipelines={pipeline}",
            f"--conf-source={self.root / 'conf'}",
            *([f"--load-versions={versions}"] if versions else []),
            *options,
        ]

    def single(self, pipeline: str, *options: str) -> list[str]:
        """Return the command that runs a pipeline in one process."""
        return [sys.executable, "-m", "kedro", *self.kedro(pipeline, *options)]

    def rank_environment(self, ranks_here: int, gpus: int, training: dict[str, Any]) -> dict:
        """Return what ranks find besides: their share of the cores, and determinism's settings.

        Args:
            ranks_here: Ranks that share a machine.
            gpus: GPUs this one shows.
            training: The section of the parameters.
        """
        settings = dict(self.environment)
        if not gpus:
            settings["DS_ACCELERATOR"] = "cpu"
            threads = max(1, (len(os.sched_getaffinity(0))) // ranks_here)
            settings.setdefault("OMP_NUM_THREADS", str(threads))
        if training.get("full_determinism"):
            # Set inside the process they may come after CUDA has started.
            settings |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
        return settings

    # --- evidence ---------------------------------------------------------------------------------

    def prove_training(self, status: int) -> dict[str, Any]:
        """Return the marker's content, if the ranks ended well and their files are whole.

        Raises:
            Failed: With the last lines of the logs. The exit status alone proves nothing:
                `deepspeed` returns 0 when its launch process was killed.
        """
        marker = self.root / MARKER_FILE
        if status != 0 or not marker.is_file():
            why = _in_words(status) if status else NO_RESULT
            raise Failed(f"training failed: {why}.\n{self.last_lines()}")
        content = json.loads(marker.read_text(encoding="utf-8"))
        for name, sha256 in content["weights"].items():
            file = self.root / ADAPTER_FOLDER / name
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
                raise Failed(f"training failed: {file} is not the file the marker lists.")
        return content

    def prove_registration(self, status: int) -> dict[str, Any]:
        """Return what was registered, if the stage ended well and its result is there."""
        result = self.root / "registration.json"
        if status != 0 or not result.is_file():
            raise Failed(
                f"registration failed: {_in_words(status)}. The trained adapter is kept in "
                f"{self.root / 'adapter'}.\n{_tail(self.logs / 'register.log')}"
            )
        return json.loads(result.read_text(encoding="utf-8"))

    def prove(self, stage: str, status: int) -> None:
        """Raise Failed, with its last lines, unless a stage ended with status 0."""
        if status != 0:
            log = self.logs / f"{stage}.log"
            raise Failed(f"{stage} failed: {_in_words(status)}.\n{_tail(log)}")

    def last_lines(self) -> str:
        """Return how each rank ended and the end of its log; deepspeed's where none said anything.

        How it ended is said by what started it: srun, or over_ssh.py for a host.
        """
        ranks = sorted((self.logs / "ranks").glob("*.log"))
        said = [log for log in ranks if log.stat().st_size]
        launched = self.logs / "train.log"
        text = launched.read_text(encoding="utf-8", errors="replace") if launched.exists() else ""
        return "\n".join([*RANK_ENDED.findall(text), *map(_tail, said or [launched])])


def _in_words(status: int) -> str:
    """Return an exit status as a person reads it.

    A stage killed by signal n has -n; of a rank so killed `deepspeed` makes 256 - n, srun 128 + n.
    """
    signum = -status if status < 0 else 256 - status if status > 192 else status - 128
    if signum not in map(int, signal.Signals):
        return f"exit status {status}"
    name = signal.Signals(signum).name
    memory = " (if nobody did that, the machine ran out of memory)" if name == "SIGKILL" else ""
    return f"a process of it was ended by {name}{memory}"


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    kept = [line for line in lines if line.strip()][-TAIL_LINES:]
    return "\n".join([f"--- {log.name}, last lines", *kept])


def _dump(path: Path, content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def stage_environment(project: Path) -> dict[str, str]:
    """Return what every stage finds in its environment, the package among it."""
    source = str(project / "account_tax" / "src")
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    quiet = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}
    return os.environ | quiet | {"PYTHONPATH": path}
