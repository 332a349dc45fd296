"""What a version was made of: the code as it stood, and the in-toto statement about the rest.

The statement is in-toto's Statement v1 with SLSA's provenance v1 as its predicate, so that a reader
needs no other document than https://slsa.dev/spec/v1.0/provenance; no torch here, the launcher
describes the code before anything starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from account_tax.environment import RECORD_FILE
from account_tax.errors import Failed
from account_tax.layout import PARAMETERS_FILE
from account_tax.prepared import public_source

STATEMENT_FILE = "provenance.json"  # artifact of the training's run
PATCH_FILE = "code.patch"  # likewise, where the tree was dirty
TAG = "account_tax."  # before the names of the run's tags
STATEMENT_TAG = "provenance_sha256"  # of a version
CODE_TAGS = ("commit", "dirty", "patch_sha256", "left_out")
BEFORE = "code_before"  # of a run that went on with other code: what it was trained with until then

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:account-tax:training:v1"  # docs/design.md has its schema; no host serves it
BUILDER = "urn:account-tax:kedro-train"
NOT_RECORDED = "not recorded"

# What decides a result and can hold no ledger: a patch takes nothing else.
CODE_FOLDERS = ("account_tax", "conf", "recipes", "tests", "tools")
CODE_SUFFIXES = {
    *(".py", ".toml", ".yml", ".yaml", ".md", ".lock"),
    *(".j2", ".html", ".css", ".sh", ".cfg"),
}
CODE_NAMES = {"MLproject", "py.typed", ".gitkeep"}
PRIVATE = ("conf/local/",)  # one machine's own settings; credentials may stand in them
SHOWN = 3  # names of files in a line
GIT_KEPT = ("GIT_CONFIG", "GIT_CEILING_", "GIT_DISCOVERY_")  # variables by which git finds things


# --- the code -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """The code that a run trains with.

    Attributes:
        commit: HEAD; None outside a repository.
        dirty: Whether any file differs from the commit.
        patch: What `git apply` makes the tree of, from the commit; empty where nothing in it
            matters.
        left_out: Changed files that the patch doesn't hold: those that may be data.
    """

    commit: str | None = None
    dirty: bool = False
    patch: bytes = b""
    left_out: tuple[str, ...] = ()

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
        tags = self.identity() | {"dirty": str(self.dirty).lower()}
        if self.left_out:
            names = ", ".join(self.left_out[:SHOWN]).encode("utf-8", "replace").decode()
            more = ", ..." if len(self.left_out) > SHOWN else ""
            files = f"{len(self.left_out)} changed file{'s' * (len(self.left_out) > 1)}"
            tags["left_out"] = f"{files} that may be data: {names}{more}"
        return tags


def code_in_words(tags: Mapping[str, str]) -> str:
    """Return the line that tells a person which code the tags of `Code` mean."""
    if "commit" not in tags:
        return "no commit: outside a repository, or without git"
    patch = f" and {PATCH_FILE} {tags['patch_sha256'][:12]}" if "patch_sha256" in tags else ""
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
    return Code(commit, bool(changed), patch, left_out)


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


# --- the statement --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunRecord:
    """What the training's MLflow run knows of its inputs; a file that is not there is None.

    Attributes:
        run_id: The run.
        tags: Its tags without their prefix; used are those of `Code.tags`, `BEFORE`, and the
            command, which has no secrets.
        world_size: Ranks, as text.
        threads: What OMP_NUM_THREADS was in each rank, as text: sums depend on it.
        started: Seconds since the epoch.
        parameters: Bytes of parameters.yml.
        environment: Bytes of environment.json.
    """

    run_id: str
    tags: Mapping[str, str]
    world_size: str | None
    threads: str | None
    started: float
    parameters: bytes | None = None
    environment: bytes | None = None


def build_statement(
    record: RunRecord,
    manifest: Mapping[str, Any],
    digests: Mapping[str, str],
    dataset: Mapping[str, Any],
    base: Mapping[str, Any],
    parameters: Mapping[str, Any] | None,
    finished: float,
) -> dict[str, Any]:
    """Return the in-toto statement of a classifier: what it is, and what it was made of.

    Args:
        record: The training's run.
        manifest: manifest.json of the classifier; its files are the subject.
        digests: Used are manifest_sha256 and config_sha256.
        dataset: dataset_metadata.json.
        base: The pin of the base model, from classifier.json.
        parameters: parameters.yml, read; None where it was not recorded.
        finished: Seconds since the epoch.

    Source: in-toto attestation, Statement v1; SLSA provenance v1.
    """
    environment = json.loads(record.environment) if record.environment else None
    files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    files["manifest.json"] = digests["manifest_sha256"]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": files[name]}} for name in sorted(files)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "command": record.tags.get("command", NOT_RECORDED),
                    "parameters": _public_values(parameters) if parameters else NOT_RECORDED,
                },
                "internalParameters": {
                    "ranks": record.world_size or NOT_RECORDED,
                    "threadsPerRank": record.threads or NOT_RECORDED,
                    "configurationSha256": digests.get("config_sha256", NOT_RECORDED),
                    "environment": environment or NOT_RECORDED,
                },
                "resolvedDependencies": [
                    *_code_dependencies(record.tags),
                    *_data_dependencies(dataset),
                    _base_dependency(base),
                    *_environment_dependencies(environment),
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": _versions("mlflow", "kedro")},
                "metadata": {
                    "invocationId": record.run_id,
                    "startedOn": _timestamp(record.started),
                    "finishedOn": _timestamp(finished),
                },
                "byproducts": list(_byproducts(record)),
            },
        },
    }


def statement_bytes(statement: Mapping[str, Any]) -> bytes:
    """Return the statement as it is stored, hashed and signed."""
    return (json.dumps(statement, ensure_ascii=False, indent=2) + "\n").encode()


def _code_dependencies(tags: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    if commit := tags.get("commit"):
        dirty = tags.get("dirty") == "true"
        notes = {"dirty": dirty} | ({"before": tags[BEFORE]} if BEFORE in tags else {})
        yield {"name": "code", "digest": {"gitCommit": commit}, "annotations": notes}
    if patch := tags.get("patch_sha256"):
        yield {"name": PATCH_FILE, "digest": {"sha256": patch}, "mediaType": "text/x-diff"}


def _data_dependencies(dataset: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    digest = {"sha256": dataset["source_sha256"]}
    source = public_source(dataset["source"])
    yield {"name": "data/source", "digest": digest, "annotations": {"source": source}}
    for name, split in dataset["splits"].items():
        rows = {"rows": split["rows"]}
        yield {"name": f"data/{name}", "digest": {"sha256": split["sha256"]}, "annotations": rows}


def _base_dependency(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base model; one of the hub has a package URL, pinned by its commit."""
    entry = {"name": "base", "digest": {"sha256": base["sha256"]}}
    if base["kind"] == "hub":
        entry["uri"] = f"pkg:huggingface/{quote(base['name'])}@{base['revision']}"
    return entry | {"annotations": {key: base.get(key) for key in ("name", "kind", "revision")}}


