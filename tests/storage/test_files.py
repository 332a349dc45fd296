"""Files on disk: whole or not there at all; a lock ends with whoever holds it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from account_tax.storage.files import (
    Held,
    hold,
    output_faults,
    read_json,
    scratch_folder,
    write_json,
)

HOLDER = """
import sys
from pathlib import Path
from account_tax.storage.files import hold
with hold(Path(sys.argv[1])) as sign:
    sign({"run_id": "abc"})
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_and_sign(lock: Path, owner: dict) -> None:
    with hold(lock) as sign:
        sign(owner)


def test_a_lock_names_its_holder_and_ends_with_it_however_that_ends(tmp_path):
    lock = tmp_path / "store" / "launch.lock"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "account_tax/src")}
    holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Held) as held, hold(lock):
        pass
    assert held.value.owner == {"pid": holder.pid, "run_id": "abc"}
    threading.Timer(0.5, holder.kill).start()
    with hold(lock, patience_seconds=30) as sign:  # it is waited for
        sign({})
        assert read_json(lock)["pid"] == os.getpid()
    holder.communicate()


@pytest.mark.parametrize("write", [write_json, hold_and_sign])
def test_a_planted_link_is_never_followed(tmp_path, write):
    mine = tmp_path / "mine"
    mine.write_text("keep this")
    for name in ("launch.lock", ".launch.lock.new"):
        (tmp_path / name).symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"):
        write(tmp_path / "launch.lock", {})
    assert mine.read_text() == "keep this"


def test_a_folder_that_only_seems_writable_is_a_fault():
    (fault,) = output_faults(Path("/proc"), [], "")  # whatever its bits say
    assert "can't be written to (No such file or directory)" in fault


def test_a_scratch_folder_goes_also_while_something_writes_into_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remove, late = os.rmdir, [1]

    def write_and_remove(path, **options):  # as MLflow's threads do when a download is interrupted
        if late:
            next(tmp_path.glob("*/model")).joinpath(f"late-{late.pop()}").touch()
        remove(path, **options)

    def end_early() -> None:
        with scratch_folder() as scratch:
            (scratch / "model").mkdir()
            raise KeyError("why")

    monkeypatch.setattr("os.rmdir", write_and_remove)
    with pytest.raises(KeyError, match="why"):
        end_early()
    assert list(tmp_path.iterdir()) == []
