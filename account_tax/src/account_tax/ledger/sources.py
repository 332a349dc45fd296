"""Which files a source is: a path, URI, glob or folder; their bytes on this disk."""

from __future__ import annotations

import hashlib
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from account_tax.confidential import public_source
from account_tax.errors import Refused
from account_tax.storage.files import sha256_of
from account_tax.storage.names import SPLITS

from .formats import ENDINGS
from .spreadsheet import SAVE_ANEW

SAMPLE = "sample"
PACKED = (".gz", ".zip")
OTHER_SHEETS = (".xls", ".xlsb", ".ods")
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "dev"), "validation")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        name: As shown to people.
        label: Its name inside its folder, which is part of the source's digest.
        split: Of a folder that is split already, else None.
        path: Where its bytes are on this disk.
    """

    name: str
    label: str
    split: str | None
    path: Path


def find_files(source: str, scratch: Path) -> list[SourceFile]:
    """Return the files of a source in the order in which they are read.

    Args:
        source: A path or URI of a file or folder, a glob, or `SAMPLE`.
        scratch: Takes copies of files that are not on this disk.

    Raises:
        Refused: If there are none, or they don't belong together; the message follows the name.
    """
    if source == SAMPLE:
        from .sample import sample_csv_bytes

        path = scratch / "sample.csv"
        path.write_bytes(sample_csv_bytes())
        return [SourceFile(path.name, path.name, None, path)]
    name = public_source(source)
    try:
        filesystem, path = _locate(source)
        found = _find(filesystem, path, name)
        return [_fetch(filesystem, file, path, name, scratch) for file in found]
    except Refused:
        raise
    except Exception as err:  # Every storage driver has errors of its own.
        reason = f"{type(err).__name__}: {err}".replace(source, name)
        # From None: a driver's error may show the URI with its secrets in a traceback.
        raise Refused(f"can't be read ({reason}).") from None


def digest_files(files: Sequence[SourceFile]) -> str:
    """Return the sha256 of one file's bytes, or of the lines `sha256sum` prints for several."""
    digests = {file.label: sha256_of(file.path) for file in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digests[label]}  {label}\n" for label in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


# --- which ----------------------------------------------------------------------------------------


def _locate(source: str) -> tuple[Any, str]:
    """Return the file system and the path in it; what is no URI may have `::` in its name."""
    if "://" in source:
        return fsspec.core.url_to_fs(source)
    return LocalFileSystem(), str(_as_spelt_on_disk(Path(source).expanduser().absolute()))


def _as_spelt_on_disk(path: Path) -> Path:
    """Return the path that is there: macOS writes names in NFD, people type them in NFC."""
    if path.exists() or path == path.parent:
        return path
    folder = _as_spelt_on_disk(path.parent)
    wanted = unicodedata.normalize("NFC", path.name)
    there = folder.iterdir() if folder.is_dir() else ()
    return next(
        (each for each in there if unicodedata.normalize("NFC", each.name) == wanted),
        folder / path.name,
    )


def _find(filesystem: Any, path: str, name: str) -> list[tuple[str, str | None]]:
    """Return path and split of each file of the source."""
    ending = _ending(name)  # a URI's path may end in a query
    protocols = (
        filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
    )
    # Asking a web server whether a file is a folder would download it.
    if not (ending and {"http", "https"} & {*protocols}) and filesystem.isdir(path):
        return _find_in_folder(filesystem, path)
    if not filesystem.exists(path):
        if any(mark in path for mark in "*?[") and (found := sorted(filesystem.glob(path))):
            return [(each, None) for each in list(filter(_is_part, found)) or found]
        raise Refused(
            f"no such file or folder. Give a path or URI to a file ({_either(ENDINGS)}, also "
            f"{_either(PACKED)}), a folder with train, validation and test, a folder or glob of "
            f"parts, or {SAMPLE}."
        )
    if ending is None:
        suffix = PurePosixPath(name).suffix
        shown = f"unknown file type {suffix}" if suffix else "a file name without a type"
        how = f" {SAVE_ANEW}" * (suffix.lower() in OTHER_SHEETS)
        raise Refused(f"{shown}. Expected {_either((*ENDINGS, *PACKED))}.{how}")
    return [(path, None)]


