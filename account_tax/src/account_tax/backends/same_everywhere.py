"""Whether every rank's machine has what the first has: folders, code, lock, installed packages.

`PROBE` runs in each rank's place and answers in lines of kind, rank, node and text; `read_answers`
makes faults of them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from account_tax.provenance.code import PACKAGE, digest_package
from account_tax.provenance.environment import LOCK_FILE, differing, installed_packages
from account_tax.storage.files import sha256_of

SEEN_TRIES = 50  # x 0.1 s: NFS shows another machine's new file with a delay
SHOWN = 3  # packages a message names
PROBE_SECONDS = 300  # Python's first start on a cold shared file system
MARK = ".seen-"

# Plain sh, since a machine may see neither the project nor this Python. $1 is Python, $2 the
# reference; each file has to be seen.
PROBE = f"""
python=$1 reference=$2 missing=
export NODE="${{SLURMD_NODENAME:-$NODE}}" PROBED_RANK="${{SLURM_PROCID:-$PROBED_RANK}}"
unseen="UNSEEN\\t$PROBED_RANK\\t$NODE\\t%s\\n"
for file in "$@"; do
  tries=0
  while [ ! -e "$file" ] && [ $tries -lt {SEEN_TRIES} ]; do sleep 0.1; tries=$((tries + 1)); done
  [ -e "$file" ] || {{ printf "$unseen" "$file"; missing=1; }}
done
[ -n "$missing" ] || exec "$python" -m account_tax.backends.same_everywhere "$reference"
"""


def probe_ranks(
    folders: Sequence[Path], ask: Callable[[list[str]], tuple[str, str]], ranks: Sequence[int]
) -> list[str]:
    """Return the faults of the ranks that lack a folder or run something else.

    Args:
        folders: What every rank reads or writes; made where they are missing.
        ask: Runs `sh` with these arguments in each rank's place; returns what was said, and what
            went wrong.
        ranks: Those that have to answer.
    """
    files = [folder.resolve() / f"{MARK}{uuid.uuid4().hex}.json" for folder in folders]
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(describe_here(Path.cwd())), encoding="utf-8")
        said, errors = ask(["-c", PROBE, "probe", sys.executable, *map(str, files)])
    except OSError as err:
        return [f"{err.filename}: can't be written ({err.strerror})."]
    finally:
        for file in files:
            with suppress(OSError):
                file.unlink()
    return read_answers(said, errors, ranks)


def read_answers(said: str, errors: str, ranks: Sequence[int]) -> list[str]:
    """Return the faults that answers tell, those of one machine together."""
    lines = [line.split("\t") for line in said.splitlines() if line.count("\t") == 3]
    faults: dict[tuple[str, str, str], list[int]] = {}
    for kind, rank, node, text in lines:
        if kind != "SAME":
            faults.setdefault((kind, node, text), []).append(int(rank))
    found = [_fault(*key, which) for key, which in faults.items()]
    if silent := sorted(set(ranks) - {int(rank) for _, rank, _, _ in lines}):
        last = " ".join(errors.split())[-500:] or "nothing was said"
        found.append(f"{_named(silent)}: did not start ({last}).")
    return found


def _fault(kind: str, node: str, text: str, ranks: list[int]) -> str:
    if kind == "UNSEEN":
        seen = str(Path(text).parent) if Path(text).name.startswith(MARK) else text
        return (
            f"{seen}: node {node} ({_named(ranks)}) does not see what the first one has there. The "
            "project, artifacts_root and the environment have to lie on storage that all nodes "
            "share."
        )
    return f"{_named(ranks)} (node {node}): {text}. All ranks have to run the same."


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}"


# --- on the rank's machine ------------------------------------------------------------------------


def describe_here(project: Path) -> dict[str, Any]:
    """Return what has to be the same in every rank."""
    lock = project / LOCK_FILE
    return {
        f"the code in {PACKAGE}": digest_package(),
        LOCK_FILE: sha256_of(lock) if lock.is_file() else "missing",
        "Python": platform.python_version(),
        "packages": installed_packages(),
    }


def compare_hosts(mine: dict[str, Any], first: dict[str, Any]) -> Iterator[str]:
    """Yield how a rank differs from the first one, one line a matter."""
    for what, *both in differing(mine, first):
        if what != "packages":
            here, there = (str(each or "missing")[:12] for each in both)
            yield f"{what} is {here}, on the first node {there}"
    if other := differing(mine["packages"], first["packages"]):
        each = [
            f"{name} {ours or 'missing'} for {there or 'none'}"
            for name, ours, there in other[:SHOWN]
        ]
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        yield f"packages differ from the first node's: {', '.join(each)}{more}"


def main() -> None:
    """Compare this machine with the first one's description and say the differences."""
    first = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    who = f"{os.environ['PROBED_RANK']}\t{os.environ['NODE']}"
    found = [f"DIFFERS\t{who}\t{text}" for text in compare_hosts(describe_here(Path.cwd()), first)]
    print("\n".join(found or [f"SAME\t{who}\t"]))  # noqa: T201


if __name__ == "__main__":
    main()