def _environment_dependencies(environment: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    if environment and environment.get("lock_sha256"):
        yield {
            "name": "environment lock",
            "digest": {"sha256": environment["lock_sha256"]},
            "annotations": {"differences": environment["differences"]},
        }


def _byproducts(record: RunRecord) -> Iterator[dict[str, Any]]:
    files = {PARAMETERS_FILE: record.parameters, RECORD_FILE: record.environment}
    for name, raw in files.items():
        if raw is not None:
            yield {"name": name, "digest": {"sha256": hashlib.sha256(raw).hexdigest()}}


def recorded_digest(statement: Mapping[str, Any], name: str) -> str | None:
    """Return the digest a statement has of a dependency or byproduct, or None."""
    predicate = statement["predicate"]
    entries: Sequence[Mapping[str, Any]] = [
        *predicate["buildDefinition"]["resolvedDependencies"],
        *predicate["runDetails"].get("byproducts", []),
    ]
    found = [entry["digest"] for entry in entries if entry.get("name") == name]
    return next(iter(found[0].values())) if found else None


def _public_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    data = {**parameters["data"], "source": public_source(parameters["data"]["source"])}
    return {**parameters, "data": data}


def public_words(command: str) -> str:
    """Return a shell's command line without the secrets that URIs in it may hold."""
    uri = re.compile(r"\w[\w+.-]*://.+", re.DOTALL)
    words = (uri.sub(lambda found: public_source(found[0]), word) for word in shlex.split(command))
    return shlex.join(words)


def _versions(*names: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in names}


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