def _find_in_folder(filesystem: Any, folder: str) -> list[tuple[str, str | None]]:
    """Return the files of a split folder by split, or the part files of another."""
    inside = _list_parts(filesystem, folder)
    stems = {each: _stem(each) for each in inside}
    if named := [each for each in inside if stems[each] in SPLIT_NAMES]:
        return _find_splits(filesystem, named, {SPLIT_NAMES[stems[each]]: each for each in named})
    files = _with_rows(inside)
    if not files:
        expected = [f"{split}.csv" for split in SPLITS]
        raise Refused(
            f"a folder without a file of a ledger. Expected {expected}, or part files; a glob such "
            f"as {PurePosixPath(folder).name}/*/*.csv reads those in its folders."
        )
    _require_one_type(files)
    return [(each, None) for each in files]


def _find_splits(
    filesystem: Any, named: Sequence[str], by_split: dict[str, str]
) -> list[tuple[str, str | None]]:
    _require_one_type(named)
    expected = [f"{split}{_ending(named[0]) or ''}" for split in SPLITS]
    missing = [name for name, split in zip(expected, SPLITS, strict=True) if split not in by_split]
    if missing:
        raise Refused(
            f"expected the files {expected}, missing {missing}. Add them, or give one file, which "
            "is then split."
        )
    if len(named) > len(by_split):
        names = sorted(PurePosixPath(each).name for each in named)
        raise Refused(f"two files for one split, found {names}. Leave one of them.")
    found: list[tuple[str, str | None]] = []
    for split in SPLITS:
        at = by_split[split]
        parts = _list_parts(filesystem, at) if filesystem.isdir(at) else [at]
        found += [(part, split) for part in _with_rows(parts)]
    return found


def _require_one_type(paths: Sequence[str]) -> None:
    if len({(_ending(each) or "").lower() for each in paths}) > 1:
        names = sorted(PurePosixPath(each).name for each in paths)
        raise Refused(f"expected files of one type, found {names}.")


def _list_parts(filesystem: Any, folder: str) -> list[str]:
    """Return what lies in a folder, less hidden files and what Spark, Excel and datasets add."""
    listed = sorted(str(path).rstrip("/") for path in filesystem.ls(folder, detail=False))
    return list(filter(_is_part, listed))


def _with_rows(paths: Sequence[str]) -> list[str]:
    """Return those that may be a ledger's; beside others a .json describes them."""
    files = [each for each in paths if _ending(each)]
    return [each for each in files if _ending(each) != ".json"] or files


def _is_part(path: str) -> bool:
    return not PurePosixPath(path).name.startswith(("_", ".", "~$", "cache-"))


def _stem(path: str) -> str:
    return PurePosixPath(path).name.removesuffix(_ending(path) or "").lower()


def _ending(path: str) -> str | None:
    """Return the ending that says what a file is, .csv.gz as a whole; None if it is none."""
    suffixes = PurePosixPath(path).suffixes[-2:]
    if not suffixes or suffixes[-1].lower() not in (*ENDINGS, *PACKED):
        return None
    if suffixes[-1].lower() in PACKED and suffixes[0].lower() in ENDINGS:
        return "".join(suffixes)
    return suffixes[-1]


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


# --- their bytes ----------------------------------------------------------------------------------


def _fetch(
    filesystem: Any, file: tuple[str, str | None], source: str, name: str, scratch: Path
) -> SourceFile:
    at, split = file
    single = at == source
    label = PurePosixPath(name).name if single else _below(at, source)
    shown = name if single else f"{name.rstrip('/')}/{label}"
    path = Path(at)
    if isinstance(filesystem, LocalFileSystem) and not path.is_file():  # reading might never end
        raise Refused(
            f"{'it' if single else label} is no file, but a folder, a pipe or a broken link. Give "
            "files, or take it out."
        )
    if not isinstance(filesystem, LocalFileSystem):
        path = Path(tempfile.mkdtemp(dir=scratch)) / PurePosixPath(label).name
        filesystem.get_file(at, str(path))
    return SourceFile(shown, label, split, path)


def _below(path: str, source: str) -> str:
    """Return a file's path below its folder, or below the part of a glob that names folders."""
    folder = source.rstrip("/")
    while not path.startswith(f"{folder}/"):
        folder = str(PurePosixPath(folder).parent)
    return path.removeprefix(f"{folder}/")
