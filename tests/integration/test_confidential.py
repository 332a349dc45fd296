"""A ledger with markers the whole way, with failures and refusals: no text of it gets out."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import WORDS

from .conftest import ACCOUNTS, Project, kedro_words
from .launched import Launched, override

pytestmark = pytest.mark.integration

# In parts: the copy of the project has this file too.
TEXT, AMOUNT, LABEL = "Qzx" + "textmark", "9182" + "73.64", "Qzxlabelmark"
COLUMNS = ["memo", "amount", "account"]
PARAMETERS = ["text_columns=memo", "label_column=account", "data.amount_column=amount"]
# A folder's own names and caches, and the files of git, which has no ledger.
ASIDE = {".git", "__pycache__", ".ruff_cache"}


def write_marked(file: Path, *first: list[str], header: list[str] | None = COLUMNS) -> Path:
    """Write a ledger whose every text and amount has a marker, and one account's name."""
    draw = random.Random(1)
    accounts = dict(zip([*list(ACCOUNTS)[:2], LABEL], ACCOUNTS.values(), strict=True))
    rows = []
    for number in range(240):
        account = list(accounts)[number % 3]
        words = [*draw.choices(accounts[account], k=3), *draw.choices(WORDS, k=3)]
        rows.append([f"{TEXT}{number} {' '.join(words)}", AMOUNT, account])
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([*([header] if header else []), *first, *rows])
    return file


def find_leaks(places: Iterable[Path], said: str) -> list[str]:
    """Return each file, by name or content, and the output, in which a text or an amount stands."""
    wanted = [TEXT.lower().encode(), AMOUNT.encode()]
    files = [
        file
        for place in places
        for file in (place, *place.rglob("*"))
        if file.is_file() and not ASIDE & {*file.parts}
    ]
    held = {str(file): str(file).lower().encode() + file.read_bytes().lower() for file in files}
    held["the output"] = said.lower().encode()
    return [name for name, content in held.items() if any(each in content for each in wanted)]


REFUSED = {
    "bad rows": ([["a", "b", "c", TEXT, AMOUNT]] * 2, COLUMNS, ["data.on_error=fail"]),
    "an open quote": ([['"' + TEXT, AMOUNT]], COLUMNS, ["data.max_rejected=0"]),
    "columns swapped": ([], ["account", "amount", "memo"], []),
    "no header": ([], None, []),
    "no header, a cell of a column's name": ([["account", AMOUNT, TEXT]], None, []),
    "an unknown label column": ([], COLUMNS, ["label_column=nothing"]),
    "text for amounts and dates": ([], COLUMNS, ["data.time_column=memo"]),
    "text as the label": ([], COLUMNS, ["text_columns=account", "label_column=memo"]),
}


@pytest.fixture(scope="module")
def marked(new_project, tiny_base, tmp_path_factory) -> tuple[Project, Path, str]:
    """The project after the whole way, the temporary folder of every command, and all they said."""
    project, outside = new_project(), tmp_path_factory.mktemp("outside")
    scratch = tmp_path_factory.mktemp("scratch")
    env = {"TMPDIR": str(scratch), "HF_HOME": str(scratch / "hf"), "OMP_NUM_THREADS": "2"}
    env["WARM_EAGER"] = "yes"  # no other test has this HF_HOME, and this one has many commands
    said = []

    def run(*words: str, status: int | None = 0) -> None:
        done = project.run("kedro", *words, env=env, timeout=300)
        said.append(done.output)
        assert status is None or done.returncode == status, done.output

    ledger = write_marked(outside / "ledger.csv")
    short = {"max_steps": "4", "micro_batch_size": "8", "grad_accum": "1", "num_gpus": "1"}
    given = {"data": str(ledger), "model": str(tiny_base), **short}
    options = [f"{name}={value}" for name, value in given.items()]
    options += [*PARAMETERS, "train.lora.target_modules=query,value"]
    options += ["registry.allow_unlocked=true"]
    for number, (first, header, changes) in enumerate(REFUSED.values()):
        bad = write_marked(outside / f"bad{number}.csv", *first, header=header)
        run("train", *kedro_words(override(options, [f"data={bad}", *changes])), status=2)
    said.append(_fail_in_a_rank(project, options, outside, tiny_base, env))
    run("train", *kedro_words(options))
    run("review", "--version", "1", status=None)  # a gate that fails is no failure
    model = ("--model", "models:/account-tax/1")
    to = ("--output", str(outside / "filed.csv"), "--amount_column", "amount")
    run("predict", *model, "--input", str(ledger), *to)
    broken = write_marked(outside / "broken.csv", ["a", "b", TEXT, AMOUNT])
    run("predict", *model, "--input", str(broken), *to, "--overwrite", "true", status=3)
    headerless = write_marked(outside / "headerless.csv", header=None)
    run("predict", *model, "--input", str(headerless), *to, "--overwrite", "true", status=2)
    run("reproduce", "--version", "1", "--rungs", "R0,R1,R2")
    said.append(project.run("kedro", "runs", "--all", env=env).output)
    rejects = outside / "filed.csv.rejects.jsonl"
    said.append(rejects.read_text(encoding="utf-8"))
    return project, scratch, "\n".join(said)


def _fail_in_a_rank(
    project: Project, options: list[str], outside: Path, tiny_base: Path, env: dict[str, str]
) -> str:
    """Train on a base that breaks once the data is prepared; return what was said."""
    base = shutil.copytree(tiny_base, outside / "base")
    words = kedro_words(override(options, [f"model={base}"]))
    train = Launched(project, outside / "output", "kedro", "train", *words, env=env)
    train.wait_until_said("train: 1 CPU rank")
    (base / "model.safetensors").write_bytes(b"broken")
    assert train.end(seconds=60) == 1
    return train.output


def test_no_text_and_no_amount_is_in_stores_logs_tags_output_or_temporary_folders(marked):
    project, scratch, said = marked
    made = [file.name for file in project.folder.rglob("*")]
    assert {"mlflow.db", "train.log", "prepare.log", "model_card.md", "report.html"} <= {*made}
    assert find_leaks([project.folder, scratch], said) == []


def test_the_accounts_name_stands_in_the_card(marked):
    project, _, said = marked
    assert any(LABEL in file.read_text() for file in project.folder.rglob("model_card.md"))
    assert "Traceback" not in said


@pytest.mark.parametrize("marker", [TEXT, AMOUNT])
def test_a_leak_is_found(tmp_path, marker):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.db").write_bytes(b"\x00" + marker.upper().encode() + b"\xff")
    assert find_leaks([tmp_path], f"... {marker} ...") == [
        str(tmp_path / "deep" / "a.db"),
        "the output",
    ]
