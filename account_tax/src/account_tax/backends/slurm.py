"""The MLflow project backend `slurm`: `mlflow run . -b slurm --backend-config FILE.json`.

The command of the entry point runs once, on the first node of the job; `kedro train` starts its
ranks from there with srun (launch/places.py).
"""

# MLflow's base classes have no types: their abstract methods read as returning None.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TextIO

import click
from mlflow import MlflowClient, tracking
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.projects import utils
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import SubmittedRun
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_BACKEND

from account_tax.errors import Refused

from .secrets import hide_secrets, passed_names, secrets_in
from .slurm_config import SlurmConfig, read_config
from .slurm_job import JobState, SlurmError, SlurmJob, describe_demand, require_slurm, submit
from .slurm_runs import FOLDER_TAG, JOB_TAG, settle
from .slurm_script import SCRIPT_FILE, write_script

JOBS = Path("data", "jobs")  # below the project: shared between nodes, and ignored by git
ENDS_SECONDS = 120  # what a cancelled job may take: KillWait of slurm.conf and a little
OUTPUT_SECONDS = 5  # what a shared file system may take to show the last lines
MLFLOWS_KEYS = (
    *(utils.PROJECT_ENV_MANAGER, utils.PROJECT_SYNCHRONOUS, utils.PROJECT_DOCKER_ARGS),
    *(utils.PROJECT_STORAGE_DIR, utils.PROJECT_BUILD_IMAGE, utils.PROJECT_DOCKER_AUTH),
)


class SlurmBackend(AbstractBackend):
    """Submits an entry point as a job of Slurm and follows it to its end, unless told not to."""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: dict[str, str],
        version: str | None,
        backend_config: dict[str, Any],
        tracking_uri: str,
        experiment_id: str,
    ) -> SlurmRun:
        """Submit; see `AbstractBackend.run`.

        Under the `mlflow` command, which does not wait for a plugin, it waits here and exits with
        the job's own status. A caller of `mlflow.projects.run` waits by `synchronous=True`.
        """
        given = {key: value for key, value in backend_config.items() if key not in MLFLOWS_KEYS}
        try:
            config = read_config(given)
            require_slurm()
            work_dir = _fetch(project_uri, version, entry_point, params, config.shared_folder)
        except (Refused, SlurmError) as err:
            raise ExecutionException(str(err)) from err
        command = _command(work_dir, entry_point, params, backend_config)
        _check_parameters(work_dir, command)
        activate = _environment(config, backend_config[utils.PROJECT_ENV_MANAGER], work_dir)
        run_id = utils.get_or_create_run(
            None, project_uri, experiment_id, work_dir, version, entry_point, params
        ).info.run_id
        run = SlurmRun(run_id, _submit(config, work_dir, activate, command, run_id), config)
        click.echo(f"Slurm job {run.job.job_id}, MLflow run {run_id}, output {run.job.output}")
        if not config.wait:
            click.echo("Not waiting for it; `kedro runs` tells what became of it.")
        elif not backend_config[utils.PROJECT_SYNCHRONOUS]:
            run.follow_to_the_end()
        return run


