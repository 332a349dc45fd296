"""The MLflow project backend `slurm`: `mlflow run . -b slurm --backend-config FILE.json`.

The command of the entry point runs once, on the first node of the job; `kedro train` starts its
ranks from there with srun (ranks.py).
"""

# MLflow's base classes have no types: their abstract methods read as returning None.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from mlflow import MlflowClient, tracking
from mlflow.exceptions import ExecutionException
from mlflow.projects import utils
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_BACKEND

from account_tax.backends.handed_over import passed_names
from account_tax.confidential import secrets_in
from account_tax.errors import Refused
from account_tax.tracking.ownership import SLURM_TAG
from account_tax.tracking.store import absolute_store

from .config import SlurmConfig, read_config
from .environment import make_environment
from .job import JobState, SlurmError, SlurmJob, require_slurm, submit
from .runs import FOLDER_TAG, end_with_job
from .script import SCRIPT_FILE, write_script
from .submitted import SlurmRun

JOBS = Path("data", "jobs")  # below the project: shared between nodes, and ignored by git
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
        activate = make_environment(config, backend_config[utils.PROJECT_ENV_MANAGER], work_dir)
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
    from account_tax.provenance.code import PACKAGE_FOLDER, digest_package

    words = shlex.split(command)
    try:
        from account_tax.parameters.config import parse_command_line, resolve

        same = digest_package() == digest_package(work_dir / PACKAGE_FOLDER)
        if words[:2] in (["kedro", "train"], ["kedro", "tune"]) and same:
            resolve(work_dir, parse_command_line(words[2:]))
    except (ImportError, LookupError):
        return
    except Refused as err:
        raise ExecutionException(str(err)) from err


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
        end_with_job(client, run_id, failed, JobState("FAILED", status=1), str(err))
        raise ExecutionException(str(err)) from err
    tags = {SLURM_TAG: job.job_id, FOLDER_TAG: str(folder), MLFLOW_PROJECT_BACKEND: "slurm"}
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
    store["MLFLOW_TRACKING_URI"] = absolute_store(tracking.get_tracking_uri())
    return kept | store


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
