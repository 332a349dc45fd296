import os
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from account_tax import cli
from account_tax.processes.ranks import Baton, get_mlflow_env, is_rank0, keep_operators_apart
from account_tax.storage.names import LAUNCHER_VARIABLE

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


HOLDS = """
import sys, time
from account_tax.processes.ranks import keep_operators_apart
keep_operators_apart()
from torch.utils.cpp_extension import FileBaton
print(FileBaton(sys.argv[1]).try_acquire(), flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_build_keeps_nobody_waiting(unset, tmp_path):
    lock = tmp_path / "lock"
    lock.touch()  # as torch's own has left it
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(lock)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "True\n"
        assert not Baton(str(lock)).try_acquire()
        builder.kill()
    other = Baton(str(lock))
    assert other.try_acquire()
    other.release()
    assert not lock.exists()


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


FAILS_AND_LINGERS = """
    import sys, threading, time
    import torch.distributed as distributed
    from account_tax.processes.ranks import end_stage

    meeting = f"file://{sys.argv[1]}"
    distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    threading.Thread(target=time.sleep, args=(60,)).start()
    try:
        raise ValueError("no such schedule")
    except ValueError:
        end_stage(1)
"""


def test_a_rank_that_has_failed_is_gone_at_once_whatever_still_runs_in_it(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(FAILS_AND_LINGERS), str(tmp_path / "meeting")]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert "ValueError: no such schedule" in done.stderr


def test_a_rank_that_cannot_say_why_it_has_failed_is_gone_at_once_all_the_same(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(FAILS_AND_LINGERS), str(tmp_path / "meeting")]
    path = os.pathsep.join(sys.path)
    with open("/dev/full", "w", encoding="utf-8") as full:  # a disk without room
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, stdout=full, stderr=full, timeout=50
        )
    assert done.returncode == 1


WORKS_AND_LINGERS = """
    import os, threading, time
    from account_tax.processes.ranks import end_stage
    from account_tax.storage.names import LAUNCHER_VARIABLE

    print("done")
    end_stage()  # nobody waits for it
    os.environ[LAUNCHER_VARIABLE] = "somebody"
    end_stage(1)  # why it has failed is said by others
    threading.Thread(target=time.sleep, args=(60,)).start()
    end_stage()
"""


def test_a_stage_that_has_worked_is_gone_at_once_where_a_launcher_waits_for_it():
    command = [sys.executable, "-c", textwrap.dedent(WORKS_AND_LINGERS)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop(LAUNCHER_VARIABLE, None)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_pipeline_that_fails_ends_its_rank(monkeypatch):
    ends = []
    monkeypatch.setattr(cli, "guard_stage", lambda: None)
    monkeypatch.setattr(cli, "end_stage", ends.append)
    found = CliRunner().invoke(cli.run, ["--pipelines=none"])
    assert isinstance(found.exception, ValueError | SystemExit)
    assert ends == [1]
