"""How a text file's bytes are written: found by its bytes, or given."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from account_tax.errors import Refused

BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
WIDE = ("utf-16-le", "utf-16-be")
HEAD_BYTES = 4096
JUDGED_LINES = 20_000  # that are not ASCII; more of them change no verdict
JUDGED_BYTES = 4096  # of a line
LINE_LIMIT = 1 << 22  # characters kept of a line; none of a ledger is as long
BAD_BYTE = "\udcff"  # a lone surrogate, which no text has
# In CP1252 only where the bytes are another encoding's: three accents of a kind in a row (Cyrillic,
# Greek, Thai, Chinese), a sign (CP1250) or a capital (Mac) inside a word, the old currency sign.
FOREIGN = re.compile(
    r"([^\x00-\x7f\xa0])(?!\1)([^\x00-\x7f\xa0])(?!\1|\2)[^\x00-\x7f\xa0]"
    r"|(?<=[^\W\d_])[†‡ˆ˜™¢£¥¦§¨©¬®¯±²³¹¼½¾¿](?=[^\W\d_])|(?<=[^\W\d_])[À-ÞŠŒŽŸ](?=[a-z])|¤"
)


@dataclass(frozen=True)
class Encoding:
    """The encoding of a file and the bytes of its byte order marks."""

    name: str
    skip: int = 0

    def open(self, path: Path) -> TextIO:
        """Return the file's text; bytes that are none have become `BAD_BYTE`."""
        raw = path.open("rb")
        raw.seek(self.skip)
        return io.TextIOWrapper(raw, encoding=self.name, errors="account_tax_mark", newline="")


def _mark(err: UnicodeError) -> tuple[str, int]:
    assert isinstance(err, UnicodeDecodeError)
    return BAD_BYTE, err.end


codecs.register_error("account_tax_mark", _mark)


def is_text(text: str) -> bool:
    """Return whether a text is free of lone surrogates, such as `BAD_BYTE`."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file with their ends, each cut at `LINE_LIMIT`, without its end then."""
    while line := file.readline(LINE_LIMIT):
        yield line
        while len(line) == LINE_LIMIT and line[-1] not in "\r\n":
            line = file.readline(LINE_LIMIT)


def find_encoding(path: Path, given: str | None = None) -> Encoding:
    """Return the encoding of a file: by a byte order mark, as given, or by what its bytes can be.

    Found are UTF-8, UTF-16, UTF-32 with a mark, CP949 (which holds EUC-KR) and CP1252.
    charset-normalizer takes short CP1252 for CP1250, and a Korean file with one broken byte for a
    Western one.

    Raises:
        Refused: If it is none of these and none is given.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        for mark, name in BOMS.items():
            if head.startswith(mark):
                skip = len(head) - len(_without_marks(head, mark))
                return Encoding(name, skip)
        if given is not None:
            name = codecs.lookup(given).name
            return Encoding(f"{name}-le" if name in ("utf-16", "utf-32") else name)  # as on Windows
        if wide := next((name for name in WIDE if 0 in head and _is_wide(head, name)), ""):
            return Encoding(wide)
        file.seek(0)
        return Encoding(_judge(_lines_that_tell(file)))


def _is_wide(head: bytes, name: str) -> bool:
    """Return whether bytes are text of two each, with the end of a line in it and no NUL."""
    try:
        text = codecs.getincrementaldecoder(name)().decode(head)
    except UnicodeDecodeError:
        return False
    return "\0" not in text and not {"\n", "\r"}.isdisjoint(text)


def _without_marks(head: bytes, mark: bytes) -> bytes:
    while head.startswith(mark):
        head = head.removeprefix(mark)
    return head


def _lines_that_tell(file: io.BufferedReader) -> list[bytes]:
    told: list[bytes] = []
    whole = True  # whether the line before ended
    while len(told) < JUDGED_LINES and (line := file.readline(JUDGED_BYTES)):
        if whole and not line.isascii():
            told.append(line)
        whole = line.endswith(b"\n")
    return told


def _judge(lines: Sequence[bytes]) -> str:
    if len(_decoded(lines, "utf-8")) * 2 >= len(lines):  # hardly a line of another is UTF-8 too
        return "utf-8"
    if len(korean := _decoded(lines, "cp949")) > 0.9 * len(lines) and _is_korean("".join(korean)):
        return "cp949"
    if len(western := _decoded(lines, "cp1252")) > 0.9 * len(lines) and _is_western(
        "".join(western)
    ):
        return "cp1252"
    raise Refused(
        "its text is neither UTF-8, UTF-16, CP949 nor CP1252. Set data.encoding to what it is "
        "(such as shift_jis, gb18030 or cp1251), or save it as UTF-8 (in Excel: CSV UTF-8)."
    )


def _decoded(lines: Sequence[bytes], name: str) -> list[str]:
    texts = []
    for line in lines:
        try:
            # Incremental: a line that was cut may end inside a character.
            texts.append(codecs.getincrementaldecoder(name)().decode(line))
        except UnicodeDecodeError:
            continue
    return texts


def _is_korean(text: str) -> bool:
    """Return whether nearly all letters are the common Hangul: Chinese as CP949 is half Hanja."""
    letters = [letter for letter in text if not letter.isascii() and letter.isalpha()]
    common = sum(
        "가" <= each <= "힣" and len(each.encode("euc_kr", "ignore")) == 2 for each in letters
    )
    return common > 0.8 * len(letters)


def _is_western(text: str) -> bool:
    """Return whether accents are the exception, and such as words of CP1252 have."""
    letters = [letter for letter in text if letter.isalpha()]
    accents = sum(not letter.isascii() for letter in text)
    foreign = sum(len(match[0]) for match in FOREIGN.finditer(text))
    few = sum(not letter.isascii() for letter in letters) < 0.4 * len(letters)
    return few and foreign <= 0.25 * accents
