"""Baselines on the sample ledger, against the best score that is possible on it.

Run: PYTHONPATH=account_tax/src python benchmarks/sample_baseline.py   (seconds, one core)
"""

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold

from account_tax.ledger.sample import ceiling, sample_ledger
from account_tax.review.baselines import TITLES, predict_baselines


def score_folds(ledger: pd.DataFrame, folds: int = 10) -> dict[str, np.ndarray]:
    """Return (accuracy, macro-F1) of every baseline, and the ceiling, on each fold, (folds, 2)."""
    scores = {name: [] for name in [*TITLES.values(), "ceiling, same rows"]}
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    for train_rows, test_rows in splits.split(ledger, ledger["label"]):
        train, test = ledger.iloc[train_rows], ledger.iloc[test_rows]
        columns = (train["text"], train["label"], test["text"])
        answers = predict_baselines(*(column.tolist() for column in columns))
        for name, predicted in answers.items():
            macro_f1 = f1_score(test["label"], predicted, average="macro", zero_division=0.0)
            scores[TITLES[name]].append((accuracy_score(test["label"], predicted), macro_f1))
        scores["ceiling, same rows"].append(tuple(ceiling(test).values()))
    return {name: np.array(values) for name, values in scores.items()}


def main() -> None:
    """Print mean and spread over folds of a tenth, as the default test split is."""
    ledger = sample_ledger().drop_duplicates("text", ignore_index=True)
    print(f"{len(ledger)} lines without repeats, 10 folds: mean ± standard deviation of a fold")
    for name, values in score_folds(ledger).items():
        (accuracy, macro_f1), (accuracy_sd, macro_f1_sd) = values.mean(axis=0), values.std(axis=0)
        print(
            f"{name:32} accuracy {accuracy:.3f} ± {accuracy_sd:.3f}   "
            f"macro-F1 {macro_f1:.3f} ± {macro_f1_sd:.3f}"
        )
    exact = ceiling()
    print(
        f"{'ceiling, exact':32} accuracy {exact['accuracy']:.3f}           "
        f"macro-F1 {exact['macro_f1']:.3f}"
    )


if __name__ == "__main__":
    main()
