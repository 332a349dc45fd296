"""A cell shows its text, whatever that is made of."""

import math

import pytest

from account_tax.reporting.markdown import EM_SPACE, escape_cell, format_number, markdown_table


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("fees | misc", r"fees \| misc"),
        (r"a\|b", r"a\\\|b"),  # the backslash would take the bar's own
        ("R&D <b>tax</b>", "R&amp;D &lt;b&gt;tax&lt;/b&gt;"),
        ("two\nlines\r\nor three", "two lines or three"),
        ("접대비", "접대비"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("![x](http://there/a.png)", r"!\[x\](http://there/a.png)"),
        ("`rm` *all* `", r"\`rm\` \*all\* \`"),
        ("`a` <script>`", r"\`a\` &lt;script&gt;\`"),
        ("`0a1b`", "`0a1b`"),  # code of our own
    ],
)
def test_a_label_stays_in_its_cell(text, cell):
    assert escape_cell(text) == cell


def test_every_cell_of_a_table_is_escaped_and_a_heading_too():
    table = markdown_table(["a|b", "c"], [["1|2", "`3`"]])
    heading = f"| a\\|b{EM_SPACE} | c{EM_SPACE} |"
    assert table.splitlines() == [heading, "| --- | --- |", r"| 1\|2 | `3` |"]


def test_a_heading_is_as_wide_as_its_column():
    heading, *_ = markdown_table(["f1", "rows"], [["0.9534", "12"], ["1.0", "7"]]).splitlines()
    assert heading == f"| f1\u2003\u2003\u2003{EM_SPACE} | rows{EM_SPACE} |"


def test_a_number_that_is_none_is_said_so():
    shown = [format_number(value, ".2f") for value in (0.5, math.nan, None)]
    assert shown == ["0.50", "NaN", "n/a"]
