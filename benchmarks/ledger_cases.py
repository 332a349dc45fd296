"""Ledgers as they really come, read as training reads them and as predict does.

Run: PYTHONPATH=account_tax/src python benchmarks/ledger_cases.py [FOLDER]   (seconds, one core)

FOLDER has a folder a case, which holds the ledger: a file, part files, or train, validation, test.
"""

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from account_tax.errors import Refused
from account_tax.ledger.reading import DataError, read_ledger
from account_tax.model.classifier import join_texts
from account_tax.predict.options import Options
from account_tax.predict.plan import open_input

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT.parent / "shared" / "cases"
# Text and label columns of the cases that have others than memo,merchant and account.
KOREAN = (("적요", "거래처"), "계정과목")
COLUMNS = {
    **dict.fromkeys(["01-cp949-excel", "02-utf16-unicode-text", "05-preamble"], KOREAN),
    "05c-datev": (("Buchungstext",), "Konto"),
    "08c-header-nfd": KOREAN,
    "12b-code-mixed": (("memo", "merchant"), "code"),
    "13-parquet-float-codes": (("memo", "merchant"), "code"),
    "21-nfc-nfd-dup": (("memo",), "account"),
    "21i-cut-dup": (("memo",), "account"),
}


@dataclass(frozen=True)
class Answer:
    """What became of a case: how many rows by fate, or the message that refused it."""

    texts: list[str]
    rejected: int = 0
    labels: int = 0
    unlabelled: int = 0
    refused: str = ""
    doubtful: str = ""


def read_in_training(case: Path) -> Answer:
    """Return what training reads of a case, repeats kept and doubtful labels merged."""
    try:
        ledger = read_ledger(parameters_of(case))
    except DataError as err:
        return Answer([], refused=err.faults[0].partition(": ")[2])
    texts, labels = ledger.texts.of(ledger.frame), ledger.frame["label"].nunique()
    unlabelled = sum(ledger.dropped[f"{which}_label"] for which in ("no", "null", "total"))
    doubtful = ledger.doubtful.in_words()
    return Answer(texts, ledger.dropped["unreadable"], labels, unlabelled, doubtful=doubtful)


def read_in_predict(case: Path) -> Answer:
    """Return what predict reads of a case."""
    data = parameters_of(case)
    options = Options("", Path(data["source"]), Path())
    texts: list[str] = []
    rejected = 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for window in open_input(options, data["text_columns"], Path(scratch)).windows(8192):
                table = window.rows.frame(data["text_columns"])
                joined = join_texts(table, data["text_columns"], data["separator"])
                texts += [text for text in joined if text]
                rejected += len(window.rejects)
        except Refused as err:
            return Answer([], refused=str(err))
    return Answer(texts, rejected)


def have_same_texts(trained: Answer, predicted: Answer) -> bool:
    """Return whether predict reads what training read, and beside it only rows without a label."""
    more = Counter(predicted.texts) - Counter(trained.texts)
    fewer = Counter(trained.texts) - Counter(predicted.texts)
    return not fewer and more.total() == trained.unlabelled


def find_cases(folder: Path) -> list[Path]:
    """Return the folders of the cases."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def parameters_of(case: Path) -> dict[str, Any]:
    """Return the parameters by which a case is read."""
    file = ROOT / "conf" / "base" / "parameters" / "data.yml"
    data = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]
    texts, label = COLUMNS.get(case.name, (("memo", "merchant"), "account"))
    inside = list(case.iterdir())
    source = str(inside[0] if len(inside) == 1 else case)
    changed = {"source": source, "text_columns": list(texts), "label_column": label}
    return {**data, **changed, "duplicates": "keep", "labels": "merge"}


def main() -> None:
    """Print a table, a line for each case."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if not folder.is_dir():
        sys.exit(f"no folder of cases at {folder}: give one")
    print("| case | read | rejected | labels | predict read | rejected | same texts |")
    print("|---|---|---|---|---|---|---|")
    for case in find_cases(folder):
        trained, predicted = read_in_training(case), read_in_predict(case)
        same = "yes" if have_same_texts(trained, predicted) else "no"
        cells = [len(trained.texts), trained.rejected, trained.labels]
        cells += [len(predicted.texts), predicted.rejected]
        doubtful = f"; {trained.doubtful}" if trained.doubtful else ""
        shown = [trained.refused or predicted.refused] if trained.refused else [same + doubtful]
        print(f"| {case.name} | {' | '.join(map(str, [*cells, *shown]))} |")


if __name__ == "__main__":
    main()
