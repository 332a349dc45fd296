"""How good each way to file a line is, on real and made-up ledgers, over seeds.

    python benchmarks/quality.py                                  # hours on two cores; resumable
    python benchmarks/quality.py --only sample --seeds 1          # a part; table of what there is

Each cell is one training or fit on the same rows: accuracy and macro-F1 on the test split. What was
measured is kept in a file, line by line; the same command goes on from there. Trainings are
`kedro train -P register=evaluate` in a clone of this commit, so that they are what a user has.
banking77 is read from ../shared/data and left out, with a word, where that is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline, make_union

from account_tax.ledger.reading import read_ledger
from account_tax.ledger.splitting import split_ledger
from account_tax.model.classifier import build_classifier, load_tokenizer, resolve_base
from account_tax.parameters.config import resolve
from account_tax.reporting.svg import BLUE, GREY, sized_figure, svg_style

ROOT = Path(__file__).resolve().parent.parent
BANKING = ROOT.parent / "shared/data/banking77"
SPLITS = ("train", "validation", "test")
Splits = dict[str, pd.DataFrame]  # columns text and label


# --- ledgers --------------------------------------------------------------------------------------


def read_sample(_: int) -> Splits:
    """Return the sample ledger as the recipe splits it."""
    data = resolve(ROOT, []).values["data"]
    ledger = read_ledger(data)
    splits = ledger.with_texts(split_ledger(ledger, data)[0])
    return {name: rows[["text", "label"]] for name, rows in splits.items()}


def read_banking(_: int) -> Splits:
    """Return banking77 (CC-BY-4.0), its test split as published."""
    return {name: pd.read_csv(BANKING / f"{name}.csv") for name in SPLITS}


def _half(hangul: bool) -> Callable[[int], Splits]:
    def read(seed: int) -> Splits:
        return {
            name: rows[rows["text"].str.contains("[가-힣]") == hangul]
            for name, rows in read_sample(seed).items()
        }

    return read


def _share(share: float) -> Callable[[int], Splits]:
    """Return a share of the sample's lines to learn from, validation among them; all of test."""

    def read(seed: int) -> Splits:
        splits = read_sample(seed)
        for name in ("train", "validation"):
            rows = splits[name]
            splits[name] = rows.groupby("label").sample(frac=share, random_state=seed)
        return splits

    return read


def read_noisy(seed: int) -> Splits:
    """Return the sample with three percent of the labels drawn anew, but for those of test."""
    splits, draws = read_sample(seed), np.random.RandomState(seed)
    for name in ("train", "validation"):
        rows = splits[name].copy()
        wrong = draws.rand(len(rows)) < 0.03
        rows.loc[wrong, "label"] = draws.choice(rows["label"].unique(), wrong.sum())
        splits[name] = rows
    return splits


def read_imbalanced(seed: int) -> Splits:
    """Return the sample with fewer and fewer training lines an account, down to a fiftieth."""
    splits = read_sample(seed)
    rows = splits["train"]
    order = rows["label"].value_counts().index
    most = rows["label"].value_counts().iloc[0]
    keep = most * 50.0 ** -(np.arange(len(order)) / (len(order) - 1))
    parts = [
        part.sample(min(len(part), max(3, int(count))), random_state=seed)
        for count, part in zip(keep, (rows[rows["label"] == name] for name in order), strict=True)
    ]
    return splits | {"train": pd.concat(parts).sample(frac=1, random_state=seed)}


LEDGERS: dict[str, Callable[[int], Splits]] = {
    "sample": read_sample,
    "sample, Hangul": _half(hangul=True),
    "sample, English": _half(hangul=False),
    "sample, 10%": _share(0.1),
    "sample, 200 lines": _share(200 / 3563),
    "sample, 3% more noise": read_noisy,
    "sample, 50:1": read_imbalanced,
    "banking77": read_banking,
}


# --- ways to file ---------------------------------------------------------------------------------


