"""What a launched run shows of its stages while they work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from account_tax.storage.files import read_json

BAR_WIDTH = 24


def describe_progress(stage: str, file: Path) -> str:
    """Return the line for what a stage wrote of itself, empty where it has written nothing yet.

    A rank tells its step, the loss in nats, useful tokens/s and the time left; another stage the
    node it is at (hooks.py).
    """
    progress: Mapping[str, Any] = read_json(file)
    if not progress:
        return ""
    step, steps = int(progress["step"]), int(progress["max_steps"])
    filled = BAR_WIDTH * step // max(steps, 1)
    parts = [f"{stage} {'█' * filled}{'·' * (BAR_WIDTH - filled)} {step}/{steps}"]
    if "loss" not in progress:
        return f"{parts[0]}  {progress['doing']}"
    if math.isfinite(progress["loss"]):
        parts.append(f"loss {progress['loss']:.4f}")
    if progress["tokens_per_sec"]:
        parts.append(f"{progress['tokens_per_sec']:,.0f} tokens/s")
    if math.isfinite(progress["eta_seconds"]):
        parts.append(f"{timedelta(seconds=round(progress['eta_seconds']))} left")
    return "  ".join(parts)
