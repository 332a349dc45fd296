import json
import math
import resource
import threading
import time

import pytest

from account_tax.tracking import metric_journal
from account_tax.tracking.metric_journal import (
    Clock,
    MetricJournal,
    count_unsent,
    newest_timestamp,
    read_points,
    read_sent,
    send_batch,
)


def written(file):
    return [(point.key, point.step, point.value) for point in read_points(file)]


def stored(client, run_id, key):
    return [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run_id, key)]


# --- what is written ------------------------------------------------------------------------------


def test_a_point_is_in_the_file_before_the_call_returns(journal, file):
    journal.add({"train/loss": 0.5, "train/epoch": 1}, 10)
    journal.add({"train/loss": math.nan}, 20)
    assert written(file)[:2] == [("train/loss", 10, 0.5), ("train/epoch", 10, 1.0)]
    assert math.isnan(written(file)[2][2])


def test_a_point_of_a_step_that_its_key_has_is_not_written_again(journal, file):
    journal.add({"cpu/rss_mb": 100}, 10)
    journal.add({"cpu/rss_mb": 101}, 10)
    journal.add({"cpu/rss_mb": 99, "eval/loss": 0.7}, 5)
    assert written(file) == [("cpu/rss_mb", 10, 100.0), ("eval/loss", 5, 0.7)]


def test_the_best_models_evaluation_is_written_beside_the_last_models(journal, file):
    journal.add({"eval/f1": 0.8, "train/epoch": 2.0}, 10)
    for _ in range(2):  # and once only, should a resumed training repeat it
        journal.add({"eval/f1": 0.9, "train/epoch": 2.0}, 10, final=True)
    assert written(file) == [("eval/f1", 10, 0.8), ("train/epoch", 10, 2.0), ("eval/f1", 10, 0.9)]


def test_a_resumed_training_writes_only_what_is_new(file):
    for steps in (range(1, 31), range(21, 41)):  # from the checkpoint at step 20
        journal = MetricJournal(file)
        for step in steps:
            journal.add({"train/loss": 1 / step, "speed/tokens_per_sec": time.perf_counter()}, step)
        journal.close()
    for key in ("train/loss", "speed/tokens_per_sec"):
        assert [step for name, step, _ in written(file) if name == key] == list(range(1, 41))


@pytest.mark.parametrize("torn", [b'{"key": "train/lo', b'{"key"' + b" " * 9000])
def test_a_half_line_is_cut_off_and_its_point_written_again(file, torn):
    journal = MetricJournal(file)
    journal.add({"train/loss": 0.5}, 1)
    journal.close()
    with file.open("ab") as opened:
        opened.write(torn)
    journal = MetricJournal(file)
    journal.add({"train/loss": 0.4}, 2)
    journal.close()
    assert written(file) == [("train/loss", 1, 0.5), ("train/loss", 2, 0.4)]


def test_a_damaged_line_is_left_out_and_said(journal, file, caplog):
    journal.add({"train/loss": 0.5}, 1)
    with file.open("ab") as opened:
        opened.write(b'\x00\x00{"key": 3}\n[1, 2]\n')
    journal.add({"train/loss": 0.4}, 2)
    assert written(file) == [("train/loss", 1, 0.5), ("train/loss", 2, 0.4)]
    assert "a damaged line is left out" in caplog.text


def test_two_processes_never_write_at_once(journal, file, monkeypatch):
    monkeypatch.setattr(metric_journal, "LOCK_SECONDS", 0.3)
    with pytest.raises(RuntimeError, match="another process still writes the metrics"):
        MetricJournal(file)


def test_the_next_attempt_waits_for_a_rank_that_is_about_to_end(file):
    first = MetricJournal(file)
    threading.Timer(0.5, first.close).start()
    MetricJournal(file).close()


def test_a_full_disk_loses_points_but_not_the_training(journal, file, caplog):
    journal.add({"train/loss": 0.5}, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 40, before[1]))
    try:
        journal.add({"train/loss": 0.4}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.add({"train/loss": 0.3}, 3)
    assert [step for _, step, _ in written(file)] == [1, 3]
    assert journal.dropped == 1
    assert "takes no more points" in caplog.text


def test_the_file_grows_without_bound_only_where_the_store_has_the_points(
    journal, file, client, run_id, monkeypatch
):
    monkeypatch.setattr(metric_journal, "MAX_UNSENT_BYTES", 1000)
    for step in range(100):
        journal.add({"train/loss": 0.5}, step)
    assert 0 < len(written(file)) < 20
    assert journal.dropped == 100 - len(written(file))
    send_batch(client, run_id, file)
    journal.add({"train/loss": 0.5}, 100)
    assert written(file)[-1][1] == 100


# --- the clock ------------------------------------------------------------------------------------


def test_a_clock_set_back_moves_no_timestamp_back(file, monkeypatch):
    journal = MetricJournal(file)
    journal.add({"train/loss": 0.5}, 1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    journal.add({"train/loss": 0.4}, 2)
    journal.close()
    journal = MetricJournal(file)  # the next attempt, an hour "earlier"
    journal.add({"train/loss": 0.3}, 3)
    journal.close()
    times = [point.timestamp for point in read_points(file)]
    assert times == sorted(times)
    assert times[2] - times[0] < 60_000
    assert newest_timestamp(file) == times[2]


def test_the_clock_goes_on_as_time_passes():
    clock = Clock()
    before = clock.now_ms()
    time.sleep(0.05)
    assert 45 <= clock.now_ms() - before < 5000


# --- what is sent ---------------------------------------------------------------------------------


def test_points_are_stored_in_order_in_batches_and_nothing_twice(journal, file, client, run_id):
    for step in range(1100):
        journal.add({"a": step / 3, "b": math.nan if step % 2 else math.inf}, step)
    counts = []
    while count := send_batch(client, run_id, file):
        counts.append(count)
    assert counts == [1000, 1000, 200]
    assert count_unsent(file) == 0
    file.with_suffix(".sent").unlink()  # a crash before what was confirmed was noted
    while send_batch(client, run_id, file):
        pass
    points = [point for point in read_points(file) if point.key == "a"]
    assert stored(client, run_id, "a") == [(p.step, p.value, p.timestamp) for p in points]
    assert len(stored(client, run_id, "b")) == 1100


@pytest.mark.parametrize("text", ["", "x", "-5", "999999999"])
def test_a_note_of_what_is_stored_that_can_not_be_is_no_note(journal, file, text):
    journal.add({"train/loss": 0.5}, 1)
    file.with_suffix(".sent").write_text(text)
    assert read_sent(file) == 0
    assert count_unsent(file) == 1


def test_the_file_holds_keys_and_numbers_only(journal, file):
    journal.add({"train/loss": 0.5}, 1)
    (line,) = file.read_text().splitlines()
    assert json.loads(line).keys() == {"key", "value", "step", "timestamp"}
