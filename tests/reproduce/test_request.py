"""The words of `kedro reproduce`."""

import os
import subprocess
import sys

import pytest

from account_tax.errors import Refused
from account_tax.reproduce.request import parse_rungs


def test_rungs_are_read_in_any_order_and_stand_on_the_first():
    assert parse_rungs("r3, R1") == ("R0", "R1", "R3")
    with pytest.raises(Refused, match="R4 is none"):
        parse_rungs("R0,R4")


def test_a_wrong_option_is_refused_before_torch_is_loaded():
    code = (
        "import sys; from pathlib import Path; import account_tax.reproduce.command as c\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
