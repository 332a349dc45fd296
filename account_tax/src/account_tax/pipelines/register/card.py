"""The model card: what a version was made of, how well it does, and what not to use it for.

It is Markdown, made of counts, names and digests; no ledger text has a place in it.
"""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from account_tax.ledger.reading import describe_rare
from account_tax.model.calibration import least_rows
from account_tax.model.licence import base_licence
from account_tax.parameters.batch import share_batch
from account_tax.provenance.environment import environment_tags
from account_tax.reporting.description import compose
from account_tax.reporting.markdown import code, escape_cell, format_number, markdown_table
from account_tax.storage.names import BF16_METRIC, CARD_FILE, LONGEST_TEXT

Facts = Mapping[str, Any]
UNLOCKED_MARK = (
    "**Registered from an environment that differs from the lock**: nobody can install it again "
    "by this project's files.\n\n"
)


def write_card(facts: Facts, most_classes: int | None = None) -> str:
    """Return the model card.

    Args:
        facts: name, settings (classifier.json), metrics, evaluation (of the test split), dataset
            (dataset_metadata), train (the parameters), environment (environment.json) and digests.
        most_classes: Rows in the table of classes, the weakest ones; None lists every class.
    """
    sections = (
        _summary(facts),
        _per_class(facts["evaluation"], most_classes),
        _data(facts["dataset"]),
        _base_and_parameters(facts),
        _environment(facts["environment"]),
        _scores(facts["settings"].get("calibration"), facts["metrics"]),
        _use(facts),
        _limits(facts),
        _digests(facts["digests"]),
    )
    return "\n\n".join(sections) + "\n"


def describe_version(facts: Facts) -> str:
    """Return the card as a version's description, listing as many classes as fit."""
    card = ""
    for most_classes in range(len(facts["evaluation"]["labels"]), -1, -1):
        card = write_card(facts, most_classes)
        if len(card) <= LONGEST_TEXT:
            break
    return compose({"card": card})


# --- sections -------------------------------------------------------------------------------------


def _summary(facts: Facts) -> str:
    evaluation, metrics = facts["evaluation"], facts["metrics"]
    calibration = facts["settings"].get("calibration") or {}
    names = ("accuracy", "f1", "precision", "recall", "loss")
    # What training measured has no n-grams in it.
    validation = "validation" + ", the encoder alone" * ("fusion" in calibration)
    rows = [
        [split, *(format_number(metrics.get(f"{key}/{name}")) for name in names)]
        for split, key in (("test", "test"), (validation, "eval"))
    ]
    return (
        f"# {facts['name']}\n\n"
        f"Files a ledger line under one of {len(evaluation['labels'])} accounts, from its text. "
        f"F1, precision and recall are {evaluation['average']} averages; the test split has "
        f"{evaluation['rows']:,} rows; the loss is in nats, on test that of the scores.\n\n"
        + markdown_table(["split", *names], rows)
        + _parts(metrics, calibration)
        + _suppliers(metrics)
    )


def _parts(metrics: Facts, calibration: Facts) -> str:
    """Return what encoder and n-grams are worth alone, where there are both."""
    names = ("accuracy", "f1")
    if "test/ngrams_f1" not in metrics:
        return ""
    fusion = calibration.get("fusion", {"encoder": 1.0, "ngrams": 0.0})
    alone = {"encoder": "the encoder alone", "ngrams": "n-grams alone"}
    rows = [
        [title, *(format_number(metrics[f"test/{part}_{name}"]) for name in names), fusion[part]]
        for part, title in alone.items()
    ]
    table = markdown_table(["part, on test", *names, "weight"], rows)
    return f"\n\nThe answer is the sum of two parts, weighted by the validation split.\n\n{table}"


def _suppliers(metrics: Facts) -> str:
    if "test/unseen_suppliers_rows" not in metrics:
        return ""
    said = [
        f"{format_number(metrics.get(f'test/{name}_suppliers_accuracy'), '.1%')} of "
        f"{metrics[f'test/{name}_suppliers_rows']:,.0f}"
        for name in ("unseen", "other")
    ]
    return f"\n\nSuppliers that train never saw: {said[0]} test rows right; others: {said[1]}."


def _per_class(evaluation: Facts, most_classes: int | None) -> str:
    classes = sorted(
        evaluation["per_class"], key=lambda row: (row["support"] == 0, row["f1"] or 0.0)
    )
    shown = classes[:most_classes]
    title = "## Accounts, weakest first"
    if not shown:
        return f"{title}\n\nAll {len(classes)} are in {CARD_FILE} of the run."
    names = ("f1", "precision", "recall")
    rows = [
        [row["label"], f"{row['support']:,}", *(format_number(row[name]) for name in names)]
        for row in shown
    ]
    table = markdown_table(["account", "test rows", *names], rows)
    rest = len(classes) - len(shown)
    note = f"\n\n{rest} more are in {CARD_FILE} of the run." if rest else ""
    return f"{title}\n\n{table}{note}"


def _data(dataset: Facts) -> str:
    rows, rare = dataset["rows"], describe_rare(dataset)
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in rows["dropped"].items() if count)
    splits = [
        [name, f"{split['rows']:,}", f"`{split['sha256']}`"]
        for name, split in dataset["splits"].items()
    ]
    return (
        f"## Data\n\nSource {code(source_name(dataset['source']))}: {rows['read']:,} rows "
        f"read, {rows['kept']:,} kept; left out: {dropped or 'none'}. "
        f"Source sha256 `{dataset['source_sha256']}`.\n\n"
        + f"{escape_cell(rare)}\n\n" * bool(rare)
        + markdown_table(["split", "rows", "sha256"], splits)
    )


