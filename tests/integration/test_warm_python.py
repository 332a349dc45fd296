"""A command whose work a warm Python does sees, says and ends as one that starts by itself."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from account_tax.processes.identity import identify, state_of

pytestmark = pytest.mark.integration

WARM = Path(__file__).parents[1] / "warm"
SCRIPT = """
import json, os, sys, time
print(json.dumps({
    "words": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ),
    "name": __name__, "file": __file__, "path": [place for place in sys.path if place],
    "parent": os.getppid(), "umask": os.umask(0),
    "read": os.read(int(sys.argv[1]), 9).decode() if sys.argv[1:2] else sys.stdin.read(),
    "encodings": [sys.stdin.encoding, sys.stdout.encoding, sys.stderr.errors],
}), flush=True)
print("torch" in sys.modules, os.getpid(), file=sys.stderr, flush=True)
if sys.argv[1:] == []:
    sys.exit(7)
time.sleep(120 if sys.argv[2:] else 0)
"""


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Yield what starts the script, once there is a warm Python for it."""
    folder = tmp_path_factory.mktemp("script")
    script, place = folder / "verify.py", folder / "warm"
    script.write_text(SCRIPT)
    place.mkdir()
    listed = Path(os.environ["WARM_PYTHON"]) / "modules.json"
    if listed.is_file():  # what other tests' commands have found already
        shutil.copy(listed, place)

    def begin(*words: object, warm: bool = True, **how) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, script, *map(str, words)], text=True, cwd=folder,
            env=os.environ | {"WARM_PYTHON": str(place) if warm else "", "PYTHONPATH": str(WARM)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            **{"stdin": subprocess.PIPE, **how},
        )  # fmt: skip

    for _ in range(2):
        assert begin().communicate("")[1].startswith("False")
    wait_until(lambda: [file for file in place.iterdir() if file.is_socket()])
    yield begin
    shutil.rmtree(place)  # whose end the warm one waits for


def test_it_sees_what_any_command_sees_and_ends_like_it(start):
    ours, theirs = start(umask=0o027), start(umask=0o027, warm=False)
    warm, cold = ours.communicate("a line"), theirs.communicate("a line")
    seen, expected = json.loads(warm[0]), json.loads(cold[0])
    assert seen["read"] == "a line"
    assert seen["environment"].pop("WARM_PYTHON") != expected["environment"].pop("WARM_PYTHON")
    assert seen == expected
    assert (ours.returncode, theirs.returncode) == (7, 7)
    assert [said.split()[0] for said in (warm[1], cold[1])] == ["True", "False"]


def test_it_has_the_descriptors_it_was_given(start):
    read, write = os.pipe()
    os.write(write, b"through it")
    done = start(read, pass_fds=[read])
    assert json.loads(done.communicate()[0])["read"] == "through i"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_command_that_waits(start, signum):
    with Path("/proc/self/environ").open() as any_file:
        process = start(any_file.fileno(), "sleep", pass_fds=[any_file.fileno()])
    said = process.stderr.readline().split()
    doing = identify(int(said[1]))
    assert (said[0], state_of(doing)) == ("True", "alive")
    process.send_signal(signum)
    assert process.wait(timeout=30) == -signum
    wait_until(lambda: state_of(doing) == "gone")


def test_in_other_surroundings_it_starts_by_itself(start):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    fewer = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, limit))  # noqa: E731
    assert start(preexec_fn=fewer).communicate("")[1].startswith("False")
