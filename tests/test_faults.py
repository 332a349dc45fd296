import ast
import re
from pathlib import Path

import account_tax
from account_tax.faults import hint, in_a_line, nearest, shorten, tell, with_rows

PACKAGE = Path(account_tax.__file__).parent


def test_faults_are_counted_and_each_has_a_line():
    assert tell(["a"], "in the data") == "1 problem in the data\n  a"
    assert tell(["a", "b"], "in the data") == "2 problems in the data\n  a\n  b"


def test_a_line_on_faults_has_the_first_of_them():
    assert in_a_line(tell(["r = x: no number.", "b"], "in it")) == "r = x: no number. (1 more)"
    assert in_a_line(tell(["a"], "in it") + "\nmore") == "a"
    assert in_a_line("training failed: why\n--- log") == "training failed: why"


def test_the_nearest_name_is_hinted_at_or_else_all_there_are():
    assert nearest("min_f2", ["max_loss", "min_f1"]) == "min_f1"
    assert hint("min_f2", ["max_loss", "min_f1"]) == "Did you mean min_f1?"
    assert hint("xyz", ["max_loss", "min_f1"]) == "There are: max_loss, min_f1."


def test_a_long_label_is_cut():
    (said,) = with_rows({"x" * 3000: 2})
    assert said == f"{'x' * 57}...{'x' * 16} (2)"
    assert shorten(["a", said]) == f"a, {said}"
    assert len(shorten(["x" * 3000])) == 80


def test_nothing_else_counts_faults_or_looks_for_near_names():
    for file in PACKAGE.rglob("*.py"):
        if file.name == "faults.py":
            continue
        text = file.read_text(encoding="utf-8")
        imported = {
            alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)
            for alias in node.names
        }  # fmt: skip
        assert "difflib" not in imported, file
        assert not re.search(r'"problems?\b', text), file
        assert "problem{" not in text, file
