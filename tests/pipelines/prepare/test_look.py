from __future__ import annotations

import pytest

from account_tax.parameters.config import ConfigError
from account_tax.pipelines.prepare.look import look


def test_a_ledger_is_shown_in_counts_and_no_line_of_it(
    parameters, ledger_csv, two_classes, model, capsys
):
    data = parameters(ledger_csv(*two_classes, ("rent line 0", "rent")))
    look(data, {"model": model})
    shown = capsys.readouterr().out
    assert "rows read                41, left out: 1 duplicate" in shown
    assert "0.0% are cut at" in shown
    accounts = [line.split() for line in shown.splitlines()[-2:]]
    assert sorted(accounts) == [["16", "2", "2", "rent"], ["16", "2", "2", "travel"]]
    assert "line" not in shown


def test_all_faults_of_a_ledger_are_said(parameters, ledger_csv, two_classes, model):
    data = parameters(ledger_csv(*two_classes, ("once", "rare")), rare="refuse")
    with pytest.raises(ConfigError, match=r"1 problem in the parameters\n  data\.rare = refuse"):
        look(data, {"model": model})
