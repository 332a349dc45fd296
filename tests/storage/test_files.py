"""Files on disk: whole or not there at all; a lock ends with whoever holds it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from account_tax.storage.files import Held, hold, read_json, write_json

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