def score(truth: pd.Series, predicted: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro-F1."""
    f1 = f1_score(truth, predicted, average="macro", zero_division=0.0)
    return {"accuracy": accuracy_score(truth, predicted), "f1": float(f1)}


def fit_best(features: Splits, splits: Splits) -> np.ndarray:
    """Return a logistic regression's answers to test, its C the best on validation."""
    labels = {name: rows["label"] for name, rows in splits.items()}
    models = [LogisticRegression(C=c, max_iter=2000) for c in (1, 3, 10, 30)]
    for model in models:
        model.fit(features["train"], labels["train"])
    best = max(models, key=lambda model: model.score(features["validation"], labels["validation"]))
    return best.predict(features["test"])


def with_majority(splits: Splits, _: int) -> dict[str, dict[str, float]]:
    """Answer with the commonest account."""
    test = splits["test"]["label"]
    return {"majority": score(test, np.full(len(test), splits["train"]["label"].mode()[0]))}


def with_tfidf(splits: Splits, _: int) -> dict[str, dict[str, float]]:
    """Answer as an engineer does in ten lines."""
    common = {"sublinear_tf": True, "dtype": np.float32}
    vectorize = make_pipeline(
        make_union(
            TfidfVectorizer(ngram_range=(1, 2), **common),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), **common),
        )
    ).fit(splits["train"]["text"])
    features = {name: vectorize.transform(rows["text"]) for name, rows in splits.items()}
    predicted = fit_best(features, splits)
    return {"TF-IDF + LR": score(splits["test"]["label"], predicted)}


def with_frozen(splits: Splits, _: int) -> dict[str, dict[str, float]]:
    """Answer from the vectors of the starter's base as it is."""
    model = resolve(ROOT, []).values["train"]["model"]
    base = resolve_base(model["name"], model["revision"], model["sha256"])
    tokenizer = load_tokenizer(base, model["prefix"])
    network = build_classifier(base, labels=["a", "b"], pooling="mean").eval()
    network.classifier = torch.nn.Identity()
    features = {}
    for name, rows in splits.items():
        vectors = []
        for start in range(0, len(rows), 64):
            texts = rows["text"].iloc[start : start + 64].tolist()
            batch = tokenizer(
                texts, padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            with torch.inference_mode():
                vectors.append(network(batch["input_ids"], batch["attention_mask"]).logits.numpy())
        features[name] = np.concatenate(vectors)
    return {"frozen encoder + LR": score(splits["test"]["label"], fit_best(features, splits))}


def _training(name: str, *values: str) -> Callable[[Splits, int], dict[str, dict[str, float]]]:
    """Return a way that trains; the encoder and the n-grams alone come with it."""

    def train(splits: Splits, seed: int) -> dict[str, dict[str, float]]:
        with tempfile.TemporaryDirectory() as scratch:
            found = run_training(Path(scratch), splits, seed, values)
        parts = {name: "", f"{name}, encoder alone": "encoder_", "n-grams alone": "ngrams_"}
        return {
            title: {key: found[f"test/{part}{key}"] for key in ("accuracy", "f1")}
            for title, part in parts.items()
            if f"test/{part}f1" in found
        } | {
            f"{name}: beside": {
                "coverage": found["test/coverage"],
                "validation": [found["eval/accuracy"], found["eval/f1"]],
                "seconds": found["train/runtime_seconds"],
            }
        }

    return train


def run_training(
    scratch: Path, splits: Splits, seed: int, values: tuple[str, ...]
) -> dict[str, float]:
    """Return the metrics of one training in a clone of this commit."""
    ledger, project = scratch / "ledger", scratch / "project"
    ledger.mkdir()
    for name, rows in splits.items():
        rows.to_csv(ledger / f"{name}.csv", index=False)
    subprocess.run(["git", "clone", "-q", ROOT, project], check=True)
    store = f"sqlite:///{scratch}/mlflow.db"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kedro", "train", "--register=evaluate", f"--data={ledger}"),
            *("--text_columns=text", "--label_column=label", "--data.rare=train_only"),
            *("--data.duplicates=keep", f"--seed={seed}", *values),
        ],
        cwd=project,
        env=os.environ | {"MLFLOW_TRACKING_URI": store, "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"kedro train ended with {done.returncode}:\n{done.stdout[-3000:]}")
    client = MlflowClient(store)
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return run.data.metrics


def _upper(layers: int) -> tuple[str, ...]:
    """Return the values that leave adapters in so many of the starter's upper layers."""
    numbers = ",".join(map(str, range(12 - layers, 12)))
    return (
        f"--train.lora.layers_to_transform={numbers}",
        "--train.lora.target_modules=query,key,value,dense",  # PEFT wants a list here
    )


WAYS = {
    "majority": with_majority,
    "TF-IDF + LR": with_tfidf,
    "frozen encoder + LR": with_frozen,
    "starter": _training("starter"),
    "starter, upper 6 layers": _training("starter, upper 6 layers", *_upper(6)),
    "starter, upper 4 layers": _training("starter, upper 4 layers", *_upper(4)),
    "english": _training("english", "--recipe=english"),
    "full fine-tuning": _training(
        "full fine-tuning",
        *("--train.lora.enable=false", "--learning_rate=5e-5"),
        "--num_gpus=1",  # two ranks would exchange 118 million gradients each step
    ),
}


# --- what was measured ----------------------------------------------------------------------------


def measure(kept: Path, ledgers: list[str], ways: list[str], seeds: int) -> None:
    """Add each cell that is not yet there to the file."""
    done = {(row["ledger"], row["way"], row["seed"]) for row in read(kept)}
    for seed in range(1, seeds + 1):
        for ledger in ledgers:
            splits = LEDGERS[ledger](seed)
            for way in ways:
                if (ledger, way, seed) in done:
                    continue
                start = time.perf_counter()
                found = WAYS[way](splits, seed)
                seconds = round(time.perf_counter() - start, 1)
                row = {"ledger": ledger, "way": way, "seed": seed, "seconds": seconds}
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row | {"found": found}) + "\n")
                print(row, found, flush=True)


