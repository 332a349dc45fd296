"""What a command said: its answer, or the end of its log."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TAIL_LINES = 12
FRAME = re.compile(r"(\[?\w+\]?: ?)?( {2}File \"| {4}|Traceback \(most recent)")


def answer_of(
    words: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it said; one that is missing or hangs has the status 127."""
    try:
        return subprocess.run(
            words,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            start_new_session=True,  # Ctrl-C is for the one who asks
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        return subprocess.CompletedProcess(words, 127, "", str(err))


def last_lines(log: Path, most: int = TAIL_LINES) -> list[str]:
    """Return the last lines of a log that say anything; frames of a traceback are left to it."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return [line for line in text.splitlines() if line.strip() and not FRAME.match(line)][-most:]
