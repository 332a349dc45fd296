import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from account_tax.processes.ranks import get_mlflow_env, is_rank0, keep_operators_apart

BUILD = """
from account_tax.processes.ranks import keep_operators_apart
keep_operators_apart()
from torch.utils.cpp_extension import _get_build_directory
print(_get_build_directory("operator", verbose=False))
"""


@pytest.fixture
def unset(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "restored after the test")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")


def test_torch_builds_operators_in_a_folder_of_its_own_version(unset, tmp_path):
    source = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        env=os.environ | {"PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(done.stdout.strip())
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    name = f"{python}_torch{metadata.version('torch')}"
    assert folder == tmp_path / "torch_extensions" / name / "operator"


def test_a_folder_that_the_user_has_set_stays(unset, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/shared/operators")
    keep_operators_apart()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/shared/operators"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
    ],
)
def test_rank0_is_read_as_the_specification_says(monkeypatch, environment, expected):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", os.environ | environment)
    assert is_rank0() is expected


def test_mlflow_env_reads_the_three_variables(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert get_mlflow_env() == {
        "run_id": "abc",
        "tracking_uri": "http://127.0.0.1:5000",
        "experiment_name": None,
    }
