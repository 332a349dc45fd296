"""Checkpoints on a real disk, with real deaths: every file operation is the last one once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from account_tax.storage.checkpoints import (
    DAMAGED,
    MANIFEST_FILE,
    STAGING,
    DamagedCheckpoint,
    DiskFull,
    find_fault,
    full_disk_said,
    list_checkpoints,
    publish,
    remove,
    require_whole,
    rotate,
    set_aside,
    size_of,
    stage,
    tidy,
)
from account_tax.storage.files import read_json, write_json

FACTS = {"config_sha256": "c" * 64, "world_size": 1, "best": None}


def save(folder: Path, step: int, content: bytes = b"weights") -> Path:
    """Do what the trainer does: stage, fill, publish."""
    staged = stage(folder) / f"checkpoint-{step}"
    (staged / f"global_step{step}").mkdir(parents=True)
    (staged / "adapter_model.safetensors").write_bytes(content)
    (staged / f"global_step{step}" / "states.pt").write_bytes(content * 2)
    return publish(staged, FACTS)


def names(folder: Path) -> list[str]:
    return [checkpoint.name for checkpoint in list_checkpoints(folder)]


def test_a_published_checkpoint_is_whole_and_says_what_made_it(tmp_path):
    checkpoint = save(tmp_path, 20)
    assert checkpoint == tmp_path / "checkpoint-20"
    assert find_fault(checkpoint) == ""
    assert require_whole(checkpoint).items() >= FACTS.items()
    assert set(read_json(checkpoint / MANIFEST_FILE)["files"]) == {
        "adapter_model.safetensors",
        "global_step20/states.pt",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]


def damage(checkpoint: Path, how: str) -> None:
    file = checkpoint / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    if how == "a flipped bit":
        content[3] ^= 1
        file.write_bytes(content)
    elif how == "cut short":
        file.write_bytes(content[:-1])
    elif how == "a file gone":
        file.unlink()
    elif how == "a file more":
        (checkpoint / "more.pt").write_bytes(b"a pickle of somebody else")
    else:
        (checkpoint / MANIFEST_FILE).write_text("{")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("a flipped bit", "adapter_model.safetensors has sha256"),
        ("cut short", "adapter_model.safetensors has sha256"),
        ("a file gone", "adapter_model.safetensors is missing"),
        ("a file more", "more.pt is not one of its files"),
        ("no manifest", "its checkpoint.json is missing or can't be read"),
    ],
)
def test_damage_is_found_and_named(tmp_path, how, said):
    checkpoint = save(tmp_path, 20)
    damage(checkpoint, how)
    assert said in find_fault(checkpoint)
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint-20.*Run the same command again"):
        require_whole(checkpoint)


def test_a_damaged_checkpoint_is_set_aside_and_kept_each_time(tmp_path):
    for number in ("", "-2", "-3"):
        aside = set_aside(save(tmp_path, 20))
        assert aside.name == f"{DAMAGED}checkpoint-20{number}"
        assert aside.is_dir()
    assert names(tmp_path) == []


# --- deaths ---------------------------------------------------------------------------------------

LETHAL = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def die_at(operation: int, work) -> bool:
    """Do work in a process that is killed at its n-th file operation; return whether it was."""
    child = os.fork()
    if child == 0:
        left = operation

        def count(event: str, args: tuple) -> None:
            nonlocal left
            if event in LETHAL:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def deaths(folder: Path, prepare, work):
    """Yield after each possible death, in a folder prepared anew."""
    operation = 1
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        prepare()
        if not die_at(operation, work):
            assert operation > 5, "it counts no operations"
            return
        tidy(folder)
        yield operation
        operation += 1


def test_a_death_while_saving_leaves_the_previous_checkpoint_whole(tmp_path):
    folder = tmp_path / "run"
    seen = set()
    for operation in deaths(folder, lambda: save(folder, 20), lambda: save(folder, 40)):
        found = names(folder)
        assert found in (["checkpoint-20"], ["checkpoint-40", "checkpoint-20"]), operation
        assert [find_fault(folder / name) for name in found] == [""] * len(found), operation
        assert not list(folder.glob(".*")), operation
        seen.add(len(found))
    assert seen == {1, 2}


def test_a_death_while_saving_a_step_again_leaves_one_of_the_two_whole(tmp_path):
    folder = tmp_path / "run"
    seen = set()
    for operation in deaths(
        folder, lambda: save(folder, 20, b"before"), lambda: save(folder, 20, b"after!")
    ):
        assert names(folder) == ["checkpoint-20"], operation
        assert find_fault(folder / "checkpoint-20") == "", operation
        assert not list(folder.glob(".*")), operation
        seen.add((folder / "checkpoint-20" / "adapter_model.safetensors").read_bytes())
    assert seen == {b"before", b"after!"}


def test_a_death_while_removing_leaves_nothing_that_looks_like_a_checkpoint(tmp_path):
    folder = tmp_path / "run"

    def two() -> None:
        save(folder, 20)
        save(folder, 40)

    for operation in deaths(folder, two, lambda: rotate(folder, 1, None)):
        for checkpoint in list_checkpoints(folder):
            assert find_fault(checkpoint) == "", operation
        assert "checkpoint-40" in names(folder)


# --- how many -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [50, 40, 30, 20, 10]),
        (3, None, [50, 40, 30]),
        (3, "checkpoint-10", [50, 40, 10]),
        (1, "checkpoint-20", [50, 20]),
        (1, "checkpoint-50", [50]),
        (9, None, [50, 40, 30, 20, 10]),
    ],
)
def test_the_limit_is_kept_and_the_best_one_too_whatever_the_clock_says(
    tmp_path, limit, best, kept
):
    for step in (10, 20, 30, 40, 50):
        checkpoint = save(tmp_path, step)
        os.utime(checkpoint, (1e9 - step, 1e9 - step))  # the newest is the oldest by its time
    rotate(tmp_path, limit, best)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]


def test_the_size_counts_every_runs_checkpoints(tmp_path):
    for run in ("a", "b"):
        save(tmp_path / run, 20)
    manifests = sum(file.stat().st_size for file in tmp_path.rglob(MANIFEST_FILE))
    assert size_of(tmp_path) == 2 * 3 * len(b"weights") + manifests


def test_other_folders_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-best", "damaged-checkpoint-3", ".removed-checkpoint-4", "logs"):
        (tmp_path / name).mkdir()
    assert list_checkpoints(tmp_path) == []
    assert list_checkpoints(tmp_path / "nothing") == []


# --- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Return a real file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_said_and_leaves_the_earlier_checkpoint_whole(small_disk):
    torch = pytest.importorskip("torch")
    save(small_disk, 20)
    staged = stage(small_disk) / "checkpoint-40"
    staged.mkdir()
    said = r"is full.*step 40 was not saved. Kept whole: checkpoint-20"
    with pytest.raises(DiskFull, match=said), full_disk_said(small_disk, 40):
        torch.save(torch.zeros(2**20), staged / "states.pt")
    assert find_fault(small_disk / "checkpoint-20") == ""
    assert not (small_disk / STAGING).exists()
    save(small_disk, 60)  # what was begun is freed


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_a_full_disk_too(tmp_path, code):
    with pytest.raises(DiskFull, match="Kept whole: none"), full_disk_said(tmp_path, 4):
        raise RuntimeError(f"I/O error: {os.strerror(code)} (os error {code})")


def test_other_errors_while_saving_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="a bug"), full_disk_said(tmp_path, 4):
        raise ValueError("a bug")


# --- locks ----------------------------------------------------------------------------------------


def test_a_file_that_is_rewritten_is_never_seen_in_part(tmp_path):
    file = tmp_path / "attempt.json"
    for number in range(3):
        write_json(file, {"number": number})
        assert json.loads(file.read_text()) == {"number": number}
    assert read_json(tmp_path / "none.json") == {}
    remove(save(tmp_path, 20))
    assert [path.name for path in tmp_path.iterdir()] == ["attempt.json"]