class SlurmRun(SubmittedRun):
    """A submitted job and its MLflow run."""

    def __init__(self, run_id: str, job: SlurmJob, config: SlurmConfig):
        super().__init__()
        self._run_id, self.job, self._config = run_id, job, config
        self._state = JobState("PENDING")
        self._shown = 0  # bytes of the output
        self._announced = ""

    @property
    def run_id(self) -> str:
        """Id of the MLflow run."""
        return self._run_id

    def get_status(self) -> str:
        """Return the MLflow status that goes with the job's state now."""
        self._state = self.job.state() or self._state
        return self._state.mlflow_status

    def wait(self) -> bool:
        """Show the job's output until its end, settle the MLflow run, return whether it did well.

        Raises:
            ExecutionException: If the job can't ever start; it is cancelled then.
        """
        client = MlflowClient()
        while not self._state.ended:
            before = self._state
            self.get_status()
            self._announce(before, client)
            self._show_output(sys.stdout)
            if why := self._state.never_starts:
                self._give_up(why)
            time.sleep(0 if self._state.ended else self._config.poll_seconds)
        self._show_rest()
        status = settle(client, self._run_id, self.job, self._state)
        if status != "FINISHED":
            self._attach_output(client)
        return status == "FINISHED"

    def cancel(self) -> None:
        """End the job, and the MLflow run as KILLED."""
        self.job.cancel()
        deadline = time.monotonic() + ENDS_SECONDS
        while not self._state.ended and time.monotonic() < deadline:
            time.sleep(min(0.5, self._config.poll_seconds))
            self.get_status()
            self._show_output(sys.stdout)
        ended = self._state if self._state.ended else JobState("CANCELLED", status=143)
        settle(MlflowClient(), self._run_id, self.job, ended)

    def follow_to_the_end(self) -> None:
        """Wait; end the job on Ctrl-C or SIGTERM; leave with the job's status if it is not 0."""
        try:
            with _signals_interrupt():
                good = self.wait()
        except _Asked as asked:
            click.echo(f"{asked}: cancelling Slurm job {self.job.job_id}", err=True)
            self.cancel()
            _leave(f"Slurm job {self.job.job_id} was cancelled", 128 + asked.signum)
        if not good:
            said = f"Slurm job {self.job.job_id} did not succeed: {self._state.in_words()}"
            _leave(f"{said} (run {self._run_id}, output {self.job.output})", self._state.status)

    def _announce(self, before: JobState, client: MlflowClient) -> None:
        """Say what is new about the job, and tell the MLflow run while nobody else does."""
        now = self._state
        text = f"Slurm job {self.job.job_id}: {now.name.lower()}"
        text += f", {now.reason}" if now.name == "PENDING" and now.reason else ""
        if now.restarts > before.restarts:
            most = self._config.max_requeues
            click.echo(f"Slurm job {self.job.job_id}: queued again ({now.restarts} of {most})")
        if text != self._announced and not now.ended:
            click.echo(text)
            settle(client, self._run_id, self.job, now)
        self._announced = text

    def _show_output(self, out: TextIO) -> None:
        with suppress(FileNotFoundError), self.job.output.open("rb") as file:
            file.seek(self._shown)
            # A line that is half written is shown when it is whole.
            whole = file.read()
            if not self._state.ended:
                whole = whole[: max(whole.rfind(b"\n"), whole.rfind(b"\r")) + 1]
            self._shown += len(whole)
            out.write(whole.decode("utf-8", errors="replace"))
            out.flush()

    def _show_rest(self) -> None:
        deadline = time.monotonic() + OUTPUT_SECONDS
        while not self.job.output.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        self._show_output(sys.stdout)
        if not self.job.output.exists():
            click.echo(
                f"{self.job.output}: the job left no output. Does its first node see this folder? "
                "The project has to lie on storage that all nodes share.",
                err=True,
            )

    def _give_up(self, why: str) -> NoReturn:
        self.job.cancel()
        reason = (
            f"Slurm job {self.job.job_id} can't start: {self._state.reason}, {why}.\n"
            f"{describe_demand(self._config)}"
        )
        settle(MlflowClient(), self._run_id, self.job, JobState("FAILED", status=1), reason)
        raise ExecutionException(reason)

    def _attach_output(self, client: MlflowClient) -> None:
        """Keep the output of a job that did not succeed with its run, less the secrets."""
        with suppress(FileNotFoundError, MlflowException):
            text = self.job.output.read_text(encoding="utf-8", errors="replace")
            client.log_text(self._run_id, hide_secrets(text, os.environ), "logs/job.log")


class _Asked(Exception):
    """The submitter was asked to stop by a signal."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `_Asked`; a hangup leaves the job running."""

    def ask(signum: int, frame: FrameType | None) -> None:
        raise _Asked(signum)

    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _leave(reason: str, status: int) -> NoReturn:
    """End the `mlflow` command with the job's own status; an exception for any other caller."""
    if click.get_current_context(silent=True) is None:
        raise ExecutionException(reason)
    click.echo(reason, err=True)
    sys.exit(status or 1)


# --- before the job -------------------------------------------------------------------------------


def _fetch(
    uri: str, version: str | None, entry_point: str, params: dict[str, str], shared: str | None
) -> Path:
    """Return the project's folder; one that MLflow fetches goes to storage the nodes share."""
    if utils._is_local_uri(utils._parse_subdirectory(uri)[0]):
        return Path(utils.fetch_and_validate_project(uri, version, entry_point, params))
    if shared is None:
        raise SlurmError(
            f"shared_folder is not given: {uri} would be fetched to {tempfile.gettempdir()}, which "
            "other nodes don't see. Give a folder that all nodes see."
        )
    place, before = Path(shared, "projects"), tempfile.tempdir
    place.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(place)  # MLflow fetches to where temporary files go
    try:
        return Path(utils.fetch_and_validate_project(uri, version, entry_point, params))
    finally:
        tempfile.tempdir = before


def _command(
    work_dir: Path, entry_point: str, params: dict[str, str], backend_config: Mapping[str, Any]
) -> str:
    found = utils.load_project(str(work_dir)).get_entry_point(entry_point)
    assert found is not None  # only a project of Databricks has none
    return found.compute_command(params, backend_config[utils.PROJECT_STORAGE_DIR])


def _check_parameters(work_dir: Path, command: str) -> None:
    """Refuse wrong training parameters now, not when the job's turn has come.

    Only where the installed package is the project's own and has what it reads them with; in any
    case the job checks them.
    """
    from account_tax.code_digest import digest_package

    words = shlex.split(command)
    try:
        from account_tax.config import parse_command_line, resolve

        same = digest_package() == digest_package(work_dir / "account_tax/src/account_tax")
        if words[:2] == ["kedro", "train"] and same:
            resolve(work_dir, parse_command_line(words[2:]))
    except (ImportError, LookupError):
        return
    except Refused as err:
        raise ExecutionException(str(err)) from err


