"""How a ledger's words become comparable."""

from __future__ import annotations

import unicodedata
from functools import lru_cache


@lru_cache(maxsize=4096)
def clean_name(name: str) -> str:
    """Return a column's name in NFC, without format characters (a BOM) and outer white space."""
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
        name = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return name.strip()
