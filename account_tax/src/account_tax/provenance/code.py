"""The code that a run trains with: its commit, its patch, and the digest of the package."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from account_tax.errors import Failed, Refused
from account_tax.storage.names import PATCH_FILE

PACKAGE = Path(__file__).parents[1]
LOCKS = ("conda.yaml", "conda-lock.yml", "requirements.lock")
PACKAGE_FOLDER = "account_tax/src/account_tax"  # of a project


def digest_package(package: Path = PACKAGE) -> str:
    """Return the sha256 over the name and content of every source file below a package's folder."""
    digest = hashlib.sha256()
    for file in sorted(each for each in package.rglob("*") if each.suffix in (".py", ".yml")):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
        # Python reads both line ends alike, and core.autocrlf may have changed them.
        digest.update(hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).digest())
    return digest.hexdigest()


def python_path(project: Path) -> dict[str, str]:
    """Return the variable by which a Python started from here finds a project's package first.

    Raises:
        Refused: If the project lies where the variable can't name it.
    """
    own = str((project / PACKAGE_FOLDER).parent)
    if os.pathsep in own:
        raise Refused(
            f"{project}: this folder's path has {os.pathsep!r}, which in PYTHONPATH divides two "
            "paths. Move the project to a folder without it."
        )
    return {"PYTHONPATH": os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))}


CODE_TAGS = ("commit", "dirty", "patch_sha256", "package_sha256", "changed", "left_out")
BEFORE = "code_before"  # of a run that went on with other code: what it was trained with until then


# What can hold no ledger: a patch takes nothing else.
CODE_FOLDERS = ("account_tax", "conf", "recipes", "tests", "tools")
CODE_SUFFIXES = {
    *(".py", ".toml", ".yml", ".yaml", ".md", ".lock"),
    *(".j2", ".html", ".css", ".sh", ".cfg"),
}
CODE_NAMES = {"MLproject", "py.typed", ".gitkeep"}
# Of these what decides a result: with a change there, the tree is not the commit's.
DECIDING = {"account_tax", "conf", "recipes", "MLproject", "pyproject.toml", *LOCKS}
PRIVATE = ("conf/local/",)  # one machine's own settings; credentials may stand in them
SHOWN = 3  # names of files in a line
GIT_KEPT = ("GIT_CONFIG", "GIT_CEILING_", "GIT_DISCOVERY_")  # variables by which git finds things


@dataclass(frozen=True)
class Code:
    """The code that a run trains with.

    Attributes:
        commit: HEAD; None outside a repository.
        changed: Files that differ from the commit and can decide a result.
        patch: What `git apply` makes the tree of, from the commit; empty where nothing in it
            matters.
        left_out: Changed files that the patch doesn't hold: those that may be data.
        package_sha256: Of the package as it is, whatever git sees of it.
    """

    commit: str | None = None
    changed: tuple[str, ...] = ()
    patch: bytes = b""
    left_out: tuple[str, ...] = ()
    package_sha256: str = ""

    @property
    def dirty(self) -> bool:
        """Whether the tree may give another result than the commit."""
        return bool(self.changed)

    @property
    def patch_sha256(self) -> str | None:
        """The digest of the patch, or None where there is none."""
        return hashlib.sha256(self.patch).hexdigest() if self.patch else None

    def identity(self) -> dict[str, str]:
        """Return what makes it the same code or another; nothing outside a repository."""
        values = {"commit": self.commit, "patch_sha256": self.patch_sha256}
        return {name: text for name, text in values.items() if text}

    def tags(self) -> dict[str, str]:
        """Return what a run says of its code; nothing outside a repository."""
        if self.commit is None:
            return {}
        tags = self.identity() | {
            "dirty": str(self.dirty).lower(),
            "package_sha256": self.package_sha256,
        }
        if self.changed:
            tags["changed"] = _in_words(self.changed)
        if self.left_out:
            tags["left_out"] = _in_words(self.left_out, " that may be data")
        return tags


def _in_words(files: Sequence[str], which: str = "") -> str:
    names = ", ".join(files[:SHOWN]).encode("utf-8", "replace").decode()
    more = ", ..." if len(files) > SHOWN else ""
    return f"{len(files)} changed file{'s' * (len(files) > 1)}{which}: {names}{more}"


