"""What a gzip file, or a zip with one file, holds."""

from __future__ import annotations

import gzip
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Protocol

from account_tax.errors import Refused

GZIP_MARK, ZIP_MARK = b"\x1f\x8b", b"PK\x03\x04"
TAR_MARK, TAR_MARK_AT = b"ustar", 257
# A file of each kind of office document but .xlsx: .xlsb, OpenDocument, Word, Numbers.
OFFICE = {"xl/workbook.bin", "mimetype", "[Content_Types].xml", "Index/Document.iwa"}
# What no real ledger reaches, and a zip bomb is made for.
UNPACKED_RATIO, UNPACKED_FLOOR = 200, 64 << 20  # bytes
UNPACKED_DEPTH = 3
BOMB = (
    f"unpacks to more than {UNPACKED_RATIO} times its size, as a zip bomb does. "
    "Unpack it yourself, and give the file."
)


class _Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


def unpack(path: Path, scratch: Path) -> Path:
    """Return a file's table: the file itself, or what gzip or a zip with one file holds.

    Raises:
        Refused: If it can't be unpacked, holds several files, or is a zip bomb.
    """
    for _ in range(UNPACKED_DEPTH):
        try:
            inner = _unpack_once(path, scratch)
        except EOFError:
            raise Refused("can't be unpacked: it is cut off. Copy it again.") from None
        except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError) as err:
            raise Refused(f"can't be unpacked ({type(err).__name__}).") from err
        if inner == path:
            return path
        path = inner
    raise Refused(f"packed more than {UNPACKED_DEPTH} times over. Unpack it, and give the file.")


def _unpack_once(path: Path, scratch: Path) -> Path:
    with path.open("rb") as raw:
        head = raw.read(TAR_MARK_AT + len(TAR_MARK))
    if head.endswith(TAR_MARK):
        raise Refused("a tar archive. Unpack it, and give the file or folder.")
    if head.startswith(GZIP_MARK):
        with gzip.open(path) as packed:
            inner = path.name.removesuffix(".gz")
            return _copy(packed, path.stat().st_size, inner, scratch)
    return _unpack_zip(path, scratch) if head.startswith(ZIP_MARK) else path


def _unpack_zip(path: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(path) as packed:
        entries = [entry for entry in packed.infolist() if not _is_aside(entry)]
        if any(entry.filename == "xl/workbook.xml" for entry in entries):
            return path  # a spreadsheet
        if any(entry.filename in OFFICE for entry in entries):
            raise Refused("a document of another kind than .xlsx. Save it as .xlsx or CSV.")
        if len(entries) != 1:
            raise Refused(
                f"a zip of {len(entries)} files. Expected one. Unpack it, and give the folder."
            )
        (entry,) = entries
        if entry.flag_bits & 1:
            raise Refused("a zip with a password. Unpack it, and give the file.")
        with packed.open(entry) as raw:
            inner = PurePosixPath(entry.filename).name
            return _copy(raw, entry.compress_size, inner, scratch)


def refuse_bomb(path: Path) -> None:
    """Refuse a zip file, such as a workbook, of which an entry unpacks to far more than it is."""
    with zipfile.ZipFile(path) as packed:
        for entry in packed.infolist():
            if entry.file_size > max(UNPACKED_FLOOR, UNPACKED_RATIO * entry.compress_size):
                raise Refused(BOMB)


def _is_aside(entry: zipfile.ZipInfo) -> bool:
    return entry.is_dir() or entry.filename.startswith("__MACOSX/")


def _copy(packed: _Readable, size: int, name: str, scratch: Path) -> Path:
    """Write what is packed in `size` bytes to a file of its own, up to a limit."""
    limit = max(UNPACKED_FLOOR, UNPACKED_RATIO * size)
    path = Path(tempfile.mkdtemp(dir=scratch)) / PurePosixPath(name).name
    with path.open("wb") as target:
        while chunk := packed.read(1 << 20):
            target.write(chunk)
            if target.tell() > limit:
                raise Refused(BOMB)
    return path
