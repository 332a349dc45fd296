"""Files on disk: written whole, known by a digest, held by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# What reading JSON that somebody else wrote raises; nesting without end is a RecursionError.
NOT_READ = (ValueError, TypeError, KeyError, RecursionError)
RETRY_SECONDS = 0.2  # between two looks at a lock, or two tries to remove a folder
REMOVING_SECONDS = 5.0  # how long a folder is removed into which something still writes


class Held(RuntimeError):
    """Another process holds a lock; `owner` is what it wrote there."""

    def __init__(self, file: Path, owner: dict[str, Any]):
        super().__init__(f"{file} is held by process {owner.get('pid', 'unknown')}")
        self.owner = owner


def output_faults(folder: Path, files: Iterable[Path], advice: str) -> list[str]:
    """Return what keeps files or folders from being made in a folder; the advice is on old ones."""
    faults = [f"{file.name} exists. {advice}" for file in files if os.path.lexists(file)]
    if not folder.is_dir():
        faults.append("its folder does not exist. Make it first.")
    elif why := why_not_writable(folder):
        faults.append(f"its folder can't be written to ({why}).")
    return faults


def why_not_writable(folder: Path) -> str | None:
    """Return why no file can be made in a folder, found out by making one; None: one can."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as err:
        return err.strerror
    return None


def first_there(folder: Path) -> Path:
    """Return a folder, or the nearest above it that there is."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def is_disk_error(err: BaseException) -> bool:
    """Return whether an error is a disk's that is full, or a quota's, also in another's words."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    words = [os.strerror(code) for code in codes]
    return getattr(err, "errno", None) in codes or any(word in str(err) for word in words)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder that is gone afterwards.

    MLflow's threads may go on writing into it for a moment after a download has failed or was
    interrupted; `TemporaryDirectory` would end with an error of its own in place of that one.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        deadline = time.monotonic() + REMOVING_SECONDS
        shutil.rmtree(folder, ignore_errors=True)
        while folder.exists() and time.monotonic() < deadline:
            time.sleep(RETRY_SECONDS)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def hold(
    file: Path, patience_seconds: float = 0.0
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Hold a lock; yields what writes down who does. It ends with the process, however that ends.

    Raises:
        Held: If another process holds it, for as long as there is patience.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+", encoding="utf-8", opener=no_link) as handle:
        try:
            lock(handle, patience_seconds)
        except BlockingIOError:
            raise Held(file, read_json(file)) from None

        def sign(owner: Mapping[str, Any]) -> None:
            handle.truncate(0)
            handle.write(json.dumps({"pid": os.getpid(), **owner}))
            handle.flush()

        yield sign


def no_link(path: str | Path, flags: int) -> int:
    """Open a file, for `open`, and never the one that a planted link leads to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def lock(handle: IO[Any] | int, patience_seconds: float) -> None:
    """Lock an open file until it is closed.

    Raises:
        BlockingIOError: If another process has it, for as long as there is patience.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(RETRY_SECONDS)


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's mapping; empty where there is none or it can't be read."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON; whoever reads it sees the whole of it or what was there before."""
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def write_whole(path: Path, text: str, *, synced: bool = True) -> None:
    """Write a file that is never seen half written; synced, not after a power cut either."""
    scratch = path.with_name(f".{path.name}.new")
    with open(scratch, "w", encoding="utf-8", opener=no_link) as file:
        file.write(text)
    if synced:
        sync(scratch)
    scratch.replace(path)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def files_below(folder: Path) -> list[Path]:
    """Return every file below a folder, in one order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digests_below(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by its name relative to it."""
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files_below(folder)}


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_sha256(value: Any, *, ensure_ascii: bool = False) -> str:
    """Return the sha256 of a value's JSON: keys sorted, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=ensure_ascii, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