def code_in_words(tags: Mapping[str, str]) -> str:
    """Return the line that tells a person which code the tags of `Code` mean."""
    if "commit" not in tags:
        return "no commit: outside a repository, or without git"
    patch = f" and {PATCH_FILE} {tags['patch_sha256'][:12]}" if "patch_sha256" in tags else ""
    patch += f" ({tags['changed']})" if "changed" in tags else ""
    left_out = f", without {tags['left_out']}" if "left_out" in tags else ""
    return f"commit {tags['commit'][:12]}{patch}{left_out}"


def describe_code(project: Path) -> Code:
    """Return commit and patch of the project's working tree; its repository is only read.

    Untracked files are in the patch too, where git does not ignore them. Only kinds of files that
    hold code or settings are, in the folders that decide a result: a ledger never gets in.

    Raises:
        Failed: If git can't read the repository.
    """
    commit = git(project, "rev-parse", "--verify", "--quiet", "HEAD").stdout.decode().strip()
    if not commit:
        return Code()
    with tempfile.TemporaryDirectory() as scratch:
        aside = _set_aside(project, Path(scratch))
        # 1: something in it can't be added, as a repository without a commit.
        add = ("add", "--ignore-errors", "--intent-to-add", "--", ".")
        git_answer(project, *add, environment=aside, good=(0, 1))
        listed = git_answer(project, *DIFF, "--name-only", "-z", "HEAD", environment=aside)
        changed = sorted(filter(None, listed.decode("utf-8", "surrogateescape").split("\0")))
        kept = [name for name in changed if _is_code(name)]
        words = (*DIFF, "--binary", "--full-index", "HEAD", "--", *kept)
        patch = git_answer(project, *words, environment=aside) if kept else b""
    left_out = tuple(name for name in changed if name not in kept)
    deciding = tuple(name for name in kept if PurePosixPath(name).parts[0] in DECIDING)
    package = digest_package(project / PACKAGE_FOLDER)
    return Code(commit, deciding, patch, left_out, package)


def _set_aside(project: Path, scratch: Path) -> dict[str, str]:
    """Return the variables by which git writes its index and objects to the scratch folder."""
    places = ("index", "objects")
    asked = [word for name in places for word in ("--git-path", name)]
    answer = git_answer(project, "rev-parse", *asked).decode("utf-8", "surrogateescape")
    own_index, own_objects = (project / line for line in answer.splitlines())
    index, objects = (scratch / name for name in places)
    objects.mkdir()
    if own_index.is_file():
        # With its time: git compares contents where a file is no older than the index.
        shutil.copy2(own_index, index)
    return {
        "GIT_INDEX_FILE": str(index),
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(own_objects.resolve()),
        "GIT_LITERAL_PATHSPECS": "1",
    }


# A user's own settings of git must not change the patch.
DIFF = (
    *("-c", "core.quotePath=false", "diff", "--relative", "--no-ext-diff", "--no-textconv"),
    *("--no-color", "--no-renames", "--src-prefix=a/", "--dst-prefix=b/", "--unified=3"),
    *("--diff-algorithm=myers", "--indent-heuristic", "--inter-hunk-context=0"),
)


def _is_code(name: str) -> bool:
    path = PurePosixPath(name)
    if name.startswith(PRIVATE) or "credentials" in path.name.lower():
        return False
    known = path.suffix.lower() in CODE_SUFFIXES or path.name in CODE_NAMES
    return known and (len(path.parts) == 1 or path.parts[0] in CODE_FOLDERS)


def git(
    folder: Path, *words: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Return git's answer in a folder; where there is no git, a failed one.

    The folder says which repository is meant, also inside a hook of another one.
    """
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(GIT_KEPT)
    }
    command = ["git", *words]
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=kept | {"GIT_OPTIONAL_LOCKS": "0", **(environment or {})},
            capture_output=True,
            check=False,
        )
    except (FileNotFoundError, PermissionError) as err:
        return subprocess.CompletedProcess(command, 127, b"", str(err).encode())


def git_answer(
    folder: Path,
    *words: str,
    environment: Mapping[str, str] | None = None,
    good: Sequence[int] = (0,),
) -> bytes:
    """Return what git wrote.

    Raises:
        Failed: If its exit status is not a good one.
    """
    done = git(folder, *words, environment=environment)
    if done.returncode not in good:
        said = done.stderr.decode(errors="replace").strip()
        raise Failed(f"git {shlex.join(words)[:200]}, in {folder}: {said}")
    return done.stdout