def _batch(deepspeed: Facts) -> str:
    if total := deepspeed.get("train_batch_size"):
        return f"{total} rows"
    micro_batch, steps = share_batch(deepspeed, ranks=1)
    return f"{micro_batch} rows x {steps} accumulated, a rank"


def _base_and_parameters(facts: Facts) -> str:
    base, settings = facts["settings"]["base"], facts["settings"]
    train, metrics = facts["train"], facts["metrics"]
    training, deepspeed = train["training"], train["deepspeed"]
    averaged = train.get("averaging", {}).get("enable", False)
    rows = {
        "base": code(base["name"]),
        "base revision": base["revision"] and f"`{base['revision']}`",
        "base weights sha256": f"`{base['sha256']}`",
        "base licence": base_licence(base["name"]),
        "pooling": settings["pooling"],
        "adaptation": _adaptation(train["lora"]),
        "averaging": "the mean of the weights at the evaluations" * averaged or None,
        "trained parameters": format_number(metrics.get("train/trainable_parameters"), ",.0f"),
        "learning rate": training["learning_rate"],
        "epochs": format_number(metrics.get("train/epoch"), ",.3g"),
        "max steps": training.get("max_steps"),
        "batch": _batch(deepspeed),
        "precision": settings["precision"],
        "label smoothing": training.get("label_smoothing_factor"),
        "noise on embeddings": training.get("neftune_noise_alpha"),
        "class weights": train.get("loss", {}).get("class_weights"),
        "longest input": f"{settings['max_length']} tokens",
        "seed": training.get("seed"),
    }
    given = [(key, str(value)) for key, value in rows.items() if value is not None]
    return "## Base and parameters\n\n" + markdown_table(["", ""], given)


def _adaptation(lora: Facts) -> str:
    if not lora.get("enable", True):
        return "every weight"
    targets = lora["target_modules"]
    targets = targets if isinstance(targets, str) else ", ".join(targets)
    said = f"LoRA r {lora['r']}, alpha {lora['alpha']}, dropout {lora['dropout']}, on {targets}"
    told = {"enable", "r", "alpha", "dropout", "target_modules", "task_type"}
    usual = {"bias": "none", "init_lora_weights": True}
    others = {
        key: value
        for key in sorted(lora.keys() - told)
        if (value := json.dumps(lora[key])) not in ("null", "{}", json.dumps(usual.get(key, False)))
    }
    return said + "".join(f", {key} {value}" for key, value in others.items())


def _environment(environment: Facts) -> str:
    rows = [[key.replace("_", " "), text] for key, text in environment_tags(environment).items()]
    mark = "" if environment["locked"] else UNLOCKED_MARK
    return f"## Environment\n\n{mark}" + markdown_table(["", ""], rows)


def _scores(calibration: Facts | None, metrics: Facts) -> str:
    if not calibration:
        return "## Scores\n\nNot calibrated: a score says no more than which label is likelier."
    target, threshold = calibration["target_precision"], calibration["threshold"]
    own = calibration.get("account_thresholds", {})
    least = least_rows(target, calibration["guarantee"])
    few = calibration["rows"] < least
    why = f"it takes at least {least:,} validation rows, all right"
    why = why if few else "too many of the rows with the highest scores are wrong"
    reached = f"none can be promised: a person looks at every row{' of theirs' * bool(own)}; {why}"
    rows = {
        "target precision": f"{target:.2%}, promised with {calibration['guarantee']:.2%}",
        "threshold of all other accounts" if own else "threshold": (
            reached if threshold is None else format_number(threshold)
        ),
        **{
            f"its own: {name}": "none: a person looks" if score is None else format_number(score)
            for name, score in own.items()
        },
        "validation rows at or above it": f"{calibration['coverage']:.2%}",
        "test rows at or above it": format_number(metrics.get("test/coverage"), ".2%"),
        "of those right": format_number(metrics.get("test/coverage_precision"), ".2%"),
        "expected calibration error, test": format_number(metrics.get("test/ece")),
        "the same without temperature": format_number(metrics.get("test/ece_uncalibrated")),
        "temperature": f"{calibration['temperature']:.4g}",
        "other labels in bf16, validation": format_number(metrics.get(BF16_METRIC), ".2%"),
    }
    fitted = f"Temperature and threshold are fitted to {calibration['rows']:,} validation rows."
    return f"## Scores\n\n{fitted}\n\n" + markdown_table(["", ""], rows.items())


def _use(facts: Facts) -> str:
    columns = " ".join(", ".join(facts["settings"]["text_columns"]).split())
    return (
        "## Use\n\nTo propose an account for a line, with a score, to a person who decides.\n\n"
        "```python\nimport mlflow\n"
        f'model = mlflow.pyfunc.load_model("models:/{facts["name"]}/<version>")\n'
        f"model.predict(frame)  # columns {columns} -> label, score\n```"
    )


def _limits(facts: Facts) -> str:
    limits = [
        "A person reviews every proposal: this is no tax or accounting advice.",
        "It knows only the accounts listed, and always names one of them.",
        "It learned its labels' mistakes too; scores hold for rows like those it was trained on.",
        "Expect less in languages, merchants and periods that its training rows do not have.",
    ]
    if facts["dataset"]["source"] == "sample":
        limits.insert(0, "**Its data are synthetic**, made to try the recipe: not for real books.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _digests(digests: Mapping[str, str]) -> str:
    # Those of the data stand with the data.
    rows = [[key, f"`{value}`"] for key, value in digests.items() if not key.startswith("data/")]
    return "## Digests\n\n" + markdown_table(["of", "sha256"], rows)


# --- formatting -----------------------------------------------------------------------------------


def source_name(source: str) -> str:
    """Return the last part of a path or URI; the folders before it are a machine's own."""
    return PurePosixPath(source.rstrip("/")).name
