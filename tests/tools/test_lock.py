"""The lock of this project holds, and each way it can be broken is named."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("pyproject.toml", "conda-lock.yml", "requirements.lock", "conda.yaml")
TOOL = ROOT / "tools" / "lock.py"
SMALL = "iniconfig"  # a package of a few kilobytes that needs nothing

spec = importlib.util.spec_from_file_location("lock", TOOL)
assert spec is not None
assert spec.loader is not None
lock = sys.modules["lock"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)

needs_uv = pytest.mark.skipif(not shutil.which("uv"), reason="uv is not on PATH")


@pytest.fixture
def project(tmp_path) -> lock.Project:
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return lock.Project(tmp_path)


def edit(project: lock.Project, name: str, pattern: str, text: str) -> None:
    """Replace what matches once."""
    file = project.root / name
    changed, count = re.subn(pattern, text, file.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1, f"{pattern} is not in {name}"
    file.write_text(changed)


def offline_faults(project: lock.Project) -> list[str]:
    checks = (lock.rendered_faults, lock.range_faults, lock.layer_faults)
    return [fault for check in checks for fault in check(project)]


def run_tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def flip(digest: str) -> str:
    """Return the digest with its first digit changed."""
    return ("1" if digest[0] != "1" else "2") + digest[1:]


def test_the_projects_own_lock_holds(project):
    assert offline_faults(project) == []


def test_every_line_of_pips_layer_has_exactly_one_hash():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 100
    assert [line for line in pins if line.count("--hash=sha256:") != 1] == []


def test_mlflow_reads_the_rendered_file_as_meant(project):
    from mlflow.utils.environment import _PythonEnv

    read = _PythonEnv.from_conda_yaml(project.root / "conda.yaml")
    assert read.python == "3.11"
    assert read.build_dependencies == []  # all of it comes with a hash
    assert read.dependencies == [pin.line for pin in project.pins.values()]


def test_a_changed_digit_of_the_rendered_file_is_found(project):
    pin = project.pins[SMALL]
    wrong = flip(pin.sha256)
    edit(project, "conda.yaml", pin.sha256, wrong)
    (fault,) = offline_faults(project)
    assert fault.startswith(f"{SMALL} (pip): conda.yaml has {SMALL}=={pin.version}")
    assert f"sha256:{wrong}, the locks" in fault
    assert pin.sha256 in fault
    assert fault.endswith("Mend: python tools/lock.py render")


@pytest.mark.parametrize(
    ("pattern", "text", "said"),
    [
        (r"^      - iniconfig==.*\n", "", "iniconfig (pip): conda.yaml has nothing"),
        (
            r"^  - tzdata=.*\n",
            "  - tzdata=2020a=0\n",
            "tzdata (conda): conda.yaml has tzdata=2020a",
        ),
        (
            r"^  - pip:\n",
            "  - pip:\n      - left-pad==1.0\n",
            "left-pad (pip): conda.yaml has left",
        ),
        (r"^  - python=3.11$", "  - python=3.12", "python: conda.yaml has python=3.12, the locks"),
        (r"^name: account-tax$", "name: other", "conda.yaml: not as rendered from the locks"),
    ],
)
def test_an_edited_conda_yaml_is_found(project, pattern, text, said):
    edit(project, "conda.yaml", pattern, text)
    (fault,) = offline_faults(project)
    assert said in fault


def test_rendering_mends_an_edited_conda_yaml(project):
    edit(project, "conda.yaml", r"^      - iniconfig==.*\n", "")
    done = run_tool("--project", project.root, "render")
    assert done.returncode == 0
    assert offline_faults(project) == []
    assert (project.root / "conda.yaml").read_bytes() == (ROOT / "conda.yaml").read_bytes()


def test_a_range_the_lock_does_not_meet_is_found(project):
    edit(project, "pyproject.toml", r'"torch==2\.13\.0"', '"torch==2.14.0"')
    (fault,) = offline_faults(project)
    assert fault == (
        "torch: pyproject.toml asks for ==2.14.0, requirements.lock has 2.13.0. "
        "Mend: python tools/lock.py lock"
    )


def test_a_dependency_the_lock_lacks_is_found(project):
    edit(project, "pyproject.toml", r'    "torch==', '    "left-pad>=1",\n    "torch==')
    (fault,) = offline_faults(project)
    assert fault.startswith("left-pad: pyproject.toml asks for >=1, requirements.lock lacks it.")


def test_layers_that_disagree_are_found(project):
    edit(project, "requirements.lock", r"^setuptools==[\d.]+", "setuptools==1.0")
    faults = [fault for fault in offline_faults(project) if fault.startswith("setuptools: ")]
    assert len(faults) == 2  # conda's version, and the one that builds DeepSpeed
    assert "conda-lock.yml has 83.0.0, requirements.lock 1.0" in faults[0]
    assert "requirements.lock has 1.0, [tool.uv] of pyproject.toml builds with 83.0.0" in faults[1]


def test_a_line_without_a_hash_is_named(project):
    edit(project, "requirements.lock", r"^iniconfig==(\S+).*", r"iniconfig==\1")
    number = next(
        number
        for number, line in enumerate((ROOT / "requirements.lock").read_text().splitlines(), 1)
        if line.startswith(SMALL)
    )
    with pytest.raises(lock.LockError, match=f"requirements.lock line {number}: expected name"):
        list(lock.range_faults(project))


def test_verify_says_all_faults_at_once_and_exits_with_1(project):
    edit(project, "pyproject.toml", r'"torch==2\.13\.0"', '"torch==2.14.0"')
    edit(project, "conda.yaml", r"^      - iniconfig==.*\n", "")
    done = run_tool("--project", project.root, "verify")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "torch: pyproject.toml asks for ==2.14.0" in done.stdout
    assert "iniconfig (pip): conda.yaml has nothing" in done.stdout


def test_a_missing_lock_is_a_fault_not_a_traceback(project):
    (project.root / "requirements.lock").unlink()
    done = run_tool("--project", project.root, "verify")
    assert done.returncode == 1
    assert "requirements.lock: missing. Mend: python tools/lock.py lock" in done.stdout
    assert "Traceback" not in done.stderr


# --- the file of a package ------------------------------------------------------------------------


def package(*wheels: str, sdist: bool = True) -> dict:
    entry = {"url": "", "size": 1}
    files = [entry | {"url": f"/x/{name}", "hashes": {"sha256": name}} for name in wheels]
    source = {"sdist": entry | {"hashes": {"sha256": "sdist"}}} if sdist else {}
    return {"name": "a", "version": "1.0", "wheels": files, **source}


@pytest.mark.parametrize(
    ("best", "others"),
    [
        ("a-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", ["a-1.0-py3-none-any.whl"]),
        (
            "a-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            ["a-1.0-cp311-cp311-manylinux_2_34_x86_64.whl", "a-1.0-cp312-cp312-linux_x86_64.whl"],
        ),
        (
            "a-1.0-cp311-abi3-manylinux_2_28_x86_64.whl",
            ["a-1.0-cp39-abi3-manylinux_2_28_x86_64.whl"],
        ),
        ("a-1.0-py3-none-any.whl", ["a-1.0-cp311-cp311-musllinux_1_2_x86_64.whl"]),
    ],
)
def test_the_file_an_installer_ranks_first_is_chosen(best, others):
    assert lock.choose_file(package(*others, best))["sha256"] == best
    assert lock.choose_file(package(best, *others))["sha256"] == best


def test_source_is_taken_only_where_no_wheel_fits():
    foreign = "a-1.0-cp311-cp311-win_amd64.whl"
    assert lock.choose_file(package(foreign))["sha256"] == "sdist"
    with pytest.raises(lock.LockError, match=r"a 1\.0: no file fits"):
        lock.choose_file(package(foreign, sdist=False))


# --- the installed files --------------------------------------------------------------------------


@pytest.fixture
def distribution(tmp_path) -> metadata.Distribution:
    """An installed package of one file, with its record."""
    (tmp_path / "thing.py").write_text("answer = 42\n")
    digest = hashlib.sha256((tmp_path / "thing.py").read_bytes()).digest()
    listed = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    info = tmp_path / "thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: thing\nVersion: 1.0\nRequires-Dist: absent>=2\n")
    (info / "RECORD").write_text(f"thing.py,sha256={listed},12\nthing-1.0.dist-info/RECORD,,\n")
    return metadata.PathDistribution(info)


def test_a_changed_or_missing_file_of_a_package_is_named(tmp_path, distribution):
    assert list(lock._changed_files(distribution)) == []
    (tmp_path / "thing.py").write_text("answer = 41\n")
    assert list(lock._changed_files(distribution)) == ["thing.py has been changed"]
    (tmp_path / "thing.py").unlink()
    assert list(lock._changed_files(distribution)) == ["thing.py is gone"]


def test_what_a_package_needs_and_has_not_is_named(distribution):
    (fault,) = lock._unmet(distribution, {"thing": distribution})
    assert fault == "absent: thing needs >=2, it is not installed"


# --- with the index -------------------------------------------------------------------------------


@needs_uv
@pytest.mark.integration
def test_the_whole_lock_holds_against_the_index():
    done = run_tool("verify", "--index")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("the lock holds: 28 + ")


@needs_uv
@pytest.mark.integration
def test_a_stale_conda_layer_is_found(project):
    edit(project, "pyproject.toml", r'^pip = "\*"$', 'pip = ">=20"')
    (fault,) = lock.conda_faults(project)
    assert fault.startswith("conda-lock.yml: its input hash is not that of [tool.conda-lock]")
    with pytest.raises(lock.LockError, match="no conda, mamba or micromamba"):
        lock.lock_conda(project, None)


@needs_uv
@pytest.mark.integration
def test_a_tampered_hash_is_found_by_verify_and_by_the_install(project, tmp_path):
    pin = project.pins[SMALL]
    edit(project, "requirements.lock", pin.sha256, flip(pin.sha256))
    (fault,) = lock.index_faults(project)
    assert fault.startswith(f"{SMALL}: requirements.lock has {pin.version} with sha256 ")
    assert f"the index offers {pin.sha256}" in fault or pin.sha256 in fault
    for line, fails in ((pin.line, False), (project.pins[SMALL].line, True)):
        (tmp_path / "one.txt").write_text(line + "\n")
        target = tmp_path / f"target-{fails}"
        done = subprocess.run(
            ["uv", "pip", "install", "--require-hashes", "--target", target, "-r", "one.txt"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) is fails, done.stderr
        assert ("Hash mismatch" in done.stderr) is fails, done.stderr


@needs_uv
@pytest.mark.integration
def test_a_package_nothing_needs_is_found(project):
    extra = f"colorama==0.4.6 --hash=sha256:{'0' * 64}  # via nobody\n"
    with (project.root / "requirements.lock").open("a") as file:
        file.write(extra)
    faults = list(lock.index_faults(project))
    assert faults == [
        "colorama: requirements.lock has 0.4.6, nothing needs it. Mend: python tools/lock.py lock"
    ]


@needs_uv
@pytest.mark.integration
def test_locking_again_changes_nothing(project):
    before = {name: (project.root / name).read_bytes() for name in FILES}
    lines = lock.lock_conda(project, None)
    pins = {name: pin.line for name, (pin, _) in lock.solve_pip(project, project.pins).items()}
    assert pins == {name: pin.line for name, pin in project.pins.items()}
    assert lines == ["conda-lock.yml: kept; its inputs are unchanged, and no conda is here"]
    assert before == {name: (project.root / name).read_bytes() for name in FILES}
