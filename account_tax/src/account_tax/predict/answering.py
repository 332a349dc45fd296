"""Filing: each window of rows answered by the classifier, in the order of the input."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from account_tax.confidential import without_quotes
from account_tax.ledger.amounts import sum_amounts
from account_tax.ledger.joined import JoinedFiles
from account_tax.ledger.labels import is_total
from account_tax.ledger.rows import Rows
from account_tax.ledger.windows import Reject, Window
from account_tax.model.classifier import LoadedClassifier, join_texts, needs_review

from .parts import Journal
from .sinks import SCORE_DIGITS, Sink

# Before an account's name, in the journal's counts: its rows, and those a person looks at.
LABEL, REVIEW = "label ", "review "


@dataclass(frozen=True)
class Desk:
    """Who files, and how: the classifier, how many labels it names, when a person has to look.

    A text that reads as a total, such as 합계, is a person's: it may be a supplier's name as well.
    """

    classifier: LoadedClassifier
    top_k: int
    thresholds: Mapping[str, Any]
    amount_column: str | None = None

    def file(self, window: Window) -> tuple[Rows, pd.DataFrame, list[Reject], int]:
        """Return a window's readable rows, their answers, all rows that can't be filed, totals."""
        settings = self.classifier.settings
        columns = settings["text_columns"]
        texts = join_texts(window.rows.frame(columns), columns, settings["separator"])
        filled = (texts != "").to_numpy(dtype=bool)
        reason = f"no text in {', '.join(columns)}"
        numbers = zip(window.rows.numbers, filled, strict=True)
        rejects = window.rejects + [Reject(number, reason) for number, has in numbers if not has]
        rows = window.rows if filled.all() else window.rows.keep(filled)
        answers = self.answer(texts[filled].tolist())
        totals = np.array([is_total(text) for text in texts[filled]], dtype=bool)
        answers["needs_review"] |= totals
        return rows, answers, sorted(rejects, key=lambda reject: reject.number), int(totals.sum())

    def answer(self, texts: list[str]) -> pd.DataFrame:
        """Return label, score and so on for each text, (N,); one that repeats is computed once."""
        places, different = pd.factorize(np.array(texts, dtype=object))
        logits = self.classifier.logits(list(different))
        answers = self.classifier.rank(logits[places], self.top_k).round(SCORE_DIGITS)
        answers["needs_review"] = needs_review(answers["label"], answers["score"], self.thresholds)
        return answers


@without_quotes
def file_ledger(
    desk: Desk,
    source: JoinedFiles,
    sink: Sink,
    journal: Journal,
    batch_rows: int,
    tell: Callable[[int, float], None],
) -> tuple[int, float]:
    """File what the journal does not have yet; return the rows read for it and the seconds.

    Args:
        desk: Answers.
        source: The ledger; windows that are in the journal are read past.
        sink: Writes parts.
        journal: Keeps them.
        batch_rows: Rows of a window.
        tell: Called after each window with the rows read in all, and the rows a second.
    """
    start, done, read = time.perf_counter(), len(journal.notes), 0
    for index, window in enumerate(source.windows(batch_rows)):
        if index < done:
            continue
        rows, answers, rejects, totals = desk.file(window)
        part = journal.part(index)
        part.touch(mode=0o600)  # it may stay, and hold ledger text
        formulas = sink.write_part(part, rows, answers)
        review = answers["label"][answers["needs_review"].to_numpy(dtype=bool)]
        counts = {
            "read": window.read,
            "written": len(answers),
            "review": len(review),
            "formulas": formulas,
            "totals": totals,
            **{f"{LABEL}{label}": rows for label, rows in Counter(answers["label"]).items()},
            **{f"{REVIEW}{label}": rows for label, rows in Counter(review).items()},
        }
        if column := desk.amount_column:
            counts |= sum_amounts(join_texts(rows.frame([column]), [column], ""), answers["label"])
        journal.commit(window.file if source.several else "", rejects, counts)
        read += window.read
        tell(journal.total("read"), read / (time.perf_counter() - start))
    return read, time.perf_counter() - start
