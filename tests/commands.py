"""A command of this project, called in this process as its name is typed."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from account_tax.cli import cli


def call(folder: Path, command: str, *words: str) -> int:
    """Return the exit status of `kedro COMMAND WORDS` in a folder."""
    with chdir(folder), own_logging():
        try:
            cli.commands[command].main([*words], standalone_mode=False)
        except SystemExit as end:
            return int(end.code or 0)
    raise AssertionError(f"{command} did not end the process")


@contextmanager
def own_logging() -> Iterator[None]:
    """Undo, for the tests that follow, what a command does to this process's logs and warnings."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "account_tax")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def as_words(given: dict[str, str]) -> list[str]:
    """Return options by name as words."""
    return [word for name, text in given.items() for word in (f"--{name}", text)]
