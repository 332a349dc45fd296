"""A command of this project, called in this process as its name is typed."""

from contextlib import chdir
from pathlib import Path

from account_tax.cli import cli


def call(folder: Path, command: str, *words: str) -> int:
    """Return the exit status of `kedro COMMAND WORDS` in a folder."""
    with chdir(folder):
        try:
            cli.commands[command].main([*words], standalone_mode=False)
        except SystemExit as end:
            return int(end.code or 0)
    raise AssertionError(f"{command} did not end the process")


def as_words(given: dict[str, str]) -> list[str]:
    """Return options by name as words."""
    return [word for name, text in given.items() for word in (f"--{name}", text)]
