import os
import subprocess
import sys
from pathlib import Path

import pytest

from account_tax.backends.same_everywhere import (
    compare_hosts,
    describe_here,
    probe_ranks,
    read_answers,
)

SOURCE = Path(__file__).parents[2] / "account_tax" / "src"


def ask_as(rank, node):
    """Return what runs the probe here, as a rank on a node does."""

    def ask(words):
        own = {"PROBED_RANK": str(rank), "NODE": node, "PYTHONPATH": str(SOURCE)}
        done = subprocess.run(
            ["sh", *words], env=os.environ | own, capture_output=True, text=True, check=False
        )
        return done.stdout, done.stderr

    return ask


def test_the_same_machine_is_the_same(tmp_path):
    assert probe_ranks([tmp_path / "made"], ask_as(0, "n1"), [0]) == []
    assert list((tmp_path / "made").iterdir()) == []


def test_a_folder_that_is_not_seen_is_named(tmp_path):
    def elsewhere(words):
        words = [w.replace(str(tmp_path / "b"), str(tmp_path / "c")) for w in words]
        return ask_as(1, "n2")(words)

    (fault,) = probe_ranks([tmp_path / "a", tmp_path / "b"], elsewhere, [1])
    assert "node n2 (rank 1) does not see what the first one has there" in fault
    assert fault.startswith(str(tmp_path / "c"))


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    (fault,) = probe_ranks([tmp_path / "file" / "below"], ask_as(0, "n1"), [0])
    assert "can't be written" in fault


def test_differences_are_named():
    here = describe_here(SOURCE.parents[1])
    code = next(iter(here))
    assert list(compare_hosts(here, here)) == []
    other = here | {code: "0" * 64, "conda.yaml": "missing", "Python": "3.11.0"}
    other["packages"] = here["packages"] | {"torch": "1.0", "extra": "2"}
    said = "\n".join(compare_hosts(here, other))
    assert f"{code} is {here[code][:12]}, on the first node 000000000000" in said
    assert "on the first node missing" in said
    assert "Python is" in said
    assert "extra missing for 2" in said
    assert f"torch {here['packages']['torch']} for 1.0" in said


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("SAME\t0\tn1\t\n", "rank 1: did not start (srun: it broke)."),
        (
            "SAME\t0\tn1\t\nDIFFERS\t1\tn2\tPython is 3\n",
            "rank 1 (node n2): Python is 3. All ranks have to run the same.",
        ),
    ],
)
def test_answers_become_faults(said, fault):
    assert read_answers(said, "srun: it broke\n", range(2)) == [fault]


def test_the_ranks_of_a_node_are_named_together():
    said = (
        "".join(f"DIFFERS\t{rank}\tn2\tx\n" for rank in (3, 2)) + "SAME\t0\tn1\t\nSAME\t1\tn1\t\n"
    )
    (fault,) = read_answers(said, "", range(4))
    assert fault.startswith("ranks 2, 3 (node n2): x.")


def test_the_probe_needs_no_python_to_say_that_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (fault,) = probe_ranks([tmp_path], ask_as(0, "n1"), [0])
    assert fault.startswith(f"{tmp_path}/python: node n1 (rank 0) does not see")
