"""What the machine must offer before a rank starts; each fault is one line."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import sysconfig
from pathlib import Path
from typing import Any

from account_tax.processes.ranks import find_built
from account_tax.storage.files import first_there

MEBIBYTE = 2**20
# Logs, tokenizer, plots and the registered copy, whatever the model's size.
BASE_BYTES = 256 * MEBIBYTE
# Of a trained parameter in a checkpoint: fp32 master weight, two Adam moments, the weight itself.
BYTES_PER_PARAMETER = 16
MEAN_BYTES = 4  # and, with train.averaging, the mean in float32


def find_machine_faults(
    values: dict[str, Any],
    report: dict[str, Any],
    ranks: int,
    port: int | str,
    project: Path,
    saved_bytes: int = 0,
    written: int = 0,
) -> list[str]:
    """Return every reason why this machine can't run the training.

    Args:
        values: The resolved parameters.
        report: What `account_tax.pipelines.check` found.
        ranks: Those that this machine is to run.
        port: Of the ranks' rendezvous; `auto` takes a free one.
        project: The project's root, below which a relative artifacts_root lies.
        saved_bytes: What this configuration's checkpoints take on the disk already.
        written: Checkpoints that the whole training writes; all are kept without a limit.
    """
    faults = []
    gpus = report.get("gpus", 0)
    if gpus and ranks > gpus:
        faults.append(
            f"num_gpus = {ranks}: this machine shows {gpus} GPU{'s' if gpus > 1 else ''}. "
            "Lower it, or let num_gpus=auto take those there are."
        )
    faults += _compiler_faults(values["train"], gpus)
    if isinstance(port, int) and (why := _why_not_bindable(port)):
        faults.append(
            f"master_port = {port}: {why}. Give another port, or master_port=auto for a free one."
        )
    averaged = values["train"].get("averaging", {}).get("enable", False)
    each = BYTES_PER_PARAMETER + MEAN_BYTES * averaged
    size = report.get("trainable_parameters", 0) * each
    return faults + _disk_faults(values, project, size, saved_bytes, written)


def _compiler_faults(train: dict[str, Any], gpus: int) -> list[str]:
    """Return what is missing where DeepSpeed builds operators when ranks start."""
    if not (built := find_built(train, gpus)):
        return []
    # As torch.utils.cpp_extension looks for it; g++ under its own name alone does not help.
    compiler, source = os.environ.get("CXX", "c++"), "CXX" if "CXX" in os.environ else "default"
    why = f"and DeepSpeed builds operators for {' and '.join(built)}"
    faults = []
    if not shutil.which(next(iter(shlex.split(compiler)), "")):
        faults.append(
            f"C++ compiler = {compiler} ({source}): not found on PATH, {why}. Install one, on "
            "Debian or Ubuntu with: apt-get install g++, or set CXX to the one there is."
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        faults.append(
            f"Python headers: no Python.h for this interpreter, {why}. Install them, on Debian or "
            "Ubuntu with: apt-get install python3-dev"
        )
    return faults


def _why_not_bindable(port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as err:
            in_use = err.errno == errno.EADDRINUSE
            return "another process listens on it" if in_use else f"can't be used ({err.strerror})"
    return ""


def _disk_faults(
    values: dict[str, Any], project: Path, size: int, saved_bytes: int, written: int
) -> list[str]:
    """Return what is wrong with the folders of results and checkpoints, or with their disks."""
    root, train = values.get("artifacts_root"), values["train"].get("training", {})
    if root is None:  # it has a fault of its own
        return []
    count, which = written, f"all {written} checkpoints"
    if limit := train.get("save_total_limit"):
        # The best one is kept beside the newest, and a new one is whole before an old one goes.
        count, which = max(2, limit) + 1, f"{max(2, limit)} checkpoints and a new one"
    checkpoints = max(size, count * size - saved_bytes)
    needs = {
        ("artifacts_root", root): (BASE_BYTES + size, "the best model and the logs need"),
        ("train.training.output_dir", train.get("output_dir", root)): (
            checkpoints,
            f"{which} need",
        ),
    }
    folders = {place: first_there(project / place[1]) for place in needs}
    faults = [
        f"{key} = {place}: {folder} is no folder that can be written to. Give another one."
        for (key, place), folder in folders.items()
        if not (folder.is_dir() and os.access(folder, os.W_OK))
    ]
    if faults:
        return faults[:1]
    if len({folder.stat().st_dev for folder in folders.values()}) == 1:
        needed = BASE_BYTES + size + checkpoints
        words = f"{which}, the best model and the logs need"
        needs = {("artifacts_root", root): (needed, words)}
    return [
        f"{key} = {place}: {free // MEBIBYTE:,} MiB are free, and {words} about "
        f"{needed / MEBIBYTE:,.0f} MiB. Free some space, set a lower "
        f"train.training.save_total_limit, or point {key} to a larger disk."
        for (key, place), (needed, words) in needs.items()
        if (free := shutil.disk_usage(folders[key, place]).free) < needed
    ]
