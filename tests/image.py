"""What docker/Dockerfile puts into an image, laid into a folder: what .dockerignore lets in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def image_files() -> list[str]:
    """Return the files of the work tree that `docker build` would be sent."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Bytecode, the rest of what .dockerignore keeps out, is ignored by git as well.
    return [
        name
        for name in filter(None, listed.stdout.split("\0"))
        if any(f"{name}/".startswith(f"{each}/") for each in allowed) and (ROOT / name).is_file()
    ]


def lay_image(folder: Path) -> Path:
    """Copy what an image holds into a folder, as the image's working directory."""
    for name in image_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder
