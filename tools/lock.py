# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging", "psutil", "pyyaml"]
# ///
"""The lock: made, rendered for MLflow, and proven.

python tools/lock.py lock [--upgrade] [--conda PATH]  solve again, keeping versions that still fit
python tools/lock.py render                           conda.yaml from both locks
python tools/lock.py verify [--index] [--installed]   every fault by name, and exit status 1

Two tools lock two layers, each the one that installs it. conda-lock.yml is what conda installs:
Python, pip, setuptools and their libraries. requirements.lock is what pip installs, solved by uv.
conda-lock does not lock pip's layer: 4.0.3 can't (its wheel tags end before the ones torch's CUDA
packages have, and it solves their pins wrongly), and it would write an index's URLs into the file.

requirements.lock has one hash a package, that of the one file that fits the platform best. A list
of all files' hashes, as uv and pip-tools write it, lets each machine choose among several: the same
lock, other bytes.

Where there is no environment yet: `uv run tools/lock.py ...` brings the few packages this needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "account_tax" / "src"))

from account_tax.provenance.environment import find_unlocked, read_lock  # noqa: E402

PYTHON = (3, 11)
GLIBC_MINOR = 28  # glibc 2.28 (RHEL 8, Debian 11): the oldest that torch 2.13 and its CUDA run on
PLATFORM = f"x86_64-manylinux_2_{GLIBC_MINOR}"
EXTRAS = ("test",)  # `mlflow run . -e test` runs in this environment too
CONDA_LOCK, PIP_LOCK, RENDERED = "conda-lock.yml", "requirements.lock", "conda.yaml"
RELOCK = "python tools/lock.py lock"
RERENDER = "python tools/lock.py render"
LINE = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})  # via .+"
)
HEAD = """\
# What pip installs, one file a package by its hash. Made by tools/lock.py with uv; don't edit.
"""


class LockError(Exception):
    """The lock can't be made or read; the message says what to do."""


@dataclass(frozen=True)
class Pin:
    """One package of pip's layer: its version, the digest of its one file, and who needs it."""

    name: str
    version: str
    sha256: str
    via: str = ""

    @property
    def line(self) -> str:
        """As pip and uv read it."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True)
class Project:
    """The folder with pyproject.toml and the three files of the lock."""

    root: Path

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        """The content of pyproject.toml."""
        return tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))

    @property
    def ranges(self) -> list[Requirement]:
        """Every requirement that the environment has to meet."""
        project = self.pyproject["project"]
        extras = project["optional-dependencies"]
        lines = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
        return [Requirement(line) for line in lines]

    def tool(self, name: str) -> str:
        """Return the requirement of a tool that uv starts for this file."""
        group = self.pyproject["dependency-groups"]["lock"]
        return next(line for line in group if Requirement(line).name == name)

    @property
    def conda(self) -> list[dict[str, Any]]:
        """The packages of conda-lock.yml."""
        text = (self.root / CONDA_LOCK).read_text(encoding="utf-8")
        return yaml.safe_load(text)["package"]

    @property
    def pins(self) -> dict[str, Pin]:
        """The packages of requirements.lock, by name."""
        pins: dict[str, Pin] = {}
        text = (self.root / PIP_LOCK).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):
            if line.startswith("#"):
                continue
            if not (match := LINE.fullmatch(line)):
                raise LockError(
                    f"{PIP_LOCK} line {number}: expected name==version --hash=sha256:<64 digits>, "
                    f"found {line[:80]!r}. Mend: {RELOCK}"
                )
            pins[match["name"]] = Pin(**match.groupdict())
        return pins

    @property
    def installers(self) -> dict[str, str]:
        """What conda brings and pip knows by the same name, such as pip itself: name -> version."""
        return {each["name"]: each["version"] for each in self.conda if _is_python_package(each)}


def _is_python_package(conda_package: Mapping[str, Any]) -> bool:
    return "python" in conda_package["dependencies"]


# --- lock -----------------------------------------------------------------------------------------


def lock(project: Project, conda: str | None, upgrade: bool) -> list[str]:
    """Solve both layers, write both locks and conda.yaml, and return the report's lines."""
    report = lock_conda(project, conda)
    before = project.pins if (project.root / PIP_LOCK).exists() else {}
    files = solve_pip(project, {} if upgrade else before)
    pins = {name: pin for name, (pin, _) in files.items()}
    lines = [f"{pin.line}  # via {pin.via}" for pin in pins.values()]
    (project.root / PIP_LOCK).write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    (project.root / RENDERED).write_text(render(project), encoding="utf-8")
    size = sum(size for _, size in files.values())
    report.append(f"{PIP_LOCK}: {len(pins)} packages, {size / 1e9:.2f} GB to download")
    report += _changes(before, pins) if before else []
    return [*report, audit(project)]


def lock_conda(project: Project, conda: str | None) -> list[str]:
    """Solve conda's layer with conda-lock, or keep it where there is no conda to solve with."""
    found = conda or next(filter(shutil.which, ("conda", "mamba", "micromamba")), None)
    if found is None:
        if not conda_inputs_current(project):
            raise LockError(
                f"{CONDA_LOCK}: [tool.conda-lock] of pyproject.toml has changed, and there is no "
                "conda, mamba or micromamba here to solve it with. Install one, or give --conda."
            )
        return [f"{CONDA_LOCK}: kept; its inputs are unchanged, and no conda is here"]
    done = _conda_lock(project, "--conda", found)
    if done.returncode:
        raise LockError(f"conda-lock failed:\n{done.stderr[-2000:]}")
    return [f"{CONDA_LOCK}: {len(project.conda)} packages, solved with {Path(found).name}"]


def conda_inputs_current(project: Project) -> bool:
    """Return whether conda-lock.yml was solved from what [tool.conda-lock] says now."""
    # With a conda that can't solve, conda-lock only succeeds if it has nothing to do.
    done = _conda_lock(project, "--conda", "/bin/true", "--check-input-hash")
    if done.returncode == 0 and "already locked" in done.stderr + done.stdout:
        return True
    if "parse json" in done.stderr:  # it went on to solve
        return False
    raise LockError(f"conda-lock could not be run:\n{done.stderr[-2000:]}")


def _conda_lock(project: Project, *options: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as scratch:
        # No package of this layer comes from pip, so the table of names, a download, is not needed.
        names = Path(scratch) / "names.json"
        names.write_text("{}", encoding="utf-8")
        command = [
            *("tool", "run", "--from", project.tool("conda-lock"), "conda-lock", "lock"),
            *("--file", "pyproject.toml", "--lockfile", CONDA_LOCK),
            *("--pypi_to_conda_lookup_file", str(names), *options),
        ]
        return _uv(project, *command)


def solve_pip(project: Project, keep: Mapping[str, Pin]) -> dict[str, tuple[Pin, int]]:
    """Return each package of pip's layer and the bytes of its file.

    Args:
        project: The ranges, and the versions that conda's layer has settled.
        keep: Versions that stay where the ranges allow.
    """
    with tempfile.TemporaryDirectory() as scratch:
        solved, files = Path(scratch) / "solved.txt", Path(scratch) / "pylock.toml"
        # uv keeps the versions of the file it is to write.
        solved.write_text("".join(f"{each.name}=={each.version}\n" for each in keep.values()))
        inputs = [*_inputs(project, Path(scratch)), "--annotation-style=line", "--no-header"]
        _compile(project, *inputs, "--output-file", str(solved))
        lines = solved.read_text(encoding="utf-8").splitlines()
        _compile(project, str(solved), "--no-deps", "--format=pylock.toml", "--output-file", files)
        packages = tomllib.loads(files.read_text(encoding="utf-8"))["packages"]
    chosen = {package["name"]: choose_file(package) for package in packages}
    result = {}
    for line in lines:
        pin, _, via = line.partition("# via ")
        name, _, version = pin.strip().partition("==")
        via = re.sub(r"account-tax \(pyproject\.toml\)", "account-tax", via)
        via = re.sub(r"-r \S+installers\.txt", "conda's layer", via)
        result[name] = (Pin(name, version, chosen[name]["sha256"], via), chosen[name]["size"])
    return result


def _inputs(project: Project, scratch: Path) -> list[str]:
    """Return uv's words for what is to be solved: the ranges, and what conda has settled."""
    installers = scratch / "installers.txt"
    pins = (f"{name}=={version}\n" for name, version in project.installers.items())
    installers.write_text("".join(pins), encoding="utf-8")
    return ["pyproject.toml", str(installers), *(f"--extra={extra}" for extra in EXTRAS)]


def choose_file(package: Mapping[str, Any]) -> dict[str, Any]:
    """Return sha256 and size of the file that an installer on the platform would rank first.

    Args:
        package: An entry of pylock.toml: name, version, wheels and sdist.
    """
    ranks = {tag: rank for rank, tag in enumerate(platform_tags())}
    fitting = []
    for wheel in package.get("wheels", []):
        tags = parse_wheel_filename(wheel["url"].rpartition("/")[2])[3]
        if known := [ranks[tag] for tag in tags if tag in ranks]:
            fitting.append((min(known), wheel["hashes"]["sha256"], wheel))
    file = min(fitting)[2] if fitting else package.get("sdist")
    if file is None:
        raise LockError(f"{package['name']} {package['version']}: no file fits {PLATFORM}.")
    return {"sha256": file["hashes"]["sha256"], "size": file["size"]}


def platform_tags() -> Iterator[Tag]:
    """Yield the tags of wheels for the platform, the best first."""
    older = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    platforms = []
    for minor in range(GLIBC_MINOR, 4, -1):
        platforms += [f"manylinux_2_{minor}_x86_64"]
        platforms += [f"{older[minor]}_x86_64"] if minor in older else []
    platforms.append("linux_x86_64")
    yield from cpython_tags(PYTHON, platforms=platforms)
    yield from compatible_tags(PYTHON, f"cp{PYTHON[0]}{PYTHON[1]}", platforms)


def _compile(project: Project, *words: str | Path) -> str:
    """Run `uv pip compile` for the platform and return what it said besides."""
    version = ".".join(map(str, PYTHON))
    target = ("--python-version", version, "--python-platform", PLATFORM)
    done = _uv(project, "pip", "compile", *target, *map(str, words))
    if done.returncode:
        raise LockError(f"uv can't solve it:\n{done.stderr.strip()}")
    return done.stderr


def _uv(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    uv = shutil.which("uv")
    if uv is None:
        raise LockError("uv is not on PATH. Install it: pip install uv")
    return subprocess.run(
        [uv, *words], cwd=project.root, capture_output=True, text=True, check=False
    )


def _changes(before: Mapping[str, Pin], after: Mapping[str, Pin]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old and new and old.line == new.line:
            continue
        shown = [each.version if each else "not there" for each in (old, new)]
        file = " (another file)" if old and new and old.version == new.version else ""
        yield f"  {name}: {shown[0]} -> {shown[1]}{file}"


def audit(project: Project) -> str:
    """Return what is known of the packages' vulnerabilities, or that it could not be found out."""
    done = _uv(
        project,
        *("tool", "run", "--from", project.tool("pip-audit"), "pip-audit"),
        *("--requirement", PIP_LOCK, "--disable-pip", "--require-hashes", "--format=json"),
        "--progress-spinner=off",
    )
    try:
        looked_up = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return f"vulnerabilities: not checked; pip-audit said: {done.stderr.strip()[-300:]}"
    known = [each for each in looked_up if "skip_reason" not in each]
    if not known:
        return "vulnerabilities: not checked; no source of advisories could be reached"
    bad = [
        f"{each['name']} {each['version']}: {one['id']}" for each in known for one in each["vulns"]
    ]
    skipped = len(looked_up) - len(known)
    found = "; ".join(bad) or "none known"
    return f"vulnerabilities in {len(known)} packages ({skipped} could not be looked up): {found}"


# --- render ---------------------------------------------------------------------------------------


def render(project: Project) -> str:
    """Return conda.yaml, the one file that MLflow reads, made of both locks.

    Hashes stand inline: conda names its environment by the text of this file alone. What has an
    exact build is conda's, and uv skips it; uv takes the first line and pip's section.
    """
    digests = {
        name: hashlib.sha256((project.root / name).read_bytes()).hexdigest()
        for name in (CONDA_LOCK, PIP_LOCK)
    }
    builds = [f"{each['name']}={each['version']}={_build(each)}" for each in project.conda]
    lines = [
        "# The environment as MLflow installs it. Rendered by tools/lock.py; don't edit. Made of",
        *(f"#   {name} sha256 {digest}" for name, digest in digests.items()),
        "name: account-tax",
        f"channels: [{', '.join(project.pyproject['tool']['conda-lock']['channels'])}]",
        "dependencies:",
        # MLflow's uv manager takes the first python line, and any 3.11 there is on the machine.
        f"  - python={'.'.join(map(str, PYTHON))}",
        *(f"  - {build}" for build in builds),
        "  - pip:",
        *(f"      - {pin.line}" for pin in project.pins.values()),
    ]
    return "\n".join(lines) + "\n"


def _build(conda_package: Mapping[str, Any]) -> str:
    """Return the build of `python-3.11.15-h7508c33_1_cpython.conda`, the last part of its name."""
    file = conda_package["url"].rpartition("/")[2]
    return re.sub(r"\.(conda|tar\.bz2)$", "", file).rpartition("-")[2]


# --- verify ---------------------------------------------------------------------------------------


def verify(project: Project, index: bool, installed: bool) -> list[str]:
    """Return every fault of the lock, each with both values and the command that mends it."""
    checks: list[Callable[[Project], Iterable[str]]] = [
        rendered_faults, range_faults, layer_faults, conda_faults,
    ]  # fmt: skip
    checks += [index_faults] if index else []
    checks += [installed_faults] if installed else []
    faults: list[str] = []
    for check in checks:
        try:
            faults += check(project)
        except LockError as err:
            faults.append(str(err))
        except FileNotFoundError as err:
            faults.append(f"{Path(err.filename).name}: missing. Mend: {RELOCK}")
    return list(dict.fromkeys(faults))


def rendered_faults(project: Project) -> Iterator[str]:
    """Yield each package that conda.yaml has otherwise than the locks."""
    wanted = render(project).splitlines()
    found = (project.root / RENDERED).read_text(encoding="utf-8").splitlines()
    wanted_lines, found_lines = _by_package(wanted), _by_package(found)
    for name in sorted(wanted_lines.keys() | found_lines.keys()):
        want, find = wanted_lines.get(name, "nothing"), found_lines.get(name, "nothing")
        if want != find:
            yield f"{name}: {RENDERED} has {find}, the locks {want}. Mend: {RERENDER}"
    if wanted_lines == found_lines and wanted != found:
        yield f"{RENDERED}: not as rendered from the locks. Mend: {RERENDER}"


def _by_package(lines: Iterable[str]) -> dict[str, str]:
    """Return the pins of a conda.yaml by package and layer; other lines don't count."""
    entries: dict[str, str] = {}
    for line in lines:
        if match := re.match(r" +- ([A-Za-z0-9._-]+)=(=?)(.+)", line):
            name, pip, rest = match.groups()
            layer = " (pip)" if pip else " (conda)" if "=" in rest else ""
            entries[f"{name}{layer}"] = line.strip().removeprefix("- ")
    return entries


def range_faults(project: Project) -> Iterator[str]:
    """Yield each range of pyproject.toml that the lock does not hold."""
    pins = project.pins
    for requirement in project.ranges:
        name, wanted = canonicalize_name(requirement.name), requirement.specifier
        if name not in pins:
            yield f"{name}: pyproject.toml asks for {wanted or 'it'}, {PIP_LOCK} lacks it. " + (
                f"Mend: {RELOCK}"
            )
        elif not wanted.contains(pins[name].version, prereleases=True):
            yield (
                f"{name}: pyproject.toml asks for {wanted}, {PIP_LOCK} has {pins[name].version}. "
                f"Mend: {RELOCK}"
            )


def layer_faults(project: Project) -> Iterator[str]:
    """Yield each package that two places settle differently."""
    pins = project.pins
    for name, version in project.installers.items():
        found = pins[name].version if name in pins else "nothing"
        if found != version:
            yield f"{name}: {CONDA_LOCK} has {version}, {PIP_LOCK} {found}. Mend: {RELOCK}"
    for line in project.pyproject["tool"]["uv"]["build-constraint-dependencies"]:
        name, _, version = line.partition("==")
        found = pins[name].version if name in pins else "nothing"
        if found != version:
            yield (
                f"{name}: {PIP_LOCK} has {found}, [tool.uv] of pyproject.toml builds with "
                f"{version}. Mend: write {name}=={found} there"
            )


def conda_faults(project: Project) -> Iterator[str]:
    """Yield what makes conda's layer stale."""
    asked = project.pyproject["tool"]["conda-lock"]["dependencies"]["python"]
    needed = project.pyproject["project"]["requires-python"]
    if SpecifierSet(asked) != SpecifierSet(needed):
        yield (
            f"python: requires-python is {needed}, [tool.conda-lock.dependencies] has {asked}. "
            f"Mend: make them equal, then {RELOCK}"
        )
    python = next(each["version"] for each in project.conda if each["name"] == "python")
    if not SpecifierSet(needed).contains(python):
        yield f"python: requires-python is {needed}, {CONDA_LOCK} has {python}. Mend: {RELOCK}"
    if not conda_inputs_current(project):
        yield (
            f"{CONDA_LOCK}: its input hash is not that of [tool.conda-lock] in pyproject.toml. "
            f"Mend: {RELOCK}"
        )


def index_faults(project: Project) -> Iterator[str]:
    """Yield each pin that the index no longer offers or has yanked, lacks, or nobody needs."""
    pins = project.pins
    with tempfile.TemporaryDirectory() as scratch:
        files, constraints = Path(scratch) / "pylock.toml", Path(scratch) / "constraints.txt"
        constraints.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in pins.values()))
        words = [*_inputs(project, Path(scratch)), "--constraints", str(constraints)]
        said = _compile(project, *words, "--format=pylock.toml", "--output-file", files)
        packages = tomllib.loads(files.read_text(encoding="utf-8"))["packages"]
    for yanked in re.findall(r"warning: (.+ is yanked.*)", said):
        yield f"{yanked}. Mend: {RELOCK} --upgrade"
    needed = {package["name"]: package for package in packages}
    for name in sorted(needed.keys() - pins.keys()):
        yield f"{name}: needed by a locked package, {PIP_LOCK} lacks it. Mend: {RELOCK}"
    for name in sorted(pins.keys() - needed.keys()):
        yield f"{name}: {PIP_LOCK} has {pins[name].version}, nothing needs it. Mend: {RELOCK}"
    for name in sorted(pins.keys() & needed.keys()):
        files_of = [*needed[name].get("wheels", []), needed[name].get("sdist")]
        offered = {file["hashes"]["sha256"] for file in files_of if file}
        if pins[name].sha256 not in offered:
            yield (
                f"{name}: {PIP_LOCK} has {pins[name].version} with sha256 {pins[name].sha256}, the "
                f"index offers {', '.join(sorted(offered))}. Mend: find out why before {RELOCK}"
            )


def installed_faults(project: Project) -> Iterator[str]:
    """Yield where the environment of this Python is not the lock: versions, needs, files."""
    differences = find_unlocked(read_lock(project.root))
    mend = "Mend: make the environment anew from the lock, see CONTRIBUTING.md"
    yield from (f"{difference}. {mend}" for difference in differences)
    here = {canonicalize_name(each.metadata["Name"]): each for each in metadata.distributions()}
    for name, each in sorted(here.items()):
        yield from (f"{fault}. {mend}" for fault in _unmet(each, here))
        yield from (f"{name} {each.version}: {fault}. {mend}" for fault in _changed_files(each))


def _unmet(
    distribution: metadata.Distribution, here: Mapping[str, metadata.Distribution]
) -> Iterator[str]:
    """Yield what a distribution requires and the environment has not."""
    environment: Any = default_environment() | {"extra": ""}
    for line in distribution.requires or []:
        need = Requirement(line)
        if need.marker and not need.marker.evaluate(environment):
            continue
        found = here.get(canonicalize_name(need.name))
        if found is None or not need.specifier.contains(found.version, prereleases=True):
            has = f"it has {found.version}" if found else "it is not installed"
            yield f"{need.name}: {distribution.metadata['Name']} needs {need.specifier}, {has}"


def _changed_files(distribution: metadata.Distribution) -> Iterator[str]:
    """Yield the files that are not those the package's own record lists."""
    for file in distribution.files or []:
        if file.hash is None or file.suffix == ".pyc":
            continue
        path = Path(str(file.locate()))
        if not path.is_file():
            yield f"{file} is gone"
        elif hashlib.new(file.hash.mode, path.read_bytes()).digest() != _decoded(file.hash.value):
            yield f"{file} has been changed"


def _decoded(value: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))


# --- the command ----------------------------------------------------------------------------------


def main(words: list[str]) -> int:
    """Run one verb and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="tools/lock.py", description="Make, render and prove the lock."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    locking = verbs.add_parser("lock", help="solve both layers again and render")
    locking.add_argument("--upgrade", action="store_true", help="take the newest versions")
    locking.add_argument("--conda", help="what solves conda's layer; else the one on PATH")
    verbs.add_parser("render", help="write conda.yaml from the two locks")
    verifying = verbs.add_parser("verify", help="prove that the lock holds")
    verifying.add_argument("--index", action="store_true", help="ask the index for every hash")
    verifying.add_argument("--installed", action="store_true", help="compare this environment")
    parser.add_argument("--project", type=Path, default=ROOT, help="its folder")
    options = parser.parse_args(words)
    project = Project(options.project.resolve())
    try:
        return _run(project, options)
    except LockError as err:
        print(err, file=sys.stderr)
        return 1


def _run(project: Project, options: argparse.Namespace) -> int:
    if options.verb == "lock":
        print("\n".join(lock(project, options.conda, options.upgrade)))
    elif options.verb == "render":
        (project.root / RENDERED).write_text(render(project), encoding="utf-8")
    else:
        faults = verify(project, options.index, options.installed)
        if faults:
            noun = "fault" if len(faults) == 1 else "faults"
            print("\n".join([f"{len(faults)} {noun} in the lock", *(f"  {one}" for one in faults)]))
            return 1
        print(f"the lock holds: {len(project.conda)} + {len(project.pins)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
