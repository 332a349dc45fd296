"""The parts of an output that is being made, kept so that a killed run can be taken up again.

They lie in a hidden folder beside the output. A part counts once its note, a JSON file written in
one move after it, is there; parts of another input, model or set of options are never used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from account_tax.errors import Refused
from account_tax.ledger.windows import Reject
from account_tax.storage.files import Held, hold, sha256_of, sync, write_whole

from .sinks import Sink

KEY_FILE = "key.json"


class Journal:
    """The parts of one output that are done; made by `open_journal`."""

    def __init__(self, folder: Path, suffix: str):
        self._folder, self._suffix = folder, suffix
        self.notes: list[dict[str, Any]] = []
        while (note := self._read_note(len(self.notes))) is not None:
            self.notes.append(note)

    @property
    def parts(self) -> list[Path]:
        """The files of the parts that are done, in their order."""
        return [self.part(index) for index in range(len(self.notes))]

    def part(self, index: int) -> Path:
        """Return where a part's rows are written."""
        return self._folder / f"part-{index:06d}{self._suffix}"

    def _note(self, index: int) -> Path:
        return self._folder / f"part-{index:06d}.json"

    def _read_note(self, index: int) -> dict[str, Any] | None:
        """Return a part's note if part and note are whole; a power cut may leave half a file."""
        with suppress(OSError, ValueError):
            note = json.loads(self._note(index).read_text(encoding="utf-8"))
            if note["sha256"] == sha256_of(self.part(index)):
                return note
        return None

    def commit(self, file: str, rejects: Iterable[Reject], counts: Mapping[str, float]) -> None:
        """Count the next part, whose rows were just written, as done.

        Args:
            file: That its rows were read from, where there are several.
            rejects: Its rows that can't be filed.
            counts: What `total` sums.
        """
        index = len(self.notes)
        sync(self.part(index))
        note = {
            "sha256": sha256_of(self.part(index)),
            "counts": dict(counts),
            "file": {"file": file} if file else {},
            "rejects": [[reject.number, reject.reason] for reject in rejects],
        }
        write_whole(self._note(index), json.dumps(note))
        self.notes.append(note)

    def totals(self) -> Counter[str]:
        """Return the sum of each count over the parts that are done."""
        counted = Counter[str]()
        for note in self.notes:
            counted.update(note["counts"])  # not +, which takes no sum below 0
        return counted

    def total(self, count: str) -> int:
        """Return the sum of a count over the parts that are done."""
        return sum(note["counts"][count] for note in self.notes)

    def publish(self, sink: Sink, output: Path, rejects: Path, unit: str) -> None:
        """Give the parts their names as one file, the rejects theirs; forget the parts.

        The output comes last: where it is, everything is.
        """
        joined = self._folder / f"joined{self._suffix}"
        sink.join(self.parts, joined)
        sync(joined)
        listed = [
            json.dumps({**note["file"], unit: number, "reason": reason}, ensure_ascii=False) + "\n"
            for note in self.notes
            for number, reason in note["rejects"]
        ]
        rejects.unlink(missing_ok=True)
        if listed:
            write_whole(rejects, "".join(listed))
        joined.replace(output)
        shutil.rmtree(self._folder)


@contextmanager
def open_journal(output: Path, key: Mapping[str, Any]) -> Iterator[tuple[Journal, bool]]:
    """Give the journal of an output, and whether parts of another key were removed.

    Args:
        output: The file that is being made.
        key: What its content depends on.

    Raises:
        Refused: If another process is making it, or its folder can't be written to.
    """
    folder = parts_folder(output)
    with ExitStack() as held:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                raise OSError(0, f"{folder.name} there is not this user's own")
            held.enter_context(hold(folder / "lock"))
        except Held as err:
            raise Refused(
                f"output = {output} (-P output): another process is writing it. Wait for it, or "
                "name another file."
            ) from err
        except OSError as err:
            raise Refused(
                f"output = {output} (-P output): can't write there ({err.strerror})."
            ) from err
        stale = _keep_only(folder, key)
        yield Journal(folder, output.suffix), stale


def parts_folder(output: Path) -> Path:
    """Return the hidden folder of the parts."""
    return output.with_name(f".{output.name}.parts")


def _keep_only(folder: Path, key: Mapping[str, Any]) -> bool:
    """Remove the parts of another key; return whether there were any."""
    text, file = json.dumps(key, sort_keys=True), folder / KEY_FILE
    with suppress(OSError):
        if file.read_text(encoding="utf-8") == text:
            return False
    stale = [path for path in folder.iterdir() if path.name.startswith("part-")]
    for path in stale:
        path.unlink()
    write_whole(file, text)
    return bool(stale)
