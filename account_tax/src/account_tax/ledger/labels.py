"""Labels that are one account spelt in several ways, or no account at all."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from account_tax.errors import Failed, Refused
from account_tax.faults import shorten, with_rows
from account_tax.model.classifier import as_text

from .formats import open_file
from .windows import Wanted

DASHES = "[\u2010-\u2015\u2212]"
MAP_COLUMNS = ("old", "new")
NULLS = {
    *("n/a", "n.a.", "na", "nan", "nat", "null", "none", "nil", "<na>", "nv", "n/d", "k.a."),
    *("없음", "해당없음"),
}
SPREADSHEET_ERROR = re.compile(r"#[A-ZÄÉÖÜ]+(/[A-Z0]+)?[!?]?")
TOTALS = {  # in Korean, English, German, French, Italian, Japanese, Chinese and Russian
    *("계", "월계", "total", "totals", "subtotal", "sum", "summe", "gesamt", "gesamtsumme"),
    *("zwischensumme", "gesamtergebnis", "totaux", "somme", "totale"),
    *("合計", "小計", "総計", "合计", "小计", "总计", "итого", "всего"),
}
BESIDE_TOTAL = {  # as Excel's pivot tables write, and others
    *("grand", "general", "général", "complessivo", "sub", "page", "amount", "총", "금액"),
}
TOTAL_ENDINGS = (
    *("합계", "소계", "총계", "누계", "합계액", "합계금액"),
    *("合計", "小計", "総計", "累計", "月計", "年計"),
)


def _plain_number(label: str) -> str:
    """Return a whole number without what a spreadsheet or pandas adds: 811.0, 1,811 or 8.11E+02."""
    if re.fullmatch(r"\d(\.\d+)?[eE]\+\d{1,2}", label) and float(label).is_integer():
        return str(int(float(label)))
    label = re.sub(r"^(\d+)(\.0+|,0)$", r"\1", label)
    return label.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", label) else label


def _outside_formula(label: str) -> str:
    return re.sub(r'^(="(.*)"|\'(.*))$', r"\2\3", label)


# What two spellings of one account differ in, each taken away in its turn.
STEPS: dict[str, Callable[[str], str]] = {
    'as ="text"': _outside_formula,
    "full width": lambda label: unicodedata.normalize("NFKC", label),
    "case": str.casefold,
    "how a number is written": _plain_number,
    "leading zeros": lambda label: re.sub(r"^0+(?=\d)", "", label),
    "spaces and dashes": lambda label: re.sub(r"\s+", "", re.sub(DASHES, "-", label)),
}


@dataclass(frozen=True)
class DoubtfulLabels:
    """Labels that a person ought to look at, with their rows.

    Attributes:
        alike: By the spelling with the most rows, each spelling of what looks like one account.
        kinds: What such spellings differ in.
        nulls: Words for nothing, such as #N/A.
        totals: Words for a total, such as 합계.
    """

    alike: dict[str, dict[str, int]]
    kinds: list[str]
    nulls: dict[str, int]
    totals: dict[str, int]

    @property
    def first_spellings(self) -> dict[str, str]:
        """For each other spelling the one that has the most rows."""
        return {
            label: first for first, rows in self.alike.items() for label in rows if label != first
        }

    def in_words(self) -> str:
        """Return what was found as a line, "" for nothing."""
        found = {
            f"look like one account ({', '.join(self.kinds)})": [
                " = ".join(with_rows(rows)) for rows in self.alike.values()
            ],
            "a word for nothing": with_rows(self.nulls),
            "a total": with_rows(self.totals),
        }
        return "; ".join(f"{kind}: {shorten(labels)}" for kind, labels in found.items() if labels)


def find_doubtful(rows: Mapping[str, int]) -> DoubtfulLabels:
    """Return what is doubtful among labels, of which the number of rows is given."""
    nulls = {label: count for label, count in rows.items() if _is_null(label)}
    totals = {
        label: count
        for label, count in rows.items()
        if label not in nulls and is_total(label, rows)
    }
    rest = sorted(rows.keys() - {*nulls, *totals}, key=lambda label: (-rows[label], label))
    groups: dict[str, list[str]] = {}
    for label in rest:
        groups.setdefault(_bare(label), []).append(label)
    alike = {
        group[0]: {label: rows[label] for label in group}
        for group in groups.values()
        if len(group) > 1
    }
    kinds = {kind: None for group in alike.values() for kind in _differences(list(group))}
    return DoubtfulLabels(alike, list(kinds), nulls, totals)


def read_label_map(path: Path) -> dict[str, str]:
    """Return the new label by the old one, from a file that has columns of these names.

    Raises:
        Refused: If it can't be read, or has two new labels for an old one; its name precedes.
    """
    try:
        opened = open_file(path.expanduser(), Wanted(dict.fromkeys(MAP_COLUMNS, "")))
        windows = list(opened.windows(1 << 16))
    except (Failed, OSError) as err:
        raise Refused(f"it can't be read ({getattr(err, 'strerror', None) or err}).") from err
    if rejected := [reject for window in windows for reject in window.rejects]:
        first = rejected[0]
        where = f"{opened.unit} {first.number}: {first.reason}"
        raise Refused(f"{len(rejected)} of its rows can't be read, the first in {where}.")
    frame = pd.concat([window.rows.frame(MAP_COLUMNS) for window in windows])
    pairs = pd.DataFrame({name: as_text(column) for name, column in frame.items()})
    pairs = pairs[pairs["old"] != ""].drop_duplicates()
    if twice := [old for old, rows in Counter(pairs["old"]).items() if rows > 1]:
        listed = shorten(twice)
        raise Refused(f"old labels stand there with several new ones: {listed}. Leave one of each.")
    return dict(zip(pairs["old"], pairs["new"], strict=True))


def _differences(labels: Sequence[str]) -> list[str]:
    """Return the kinds of difference without which the labels would not be one."""
    return [kind for kind in STEPS if len({_bare(label, but=kind) for label in labels}) > 1]


def _bare(label: str, but: str | None = None) -> str:
    """Return what is left of a label once its differences are taken away, all or all but one."""
    for kind, step in STEPS.items():
        label = label if kind == but else step(label)
    return label


def _is_null(label: str) -> bool:
    plain = unicodedata.normalize("NFKC", label)
    if not any(map(str.isalnum, plain)):  # such as -
        return True
    return plain.casefold().lstrip("#") in NULLS or bool(SPREADSHEET_ERROR.fullmatch(plain))


def is_total(label: str, labels: Iterable[str] = ()) -> bool:
    """Whether a label, or text, is a word for a total, alone, with a number, or beside a label."""
    plain = re.sub(
        r"\d+[월년분기일건개月年日件]*", " ", unicodedata.normalize("NFKC", label).casefold()
    )
    plain = re.sub(r"\b(\w)\s+(?=\w\b)", r"\1", plain)  # 합 계
    words = [word for word in re.findall(r"[^\W\d_]+", plain) if word not in BESIDE_TOTAL]
    says = [word in TOTALS or word.endswith(TOTAL_ENDINGS) for word in words]
    if len(words) < 2 or all(says):
        return any(says)
    return any(says) and any(
        label.startswith(f"{other} ") or label.endswith(f" {other}") for other in labels
    )
