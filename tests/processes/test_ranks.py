import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from account_tax.processes.ranks import keep_operators_apart

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
