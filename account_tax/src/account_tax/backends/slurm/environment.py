"""The locked environment of a job, made once for all jobs on storage that the nodes share."""

from __future__ import annotations

import math
import os
import shlex
import shutil
from pathlib import Path
from typing import Literal

from mlflow.exceptions import ExecutionException
from mlflow.projects import utils

from account_tax.storage.files import hold, no_link

from .config import SlurmConfig


def make_environment(config: SlurmConfig, given: str | None, work_dir: Path) -> str | None:
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
    with hold(root / ".making", math.inf):  # two submissions at once make it once
        return _make(manager, conda_yaml, work_dir, root)


def _make(manager: Literal["uv", "conda"], conda_yaml: str, work_dir: Path, root: Path) -> str:
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
    open(whole, "ab", opener=no_link).close()
    return line
