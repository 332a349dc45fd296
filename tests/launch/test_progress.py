import io
import json
import math

import pytest

from account_tax.launch.progress import BAR_WIDTH, ProgressLine, format_progress

HALFWAY = {
    "step": 50,
    "max_steps": 100,
    "loss": 0.51239,
    "tokens_per_sec": 12345.6,
    "eta_seconds": 61.4,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def file(tmp_path):
    return tmp_path / "progress.json"


@pytest.fixture
def clock(monkeypatch):
    """Time that moves only when a test moves it."""
    now = [1000.0]
    monkeypatch.setattr("account_tax.launch.progress.time.monotonic", lambda: now[0])
    return now


def write(file, **changes):
    file.write_text(json.dumps(HALFWAY | changes))


def test_the_line_has_step_loss_speed_and_time_left():
    bar = "█" * (BAR_WIDTH // 2) + "·" * (BAR_WIDTH // 2)
    expected = f"train {bar} 50/100  loss 0.5124  12,346 tokens/s  0:01:01 left"
    assert format_progress(HALFWAY) == expected


def test_what_is_not_known_yet_is_left_out():
    start = {"step": 0, "loss": math.nan, "tokens_per_sec": 0, "eta_seconds": math.nan}
    assert format_progress(HALFWAY | start) == f"train {'·' * BAR_WIDTH} 0/100"


def test_nothing_is_said_before_rank_0_writes(file):
    out = io.StringIO()
    line = ProgressLine(file, out)
    line.draw()
    line.close()
    assert out.getvalue() == ""


def test_a_terminal_gets_one_line_that_is_drawn_over(file, clock):
    out = Terminal()
    line = ProgressLine(file, out)
    for step in (1, 2):
        write(file, step=step)
        line.draw()
        clock[0] += 1.0
    line.close()
    assert out.getvalue().count("\r") == 2
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize(("out", "least_seconds"), [(Terminal(), 1.0), (io.StringIO(), 5.0)])
def test_lines_come_no_faster_than_a_person_reads(file, clock, out, least_seconds):
    line = ProgressLine(file, out)
    write(file, step=1)
    line.draw()
    write(file, step=2)
    clock[0] += least_seconds - 0.01
    line.draw()
    assert "2/100" not in out.getvalue()
    clock[0] += 0.02
    line.draw()
    assert "2/100" in out.getvalue()


def test_the_same_state_is_not_repeated(file, clock):
    out = io.StringIO()
    line = ProgressLine(file, out)
    write(file)
    for _ in range(3):
        line.draw()
        clock[0] += 10
    line.close()
    assert out.getvalue().count("50/100") == 1


def test_the_last_state_is_drawn_at_the_end_however_soon(file, clock):
    out = io.StringIO()
    line = ProgressLine(file, out)
    write(file, step=99)
    line.draw()
    write(file, step=100)
    line.close()
    assert "100/100" in out.getvalue()
