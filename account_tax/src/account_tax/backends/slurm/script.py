"""The batch script of a job: set up, run the command once on the first node, leave its status."""

from __future__ import annotations

import shlex
from pathlib import Path

from account_tax.errors import TO_BE_CONTINUED
from account_tax.storage.names import REQUEUES_VARIABLE

from .config import SlurmConfig

STATUS_FILE = "exit_status"
OUTPUT_FILE = "job.out"
SCRIPT_FILE = "job.sh"

# bash runs a trap only when the command in the foreground ends, so the command is waited for.
SCRIPT = """\
#!/bin/bash
# Submitted by `mlflow run -b slurm`.
cancelled=
trap 'cancelled=1' TERM
rm -f {status}
leave() {{ echo "$1" > {status}; exit "$1"; }}
fail() {{ echo "$1" >&2; leave 1; }}
cd {work_dir} || fail "node $SLURMD_NODENAME does not see the project: "{work_dir}
{setup}
export {requeues_variable}={max_requeues}
bash -c {command} &
wait $!; status=$?
if [ -n "$cancelled" ]; then wait $!; leave 143; fi
# The launcher ends so when the job lost its nodes and the same run can go on later.
if [ "$status" = {to_be_continued} ] && scontrol requeue "$SLURM_JOB_ID"; then exit 0; fi
leave "$status"
"""


def write_script(
    folder: Path, config: SlurmConfig, work_dir: Path, activate: str | None, command: str
) -> str:
    """Return the script's text.

    Args:
        folder: The job's own folder.
        config: Its setup lines and how often it may be queued again.
        work_dir: The project's folder, where the command runs.
        activate: The shell line that activates the environment, if one was made.
        command: The entry point's command line.
    """
    lines = [_checked(line, f"setup line {n}") for n, line in enumerate(config.setup, start=1)]
    if activate:
        lines.append(_checked(activate, "activating the environment"))
    return SCRIPT.format(
        status=shlex.quote(str(folder / STATUS_FILE)),
        work_dir=shlex.quote(str(work_dir)),
        setup="\n".join(lines),
        requeues_variable=REQUEUES_VARIABLE,
        max_requeues=config.max_requeues,
        command=shlex.quote(command),
        to_be_continued=TO_BE_CONTINUED,
    )


def _checked(line: str, what: str) -> str:
    """Return a line that ends the job, saying where, if it fails."""
    said = shlex.quote(f"{what} failed: {line}")
    return f"{{ {line}\n}} || fail {said}"
