"""The locked environment beside the running one, and the machine it runs on; no torch.

`conda.yaml` is read, since it is what MLflow installs: tools/lock.py renders it from both locks and
their digests stand in its head, so its own sha256 stands for all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import psutil
import yaml
from packaging.utils import canonicalize_name

from account_tax.processes.answers import answer_of

LOCK_FILE = "conda.yaml"
SHOWN = 5  # differences in a message; environment.json has all
LOCKED = "as locked"  # the tag `environment` of a run or version
PROJECT = "account-tax"  # may be installed from this very tree
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+) --hash=sha256:[0-9a-f]{64}")
BUILD = re.compile(r"(?P<name>[a-z0-9._-]+)=(?P<version>[^=\s]+)=(?P<build>\S+)")


@dataclass(frozen=True)
class Lock:
    """What an environment is to be.

    Attributes:
        sha256: Of conda.yaml.
        packages: What pip or uv installs, name -> version.
        conda: What conda installs, name -> `version=build`; Python among it.
        python: The version any other manager takes, such as 3.11.
    """

    sha256: str
    packages: Mapping[str, str]
    conda: Mapping[str, str]
    python: str


def read_lock(project: Path) -> Lock | None:
    """Return the project's lock, or None where there is no conda.yaml with hashed pins."""
    file = project / LOCK_FILE
    if not file.is_file():
        return None
    raw = file.read_bytes()
    entries = yaml.safe_load(raw)["dependencies"]
    pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    pins = [match for line in pip if (match := PIN.fullmatch(line))]
    builds = [match for line in entries if isinstance(line, str) and (match := BUILD.match(line))]
    if not pins or len(pins) < len(pip):
        return None
    return Lock(
        hashlib.sha256(raw).hexdigest(),
        {canonicalize_name(pin["name"]): pin["version"] for pin in pins},
        {each["name"]: f"{each['version']}={each['build']}" for each in builds},
        next(line for line in entries if line.startswith("python=")).removeprefix("python="),
    )


# --- the running environment ----------------------------------------------------------------------


def installed_packages() -> dict[str, str]:
    """Return name -> version of every distribution this Python finds, but this project."""
    found: dict[str, str] = {}
    for each in metadata.distributions():
        described = each.metadata  # reads the file each time
        name = canonicalize_name(described["Name"])
        # Once imported, setuptools has its own copies of packages on sys.path: none is installed.
        if name != PROJECT and Path(str(each.locate_file(""))).name != "_vendor":
            # The first on sys.path is the one imported.
            found.setdefault(name, described["Version"])
    return found


def conda_packages(prefix: Path) -> dict[str, str] | None:
    """Return name -> `version=build` of a conda environment; None where conda made none."""
    records = sorted((prefix / "conda-meta").glob("*.json"))
    read = [json.loads(record.read_text(encoding="utf-8")) for record in records]
    return {each["name"]: f"{each['version']}={each['build']}" for each in read} or None


def find_unlocked(lock: Lock | None, installed: Mapping[str, str] | None = None) -> list[str]:
    """Return how the running environment differs from the lock, one line a package; best none.

    What is installed may be given by who has looked.

    Python itself is compared exactly where conda installed it. Any other manager takes the Python
    of the machine, and the lock asks for its minor version.
    """
    if lock is None:
        return [f"{LOCK_FILE}: missing, or not the rendered lock"]
    differences = list(_compare(installed or installed_packages(), lock.packages))
    conda = conda_packages(Path(sys.prefix))
    if conda is not None:
        differences += _compare(conda, lock.conda)
    elif not platform.python_version().startswith(f"{lock.python}."):
        differences.append(f"python {platform.python_version()}: the lock has {lock.python}")
    return differences


def _compare(found: Mapping[str, str], locked: Mapping[str, str]) -> Iterator[str]:
    for name, here, pinned in differing(found, locked):
        if pinned is None:
            yield f"{name} {here}: not in the lock"
        elif here is None:
            yield f"{name}: not installed, the lock has {pinned}"
        else:
            yield f"{name} {here}: the lock has {pinned}"


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return each name at which two mappings differ, with both values; what one lacks is None."""
    names = sorted(ours.keys() | theirs.keys())
    both = [(name, ours.get(name), theirs.get(name)) for name in names]
    return [each for each in both if each[1] != each[2]]


# --- the machine ----------------------------------------------------------------------------------


def describe_machine() -> dict[str, Any]:
    """Return what besides packages can change a number: Python, libc, CPU, GPUs, driver, CUDA."""
    return {
        "python": platform.python_version(),
        "python_build": sys.version,
        "python_from": "conda" if conda_packages(Path(sys.prefix)) else "the machine",
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "torch_cuda": _torch_cuda(),
        **_gpus(),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _torch_cuda() -> str | None:
    """Return the CUDA version torch was built with, from the file it is written in."""
    spec = util.find_spec("torch")  # finds it without importing it
    if spec is None or spec.origin is None:
        return None
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))["cuda"]


def _gpus() -> dict[str, Any]:
    """Return the models of the GPUs and the driver's version, as nvidia-smi says them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = answer_of(query, 30)
    said = "" if done.returncode else done.stdout  # a driver that is broken has no GPUs for torch
    rows = [line.split(", ") for line in said.splitlines() if line.strip()]
    return {"gpus": [row[0] for row in rows], "driver": rows[0][1] if rows else None}


# --- the record of a run --------------------------------------------------------------------------


def describe_environment(project: Path) -> dict[str, Any]:
    """Return the record of a run: the lock's digest, the differences from it, and the machine."""
    lock = read_lock(project)
    installed = installed_packages()
    differences = find_unlocked(lock, installed)
    return {
        "lock_sha256": lock.sha256 if lock else None,
        "locked": not differences,
        "differences": differences,
        "packages": installed,
        **describe_machine(),
    }


def environment_in_words(record: Mapping[str, Any]) -> str:
    """Return whether the environment is the locked one, and how it differs if not."""
    differences = record["differences"]
    if not differences:
        return LOCKED
    shown = "; ".join(differences[:SHOWN])
    more = len(differences) - SHOWN
    return f"differs from the lock: {shown}" + (f"; and {more} more" if more > 0 else "")


def unlocked_fault(record: Mapping[str, Any]) -> str:
    """Return the fault of registering from an environment that differs."""
    return (
        f"registry.allow_unlocked = false: this environment {environment_in_words(record)}. Run in "
        "the locked one (--env-manager uv or conda), or train with -P allow_unlocked=true; the "
        "version is marked then."
    )


def environment_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record as tags of a run or a version; all of it is in environment.json."""
    shown = {
        "lock_sha256": record["lock_sha256"],
        "environment": environment_in_words(record),
        "python": record["python"],
        "cpu": record["cpu"],
        "gpu": ", ".join(record["gpus"]),
        "driver": record["driver"],
        "torch_cuda": record["torch_cuda"],
    }
    return {name: text for name, text in shown.items() if text}
