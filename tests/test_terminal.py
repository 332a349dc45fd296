"""The line a person sees while a command works."""

import io

import pytest

from account_tax.terminal import ProgressLine, fact_line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that moves only when a test moves it."""
    now = [1000.0]
    monkeypatch.setattr("account_tax.terminal.time.monotonic", lambda: now[0])
    return now


def test_a_fact_is_broken_between_words_at_100_columns():
    assert fact_line("rows", 3) == f"{'rows':<24} 3"
    accounts = "접대비 (2), " * 20
    said = fact_line("gates", accounts)
    assert [len(line) <= 100 - 3 * line.count("접") for line in said.split("\n")] == [True] * 4
    assert " ".join(said.split()) == f"gates {accounts}".strip()
    assert fact_line("code", "x" * 200) == f"{'code':<24} {'x' * 200}"


def test_nothing_is_said_before_there_is_something():
    out = io.StringIO()
    line = ProgressLine(lambda: "", out)
    line.draw()
    line.close()
    assert out.getvalue() == ""


def test_a_terminal_gets_one_line_that_is_drawn_over(clock):
    out = Terminal()
    said = ["1"]
    line = ProgressLine(said.pop, out)
    line.draw()
    clock[0] += 1.0
    said.extend(["2", "2"])
    line.draw()
    clock[0] += 1.0
    line.close()
    assert out.getvalue().count("\r") == 2
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize(("out", "least_seconds"), [(Terminal(), 1.0), (io.StringIO(), 5.0)])
def test_lines_come_no_faster_than_a_person_reads(clock, out, least_seconds):
    said = iter(["1 of 100", "2 of 100"])
    line = ProgressLine(lambda: next(said), out)
    line.draw()
    clock[0] += least_seconds - 0.01
    line.draw()
    assert "2 of 100" not in out.getvalue()
    clock[0] += 0.02
    line.draw()
    assert "2 of 100" in out.getvalue()


def test_the_same_state_is_not_repeated(clock):
    out = io.StringIO()
    line = ProgressLine(lambda: "half", out)
    for _ in range(3):
        line.draw()
        clock[0] += 10
    line.close()
    assert out.getvalue() == "half\n"


def test_the_last_state_is_drawn_at_the_end_however_soon(clock):
    out = io.StringIO()
    said = iter(["99 of 100", "100 of 100"])
    line = ProgressLine(lambda: next(said), out)
    line.draw()
    line.close()
    assert "100 of 100" in out.getvalue()
