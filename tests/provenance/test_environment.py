import hashlib
import json
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from account_tax.provenance import environment
from account_tax.provenance.environment import (
    LOCKED,
    SHOWN,
    Lock,
    conda_packages,
    describe_environment,
    describe_machine,
    environment_in_words,
    environment_tags,
    find_unlocked,
    installed_packages,
    read_lock,
)

ROOT = Path(__file__).resolve().parents[2]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def lock() -> Lock:
    """The lock that this environment meets exactly."""
    return Lock("0" * 64, installed_packages(), {}, HERE)


def test_the_projects_lock_is_read_whole():
    lock = read_lock(ROOT)
    assert lock is not None
    assert lock.sha256 == hashlib.sha256((ROOT / "conda.yaml").read_bytes()).hexdigest()
    assert lock.packages["torch"] == "2.13.0"
    assert lock.conda["python"].startswith("3.11.")
    assert lock.python == "3.11"
    pins = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    assert len(lock.packages) == len(pins)


@pytest.mark.parametrize("pip", ["[torch]", "[torch==2.13.0]", "['torch==2.13.0 --hash=sha256:0']"])
def test_ranges_and_pins_without_a_hash_are_no_lock(tmp_path, pip):
    text = f"dependencies: [python=3.11, {{pip: {pip}}}]\n"
    (tmp_path / "conda.yaml").write_text(text)
    assert read_lock(tmp_path) is None
    assert find_unlocked(None) == ["conda.yaml: missing, or not the rendered lock"]


def test_an_environment_equals_a_lock_of_itself(lock):
    assert find_unlocked(lock) == []


def test_each_package_that_differs_is_named_with_both_values(lock):
    pytest_here = metadata.version("pytest")
    packages = {**lock.packages, "pytest": "1.0", "no-such-package": "2.0"}
    del packages["ruff"]
    assert find_unlocked(Lock(lock.sha256, packages, {}, HERE)) == [
        "no-such-package: not installed, the lock has 2.0",
        f"pytest {pytest_here}: the lock has 1.0",
        f"ruff {metadata.version('ruff')}: not in the lock",
    ]


def test_another_python_differs(lock):
    (found,) = find_unlocked(Lock(lock.sha256, lock.packages, {}, "3.1"))  # not the 3.1 of 3.11
    assert found.endswith("the lock has 3.1")


def test_conda_packages_are_compared_with_their_builds(tmp_path, monkeypatch, lock):
    (tmp_path / "conda-meta").mkdir()
    for name, build in (("python", "h1_0_cpython"), ("openssl", "h2_0")):
        record = {"name": name, "version": "3.11.15", "build": build}
        (tmp_path / "conda-meta" / f"{name}.json").write_text(json.dumps(record))
    assert conda_packages(tmp_path) == {"python": "3.11.15=h1_0_cpython", "openssl": "3.11.15=h2_0"}
    assert conda_packages(tmp_path / "elsewhere") is None
    conda = {"python": "3.11.15=h1_0_cpython", "openssl": "3.11.15=h2_1"}
    monkeypatch.setattr(environment.sys, "prefix", str(tmp_path))
    differences = find_unlocked(Lock(lock.sha256, lock.packages, conda, HERE))
    assert differences == ["openssl 3.11.15=h2_0: the lock has 3.11.15=h2_1"]


def test_the_machine_is_described():
    machine = describe_machine()
    assert machine["python"] == sys.version.split()[0]
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["libc"].startswith("glibc 2.")


def test_gpus_and_driver_come_from_nvidia_smi(tmp_path, monkeypatch):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\nprintf 'NVIDIA H100, 580.1\\nNVIDIA H100, 580.1\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    machine = describe_machine()
    assert (machine["gpus"], machine["driver"]) == (["NVIDIA H100", "NVIDIA H100"], "580.1")
    command.write_text("#!/bin/sh\nexit 9\n")  # as it ends where the driver is not loaded
    assert describe_machine()["gpus"] == []


def test_a_record_says_in_a_tag_what_differs(tmp_path):
    record = describe_environment(tmp_path)
    assert not record["locked"]
    assert record["packages"]["pytest"] == metadata.version("pytest")
    tags = environment_tags(record)
    assert (
        tags["environment"]
        == "differs from the lock: conda.yaml: missing, or not the rendered lock"
    )
    assert "lock_sha256" not in tags  # there is none
    assert all(isinstance(text, str) for text in tags.values())


def test_a_message_shows_the_first_differences_and_counts_the_rest():
    assert environment_in_words({"differences": []}) == LOCKED
    words = environment_in_words(
        {"differences": [f"package{n} 1: not in the lock" for n in range(90)]}
    )
    assert words.count("not in the lock") == SHOWN
    assert words.endswith(f"; and {90 - SHOWN} more")


def test_what_setuptools_brings_for_itself_is_not_installed(monkeypatch):
    before = installed_packages()
    (setuptools,) = find_spec("setuptools").submodule_search_locations
    vendored = Path(setuptools) / "_vendor"
    assert list(vendored.glob("*.dist-info"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(vendored)])
    assert installed_packages() == before