def read(kept: Path) -> list[dict]:
    """Return the cells there are."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []
    return [json.loads(line) for line in lines]


def summarize(rows: list[dict]) -> pd.DataFrame:
    """Return mean and half of the 95% interval over seeds, a row for each ledger and way."""
    flat = pd.DataFrame(
        {key: row[key] for key in ("ledger", "seed", "seconds")} | {"way": way, **values}
        for row in rows
        for way, values in row["found"].items()
        if "f1" in values
    ).drop_duplicates(["ledger", "way", "seed"])  # n-grams alone come with each training
    grouped = flat.groupby(["ledger", "way"], sort=False)
    table = grouped.mean()
    runs = grouped.size()
    for name in ("accuracy", "f1"):
        spread = grouped[name].std() / np.sqrt(runs)
        table[f"{name} ±"] = spread * stats.t.ppf(0.975, (runs - 1).clip(lower=1))
    return table.assign(runs=runs)


def print_table(table: pd.DataFrame) -> None:
    """Print it as Markdown."""
    print(
        "| ledger | way | accuracy | macro-F1 | runs | seconds a run |\n|---|---|---|---|---|---|"
    )
    for (ledger, way), row in table.iterrows():
        accuracy, f1 = (
            f"{row[name]:.3f}" + (f" ± {row[f'{name} ±']:.3f}" if row["runs"] > 1 else "")
            for name in ("accuracy", "f1")
        )
        print(
            f"| {ledger} | {way} | {accuracy} | {f1} | {row['runs']:.0f} | {row['seconds']:.0f} |"
        )


def draw(table: pd.DataFrame, file: Path) -> None:
    """Draw the macro-F1 of each way on each ledger."""
    ways = table.index.get_level_values("way")
    shown = table[(table["f1"] > 0.3) & ~ways.str.contains("layers, ")]
    names = [f"{ledger}: {way}" for ledger, way in shown.index]
    with svg_style():
        height = 0.2 * len(names)
        figure, axes = sized_figure(5.5, height, left=3.7, right=0.2, bottom=0.6, top=0.1)
        colors = [BLUE if way == "starter" else GREY for _, way in shown.index]
        places = np.arange(len(names))[::-1]
        spread = shown["f1 ±"].where(shown["runs"] > 1, 0)
        axes.hlines(places, shown["f1"] - spread, shown["f1"] + spread, color=colors)
        axes.scatter(shown["f1"], places, color=colors, s=16)
        axes.set_yticks(places, names)
        axes.set_xlabel("macro-F1 on test; line: 95% interval over seeds")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    """Measure what is missing, then print and draw all there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=Path, default=ROOT / "data/quality.jsonl")
    parser.add_argument("--only", nargs="*", choices=LEDGERS, help="these ledgers")
    parser.add_argument("--ways", nargs="*", choices=WAYS, help="these ways")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="an SVG file to draw")
    given = parser.parse_args()
    given.kept.parent.mkdir(parents=True, exist_ok=True)
    ledgers = given.only or list(LEDGERS)
    if "banking77" in ledgers and not BANKING.is_dir():
        print(f"banking77 is left out: {BANKING} is not there")
        ledgers.remove("banking77")
    measure(given.kept, ledgers, given.ways or list(WAYS), given.seeds)
    order = {name: place for names in (LEDGERS, WAYS) for place, name in enumerate(names)}
    rows = sorted(read(given.kept), key=lambda row: (order[row["ledger"]], order[row["way"]]))
    table = summarize(rows)
    print_table(table)
    if given.plot:
        draw(table, given.plot)


if __name__ == "__main__":
    main()
