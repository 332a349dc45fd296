"""A run's metric points: each is written to a file at once, and sent from it in order, once.

A store keeps one point of the same key, step, timestamp and value (MLflow 3.17's primary key of the
table `metrics`), and those are fixed when a point is written. So whatever is not known to be stored
is sent again, after an outage or a crash, and is never there twice.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Metric

from account_tax.storage.files import lock, no_link, write_whole
from account_tax.storage.names import METRICS_FOLDER

MAX_BATCH = 1000  # metrics a request: MLflow's own limit
MAX_UNSENT_BYTES = 256 * 2**20  # about 2.5 million points
LOCK_SECONDS = 60.0  # a rank of an earlier attempt that is about to end


log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One line of the file."""

    key: str
    value: float
    step: int
    timestamp: int  # ms since the epoch


def journal_file(artifacts_root: Path, run_id: str) -> Path:
    """Return the file that has the points of a run."""
    return artifacts_root / METRICS_FOLDER / f"{run_id}.jsonl"


class MetricJournal:
    """The file of a run's points, opened to write by one process at a time.

    A line is cut off where a crash has left a half one. Points that an earlier attempt has written
    are not written again: a resumed training repeats its last steps.
    """

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.dropped = file, 0
        self._descriptor = no_link(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._lock()
        self._size = _cut_half_line(self._descriptor)
        self._last = {point.key: point for point in read_points(file)}
        self._clock = Clock(max((point.timestamp for point in self._last.values()), default=0))

    def _lock(self) -> None:
        """Wait for a rank of an earlier attempt to end, so that no two write at once."""
        try:
            lock(self._descriptor, LOCK_SECONDS)
        except BlockingIOError:
            raise RuntimeError(
                f"{self.file}: another process still writes the metrics of this run. "
                "Wait for it to end, or end it."
            ) from None
        except OSError:  # a file system without locks
            return

    def add(self, metrics: Mapping[str, float], step: int, *, final: bool = False) -> None:
        """Write points, but none of a step that its key has already.

        Args:
            metrics: Values by key.
            step: Optimizer updates done.
            final: Whether another value of the same step is written too: after training the best
                model is evaluated, and that one is registered.
        """
        now = self._clock.now_ms()
        points = [Point(key, float(value), step, now) for key, value in metrics.items()]
        points = [point for point in points if not self._is_there(point, final)]
        lines = "".join(json.dumps(point._asdict()) + "\n" for point in points).encode()
        if not lines:
            return
        try:
            if self._size - read_sent(self.file) + len(lines) > MAX_UNSENT_BYTES:
                raise OSError(f"{MAX_UNSENT_BYTES:,} bytes of it wait for the store already")
            self._write(lines)
        except OSError as err:  # training itself is good, and must not end for this
            if not self.dropped:
                log.error("%s takes no more points: %s. They are lost from here.", self.file, err)
            self.dropped += len(points)
        self._last |= {point.key: point for point in points}

    def _is_there(self, point: Point, final: bool) -> bool:
        last = self._last.get(point.key)
        if last is None or point.step > last.step:
            return False
        return point.step < last.step or not final or point.value == last.value

    def _write(self, lines: bytes) -> None:
        try:
            if os.write(self._descriptor, lines) != len(lines):
                raise OSError("the disk is full")
            self._size += len(lines)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise

    def sync(self) -> None:
        """Wait until the disk has what was written: nothing is sent that could be forgotten."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file, and so free it for another process."""
        os.close(self._descriptor)


class Clock:
    """Milliseconds since the epoch that never go back, whatever is done to the machine's clock."""

    def __init__(self, not_before: int = 0):
        self._base = max(int(time.time() * 1000), not_before)
        self._started = time.clock_gettime(time.CLOCK_BOOTTIME)  # a suspended machine counts too

    def now_ms(self) -> int:
        """Return the time that has passed, added to the time when this was made."""
        return self._base + int((time.clock_gettime(time.CLOCK_BOOTTIME) - self._started) * 1000)


def read_points(file: Path, offset: int = 0) -> Iterator[Point]:
    """Yield the whole lines from a byte offset on; a damaged one is left out, and said."""
    for line in _lines(file, offset):
        if point := _parse(line):
            yield point
        else:
            log.error("%s: a damaged line is left out", file)


def _lines(file: Path, offset: int) -> Iterator[bytes]:
    if not file.is_file():
        return
    with file.open("rb") as opened:
        opened.seek(offset)
        for line in opened:
            if line.endswith(b"\n"):
                yield line


def _parse(line: bytes) -> Point | None:
    with suppress(ValueError, TypeError):
        point = Point(**json.loads(line))
        if type(point.key) is str and type(point.step) is type(point.timestamp) is int:
            return point._replace(value=float(point.value))
    return None


def _cut_half_line(descriptor: int) -> int:
    """Cut off what stands behind the last newline; return the size."""
    size = end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 4096)
        if (place := os.pread(descriptor, end - start, start).rfind(b"\n")) >= 0:
            end = start + place + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
    return end


# --- sending --------------------------------------------------------------------------------------


def read_sent(file: Path) -> int:
    """Return how many bytes of a journal are known to be stored."""
    try:
        sent = int(file.with_suffix(".sent").read_text())
    except (OSError, ValueError):
        return 0  # all of it is sent again, and stored once
    return sent if 0 <= sent <= file.stat().st_size else 0


def count_unsent(file: Path) -> int:
    """Return how many points of a journal are not known to be stored."""
    return sum(1 for _ in read_points(file, read_sent(file)))


def send_batch(client: MlflowClient, run_id: str, file: Path) -> int:
    """Store the next points of a journal, at most MAX_BATCH, and return how many they were."""
    offset, points, lines = read_sent(file), list[Metric](), 0
    for line in _lines(file, offset):
        offset, lines = offset + len(line), lines + 1
        if point := _parse(line):
            points.append(Metric(point.key, point.value, point.timestamp, point.step))
        if len(points) == MAX_BATCH:
            break
    if points:
        client.log_batch(run_id, points, synchronous=True)
    if lines:
        # Forgotten in a power cut, it costs a second sending.
        write_whole(file.with_suffix(".sent"), f"{offset}\n", synced=False)
    return len(points)


def newest_timestamp(file: Path) -> int:
    """Return the time of a journal's newest point, ms since the epoch; 0 where it has none."""
    return max((point.timestamp for point in read_points(file)), default=0)
