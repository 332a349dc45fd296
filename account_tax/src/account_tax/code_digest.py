"""The digest of the package's source, by which two places know that they run the same code."""

from __future__ import annotations

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent


def digest_package(package: Path = PACKAGE) -> str:
    """Return the sha256 over the name and content of every source file below a package's folder."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
