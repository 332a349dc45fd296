"""The one line a person sees while ranks train."""

from __future__ import annotations

import math
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from account_tax.storage.files import read_json

BAR_WIDTH = 24


class ProgressLine:
    """Draws rank 0's progress file: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, file: Path, out: TextIO = sys.stderr):
        self._file, self._out = file, out
        self._terminal = out.isatty()
        self._every_seconds = 1.0 if self._terminal else 5.0
        self._drawn_at = 0.0
        self._last = ""

    def draw(self, force: bool = False) -> None:
        """Draw, if there is something new and the last time is long enough ago."""
        now = time.monotonic()
        if not force and now - self._drawn_at < self._every_seconds:
            return
        progress = read_json(self._file)
        if progress and (line := format_progress(progress)) != self._last:
            self._out.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
            self._out.flush()
            self._drawn_at, self._last = now, line

    def close(self) -> None:
        """Draw the last state and leave the line."""
        self.draw(force=True)
        if self._terminal and self._last:
            self._out.write("\n")


def format_progress(progress: dict[str, float]) -> str:
    """Return the line for what rank 0 wrote: step, loss in nats, useful tokens/s, time left."""
    step, steps = int(progress["step"]), int(progress["max_steps"])
    filled = BAR_WIDTH * step // max(steps, 1)
    bar = "█" * filled + "·" * (BAR_WIDTH - filled)
    parts = [f"train {bar} {step}/{steps}"]
    if math.isfinite(progress["loss"]):
        parts.append(f"loss {progress['loss']:.4f}")
    if progress["tokens_per_sec"]:
        parts.append(f"{progress['tokens_per_sec']:,.0f} tokens/s")
    if math.isfinite(progress["eta_seconds"]):
        parts.append(f"{timedelta(seconds=round(progress['eta_seconds']))} left")
    return "  ".join(parts)