def _environment(config: SlurmConfig, given: str | None, work_dir: Path) -> str | None:
    """Make the locked environment, once for all jobs, and return the line that activates it.

    As MLflow makes it for `--env-manager`, which outranks the configuration's `environment`.
    """
    manager = config.environment if given is None else given
    if manager not in ("uv", "conda"):
        return None
    if config.shared_folder:
        os.environ["MLFLOW_ENV_ROOT"] = str(Path(config.shared_folder, "environments"))
    conda_yaml = utils.load_project(str(work_dir)).env_config_path
    if conda_yaml is None:
        raise ExecutionException(f"MLproject names no conda_env, so {manager} can't make it.")
    root = Path(os.environ.get("MLFLOW_ENV_ROOT", Path.home() / ".mlflow" / "envs"))
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".making").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two submissions at once make it once
        return _make_environment(manager, conda_yaml, work_dir, root)


def _make_environment(
    manager: Literal["uv", "conda"], conda_yaml: str, work_dir: Path, root: Path
) -> str:
    from mlflow.utils import virtualenv
    from mlflow.utils.conda import get_or_create_conda_env
    from mlflow.utils.environment import _PythonEnv

    if manager == "conda":
        made = get_or_create_conda_env(conda_yaml, env_root_dir=str(root))
        assert made is not None
        finds_it = [f"export {name}={shlex.quote(path)}" for name, path in made._extra_env.items()]
        return " && ".join([*finds_it, *map(str, made.get_activate_command())])
    wanted = _PythonEnv.from_conda_yaml(conda_yaml)
    folder = root / virtualenv._get_virtualenv_name(wanted, work_dir)
    whole = folder / ".whole"
    if not whole.exists():  # MLflow takes what an interrupted attempt has left
        shutil.rmtree(folder, ignore_errors=True)
    line = virtualenv._create_virtualenv(work_dir, wanted, folder, env_manager=manager)
    whole.touch()
    return line


# --- the job --------------------------------------------------------------------------------------


def _submit(
    config: SlurmConfig, work_dir: Path, activate: str | None, command: str, run_id: str
) -> SlurmJob:
    """Write the job's script and submit it; a run of which no job came is FAILED, with the reason.

    What the environment holds goes over by name alone: Slurm keeps the values, the script has none.
    """
    client, folder = MlflowClient(), work_dir / JOBS / run_id
    run = client.get_run(run_id)
    environment = _job_environment(run_id, run.info.experiment_id)
    try:
        script = write_script(folder, config, work_dir, activate, command)
        words = _sbatch_words(config, folder, passed_names(environment, config.pass_environment))
        _refuse_secrets(script + " ".join(words), environment)
        folder.mkdir(parents=True)
        (folder / SCRIPT_FILE).write_text(script, encoding="utf-8")
        job = SlurmJob(submit(words, environment, config), folder)
    except (SlurmError, OSError) as err:
        failed = SlurmJob("none", folder)
        settle(client, run_id, failed, JobState("FAILED", status=1), str(err))
        raise ExecutionException(str(err)) from err
    tags = {JOB_TAG: job.job_id, FOLDER_TAG: str(folder), MLFLOW_PROJECT_BACKEND: "slurm"}
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    return job


def _job_environment(run_id: str, experiment_id: str) -> dict[str, str]:
    """Return the environment `sbatch` finds: this one, the run's, nothing of a job around us."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }
    store = utils.get_run_env_vars(run_id, experiment_id)
    store["MLFLOW_TRACKING_URI"] = _absolute(tracking.get_tracking_uri())
    return kept | store


def _absolute(store: str) -> str:
    """Return a tracking URI that means the same in another folder."""
    path = store.removeprefix("sqlite:///")
    relative = path != store and not path.startswith("/")
    return f"sqlite:///{Path(path).resolve()}" if relative else store


def _sbatch_words(config: SlurmConfig, folder: Path, names: list[str]) -> list[str]:
    # TERM goes to the ranks, not to the batch script: they save what they have and end.
    return [
        f"--job-name=account-tax-{folder.name[:8]}",
        *config.sbatch_options(),
        *(f"--output={folder / 'job.out'}", "--open-mode=append"),
        *("--requeue" if config.max_requeues else "--no-requeue",),
        f"--signal=TERM@{config.notice_seconds}",
        f"--export={','.join(names)}",
        str(folder / SCRIPT_FILE),
    ]


def _refuse_secrets(text: str, environment: Mapping[str, str]) -> None:
    if names := secrets_in(text, environment):
        raise SlurmError(
            f"the value of {', '.join(names)} stands in a -P parameter or the backend "
            "configuration, and would be written to the job script. Pass it by the environment."
        )
