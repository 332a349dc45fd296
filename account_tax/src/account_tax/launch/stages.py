"""The commands of the stages, their environment, and the proof that each did its work."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from account_tax.errors import Failed, Preempted
from account_tax.parameters.config import Resolved
from account_tax.processes.answers import last_lines
from account_tax.processes.groups import run_stage
from account_tax.processes.identity import identify
from account_tax.processes.warm import warm_interpreter
from account_tax.provenance.code import python_path
from account_tax.provenance.signing import PASSPHRASE_VARIABLE
from account_tax.storage.checkpoints import list_checkpoints, step_of
from account_tax.storage.files import read_json, sha256_of, write_json
from account_tax.storage.names import (
    ADAPTER_FOLDER,
    BEST_FOLDER,
    DATASET_METADATA_FILE,
    DATASETS,
    FAULT_FILE,
    INTERRUPTED_FILE,
    LAUNCHER_VARIABLE,
    MARKER_FILE,
    METRICS_FILE,
    PREPARED_FILE,
    PREPARED_FOLDER,
    PROGRESS_FILE,
    PROGRESS_VARIABLE,
    REGISTRATION_FILE,
)
from account_tax.terminal import ProgressLine

from .progress import describe_progress

# In the order in which the stages need them; the check is forked as soon as its own are there.
MODULES = (
    *("account_tax.pipelines.check", "kedro.framework.cli"),
    *("account_tax.pipelines.prepare.pipeline", "kedro_datasets.huggingface"),
    *("account_tax.pipelines.train.pipeline", "transformers.integrations.deepspeed"),
    *("deepspeed.launcher.launch", "kedro_mlflow", "account_tax.pipelines.register.pipeline"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
)

# Of an attempt; the next one of the run may not be judged by it.
OUTCOME = (
    *(MARKER_FILE, PROGRESS_FILE, METRICS_FILE, REGISTRATION_FILE),
    *(INTERRUPTED_FILE, FAULT_FILE),
)
TRAINED = (MARKER_FILE, METRICS_FILE)  # written in this order, by the ranks and by Kedro
RANK_ENDED = re.compile(r"^srun: error: .*|^host \S+ ended with .*", re.MULTILINE)
ANEW = "the same command begins anew"
NO_RESULT = "exit status 0, but no result was written"


@dataclass
class Stages:
    """One run's stages: where they run and write, and with what configuration.

    Attributes:
        project: The project's root; stages run in it.
        root: The run's own folder for results, logs and its copy of the configuration.
        environment: What every stage finds in its environment.
        versions: Catalog versions that later stages load.
        checkpoints: Folder of the run's checkpoints, where it is to be trained.
        again: What goes on with a training that was interrupted, in words.
    """

    project: Path
    root: Path
    environment: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    checkpoints: Path | None = None
    again: str = "the same command"

    @property
    def logs(self) -> Path:
        """Folder of the stages' and ranks' full logs."""
        return self.root / "logs"

    def write_configuration(self, resolved: Resolved) -> None:
        """Write the one configuration all stages read: Kedro's files with resolved parameters."""
        base = self.root / "conf" / "base"
        base.mkdir(parents=True, exist_ok=True)
        (base.parent / "local").mkdir(exist_ok=True)  # Kedro wants it, and finds nothing in it
        self._copy_catalog()
        root = str(self.root)
        values = resolved.values | {"artifacts_root": root, "recipe": None}
        _dump(base / "globals.yml", {"artifacts_root": root})
        _dump(base / "parameters.yml", values)

    def place_configuration(self) -> None:
        """Let the configuration say where the run's folder is now; its project may have moved.

        The catalog is that of the pipelines as they are now.
        """
        self._copy_catalog()
        for name in ("globals.yml", "parameters.yml"):
            file = self.root / "conf" / "base" / name
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            _dump(file, content | {"artifacts_root": str(self.root)})

    def _copy_catalog(self) -> None:
        for name in ("catalog.yml", "mlflow.yml"):
            shutil.copy(self.project / "conf" / "base" / name, self.root / "conf" / "base" / name)

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

    def use_prepared(self, version: str) -> None:
        """Load this version of the data, and note it for whoever goes on with the run."""
        self.versions = dict.fromkeys(DATASETS, version)
        write_json(self.root / PREPARED_FILE, self.versions)

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

    def run(self, stage: str, *options: str) -> int:
        """Run a stage in one process, output to prepare.log or register.log; return its status."""
        command, log = self.single(stage, *options), self.logs / f"{stage}.log"
        progress = self.root / PROGRESS_FILE
        progress.unlink(missing_ok=True)
        environment = self.environment | {PROGRESS_VARIABLE: str(progress)}
        with closing(ProgressLine(partial(describe_progress, stage, progress))) as line:
            return run_stage(
                command, cwd=self.project, environment=environment, log=log, watch=line.draw
            )

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
        settings = {**self.environment}
        settings.pop(PASSPHRASE_VARIABLE, None)  # only what registers signs
        if not gpus:
            settings["DS_ACCELERATOR"] = "cpu"
            threads = max(1, (len(os.sched_getaffinity(0))) // ranks_here)
            settings.setdefault("OMP_NUM_THREADS", str(threads))
        if training.get("full_determinism"):
            # Set inside the process they may come after CUDA has started.
            settings |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
        return settings

    # --- evidence ---------------------------------------------------------------------------------

    def clear_outcome(self) -> None:
        """Remove what an earlier attempt of the run left as its result; move its logs aside."""
        for name in OUTCOME:
            (self.root / name).unlink(missing_ok=True)
        for log in sorted((self.logs / "ranks").glob("*.log")):
            (log.parent / "earlier").mkdir(exist_ok=True)
            log.rename(log.parent / "earlier" / log.name)

    def keep_dataset_metadata(self) -> None:
        """Put what is known of the data beside the best model, where there is one."""
        if (self.root / BEST_FOLDER).is_dir():
            shutil.copy(self._metadata_file(), self.root / DATASET_METADATA_FILE)

    def dataset_metadata(self) -> dict[str, Any]:
        """Return what is known of the prepared data."""
        return read_json(self._metadata_file())

    def _metadata_file(self) -> Path:
        name = DATASET_METADATA_FILE
        return self.project / PREPARED_FOLDER / name / self.versions["dataset_metadata"] / name

    def prove_training(self, status: int) -> dict[str, Any]:
        """Return the marker's content, if the ranks ended well and their files are whole.

        Raises:
            Preempted: If the ranks themselves were told to end, as Slurm does.
            Failed: With the last lines of the logs. The exit status alone proves nothing.
        """
        marker = self.root / MARKER_FILE
        if status != 0 or not marker.is_file():
            # A rank that could not save yet, or no more, ends by SIGTERM without the file.
            told = _signal_in(status) == signal.SIGTERM
            if told or (self.root / INTERRUPTED_FILE).is_file():
                raise Preempted(
                    f"ended by SIGTERM: {self.outcome_of_interruption()}", goes_on=False
                )
            why = self._said("reason", FAULT_FILE)
            again = ""
            if not why:
                why = _in_words(status) if status else NO_RESULT
                if _signal_in(status):  # no fault of the run's
                    way = self._way_on()
                    again = f" {way[0].upper()}{way[1:]}."
            raise Failed(f"training failed: {why}.{again}\n{self.last_lines()}")
        content = json.loads(marker.read_text(encoding="utf-8"))
        for name, sha256 in content["weights"].items():
            file = self.root / ADAPTER_FOLDER / name
            if not file.is_file() or sha256_of(file) != sha256:
                raise Failed(f"training failed: {file} is not the file the marker lists.")
        return content

    def outcome_of_interruption(self) -> str:
        """Return what became of a run that was told to end, and how to go on."""
        step = self._said("step", INTERRUPTED_FILE)
        if step is not None:
            return f"interrupted at step {step}; {self.again} goes on from there"
        command = f"kedro register --run {self.root.name}"
        if (self.root / REGISTRATION_FILE).is_file():
            return f"its results are registered; {command} would give the run its end"
        if all((self.root / name).is_file() for name in TRAINED):
            return f"training is complete; {command} would evaluate and register it"
        return f"interrupted before a save; {self._way_on()}"

    def _way_on(self) -> str:
        """Return where a training goes on that ended without a save of its last step."""
        kept = list_checkpoints(self.checkpoints) if self.checkpoints else []
        return f"{self.again} goes on from step {step_of(kept[0])}" if kept else ANEW

    def _said(self, key: str, name: str) -> Any:
        """Return what rank 0 left in a file below the root, None where there is none."""
        return read_json(self.root / name).get(key)

    def prove_registration(self, status: int) -> dict[str, Any]:
        """Return what was registered, if the stage ended well and its result is there."""
        result = self.root / REGISTRATION_FILE
        if status != 0 or not result.is_file():
            raise Failed(
                f"registration failed: {_in_words(status)}. The trained adapter is kept in "
                f"{self.root / ADAPTER_FOLDER}. What was wrong is mended? Then: kedro register "
                f"--run {self.root.name}\n{_tail(self.logs / 'register.log')}"
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


def _signal_in(status: int) -> signal.Signals | None:
    """Return the signal of a status, None where it has none.

    A stage killed by signal n has -n; of a rank so killed `deepspeed` makes 256 - n, srun 128 + n.
    """
    number = -status if status < 0 else 256 - status if status > 192 else status - 128
    return next((each for each in signal.Signals if each == number), None)


def _in_words(status: int) -> str:
    """Return an exit status as a person reads it."""
    if not (ended_by := _signal_in(status)):
        return f"exit status {status}"
    memory = " (if nobody did that, the machine ran out of memory)" * (ended_by == signal.SIGKILL)
    return f"a process of it was ended by {ended_by.name}{memory}"


def _tail(log: Path) -> str:
    return "\n".join([f"--- {log.name}, last lines", *last_lines(log)])


def _dump(path: Path, content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def stage_environment(project: Path) -> dict[str, str]:
    """Return what every stage finds in its environment, the package among it."""
    quiet = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}
    launcher = {LAUNCHER_VARIABLE: identify()}
    return os.environ | quiet | launcher | python_path(project)


def warm_stages(project: Path) -> AbstractContextManager[None]:
    """Have the stages that are run meanwhile start without their imports, where they can."""
    return warm_interpreter(MODULES, project, stage_environment(project))
